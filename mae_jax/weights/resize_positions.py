"""Tables of positions, resized to another grid."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float


def resize(
    positions: Float[Array | np.ndarray, "s d"],
    old: Sequence[int],
    new: Sequence[int],
    cls_tokens: int = 1,
) -> np.ndarray:
    """Resize a table to another grid, `[t, d]`, by cubic interpolation along each axis.

    The rows of the class tokens, which come first, stay as they are. In 2-D the result equals that
    of PyTorch's `interpolate(mode="bicubic")`, which the reference uses.

    Raises:
      ValueError: the table does not belong to the grid `old`.
    """
    table = np.asarray(positions)
    if len(table) != cls_tokens + math.prod(old):
        raise ValueError(
            f"a table of {len(table)} positions is not one of {cls_tokens} class token(s) and a "
            f"grid {old}"
        )
    cls, places = table[:cls_tokens], table[cls_tokens:].reshape(*old, -1)
    for axis, sides in enumerate(zip(old, new, strict=True)):
        places = np.moveaxis(np.tensordot(_cubic(*sides), places, (1, axis)), 0, axis)
    return np.concatenate([cls, places.reshape(-1, table.shape[1])]).astype(table.dtype)


def resize_named(
    name: str, table: np.ndarray, old: Sequence[int], new: Sequence[int], cls_tokens: int = 1
) -> np.ndarray:
    """Resize the parameter `positions`, `positions_time` or `positions_space` of `name`."""
    if name.endswith("_time"):  # this table has no class tokens
        return resize(table, old[:1], new[:1], cls_tokens=0)
    first = 1 if name.endswith("_space") else 0
    return resize(table, old[first:], new[first:], cls_tokens)


def _cubic(old: int, new: int) -> np.ndarray:
    """Return the weights `[new, old]` of cubic convolution with a = -.75 and repeated ends."""
    centers = (np.arange(new) + 0.5) * old / new - 0.5
    weights, a = np.zeros((new, old)), -0.75
    for tap in range(-1, 3):
        source = np.floor(centers).astype(int) + tap
        x = np.abs(centers - source)
        near = ((a + 2) * x - (a + 3)) * x**2 + 1
        far = a * (((x - 5) * x + 8) * x - 4)
        np.add.at(weights, (np.arange(new), source.clip(0, old - 1)), np.where(x <= 1, near, far))
    return weights
