"""The state dicts that a file of PyTorch wraps in other dicts, and which of these is read."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Of several networks, the first is read. A moving average is read if there is nothing else.
TRAINED = ("model", "state_dict", "module", "model_state", "model_state_dict", "net", "state")
TRAINED += ("student",)
AVERAGES = ("model_ema", "state_dict_ema", "ema", "teacher")
ORDER = TRAINED + AVERAGES
DEEPEST, LONGEST = 5, 100  # dicts in dicts, and characters of a name
_log = logging.getLogger(__name__)


def state_dicts(tree: dict, tensor: type) -> dict[str, dict[str, Any]]:
    """Return the instances of `tensor` of each dict in a tree of dicts, by its dotted key.

    The key of the tree itself is "". Dicts without tensors are left out, and so are very deep ones
    and those with very long keys, which no code writes.
    """
    found, seen = {}, set()
    places: list[tuple[tuple[str, ...], dict]] = [((), tree)]
    for parts, place in places:  # which grows while it is read
        if tensors := {n: x for n, x in place.items() if type(n) is str and type(x) is tensor}:
            found[".".join(parts)] = tensors
        if id(place) in seen or len(parts) == DEEPEST:
            continue
        seen.add(id(place))  # a pickle may hold a dict several times, even in itself
        for name, value in place.items():
            if (
                isinstance(value, dict)
                and type(name) is str
                and name.isprintable()
                and len(name) <= LONGEST
            ):
                places.append(((*parts, name), value))
    return found


def choose(path: Path, found: Mapping[str, Mapping[str, Any]], key: str = "") -> str:
    """Return the key of the state dict to read, and log a line if the choice is not obvious.

    Args:
      found: state dicts by their dotted keys.
      key: the choice of the user, or "" for the first of `ORDER` that holds a network.

    Raises:
      ValueError: the file holds no such state dict.
    """
    if not found:
        raise ValueError(f"{path} holds no state dict: there are no tensors in it")
    if key in found and key:
        return key
    networks = [n for n in found if any(len(x.shape) > 1 for x in found[n].values())] or [*found]
    usual = [name for name in networks if all(part in ORDER for part in _parts(name))]
    if key or not usual:
        why = f"has no tensors under the key {key!r}" if key else "has no usual key of a network"
        keys = [name for name in networks if name]
        way = f"key= can be {' or '.join(keys[:20])}" if keys else "its tensors are not under a key"
        raise ValueError(f"{path} {why}: {way}")
    best, *others = sorted(usual, key=_rank)
    others = [name for name in others if name and found[name] != found[best]]
    if others:
        note = lambda name: " (a moving average, usually the better one)" if _rank(name)[0] else ""
        choices = " or ".join(f"{name}{note(name)}" for name in others)
        _log.warning(f"{path} holds several networks: {best} is read; key= would choose {choices}")
    elif best:
        _log.info(f"{path}: the network under the key {best} is read")
    return best


def _rank(key: str) -> tuple[bool, bool, list[int]]:
    """Return by what keys are sorted: the tree itself comes late, and averages come last."""
    average = any(part in AVERAGES for part in _parts(key))
    return average, not key, [ORDER.index(part) for part in _parts(key)]


def _parts(key: str) -> list[str]:
    return key.split(".") if key else []
