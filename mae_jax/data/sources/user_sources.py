"""Sources of a user's own code: `python:MODULE:FACTORY`, and the argument `source` of `train`."""

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.sources import splits
from mae_jax.data.sources.source import Source

ARGUMENT = "argument"  # what `data.train.source` is in the config of a run with the argument


def made(place: str, split: str, modality: str) -> Source:
    """Return `factory(split)` of a function that Python can import, `MODULE:FACTORY`.

    Raises:
      ValueError: there is no such function, or what it returns is no `Source`, see `check`.
    """
    module, _, name = place.partition(":")
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"data 'python:{place}' must be python:MODULE:FACTORY, which Python can import: {error}"
        ) from error
    return check(factory(split), f"data 'python:{place}'")


def given(argument: Source | Mapping[str, Source], split: str) -> Mapping[str, Source]:
    """Return the argument `source` of `train` by splits, of which a lone source is `split`.

    Raises:
      ValueError: a value is no `Source`.
    """
    by_split = argument if isinstance(argument, Mapping) else {split: argument}
    return {name: check(source, f"source[{name!r}]") for name, source in by_split.items()}


def choose(by_split: Mapping[str, Source], split: str) -> Source:
    """Return the source of a split, whose "test" may be called "val" or "validation".

    Raises:
      ValueError: there is none.
    """
    found = next((name for name in splits.STORED.get(split, (split,)) if name in by_split), None)
    if found is None:
        raise ValueError(
            f"there is no source of split {split!r}: give train(source={{...}}) with one for each "
            f"split (it has {', '.join(by_split) or 'none'}), or name the evaluators' sources"
        )
    return by_split[found]


def check(source: Any, title: str) -> Source:
    """Return the source, if it keeps to the protocol as far as its first readable example says.

    Raises:
      ValueError: it does not; the message begins with `title`.
    """
    parts = ("__len__", "__getitem__", "name", "classes")
    if missing := [part for part in parts if not hasattr(source, part)]:
        raise ValueError(
            f"{title} is a {type(source).__name__} without {' and '.join(missing)}: see "
            "mae_jax.data.sources.Source, or return a mae_jax.data.sources.Examples"
        )
    for i in range(min(len(source), 100)):
        try:
            example = source[i]
        except (Unreadable, OSError):
            continue
        if not isinstance(example, Mapping) or not {"image", "label"} <= example.keys():
            raise ValueError(
                f"{title}: example {i} is no mapping with the keys 'image' and 'label' (-1 if it "
                "is unknown)"
            )
        label = np.asarray(example["label"])
        if label.ndim > 1 or label.dtype.kind not in ("biuf" if label.ndim else "biu"):
            raise ValueError(
                f"{title}: the label of example {i} is {example['label']!r}: give the number of a "
                "class, uint8 [classes] with a 1 for each class, or float32 [t] with numbers"
            )
        break
    return source
