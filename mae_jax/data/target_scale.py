"""The numbers that a regression predicts: their names, and their scale in the training data."""

import logging
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from mae_jax.data.sources import Source, label_kind, labels_of

_log = logging.getLogger(__name__)


class TargetScale(NamedTuple):
    """The names of some numbers, with their mean and standard deviation, () if unknown."""

    names: tuple[str, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @classmethod
    def of(cls, values: dict) -> "TargetScale":
        """Return the scale from its JSON, see `_asdict`."""
        return cls(*(tuple(values[name]) for name in cls._fields))


def names_of(source: Source, count: int) -> tuple[str, ...]:
    """Return the names of the `count` targets of a source, by default target_0, target_1, ..."""
    names = tuple(getattr(source, "targets", ()))
    return names or tuple(f"target_{k}" for k in range(count))


def measure(source: Source) -> TargetScale:
    """Return the scale of the targets of a source, over the examples that have them.

    A log entry counts the examples without a target. Labels that the source does not know without
    reading are read.

    Raises:
      ValueError: the labels are no numbers, or a target is infinite, everywhere unknown or the same
        in all examples.
    """
    if label_kind(source) != "number":
        raise ValueError(
            "the labels of the training examples are no numbers, which task 'regress' needs: name "
            "another source, or use task = 'classify'"
        )
    values = np.asarray(labels_of(source, read=True), np.float64)
    names = names_of(source, values.shape[1])
    scales = [_moments(name, x) for name, x in zip(names, values.T, strict=True)]
    mean, std = zip(*scales, strict=True)
    return TargetScale(names, mean, std)


def _moments(name: str, values: Float[np.ndarray, "n"]) -> tuple[float, float]:
    """Return mean and standard deviation of a target, of which NaN are unknown."""
    if np.isinf(values).any():
        raise ValueError(f"target {name!r} is infinite in an example: correct or empty its field")
    known = values[~np.isnan(values)]
    if not len(known):
        raise ValueError(f"target {name!r} is unknown in all {len(values):,} training examples")
    if known.min() == known.max():
        raise ValueError(
            f"target {name!r} is {known[0]:g} in all training examples, so there is nothing to "
            "learn: leave it out"
        )
    if missing := len(values) - len(known):
        text = "%d of %d training examples have no target %r and are left out of its loss"
        _log.info(text, missing, len(values), name)
    return float(known.mean()), float(known.std())
