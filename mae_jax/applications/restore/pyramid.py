"""A picture at smaller and smaller sizes, of whose masked pixels fewer and fewer are left."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage


class Level(NamedTuple):
    """A picture at 1 / 2**depth of its size."""

    values: Float[np.ndarray, "*sides c"]  # NaN is missing; what is masked has any values
    masked: Bool[np.ndarray, "*sides"]
    depth: int = 0

    def halved(self) -> "Level":
        """Return the means of given values, of two along each side.

        What holds no given values is masked if it holds any masked ones.
        """
        given = (~self.masked[..., None] & ~np.isnan(self.values)).astype(np.float32)
        total, masked = np.where(given > 0, self.values, np.float32(0)), self.masked
        for axis in range(self.masked.ndim):
            pairs = range(0, self.masked.shape[axis], 2)  # the last one may be alone
            total, given = (np.add.reduceat(x, pairs, axis) for x in (total, given))
            masked = np.logical_or.reduceat(masked, pairs, axis)
        mean = np.where(given > 0, total / np.maximum(given, 1), np.float32(np.nan))
        return Level(mean, masked & ~(given > 0).any(-1), self.depth + 1)

    def enlarged(self, points: Sequence[Int[np.ndarray, "m"]]) -> Float[np.ndarray, "m c"]:
        """Return the values at points of the picture of twice the size, by linear interpolation.

        Missing values count as the mean of their channel.
        """
        places = np.stack([(x + 0.5) / 2 - 0.5 for x in points])
        found = []
        for channel in np.moveaxis(self.values, -1, 0):
            exists = ~np.isnan(channel)
            mean = channel[exists].mean() if exists.any() else np.float32(0)
            channel = np.where(exists, channel, mean)
            found.append(ndimage.map_coordinates(channel, places, order=1, mode="nearest"))
        return np.stack(found, axis=-1)
