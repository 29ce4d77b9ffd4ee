"""Arrays in files, of which parts can be read, with what a file says of their values and axes."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped

from mae_jax.data.bad_examples import Unreadable

Part = tuple[slice, ...]  # a slice for each axis of an array, without steps
_MOST_BYTES = 2**30  # of what a file is read by at once


class Frame(NamedTuple):
    """Where the sides of an array lie in the world."""

    affine: Float[np.ndarray, "k+1 k+1"]  # from indices along the k sides to world coordinates
    crs: str = ""  # the coordinate reference system, as WKT
    corner: bool = (
        True  # whole indices are corners of pixels, as in GDAL; else centres, as in NIfTI
    )

    def strided(self, steps: Sequence[int]) -> "Frame":
        """Return the frame of the mean values of blocks of `steps` pixels."""
        affine = self.affine @ np.diag([*map(float, steps), 1.0])
        if not self.corner:  # the centre of the first block
            affine[:-1, -1] += self.affine[:-1, :-1] @ ((np.array(steps) - 1) / 2)
        return self._replace(affine=affine)


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of numbers in a file, or in memory; picklable, and safe to read from threads.

    Args:
      shape: the axes in the order of `read`, channels last if the file tells them from sides.
      dtype: of the values that `read` returns: those that the file means, with its slope and
        intercept applied.
      read: returns a part. It opens the file by itself, and reads little more than the part.
      sides: how many axes are sides, and not channels; None if the file does not tell.
      nodata: the values that stand for missing ones, as the file says.
      valid: returns for a part where its values exist, as a mask band of the file says.
      spacing: the length of a step along each side, such as millimetres or metres.
      frame: where the sides lie in the world.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Part], Shaped[np.ndarray, "*part"]]
    sides: int | None = None
    nodata: tuple[float, ...] = ()
    valid: Callable[[Part], Bool[np.ndarray, "*part"]] | None = None
    spacing: tuple[float, ...] | None = None
    frame: Frame | None = None

    @property
    def size(self) -> int:
        """The number of values."""
        return math.prod(self.shape)

    @property
    def whole(self) -> Part:
        """The part that is the whole array."""
        return tuple(slice(0, side) for side in self.shape)


def of(values: np.ndarray, sides: int | None = None) -> Array:
    """Return an array in memory."""
    return Array(values.shape, values.dtype, functools.partial(_take, values), sides)


def _take(values: np.ndarray, part: Part) -> np.ndarray:
    return values[part]


def item(array: Array, i: int) -> Array:
    """Return item `i` of the first axis, of an array whose file says nothing of its axes."""
    valid = array.valid and functools.partial(_read_item, array.valid, i)
    read = functools.partial(_read_item, array.read, i)
    return Array(array.shape[1:], array.dtype, read, nodata=array.nodata, valid=valid)


def _read_item(read: Callable[[Part], np.ndarray], i: int, part: Part) -> np.ndarray:
    return read((slice(i, i + 1), *part))[0]


def check(shape: Sequence[int], dtype: np.dtype) -> None:
    """Raise `Unreadable` unless an array has real numbers, and at least one of them."""
    if dtype.kind not in "biuf":
        raise Unreadable(f"an array of {dtype} holds no real numbers: save it as float32")
    if 0 in shape:
        raise Unreadable(f"an array of shape {tuple(shape)} is empty: remove it")


def check_bytes(noun: str, shape: Sequence[int], dtype: np.dtype, way_out: str) -> None:
    """Raise `Unreadable` if `noun` of an array takes more than 1 GiB of memory at once."""
    if (count := math.prod(shape) * dtype.itemsize) > _MOST_BYTES:
        raise Unreadable(
            f"{noun} of shape {tuple(shape)} takes {count} bytes at once, above 1 GiB: {way_out}"
        )


def lengths(part: Part, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of a part of an array."""
    cuts = zip(part, shape, strict=True)
    return tuple(len(range(*cut.indices(side))) for cut, side in cuts)
