"""Positions: what is added to the tokens so that a network knows where each of them lies.

Each kind returns a table `[1 + n, width]` for a grid of n tokens, the row of the cls token first.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float


class PositionTable(nn.Module):
    """What the kinds of position tables have in common."""

    width: int
    dtype: Any = jnp.float32

    def __call__(self, grid: Sequence[int]) -> Float[Array, "1+n width"]:
        """Return the table for a grid, of which `grid` is the number of tokens along each axis."""
        raise NotImplementedError


class SinCos(PositionTable):
    """The fixed sine-cosine table of He et al. 2021; the row of cls is zero."""

    def __call__(self, grid):
        return jnp.asarray(initial_tables(grid, self.width)["positions"], self.dtype)


class Learned(PositionTable):
    """A parameter `positions` for each token of the grid; it starts as `SinCos`."""

    @nn.compact
    def __call__(self, grid):
        start = initial_tables(grid, self.width)["positions"]
        return self.param("positions", lambda key: jnp.asarray(start)).astype(self.dtype)


class Separable(PositionTable):
    """A learned table for the first axis plus one for the others, as MAE-ST (arXiv 2205.09113).

    The parameters are `positions_time` `[t, width]` and `positions_space` `[1 + s, width]`, whose
    first row is that of cls; their sum starts as `SinCos`.
    """

    @nn.compact
    def __call__(self, grid):
        start = initial_tables(grid, self.width, separable=True)
        time, space = (
            self.param(name, lambda key, x=x: jnp.asarray(x)).astype(self.dtype)
            for name, x in start.items()
        )
        table = (time[:, None] + space[None, 1:]).reshape(-1, self.width)
        return jnp.concatenate([space[:1], table])


def sincos(grid: Sequence[int], width: int) -> np.ndarray:
    """Compute sine-cosine positions of a grid with any number of axes, `[n, width]` float32.

    The channels are shared out equally among the axes, the *last* axis first: in 2-D the first
    half encodes the column and the second half the row, as in the reference MAE. The share of an
    axis is `[sin | cos]` at frequencies `10000 ** (-i / count)`. Channels that cannot be shared
    out equally (512 over three axes) are zero.

    Raises:
      ValueError: `width` has no two channels for each axis.
    """
    count = width // (2 * len(grid))  # frequencies per axis
    if count < 1:
        raise ValueError(f"width = {width} is too small for positions on {len(grid)} axes")
    frequencies = 10000.0 ** (-np.arange(count) / count)
    coordinates = np.indices(grid).reshape(len(grid), -1)  # [axes n]
    table = np.zeros((coordinates.shape[1], width), np.float32)
    for share, coordinate in enumerate(coordinates[::-1]):
        angles = coordinate[:, None] * frequencies
        start = 2 * count * share
        table[:, start : start + 2 * count] = np.concatenate([np.sin(angles), np.cos(angles)], 1)
    return table


def initial_tables(
    grid: Sequence[int], width: int, separable: bool = False
) -> dict[str, np.ndarray]:
    """Return the initial values of learned positions by the names of their parameters."""
    grid, cls = tuple(grid), np.zeros((1, width), np.float32)
    table = sincos(grid, width)
    if not separable:
        return {"positions": np.concatenate([cls, table])}
    # Each axis has channels of its own; those of the first axis come last.
    table, share = table.reshape(grid[0], -1, width), width // (2 * len(grid))
    own = np.arange(width) // (2 * share) == len(grid) - 1
    time, space = np.where(own, table[:, 0], 0), np.where(own, 0, table[0])
    return {"positions_time": time, "positions_space": np.concatenate([cls, space])}
