"""Inputs to patches and back, on any number of grid axes."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped


def grid_of(size: Sequence[int], patch: Sequence[int]) -> tuple[int, ...]:
    """Return the number of patches along each axis.

    Raises:
      ValueError: `patch` has a different number of axes than `size`, or does not divide it.
    """
    size, patch = tuple(size), tuple(patch)
    if len(size) != len(patch):
        raise ValueError(f"size {size} and patch {patch} have different numbers of axes")
    if any(s < 1 or p < 1 or s % p for s, p in zip(size, patch, strict=True)):
        below = tuple(s // p * p for s, p in zip(size, patch, strict=True))
        above = tuple(-(-s // p) * p for s, p in zip(size, patch, strict=True))
        ways = [str(s) for s in dict.fromkeys((below, above, patch)) if min(s) > 0][:2]
        raise ValueError(f"size {size} is not a multiple of patch {patch}: use {' or '.join(ways)}")
    return tuple(s // p for s, p in zip(size, patch, strict=True))


def patchify(x: Shaped[Array, "b *size c"], patch: Sequence[int]) -> Shaped[Array, "b n d"]:
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
    x: Shaped[Array, "b n d"], patch: Sequence[int], size: Sequence[int]
) -> Shaped[Array, "b *size c"]:
    """Invert `patchify` for inputs of `size`."""
    grid = grid_of(size, patch)
    axes = len(grid)
    x = x.reshape(x.shape[0], *grid, *patch, -1)  # [b g1 g2 ... p1 p2 ... c]
    pairs = [axis for i in range(axes) for axis in (1 + i, 1 + axes + i)]
    return x.transpose([0, *pairs, 2 * axes + 1]).reshape(x.shape[0], *size, -1)


def take(x: Shaped[Array, "b n d"], index: Int[Array, "b k"]) -> Shaped[Array, "b k d"]:
    """Gather the tokens at `index` of each sample."""
    return jnp.take_along_axis(x, index[..., None], axis=1)
