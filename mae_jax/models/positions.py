"""Positions: what is added to the tokens so that a network knows where each of them lies."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from mae_jax.models import patches

# The coordinate of each patch along each axis of the input, in the place of its index.
Coordinates = Sequence[Float[Array, "b n"]] | None


class Positions(NamedTuple):
    """What is added to the tokens of a grid of n patches."""

    cls: Float[Array, "k width"]  # to the class tokens
    patches: Float[Array, "#b n width"]  # one row for all inputs, or one for each

    def at(self, index: Int[Array, "b k"]) -> Float[Array, "b k width"]:
        """Return what is added to the patches at `index`."""
        if self.patches.shape[0] == 1:
            return self.patches[0][index]
        return patches.take(self.patches, index)


def sincos(grid: Sequence[int], width: int) -> np.ndarray:
    """Compute sine-cosine positions of a grid with any number of axes, `[n, width]` float32.

    The channels are shared out equally among the axes, the *last* axis first: in 2-D the first
    half encodes the column and the second half the row, as in the reference MAE. The share of an
    axis is `[sin | cos]` at frequencies `10000 ** (-i / count)`. Channels that cannot be shared
    out equally (512 over three axes) are zero.

    Raises:
      ValueError: `width` has no two channels for each axis.
    """
    coordinates = np.indices(grid).reshape(len(grid), -1)  # [axes n]
    return _sincos_of([x[None] for x in coordinates], width, np)[0].astype(np.float32)


def sincos_at(
    coordinates: Sequence[Float[Array, "#b n"]], grid: Sequence[int], width: int
) -> Float[Array, "b g*n width"]:
    """Compute `sincos` at any coordinates along the last axes of a grid, in float32.

    Tokens along the first axes, such as channel groups, keep their indices.

    Raises:
      ValueError: the coordinates are not those of this grid, or `width` is too small.
    """
    first, sides = grid[: len(grid) - len(coordinates)], grid[len(grid) - len(coordinates) :]
    if tuple(x.shape[1] for x in coordinates) != tuple(sides):
        shapes = ", ".join(str(x.shape) for x in coordinates)
        raise ValueError(f"coordinates of shapes {shapes} are not those of a grid {tuple(grid)}")
    index = [jnp.arange(n, dtype=jnp.float32)[None] for n in first]
    b = coordinates[0].shape[0]

    def over_grid(axis: int, x: jax.Array) -> jax.Array:
        shape = [side if i == axis else 1 for i, side in enumerate(grid)]
        x = jnp.broadcast_to(x, (b, x.shape[1])).reshape(b, *shape)
        return jnp.broadcast_to(x, (b, *grid)).reshape(b, -1)

    return _sincos_of(list(map(over_grid, range(len(grid)), [*index, *coordinates])), width, jnp)


def _sincos_of(coordinates: Sequence[Any], width: int, xp: Any) -> Any:
    """Return the sines and cosines [b n width] of the coordinates [b n] of each axis."""
    axes = len(coordinates)
    count = width // (2 * axes)  # frequencies per axis
    if count < 1:
        raise ValueError(f"width = {width} is too small for positions on {axes} axes")
    frequencies = (10000.0 ** (-np.arange(count) / count))[None, None]
    angles = [x[..., None] * frequencies for x in reversed(coordinates)]
    table = xp.concatenate([f(x) for x in angles for f in (xp.sin, xp.cos)], -1)
    return xp.pad(table, [(0, 0), (0, 0), (0, width - 2 * axes * count)])


def interleaved(grid: Sequence[int], width: int) -> np.ndarray:
    """Compute the positions of VideoMAE (arXiv 2203.12602), `[n, width]` float32.

    The grid counts as a single axis, in reading order, and sines and cosines alternate: channels
    2i and 2i + 1 have the frequency `10000 ** (-2i / width)`, as in Vaswani et al. 2017.
    """
    channel = np.arange(width)
    angles = np.arange(np.prod(grid))[:, None] * 10000.0 ** (-(channel // 2 * 2) / width)
    return np.where(channel % 2, np.cos(angles), np.sin(angles)).astype(np.float32)


FORMULAS = {"sincos": sincos, "interleaved": interleaved}


class PositionTable(nn.Module):
    """What the kinds of position tables have in common.

    Args:
      cls_tokens: the number of class tokens, whose rows come first and start as zeros.
      formula: one of `FORMULAS`, for the rows of the patches.
    """

    width: int
    cls_tokens: int = 1
    formula: Callable[[Sequence[int], int], np.ndarray] = sincos
    dtype: Any = jnp.float32

    def __call__(self, grid: Sequence[int], coordinates: Coordinates = None) -> Positions:
        """Return the positions on a grid, of which `grid` is the number of tokens on each axis.

        Raises:
          ValueError: positions of this kind are not computed from coordinates.
        """
        raise NotImplementedError

    @nn.nowrap
    def start(self, grid: Sequence[int]) -> dict[str, np.ndarray]:
        """Return the initial values of learned positions by the names of their parameters."""
        cls = np.zeros((self.cls_tokens, self.width), np.float32)
        return {"positions": np.concatenate([cls, self.formula(grid, self.width)])}

    @nn.nowrap
    def split(self, table: Float[Any, "k+n width"]) -> Positions:
        """Return the rows of a table as positions."""
        table = jnp.asarray(table, self.dtype)
        return Positions(table[: self.cls_tokens], table[None, self.cls_tokens :])

    @nn.nowrap
    def refuse(self, coordinates: Coordinates) -> None:
        """Raise ValueError if there are coordinates."""
        if coordinates is not None:
            raise ValueError(
                "positions of coordinates (data.reference_spacing) are sines and cosines of them: "
                "use model.learned_positions=False and model.position_formula='sincos'"
            )


class Fixed(PositionTable):
    """A table that is not trained; the rows of the class tokens are zero."""

    def __call__(self, grid, coordinates=None):
        if coordinates is None:
            return self.split(self.start(grid)["positions"])
        if self.formula is not sincos:
            self.refuse(coordinates)
        cls = jnp.zeros((self.cls_tokens, self.width), self.dtype)
        return Positions(cls, sincos_at(coordinates, grid, self.width).astype(self.dtype))


class Learned(PositionTable):
    """A parameter `positions` `[k + n, width]` for each token of the grid."""

    @nn.compact
    def __call__(self, grid, coordinates=None):
        self.refuse(coordinates)
        start = self.start(grid)["positions"]
        return self.split(self.param("positions", lambda key: jnp.asarray(start)))


class Separable(PositionTable):
    """A learned table for the first axis plus one for the others, as MAE-ST (arXiv 2205.09113).

    The parameters are `positions_time` `[t, width]` and `positions_space` `[k + s, width]`, whose
    first rows are those of the class tokens; their sum starts as the fixed `sincos`.
    """

    @nn.compact
    def __call__(self, grid, coordinates=None):
        self.refuse(coordinates)
        time, space = (
            self.param(name, lambda key, x=x: jnp.asarray(x)).astype(self.dtype)
            for name, x in self.start(grid).items()
        )
        cls, space = self.split(space)
        return Positions(cls, (time[:, None] + space).reshape(1, -1, self.width))

    @nn.nowrap
    def start(self, grid):
        grid, cls = tuple(grid), np.zeros((self.cls_tokens, self.width), np.float32)
        # Each axis has channels of its own; those of the first axis come last.
        table = sincos(grid, self.width).reshape(grid[0], -1, self.width)
        share = self.width // (2 * len(grid))
        own = np.arange(self.width) // (2 * share) == len(grid) - 1
        time, space = np.where(own, table[:, 0], 0), np.where(own, 0, table[0])
        return {"positions_time": time, "positions_space": np.concatenate([cls, space])}
