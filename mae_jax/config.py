"""Read a config, override it from the command line, and say what is wrong with it.

A config file defines `get_config(arg: str = "") -> dict` of plain values and imports nothing of
this package. `FIELDS` names every field of a task with what it must be; the config files say what
it does.
"""

import argparse
import ast
import contextlib
import difflib
import importlib.util
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from mae_jax import attention, hiding, layers, patches

if TYPE_CHECKING:
    from ml_collections import ConfigDict


class Mistake(Exception):
    """A user's mistake: its text is one clear sentence that names the value and the way out."""


@contextlib.contextmanager
def mistakes(kinds=(ValueError, OSError, ImportError)) -> Iterator[None]:
    """Inside, errors of these kinds come from what the user gave: they become a `Mistake`."""
    try:
        yield
    except kinds as error:
        raise Mistake(str(error)) from error


class Field(NamedTuple):
    types: tuple[type, ...]
    ok: Callable[[Any], bool]
    wants: str


def _integer(least: int) -> Field:
    return Field((int,), lambda v: v >= least, f"a whole number of at least {least}")


def _number(wants: str, ok: Callable[[float], bool]) -> Field:
    return Field((int, float), lambda v: math.isfinite(v) and ok(v), wants)


def _sides(wants: str) -> Field:
    integers = lambda v: v and all(type(side) is int and side > 0 for side in v)
    return Field((tuple, list), integers, wants)


def _range(wants: str, ok: Callable[[float, float], bool]) -> Field:
    numbers = lambda v: len(v) == 2 and all(isinstance(x, int | float) for x in v) and ok(*v)
    return Field((tuple, list), numbers, wants)


POSITIVE = _number("a number above 0", lambda v: v > 0)
NOT_NEGATIVE = _number("a number of at least 0", lambda v: v >= 0)
SHARE = _number("a number from 0 up to but not 1", lambda v: 0 <= v < 1)
BOOL = Field((bool,), lambda v: True, "True or False")
TEXT = Field((str,), lambda v: True, "a text")
STATISTIC = Field(
    (str, tuple, list),
    lambda v: v == "auto" or (v and all(isinstance(x, int | float) for x in v)),
    'a tuple with one number for each channel, or "auto"',
)


def one_of(*names: str) -> Field:
    return Field((str,), lambda v: v in names, "one of " + ", ".join(map(repr, names)))


REGEX = Field((str,), lambda v: _compiles(v), "a regular expression over parameter names")


def _compiles(expression: str) -> bool:
    try:
        re.compile(expression)
    except re.error:
        return False
    return True


def _tuples(wants: str, ok: Callable[[Any], bool]) -> Field:
    integers = lambda x: isinstance(x, int) and not isinstance(x, bool)
    nested = lambda v: all(nested(x) if isinstance(x, tuple | list) else integers(x) for x in v)
    return Field((tuple, list), lambda v: nested(v) and ok(v), wants)


# What every task has, and what a task or a kind of input has beside it.
SHARED = {
    "task": one_of("pretrain", "classify"),
    "seed": Field((int,), lambda v: 0 <= v < 2**32, "a whole number from 0 up to 2**32"),
    "init.checkpoint": TEXT,
    "init.without": REGEX,
    "epochs": POSITIVE,
    "batch_size": _integer(1),
    "accumulation": _integer(1),
    "model.patch": _sides("a tuple of whole numbers such as (16, 16)"),
    "model.width": _integer(1),
    "model.depth": _integer(1),
    "model.heads": _integer(1),
    "model.dtype": one_of("float32", "bfloat16", "auto"),
    "model.groups": _tuples(
        "a tuple of tuples of channels such as ((0, 1, 2), (3, 4)), or ()",
        lambda v: all(isinstance(group, tuple | list) and group for group in v),
    ),
    "model.categories": _integer(0),
    "model.learned_positions": BOOL,
    "model.separable_positions": BOOL,
    "model.attention": one_of("auto", *attention.FORMS),
    "model.remat": one_of("none", *layers.KEPT),
    "model.scan": BOOL,
    "optimizer.base_learning_rate": POSITIVE,
    "optimizer.warmup_epochs": NOT_NEGATIVE,
    "optimizer.b1": SHARE,
    "optimizer.b2": SHARE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.clip": NOT_NEGATIVE,
    "optimizer.ema": SHARE,
    "optimizer.mu_dtype": one_of("float32", "bfloat16"),
    "optimizer.shard": BOOL,
    "data.train.source": TEXT,
    "data.train.split": TEXT,
    "data.test.source": TEXT,
    "data.test.split": TEXT,
    "data.examples": _integer(0),
    "data.modality": one_of("image", "video", "audio", "volume", "text"),
    "data.size": _sides("a tuple of whole numbers such as (224, 224)"),
    "data.channels": _integer(1),
    "data.repeats": _integer(1),
    "data.mean": STATISTIC,
    "data.std": STATISTIC,
    "data.threads": _integer(0),
    "data.max_bad_fraction": _number("a share from 0 to 1", lambda v: 0 <= v <= 1),
    "mesh.data": Field((int,), lambda v: v == -1 or v > 0, "-1 (all that is left) or above 0"),
    "mesh.fsdp": _integer(1),
    "mesh.tensor": _integer(1),
    "evaluate.every": _integer(0),
    "evaluate.batch_size": _integer(1),
    "evaluate.examples": _integer(1),
    "log_every": _integer(1),
    "save_every": _integer(1),
    "keep": _integer(1),
    "recovery.skips": _integer(0),
    "recovery.rewinds": _integer(0),
    "recovery.spike": _number("0 (never) or a factor above 1", lambda v: v == 0 or v > 1),
    "recovery.failed_saves": _integer(1),
    "recovery.canary": BOOL,
    "recovery.stall": POSITIVE,
    "recovery.heartbeat": _integer(5),
}
FIELDS = {
    "pretrain": SHARED
    | {
        "model.decoder_width": _integer(1),
        "model.decoder_depth": _integer(1),
        "model.decoder_heads": _integer(1),
        "model.decoder_cross": BOOL,
        "model.norm_pix": BOOL,
        "model.target_stride": _tuples(
            "a tuple of whole numbers, one for each axis, or ()",
            lambda v: all(isinstance(x, int) and x > 0 for x in v),
        ),
        "mask.ratio": _number("a number between 0 and 1", lambda v: 0 < v < 1),
        "mask.name": one_of(*hiding.NAMES),
        "mask.decode": _number("a share above 0 and up to 1", lambda v: 0 < v <= 1),
        "mask.side": _integer(1),
        "evaluate.pictures": _integer(1),
        "probe.train.source": TEXT,
        "probe.train.split": TEXT,
        "probe.test.source": TEXT,
        "probe.test.split": TEXT,
        "probe.examples": _integer(1),
        "probe.linear": BOOL,
    },
    "classify": SHARED
    | {
        "trainable": REGEX,
        "model.pooling": one_of("mean", "cls"),
        "model.batch_norm": BOOL,
        "model.head_std": NOT_NEGATIVE,
        "loss": one_of("softmax", "binary"),
        "optimizer.name": one_of("adamw", "lars"),
        "optimizer.final_learning_rate": NOT_NEGATIVE,
        "optimizer.layer_decay": _number("a number above 0 and up to 1", lambda v: 0 < v <= 1),
        "optimizer.momentum": SHARE,
        "evaluate.clips": _integer(1),
        "evaluate.crops": Field((int,), lambda v: v in (1, 3), "1 or 3"),
        "regularize.drop_path": SHARE,
        "regularize.mixup": NOT_NEGATIVE,
        "regularize.cutmix": NOT_NEGATIVE,
        "regularize.label_smoothing": SHARE,
        "regularize.erase": _number("a share from 0 to 1", lambda v: 0 <= v <= 1),
        "regularize.randaugment": _number("a magnitude from 0 to 10", lambda v: 0 <= v <= 10),
    },
}
_CROP = {
    "data.crop_scale": _range(
        "(smallest, largest) share of the area", lambda a, b: 0 < a <= b <= 1
    ),
    "data.crop_ratio": _range("(narrowest, widest) width / height", lambda a, b: 0 < a <= b),
    "data.flip": BOOL,
    "data.center_crop": _number("a number above 0 and up to 1", lambda v: 0 < v <= 1),
}
MODALITIES = {
    "image": _CROP,
    "video": _CROP | {"data.stride": _integer(1)},
    "audio": {"data.rate": _integer(1000), "data.roll": BOOL, "data.magnitude": BOOL},
    "volume": {
        "data.zoom": _range(
            "(smallest, largest) factor from .01 to 100", lambda a, b: 0.01 <= a <= b <= 100
        ),
        "data.flip": BOOL,
    },
    "text": {},
}
AXES = {"image": 2, "video": 3, "audio": 2, "text": 1}  # a volume may have any number
ALL = {name: x for fields in (*FIELDS.values(), *MODALITIES.values()) for name, x in fields.items()}
# What a config means that was written before these were there.
DEFAULTS = {
    "data.modality": "image",
    "data.repeats": 1,
    "model.groups": (),
    "model.categories": 0,
    "model.learned_positions": False,
    "model.separable_positions": False,
    "model.attention": "auto",
    "model.remat": "none",
    "model.scan": False,
    "model.decoder_cross": False,
    "model.target_stride": (),
    "optimizer.mu_dtype": "float32",
    "optimizer.shard": False,
    "mesh.tensor": 1,
    "mask.name": "random",
    "mask.decode": 1.0,
    "mask.side": 2,
    "loss": "softmax",
    "evaluate.clips": 1,
    "evaluate.crops": 1,
    "data.max_bad_fraction": 0.01,
    "recovery.skips": 3,
    "recovery.rewinds": 2,
    "recovery.spike": 0.0,
    "recovery.failed_saves": 3,
    "recovery.canary": False,
    "recovery.stall": 600.0,
    "recovery.heartbeat": 100,
}
# What may be another when a run goes on: where and how it is computed, and what it gives up at.
MAY_CHANGE = r"(mesh|recovery)\..*|model\.(attention|remat|scan)|optimizer\.shard|accumulation"
MAY_CHANGE += r"|data\.(threads|max_bad_fraction)|(log|save)_every|keep"


def load(spec: str) -> dict:
    """The values of a config file, `PATH` or `PATH:ARGUMENT`, and `DEFAULTS`.

    Raises:
      ValueError: there is no such file, or it is not a config, or does not know the argument.
    """
    name, _, argument = spec.partition(":")
    path = Path(name)
    if not path.is_file():
        near = sorted(p.as_posix() for p in Path("configs").glob("*.py"))
        raise ValueError(f"config file {name!r} does not exist; here are: {', '.join(near)}")
    # A variant says `from configs import vit_base`: that is beside it, or beside this package.
    before = list(sys.path)
    sys.path[:0] = [str(path.resolve().parent.parent), str(Path(__file__).parents[1])]
    try:
        module_spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
        if module_spec is None or module_spec.loader is None:
            raise ValueError(f"config file {name!r} is not a Python file (.py)")
        module = importlib.util.module_from_spec(module_spec)
        try:
            module_spec.loader.exec_module(module)
        except (SyntaxError, ImportError, NameError) as error:
            raise ValueError(f"config file {name!r} cannot be read: {error}") from error
        if not hasattr(module, "get_config"):
            raise ValueError(f"config file {name!r} does not define get_config(arg)")
        try:
            config = module.get_config(argument)
        except TypeError as error:
            raise ValueError(f"get_config(arg) of config file {name!r} fails: {error}") from error
    finally:
        sys.path[:] = before
    if not isinstance(config, dict):
        raise ValueError(f"get_config of config file {name!r} returns no dict but {config!r}")
    return completed(config)


def parse(argv: Sequence[str]) -> "tuple[ConfigDict, str]":
    """`--config=PATH[:ARGUMENT] --workdir=DIR [--config.key=value ...]` -> config, workdir.

    Raises:
      Mistake: in one sentence, whatever is wrong with the arguments or with the config.
    """
    from absl import flags  # here, so that configs can be loaded without these two
    from ml_collections import ConfigDict, config_flags

    spec, rest = None, []
    arguments = iter(argv)
    for argument in arguments:
        if argument == "--config":
            spec = next(arguments, None)
        elif argument.startswith("--config="):
            spec = argument.partition("=")[2]
        else:
            rest.append(argument)
    if not spec:
        raise Mistake("which config? Give --config=configs/NAME.py, for example quickstart.py")
    with mistakes():
        config = ConfigDict(_with_floats(load(spec)))
    known = flatten(config)
    if problems := _keys(known):
        raise Mistake("; ".join(problems))
    for argument in rest:
        name = argument.partition("=")[0].removeprefix("--config.")
        if argument.startswith("--config.") and name not in known:
            raise Mistake(_unknown(name, known))
    values = flags.FlagValues()
    rest = ["mae_jax", *rest]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=rest)
        flags.DEFINE_string("workdir", None, "where the run is written", flag_values=values)
        stray = values(rest)[1:]
    except (flags.Error, ValueError, TypeError) as error:
        raise Mistake(_refused(rest, error)) from error
    if stray:
        raise Mistake(
            f"stray argument(s) {' '.join(stray)}: values are given as --config.key=value"
        )
    if not values["workdir"].value:
        raise Mistake("where should the run be written? Give --workdir=DIR")
    data: Any = config.data
    for name in ("mean", "std"):  # a flag keeps the type of its default, here it may change
        with data.ignore_type(), contextlib.suppress(ValueError, SyntaxError):
            if data[name] == ("auto",):
                data[name] = "auto"
            elif isinstance(data[name], str):
                data[name] = ast.literal_eval(data[name])
    check(config)
    return config, values["workdir"].value


def _with_floats(config: dict, prefix: str = "") -> dict:
    """Whole numbers as floats where fractions are allowed: a flag keeps the type of its default."""
    converted = {}
    for key, value in config.items():
        name, wanted = prefix + key, ALL.get(prefix + key)
        if isinstance(value, dict):
            value = _with_floats(value, name + ".")
        elif type(value) is int and wanted and float in wanted.types:
            value = float(value)
        converted[key] = value
    return converted


def completed(config: dict) -> dict:
    """A config with `DEFAULTS` where it lacks them."""
    config = {key: dict(x) if hasattr(x, "items") else x for key, x in config.items()}
    for name, value in DEFAULTS.items():
        if name in FIELDS.get(config.get("task", ""), ()):
            section, _, key = name.rpartition(".")
            place = config.setdefault(section, {}) if section else config
            if hasattr(place, "items"):
                place.setdefault(key, value)
    return config


def configured(spec: str, changes: Sequence[str]) -> dict:
    """The checked config of a file with `--config.key=value`, `--config.key`, `--noconfig.key`.

    For commands that do without absl's flags.

    Raises:
      Mistake, ValueError: in one sentence, what is wrong with it.
    """
    config = load(spec)
    for change in changes:
        name, equals, value = change.partition("=")
        if name.startswith("--noconfig.") and not equals:
            _set(config, name.removeprefix("--noconfig."), "false")
        elif name.startswith("--config."):
            _set(config, name.removeprefix("--config."), value if equals else "true")
        else:
            raise ValueError(f"unknown argument {change}: see --help; keys are --config.key=value")
    check(config)
    return config


def _set(config: dict, name: str, text: str) -> None:
    flat = flatten(config)
    if name not in flat:
        raise ValueError(_unknown(name, flat))
    field, value = ALL[name], text
    if field is BOOL:
        value = {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    elif field.types != (str,):
        with contextlib.suppress(ValueError, SyntaxError):  # `check` says what it must be
            value = ast.literal_eval(text)
    *sections, key = name.split(".")
    for section in sections:
        config = config[section]
    config[key] = value


def _unknown(name: str, known) -> str:
    near = difflib.get_close_matches(name, known, 1, cutoff=0.4)
    return f"unknown config key {name}" + (f": did you mean {near[0]}?" if near else "")


def _refused(arguments: Sequence[str], error: Exception) -> str:
    """Say what a field must be, where a flag parser only says that it could not read it."""
    for argument in arguments:
        name, _, value = argument.removeprefix("--config.").partition("=")
        if f"config.{name}=" in str(error) and name in ALL:
            return f"{name} = {value!r} must be {ALL[name].wants}"
    return " ".join(str(error).split())


def flatten(config, prefix: str = "") -> dict[str, Any]:
    """`{"model.patch": (16, 16), ...}` of a nested config."""
    flat = {}
    for key, value in config.items():
        if hasattr(value, "items"):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _keys(flat: dict[str, Any]) -> list[str]:
    """What is wrong with the keys of a flat config."""
    for name, kinds in (("task", FIELDS), ("data.modality", MODALITIES)):
        if flat.get(name, next(iter(kinds))) not in kinds:
            return [f"{name} = {flat[name]!r} must be {SHARED[name].wants}"]
    fields = FIELDS[flat.get("task", "pretrain")] | MODALITIES[flat.get("data.modality", "image")]
    unknown = [_unknown(name, fields) for name in flat.keys() - fields.keys()]
    return sorted([*unknown, *(f"{name} is missing" for name in fields.keys() - flat.keys())])


def check(config) -> None:
    """Refuse a config that cannot run, before anything is compiled.

    Raises:
      Mistake: all that is wrong, each with its value and the way out.
    """
    flat = flatten(config)
    problems = _keys(flat)
    for name, field in ALL.items():
        if name in flat:
            value = flat[name]
            typed = isinstance(value, field.types) and isinstance(value, bool) == (field is BOOL)
            if not typed or not field.ok(value):
                problems.append(f"{name} = {value!r} must be {field.wants}")
    if not problems:
        problems = list(_contradictions(flat))
    if problems:
        raise Mistake("; ".join(sorted(problems)))


def _contradictions(flat: dict[str, Any]) -> Iterator[str]:
    """What is wrong with values that are each possible."""
    size, patch, modality = flat["data.size"], flat["model.patch"], flat["data.modality"]
    axes = AXES.get(modality, len(size))
    if len(size) != axes:
        what = {"video": "(frames, height, width)", "audio": "(frames, mels)", "text": "(bytes,)"}
        yield f"data.size = {size} must be {what.get(modality, '(height, width)')}"
    groups = flat["model.groups"]
    try:
        patches.weights_of(groups, patch, flat["data.channels"])
    except ValueError as error:
        yield f"model.groups: {error}"
    try:
        grid = patches.grid_of(size, patch, groups)
        if flat["task"] == "pretrain":
            section = {name.removeprefix("mask."): x for name, x in flat.items() if "mask." in name}
            hiding.of(section, size, patch, groups)
    except ValueError as error:
        grid = ()
        yield f"data.size and model.patch: {error}"
    if flat["model.separable_positions"] and (not flat["model.learned_positions"] or axes < 2):
        yield "model.separable_positions needs learned_positions and two axes or more"
    if flat["model.categories"] and groups:
        yield "model.groups is of pixels: use model.categories=0"
    channels = flat["data.channels"]
    if modality in ("audio", "text") and channels != 1:
        yield f"data.channels = {channels}: {modality} has 1"
    if flat["model.categories"] != (256 if modality == "text" else 0):
        yield (
            f"model.categories = {flat['model.categories']}: use 256 for data.modality = 'text', "
            "and 0 for the others"
        )
    if flat["model.attention"] == "cudnn" and flat["model.dtype"] == "float32":
        yield "model.attention = 'cudnn' needs model.dtype = 'bfloat16'"
    for part in ("", "decoder_")[: 1 + (flat["task"] == "pretrain")]:
        width, heads = flat[f"model.{part}width"], flat[f"model.{part}heads"]
        if width % heads:
            yield f"model.{part}heads = {heads} does not divide model.{part}width = {width}"
        if heads % flat["mesh.tensor"]:
            yield f"mesh.tensor = {flat['mesh.tensor']} does not divide model.{part}heads = {heads}"
        if flat["model.attention"] == "cudnn" and width // heads % 8:
            yield f"model.attention = 'cudnn' needs heads of a multiple of 8, not {width // heads}"
        if width < 2 * len(grid):
            yield f"model.{part}width = {width} is too small for positions on each axis"
    if flat["task"] == "pretrain":
        stride = flat["model.target_stride"] or (1,) * len(patch)
        if len(stride) != len(patch) or any(p % s for p, s in zip(patch, stride, strict=True)):
            yield f"model.target_stride = {stride} does not divide model.patch = {patch}"
        least = min(map(len, groups or [range(flat["data.channels"])]))
        if flat["mask.name"] == "importance" and (
            flat["model.categories"] or math.prod(patch) * least < 2
        ):
            yield "mask.name = 'importance' needs patches of two values of pixels: use 'random'"
        if flat["model.norm_pix"] and math.prod(patch) // math.prod(stride) * least < 2:
            yield "model.norm_pix needs patches of two values: use --noconfig.model.norm_pix"
        if flat["model.norm_pix"] and flat["model.categories"]:
            yield "model.norm_pix is of pixels: use --noconfig.model.norm_pix with categories"
    else:
        if flat["regularize.randaugment"] and (
            modality != "image" or flat["data.channels"] not in (1, 3)
        ):
            yield "regularize.randaugment is of pictures with 1 or 3 channels: use 0"
        if flat["loss"] == "binary" and flat["regularize.label_smoothing"]:
            yield "regularize.label_smoothing is of one class for an example: use 0 with binary"
        if flat["model.categories"] or axes < 2:
            for name in ("mixup", "cutmix", "erase"):
                if flat[f"regularize.{name}"]:
                    yield f"regularize.{name} needs values on two axes: use 0"
        for name, kinds in (("clips", ("video", "audio")), ("crops", ("video",))):
            if flat[f"evaluate.{name}"] > 1 and modality not in kinds:
                yield f"evaluate.{name} is of {' and '.join(kinds)}: use 1"
        if flat["optimizer.name"] == "lars":
            for name, neutral in (("clip", 0), ("layer_decay", 1), ("mu_dtype", "float32")):
                if flat[f"optimizer.{name}"] != neutral:
                    yield f"optimizer.{name} is of adamw: use {neutral} with lars"
        dropped = re.fullmatch(flat["init.without"], "encoder/norm/scale")
        if flat["init.checkpoint"] and flat["model.pooling"] == "cls" and dropped:
            yield (
                "init.without drops encoder/norm, which model.pooling = 'cls' needs: use "
                "--config.init.without='decoder/.*|head/.*'"
            )
        if flat["model.batch_norm"] and flat["accumulation"] > 1:
            yield "model.batch_norm is of a whole batch: use accumulation=1"
    if flat["batch_size"] % flat["data.repeats"]:
        yield f"data.repeats = {flat['data.repeats']} does not divide batch_size = " + str(
            flat["batch_size"]
        )
    if flat["batch_size"] % flat["accumulation"]:
        yield f"accumulation = {flat['accumulation']} does not divide batch_size = " + str(
            flat["batch_size"]
        )
    if flat["optimizer.warmup_epochs"] >= flat["epochs"]:
        yield (
            f"optimizer.warmup_epochs = {flat['optimizer.warmup_epochs']} is not shorter than "
            f"epochs = {flat['epochs']}"
        )
    for name in ("data.mean", "data.std"):
        if flat[name] != "auto" and len(flat[name]) != flat["data.channels"]:
            yield f"{name} = {flat[name]} must have as many values as data.channels"
    if flat["data.std"] != "auto" and min(flat["data.std"]) <= 0:
        yield f"data.std = {flat['data.std']} must be above 0"


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are `Mistake`s."""

    def error(self, message: str) -> NoReturn:
        raise Mistake(message)


def numbers(kind: type) -> Callable[[str], tuple]:
    """The type of an argument such as `224,224`."""

    def parse(text: str) -> tuple:
        try:
            return tuple(kind(part) for part in text.strip("()").split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} should be numbers such as {'224,224' if kind is int else '0.5,0.5'}"
            ) from None

    return parse


def to_dict(config) -> dict:
    """Plain dicts and lists, as `config.json` of a work directory holds them."""
    nested = lambda c: {k: nested(v) if hasattr(v, "items") else v for k, v in c.items()}
    return json.loads(json.dumps(nested(config)))


def to_json(config) -> str:
    return json.dumps(to_dict(config), indent=2) + "\n"


def differences(stored: dict, config) -> list[str]:
    """`model.depth: 12 there, 8 here` for each field that is not the same and may not change."""
    there, here = flatten(to_dict(completed(stored))), flatten(to_dict(config))
    return [
        f"{name}: {there.get(name, 'missing')} there, {here.get(name, 'missing')} here"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name) and not re.fullmatch(MAY_CHANGE, name)
    ]
