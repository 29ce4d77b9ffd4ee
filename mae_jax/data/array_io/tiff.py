"""Plain TIFF files and stacks of pages, read by tifffile."""

import contextlib
import functools
import logging
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from mae_jax.data import arrays, notices
from mae_jax.data.bad_examples import Unreadable, reason

_METADATA, _NODATA, _SCALE = 42112, 42113, 33550  # the tags of GDAL and of GeoTIFF
_log = logging.getLogger(__name__)
_HELP = "pip install 'mae_jax[geotiff]' reads such files of one page"


def open_array(path: str) -> arrays.Array:
    """Open a TIFF file as [h, w, bands], or a stack of pages of one shape as [pages, h, w, bands].

    The pages are channels instead where ImageJ or OME say so, and an axis of one band is missing.
    Only parts of uncompressed files are read, and of others the pages of a part. A file with masks,
    alpha or scales is refused, since they are not read.

    Raises:
      Unreadable: the file is of another kind, damaged, or coded in a way that needs a package.
      OSError: the file does not exist.
    """
    with _open(path) as file:
        series, first = _series(file), file.pages[0]
        shape, dtype, axes = series.shape, np.dtype(series.dtype), series.axes
        channels = [i for i, axis in enumerate(axes) if axis in "SC"]
        sides = len(shape) - len(channels)
        if len(channels) > 1 or sides not in (2, 3):
            raise Unreadable(f"the file has axes {axes}: save pages [h, w] or [h, w, channels]")
        if any(getattr(page, "is_mask", False) for page in file.pages) or _has_scales(first):
            raise Unreadable(f"the file has a mask or scales: {_HELP}")
        if any("ALPHA" in getattr(sample, "name", "") for sample in first.extrasamples):
            raise Unreadable(f"the file has a band of transparency: {_HELP}")
        if first.photometric == 0:
            tell_of_white()
        nodata = (float(first.tags[_NODATA].value.strip("\0 ")),) if _NODATA in first.tags else ()
        spacing = first.tags[_SCALE].value[1::-1] if _SCALE in first.tags and sides == 2 else None
    at = channels[0] if channels else None
    if at is not None:
        shape = (*shape[:at], *shape[at + 1 :], shape[at])
    arrays.check(shape, dtype)
    read = functools.partial(_read, path, at)
    return arrays.Array(shape, dtype, read, sides, nodata, spacing=spacing)


def tell_of_white() -> None:
    """Say once of TIFF files in which 0 is white that their numbers are those that are stored."""
    text = (
        "in some TIFF files 0 is white: their numbers are read as they are stored, and only "
        "folder: inverts those of 8 bits, as viewers do"
    )
    notices.once(_log.warning, text)


def _series(file: Any) -> Any:
    """Return the only series of pages that are neither overviews nor masks."""
    found = [s for s in file.series if not s.keyframe.is_reduced and not s.keyframe.is_mask]
    if len(found) != 1:
        raise Unreadable(f"the file holds {len(found)} pictures of different shapes: save one")
    return found[0]


def _has_scales(page: Any) -> bool:
    return _METADATA in page.tags and bool(
        re.search(r"role=.(scale|offset)", str(page.tags[_METADATA].value))
    )


def _read(path: str, at: int | None, part: arrays.Part) -> np.ndarray:
    if at is not None:  # the channels are stored at this axis
        part = (*part[:at], part[-1], *part[at:-1])
    with _open(path) as file:
        series = _series(file)
        shape, dtype, pages = series.shape, np.dtype(series.dtype), series.pages
        if series.dataoffset is not None:
            dtype = dtype.newbyteorder(file.byteorder)
            stored = np.memmap(path, dtype, "r", series.dataoffset, shape)[part]
        elif len(pages) == shape[0] > 1:
            chosen = range(*part[0].indices(shape[0]))
            arrays.check_bytes("a part", (len(chosen), *shape[1:]), dtype, "split the pages")
            stored = np.stack([pages[i].asarray() for i in chosen])[:, *part[1:]]
        else:
            arrays.check_bytes("a compressed array", shape, dtype, _HELP)
            stored = series.asarray()[part]
    return stored if at is None else np.moveaxis(stored, at, -1)


@contextlib.contextmanager
def _open(path: str) -> Iterator[Any]:
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            yield file
    except (Unreadable, FileNotFoundError):
        raise
    except Exception as error:  # tifffile raises many types on damaged files
        if "imagecodecs" in (text := reason(error)):
            raise Unreadable(f"{text}: pip install imagecodecs; {_HELP}") from error
        raise Unreadable(f"no readable TIFF file ({text}): save it again") from error
