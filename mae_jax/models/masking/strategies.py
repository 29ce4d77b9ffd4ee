"""Mask strategies: scores `[b, n]` of the patches, of which the smallest stay visible.

Each is a function of a key, the number of samples and the shape of the grid, which may have any
number of axes.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mae_jax.models import patches


def random(key: jax.Array, batch: int, shape: Sequence[int]) -> Float[Array, "b n"]:
    """Draw uniform noise for each sample: random masking as in He et al. 2021."""
    return jax.random.uniform(key, (batch, math.prod(shape)))


def joint(
    key: jax.Array, batch: int, shape: Sequence[int], size: Sequence[int]
) -> Float[Array, "b n"]:
    """Cut the grid into boxes of `size` patches; each box is masked or kept as a whole.

    Boxes of (frames, 1, 1) are tubes, those of (1, height, width) frames. At most one box of a
    sample is split, where the number of patches to keep requires it.
    """
    cells = [-(-side // length) for side, length in zip(shape, size, strict=True)]
    places = np.indices(shape).reshape(len(shape), -1) // np.array(size)[:, None]  # [axes n]
    noise = _permutation(key, batch, math.prod(cells))
    return noise[:, np.ravel_multi_index(tuple(places), cells)]


def block(key: jax.Array, batch: int, shape: Sequence[int], boxes: int = 64) -> Float[Array, "b n"]:
    """Mask large boxes one after another; the last one is shrunk around its centre.

    The block-wise masking of BEiT (arXiv 2106.08254) with an exact count and on any number of axes:
    a box covers .08 to .5 of the grid, uniformly, and the ratio of its sides, relative to those of
    the grid, is within .3 and 1/.3.
    """
    axes = len(shape)
    area_key, aspect_key, place_key, noise_key = jax.random.split(key, 4)
    area = jax.random.uniform(area_key, (batch, boxes, 1), minval=0.08, maxval=0.5)
    stretch = jax.random.uniform(aspect_key, (batch, boxes, axes), minval=-0.5, maxval=0.5)
    stretch = math.log(0.3) * (stretch - stretch.mean(-1, keepdims=True))
    limit = jnp.array(shape)[None, None]
    sides = jnp.clip(jnp.round(limit * area ** (1 / axes) * jnp.exp(stretch)), 1, limit)
    low = jnp.floor(jax.random.uniform(place_key, sides.shape) * (limit - sides + 1))
    places = np.indices(shape).reshape(1, 1, axes, -1)
    # the distance from a box's middle: 0 in it, 1 just outside of the box, [b boxes n]
    middle, half = (low + (sides - 1) / 2)[..., None], (sides + 1)[..., None] / 2
    away = (jnp.abs(places - middle) / half).max(2)
    rank = jnp.arange(boxes, dtype=jnp.float32)[None, :, None] + away
    outside = boxes + jax.random.uniform(noise_key, (batch, 1, math.prod(shape)))
    return -jnp.where(away < 1, rank, outside).min(1)


def lattice(key: jax.Array, batch: int, shape: Sequence[int]) -> Float[Array, "b n"]:
    """Keep a regular lattice at a random shift: one of every four patches in 2-D at .75.

    This is the grid-wise sampling of He et al. 2021. For other ratios it is ordered dithering
    (Bayer 1973) on any number of axes, whose lattices fill up evenly.
    """
    axes, levels = len(shape), 3
    shift_key, noise_key = jax.random.split(key)
    shift = jax.random.randint(shift_key, (batch, axes, 1), 0, 2**levels)
    places = np.indices(shape).reshape(1, axes, -1) + shift  # [b axes n]
    scores = jnp.zeros((batch, math.prod(shape)), jnp.int32)
    for level in range(levels):  # the lowest bits of a place count most
        bits = jnp.concatenate([places >> level & 1, jnp.zeros_like(places[:, :1])], axis=1)
        for axis in range(axes):
            scores = 2 * scores + (bits[:, axis] ^ bits[:, axis + 1])
    return scores + jax.random.uniform(noise_key, scores.shape)


def stroke(
    key: jax.Array, batch: int, shape: Sequence[int], strokes: int = 32, points: int = 16
) -> Float[Array, "b n"]:
    """Mask free-form brush strokes one after another; the last one ends where the count is reached.

    The irregular holes of Yu et al. (arXiv 1806.03589) with an exact count and on any number of
    axes: a brush starts anywhere and walks at random, and is .05 to .15 of the grid's sides wide.
    What remains to be masked after all strokes is what lies nearest to them.
    """
    start_key, turn_key, width_key = jax.random.split(key, 3)
    start = jax.random.uniform(start_key, (batch, strokes, 1, len(shape)))
    heading = jax.random.normal(turn_key, (batch, strokes, points, len(shape))).cumsum(2)
    heading = heading / jnp.linalg.norm(heading, axis=-1, keepdims=True)
    path = start + 0.04 * heading.cumsum(2)  # in sides of the grid
    radius = jax.random.uniform(width_key, (batch, strokes, 1), minval=0.025, maxval=0.075)
    radius = jnp.maximum(radius, 0.5 / min(shape))  # at least a patch wide
    # A sum over the axes one by one is fused with the minimum: [b strokes points n] is never held.
    away = 0.0
    for axis, (x, side) in enumerate(zip(np.indices(shape), shape, strict=True)):
        x = (x.reshape(1, 1, 1, -1) + 0.5) / side
        away += ((x - path[..., axis, None]) / radius[..., None]) ** 2  # 1 at the brush's edge
    rank = jnp.arange(strokes * points, dtype=jnp.float32).reshape(1, strokes, points, 1)
    return -jnp.where(away < 1, rank + away, strokes * points + away).min((1, 2))


def importance(key: jax.Array, logits: Float[Array, "b n"]) -> Float[Array, "b n"]:
    """Draw the kept patches without replacement, each time in proportion to `exp(logits)`.

    This is the Gumbel-top-k trick (Kool et al., arXiv 1903.06059). Negative logits mask what
    matters.
    """
    return -(logits + jax.random.gumbel(key, logits.shape))


def pixels(masked: Bool[Array, "b *size"], patch: Sequence[int]) -> Float[Array, "b n"]:
    """Score a user's own mask: 1 for a patch with a masked pixel, 0 for the others.

    To mask at least these patches of every sample, keep `int((scores == 0).sum(-1).min())`.
    """
    return patches.patchify(masked[..., None], patch).any(-1).astype(jnp.float32)


def partition(
    key: jax.Array, batch: int, shape: Sequence[int], groups: int, keep: int
) -> Float[Array, "g b n"]:
    """Score `groups` masks that together mask each patch of a sample equally often.

    The patches are shared out at random among `groups` groups of equal size. If `keep` is the size
    of one group, each mask shows another group, and a patch is masked in all masks but one. If
    `keep` is the size of all groups but one, a patch is masked in exactly one mask.

    Raises:
      ValueError: the patches cannot be shared out equally, or `keep` is no multiple of a group.
    """
    n = math.prod(shape)
    size = n // groups
    if n % groups or keep % size or not 0 < keep < n:
        fits = [g for g in range(2, n + 1) if n % g == 0]
        raise ValueError(
            f"{n} patches in {groups} groups, {keep} of them kept, cannot be equal: use a number "
            f"of groups among {', '.join(map(str, fits))} and keep a multiple of n / groups"
        )
    place = _permutation(key, batch, n)
    shifts = size * jnp.arange(groups)[:, None, None]
    return ((place[None] - shifts) % n).astype(jnp.float32)


def _permutation(key: jax.Array, batch: int, n: int) -> Float[Array, "b n"]:
    """Draw noise without ties: the numbers below n, in another order for each sample."""
    return jnp.argsort(jax.random.uniform(key, (batch, n)), axis=-1).astype(jnp.float32)
