"""The strategies that a config names, on the grid of an input."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mae_jax.models.masking import strategies


class Boxes(NamedTuple):
    """A strategy that masks boxes of patches, which are as long as the grid along some axes."""

    modality: str  # the only one whose grid has axes of this meaning
    axes: int  # of the grid: (frames, height, width) of video, (time, mel) of audio
    long: tuple[int, ...]


# The tubes of VideoMAE (arXiv 2203.12602) are the same places of all frames; AudioMAE (arXiv
# 2207.06405) masks times and frequencies.
BOXES = {
    "tube": Boxes("video", 3, (0,)),
    "frame": Boxes("video", 3, (1, 2)),
    "time": Boxes("audio", 2, (1,)),
    "frequency": Boxes("audio", 2, (0,)),
}
STRATEGIES = {  # of a key, a number of samples and a grid
    "random": strategies.random,
    "block": strategies.block,
    "grid": strategies.lattice,
    "stroke": strategies.stroke,
}
NAMES = (*STRATEGIES, "joint", *BOXES, "importance")


class MaskSampler(NamedTuple):
    """A strategy, or a mixture of some, on the grid of an input."""

    n: int  # patches
    keep: int  # how many stay visible
    decode: int  # how many of the masked ones are predicted
    # key, inputs [b *size c] and maybe the weight of each of their values -> [b n]
    scores: Callable[..., jax.Array]


def keep_count(n: int, ratio: float, together: int = 1) -> int:
    """Return how many of `n` patches stay visible at this mask ratio.

    `int(n * (1 - ratio))` alone gives 0 for (10, .9) and 99 for (1000, .9): floats fall short.

    Args:
      together: the number of patches that are masked together, such as those of a tube. As many
        such groups are masked as the ratio allows (VideoMAE keeps 8 * 20 of 8 * 196 at .9).

    Raises:
      ValueError: the ratio shows no patch by its own meaning, or masks none.
    """
    if not 0 < ratio < 1:
        raise ValueError(f"mask ratio {ratio} is not between 0 and 1 (the paper uses 0.75)")
    if together > 1:
        groups = n // together
        keep = together * max(1, groups - int(groups * ratio + 1e-9))
    else:
        keep = max(1, int(n * (1 - ratio) + 1e-9))
    if keep >= n:
        what = f"{n} patch(es)" if together == 1 else f"{n // together} group(s) of {together}"
        raise ValueError(
            f"mask ratio {ratio} masks none of {what}: use a smaller patch or a higher ratio"
        )
    return keep


def make_mask_sampler(
    name: str | Sequence[str],
    ratio: float,
    grid: Sequence[int],
    *,
    side: int = 2,
    decode: float = 1.0,
    group_axis: bool = False,
    contrast: Callable[..., jax.Array] | None = None,
) -> MaskSampler:
    """Return the strategy `name` that masks the share `ratio` of a grid.

    Args:
      name: one of `NAMES`, or several, of which each sample has one: the samples of a batch take
        turns, and the first one's is drawn. All mask as many patches as the one that masks fewest.
      side: of the boxes that "joint" masks together, in patches.
      decode: the share of the masked patches that is predicted.
      group_axis: the first axis of the grid is that of channel groups, which "joint" masks apart.
      contrast: how much each patch matters, for "importance": see `targets.PixelTarget.contrast`.

    Raises:
      ValueError: a strategy is unknown or for a grid with another number of axes, or the ratio
        masks or shows nothing.
    """
    grid, n = tuple(grid), math.prod(grid)
    names = (name,) if isinstance(name, str) else tuple(name)
    if not names:
        raise ValueError(f"mask.name = () names no strategy: use some of {', '.join(NAMES)}")
    boxes = [_box(x, grid, side, group_axis) for x in names]
    draws = [_draw(x, grid, box, contrast) for x, box in zip(names, boxes, strict=True)]
    keep = max(keep_count(n, ratio, _together(box, grid)) for box in boxes)
    scores = draws[0] if len(draws) == 1 else _mixture(draws)
    return MaskSampler(n, keep, max(1, round((n - keep) * decode)), scores)


def _box(name: str, grid: tuple[int, ...], side: int, group_axis: bool) -> tuple[int, ...] | None:
    """Return the sides of the boxes that a strategy masks together, or None."""
    if name not in NAMES:
        raise ValueError(f"mask.name = {name!r} is none of {', '.join(NAMES)}")
    if name == "joint":
        if side > min(grid[group_axis:]):
            raise ValueError(f"mask.side = {side} is larger than the grid {grid}: use 2, 3 or 4")
        return (1,) * group_axis + (side,) * (len(grid) - group_axis)
    if name in BOXES:
        modality, axes, long = BOXES[name]
        if len(grid) != axes:
            raise ValueError(
                f"mask.name = {name!r} is for {modality}, whose grid has {axes} axes, not for a "
                f"grid {grid}: use 'random'"
            )
        return tuple(length if axis in long else 1 for axis, length in enumerate(grid))
    return None


def _together(box: tuple[int, ...] | None, grid: tuple[int, ...]) -> int:
    """Return how many patches are masked together, if the grid is cut into whole boxes."""
    if box is None or any(x % y for x, y in zip(grid, box, strict=True)):
        return 1
    return math.prod(box)


def _draw(
    name: str,
    grid: tuple[int, ...],
    box: tuple[int, ...] | None,
    contrast: Callable[..., jax.Array] | None,
) -> Callable[..., jax.Array]:
    """Return the function of a strategy as `MaskSampler.scores`."""
    if name == "importance" and contrast is None:
        raise ValueError("mask.name = 'importance' needs pixels, whose contrast says what matters")

    def scores(key: jax.Array, inputs: jax.Array, *weight: jax.Array | None) -> jax.Array:
        if box is not None:
            return strategies.joint(key, len(inputs), grid, box)
        if contrast is not None and name == "importance":
            return strategies.importance(key, -contrast(inputs, math.prod(grid), *weight))
        return STRATEGIES[name](key, len(inputs), grid)

    return scores


def _mixture(draws: Sequence[Callable[..., jax.Array]]) -> Callable[..., jax.Array]:
    """Return the function by which the samples of a batch take turns in using `draws`."""

    def scores(key: jax.Array, inputs: jax.Array, *weight: jax.Array | None) -> jax.Array:
        turn_key, *keys = jax.random.split(key, 1 + len(draws))
        first = jax.random.randint(turn_key, (), 0, len(draws))
        turn = (first + jnp.arange(len(inputs))[:, None]) % len(draws)
        drawn = [draw(key, inputs, *weight) for draw, key in zip(draws, keys, strict=True)]
        return jnp.select([turn == i for i in range(len(draws))], drawn)

    return scores
