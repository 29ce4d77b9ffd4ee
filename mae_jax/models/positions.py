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


def table(
    module: nn.Module, grid: Sequence[int], width: int, learned: bool, separable: bool, dtype
) -> jax.Array:
    """The positions of a module, `[1 + n, width]`, that of cls first: fixed, or its own parameter.

    A fixed place of cls is zero. The parameter is called `positions` and starts as the fixed table.
    Learned ones that are `separable` are the sum of one for the first axis, `positions_time`
    `[t, width]`, and one for the others, `positions_space` `[1 + s, width]`, as MAE-ST
    (arXiv 2205.09113) has them; they start as the fixed table too.
    """
    fixed = {name: lambda key, x=x: jnp.asarray(x) for name, x in tables(grid, width, separable)}
    if not learned:
        return jnp.asarray(dict(tables(grid, width))["positions"], dtype)
    parts = {name: module.param(name, start).astype(dtype) for name, start in fixed.items()}
    if not separable:
        return parts["positions"]
    time, space = parts["positions_time"], parts["positions_space"]
    places = (time[:, None] + space[None, 1:]).reshape(-1, width)
    return jnp.concatenate([space[:1], places])


def tables(
    grid: Sequence[int], width: int, separable: bool = False
) -> list[tuple[str, np.ndarray]]:
    """Names and values of the parameters that learned positions start with."""
    grid, cls = tuple(grid), np.zeros((1, width), np.float32)
    if not separable:
        return [("positions", np.concatenate([cls, sincos(grid, width)]))]
    # each axis has channels of its own, those of the first one last
    whole, share = sincos(grid, width).reshape(*grid, width), width // (2 * len(grid))
    start = 2 * share * (len(grid) - 1)
    time = np.zeros((grid[0], width), np.float32)
    time[:, start : start + 2 * share] = whole.reshape(grid[0], -1, width)[
        :, 0, start : start + 2 * share
    ]
    space = np.array(whole[0].reshape(-1, width))
    space[:, start : start + 2 * share] = 0
    return [("positions_time", time), ("positions_space", np.concatenate([cls, space]))]


def resize(
    positions: Float[Array | np.ndarray, "s d"], old: Sequence[int], new: Sequence[int]
) -> np.ndarray:
    """A learned table for another grid, `[t, d]`, by cubic interpolation along each axis.

    The first row, of cls, stays. In 2-D that is PyTorch's `interpolate(mode="bicubic")`, which the
    reference resizes with.

    Raises:
      ValueError: the table is not one of the grid `old`.
    """
    old, new = tuple(old), tuple(new)
    table = np.asarray(positions)
    count, width = table.shape
    if count != 1 + math.prod(old):
        raise ValueError(f"a table of {count} positions is not one of cls and a grid {old}")
    places = table[1:].reshape(*old, width)
    for axis, sides in enumerate(zip(old, new, strict=True)):
        places = np.moveaxis(np.tensordot(_cubic(*sides), places, (1, axis)), 0, axis)
    return np.concatenate([table[:1], places.reshape(-1, width)]).astype(table.dtype)


def resize_named(name: str, table: np.ndarray, old: Sequence[int], new: Sequence[int]):
    """`resize` for the parameter of a table: `positions`, `positions_time`, `positions_space`."""
    if name.endswith("_time"):  # it has no row of cls
        return resize(np.concatenate([table[:1], table]), old[:1], new[:1])[1:]
    if name.endswith("_space"):
        old, new = old[1:], new[1:]
    return resize(table, old, new)


def _cubic(old: int, new: int) -> np.ndarray:
    """The weights `[new, old]` of cubic convolution with a = -.75, the ends repeated."""
    at = (np.arange(new) + 0.5) * old / new - 0.5
    weights, a = np.zeros((new, old)), -0.75
    for tap in range(-1, 3):
        place = np.floor(at).astype(int) + tap
        x = np.abs(at - place)
        near = ((a + 2) * x - (a + 3)) * x**2 + 1
        far = a * (((x - 5) * x + 8) * x - 4)
        np.add.at(weights, (np.arange(new), place.clip(0, old - 1)), np.where(x <= 1, near, far))
    return weights
