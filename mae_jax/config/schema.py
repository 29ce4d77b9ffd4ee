"""Every field of a config: what it must be, what it was before it was there, what may change.

The config files say what each does.
"""

import difflib
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from mae_jax.models import attention, layers, mask_sampler


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
    return Field((tuple, list), lambda v: len(v) == 2 and all(map(_finite, v)) and ok(*v), wants)


def _finite(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)


POSITIVE = _number("a number above 0", lambda v: v > 0)
NOT_NEGATIVE = _number("a number of at least 0", lambda v: v >= 0)
SHARE = _number("a number from 0 up to but not 1", lambda v: 0 <= v < 1)
BOOL = Field((bool,), lambda v: True, "True or False")
TEXT = Field((str,), lambda v: True, "a text")
STATISTIC = Field(
    (str, tuple, list),
    lambda v: v == "auto" or (v and not isinstance(v, str) and all(map(_finite, v))),
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
        "mask.name": one_of(*mask_sampler.NAMES),
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


def unknown(name: str, known) -> str:
    if inside := [x for x in known if x.startswith(f"{name}.")]:
        return f"{name} is no config key, but has some: {', '.join(sorted(inside))}"
    near = difflib.get_close_matches(name, known, 1, cutoff=0.4)
    return f"unknown config key {name}" + (f": did you mean {near[0]}?" if near else "")


def wrong_keys(flat: dict[str, Any]) -> list[str]:
    """What is wrong with the keys of a flat config."""
    for name, kinds in (("task", FIELDS), ("data.modality", MODALITIES)):
        if flat.get(name, next(iter(kinds))) not in kinds:
            return [f"{name} = {flat[name]!r} must be {SHARED[name].wants}"]
    fields = FIELDS[flat.get("task", "pretrain")] | MODALITIES[flat.get("data.modality", "image")]
    stray = [unknown(name, fields) for name in flat.keys() - fields.keys()]
    return sorted([*stray, *(f"{name} is missing" for name in fields.keys() - flat.keys())])


def wrong_values(flat: dict[str, Any]) -> dict[str, str]:
    """What is wrong with each value of a flat config by itself, by its name."""
    problems = {}
    for name, value in flat.items():
        if field := ALL.get(name):
            typed = isinstance(value, field.types) and isinstance(value, bool) == (field is BOOL)
            if not typed or not field.ok(value):
                problems[name] = f"{name} = {value!r} must be {field.wants}"
    return problems
