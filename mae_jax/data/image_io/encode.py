"""Files of pictures in the type of their values: what is read back is equal to the bit."""

import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Shaped

from mae_jax.data.arrays import Frame
from mae_jax.output import files

_LOSSY = (".jpg", ".jpeg", ".webp", ".jp2", ".avif", ".gif")
_HEADER = 33  # bytes of a PNG before its second chunk


def check_ending(path: str, endings: Collection[str] = ()) -> None:
    """Raise ValueError unless a path has one of these endings, by default of those of `WRITERS`."""
    end = Path(path).suffix.lower()
    if end in _LOSSY:
        raise ValueError(
            f"{path!r}: {end} files would change the values, as they are compressed with a loss or "
            "have few colors: write .png, .tif or .npy"
        )
    if end not in (endings or WRITERS):
        raise ValueError(f"{path!r} must end in {', '.join(endings or WRITERS)}")


def check(path: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Raise ValueError unless a file with this ending holds such values exactly."""
    check_ending(path)
    end, channels = Path(path).suffix.lower(), 1 if len(shape) == 2 else shape[-1]
    if end == ".npy":
        return
    if len(shape) not in (2, 3):
        raise ValueError(f"{path!r}: values of shape {shape} are no picture: write .npy")
    if end == ".png" and (dtype not in (np.uint8, np.uint16) or channels not in (1, 3, 4)):
        raise ValueError(
            f"{path!r}: .png files hold 1, 3 or 4 channels of uint8 or uint16, not {channels} of "
            f"{dtype}: write .tif or .npy"
        )
    if end in (".tif", ".tiff") and dtype.name not in _TIFF_TYPES:
        raise ValueError(f"{path!r}: .tif files hold no {dtype}: write .npy")


def write(
    path: str,
    values: Shaped[np.ndarray, "h w *c"],
    frame: Frame | None = None,
    nodata: float | None = None,
    profile: bytes = b"",
) -> None:
    """Write values to a `.png`, `.tif` or `.npy` file, whole or not at all.

    Args:
      values: uint8 or uint16 for `.png`, where 3 channels are red, green and blue, and the fourth
        is alpha. Four bands of a `.tif` file are bands, of which none is alpha.
      frame: where the picture lies in the world, and `nodata` the number that stands for missing
        values. `.tif` files keep both.
      profile: an ICC profile, which `.png` and `.tif` files keep.

    Raises:
      ValueError: as `check`.
      ImportError: a frame needs rasterio, which is not installed.
    """
    check(path, values.shape, values.dtype)
    about = dict(frame=frame, nodata=nodata, profile=profile)
    WRITERS[Path(path).suffix.lower()](path, values, about)


def _write_png(path: str, values: np.ndarray, about: Mapping[str, Any]) -> None:
    if values.ndim == 3 and values.shape[-1] in (3, 4):
        values = values[..., [2, 1, 0, 3][: values.shape[-1]]]  # OpenCV's order
    _, encoded = cv2.imencode(".png", np.ascontiguousarray(values))
    content = encoded.tobytes()
    if about["profile"]:
        chunk = b"iCCP" + b"profile\0\0" + zlib.compress(about["profile"])
        ends = (len(chunk) - 4).to_bytes(4), zlib.crc32(chunk).to_bytes(4)
        content = content[:_HEADER] + ends[0] + chunk + ends[1] + content[_HEADER:]
    with files.whole(path) as temporary:
        temporary.write_bytes(content)


def _write_tiff(path: str, values: np.ndarray, about: Mapping[str, Any]) -> None:
    if about["frame"] or about["nodata"] is not None:
        from mae_jax.data.array_io import geotiff

        bands = values[..., None] if values.ndim == 2 else values
        geotiff.write(path, bands, about["frame"], about["nodata"])
        return
    import tifffile  # the import takes a moment

    values = values[..., 0] if values.shape[2:] == (1,) else values
    is_color = values.shape[2:] == (3,) and values.dtype.kind == "u"
    how: dict[str, Any] = dict(photometric="rgb" if is_color else "minisblack")
    if values.ndim == 3:
        how |= dict(planarconfig="contig")
    with files.whole(path) as temporary:
        tifffile.imwrite(
            temporary, values, compression="zlib", iccprofile=about["profile"] or None, **how
        )


def _write_npy(path: str, values: np.ndarray, about: Mapping[str, Any]) -> None:
    with files.whole(path) as temporary, open(temporary, "wb") as file:
        np.save(file, values, allow_pickle=False)


_TIFF_TYPES = "uint8 int8 uint16 int16 uint32 int32 float32 float64".split()
WRITERS = {".png": _write_png, ".tif": _write_tiff, ".tiff": _write_tiff, ".npy": _write_npy}
