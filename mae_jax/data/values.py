"""The values of arrays as a network sees them: bands, missing values and one scale for all files.

The keys are those of the section `Values` of a config. Nothing here looks at one file to decide how
its numbers are scaled.
"""

import functools
import logging
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped

from mae_jax.data import arrays, notices
from mae_jax.data.arrays import Array
from mae_jax.data.bad_examples import Unreadable

_EXACT = 2**24  # the whole numbers up to which float32 holds each
_log = logging.getLogger(__name__)


class View(NamedTuple):
    """A part of an array as a network sees it, and where its values lie."""

    values: Shaped[np.ndarray, "*size c"]
    spacing: Float[np.ndarray, "sides"] | None = None  # from one value to the next along each side
    times: Float[np.ndarray, "length"] | None = None  # of the values of a signal, from 0 on


class Values(NamedTuple):
    """The chosen bands of an array, [*sides, c]."""

    array: Array
    sides: tuple[int, ...]
    channel_axis: int | None  # of the array as it is stored
    bands: tuple[int, ...]
    has_mask: bool  # the last band says which values exist
    data: Mapping[str, Any]  # the section of a config, with `range` measured

    def raw(self, part: Sequence[slice]) -> tuple[Shaped[np.ndarray, "*part c"], Any]:
        """Return the numbers of a part as they are stored, and where they exist.

        The second is Bool [*part, c or 1], or None if all values exist.

        Raises:
          Unreadable: values are missing, and `data.nodata` is None.
        """
        x = self._bands(np.asarray(self.array.read(self._stored(part))))
        nodata = self.data.get("nodata")
        present: dict[str, np.ndarray] = {}  # by what tells of missing values: False where it does
        if x.dtype.kind == "f":
            present["NaN"] = x == x
        for number in self.array.nodata + ((nodata,) if isinstance(nodata, int | float) else ()):
            if (equal := _equal(x, number)) is not None:
                present[f"the number {number:g}"] = ~equal
        if self.has_mask:
            mask = self.array.read(self._stored(part, last=True))
            present["the last band"] = np.moveaxis(mask, self.channel_axis, -1) != 0  # pyright: ignore
        if self.array.valid is not None:
            mask = self.array.valid(self._stored(part))
            is_whole = mask.ndim == len(self.array.shape)
            present["the mask of the file"] = self._bands(mask) if is_whole else mask[..., None]
        missing = {name: exists for name, exists in present.items() if not exists.all()}
        if missing and nodata is None:
            raise Unreadable(
                f"the array has missing values ({' and '.join(missing)}): set data.nodata to the "
                "number that stands for them, to 'nan' or to 'file'"
            )
        return x, functools.reduce(operator.and_, missing.values()) if missing else None

    def read(self, part: Sequence[slice]) -> Shaped[np.ndarray, "*part c"]:
        """Return a part as uint8, or as float32 in the terms of `data.range`; NaN is missing.

        Raises:
          Unreadable: as `raw`, or float32 cannot hold the numbers.
        """
        return scaled(*self.raw(part), self.data)

    def view(
        self, x: Shaped[np.ndarray, "*size c"], starts: Any, covered: Sequence[int]
    ) -> np.ndarray | View:
        """Return values with the place of each, if positions depend on it.

        Args:
          x: the values of a part of the array, resized.
          starts, covered: the first step of the part along each side, and the number of its steps.

        Raises:
          Unreadable: `data.reference_spacing` is set, and nothing says what the spacing is, or the
            times do not increase.
        """
        if not self.data.get("reference_spacing"):
            return x
        if self.data.get("time_band") is not None:
            return View(x, times=self._times(int(starts[0]), covered[0], len(x)))
        spacing = self.array.spacing or self.data.get("spacing")
        if not spacing or len(spacing) != len(covered):
            raise Unreadable(
                f"the file says no spacing of {len(covered)} sides, which positions by "
                "data.reference_spacing need: set data.spacing"
            )
        return View(x, (np.multiply(spacing, covered) / x.shape[:-1]).astype(np.float32))

    def _times(self, start: int, covered: int, count: int) -> Float[np.ndarray, "count"]:
        """Return the times of `count` values that cover so many steps of a signal."""
        stop, band = min(start + covered, self.sides[0]), self.data["time_band"]
        part = self._replace(bands=(band,))._stored([slice(start, stop)])
        times = np.asarray(self.array.read(part), np.float64).reshape(-1)
        if not (np.diff(times) > 0).all():  # as NaN is not
            raise Unreadable(
                f"the times in band {band} do not increase: sort them, or set data.time_band=None"
            )
        before, step = (
            (covered - len(times)) // 2,
            np.median(np.diff(times)) if len(times) > 1 else 1,
        )
        places = (np.arange(count) + 0.5) * (covered / count) - 0.5 - before
        beyond = places - np.clip(places, 0, len(times) - 1)  # where the signal is continued
        known = np.interp(places, np.arange(len(times)), times)
        return (known + beyond * step - times[0]).astype(np.float32)

    def _stored(self, part: Sequence[slice], last: bool = False) -> tuple[slice, ...]:
        """Return the part of the stored array that holds the bands, or its last one."""
        if self.channel_axis is None:
            return tuple(part)
        count = self.array.shape[self.channel_axis]
        low, high = (count - 1, count) if last else (min(self.bands), max(self.bands) + 1)
        part = list(part)
        part.insert(self.channel_axis % len(self.array.shape), slice(low, high))
        return tuple(part)

    def _bands(self, x: np.ndarray) -> np.ndarray:
        if self.channel_axis is None:
            return x[..., None]
        x, low = np.moveaxis(x, self.channel_axis, -1), min(self.bands)
        chosen = [band - low for band in self.bands]
        return x if chosen == list(range(x.shape[-1])) else x[..., chosen]


def of(array: Array, sides: int, data: Mapping[str, Any]) -> Values:
    """Choose the bands of an array with a number of sides, and perhaps an axis of channels.

    Raises:
      Unreadable: the array has other axes or bands, or no real numbers, or is empty.
    """
    shape = array.shape
    arrays.check(shape, array.dtype)
    if len(shape) not in (sides, sides + 1) or array.sides not in (None, sides):
        raise Unreadable(
            f"an array of shape {shape} has {array.sides or len(shape)} axes, not {sides} and one "
            "for channels: save it like that, or choose a size of another length"
        )
    has_mask, time_band = data.get("nodata") == "mask", data.get("time_band")
    if has_mask and array.valid is not None:
        raise Unreadable("the file has a mask of its own: use data.nodata='file' instead of 'mask'")
    axis = _channel_axis(array, sides, data) if len(shape) > sides else None
    count = 1 if axis is None else shape[axis]
    if time_band is not None and (axis is None or time_band >= count):
        raise Unreadable(f"an array of shape {shape} has no band {time_band} for data.time_band")
    bands = tuple(data.get("bands") or [i for i in range(count - has_mask) if i != time_band])
    wrong, channels = f"an array of shape {shape}", data["channels"]
    if axis is None and has_mask:
        raise Unreadable(f"{wrong} has no last band for data.nodata='mask': use another one")
    if max(bands, default=0) >= count - has_mask:
        raise Unreadable(f"{wrong} has no band {max(bands)}: choose data.bands below {count}")
    if len(bands) != channels and axis is None:
        raise Unreadable(f"{wrong} has no axis for {channels} channels: set data.channels=1")
    if len(bands) != channels and data.get("bands"):
        raise Unreadable(
            f"data.bands = {bands} are not {channels} channels: choose {channels} bands"
        )
    if len(bands) != channels:
        choice = f" or data.bands={tuple(range(channels))}" if channels < count else ""
        raise Unreadable(
            f"{wrong} has {count} channels, not {channels}: set data.channels={len(bands)}{choice}"
        )
    lengths = tuple(n for i, n in enumerate(shape) if axis is None or i != axis % len(shape))
    return Values(array, lengths, axis, bands, has_mask, data)


def _channel_axis(array: Array, sides: int, data: Mapping[str, Any]) -> int:
    """Return which end of the axes the channels are at."""
    shape, choice = array.shape, data.get("channel_axis", "auto")
    if array.sides is not None or choice == "last":
        return -1
    if choice == "first":
        return 0
    like_first = shape[0] < min(shape[1:])
    if bands := data.get("bands"):
        first = like_first and max(bands) < shape[0]
        last = not first
    else:
        others = (data.get("nodata") == "mask") + (data.get("time_band") is not None)
        first, last = (shape[axis] == data["channels"] + others for axis in (0, -1))
    if last and (like_first or first) and not bands:
        raise Unreadable(
            f"an array of shape {shape} may have its channels first or last: set "
            "data.channel_axis='first' or 'last'"
        )
    if first:
        text = "arrays have their %d channels first, and are turned"
        notices.once(_log.info, text, shape[0])
        return 0
    if like_first and not last:
        raise Unreadable(
            f"an array of shape {shape} has its channels first, and {shape[0]} of them: set "
            f"data.channels={shape[0]}, or choose data.bands"
        )
    return -1


def _equal(x: np.ndarray, number: float) -> np.ndarray | None:
    """Return where values of an array are a number, or None if its type cannot hold that."""
    if number != number:
        return None
    if x.dtype.kind in "iub":
        limits = np.iinfo(np.uint8 if x.dtype == np.bool else x.dtype)
        is_whole = math.isfinite(number) and number == int(number)
        return x == int(number) if is_whole and limits.min <= number <= limits.max else None
    with np.errstate(over="ignore"):
        return x == x.dtype.type(number)


def scaled(
    x: Shaped[np.ndarray, "*part c"], exists: Bool[np.ndarray, "..."] | None, data: Mapping
) -> Shaped[np.ndarray, "*part c"]:
    """Return stored numbers as uint8, or as float32 in the terms of `data.range`; NaN is missing.

    uint8 stays if 0 to 255 become 0 to 1 and nothing can be missing; the devices divide it by 255.
    The range "numbers" is "auto" once it is known that the data are no bytes.

    Raises:
      Unreadable: a number that exists is infinite, or float32 cannot hold it.
      ValueError: the range is "data" and was not measured.
    """
    scale = data.get("range", "auto")
    if scale == "data":
        raise ValueError("range = 'data' was not measured: give the numbers (low, high)")
    is_bytes = scale == "auto" or not isinstance(scale, str) and tuple(scale) == (0, 255)
    if is_bytes and x.dtype == np.uint8 and data.get("nodata") is None:
        return np.array(x)
    if exists is not None:
        x = np.where(exists, x, 0)
    if not np.isfinite(x).all():
        raise Unreadable("the array has infinite values: replace them")
    limits = _limits(x.dtype, scale)
    if limits is None and x.dtype.kind in "iu" and x.dtype.itemsize > 2:
        greatest = max(int(x.max()), -int(x.min()))
        if greatest > _EXACT:
            raise Unreadable(f"numbers up to {greatest} lose digits as float32: set data.range")
    with np.errstate(over="ignore"):
        if limits is None:
            y = x.astype(np.float32)
        elif x.dtype == np.uint8 and limits == (0, 255):
            y = x.astype(np.float32) / np.float32(255)
        else:
            low, high = limits
            y = ((x.astype(np.float64) - low) / (high - low)).astype(np.float32)
    if not np.isfinite(y).all():
        raise Unreadable("the array has values beyond float32: set data.range")
    if data.get("clip") and limits:
        y = y.clip(0, 1)
    return y if exists is None else np.where(exists, y, np.float32(np.nan))


def unscaled(
    x: Float[np.ndarray, "*part"], dtype: np.dtype, data: Mapping[str, Any]
) -> Float[np.ndarray, "*part"]:
    """Invert `scaled`: return values in the terms of `data.range` as stored numbers, float64.

    Values of bytes are in [0, 1]. Numbers beyond the range that `data.clip` replaced are lost.
    """
    low, high = _limits(dtype, data.get("range", "auto")) or (0, 1)
    return low + (high - low) * x.astype(np.float64)


def as_type(x: Float[np.ndarray, "*part"], dtype: np.dtype) -> Shaped[np.ndarray, "*part"]:
    """Return numbers as another type; whole numbers are rounded, and clipped to what it holds."""
    if dtype.kind not in "iu":
        return x.astype(dtype)
    least, greatest = np.iinfo(dtype).min, np.iinfo(dtype).max
    greatest -= greatest >> 53  # to the greatest number that float64 holds
    return np.rint(x).clip(least, greatest).astype(dtype)


def _limits(dtype: np.dtype, scale: Any) -> tuple[float, float] | None:
    """Return the numbers that become 0 and 1, or None if all stay as they are."""
    if not isinstance(scale, str):
        return scale
    if dtype == np.uint8 and scale == "auto" or scale == "dtype" and dtype.kind in "iu":
        return np.iinfo(dtype).min, np.iinfo(dtype).max
    return None
