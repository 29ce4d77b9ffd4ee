"""Pictures as arrays [h, w, c]: one way to decode all formats within bounded memory."""

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
from mae_jax.data.image_io import high_bit_depth, jpeg

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
    (luma) and gray to color; transparent pixels become white unless `channels` is 4. Arrays may
    have any number of channels if `channels` is the same; gray and color are converted like files.

    Memory is bounded whatever a file claims: pictures of more than 179 megapixels (twice Pillow's
    `MAX_IMAGE_PIXELS`) are refused, and threads wait for each other rather than hold more than 268
    megapixels together (beside JPEGs of up to 67). Formats that run other programs, such as EPS,
    are not opened.

    Raises:
      Unreadable: the picture cannot be read, has more than 8 bits, or its channels do not fit.
    """
    if isinstance(image, np.ndarray):
        if image.dtype not in (np.bool, np.uint8):
            raise Unreadable(f"{image.dtype} values are no picture of 8 bits: set data.range")
        pixels = bands(image)
        if image.dtype == np.bool:
            pixels = pixels * np.uint8(255)
        if pixels.shape[-1] != channels and not {pixels.shape[-1], channels} <= {1, 3}:
            raise Unreadable(
                f"an array of shape {image.shape} does not have {channels} channels: set "
                "data.channels to those it has, or data.bands to some of them"
            )
        return convert_channels(pixels, channels)
    if channels not in MODES:
        raise Unreadable(f"picture files give 1, 3 or 4 channels, not {channels}: use arrays")
    header = jpeg.read_header(image)
    pixels = jpeg.decode(image, header) if header else None
    if pixels is not None:
        return convert_channels(pixels, channels)
    if high_bit_depth.detect(image):
        raise Unreadable(
            "the picture has more than 8 bits, or other bands than colors: set data.range, or "
            "data.channels or data.bands to those it has"
        )
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


def bands(image: bytes | np.ndarray) -> np.ndarray:
    """Return all bands of encoded bytes or of an array, [h, w, c], of the type that they have.

    Raises:
      Unreadable: the picture cannot be read, or the array is none.
    """
    if isinstance(image, np.ndarray):
        if image.ndim not in (2, 3) or image.size == 0:
            raise Unreadable(f"an array of shape {image.shape} is no [h, w] or [h, w, c] picture")
        return image[..., None] if image.ndim == 2 else image
    if high_bit_depth.detect(image):
        return stored_bands(image)
    try:
        with Image.open(io.BytesIO(image), formats=_formats()) as picture:
            gray = picture.mode in ("1", "L", "I;16")
            channels = 4 if picture.has_transparency_data else 1 if gray else 3
    except Exception:  # `decode` has the reason
        channels = 3
    return decode(image, channels)


def stored_bands(image: bytes) -> np.ndarray:
    """Return all bands [h, w, c] of encoded bytes that `high_bit_depth.detect`s, upright.

    Raises:
      Unreadable: the picture cannot be read.
    """
    return _upright(high_bit_depth.decode(image), _orientation(image))


def _orientation(image: bytes) -> int:
    """Return the EXIF orientation of a file, or 1 if it has none."""
    with contextlib.suppress(Exception), Image.open(io.BytesIO(image)) as picture:
        return int(picture.getexif().get(jpeg.ORIENTATION, 1))
    return 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return pixels [h, w, c] turned as Pillow turns pictures of an EXIF orientation."""
    if orientation in (5, 7):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7):
        pixels = pixels[::-1]
    return np.rot90(pixels, {6: 3, 8: 1}.get(orientation, 0))


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
        raise Unreadable(f"the picture has values of Pillow's mode {picture.mode}: use arrays")
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
