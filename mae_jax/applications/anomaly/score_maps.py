"""Maps of scores, and the one score of a map. Arrays are numpy's or jax's; NaN is missing."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float

TOP_SHARE = 0.01  # of the patches, whose mean is the score of an input


def local_mean(x: Float[Any, "..."], axes: Sequence[int]) -> Float[Any, "..."]:
    """Return the mean over each cell and its neighbours along `axes`, 3x3 for two axes.

    Neighbours that are missing or beyond the end do not count; a missing cell stays missing.
    """
    xp = x.__array_namespace__()
    exists = x == x  # False where it is NaN
    total, count = xp.where(exists, x, 0), xp.astype(exists, x.dtype)
    for axis in axes:
        total, count = _sum_of_three(total, axis), _sum_of_three(count, axis)
    return xp.where(exists, total / xp.maximum(count, 1), xp.nan)


def _sum_of_three(x: Any, axis: int) -> Any:
    xp = x.__array_namespace__()
    before = (slice(None),) * axis
    edge = xp.zeros_like(x[(*before, slice(0, 1))])
    after = xp.concat([x[(*before, slice(1, None))], edge], axis=axis)
    return xp.concat([edge, x[(*before, slice(None, -1))]], axis=axis) + x + after


def score(maps: Float[Any, "b *cells"]) -> Float[Any, "b"]:
    """Return the mean of the highest `TOP_SHARE` of each map, at least of one cell.

    It is a robust maximum: one cell of noise hardly raises that of a large map. It is NaN where all
    cells are missing.
    """
    xp = maps.__array_namespace__()
    flat = xp.reshape(maps, (maps.shape[0], -1))
    exists = flat == flat
    lowest_first = xp.sort(xp.where(exists, -flat, xp.inf), axis=-1)
    cells = xp.sum(xp.astype(exists, maps.dtype), axis=-1, keepdims=True)
    count = xp.maximum(xp.ceil(TOP_SHARE * cells), 1)
    is_top = xp.arange(flat.shape[1], dtype=maps.dtype)[None] < count
    total = xp.sum(xp.where(is_top, -lowest_first, 0), axis=-1)
    return xp.where(cells[:, 0] > 0, total / count[:, 0], xp.nan)
