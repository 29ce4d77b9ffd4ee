"""Keys and values of earlier versions, which are renamed with one line of warning."""

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
    "probe.linear": "evaluators.linear",  # a switch, now the evaluator
}
VALUES = {
    "model.attention": {"plain": "reference", "light": "recompute", "mapped": "per_sample"},
}
_HELD_OUT, _FEATURES = ("reconstruction", "classification"), ("knn", "linear")
# Keys that became those of evaluators: the names of the evaluators that have them, and the new key.
MOVED = {
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
    """The current names of a key in a config with these evaluators; itself if it is not old."""
    if name in RENAMED:
        return [RENAMED[name]]
    entries, key = MOVED.get(name, ((), ""))
    names = [f"evaluators.{entry}.{key}" for entry in entries if entry in evaluators]
    return names or [name]


def renamed(config: dict, place: str) -> dict:
    """The config under current names, with a warning if it has old ones.

    Args:
      place: where the config is from, for the warning.
    """
    flat, said = nested.flatten(config), []
    old = [name for name in (*RENAMED, *VALUES, *MOVED) if name in flat]
    if not old:
        return config
    evaluators = config.get("evaluators", {})
    if "evaluators" not in config and any(name in MOVED for name in old):
        evaluators = _evaluators(config.get("task"), flat)
    if "probe.linear" in old and "knn" in evaluators:
        old.remove("probe.linear")
        said.append("probe.linear is now evaluators.linear")
        evaluators = {name: x for name, x in evaluators.items() if name != "linear"}
        if flat.pop("probe.linear") in (True, "true", "True", "1"):
            probe = {key: x for key, x in evaluators["knn"].items() if key != "k"}
            evaluators["linear"] = probe | {"type": "linear_probe"}
        flat = {name: x for name, x in flat.items() if not name.startswith("evaluators.linear.")}
    flat |= nested.flatten({"evaluators": evaluators})
    for name in old:
        before, names = flat.pop(name), new_names(name, evaluators)
        value = VALUES.get(name, {}).get(str(before), before)
        if names != [name]:
            said.append(f"{name} is now {' and '.join(names)}")
        elif value != before:
            said.append(f"{name} = {before!r} is now {value!r}")
        flat |= dict.fromkeys(names, value)
    if said:
        more = f"; and {len(said) - 3} others, see docs/config.md" if len(said) > 3 else ""
        _log.warning("%s has keys of an earlier version: %s", place, "; ".join(said[:3]) + more)
    return nested.unflatten(flat)


def _evaluators(task: Any, flat: Mapping) -> dict:
    """The evaluators that every config of an earlier version had."""
    if task == "classify":
        return {"classification": {"type": "classification"}}
    entries = {"reconstruction": {"type": "reconstruction"}}
    if any(name.startswith("probe.") for name in flat):
        entries["knn"] = {"type": "knn"}
    return entries
