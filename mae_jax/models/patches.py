"""Images to patches and back, on any number of grid axes."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Groups = Sequence[Sequence[int]]  # channels that a token holds, such as ((0, 1, 2), (3, 4))


def grid_of(size: Sequence[int], patch: Sequence[int], groups: Groups = ()) -> tuple[int, ...]:
    """Number of patches along each axis, behind that of channel groups if there are any.

    Raises:
      ValueError: `patch` has another number of axes than `size`, or does not divide it.
    """
    size, patch = tuple(size), tuple(patch)
    if len(size) != len(patch):
        raise ValueError(f"size {size} and patch {patch} have different numbers of axes")
    if any(s < 1 or p < 1 or s % p for s, p in zip(size, patch, strict=True)):
        below = tuple(s // p * p for s, p in zip(size, patch, strict=True))
        above = tuple(-(-s // p) * p for s, p in zip(size, patch, strict=True))
        ways = [str(s) for s in dict.fromkeys((below, above, patch)) if min(s) > 0][:2]
        ways = " or ".join(ways)
        raise ValueError(f"size {size} is not a multiple of patch {patch}: use {ways}")
    grid = tuple(s // p for s, p in zip(size, patch, strict=True))
    return (len(groups), *grid) if groups else grid


def patchify(x: Float[Array, "b *size c"], patch: Sequence[int]) -> Float[Array, "b n d"]:
    """Cut `x` into patches: row-major over the grid, each flattened (axis 1, axis 2, ..., channel).

    For an image that is `[b, h, w, c] -> [b, (h/p)*(w/p), p*p*c]`, as in He et al. 2021.
    """
    grid = grid_of(x.shape[1:-1], patch)
    axes = len(grid)
    split = [side for pair in zip(grid, patch, strict=True) for side in pair]
    x = x.reshape(x.shape[0], *split, x.shape[-1])  # [b g1 p1 g2 p2 ... c]
    order = [0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1]
    return x.transpose(order).reshape(x.shape[0], math.prod(grid), -1)


def unpatchify(
    x: Float[Array, "b n d"], patch: Sequence[int], size: Sequence[int]
) -> Float[Array, "b *size c"]:
    """The inverse of `patchify` for pictures of `size`."""
    grid = grid_of(size, patch)
    axes = len(grid)
    x = x.reshape(x.shape[0], *grid, *patch, -1)  # [b g1 g2 ... p1 p2 ... c]
    pairs = [axis for i in range(axes) for axis in (1 + i, 1 + axes + i)]
    return x.transpose([0, *pairs, 2 * axes + 1]).reshape(x.shape[0], *size, -1)


def weights_of(groups: Groups, patch: Sequence[int], channels: int) -> np.ndarray:
    """1 where a value of a patch is of the group, `[groups, d]` float32; all ones without groups.

    Raises:
      ValueError: a channel that is in none of the groups or in several, or that does not exist.
    """
    groups = [list(group) for group in groups] or [list(range(channels))]
    if sorted(sum(groups, [])) != list(range(channels)):
        raise ValueError(
            f"channel groups {groups} must hold each of the {channels} channels 0 to "
            f"{channels - 1} once"
        )
    weights = np.zeros((len(groups), channels), np.float32)
    for row, group in zip(weights, groups, strict=True):
        row[group] = 1
    return np.tile(weights, math.prod(patch))


def split_channels(
    x: Float[Array, "b n d"], weights: Float[np.ndarray, "g d"]
) -> Float[Array, "b g*n d"]:
    """A token for each channel group of a patch: its own values, and zero for the others.

    One matrix over such tokens is a matrix for each group: the grouping of SatMAE
    (arXiv 2207.08051).
    """
    if len(weights) == 1:
        return x
    b, n, d = x.shape
    return (x[:, None] * weights[None, :, None].astype(x.dtype)).reshape(b, len(weights) * n, d)


def join_channels(
    x: Float[Array, "b g*n d"], weights: Float[np.ndarray, "g d"]
) -> Float[Array, "b n d"]:
    """The inverse of `split_channels`; of each token only the values of its group count."""
    b, n, d = x.shape
    x = x.reshape(b, len(weights), n // len(weights), d)
    return (x * weights[None, :, None].astype(x.dtype)).sum(1)


Weights = Float[Array, "b n d"] | float  # which values count, 0 or 1


def mean(x: Float[Array, "b n d"], weights: Weights = 1.0) -> Float[Array, "b n"]:
    """Mean of the values of each patch that count."""
    weights = jnp.broadcast_to(weights, x.shape)
    return (x * weights).sum(-1) / weights.sum(-1)


def statistics(
    x: Float[Array, "b n d"], weights: Weights = 1.0
) -> tuple[Float[Array, "b n 1"], Float[Array, "b n 1"]]:
    """Mean of each patch and `sqrt(variance + 1e-6)`, with the unbiased variance (d - 1)."""
    center = mean(x, weights)[..., None]
    weights = jnp.broadcast_to(weights, x.shape)
    square = (jnp.square(x - center) * weights).sum(-1, keepdims=True)
    return center, jnp.sqrt(square / (weights.sum(-1, keepdims=True) - 1) + 1e-6)


def normalize(x: Float[Array, "b n d"], weights: Weights = 1.0) -> Float[Array, "b n d"]:
    """Each patch with zero mean and unit variance: the `norm_pix` target of He et al. 2021."""
    center, std = statistics(x, weights)
    return (x - center) / std


def take(x: Float[Array, "b n d"], index: jax.Array) -> Float[Array, "b k d"]:
    """Of each sample, the tokens at `index` `[b, k]`."""
    return jnp.take_along_axis(x, index[..., None], axis=1)
