"""Position tables."""

from collections.abc import Sequence

import numpy as np


def sincos(grid: Sequence[int], width: int) -> np.ndarray:
    """Fixed sine-cosine positions of a grid with any number of axes, `[n, width]` float32.

    The channels are shared out equally among the axes, the *last* axis first: in 2-D the first
    half encodes the column and the second half the row, as in the reference MAE. The share of an
    axis is `[sin | cos]` at frequencies `10000 ** (-i / count)`. Channels that cannot be shared
    out equally (512 over three axes) are zero.
    """
    grid = tuple(grid)
    count = width // (2 * len(grid))  # frequencies per axis
    if count < 1:
        raise ValueError(f"width {width} is too small for positions on {len(grid)} axes")
    frequencies = 10000.0 ** (-np.arange(count) / count)
    places = np.indices(grid).reshape(len(grid), -1)  # [axes n]
    table = np.zeros((places.shape[1], width), np.float32)
    for share, place in enumerate(places[::-1]):
        angles = place[:, None] * frequencies
        start = 2 * count * share
        table[:, start : start + 2 * count] = np.concatenate([np.sin(angles), np.cos(angles)], 1)
    return table
