"""Every config runs as written, and each mistake ends in one sentence."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mae_jax.config import command_line
from mae_jax.config.errors import UserError
from mae_jax.models import vit
from mae_jax.tasks import pretrain

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
QUICK = f"--config={ROOT}/configs/quickstart.py"


def load(name: str) -> dict:
    return command_line.load(f"{ROOT}/configs/{name}.py")


@pytest.mark.parametrize("name", NAMES)
def test_every_config_is_complete_and_possible(name):
    command_line.check(load(name))
    command_line.check(command_line.load(f"{ROOT}/configs/{name}.py:debug"))


@pytest.mark.parametrize("name", NAMES)
def test_debug_keeps_every_key(name):
    debug = command_line.load(f"{ROOT}/configs/{name}.py:debug")
    assert command_line.flatten(load(name)).keys() == command_line.flatten(debug).keys()


@pytest.mark.parametrize("size, patch", [("small", 16), ("base", 16), ("large", 16), ("huge", 14)])
def test_the_papers_recipe(size, patch):
    """He et al. 2021, table 8, one number at a time."""
    config = load(f"vit_{size}")
    assert {k: config["model"][k] for k in ("width", "depth", "heads")} == vit.SIZES[size]
    assert config["model"]["patch"] == (patch, patch)
    model = pretrain.model_of(config)
    assert (model.decoder_width, model.decoder_depth, model.decoder_heads) == (512, 8, 16)
    assert model.mlp_ratio == 4 and model.norm_pix
    assert config["mask"]["ratio"] == 0.75
    assert (config["epochs"], config["batch_size"]) == (800, 4096)
    long = command_line.load(f"{ROOT}/configs/vit_{size}.py:1600")
    assert long == config | dict(epochs=1600)
    assert config["optimizer"] == dict(
        base_learning_rate=1.5e-4,
        warmup_epochs=40,
        b1=0.9,
        b2=0.95,
        weight_decay=0.05,
        clip=0.0,
        ema=0.0,
        mu_dtype="float32",
        shard=False,
    )
    data = config["data"]
    assert data["train"] == dict(source="tfds:imagenet2012", split="train")
    assert (data["size"], data["channels"], data["crop_scale"]) == ((224, 224), 3, (0.2, 1.0))
    assert data["flip"] and data["crop_ratio"] == (3 / 4, 4 / 3)
    assert data["mean"] == (0.485, 0.456, 0.406) and data["std"] == (0.229, 0.224, 0.225)


FINETUNE = {  # rate, layer decay, drop path, epochs: He et al. 2021, table 9
    "base": (5e-4, 0.65, 0.1, 100),
    "large": (1e-3, 0.75, 0.2, 50),
    "huge": (1e-3, 0.75, 0.3, 50),
}


@pytest.mark.parametrize("size", FINETUNE)
def test_the_papers_fine_tuning(size):
    config = load(f"finetune_vit_{size}")
    assert {k: config["model"][k] for k in ("width", "depth", "heads")} == vit.SIZES[size]
    assert config["model"]["patch"] == ((14, 14) if size == "huge" else (16, 16))
    assert config["model"]["pooling"] == "mean" and config["model"]["learned_positions"]
    assert config["model"]["head_std"] == 2e-5 and not config["model"]["batch_norm"]
    rate, decay, drop, epochs = FINETUNE[size]
    assert (config["epochs"], config["batch_size"], config["trainable"]) == (epochs, 1024, ".*")
    assert config["optimizer"] == dict(
        name="adamw",
        base_learning_rate=rate,
        final_learning_rate=1e-6,
        warmup_epochs=5,
        layer_decay=decay,
        b1=0.9,
        b2=0.999,
        momentum=0.9,
        weight_decay=0.05,
        clip=0.0,
        ema=0.0,
        mu_dtype="float32",
        shard=False,
    )
    assert config["regularize"] == dict(
        drop_path=drop, mixup=0.8, cutmix=1.0, label_smoothing=0.1, erase=0.25, randaugment=9.0
    )
    assert config["data"]["crop_scale"] == (0.08, 1.0) and config["data"]["center_crop"] == 0.875


@pytest.mark.parametrize("size, epochs", [("base", 90), ("large", 50), ("huge", 50)])
def test_the_papers_linear_probe(size, epochs):
    """He et al. 2021, table 10."""
    config = load(f"linear_probe_vit_{size}")
    assert {k: config["model"][k] for k in ("width", "depth", "heads")} == vit.SIZES[size]
    assert config["model"]["pooling"] == "cls" and config["model"]["batch_norm"]
    assert config["model"]["head_std"] == 0.01 and not config["model"]["learned_positions"]
    assert (config["epochs"], config["batch_size"]) == (epochs, 16_384)
    assert config["trainable"] == "head/.*"
    options = config["optimizer"]
    assert (options["name"], options["base_learning_rate"], options["momentum"]) == (
        "lars",
        0.1,
        0.9,
    )
    assert (options["weight_decay"], options["warmup_epochs"]) == (0, 10)
    assert not any(config["regularize"].values())
    assert config["data"]["crop_scale"] == (0.08, 1.0) and config["data"]["flip"]


@pytest.mark.parametrize("name", NAMES)
def test_no_two_keys_share_a_value_that_one_override_would_change_twice(name):
    for argument in ("", ":debug"):
        parts, seen = [command_line.load(f"{ROOT}/configs/{name}.py{argument}")], set()
        while parts:
            for value in parts.pop().values():
                if isinstance(value, dict):
                    assert id(value) not in seen
                    seen.add(id(value))
                    parts.append(value)


def test_overrides():
    arguments = [QUICK, "--workdir=x", "--config.model.patch=(16,16)", "--config.epochs=0.5"]
    arguments += ["--config.optimizer.warmup_epochs=0.1", "--config.data.mean=auto"]
    config, workdir = command_line.parse([*arguments, "--noconfig.model.norm_pix"])
    assert workdir == "x" and config.model.patch == (16, 16) and config.epochs == 0.5
    assert config.data.mean == "auto" and config.model.norm_pix is False


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ([], "which config?"),
        ([QUICK], "Give --workdir=DIR"),
        (["--config=nothing.py", "--workdir=x"], "'nothing.py' does not exist"),
        ([QUICK + ":fast", "--workdir=x"], "argument 'fast' is unknown: use .*debug"),
        ([QUICK, "--workdir=x", "--config.model.dept=3"], "unknown .* did you mean model.depth?"),
        ([QUICK, "--workdir=x", "--config.modl.depth=3"], "unknown .* did you mean model.depth?"),
        ([QUICK, "--workdir=x", "--config.model.depth=3.5"], "must be a whole number"),
        ([QUICK, "--workdir=x", "--config.epochs=many"], "epochs = 'many' must be a number above"),
        ([QUICK, "--workdir=x", "--config.batch_size=0"], "batch_size = 0 must be a whole number"),
        ([QUICK, "--workdir=x", "--config.model.patch=(7,7)"], r"use \(63, 63\) or \(70, 70\)"),
        ([QUICK, "--workdir=x", "--config.model.patch=(8,)"], "different numbers of axes"),
        ([QUICK, "--workdir=x", "--config.model.heads=5"], "5 does not divide model.width = "),
        ([QUICK, "--workdir=x", "--config.mask.ratio=1.0"], "mask.ratio = 1.0 must be"),
        ([QUICK, "--workdir=x", "--config.mask.ratio=nan"], "mask.ratio = nan must be"),
        ([QUICK, "--workdir=x", "--config.mask.ratio=1e-12"], "hides none of 64"),
        ([QUICK, "--workdir=x", "--config.accumulation=7"], "7 does not divide batch_size"),
        ([QUICK, "--workdir=x", "--config.optimizer.warmup_epochs=1e3"], "not shorter than epochs"),
        ([QUICK, "--workdir=x", "--config.data.channels=1"], "as many values as data.channels"),
        ([QUICK, "--workdir=x", "--config.data.std=(0.,1.,1.)"], "must be above 0"),
        ([QUICK, "--workdir=x", "--config.model.dtype=float8"], "must be one of 'float32'"),
        ([QUICK, "--workdir=x", "--config.seed=4294967296"], "seed = 4294967296 must be"),
        ([QUICK, "--workdir=x", "extra"], "stray argument"),
        ([QUICK, "--workdir=x", "--config.epochs"], "--config.epochs needs a value"),
        ([QUICK, "--config.epochs=1", "--workdir", "--config.seed=1"], "--workdir needs a value"),
        ([QUICK, "--workdir=x", "--config.mask=3"], "mask is no config key, but has some: mask.de"),
        ([QUICK, "--workdir=x", "--config.data.mean=(1e999,0.,0.)"], "data.mean = .* must be"),
        ([QUICK, "--workdir=x", "--config.data.crop_scale=(True,True)"], "data.crop_scale = .* mu"),
        ([QUICK, "--wrkdir=x"], "unknown option --wrkdir: did you mean --workdir.*Give --workdir"),
    ],
)
def test_mistakes(arguments, sentence):
    with pytest.raises(UserError, match=sentence) as raised:
        command_line.parse(arguments)
    assert "\n" not in str(raised.value)


def test_all_that_is_wrong_is_said_at_once():
    arguments = ["model.depth=many", "log_every=0", "modl.width=3", "mask.ratio=1", "batch_size=7"]
    with pytest.raises(UserError) as raised:
        command_line.parse(
            [QUICK, "x", *(f"--config.{x}" for x in arguments), "--config.accumulation=2"]
        )
    problems = str(raised.value).split("; ")
    expected = [
        "accumulation = 2 does not divide batch_size = 7",  # though others have no possible value
        "log_every = 0 must be",
        "mask.ratio = 1 must be",
        "model.depth = 'many' must be",
        "stray argument(s) x",
        "unknown config key modl.width: did you mean model.width?",
        "where should the run be written?",
    ]
    assert len(problems) == len(expected)
    for problem, start in zip(problems, expected, strict=True):
        assert problem.startswith(start)


def test_arguments_with_their_values_behind():
    arguments = ["--config", f"{ROOT}/configs/quickstart.py", "--workdir", "x", "--config.epochs"]
    config, workdir = command_line.parse(
        [*arguments, "5", "--config.model.scan", "--config.seed=7"]
    )
    assert (config.epochs, config.model.scan, config.seed, workdir) == (5.0, True, 7, "x")
    assert type(config.epochs) is float  # and so may be changed to .5


def test_a_key_that_a_config_file_invents_or_forgets():
    config = load("quickstart")
    config["model"]["widht"] = config["model"].pop("width")
    with pytest.raises(UserError, match="model.width is missing; unknown .*model.widht"):
        command_line.check(config)


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


def test_a_users_config_elsewhere_builds_on_ours(tmp_path, monkeypatch):
    text = "from configs import vit_base\ndef get_config(arg): return vit_base.recipe(depth=7)"
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    config, _ = command_line.parse(["--config=mine.py", "--workdir=x"])
    assert config.model.depth == 7


def test_differences_survive_json():
    config = load("quickstart")
    stored = json.loads(command_line.to_json(config))
    assert command_line.differences(stored, config) == []
    config["model"]["depth"] += 1
    assert command_line.differences(stored, config) == ["model.depth: 4 there, 5 here"]


def test_the_command_line_exits_with_2_and_no_traceback(tmp_path):
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
