"""Pictures that are restored: what a model sees of them, and its predictions in their own form.

A picture may be an array with any number of sides, such as a volume.
"""

import contextlib
import dataclasses
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image

from mae_jax.data import array_io, arrays, values
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.image_io import decode, encode, high_bit_depth
from mae_jax.data.values import Values
from mae_jax.evaluators.tiled_inputs import TiledInputs

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow converts colors to gray


class Picture(NamedTuple):
    """A picture in memory, with the type, the shape and the channels of its file."""

    values: Shaped[np.ndarray, "..."]  # [*sides] or [*sides, c], or with the channels first
    array: arrays.Array  # what the file says of them
    profile: bytes = b""  # an ICC profile

    def write(self, path: str, values: Shaped[np.ndarray, "..."]) -> None:
        """Write values in the place of the picture's own, see `encode.write`."""
        nodata = self.array.nodata[0] if self.array.nodata else None
        encode.write(path, values, self.array.frame, nodata, self.profile)


class Shown(NamedTuple):
    """The values that a model sees of a picture."""

    opened: Values
    dtype: np.dtype  # of the picture
    is_gray: bool = False  # the model sees its gray as colors
    is_opaque: bool = False  # its last channel is an alpha without transparency, which is not shown

    def restored(self, x: Float[np.ndarray, "*n c"]) -> Shaped[np.ndarray, "*n k"]:
        """Return values in the terms of `data.range` as all channels of the picture, in its type.

        Whole numbers are rounded and clipped.
        """
        if self.is_gray:
            x = x @ _LUMA[:, None]
        x = np.take(x, np.argsort(self.opened.bands), -1) if not self.is_gray else x
        x = values.as_type(values.unscaled(x, self.dtype, self.opened.data), self.dtype)
        if self.is_opaque:
            alpha = np.full_like(x[..., :1], np.iinfo(self.dtype).max)
            x = np.concatenate([x, alpha], axis=-1)
        return x

    def channels_last(self, x: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "*sides k"]:
        """Return a view of an array with the shape of the picture."""
        if x.ndim == len(self.opened.sides):
            return x[..., None]
        axis = self.opened.channel_axis
        return x if axis is None else np.moveaxis(x, axis, -1)


def read(image: Any, data: Mapping[str, Any]) -> Picture:
    """Return the picture in a file, in encoded bytes or in an array.

    A picture with an EXIF orientation is turned upright. Arrays and files of arrays may have any
    type of real numbers.

    Args:
      data: the section of a config.

    Raises:
      Unreadable: the file cannot be read, or has a mask of its own, or the numbers are no values.
      OSError: the file does not exist.
    """
    sides = 2 if data["modality"] == "image" else None
    if isinstance(image, os.PathLike):
        image = os.fspath(image)
    if isinstance(image, np.ndarray):
        picture = Picture(image, arrays.of(image, sides))
    elif isinstance(image, str) and (sides is None or array_io.holds_array(image)):
        array = array_io.open_array(image)
        if array.valid is not None:
            raise Unreadable(
                f"{image!r} has a mask or an alpha channel of its own, which would be lost: save "
                "it without"
            )
        picture = Picture(np.asarray(array.read(array.whole)), array, _profile(image))
    else:
        content = image if isinstance(image, bytes) else Path(image).read_bytes()
        whole = decode.bands(content)
        whole = whole[..., 0] if whole.shape[-1] == 1 else whole
        says = high_bit_depth.nodata(content) if high_bit_depth.detect(content) else ()
        array = dataclasses.replace(arrays.of(whole, sides=2), nodata=says)
        picture = Picture(whole, array, _profile(io.BytesIO(content)))
    arrays.check(picture.values.shape, picture.values.dtype)
    if picture.values.dtype.kind == "b":
        raise Unreadable("an array of bool has no values between its two: save it as uint8")
    return picture


def show(
    picture: Picture, inputs: TiledInputs, stored: Shaped[np.ndarray, "..."] | None = None
) -> Shown:
    """Return what a model sees of a picture.

    Gray of 8 bits becomes color, and an alpha channel without transparency is left out, if the
    model has three channels.

    Args:
      stored: numbers in the place of the picture's own.

    Raises:
      Unreadable: the model does not see or predict all channels of the picture, or as
        `TiledInputs.open`.
    """
    data, dtype = inputs.transform.data, picture.values.dtype
    stored = picture.values if stored is None else stored
    sides, channels, is_gray, is_opaque = len(data["size"]), data["channels"], False, False
    count = stored.shape[-1] if stored.ndim > sides else 1
    if data.get("nodata") == "mask":
        raise Unreadable(
            "data.nodata='mask' says in a band which values exist, which is no longer true of a "
            "restored picture: use a number, 'nan' or 'file'"
        )
    if data["modality"] == "image" and not data.get("bands") and count != channels:
        is_opaque = (count, channels) == (4, 3) and dtype.kind == "u"
        is_opaque = is_opaque and bool((stored[..., 3] == np.iinfo(dtype).max).all())
        is_gray = (count, channels) == (1, 3) and dtype == np.uint8
        if is_opaque:
            stored = stored[..., :3]
        elif is_gray:
            stored = stored if stored.ndim > sides else stored[..., None]
            stored = np.broadcast_to(stored, (*stored.shape[:-1], channels))
        else:
            what = "transparency" if count in (2, 4) and dtype.kind == "u" else "other channels"
            raise Unreadable(
                f"the picture has {count} channels and the model {channels}, so that it does not "
                f"predict all of them: give a picture without {what}, or another model"
            )
    about = dict(nodata=picture.array.nodata, spacing=picture.array.spacing)
    array = dataclasses.replace(arrays.of(stored, picture.array.sides), **about)
    opened = inputs.open(array)
    count = 1 if opened.channel_axis is None else array.shape[opened.channel_axis]
    if sorted(opened.bands) != list(range(count)):
        raise Unreadable(
            f"the model sees only the bands {opened.bands} of {count}: give a picture of these, as "
            "the others would not be restored"
        )
    return Shown(opened, dtype, is_gray, is_opaque)


def _profile(file: Any) -> bytes:
    """Return the ICC profile of a picture file, or b""."""
    with contextlib.suppress(Exception), Image.open(file) as picture:  # Pillow raises many types
        return picture.info.get("icc_profile") or b""
    return b""
