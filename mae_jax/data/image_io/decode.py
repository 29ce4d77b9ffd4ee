"""Pictures as uint8 arrays [h, w, c]: one way to decode them, two ways to crop them."""

import contextlib
import functools
import io
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from mae_jax.data.unreadable import Unreadable

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_ORIENTATION = 0x0112  # the EXIF tag
_MANY_PIXELS = 2**26  # from here on Pillow looks whether it is a decompression bomb
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF")
_SCANNED = 2**33  # pixels of a JPEG times the passes over them: a quarter of a minute
_STRIP = 2**20  # pixels that are converted at a time
_ROOM = 2**28  # pixels of all pictures that Pillow holds at a time
_room, _taken = threading.Condition(), 0
# blocks that malloc takes from the system and gives back: smaller ones stay with each thread
Image.core.set_block_size(2**26)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(image: bytes | np.ndarray, channels: int) -> np.ndarray:
    """Encoded bytes, or an array [h, w] or [h, w, c], to uint8 [h, w, channels].

    From files: the first frame, upright by its EXIF orientation. Colour and gray turn into each
    other (luma); transparent pixels show white unless `channels` is 4. More than eight bits are
    scaled, not cut: 0..65535 to 0..255, floats from [0, 1], and values outside of these ranges from
    their own minimum..maximum. Arrays may have any number of channels if `channels` is the same;
    1, 3 and 4 channels turn into each other like files.

    Memory is bounded, whatever a file says of itself: pictures of more than 179 megapixels (twice
    Pillow's `MAX_IMAGE_PIXELS`) are refused, and threads wait for each other rather than hold more
    than 268 megapixels together (beside JPEGs of up to 67). The largest take 1.6 GB, or 3.1 in WebP
    and JPEG 2000; sixteen threads that read nothing else 2.0 GB, or 2.8.
    Formats that run other programs, such as EPS, are not opened.

    Raises:
      Unreadable: not a readable picture, or channels that do not fit.
    """
    if isinstance(image, np.ndarray):
        if image.dtype.kind != "f" and image.dtype not in (np.bool, np.uint8, np.uint16):
            raise Unreadable(
                f"an array of {image.dtype} is no picture: give uint8, uint16 or float"
            )
        pixels = _as_pixels(image)
        if pixels.shape[-1] != channels and not {pixels.shape[-1], channels} <= _MODES.keys():
            raise Unreadable(f"an array of shape {image.shape} has not {channels} channels")
        return _with_channels(pixels, channels)
    if channels not in _MODES:
        raise Unreadable(f"picture files give 1, 3 or 4 channels, not {channels}: use arrays")
    if (header := _plain_jpeg(image)) and (pixels := _decode_jpeg(image, header)) is not None:
        return _with_channels(pixels, channels)
    try:
        with Image.open(io.BytesIO(image), formats=_formats()) as picture:
            if _endless(image, picture.height * picture.width):
                raise Unreadable("not a sane JPEG: it goes over its pixels too often")
            return _in_turn(picture, channels)
    except Unreadable:
        raise
    except UnidentifiedImageError as error:
        raise Unreadable("not a picture in a known format") from error
    except Exception as error:  # the plugins raise nearly every type on damaged files
        raise Unreadable(f"not a readable picture: {error}") from error


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _in_turn(picture: Image.Image, channels: int) -> np.ndarray:
    count = picture.height * picture.width
    with _room:
        # not for ever: a caller may keep large pictures, and would wait for himself
        while _taken and _taken + count > _ROOM and _room.wait(timeout=60):
            pass
        _take(count)
    with contextlib.ExitStack() as stack:
        stack.callback(_take, -count)
        pixels = _from_pillow(picture, channels)
        if count > _MANY_PIXELS:  # its turn ends when the pixels are dropped, after the crop
            weakref.finalize(pixels, stack.pop_all().close)
        return pixels


def _take(pixels: int) -> None:
    global _taken
    with _room:
        _taken += pixels
        _room.notify_all()


def _from_pillow(picture: Image.Image, channels: int) -> np.ndarray:
    picture.load()  # first: some formats keep the EXIF block behind the pixels
    upright = picture
    if picture.mode[0] in "IF":  # 16-bit, 32-bit and float: Pillow would saturate them
        upright = Image.fromarray(_as_pixels(_array(picture))[..., 0])
    upright = _upright(upright, picture)
    return _array(upright, lambda strip: _convert(strip, channels))


def _array(
    picture: Image.Image, convert: Callable[[Image.Image], Any] = lambda strip: strip
) -> np.ndarray:
    """An array of a converted picture. In one go, its pixels would be in memory several times."""
    width, height = picture.size
    rows = max(1, _STRIP // width)
    if rows >= height:
        return np.asarray(convert(picture))
    strips = ((y, min(height, y + rows)) for y in range(0, height, rows))
    pixels = None
    for top, bottom in strips:
        strip = np.asarray(convert(picture.crop((0, top, width, bottom))))
        if pixels is None:
            pixels = np.empty((height, *strip.shape[1:]), strip.dtype)
        pixels[top:bottom] = strip
    assert pixels is not None
    return pixels


def _endless(data: bytes, pixels: int) -> bool:
    """Whether a JPEG goes over its pixels so often that it is meant to stop us."""
    return data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") * pixels > _SCANNED


def _plain_jpeg(data: bytes) -> tuple[int, int, str] | None:
    """Height, width and colour space of an upright JPEG in colour or gray; None: all others."""
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
        height, width = int(height), int(width)
        if colors not in ("YCbCr", "RGB", "Gray") or height * width > _MANY_PIXELS:
            return None
        if _endless(data, height * width):
            return None
        if 0xE1 in _markers(data):  # EXIF or XMP: Pillow knows where they keep the orientation
            with Image.open(io.BytesIO(data), formats=["JPEG"]) as picture:
                if picture.getexif().get(_ORIENTATION, 1) in _UPRIGHT:
                    return None
    except Exception:  # the plugins raise nearly every type: `decode` says what is wrong
        return None
    return height, width, "GRAY" if colors == "Gray" else "RGB"


def _markers(data: bytes) -> set[int]:
    """Of the segments of a JPEG before its pixels."""
    found, at = set(), 2
    while (marker := data[at + 1]) != 0xDA:
        if data[at] != 0xFF or marker == 0xFF:
            raise ValueError("unusual bytes between the segments")
        found.add(marker)
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return found


def _decode_jpeg(
    data: bytes, header: tuple[int, int, str], reduction: int = 1
) -> np.ndarray | None:
    """A plain JPEG at 1/1, 1/2, 1/4 or 1/8 of its size, rounded up; None: leave it to Pillow.

    Whole pictures have the same bits as Pillow's, which needs half as long again. Reduced ones are
    made in the frequencies of each block of 8 x 8 pixels. Damage is left to Pillow too: it says
    what is wrong, or mends it.
    """
    height, width = (-(-side // reduction) for side in header[:2])
    try:
        pixels = simplejpeg.decode_jpeg(data, header[2], min_height=height, min_width=width)
    except ValueError:
        return None
    return pixels if pixels.shape[:2] == (height, width) else None


def _with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """uint8 [h, w, 1, 3 or 4] to `channels`."""
    if pixels.shape[-1] == channels:
        return pixels
    return _convert(
        Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels), channels
    )


def _upright(picture: Image.Image, header: Image.Image) -> Image.Image:
    # not ImageOps.exif_transpose: it writes the EXIF block again, and fails on odd ones
    turn = _UPRIGHT.get(header.getexif().get(_ORIENTATION, 1))
    return picture if turn is None else picture.transpose(turn)


def _convert(picture: Image.Image, channels: int) -> np.ndarray:
    if channels != 4 and picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture).convert("RGB")
    pixels = np.asarray(picture.convert(_MODES[channels]))
    return pixels.reshape(*pixels.shape[:2], channels)


def _as_pixels(values: np.ndarray) -> np.ndarray:
    """Any number [h, w] or [h, w, c] to uint8 [h, w, c]."""
    if values.ndim not in (2, 3) or values.size == 0:
        raise Unreadable(f"an array of shape {values.shape} is no [h, w] or [h, w, c] picture")
    if values.ndim == 2:
        values = values[..., None]
    if values.dtype == np.uint8:
        return values
    top = {"b": 1, "f": 1}.get(values.dtype.kind, 65535)
    rows = max(1, _STRIP // values[0].size)
    strips = [slice(y, y + rows) for y in range(0, len(values), rows)]

    def finite(strip: slice) -> np.ndarray:
        return np.nan_to_num(values[strip].astype(np.float64), posinf=top, neginf=0)

    low = min(finite(strip).min() for strip in strips)
    high = max(finite(strip).max() for strip in strips)
    if low >= 0 and high <= top:
        low, high = 0, top
    pixels = np.empty(values.shape, np.uint8)
    for strip in strips:
        pixels[strip] = np.rint((finite(strip) - low) * (255 / (high - low or 1)))
    return pixels


def _reduction(height: int, width: int, size: tuple[int, int]) -> int:
    """How many times smaller a JPEG can be decoded so that such a part is no less than `size`."""
    return next(k for k in (8, 4, 2, 1) if k == 1 or k <= min(height / size[0], width / size[1]))
