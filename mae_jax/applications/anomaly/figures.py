"""The figures of one scorer on examples with masks."""

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Float

from mae_jax.applications.anomaly import metrics
from mae_jax.applications.anomaly.layout import GOOD
from mae_jax.applications.anomaly.metrics import Counts

NAMES = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "pixel_ap": "pixel AP"}
NAMES |= {"pro": "PRO"}
Map = Float[np.ndarray, "*cells"]
Mask = Bool[np.ndarray, "*sides"]


@dataclasses.dataclass
class Scored:
    """The scores of all examples by one scorer, and counts of what its maps say of their values."""

    kinds: list[str] = dataclasses.field(default_factory=list)
    scores: list[float] = dataclasses.field(default_factory=list)
    counts: dict[str, Counts] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(Counts)
    )

    def add(self, kind: str, score: float) -> None:
        self.kinds.append(kind)
        self.scores.append(score)

    def add_map(self, kind: str, map: Map, patch: Sequence[int], mask: Mask) -> None:
        self.counts[kind].add(enlarged(map, patch, mask.shape), mask)

    def figures(self, kinds: Iterable[str]) -> dict[str, float]:
        """Return the figures of anomalies of these kinds against good examples; NaN is unknown."""
        from sklearn.metrics import roc_auc_score

        kinds = {*kinds, GOOD}
        rows = [
            (kind != GOOD, score)
            for kind, score in zip(self.kinds, self.scores, strict=True)
            if kind in kinds and score == score
        ]
        labels, scores = zip(*rows, strict=True) if rows else ((), ())
        found = dict.fromkeys(NAMES, float("nan"))
        if len({*labels}) == 2:
            found["image_auroc"] = float(roc_auc_score(labels, scores))
        if counts := [x for kind, x in self.counts.items() if kind in kinds]:
            curve = Counts.merged(counts).curve()
            found["pixel_auroc"] = metrics.auroc(curve)
            found["pixel_ap"] = metrics.average_precision(curve)
            found["pro"] = metrics.pro(curve)
        return found


def enlarged(map: Map, patch: Sequence[int], sides: Sequence[int]) -> Float[np.ndarray, "*sides"]:
    """Return a map at the size of its input, linear between the middles of patches."""

    def grow(x: np.ndarray, order: int) -> np.ndarray:
        found: Any = scipy.ndimage.zoom(x, patch, order=order, mode="nearest", grid_mode=True)
        return found

    exists, part = ~np.isnan(map), tuple(slice(side) for side in sides)
    if exists.all():
        return grow(map, 1)[part]
    values, share = grow(np.where(exists, map, 0), 1), grow(exists.astype(np.float32), 1)
    inside = grow(exists.astype(np.uint8), 0) > 0
    whole = np.where(inside, values / np.maximum(share, 1e-6), np.float32(np.nan))
    return whole[part]
