"""Fast decoding of plain JPEGs, reduced to a half, a quarter or an eighth if that is enough."""

import io

import numpy as np
import simplejpeg
from PIL import Image

ORIENTATION = 0x0112  # the EXIF tag
MANY_PIXELS = 2**26  # larger pictures are left to Pillow, which checks for decompression bombs
_MAX_SCANNED = 2**33  # pixels of a JPEG times the passes over them: about 15 seconds

Header = tuple[int, int, str]  # height, width, color space


def read_header(data: bytes) -> Header | None:
    """Return the header of an upright JPEG in color or gray, or None for all other files."""
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
        height, width = int(height), int(width)
        if colors not in ("YCbCr", "RGB", "Gray") or height * width > MANY_PIXELS:
            return None
        if is_endless(data, height * width):
            return None
        if 0xE1 in _markers(data):  # EXIF or XMP: Pillow knows where they keep the orientation
            with Image.open(io.BytesIO(data), formats=["JPEG"]) as picture:
                if picture.getexif().get(ORIENTATION, 1) in range(2, 9):
                    return None
    except Exception:  # Pillow's plugins raise nearly every type; `decode.decode` has the reason
        return None
    return height, width, "GRAY" if colors == "Gray" else "RGB"


def decode(data: bytes, header: Header, reduction: int = 1) -> np.ndarray | None:
    """Decode a plain JPEG at 1/1, 1/2, 1/4 or 1/8 of its size, rounded up, to [h, w, 1 or 3].

    Whole pictures have the same bits as Pillow's. The result is None for a damaged file, which is
    left to Pillow: it names the damage, or repairs it.
    """
    height, width = (-(-side // reduction) for side in header[:2])
    try:
        pixels = simplejpeg.decode_jpeg(data, header[2], min_height=height, min_width=width)
    except ValueError:
        return None
    return pixels if pixels.shape[:2] == (height, width) else None


def reduction(height: int, width: int, size: tuple[int, int]) -> int:
    """Return how many times smaller a box can be decoded without getting smaller than `size`."""
    return next(k for k in (8, 4, 2, 1) if k == 1 or k <= min(height / size[0], width / size[1]))


def is_endless(data: bytes, pixels: int) -> bool:
    """Return whether a JPEG scans its pixels so often that it is an attack."""
    return data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") * pixels > _MAX_SCANNED


def _markers(data: bytes) -> set[int]:
    """Return the markers of the segments of a JPEG before its pixels."""
    markers, start = set(), 2
    while (marker := data[start + 1]) != 0xDA:
        if data[start] != 0xFF or marker == 0xFF:
            raise ValueError("unusual bytes between the segments")
        markers.add(marker)
        start += 2 + int.from_bytes(data[start + 2 : start + 4])
    return markers
