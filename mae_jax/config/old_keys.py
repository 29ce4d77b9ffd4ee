"""Keys and values of earlier versions, which are renamed with one line of warning."""

import logging
from collections.abc import Mapping
from typing import Any

from mae_jax.config import nested

_log = logging.getLogger(__name__)
RENAMED = {
    "model.groups": "model.channel_groups",
    "model.categories": "model.vocab_size",
    "model.decoder_cross": "model.decoder",
    "recovery.skips": "recovery.max_skipped_updates",
    "recovery.rewinds": "recovery.max_rewinds",
    "recovery.spike": "recovery.max_loss_ratio",
    "recovery.failed_saves": "recovery.max_failed_saves",
    "recovery.canary": "recovery.check_determinism",
    "recovery.stall": "recovery.stall_timeout",
    "recovery.heartbeat": "recovery.heartbeat_timeout",
    "probe.linear": "evaluators.linear",  # formerly a switch, now an evaluator
}
VALUES = {
    "model.attention": {"plain": "reference", "light": "recompute", "mapped": "per_sample"},
    "model.decoder_cross": {"False": "self", "True": "cross"},
}
_HELD_OUT, _FEATURES = ("reconstruction", "classification"), ("knn", "linear")
# Keys that are now keys of evaluators: the names of these evaluators, and the new key.
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
    """Return the current names of a key in a config with these evaluators."""
    if name in RENAMED:
        return [RENAMED[name]]
    entries, key = MOVED.get(name, ((), ""))
    names = [f"evaluators.{entry}.{key}" for entry in entries if entry in evaluators]
    return names or [name]


def new_value(name: str, value: Any) -> Any:
    """Return the current value of a key with such an earlier name or value."""
    return VALUES.get(name, {}).get(str(value), value)


def renamed(config: dict, place: str) -> dict:
    """Return the config under current names, and warn if it has old names.

    Args:
      place: the origin of the config, for the warning.
    """
    flat, sentences = nested.flatten(config), []
    old = [name for name in RENAMED | VALUES | MOVED if name in flat]
    if not old:
        return config
    evaluators = config.get("evaluators", {})
    if "evaluators" not in config and any(name in MOVED for name in old):
        evaluators = _evaluators(config.get("task"), flat)
    if "probe.linear" in old and "knn" in evaluators:
        old.remove("probe.linear")
        sentences.append("probe.linear is now evaluators.linear")
        evaluators = {name: x for name, x in evaluators.items() if name != "linear"}
        if flat.pop("probe.linear") in (True, "true", "True", "1"):
            probe = {key: x for key, x in evaluators["knn"].items() if key != "k"}
            evaluators["linear"] = probe | {"type": "linear_probe"}
        flat = {name: x for name, x in flat.items() if not name.startswith("evaluators.linear.")}
    flat |= nested.flatten({"evaluators": evaluators})
    for name in old:
        old_value, names = flat.pop(name), new_names(name, evaluators)
        value = new_value(name, old_value)
        if names != [name]:
            sentences.append(f"{name} is now {' and '.join(names)}")
        elif value != old_value:
            sentences.append(f"{name} = {old_value!r} is now {value!r}")
        flat |= dict.fromkeys(names, value)
    if len(sentences) > 3:
        sentences[3:] = [f"and {len(sentences) - 3} others, see docs/config.md"]
    if sentences:
        _log.warning("%s has keys of an earlier version: %s", place, "; ".join(sentences))
    return nested.unflatten(flat)


def _evaluators(task: Any, flat: Mapping) -> dict:
    """Return the evaluators that every config of an earlier version had."""
    if task == "classify":
        return {"classification": {"type": "classification"}}
    entries = {"reconstruction": {"type": "reconstruction"}}
    if any(name.startswith("probe.") for name in flat):
        entries["knn"] = {"type": "knn"}
    return entries
