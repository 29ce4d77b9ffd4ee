"""The strategy that a config names, on the grid of an input."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from mae_jax.models.masking import strategies
from mae_jax.models.masking.mask import keep_count


class MaskSampler(NamedTuple):
    """A strategy on the grid of an input."""

    n: int  # patches
    keep: int  # how many stay visible
    decode: int  # how many of the masked ones are predicted
    scores: Callable[[jax.Array, jax.Array], jax.Array]  # key, inputs [b *size c] -> [b n]


NAMES = ("random", "block", "grid", "joint", "tube", "frame", "time", "frequency", "importance")
ALONG = {"tube": (1, 2), "frame": (0,), "time": (0,), "frequency": (1,)}  # axes that differ
AXES = {"tube": 3, "frame": 3, "time": 2, "frequency": 2}


def make_mask_sampler(
    name: str,
    ratio: float,
    grid: Sequence[int],
    *,
    side: int = 2,
    decode: float = 1.0,
    group_axis: bool = False,
    contrast: Callable[[jax.Array, int], jax.Array] | None = None,
) -> MaskSampler:
    """Return the strategy `name` that masks the share `ratio` of a grid.

    Args:
      side: of the boxes that "joint" masks together, in patches.
      decode: the share of the masked patches that is predicted.
      group_axis: the first axis of the grid is that of channel groups, which "joint" masks apart.
      contrast: how much each patch matters, for "importance": see `targets.PixelTarget.contrast`.

    Raises:
      ValueError: the strategy is unknown or for a grid with another number of axes, or the ratio
        masks or shows nothing.
    """
    grid, n = tuple(grid), math.prod(grid)
    if name not in NAMES:
        raise ValueError(f"mask.name = {name!r} is none of {', '.join(NAMES)}")
    if AXES.get(name, len(grid)) != len(grid):
        kind = "clips (frames, height, width)" if AXES[name] == 3 else "spectrograms (time, mel)"
        raise ValueError(f"mask.name = {name!r} is for {kind}, not for a grid {grid}: use 'random'")
    if name == "joint" and side > min(grid[group_axis:]):
        raise ValueError(f"mask.side = {side} is larger than the grid {grid}: use 2, 3 or 4")
    if name == "importance" and contrast is None:
        raise ValueError("mask.name = 'importance' needs pixels, whose contrast says what matters")
    box = (1,) * group_axis + (side,) * (len(grid) - group_axis)
    together = 1
    if name in ALONG:
        together = n // math.prod(grid[axis] for axis in ALONG[name])
    if name == "joint" and not any(x % y for x, y in zip(grid, box, strict=True)):
        together = math.prod(box)
    keep = keep_count(n, ratio, together)

    def scores(key: jax.Array, inputs: jax.Array) -> jax.Array:
        b = len(inputs)
        if name in ALONG:
            return strategies.along(key, b, grid, ALONG[name])
        if name == "joint":
            return strategies.joint(key, b, grid, box)
        if contrast is not None and name == "importance":
            return strategies.importance(key, -contrast(inputs, n))
        return {
            "random": strategies.random,
            "block": strategies.block,
            "grid": strategies.lattice,
        }[name](key, b, grid)

    return MaskSampler(n, keep, max(1, round((n - keep) * decode)), scores)
