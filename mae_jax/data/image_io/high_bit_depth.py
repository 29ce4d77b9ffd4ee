"""Pictures of more than 8 bits, of floats, or of other bands than colors: as they are stored.

Pillow opens many of them and silently drops bits or bands.
"""

import io
import logging
import re
from typing import Any

import cv2
import numpy as np
from PIL import Image

from mae_jax.data import bad_examples, notices
from mae_jax.data.array_io import tiff
from mae_jax.data.bad_examples import Unreadable

_log = logging.getLogger(__name__)
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_METADATA, _NODATA = 42112, 42113  # GDAL's tags
_MAX_BYTES = 2**31  # of a decoded picture
_COLORS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}  # gray, RGB, palette, CMYK, YCbCr: their bands
_SIZ = b"\xff\x4f\xff\x51"  # the first markers of a JPEG 2000 code stream


def detect(data: bytes) -> bool:
    """Return whether an encoded picture is one of this module; False for all unknown bytes.

    Say once of TIFF files that other pages than the first are not read.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data[24:25] == b"\x10"
    if data.startswith(_TIFF):
        return _detect_tiff(data)
    if match := re.match(rb"P[2356]\s(?:\s*#[^\n]*\n)*\s*\d+\s+\d+\s+(\d+)\s", data[:1024]):
        return int(match[1]) > 255
    start = data.find(_SIZ, 0, 1024)
    if start >= 0 and len(data) > start + 42:
        bands, bits = int.from_bytes(data[start + 40 : start + 42]), (data[start + 42] & 0x7F) + 1
        return bits > 8 or bands in (2, 4) and b"cdef" not in data[:start]  # which says alpha
    return data.startswith((b"Pf", b"PF"))


def decode(data: bytes) -> np.ndarray:
    """Return the pixels of such a picture, [h, w, c] of its own type, without its orientation.

    Raises:
      Unreadable: the file is damaged, compressed by something unknown, or too large.
    """
    try:
        pixels = _tiff(data) if data.startswith(_TIFF) else _other(data)
    except Unreadable:
        raise
    except Exception as error:  # tifffile and Pillow raise nearly every type on damaged files
        raise Unreadable(f"not a readable picture: {bad_examples.reason(error)}") from error
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _detect_tiff(data: bytes) -> bool:
    import tifffile  # the import takes a moment

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page: Any = file.pages[0]
            _tell_of_pages(file)
            bits, extra = page.bitspersample, tuple(page.extrasamples)
            colors = page.samplesperpixel - len(extra)
            plain = colors == _COLORS.get(page.photometric) and page.sampleformat == 1
            # 1 and 2 are transparency; others are bands of another meaning, or of none.
            is_color = plain and bits <= 8 and extra in ((), (1,), (2,))
            return not is_color or _NODATA in page.tags or _refused(file) != ""
    except Exception:  # `decode` has the reason
        return False


def _tell_of_pages(file: Any) -> None:
    has_others = len(file.pages) > 1 and not getattr(file.pages[1], "is_reduced", False)
    if has_others or file.series[0].size > file.pages[0].size:  # ImageJ describes many by one
        text = "of TIFF files with several pages only the first is read: use arrays: for stacks"
        notices.once(_log.warning, text)


def nodata(data: bytes) -> tuple[float, ...]:
    """Return the numbers that a TIFF calls missing, as GDAL writes them; () for other files."""
    if not data.startswith(_TIFF):
        return ()
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page: Any = file.pages[0]
        text = str(page.tags[_NODATA].value) if _NODATA in page.tags else ""
    try:
        return (float(text.strip("\0 ")),) if text else ()
    except ValueError as error:
        raise Unreadable(f"the TIFF calls {text!r} missing, which is no number") from error


def _refused(file: Any) -> str:
    """Return what a TIFF says of its values that only readers of GeoTIFF apply, or ""."""
    says = file.pages[0].tags.get(_METADATA)
    if says is not None and re.search('role="(scale|offset)"', str(says.value)):
        return "a scale or an offset"
    is_mask = lambda page: bool(getattr(page, "subfiletype", 0) & 4)
    return "a mask" if any(map(is_mask, file.pages[1:])) else ""


def _tiff(data: bytes) -> np.ndarray:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        if says := _refused(file):
            raise Unreadable(f"the TIFF has {says} of its values: read it by geotiff: or arrays:")
        page: Any = file.pages[0]
        _check_size(page.size * (page.dtype.itemsize if page.dtype else 1))
        try:
            pixels = page.asarray()
        except ValueError as error:
            if "imagecodecs" not in str(error) or page.samplesperpixel > 4:
                raise
            return _by_opencv(data)  # it knows more compressions
        if page.photometric == 0:
            tiff.tell_of_white()
        if page.axes.startswith("S"):
            pixels = np.moveaxis(pixels, 0, -1)
        if pixels.ndim not in (2, 3):
            raise Unreadable(f"a TIFF page of shape {pixels.shape} is no [h, w] or [h, w, c]")
        return pixels


def _other(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as picture:  # refuses more than 179 megapixels
        _check_size(picture.height * picture.width * 8)
        if data.startswith((b"Pf", b"PF")):
            return np.asarray(picture)
        if data.find(_SIZ, 0, 1024) >= 0 and picture.mode in ("LA", "RGBA"):
            return np.asarray(picture)  # of 8 bits
    pixels = _by_opencv(data)
    has_gray_and_alpha = data[25:26] == b"\x04" and data.startswith(b"\x89PNG")
    return pixels[..., [0, 3]] if has_gray_and_alpha else pixels


def _by_opencv(data: bytes) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise Unreadable("not a picture that OpenCV can decode: save it as PNG or TIFF")
    if pixels.ndim == 3 and pixels.shape[-1] in (3, 4):
        order = [2, 1, 0, 3][: pixels.shape[-1]]
        pixels = pixels[..., order]
    return pixels


def _check_size(size: int) -> None:
    if size > _MAX_BYTES:
        raise Unreadable(f"a picture of {size} bytes: above 2 GiB, cut it into tiles")
