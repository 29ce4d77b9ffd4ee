"""Nested dicts of values, and the values' dotted names such as `model.patch`."""

from collections.abc import Mapping
from typing import Any


def plain(config: Mapping) -> dict:
    """Return the nested dicts of a dict, ConfigDict or Config."""
    return {name: plain(x) if hasattr(x, "items") else x for name, x in config.items()}


def flatten(config: Mapping, prefix: str = "") -> dict[str, Any]:
    """Return `{"model.patch": (16, 16), ...}` of nested values."""
    flat = {}
    for name, x in config.items():
        flat |= flatten(x, f"{prefix}{name}.") if hasattr(x, "items") else {prefix + name: x}
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict:
    """Return the nested values of dotted names, as before `flatten`."""
    nested: dict = {}
    for name, value in flat.items():
        put(nested, name, value)
    return nested


def get(nested: Any, name: str) -> Any:
    """Return a value or a section; None if there is none."""
    for part in name.split("."):
        nested = nested.get(part) if hasattr(nested, "items") else None
    return nested


def put(nested: dict, name: str, value: Any) -> None:
    """Set a value, and make the sections that contain the value."""
    *above, last = name.split(".")
    for section in above:
        if not isinstance(nested.get(section), dict):
            nested[section] = {}
        nested = nested[section]
    nested[last] = value
