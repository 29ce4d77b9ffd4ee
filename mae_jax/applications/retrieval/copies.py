"""Copies of pictures as people make them: retrieval should find their originals.

The kinds are those of copy detection: a part of the picture, a JPEG of quality 20, the mirror
image, a rotation by 10 degrees, and a caption over the picture.
"""

import functools
import io
import string
import zlib
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont, ImageOps

from mae_jax.data import sources
from mae_jax.data.image_io import decode

Copy = Callable[[Image.Image, np.random.Generator], Image.Image]
_SHARE = 0.7  # of each side that a crop keeps: half of the area
_QUALITY, _DEGREES = 20, 10
_CAPTION = 1 / 5  # of the height


def crop(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return a part at a random place, with .7 of each side."""
    width, height = (max(1, round(_SHARE * side)) for side in picture.size)
    left = int(rng.integers(picture.width - width, endpoint=True))
    top = int(rng.integers(picture.height - height, endpoint=True))
    return picture.crop((left, top, left + width, top + height))


def jpeg(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the picture after a JPEG file of quality 20."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_QUALITY)
    return Image.open(file)


def flip(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the mirror image: left is right."""
    return ImageOps.mirror(picture)


def rotation(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the picture turned by 10 degrees to a random side, with black corners."""
    degrees = _DEGREES if rng.random() < 0.5 else -_DEGREES
    return picture.rotate(degrees, Image.Resampling.BICUBIC)


def overlay(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the picture with a caption: random letters on a strip over a fifth of its height."""
    page, height = picture.copy(), max(1, round(_CAPTION * picture.height))
    top = int(rng.integers(picture.height - height, endpoint=True))
    color = tuple(rng.integers(256, size=len(picture.getbands())).tolist())
    letters = "".join(rng.choice(list(string.ascii_uppercase + " "), 24))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(max(1, round(0.8 * height)))
    draw.rectangle((0, top, page.width, top + height - 1), fill=color)
    ink = tuple(255 * (value < 128) for value in color)
    draw.text((page.width / 2, top + height / 2), letters, fill=ink, anchor="mm", font=font)
    return page


COPIES: dict[str, Copy] = {
    "crop": crop,
    "jpeg": jpeg,
    "flip": flip,
    "rotation": rotation,
    "overlay": overlay,
}


def make(kind: str, pixels: UInt8[np.ndarray, "h w c"], *seed: int) -> UInt8[np.ndarray, "y x c"]:
    """Return a copy of a picture in gray or color; the same seed makes the same copy.

    Raises:
      ValueError: the kind is none of `COPIES`, or the picture does not have 1 or 3 channels.
    """
    channels = pixels.shape[-1]
    _check(kind, channels)
    rng = np.random.default_rng([*seed, zlib.crc32(kind.encode())])
    picture = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    copied = np.asarray(COPIES[kind](picture, rng))
    return copied.reshape(*copied.shape[:2], channels)


def of_source(source: sources.Source, kind: str, channels: int, seed: int = 0) -> sources.Source:
    """Return the copies of all pictures of a source, in its order and with its labels.

    Raises:
      ValueError: as `make`.
    """
    _check(kind, channels)
    return sources.Examples(
        len(source),
        functools.partial(_load, source, kind, channels, seed),
        source.classes,
        names=[source.name(i) for i in range(len(source))],
        labels=sources.labels_of(source),
        label_kind=sources.label_kind(source),
    )


def _check(kind: str, channels: int) -> None:
    if kind not in COPIES:
        raise ValueError(f"copy {kind!r} is none of {', '.join(COPIES)}")
    if channels not in (1, 3):
        raise ValueError(f"copies are of pictures with 1 or 3 channels, not {channels}")


def _load(source: sources.Source, kind: str, channels: int, seed: int, i: int) -> dict:
    example = source[i]
    pixels = decode.decode(example["image"], channels)
    return {**example, "image": make(kind, pixels, seed, i)}
