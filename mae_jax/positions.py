"""Position tables."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float


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


def table(module: nn.Module, grid: Sequence[int], width: int, learned: bool, dtype) -> jax.Array:
    """The positions of a module, `[1 + n, width]`, that of cls first: fixed, or its own parameter.

    A fixed place of cls is zero. The parameter is called `positions` and starts as the fixed table.
    """
    fixed = np.concatenate([np.zeros((1, width), np.float32), sincos(grid, width)])
    if learned:
        return module.param("positions", lambda key: jnp.asarray(fixed)).astype(dtype)
    return jnp.asarray(fixed, dtype)


def resize(
    positions: Float[Array, "s d"], old: Sequence[int], new: Sequence[int]
) -> Float[Array, "t d"]:
    """A learned table for another grid, by cubic interpolation; the first row, of cls, stays.

    Raises:
      ValueError: the table is not one of the grid `old`.
    """
    old, new = tuple(old), tuple(new)
    count, width = positions.shape
    if count != 1 + math.prod(old):
        raise ValueError(f"a table of {count} positions is not one of cls and a grid {old}")
    if old == new:
        return positions
    places = jnp.asarray(positions[1:]).reshape(*old, width)
    places = jax.image.resize(places, (*new, width), "cubic", antialias=False)
    return jnp.concatenate([positions[:1], places.reshape(-1, width)])
