"""Numbers that are stored packed, as GDAL and the conventions of netCDF (CF) do."""

import base64
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mae_jax.data.bad_examples import Unreadable

# Attributes that name stored numbers which stand for missing ones.
_NODATA = ("_FillValue", "missing_value", "nodata")


class Packing(NamedTuple):
    """How the numbers in a file give the real ones: `stored * scale + offset`.

    Plain numbers keep their type. Others become float32, or float64 if they are stored in more than
    16 bits, and NaN where they are missing.
    """

    stored: np.dtype
    scale: np.ndarray | float = 1.0  # a number, or one for each channel
    offset: np.ndarray | float = 0.0
    nodata: tuple[float, ...] = ()  # stored numbers that stand for missing ones

    @property
    def is_plain(self) -> bool:
        return bool(np.all(self.scale == 1) and np.all(self.offset == 0))

    @property
    def dtype(self) -> np.dtype:
        """The type of the real numbers."""
        return self.stored if self.is_plain else np.result_type(self.stored, np.float32)

    @property
    def missing(self) -> tuple[float, ...]:
        """The real numbers that stand for missing ones."""
        return self.nodata if self.is_plain else (np.nan,) * bool(self.nodata)

    def of_channels(self, part: slice) -> "Packing":
        """Return the packing of a part of the channels, each of which has a scale of its own."""
        scale, offset = np.atleast_1d(self.scale), np.atleast_1d(self.offset)
        return self._replace(scale=scale[part], offset=offset[part])

    def unpack(self, stored: np.ndarray) -> np.ndarray:
        """Return the real numbers of stored ones [..., c]."""
        stored = np.asarray(stored).view(self.stored)
        if self.is_plain:
            return stored
        with np.errstate(over="ignore", invalid="ignore"):  # readers of values refuse infinity
            real = (stored * np.float64(self.scale) + self.offset).astype(self.dtype)
        for number in self.nodata:
            real[stored == number] = np.nan
        return real


def from_attributes(attributes: Mapping[str, Any], dtype: np.dtype) -> Packing:
    """Return the packing that the attributes of an array of `dtype` say, as in CF.

    They are `scale_factor` and `add_offset`; `_FillValue`, `missing_value` and `nodata`, which may
    be lists; and `_Unsigned`, by which whole numbers are to be read as unsigned ones.

    Raises:
      Unreadable: one of them is no number.
    """
    stored = dtype
    if str(attributes.get("_Unsigned", "")).lower() == "true" and dtype.kind == "i":
        stored = np.dtype(f"{dtype.byteorder}u{dtype.itemsize}")
    try:
        scale, offset = (
            float(np.asarray(attributes.get(key, default)).item())
            for key, default in (("scale_factor", 1), ("add_offset", 0))
        )
        given = [attributes[key] for key in _NODATA if key in attributes]
        numbers = [_number(x) for value in given for x in np.ravel(value).tolist()]
    except (TypeError, ValueError, struct.error) as error:
        raise Unreadable(
            f"its attributes scale_factor, add_offset, {', '.join(_NODATA)} are no numbers "
            f"({error}): correct them"
        ) from error
    if stored != dtype:  # -1 is 255
        numbers = [x % 2 ** (8 * dtype.itemsize) for x in numbers]
    return Packing(stored, scale, offset, tuple(dict.fromkeys(numbers)))


def _number(x: Any) -> float:
    if isinstance(x, bytes):
        x = x.decode()
    if not isinstance(x, str):
        return x if isinstance(x, int) else float(x)
    try:
        return float(x)  # JSON has no NaN
    except ValueError:  # xarray writes base64 into stores of format 3
        return struct.unpack("<d", base64.b64decode(x, validate=True))[0]
