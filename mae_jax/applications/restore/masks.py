"""The masks of users: which pixels of a picture are to be filled."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped

from mae_jax.data import array_io
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.image_io import decode

_log = logging.getLogger(__name__)


def read(mask: Any, data: Mapping[str, Any]) -> Bool[np.ndarray, "*sides"]:
    """Return where a mask is not 0, given a picture or an array file, encoded bytes or an array.

    Several channels must be equal. Values between 0 and the greatest one, such as those of soft
    edges, count as masked, and that is told.

    Args:
      data: the section of a config.

    Raises:
      Unreadable: the file cannot be read; its channels differ; or it has transparency, NaN, or gray
        in a JPEG, whose compression would add pixels to the mask.
      OSError: the file does not exist.
    """
    if isinstance(mask, os.PathLike):
        mask = os.fspath(mask)
    content = b""
    if isinstance(mask, np.ndarray):
        values = mask
    elif isinstance(mask, str) and (data["modality"] != "image" or array_io.holds_array(mask)):
        array = array_io.open_array(mask)
        if array.valid is not None:
            raise Unreadable("the mask has a mask or an alpha channel of its own: save one channel")
        values = np.asarray(array.read(array.whole))
    else:
        content = mask if isinstance(mask, bytes) else Path(mask).read_bytes()
        values = decode.bands(content)
    values = _one_channel(values, len(data["size"]))
    if values.dtype.kind not in "biu" and not np.isfinite(values).all():
        raise Unreadable("the mask has values that are not finite: use 0 and 1")
    between = np.count_nonzero((values != 0) & (values != values.max()))
    if between and content.startswith(b"\xff\xd8"):
        raise Unreadable(
            "the mask is a JPEG with gray pixels, and which of them the compression has added is "
            "unknown: save the mask as PNG"
        )
    if between:
        text = "the mask has %d values other than 0 and %s: all but 0 are filled"
        _log.warning(text, between, values.max())
    return values != 0


def _one_channel(values: Shaped[np.ndarray, "..."], sides: int) -> Shaped[np.ndarray, "*sides"]:
    if values.ndim == sides + 1:
        if values.shape[-1] == 4 and values.dtype.kind == "u":
            if (values[..., 3] != np.iinfo(values.dtype).max).any():
                raise Unreadable(
                    "the mask has transparent pixels, and whether these or the others are to be "
                    "filled is unknown: save it without an alpha channel"
                )
            values = values[..., :3]
        if (values != values[..., :1]).any():
            raise Unreadable(
                f"the mask has {values.shape[-1]} channels that differ, and which of its colors "
                "are to be filled is unknown: save it in black and white"
            )
        values = values[..., 0]
    if values.ndim != sides or not values.size:
        raise Unreadable(f"a mask of shape {values.shape} is no mask of {sides} sides")
    return values


def check(masked: Bool[np.ndarray, "..."], sides: tuple[int, ...]) -> None:
    """Raise ValueError unless a mask fits a picture, and masks some but not all of it."""
    if masked.shape != tuple(sides):
        raise ValueError(
            f"the mask is of size {masked.shape} and the picture of {tuple(sides)}: make a mask of "
            "the same size"
        )
    if not masked.any():
        raise ValueError("the mask is 0 everywhere: set it to 1 or white where pixels are missing")
    if masked.all():
        raise ValueError("the mask masks all pixels: leave some, from which others are predicted")
