"""Keys and values of earlier versions, read under the names of today with a line of warning."""

import logging
from collections.abc import Mapping
from typing import Any

from mae_jax.config import nested

_log = logging.getLogger(__name__)
RENAMED = {
    "model.groups": "model.channel_groups",
    "model.categories": "model.vocab_size",
    "recovery.skips": "recovery.max_skipped_updates",
    "recovery.rewinds": "recovery.max_rewinds",
    "recovery.spike": "recovery.max_loss_ratio",
    "recovery.failed_saves": "recovery.max_failed_saves",
    "recovery.canary": "recovery.check_determinism",
    "recovery.stall": "recovery.stall_timeout",
    "recovery.heartbeat": "recovery.heartbeat_timeout",
}
VALUES = {
    "model.attention": {"plain": "reference", "light": "recompute", "mapped": "per_sample"},
}
_HELD_OUT, _FEATURES = ("reconstruction", "classification"), ("knn", "linear")
# Keys that became those of evaluators: the names of the evaluators that have them, and the new key.
MOVED = {
    "probe.linear": (("linear",), ""),  # the first, as it makes an evaluator
    "probe.train.source": (_FEATURES, "train.source"),
    "probe.train.split": (_FEATURES, "train.split"),
    "probe.test.source": (_FEATURES, "test.source"),
    "probe.test.split": (_FEATURES, "test.split"),
    "probe.examples": (_FEATURES, "examples"),
    "evaluate.every": (_HELD_OUT + _FEATURES, "every"),
    "evaluate.batch_size": (_HELD_OUT + _FEATURES, "batch_size"),
    "evaluate.examples": (_HELD_OUT, "examples"),
    "evaluate.pictures": (("reconstruction",), "pictures"),
    "evaluate.clips": (("classification",), "clips"),
    "evaluate.crops": (("classification",), "crops"),
    "data.test.source": (_HELD_OUT, "source"),
    "data.test.split": (_HELD_OUT, "split"),
}


def new_names(name: str, evaluators: Mapping) -> list[str]:
    """The names of today of a key, given the evaluators of a config; itself if it is not old."""
    if name in RENAMED:
        return [RENAMED[name]]
    if name == "probe.linear" and "knn" in evaluators:
        return ["evaluators.linear"]
    entries, key = MOVED.get(name, ((), ""))
    return [f"evaluators.{entry}.{key}" for entry in entries if entry in evaluators] or [name]


def new_value(name: str, value: Any, evaluators: Mapping) -> Any:
    """What an old value of the key `name` is called or, for "probe.linear", the evaluator."""
    if name == "probe.linear":
        probe = {key: x for key, x in evaluators["knn"].items() if key != "k"}
        return probe | {"type": "linear_probe"} if value in (True, "true", "True", "1") else None
    return VALUES.get(name, {}).get(value, value) if isinstance(value, str) else value


def renamed(config: dict, place: str) -> dict:
    """The config under the names of today, changed in place.

    Args:
      place: where the config is from, for the warning.
    """
    flat, said = nested.flatten(config), []
    if any(name in MOVED for name in flat) and "evaluators" not in config:
        config["evaluators"] = _evaluators(config.get("task"), flat)
    for name in (*RENAMED, *VALUES, *MOVED):
        if name not in flat:
            continue
        evaluators = config.get("evaluators", {})
        names, value = new_names(name, evaluators), new_value(name, flat[name], evaluators)
        if names != [name]:
            said.append(f"{name} is now {' and '.join(names)}")
            nested.remove(config, name)
        elif value != flat[name]:
            said.append(f"{name} = {flat[name]!r} is now {value!r}")
        for new in names:
            if value is None:  # no linear probe
                evaluators.pop("linear", None)
            else:
                nested.put(config, new, value)
    if said:
        more = f"; and {len(said) - 3} others, see docs/config.md" if len(said) > 3 else ""
        _log.warning("%s has keys of an earlier version: %s", place, "; ".join(said[:3]) + more)
    return config


def _evaluators(task: Any, flat: Mapping) -> dict:
    """The evaluators that an earlier version had without naming them."""
    if task == "classify":
        return {"classification": {"type": "classification"}}
    entries = {"reconstruction": {"type": "reconstruction"}}
    if any(name.startswith("probe.") for name in flat):
        entries["knn"] = {"type": "knn"}
    return entries
