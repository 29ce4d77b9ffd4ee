"""Thresholds with a promise, from the scores of good examples that nothing was fitted on."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

COMBINED = "combined"  # the name of the combination of all scorers
_NORMAL = 1.4826  # of the median absolute deviation: that of a normal distribution becomes 1


def needed(false_alarms: float) -> int:
    """Return how many good examples a threshold for a false-alarm rate needs, besides those fitted.

    Raises:
      ValueError: the rate is not between 0 and 1.
    """
    if not 0 < false_alarms < 1:
        raise ValueError(f"--false-alarms={false_alarms} must be between 0 and 1, such as .01")
    return max(2, math.ceil(1 / false_alarms - 1 - 1e-9))


def threshold(scores: Float[np.ndarray, "n"], false_alarms: float) -> float:
    """Return the ceil((n + 1) (1 - a))-th smallest score: split conformal prediction.

    If a new good example is exchangeable with those of the scores, its score is above the threshold
    with a probability of at most `a`, over the choice of all of them (Papadopoulos et al. 2002, Lei
    et al. 2018). Examples from another camera, or of another week, may not be exchangeable.

    Raises:
      ValueError: there are too few scores.
    """
    if len(scores) < needed(false_alarms):
        raise ValueError(
            f"--false-alarms={false_alarms:g} needs the scores of {needed(false_alarms):,} good "
            f"examples that the memory has not seen, and there are {len(scores):,}: give more good "
            "examples, or a higher rate"
        )
    rank = math.ceil((len(scores) + 1) * (1 - false_alarms) - 1e-9)
    return float(np.sort(scores)[rank - 1])


class Calibration(NamedTuple):
    """The scores of good examples that nothing was fitted on, and what they say of others.

    The combination is the mean over the scorers of their standardised scores: the distance from the
    median of the calibration scores in units of their median absolute deviation. Other than ranks
    it goes on beyond the largest of them. The promise of `threshold` is exact for each scorer. For
    the combination the median and the deviation come from the same scores, which changes the rate
    by a term of order 1/n.
    """

    names: tuple[str, ...]  # of the scorers
    scores: Float[np.ndarray, "n k"]
    false_alarms: float

    @property
    def center(self) -> Float[np.ndarray, "k"]:
        return np.median(self.scores, axis=0).astype(np.float32)

    @property
    def scale(self) -> Float[np.ndarray, "k"]:
        """The deviation of each scorer; 1 if all scores are equal."""
        deviation = _NORMAL * np.median(np.abs(self.scores - self.center), axis=0)
        spread = np.where(deviation > 0, deviation, self.scores.std(0))
        return np.where(spread > 0, spread, 1).astype(np.float32)

    def combine(self, x: Float[Any, "*any k"]) -> Float[Any, "*any"]:
        """Return the combination of scores or of maps, of numpy or of jax."""
        one = (None,) * (x.ndim - 1)
        return ((x - self.center[one]) / self.scale[one]).mean(-1)

    @property
    def thresholds(self) -> dict[str, float]:
        """The threshold of each scorer and of the combination."""
        columns = [*self.scores.T, self.combine(self.scores)]
        limits = [threshold(x, self.false_alarms) for x in columns]
        return dict(zip((*self.names, COMBINED), limits, strict=True))

    @staticmethod
    def of(names: Sequence[str], scores: Any, false_alarms: float) -> "Calibration":
        """Return the calibration by scores [n k]; raise ValueError if they are too few."""
        scores = np.asarray(scores, np.float32).reshape(-1, len(names))
        threshold(scores[:, 0], false_alarms)
        return Calibration(tuple(names), scores, false_alarms)
