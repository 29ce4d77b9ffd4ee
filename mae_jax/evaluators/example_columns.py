"""Columns of a file with a row for each example: names, labels, and why an example has none."""

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from mae_jax.data import sources
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.sources import source as reading
from mae_jax.evaluators.held_out import EvalTransform


def names(source: sources.Source, index: Int[np.ndarray, "n"]) -> list[Any]:
    """Return the names of examples, or their indices if they have no names."""
    of_files: Any = getattr(source, "names", ())
    as_text = lambda name: name.encode("utf-8", "backslashreplace").decode()  # may be any bytes
    return [as_text(of_files[i]) if of_files else int(i) for i in index]


def labels(source: sources.Source, found: Sequence[Any], targets: Sequence[str]) -> dict[str, Any]:
    """Return the columns of labels, which are empty if no example has one.

    They are `label`, in which several classes are joined by ";", or `target_NAME` for each of the
    numbers `targets`.

    Args:
      found: as in `sources.Source`; -1 where an example cannot be read.
    """
    if sources.label_kind(source) != "number":
        classes = distinct(source.classes)
        of_classes = [class_names(label, classes) for label in found]
        is_known = any(label is not None for label in of_classes)
        return {"label": of_classes} if is_known else {}
    unknown = np.full(len(targets), np.nan, np.float32)
    numbers = np.stack([label if np.ndim(label) else unknown for label in found]).T
    known = {name: x for name, x in zip(targets, numbers, strict=True) if (~np.isnan(x)).any()}
    return {f"target_{name}": x for name, x in known.items()}


def class_names(label: Any, names: Sequence[Any]) -> Any:
    """Return the name of a class or those of several, or numbers if there are no names."""
    if np.ndim(label):
        return ";".join(str(names[k] if names else k) for k in np.flatnonzero(label).tolist())
    if label < 0:
        return None
    return names[int(label)] if names else int(label)


def distinct(names: Sequence[str]) -> list[str]:
    """Return different names: of two classes "crane" the second may become "crane (517)"."""
    count, result = collections.Counter(names), []
    for k, name in enumerate(names):
        name = name if count[name] == 1 else f"{name} ({k})"
        while name in result or count[name] > 1:
            name += "'"
        result.append(name)
    return result


def reason(source: sources.Source, i: int, transform: EvalTransform) -> str:
    """Return why an example cannot be read."""
    try:
        reading.read(source, i, transform.on_host)
    except Unreadable as error:
        return str(error)
    return f"{source.name(i)!r} could not be read at first"
