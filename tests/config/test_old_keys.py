"""Configs of version 74d691f mean what they meant."""

import json
import logging
from pathlib import Path

import pytest

from mae_jax.config import command_line, schema
from mae_jax.config.errors import UserError
from mae_jax.models import rules

ROOT = Path(__file__).parents[2]
# Names of configs, and the config.json that version 74d691f stored for each.
LINES = Path(__file__).with_name("stored_configs.jsonl").read_text().splitlines()
STORED = dict(map(json.loads, LINES))


def parse(*changes: str, name: str = "quickstart") -> schema.Config:
    spec = f"--config={ROOT}/configs/{name}.py"
    return command_line.parse([spec, "--workdir=x", *changes], rules.RULES)[0]


# The quick start has become shorter since: these were its values.
QUICKSTART = {"epochs": 22.0, "batch_size": 128}
QUICKSTART |= {"optimizer.base_learning_rate": 2e-3, "optimizer.warmup_epochs": 2.0}


def of_today(name: str) -> schema.Config:
    values = command_line.load(f"{ROOT}/configs/{name}")
    return schema.updated(values, QUICKSTART if name == "quickstart.py" else {})


@pytest.mark.parametrize("name", STORED)
def test_a_stored_config_equals_the_same_config_of_today(name):
    today = schema.validate(of_today(name), rules.RULES)
    assert schema.differences(STORED[name], today) == []
    read = schema.validate(STORED[name], rules.RULES)
    assert {**read} == {**today} | {"recovery": read.recovery}
    assert read.recovery.max_skipped_updates == 3  # what the run had, which may change


def test_a_stored_config_that_differs():
    """Evaluators may change, since the training does not depend on them."""
    changes = {"evaluators.knn.examples": 5, "data.flip": False}
    changed = schema.updated(of_today("quickstart.py"), changes)
    assert schema.differences(STORED["quickstart.py"], changed) == [
        "data.flip: True before, False now",
    ]


def test_old_names_on_the_command_line(caplog):
    config = parse(
        "--config.recovery.skips=4",
        "--noconfig.recovery.canary",
        "--config.model.attention=light",
        "--config.evaluate.every=9",
        "--config.probe.examples=11",
        "--config.data.test.source=photos",
        "--config.probe.linear=false",
    )
    assert config.recovery.max_skipped_updates == 4
    assert config.model.attention == "recompute"
    assert [entry.every for entry in config.evaluators.values()] == [9, 9]
    assert config.evaluators["knn"].examples == 11
    assert config.evaluators["reconstruction"].source == "photos"
    (line,) = caplog.messages
    assert line.startswith("the command line has keys of an earlier version: probe.linear is now")
    assert "\n" not in line


def test_a_linear_probe_is_added_under_its_old_name():
    config = parse("--config.probe.linear", name="vit_base")
    linear, knn = config.evaluators["linear"], config.evaluators["knn"]
    assert linear.type == "linear_probe"
    assert all(linear[key] == knn[key] for key in ("train", "test", "examples", "every"))


def test_probes_are_removed_under_their_old_names():
    config = parse("--config.probe.train.source=", "--config.probe.test.source=")
    assert list(config.evaluators) == ["reconstruction"]


def test_an_old_key_without_an_evaluator_is_unknown():
    with pytest.raises(UserError, match="unknown config key probe.examples"):
        parse("--config.probe.examples=5", name="text_small")


def test_a_config_file_with_old_names(tmp_path, caplog):
    stored = STORED["finetune_video_small.py"]
    (tmp_path / "mine.py").write_text(f"def get_config(arg):\n    return {stored!r}\n")
    with caplog.at_level(logging.WARNING):
        spec = [f"--config={tmp_path}/mine.py", "--workdir=x", "--config.evaluate.clips=4"]
        config, _ = command_line.parse(spec, rules.RULES)
    assert config.evaluators["classification"].clips == 4
    assert len(caplog.messages) == 2  # of the file, and of the command line


def test_configs_of_today_have_no_old_names(caplog):
    for path in (ROOT / "configs").glob("[!r]*.py"):  # not recipe_parts.py
        schema.validate(command_line.load(str(path)))
    assert not caplog.messages
