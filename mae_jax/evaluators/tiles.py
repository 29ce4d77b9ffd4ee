"""Overlapping tiles of an input of any size, and the mean of what they say, without seams.

All positions and lengths are counted in cells, one for each patch.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Block = Float[np.ndarray, "rows *cells k d"]


class Tiling(NamedTuple):
    """The tiles of an input, of which the last along each axis ends where the input ends."""

    cells: tuple[int, ...]  # of the input
    tile: tuple[int, ...]  # of a tile
    steps: tuple[int, ...]  # from a tile to the next, along each axis

    @property
    def starts(self) -> list[tuple[int, ...]]:
        """The first cell of each tile, in reading order; an input smaller than a tile has one."""
        axes = []
        for cells, tile, step in zip(*self, strict=True):
            last = max(cells - tile, 0)
            axes.append([*range(0, last, step), last])
        return list(itertools.product(*axes))


def cut(cells: Sequence[int], tile: Sequence[int], overlap: float) -> Tiling:
    """Return the tiles of an input, of which neighbours share about `overlap` of their length.

    Raises:
      ValueError: the overlap is not in [0, 1).
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap = {overlap} must be from 0 up to but not 1, such as 0.5")
    steps = tuple(max(1, round(side * (1 - overlap))) for side in tile)
    return Tiling(tuple(cells), tuple(tile), steps)


def window(tile: Sequence[int]) -> Float[np.ndarray, "*tile"]:
    """Return the weight of each cell of a tile: Hann windows, above 0 and largest in the middle.

    With an overlap of half an even number of cells the weights of all tiles sum to 1.
    """
    hann = [np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2 for side in tile]
    return functools.reduce(np.multiply.outer, hann).astype(np.float32)


def blend(tiles: Iterable[Float[np.ndarray, "*tile k d"]], tiling: Tiling) -> Iterator[Block]:
    """Yield the weighted means of tiles, in blocks of whole rows from the first to the last.

    Memory holds the rows of one tile. NaN among the vectors `d` of a tile counts as missing, and a
    mean over nothing is NaN.

    Args:
      tiles: as many as `tiling.starts`, in that order.
    """
    weight, height = window(tiling.tile), tiling.tile[0]
    top, mean, total = 0, np.empty(0), np.empty(0)
    for start, tile in zip(tiling.starts, tiles, strict=True):
        if not mean.size:
            sides = (height, *map(max, tiling.cells[1:], tiling.tile[1:]))
            mean, total = (
                np.zeros((*sides, *end), np.float32) for end in (tile.shape[-2:], tile.shape[-2:-1])
            )
        if start[0] > top:
            done = start[0] - top
            yield _finished(mean, total, done, tiling)
            for array in (mean, total):
                array[: max(height - done, 0)] = array[done:].copy()
                array[max(height - done, 0) :] = 0
            top = start[0]
        place = (
            slice(None),
            *(slice(a, a + n) for a, n in zip(start[1:], tiling.tile[1:], strict=True)),
        )
        exists = ~np.isnan(tile[..., 0])
        own = weight[..., None] * exists
        total[place] += own
        share = own / np.where(exists, total[place], 1)  # of a first tile 1, so that it stays exact
        mean[place] += share[..., None] * np.where(exists[..., None], tile - mean[place], 0)
    yield _finished(mean, total, tiling.cells[0] - top, tiling)


def _finished(mean: np.ndarray, total: np.ndarray, rows: int, tiling: Tiling) -> Block:
    part = (slice(rows), *map(slice, tiling.cells[1:]))
    return np.where(total[part][..., None] > 0, mean[part], np.float32(np.nan))
