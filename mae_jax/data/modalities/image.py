"""Pictures: random crops and central crops of encoded bytes, files or arrays.

Pictures of 8 bits stay uint8, up to the device. Others, and those of configs with a `range`,
`nodata` or `bands`, are float32 and resized linearly; see `values`.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mae_jax.data import array_io, arrays, values
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.image_io import crop, decode, high_bit_depth, resize

Picture = bytes | str | np.ndarray | arrays.Array  # encoded, the path of a file, or an array


def train_views(
    image: Picture, data: Mapping[str, Any], rng: np.random.Generator
) -> Iterator[np.ndarray | values.View]:
    """Yield `crop.random_crops` of a picture, uint8 or float32 [*size, c].

    Raises:
      Unreadable: the picture cannot be read, or does not fit `data`.
    """
    image = _content(image)
    size, scale, ratio = (tuple(data[key]) for key in ("size", "crop_scale", "crop_ratio"))
    if _is_plain(data) and not isinstance(image, arrays.Array) and not _has_high_depth(image):
        channels, count = data["channels"], data["repeats"]
        yield from crop.random_crops(image, channels, size, scale, ratio, rng, count)
        return
    opened = open_values(image, data)
    height, width = opened.sides
    for _ in range(data["repeats"]):
        box = crop.random_box(height, width, size, scale, ratio, rng)
        yield _resized(opened, box, size)


def eval_views(
    image: Picture, data: Mapping[str, Any], clips: int = 1, crops: int = 1
) -> Iterator[np.ndarray | values.View]:
    """Yield the `crop.center_crop` of a picture, uint8 or float32 [*size, c]."""
    opened, size = open_values(image, data), tuple(data["size"])
    if opened.array.dtype == np.uint8 and _is_plain(data):
        whole = opened.read([slice(0, side) for side in opened.sides])
        yield crop.center_crop(whole, size, data["center_crop"])
    else:
        height, width = opened.sides
        yield _resized(opened, crop.center_box(height, width, size, data["center_crop"]), size)


def open_values(image: Picture, data: Mapping[str, Any]) -> values.Values:
    """Return the values of a picture, with its colors converted if it has 8 bits and no bands.

    Raises:
      Unreadable: the picture cannot be read, does not fit `data`, or has more than 8 bits while
        `data.range` does not say what they mean.
    """
    image = _content(image)
    if not isinstance(image, arrays.Array):
        image = _opened(image, data)
    if data.get("range", "auto") == "auto" and image.dtype != np.uint8:
        raise Unreadable(
            f"the picture has values of {image.dtype}, and not of 8 bits: set data.range to "
            "'dtype', or to the numbers (low, high) that mean 0 and 1 in all of them"
        )
    return values.of(image, 2, data)


def _opened(image: bytes | np.ndarray, data: Mapping[str, Any]) -> arrays.Array:
    """Return a picture as an array, with its colors converted if it has 8 bits and no bands."""
    if isinstance(image, bytes) and high_bit_depth.detect(image):
        whole, nodata = decode.stored_bands(image), high_bit_depth.nodata(image)
        return dataclasses.replace(arrays.of(whole, sides=2), nodata=nodata)
    is_color = not data.get("bands") and (isinstance(image, bytes) or has_8_bits(image))
    whole = decode.decode(image, data["channels"]) if is_color else decode.bands(image)
    return arrays.of(whole, sides=2)


def has_8_bits(image: Picture) -> bool:
    """Return whether the values of a picture are bytes."""
    image = _content(image)
    if isinstance(image, bytes):
        return not high_bit_depth.detect(image) or decode.stored_bands(image).dtype == np.uint8
    is_mask = image.dtype == np.bool and isinstance(image, np.ndarray)  # becomes 0 and 255
    return image.dtype == np.uint8 or is_mask


def _has_high_depth(image: bytes | np.ndarray) -> bool:
    return isinstance(image, bytes) and high_bit_depth.detect(image)


def _content(image: Picture) -> bytes | np.ndarray | arrays.Array:
    """Return the bytes of a file, or the array in it if its ending is that of arrays."""
    if not isinstance(image, str):
        return image
    return array_io.open_array(image) if array_io.holds_array(image) else Path(image).read_bytes()


def _is_plain(data: Mapping[str, Any]) -> bool:
    others = data.get("nodata") is not None or data.get("bands") or data.get("reference_spacing")
    return data.get("range", "auto") == "auto" and not others


def _resized(
    opened: values.Values, box: tuple[int, int, int, int], size: tuple[int, int]
) -> np.ndarray | values.View:
    """Return the box y, x, height, width of a picture, resized."""
    y, x, height, width = box
    part = opened.read([slice(y, y + height), slice(x, x + width)])
    part = resize.bicubic(part, size) if part.dtype == np.uint8 else resize.linear(part, size)
    return opened.view(part, (y, x), (height, width))
