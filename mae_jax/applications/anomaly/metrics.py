"""How well maps of scores agree with masks: AUROC, average precision and PRO.

All three are areas under curves over thresholds, which need no more of the maps than counts at each
distinct score. `Counts` collects these, map by map.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Float, UInt32

_SIGN = np.uint32(1 << 31)


class Curve(NamedTuple):
    """Shares of what lies at or above each threshold, from none on to the lowest threshold."""

    false_positives: Float[np.ndarray, "k"]  # of all normal values
    true_positives: Float[np.ndarray, "k"]  # of all anomalous values
    overlap: Float[np.ndarray, "k"]  # of a region, the mean over all regions
    precision: Float[np.ndarray, "k"]  # anomalous ones among all that lie there


@dataclasses.dataclass
class Counts:
    """Counts of normal and anomalous values at each distinct score, in bounded memory.

    They are exact up to `limit` distinct scores, float32. Beyond it the lowest bits of all scores
    are dropped, as many as needed, so that scores count as equal that differ by less than a share
    `resolution`.

    Args:
      limit: of distinct scores, which take 28 bytes each; four times as much is held at once.
    """

    limit: int = 2**20
    bits: int = 0  # of all scores, that are dropped
    regions: int = 0
    left_out: int = 0  # values without a score

    def __post_init__(self):
        self._keys = np.empty(0, np.uint32)  # scores, as whole numbers of the same order
        self._values = np.empty((0, 3))  # normal ones, anomalous ones and shares of regions
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []  # keys and values, not yet summed

    @property
    def resolution(self) -> float:
        return 2.0 ** (self.bits - 23) if self.bits else 0.0

    def add(self, scores: Float[np.ndarray, "*sides"], mask: Bool[np.ndarray, "*sides"]) -> None:
        """Add a map of scores, and where its values are anomalous.

        Values without a score, NaN, are left out. Anomalous values that touch each other, at least
        at corners, are a region.
        """
        exists = ~np.isnan(scores)
        labelled: Any = scipy.ndimage.label(mask & exists, np.ones((3,) * mask.ndim))
        region = labelled[0][exists]
        sizes = np.bincount(region, minlength=1)
        share = np.where(region > 0, 1 / sizes[region], 0)
        self.regions += len(sizes) - 1
        self.left_out += exists.size - len(region)
        values = np.stack([region == 0, region > 0, share], -1)
        self._put(_ordered(scores[exists]) >> np.uint32(self.bits), values)

    @classmethod
    def merged(cls, parts: Iterable["Counts"]) -> "Counts":
        """Return the counts of all parts together."""
        parts = list(parts)
        for part in parts:
            part._sum()
        whole = cls(max(x.limit for x in parts), max(x.bits for x in parts))
        for part in parts:
            whole.regions += part.regions
            whole.left_out += part.left_out
            whole._put(part._keys >> np.uint32(whole.bits - part.bits), part._values)
        return whole

    def curve(self) -> Curve:
        """Return the curve; a share of no values at all is NaN."""
        self._sum()
        totals = np.concatenate([np.zeros((1, 3)), np.cumsum(self._values[::-1], 0)])
        normal, anomalous, overlap = totals.T
        share = lambda x, total: x / total if total else np.full_like(x, np.nan)
        found = normal + anomalous
        precision = np.divide(anomalous, found, out=np.ones_like(found), where=found > 0)
        return Curve(
            share(normal, normal[-1]),
            share(anomalous, anomalous[-1]),
            share(overlap, self.regions),
            precision,
        )

    def _put(self, keys: UInt32[np.ndarray, "n"], values: Float[np.ndarray, "n 3"]) -> None:
        self._waiting.append((keys, values))
        if sum(len(x) for x, _ in self._waiting) > max(len(self._keys), self.limit // 16):
            self._sum()  # as much work as for the sums before, so that sorting stays cheap

    def _sum(self) -> None:
        """Sum the values of equal keys, and drop bits of keys until there are few enough."""
        keys, values = zip((self._keys, self._values), *self._waiting, strict=True)
        self._keys, self._values = _summed(np.concatenate(keys), np.concatenate(values))
        self._waiting = []
        while len(self._keys) > self.limit:
            self.bits += 1
            self._keys, self._values = _summed(self._keys >> np.uint32(1), self._values)


def auroc(curve: Curve) -> float:
    """Return the area under true over false positives; NaN if all values are of one kind."""
    return _area(curve.true_positives, curve.false_positives)


def average_precision(curve: Curve) -> float:
    """Return the sum of precisions, each times the recall that its threshold adds."""
    return float((np.diff(curve.true_positives) * curve.precision[1:]).sum())


def pro(curve: Curve, most: float = 0.3) -> float:
    """Return the area under the overlap of regions over false positives, up to `most` of these.

    It is divided by `most`, so that 1 is the best. The curve is straight between thresholds. From
    Bergmann et al., "The MVTec Anomaly Detection Dataset", 2021.
    """
    x, y = curve.false_positives, curve.overlap
    if np.isnan(x).any():
        return float("nan")
    end = int(np.searchsorted(x, most, side="right"))
    x, y = np.append(x[:end], most), np.append(y[:end], np.interp(most, x, y))
    return _area(y, x) / most


def _area(y: np.ndarray, x: np.ndarray) -> float:
    return float("nan") if np.isnan([x[0], y[0]]).any() else float(np.trapezoid(y, x))


def _ordered(scores: np.ndarray) -> UInt32[np.ndarray, "n"]:
    """Return float32 numbers as whole numbers in the same order, so that bits can be dropped."""
    bits = (scores.astype(np.float32) + np.float32(0)).view(np.uint32)  # -0 + 0 is 0
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _summed(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct keys in order, and the sums of their values."""
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    first = np.flatnonzero(np.diff(keys, prepend=keys[:1] + np.uint32(1)))
    return keys[first], np.add.reduceat(values[order], first, axis=0) if len(first) else values[:0]
