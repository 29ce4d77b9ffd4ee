"""Pictures as uint8 arrays [h, w, c]: one way to decode all formats within bounded memory."""

import contextlib
import functools
import io
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.image_io import jpeg

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by the number of channels
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF")
_STRIP = 2**20  # pixels that are converted at a time
_MAX_HELD = 2**28  # pixels of all pictures that Pillow holds at once
_memory, _held = threading.Condition(), 0
_TURNS = (  # the names in Pillow of the EXIF orientations from 2 on
    "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90".split()
)


def decode(image: bytes | np.ndarray, channels: int) -> np.ndarray:
    """Decode encoded bytes, or an array [h, w] or [h, w, c], to uint8 [h, w, channels].

    Of a file the first frame is taken, upright by its EXIF orientation. Color is converted to gray
    (luma) and gray to color; transparent pixels become white unless `channels` is 4. More than
    eight bits are scaled, not cut: 0..65535 to 0..255, floats from [0, 1], and values outside of
    these ranges from their own minimum..maximum. Arrays may have any number of channels if
    `channels` is the same; 1, 3 and 4 channels are converted like files.

    Memory is bounded whatever a file claims: pictures of more than 179 megapixels (twice Pillow's
    `MAX_IMAGE_PIXELS`) are refused, and threads wait for each other rather than hold more than 268
    megapixels together (beside JPEGs of up to 67). Formats that run other programs, such as EPS,
    are not opened.

    Raises:
      Unreadable: the picture cannot be read, or its channels do not fit.
    """
    if isinstance(image, np.ndarray):
        if image.dtype.kind != "f" and image.dtype not in (np.bool, np.uint8, np.uint16):
            raise Unreadable(f"{image.dtype} values are no picture: give uint8, uint16 or float")
        pixels = _as_pixels(image)
        if pixels.shape[-1] != channels and not {pixels.shape[-1], channels} <= MODES.keys():
            raise Unreadable(f"an array of shape {image.shape} does not have {channels} channels")
        return convert_channels(pixels, channels)
    if channels not in MODES:
        raise Unreadable(f"picture files give 1, 3 or 4 channels, not {channels}: use arrays")
    header = jpeg.read_header(image)
    pixels = jpeg.decode(image, header) if header else None
    if pixels is not None:
        return convert_channels(pixels, channels)
    try:
        with Image.open(io.BytesIO(image), formats=_formats()) as picture:
            if jpeg.is_endless(image, picture.height * picture.width):
                raise Unreadable("not a sane JPEG: it goes over its pixels too often")
            return _decode_in_turn(picture, channels)
    except Unreadable:
        raise
    except UnidentifiedImageError as error:
        raise Unreadable("not a picture in a known format") from error
    except Exception as error:  # Pillow's plugins raise nearly every type on damaged files
        raise Unreadable(f"not a readable picture: {error}") from error


def convert_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Convert uint8 [h, w, 1, 3 or 4] to `channels` channels."""
    if pixels.shape[-1] == channels:
        return pixels
    plane = pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels
    return _convert(Image.fromarray(plane), channels)


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _decode_in_turn(picture: Image.Image, channels: int) -> np.ndarray:
    """Decode with Pillow once the pictures that other threads hold leave enough room."""
    count = picture.height * picture.width
    with _memory:
        # The wait has a limit, because a caller that keeps large pictures would wait for itself.
        while _held and _held + count > _MAX_HELD and _memory.wait(timeout=60):
            pass
        _hold(count)
    with contextlib.ExitStack() as stack:
        stack.callback(_hold, -count)
        pixels = _from_pillow(picture, channels)
        if count > jpeg.MANY_PIXELS:  # its pixels count until they are dropped, after the crop
            weakref.finalize(pixels, stack.pop_all().close)
        return pixels


def _hold(pixels: int) -> None:
    global _held
    with _memory:
        _held += pixels
        _memory.notify_all()


def _from_pillow(picture: Image.Image, channels: int) -> np.ndarray:
    picture.load()  # some formats keep the EXIF block behind the pixels
    # ImageOps.exif_transpose writes the EXIF block again, and fails on unusual blocks.
    orientation = picture.getexif().get(jpeg.ORIENTATION, 1)
    if picture.mode[0] in "IF":  # Pillow would saturate 16-bit, 32-bit and float values
        picture = Image.fromarray(_as_pixels(_to_array(picture))[..., 0])
    if orientation in range(2, 9):
        picture = picture.transpose(Image.Transpose[_TURNS[int(orientation) - 2]])
    return _to_array(picture, lambda strip: _convert(strip, channels))


def _to_array(
    picture: Image.Image, convert: Callable[[Image.Image], Any] = lambda strip: strip
) -> np.ndarray:
    """Convert a picture to an array in strips, so that memory holds its pixels only once."""
    width, height = picture.size
    rows = max(1, _STRIP // width)
    if rows >= height:
        return np.asarray(convert(picture))
    corner = np.asarray(convert(picture.crop((0, 0, 1, 1))))
    pixels = np.empty((height, width, *corner.shape[2:]), corner.dtype)
    for top in range(0, height, rows):
        strip = picture.crop((0, top, width, min(height, top + rows)))
        pixels[top : top + rows] = np.asarray(convert(strip))
    return pixels


def _convert(picture: Image.Image, channels: int) -> np.ndarray:
    if channels != 4 and picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture).convert("RGB")
    pixels = np.asarray(picture.convert(MODES[channels]))
    return pixels.reshape(*pixels.shape[:2], channels)


def _as_pixels(values: np.ndarray) -> np.ndarray:
    """Scale numbers [h, w] or [h, w, c] to uint8 [h, w, c]."""
    if values.ndim not in (2, 3) or values.size == 0:
        raise Unreadable(f"an array of shape {values.shape} is no [h, w] or [h, w, c] picture")
    if values.ndim == 2:
        values = values[..., None]
    if values.dtype == np.uint8:
        return values
    top = 1 if values.dtype.kind in "bf" else 65535
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
