"""Masks: a score that says which patches to keep, then one argsort.

A strategy only says how much it wants to keep each patch (smaller = keep), as `[b, n]` scores of a
grid of any number of axes. `from_scores` sorts them and cuts at a static count, so every strategy
has the same shapes: a step is compiled once for all of them.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from mae_jax.models import patches


@struct.dataclass
class Mask:
    """Which of `n` patches each sample keeps, and which of the others it predicts.

    `hidden` is all of the others, or a part of them (`partial`).
    """

    keep: Int[Array, "b k"]
    hidden: Int[Array, "b m"]
    n: int = struct.field(pytree_node=False)


def keep_count(n: int, ratio: float, together: int = 1) -> int:
    """How many of `n` patches stay visible at this mask ratio.

    `int(n * (1 - ratio))` alone gives 0 for (10, .9) and 99 for (1000, .9): floats fall short.

    Args:
      together: patches that are hidden together, such as those of a tube; so many groups are hidden
        as the ratio allows (VideoMAE keeps 8 * 20 of 8 * 196 patches at .9).

    Raises:
      ValueError: no patch would be visible by the ratio's own meaning, or none would be hidden.
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
            f"mask ratio {ratio} hides none of {what}: use a smaller patch or a higher ratio"
        )
    return keep


def from_scores(scores: Float[Array, "b n"], keep: int) -> Mask:
    """Keep the `keep` patches with the smallest scores of each sample, hide the others."""
    order = jnp.argsort(scores, axis=-1)
    return Mask(keep=order[:, :keep], hidden=order[:, keep:], n=scores.shape[1])


def partial(mask: Mask, noise: Float[Array, "b m"], count: int) -> Mask:
    """Of the hidden patches of each sample, only the `count` with the smallest noise.

    The others are neither seen nor predicted: partial decoding of CrossMAE (arXiv 2401.14391). With
    uniform noise each hidden patch is equally likely, so the loss is the full one on average.
    """
    chosen = jnp.argsort(noise, axis=-1)[:, :count]
    return mask.replace(  # pyright: ignore[reportAttributeAccessIssue]
        hidden=jnp.take_along_axis(mask.hidden, chosen, axis=1)
    )


def hidden_map(mask: Mask) -> Float[Array, "b n"]:
    """1 where a patch is hidden, predicted or not, 0 where it is visible, in grid order."""
    samples = jnp.arange(len(mask.keep))[:, None]
    return jnp.ones((len(mask.keep), mask.n)).at[samples, mask.keep].set(0.0)


# --- strategies: key, number of samples, shape of the grid -> scores -----------------------------


def random(key: jax.Array, batch: int, shape: Sequence[int]) -> Float[Array, "b n"]:
    """Uniform noise, drawn for each sample: random masking as in He et al. 2021."""
    return jax.random.uniform(key, (batch, math.prod(shape)))


def along(
    key: jax.Array, batch: int, shape: Sequence[int], axes: Sequence[int]
) -> Float[Array, "b n"]:
    """Noise over some axes, the same along the others, so that what differs in these is together.

    Of clips `(t, h, w)`, axes (1, 2) are the tubes of VideoMAE (arXiv 2203.12602), which hide the
    same places in each frame, and axis 0 hides whole frames. Of spectrograms `(time, frequency)`,
    axis 0 hides times and axis 1 frequencies (AudioMAE, arXiv 2207.06405).
    """
    sides = [side if axis in axes else 1 for axis, side in enumerate(shape)]
    noise = _permutation(key, batch, math.prod(sides)).reshape(batch, *sides)
    return jnp.broadcast_to(noise, (batch, *shape)).reshape(batch, -1)


def joint(
    key: jax.Array, batch: int, shape: Sequence[int], size: Sequence[int]
) -> Float[Array, "b n"]:
    """Boxes of `size` patches, cut from the grid side by side, are hidden or kept together.

    Where the count asks for it one box of a sample is cut.
    """
    cells = [-(-side // length) for side, length in zip(shape, size, strict=True)]
    places = np.indices(shape).reshape(len(shape), -1) // np.array(size)[:, None]  # [axes n]
    noise = _permutation(key, batch, math.prod(cells))
    return noise[:, np.ravel_multi_index(tuple(places), cells)]


def block(key: jax.Array, batch: int, shape: Sequence[int], boxes: int = 64) -> Float[Array, "b n"]:
    """Large boxes are hidden one after another; the last one is shrunk around its centre.

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
    # 0 in the middle of a box, 1 just outside: [b boxes n]
    half = (sides + 1)[..., None] / 2
    away = jnp.abs(places - (low + (sides - 1) / 2)[..., None]) / half
    away = away.max(2)
    rank = jnp.arange(boxes, dtype=jnp.float32)[None, :, None] + away
    outside = boxes + jax.random.uniform(noise_key, (batch, 1, math.prod(shape)))
    return -jnp.where(away < 1, rank, outside).min(1)


def grid(key: jax.Array, batch: int, shape: Sequence[int]) -> Float[Array, "b n"]:
    """A regular lattice is kept, shifted at random: one of every four patches in 2-D at .75.

    That is the grid-wise sampling of He et al. 2021; for other shares it is ordered dithering
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


def importance(key: jax.Array, logits: Float[Array, "b n"]) -> Float[Array, "b n"]:
    """The kept patches are drawn without replacement, each time in proportion to `exp(logits)`.

    By the Gumbel-top-k trick (Kool et al., arXiv 1903.06059). Negative logits hide what matters.
    """
    return -(logits + jax.random.gumbel(key, logits.shape))


def pixels(hidden: Bool[Array, "b *size"], patch: Sequence[int]) -> Float[Array, "b n"]:
    """A user's own mask: 1 for a patch with a hidden pixel, 0 for the others.

    To hide at least those of every sample, keep `int((scores == 0).sum(-1).min())`.
    """
    return patches.patchify(hidden[..., None], patch).any(-1).astype(jnp.float32)


def partition(
    key: jax.Array, batch: int, shape: Sequence[int], groups: int, keep: int
) -> Float[Array, "g b n"]:
    """Scores of `groups` masks that hide each patch of a sample equally often between them.

    The patches are shared out at random in `groups` groups of one size. With `keep` as large as one
    group each mask keeps another group, and a patch is hidden in all masks but one; with `keep` as
    large as all but one, in exactly one.

    Raises:
      ValueError: the patches, or those to keep, are no whole number of equal groups.
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
    """Noise without ties: the numbers below n in another order for each sample."""
    return jnp.argsort(jax.random.uniform(key, (batch, n)), axis=-1).astype(jnp.float32)
