"""Pictures of examples with their masks and maps, a page for each kind of anomaly."""

import collections
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from mae_jax.applications.anomaly import baselines, figures, heat_maps
from mae_jax.applications.anomaly.detector import Detector, Scores
from mae_jax.applications.anomaly.figures import Mask
from mae_jax.applications.anomaly.layout import Example
from mae_jax.evaluators import visualize

Row = dict[str, UInt8[np.ndarray, "h w c"]]
_WHITE = np.uint8(255)


class Sheets:
    """Pages of the first examples of each kind that have the size of the first one.

    Of a volume the slice along its first side with most of the anomaly is shown. Maps have the
    colors of `heat_maps`.
    """

    def __init__(self, detector: Detector, rows: int = 6):
        self.detector, self.rows = detector, rows
        self._kinds: dict[str, list[Row]] = collections.defaultdict(list)

    def add(self, example: Example, scores: Scores, mask: Mask) -> None:
        """Keep an example, if there are fewer of its kind than rows."""
        kept = self._kinds[example.kind]
        if len(kept) < self.rows:
            row = self._row(scores, mask)
            if not kept or kept[0]["mask"].shape == row["mask"].shape:
                kept.append(row)

    def save(self, folder: Path) -> None:
        """Write `KIND.png` of each kind to a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for kind, rows in self._kinds.items():
            columns = {title: np.stack([row[title] for row in rows]) for title in rows[0]}
            visualize.sheet(columns).save(folder / f"{kind}.png")

    def _row(self, scores: Scores, mask: Mask) -> Row:
        loaded, part = self.detector.loaded, _plane(mask)
        x = baselines.read(scores.opened, loaded) * loaded.transform.std + loaded.transform.mean
        pixels = np.rint(255 * np.clip(x[part], 0, 1)).astype(np.uint8)
        row = {"input": visualize.flat(pixels[None])[0], "mask": mask[part][..., None] * _WHITE}
        for name, map in scores.maps.items():
            whole = figures.enlarged(map, loaded.model.patch, mask.shape)
            row[name] = heat_maps.colors_of(self.detector, name)(whole[part])
        return row


def _plane(mask: Mask) -> tuple:
    """Return the index that leaves two sides of an input."""
    if mask.ndim < 3:
        return (None,) * (2 - mask.ndim)
    most = mask.sum(tuple(range(1, mask.ndim))).argmax() if mask.any() else len(mask) // 2
    return (most, *_plane(mask[most]))
