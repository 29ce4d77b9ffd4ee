"""The command line: which config, where to, and what is another."""

import subprocess
import sys
from pathlib import Path

import pytest

from mae_jax.config import command_line, schema
from mae_jax.config.errors import UserError
from mae_jax.models import rules

ROOT = Path(__file__).parents[2]
QUICK = f"--config={ROOT}/configs/quickstart.py"


def parse(*changes: str) -> schema.Config:
    config, workdir = command_line.parse([QUICK, "--workdir=x", *changes], rules.RULES)
    assert workdir == "x"
    return config


def test_values_are_changed():
    config = parse(
        "--config.model.patch=(16,16)",
        "--config.epochs=0.5",
        "--config.optimizer.warmup_epochs=0",
        "--config.data.mean=auto",
        "--noconfig.data.flip",
        "--config.model.scan",
        "--config.data.train.source=7",
    )
    assert config.model.patch == (16, 16) and config.epochs == 0.5
    assert config.data.mean == "auto" and config.data.train.source == "7"
    assert not config.data.flip and config.model.scan


@pytest.mark.parametrize("value", ["true", "True", "1"])
def test_switches(value):
    assert parse(f"--config.model.scan={value}").model.scan is True


def test_arguments_with_their_values_behind():
    arguments = ["--config", f"{ROOT}/configs/quickstart.py", "--workdir", "x", "--config.epochs"]
    config, workdir = command_line.parse([*arguments, "5", "--config.model.scan"])
    assert (config.epochs, config.model.scan, workdir) == (5, True, "x")


def test_evaluators_are_changed_added_and_removed():
    config = parse(
        "--config.evaluators.knn.every=7",
        "--noconfig.evaluators.knn.standardize",
        "--noconfig.evaluators.linear",
        "--config.evaluators.other.type=knn",
        "--config.evaluators.other.test.source=photos",
        "--config.evaluators.other.test.split=test",
        "--config.evaluators.other.k=(5,10)",
    )
    assert list(config.evaluators) == ["reconstruction", "knn", "other"]
    knn = config.evaluators["knn"]
    assert knn.every == 7 and not knn.standardize
    assert config.evaluators["other"].k == (5, 10)
    assert {**config.evaluators["other"].test} == dict(source="photos", split="test")


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ([], r"which config\? Give --config=configs/NAME.py"),
        ([QUICK], "Give --workdir=DIR"),
        (
            ["--config=nothing.py", "--workdir=x"],
            "'nothing.py' does not exist; the configs are: .*quick",
        ),
        ([QUICK + ":fast", "--workdir=x"], "argument 'fast' is unknown: use .*debug"),
        ([QUICK, "--workdir=x", "extra"], "stray argument 'extra': values are given as --config"),
        ([QUICK, "--workdir=x", "--config.epochs"], "--config.epochs needs a value"),
        (
            [QUICK, "--config.epochs=1", "--workdir", "--config.seed=1"],
            "argument --workdir: expected one argument",
        ),
        ([QUICK, "--wrkdir=x"], "unknown option --wrkdir: did you mean --workdir.*Give --workdir"),
        (
            [QUICK, "--workdir=x", "--config.epochs.x=1"],
            "unknown config key epochs.x: did you mean",
        ),
        ([QUICK, "--workdir=x", "--config.epochs=x", "y"], "epochs = 'x' must be .*; stray arg"),
        ([QUICK, "--workdir=x", "--config.mask.ratio=nan"], "mask.ratio = 'nan' must be"),
    ],
)
def test_mistakes(arguments, sentence):
    with pytest.raises(UserError, match=sentence) as raised:
        command_line.parse(arguments, rules.RULES)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("def get_config(arg): return 5", "returns no dict but 5"),
        ("def get_config(arg) return 5", "cannot be read"),
        ("from configs import nothing", "cannot be read"),
        ("def get_config(): return {}", "get_config.arg. of config file .* fails"),
        ("def get_config(arg): return {}['x']", "config file .* fails: KeyError: 'x'"),
        ("x = 1", "does not define get_config"),
        ("def get_config(arg): return dict(seed=1)", "batch_size is missing"),
    ],
)
def test_config_files_of_users(text, sentence, tmp_path):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=sentence):
        command_line.parse([f"--config={tmp_path}/mine.py", "--workdir=x"])


@pytest.mark.parametrize("change", ["", "return config.to_dict()"])
def test_a_config_elsewhere_builds_on_ours(change, tmp_path, monkeypatch):
    text = f"""
from configs import vit_base

def get_config(arg):
    config = vit_base.recipe(depth=7)
    config.evaluators = vit_base.evaluators(every=9, split="test", examples=4, batch_size=4)
    {change}
    return vit_base.with_argument(config, arg)
"""
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    config, _ = command_line.parse(["--config=mine.py", "--workdir=x"])
    assert config.model.depth == 7 and config.evaluators["reconstruction"].every == 9


def test_a_mistake_exits_with_2_and_no_traceback(tmp_path):
    command = [sys.executable, "-m", "mae_jax.train", QUICK, f"--workdir={tmp_path}/run"]
    done = subprocess.run(
        [*command, "--config.data.train.source=folder:/no/such"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert done.stderr == "error: data 'folder:/no/such': there is no folder '/no/such'\n"
    assert not (tmp_path / "run" / "config.json").exists()
