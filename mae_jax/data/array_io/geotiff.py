"""GeoTIFF files: rasterio reads one picture with any bands, `tiff` reads plain files and stacks."""

import contextlib
import functools
import importlib.util
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped

from mae_jax.data import arrays
from mae_jax.data.array_io import keys, packing, per_thread, tiff
from mae_jax.data.bad_examples import Unreadable, reason
from mae_jax.output import files

# GDAL reads the file alone: no file beside it (.aux.xml, .tfw, .msk, .ovr), and it writes none.
_ALONE: Any = dict(
    GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR",
    GDAL_PAM_ENABLED="NO",
    GDAL_GEOREF_SOURCES="INTERNAL",
)


def open_array(path: str) -> arrays.Array:
    """Open a TIFF file as [h, w, bands], or a stack of pages as [pages, h, w, bands].

    Scale and offset of the bands are applied. What the file calls nodata, and its mask, say which
    values are missing. A band that the file calls alpha is a mask, and so none of the bands: values
    are missing where it is 0. The spacing is in units of the coordinate reference system, which are
    metres or degrees. Files beside it, such as `.aux.xml`, `.tfw` and `.msk`, are not read. Numbers
    of a color map stay numbers. Without rasterio the file is read by `tiff.open_array`.

    Raises:
      Unreadable: the file is of another kind or damaged, or its bands are no real numbers.
      OSError: the file does not exist.
    """
    place, key = keys.split(path)
    if key:
        raise Unreadable(f"a TIFF file has no key {key!r}: give the file alone")
    if importlib.util.find_spec("rasterio") is None:
        return tiff.open_array(place)
    opened = per_thread.PerThread(functools.partial(_open, place))
    dataset = opened.get()
    with _gdal():
        # ImageJ may describe a stack by its first page alone.
        is_of_imagej = dataset.tags().get("TIFFTAG_IMAGEDESCRIPTION", "").startswith("ImageJ=")
        if dataset.subdatasets or is_of_imagej:
            return tiff.open_array(place)
        if dataset.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES":
            tiff.tell_of_white()
        return _describe(opened)


def write(
    path: str,
    values: Shaped[np.ndarray, "h w c"],
    frame: arrays.Frame | None,
    nodata: float | None = None,
    tags: Mapping[str, Any] | None = None,
) -> None:
    """Write bands as a GeoTIFF in tiles, deflated, with the transform and the CRS of `frame`.

    `nodata` is the number that stands for missing values, which may be NaN, and `tags` are texts
    about the file. `values` may be mapped from a file: memory holds 256x256 of them.

    Raises:
      ValueError: `values` has other axes, or the frame is not that of two sides.
      ImportError: rasterio is not installed.
    """
    if values.ndim != 3 or frame and frame.affine.shape != (3, 3):
        raise ValueError(f"values of shape {values.shape} are no bands [h, w, c] of a map: cut it")
    try:
        import rasterio
    except ImportError as error:
        raise ImportError("GeoTIFFs need rasterio: pip install 'mae_jax[geotiff]'") from error
    height, width, count = values.shape
    profile: dict[str, Any] = dict(driver="GTiff", dtype=values.dtype.name, nodata=nodata)
    profile |= dict(height=height, width=width, count=count, bigtiff="if_safer")
    profile |= dict(tiled=True, blockxsize=256, blockysize=256, compress="deflate")
    profile |= dict(predictor=3 if values.dtype.kind == "f" else 2)
    profile |= dict(interleave="band", photometric="minisblack")
    if frame:
        affine = np.array(frame.affine, np.float64)
        if not frame.corner:  # GDAL means the corner of the first pixel, not its centre
            affine[:2, 2] -= affine[:2, :2] @ [0.5, 0.5]
        (b, a, c), (e, d, f) = affine[:2].tolist()
        profile |= dict(transform=rasterio.Affine(a, b, c, d, e, f), crs=frame.crs or None)
    _ignore_missing_places()
    with files.whole(path) as temporary, rasterio.Env(**_ALONE):
        with rasterio.open(temporary, "w", **profile) as dataset:
            dataset.update_tags(**(tags or {}))
            for _, window in dataset.block_windows(1):
                dataset.write(np.moveaxis(values[window.toslices()], -1, 0), window=window)


def _describe(opened: per_thread.PerThread) -> arrays.Array:
    from rasterio.enums import ColorInterp, Interleaving, MaskFlags

    dataset = opened.get()
    of_bands = zip(  # each is a list that rasterio makes anew
        dataset.indexes,
        dataset.colorinterp,
        dataset.dtypes,
        dataset.block_shapes,
        dataset.nodatavals,
        dataset.scales,
        dataset.offsets,
        dataset.mask_flag_enums,
        strict=True,
    )
    found = [*of_bands]
    found = [band for band in found if band[1] != ColorInterp.alpha] or found
    bands, _, names, blocks, missing, scales, offsets, flags = zip(*found, strict=True)
    is_complex = any(name.startswith("complex") for name in names)
    dtype = np.dtype(np.complex64 if is_complex else names[0])
    shape = (dataset.height, dataset.width, len(bands))
    arrays.check(shape, dtype)
    block = (*max(blocks), len(bands) if dataset.interleaving == Interleaving.pixel else 1)
    arrays.check_bytes("a block", block, dtype, "write smaller tiles")
    nodata = {str(number): number for number in missing if number is not None}
    if len(nodata) > 1:
        raise Unreadable(f"its bands have nodata values {', '.join(nodata)}: write one for all")
    scale, offset = np.array(scales), np.array(offsets)
    packed = packing.Packing(dtype, scale, offset, tuple(nodata.values()))
    has_mask = any(MaskFlags.per_dataset in of_band for of_band in flags)
    read = functools.partial(_read, opened, bands, packed)
    valid = functools.partial(_valid, opened, bands) if has_mask else None
    frame, spacing = _frame(dataset), None
    if frame:
        spacing = tuple(np.hypot(*frame.affine[:2, :2]).tolist())  # of a row, of a column
    return arrays.Array(shape, packed.dtype, read, 2, packed.missing, valid, spacing, frame)


def _frame(dataset: Any) -> arrays.Frame | None:
    a, b, c, d, e, f = dataset.transform[:6]  # from (column, row)
    if dataset.transform.is_identity:
        return None
    affine = np.array([[b, a, c], [e, d, f], [0, 0, 1]], np.float64)
    return arrays.Frame(affine, dataset.crs.to_wkt() if dataset.crs else "")


def _read(
    opened: per_thread.PerThread, bands: tuple[int, ...], packed: packing.Packing, part: arrays.Part
) -> np.ndarray:
    dataset = opened.get()
    with _gdal():
        stored = dataset.read([*bands[part[2]]], window=_window(dataset, bands, part))
    return packed.of_channels(part[2]).unpack(np.moveaxis(stored, 0, -1))


def _valid(
    opened: per_thread.PerThread, bands: tuple[int, ...], part: arrays.Part
) -> Bool[np.ndarray, "h w c"]:
    dataset = opened.get()
    with _gdal():
        masks = dataset.read_masks([*bands[part[2]]], window=_window(dataset, bands, part))
    return np.moveaxis(masks != 0, 0, -1)


def _window(dataset: Any, bands: tuple[int, ...], part: arrays.Part) -> Any:
    from rasterio.windows import Window

    shape = (dataset.height, dataset.width, len(bands))
    height, width, count = arrays.lengths(part, shape)
    dtype = np.dtype(dataset.dtypes[0])
    arrays.check_bytes("a part", (height, width, count), dtype, "cut the picture into tiles")
    return Window(part[1].start or 0, part[0].start or 0, width, height)  # pyright: ignore


def _open(place: str) -> Any:
    """Open a file by GDAL's driver of TIFF; threads must not share what it returns."""
    import rasterio

    os.stat(place)
    _ignore_missing_places()
    with _gdal():  # a `Path` is never taken for an address, nor for the text of a file
        return rasterio.open(Path(place).absolute(), driver="GTiff")


@contextlib.contextmanager
def _gdal() -> Iterator[None]:
    """Set GDAL's options for this thread, and raise `Unreadable` instead of its errors."""
    import rasterio

    try:
        with rasterio.Env(**_ALONE):
            yield
    except (Unreadable, FileNotFoundError):
        raise
    except Exception as error:
        cause = error.__cause__ or error  # "See previous exception for details."
        raise Unreadable(f"no readable TIFF file ({reason(cause)}): save it again") from error


def _ignore_missing_places() -> None:
    """Silence rasterio, which warns of each picture that has no place on Earth."""
    from rasterio.errors import NotGeoreferencedWarning

    if not any(entry[2] is NotGeoreferencedWarning for entry in warnings.filters):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
