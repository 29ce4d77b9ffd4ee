"""A config is checked as a whole: each mistake is a sentence, and all of them are said at once."""

import copy
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pydantic
import pytest
from ml_collections import ConfigDict
from pydantic import TypeAdapter, ValidationError

from mae_jax.config import checks, command_line, nested, reference, schema, sections
from mae_jax.config.errors import UserError
from mae_jax.models import rules

ROOT = Path(__file__).parents[2]
SECTIONS = [
    kind
    for kind in vars(sections).values()
    if isinstance(kind, type) and issubclass(kind, sections.Section)
]


def config(name: str = "quickstart", changes=()) -> schema.Config:
    values = command_line.load(f"{ROOT}/configs/{name}.py")
    return schema.updated(values, dict(changes), rules.RULES)


def test_a_section_is_read_as_attributes_and_as_a_mapping():
    data = config().data
    assert data.size == data["size"] == data.get("size") == {**data}["size"] == (64, 64)
    assert set(data) == set(type(data).model_fields) and len(data) == len(list(data.items()))
    assert data.get("stride", 3) == 3 and "stride" not in data  # a key of video
    with pytest.raises(KeyError):
        data["stride"]


def test_an_evaluator_of_your_own_may_have_any_options():
    own = {f"evaluators.own.{key}": x for key, x in dict(type="custom", evaluator="a:B").items()}
    here = config(changes=own | {"evaluators.own.threshold": 0.5, "evaluators.own.clips": "all"})
    assert here.evaluators["own"].threshold == here.evaluators["own"]["threshold"] == 0.5
    assert {**here.evaluators["own"]}["threshold"] == 0.5
    assert schema.validate(schema.completed(schema.to_dict(here))) == here
    assert schema.updated(here, {"evaluators.own.threshold": 2}).evaluators["own"].threshold == 2


def test_a_config_cannot_be_changed_and_survives_copies():
    here = config()
    with pytest.raises(ValidationError, match="frozen"):
        here.data.threads = 5  # pyright: ignore
    assert copy.deepcopy(here) == pickle.loads(pickle.dumps(here)) == schema.validate(here) == here
    assert schema.validate(ConfigDict(nested.plain(here))) == here


def test_updated_replaces_values_and_checks_them_again():
    here = config()
    assert schema.updated(here, {"model.remat": "inputs"}).model.remat == "inputs"
    assert here.model.remat == "none"
    assert "knn" not in schema.updated(here, {"evaluators.knn": None}).evaluators
    with pytest.raises(UserError, match="model.depth = 0 must be a whole number of at least 1"):
        schema.updated(here, {"model.depth": 0})


def documentation(kind: type, name: str) -> str | None:
    """What stands below a key; or below the class of its section."""
    field = kind.model_fields[name]
    section = isinstance(field.annotation, type) and issubclass(field.annotation, sections.Section)
    return field.annotation.__doc__ if section else field.description


def bases(kind: type, name: str) -> list:
    """The sections that a section has a key of."""
    return [x for x in kind.__mro__ if name in getattr(x, "model_fields", {})]


@pytest.mark.parametrize("kind", SECTIONS, ids=lambda kind: kind.__name__)
def test_every_key_is_documented_and_every_default_is_possible(kind):
    strict = pydantic.ConfigDict(strict=True, allow_inf_nan=False)
    for name, field in kind.model_fields.items():
        assert any(documentation(base, name) for base in bases(kind, name)), name
        if not field.is_required() and not isinstance(field.default, sections.Section):
            of_key = TypeAdapter(Annotated[field.annotation, *field.metadata, name], config=strict)
            assert of_key.validate_python(field.default) == field.default


def test_the_page_of_all_keys_is_up_to_date():
    page = (ROOT / "docs/config.md").read_text()
    assert page == reference.page(), "python -m mae_jax.config.reference > docs/config.md"
    for name in (*schema.keys(config()), *schema.keys(config("finetune_video_small"))):
        last = name.rpartition(".")[2]
        assert f"`{name}`" in page or f".{last}`" in page or last == "type", name


def test_a_config_is_loaded_without_jax():
    code = "import sys, mae_jax.config.command_line; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


MISTAKES = [  # config, changes, sentence: the value and a way out
    ("vit_base", {"data.bands": (0, 1)}, "data.channels = 3 must be the number of data.bands"),
    ("vit_base", {"data.clip": True}, "data.clip needs numbers, not data.range = 'auto': use"),
    ("vit_base", {"data.range": (1.0, 0.0)}, r"data.range = \(1.0, 0.0\) must be \(low, high\)"),
    ("volume_small", {"data.spacing": (1.0,)}, r"data.spacing = \(1.0,\) must have a number for"),
    ("signal_small", {"data.time_band": 1}, "data.time_band needs data.reference_spacing, the"),
    (
        "finetune_vit_base",
        {"data.foreground": (0.1, 0.5)},
        "data.foreground is a weight in the loss",
    ),
    ("vit_base", {"data.noise": 0.1}, "data.noise needs model.norm_pix = False"),
    (
        "volume_small",
        {"data.noise": 0.1, "data.foreground": (0.1, 0.2), "model.norm_pix": False},
        "data.noise has no data.foreground",
    ),
    ("finetune_vit_base", {"data.noise": 0.1}, "data.noise is added in task 'pretrain' alone"),
    (
        "volume_small",
        {"data.reference_spacing": (1.0, 1.0, 1.0), "model.learned_positions": True},
        "reference_spacing",
    ),
    ("volume_small", {"data.nodata": "none"}, "data.nodata = 'none' must be a number,"),
    ("quickstart", {"model.depth": 3.5}, "model.depth = 3.5 must be a whole number of at least 1"),
    ("quickstart", {"model.depth": True}, "model.depth = True must be a whole number"),
    ("quickstart", {"batch_size": 0}, "batch_size = 0 must be a whole number of at least 1"),
    ("quickstart", {"epochs": "many"}, "epochs = 'many' must be a number above 0"),
    (
        "quickstart",
        {"seed": 2**32},
        r"seed = 4294967296 must be a whole number from 0 up to 2\*\*32",
    ),
    ("quickstart", {"mask.ratio": 1.0}, "mask.ratio = 1.0 must be a number above 0 and below 1"),
    ("quickstart", {"mask.ratio": math.nan}, "mask.ratio = nan must be a number above"),
    ("quickstart", {"model.dtype": "float8"}, "must be one of 'float32', 'bfloat16', 'auto'"),
    ("quickstart", {"model.scan": 1}, "model.scan = 1 must be True or False"),
    ("quickstart", {"model.patch": ()}, r"model.patch = \(\) must be a tuple of whole numbers"),
    ("quickstart", {"data.mean": (math.inf, 0, 0)}, "data.mean = .* must be a tuple with one num"),
    ("quickstart", {"data.mean": "car"}, 'data.mean = .car. must be a tuple .*, or "auto"'),
    (
        "quickstart",
        {"data.crop_scale": (0.9, 0.1)},
        "must be .smallest, largest. fraction of the area",
    ),
    ("quickstart", {"data.crop_scale": (True, True)}, "data.crop_scale = .* must be .smallest"),
    ("quickstart", {"mask.decode": 0.0}, "mask.decode = 0.0 must be a number above 0 and up to 1"),
    ("quickstart", {"mask.name": "stripes"}, "mask.name = 'stripes' must be one of 'random', "),
    ("quickstart", {"mask.name": ()}, r"mask.name = \(\) must be one of 'random', .*, or a tuple"),
    ("quickstart", {"mask.name": ("grid", "x")}, r"mask.name = \('grid', 'x'\) must be one of"),
    ("volume_small", {"data.zoom": (1e-9, 1.0)}, "must be .smallest, largest. factor from .01"),
    ("finetune_video_small", {"evaluators.classification.crops": 2}, "crops = 2 must be 1 or 3"),
    ("quickstart", {"init.without": "("}, "must be a regular expression over parameter names"),
    ("quickstart", {"recovery.max_loss_ratio": 0.5}, r"must be 0 \(never\) or a factor above 1"),
    ("quickstart", {"recovery.heartbeat_timeout": 1}, "must be a whole number of at least 5"),
    (
        "quickstart",
        {"mesh.data": 0},
        r"mesh.data = 0 must be -1 \(all remaining devices\) or above 0",
    ),
    ("quickstart", {"task": "sing"}, "task = 'sing' must be one of 'pretrain', 'classify'"),
    ("quickstart", {"data.modality": "smell"}, "data.modality = 'smell' must be one of 'image', "),
    ("quickstart", {"model.dept": 3}, "unknown config key model.dept: did you mean model.depth?"),
    ("quickstart", {"modl.depth": 3}, "unknown config key modl.depth: did you mean model.depth?"),
    ("quickstart", {"data.stride": 3}, "data.stride is a key of data.modality = 'video' alone"),
    (
        "finetune_multispectral_small",
        {"init.checkpoint": "x", "init.without": "decoder/.*"},
        "init.without = 'decoder/.*' keeps the head of init.checkpoint",
    ),
    ("quickstart", {"loss": "binary"}, "loss is a key of task = 'classify' or 'regress' alone"),
    ("quickstart", {"mask": 3}, "mask is no config key, but has some: mask.decode, mask.name"),
    ("quickstart", {"evaluators.knn.k": 0}, "evaluators.knn.k = 0 must be a whole number of at"),
    ("quickstart", {"evaluators.knn.k": (5, 5)}, "must be .* or a tuple of different ones"),
    ("quickstart", {"evaluators.own": dict(type="custom")}, "evaluators.own.evaluator is missing"),
    ("quickstart", {"evaluators.knn.kk": 1}, "did you mean evaluators.knn.k?"),
    ("quickstart", {"evaluators.kn.k": 1}, "kn.k: did you mean evaluators.knn.k?"),
    (
        "quickstart",
        {"evaluators.knn.type": "x"},
        "must be one of 'reconstruction', 'knn', 'linear_",
    ),
    ("quickstart", {"evaluators": 3}, "evaluators = 3 must be sections"),
    # Rules across keys.
    ("quickstart", {"model.patch": (7, 7)}, r"use \(63, 63\) or \(70, 70\)"),
    ("quickstart", {"model.patch": (8,)}, "different numbers of axes"),
    ("quickstart", {"data.size": (64,), "model.patch": (8,)}, r"must be \(height, width\)"),
    ("video_small", {"data.size": (32, 32)}, r"must be \(frames, height, width\)"),
    ("quickstart", {"mask.ratio": 1e-12}, "of 64"),
    ("quickstart", {"mask.name": "joint", "mask.side": 9}, "mask.side = 9 is larger than the grid"),
    ("quickstart", {"mask.name": "time"}, "mask.name = 'time' is for audio, .*: use 'random'"),
    ("quickstart", {"mask.name": ["grid", "tube"]}, "mask.name = 'tube' is for video, .*: use"),
    ("volume_small", {"mask.name": "tube"}, "mask.name = 'tube' is for video, .*: use 'random'"),
    ("video_small", {"mask.name": "frequency"}, "is for audio, .*: use 'random'"),
    ("quickstart", {"model.heads": 5}, "model.heads = 5 does not divide width = 128"),
    ("quickstart", {"model.decoder_heads": 5}, "decoder_heads = 5 does not divide"),
    ("quickstart", {"mesh.tensor": 3}, "mesh.tensor = 3 does not divide model.heads = 4"),
    (
        "quickstart",
        {"model.width": 2, "model.heads": 1},
        "model.width = 2 is too small for positions on 2 axes",
    ),
    (
        "quickstart",
        {"model.attention": "cudnn", "model.dtype": "float32"},
        "needs model.dtype = 'b",
    ),
    (
        "quickstart",
        {"model.attention": "cudnn", "model.heads": 32},
        "heads of a multiple of 8, not 4",
    ),
    ("quickstart", {"model.separable_positions": True}, "needs learned_positions: use"),
    ("quickstart", {"model.target_stride": (3, 1)}, "does not divide patch"),
    ("quickstart", {"model.channel_groups": ((0,), (1,))}, "must hold each of the 3 channels"),
    ("quickstart", {"model.vocab_size": 256}, "use 256 for data.modality = 'text', and 0 for the"),
    ("text_small", {"model.norm_pix": True}, "use norm_pix=False"),
    ("text_small", {"mask.name": "importance"}, "'importance' needs patches of two values"),
    ("quickstart", {"data.channels": 1}, "as many values as data.channels"),
    ("quickstart", {"data.std": (0.0, 1.0, 1.0)}, "must be above 0"),
    ("audio_small", {"data.channels": 2}, "data.channels = 2 must be 1"),
    ("quickstart", {"accumulation": 7}, "accumulation = 7 does not divide batch_size = 64"),
    ("quickstart", {"data.repeats": 7}, "data.repeats = 7 does not divide batch_size = 64"),
    ("quickstart", {"optimizer.warmup_epochs": 1e3}, "is not shorter than epochs = 11"),
    ("finetune_video_small", {"regularize.randaugment": 9}, "randaugment needs pictures .*: use 0"),
    ("finetune_quickstart", {"loss": "binary"}, "label_smoothing needs one class .*: use 0"),
    (
        "finetune_quickstart",
        {"evaluators.classification.clips": 2},
        "needs video or audio or signal: use 1",
    ),
    ("linear_probe_quickstart", {"optimizer.clip": 1.0}, "is an option of adamw: use 0 with lars"),
    (
        "linear_probe_quickstart",
        {"accumulation": 2},
        "needs the whole batch .*: use accumulation=1",
    ),
    (
        "linear_probe_quickstart",
        {"init.checkpoint": "x", "init.without": "encoder/norm/.*"},
        "use --config.init.without='decoder/",
    ),
]


@pytest.mark.parametrize("name, changes, sentence", MISTAKES)
def test_mistakes(name, changes, sentence):
    with pytest.raises(UserError, match=sentence) as raised:
        config(name, changes)
    assert "\n" not in str(raised.value)


def test_each_rule_has_a_mistake_that_it_finds():
    left = {*checks.RULES, *rules.RULES}.union(*checks.TASK_RULES.values())
    for name, changes, _ in MISTAKES:
        values = command_line.load(f"{ROOT}/configs/{name}.py")
        for key, value in changes.items():
            nested.put(values, key, value)
        if values["task"] not in checks.TASK_RULES:
            continue
        without, _ = schema.examine(values, ())
        asked = left.intersection(checks.RULES + checks.TASK_RULES[values["task"]] + rules.RULES)
        left -= {rule for rule in asked if schema.examine(values, (rule,))[0] != without}
    assert not left


def test_all_that_is_wrong_is_said_at_once():
    changes = {"model.depth": "many", "log_every": 0, "modl.width": 3, "mask.ratio": 1}
    with pytest.raises(UserError) as raised:
        config(changes=changes | {"batch_size": 7, "accumulation": 2})
    expected = [
        "accumulation = 2 does not divide batch_size = 7",  # though others have no possible value
        "log_every = 0 must be",
        "mask.ratio = 1 must be",
        "model.depth = 'many' must be",
        "unknown config key modl.width: did you mean model.width?",
    ]
    problems = str(raised.value).split("; ")
    assert len(problems) == len(expected)
    for problem, start in zip(problems, expected, strict=True):
        assert problem.startswith(start)


def test_a_key_that_is_invented_or_forgotten():
    values = command_line.load(f"{ROOT}/configs/quickstart.py")
    values["model"]["widht"] = values["model"].pop("width")
    with pytest.raises(UserError, match="model.width is missing; unknown .*model.widht"):
        schema.validate(values)
    with pytest.raises(UserError, match="batch_size is missing; .*task is missing"):
        schema.validate({"seed": 1})


def test_an_evaluator_without_a_source_is_left_out():
    changes = {"evaluators.knn.test.source": "", "evaluators.reconstruction.source": ""}
    assert list(config(changes=changes).evaluators) == ["linear"]


def test_a_run_keeps_the_precision_that_it_began_with():
    here = config()
    assert here.model.dtype == "auto"
    on_tpu = schema.resolved(here, "tpu")
    assert (
        on_tpu.model.dtype == "bfloat16" and schema.resolved(here, "cpu").model.dtype == "float32"
    )
    stored = schema.to_dict(on_tpu)
    moved = schema.resolved(here, "cpu", stored)
    assert moved.model.dtype == "bfloat16" and schema.differences(stored, moved) == []
    before = schema.to_dict(here)  # as an earlier version stored it
    assert schema.differences(before, on_tpu) == schema.differences(stored, here) == []
    asked = schema.resolved(config(changes={"model.dtype": "float32"}), "cpu", stored)
    assert schema.differences(stored, asked) == ["model.dtype: bfloat16 before, float32 now"]


def test_differences_survive_json_and_leave_out_what_may_change():
    here = config()
    stored = schema.to_dict(here)
    assert schema.differences(stored, here) == []
    free = {"mesh.fsdp": 2, "recovery.max_rewinds": 9, "model.attention": "reference", "keep": 9}
    assert schema.differences(stored, config(changes=free)) == []
    deeper = config(changes={"model.depth": 5})
    assert schema.differences(stored, deeper) == ["model.depth: 4 before, 5 now"]
