"""Pictures and volumes in DICOM files, read by pydicom.

Values are those that the file means: the stored ones with the rescale slope and intercept or the
modality's look-up table applied (so CT is in Hounsfield units), or the scaling of a dose grid.
Palettes and YCbCr become RGB. Nothing else is done: windows, overlays and color profiles are not
applied, and the low values of MONOCHROME1 stay low, although viewers show them bright.

The axes of a volume are slice, row and column. Slices are in order along their normal, the cross
product of the directions of a row and of a column. World coordinates are millimetres to the right,
to the front and to the top of the head (RAS+), as in NIfTI; DICOM counts to the left and the back.
"""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from mae_jax.data.array_io import dicom_header
from mae_jax.data.array_io.dicom_header import Header
from mae_jax.data.arrays import Array, Frame, Part
from mae_jax.data.bad_examples import Unreadable

_UNEVEN = 0.1  # of the distance of two slices, by which rounded positions may be off


def open_array(path: str | os.PathLike[str]) -> Array:
    """Open a picture [h, w] or [h, w, 3], or a file of several frames [n, h, w] or [n, h, w, 3].

    Frames with positions are a volume as in `open_series`. Others keep the order of the file.

    Raises:
      Unreadable: the file is no DICOM file, is damaged, or has no pixels.
      FileNotFoundError: the file does not exist.
      ImportError: pydicom, or the decoder of the file's compression, is not installed.
    """
    header = dicom_header.read_header(path)
    if header.frames > 1:
        return open_series([header])
    read, exists = (functools.partial(f, header, 0) for f in (_read_frame, _exists))
    return _to_array([header], header.shape, read, exists, header.grid.spacing, None)


def open_series(headers: Sequence[Header]) -> Array:
    """Open the slices of a series, or the frames of a file, as a volume [n, h, w] or [n, h, w, 3].

    A part reads only the files of its slices.

    Raises:
      Unreadable: slices differ in size, orientation or spacing, or have no positions; or are
        missing, uneven, or several at one position.
    """
    first = headers[0]
    for other in headers[1:]:
        for name, one, two in [
            ("shape", first.shape, other.shape),
            ("orientation", first.grid.orientation, other.grid.orientation),
            ("spacing", first.grid.spacing, other.grid.spacing),
        ]:
            if not dicom_header.are_equal(one, two):
                raise Unreadable(
                    f"the slices of series {first.series} differ in {name}, {one} and {two}: "
                    "separate them"
                )
    order, start, step = _in_order(headers)
    grid, spacing, frame = first.grid, (), None
    if grid.spacing and step is not None:
        row, column = np.reshape(grid.orientation, (2, 3))
        down, across = grid.spacing
        affine = np.eye(4)
        affine[:3] = np.stack([step, column * down, row * across, start], axis=1)
        spacing = (float(np.linalg.norm(step)), down, across)
        frame = Frame(np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, corner=False)
    elif grid.spacing and grid.distance:
        spacing = (grid.distance, *grid.spacing)
    dtype = np.result_type(*{header.scale.dtype for header in headers})
    read = functools.partial(_read_slices, _read_frame, tuple(headers), order, dtype)
    exists = functools.partial(_read_slices, _exists, tuple(headers), order, np.dtype(bool))
    return _to_array(headers, (len(order), *first.shape), read, exists, spacing, frame)


def _in_order(
    headers: Sequence[Header],
) -> tuple[Int[np.ndarray, "n"], Float[np.ndarray, "3"], Float[np.ndarray, "3"] | None]:
    """Return the order of slices along their normal, the first position, and the step to the next.

    Frames of one file that have no positions, or all the same, keep their order.
    """
    grid, name = headers[0].grid, f"series {headers[0].series}"
    places = np.array([place for header in headers for place in header.grid.positions])
    unplaced = not grid.orientation or not all(header.grid.positions for header in headers)
    if len(headers) == 1 and (unplaced or headers[0].frames > 1 and np.ptp(places, 0).max() == 0):
        return np.arange(headers[0].frames), np.zeros(3), None
    if unplaced:
        raise Unreadable(
            f"slices of {name} have no ImagePositionPatient or ImageOrientationPatient, so that "
            "their order is unknown: read them as pictures"
        )
    normal = np.cross(grid.orientation[:3], grid.orientation[3:])
    order = np.argsort(places @ normal, kind="stable")
    places = places[order]
    if len(places) == 1:
        return order, places[0], normal * grid.distance if grid.distance else None
    gaps = np.diff(places @ normal)
    if gaps.min() <= dicom_header.EQUAL:
        raise Unreadable(
            f"several slices of {name} lie at {places[gaps.argmin()].tolist()}: separate its "
            "times, echoes or copies"
        )
    step = (places[-1] - places[0]) / (len(places) - 1)
    off = places - places[0] - step * np.arange(len(places))[:, None]
    if np.linalg.norm(off, axis=1).max() > _UNEVEN * np.linalg.norm(step):
        raise Unreadable(
            f"the slices of {name} lie {gaps.min():g} to {gaps.max():g} mm apart: one is missing, "
            "or they are no volume"
        )
    return order, places[0], step


def _to_array(
    headers: Sequence[Header],
    shape: tuple[int, ...],
    read: Callable,
    exists: Callable,
    spacing: tuple[float, ...],
    frame: Frame | None,
) -> Array:
    """Return an array; numbers stand for missing values if they are the same in all slices."""
    missing = {_missing(header, k) for header in headers for k in range(len(header.scale.factors))}
    limits = next(iter(missing))
    has_table = any(header.scale.table for header in headers)  # which may make numbers equal
    is_number = len(missing) == 1 and (not limits or len({*limits}) == 1 and not has_table)
    return Array(
        shape=shape,
        dtype=np.result_type(*{header.scale.dtype for header in headers}),
        read=read,
        sides=len(shape) - len(headers[0].shape) + 2,
        nodata=limits[:1] if is_number else (),
        valid=None if is_number else exists,
        spacing=spacing or None,
        frame=frame,
    )


def _missing(header: Header, k: int) -> tuple[float, ...]:
    """Return the limits of the values that stand for missing ones in frame k, or nothing.

    Those under a look-up table are limits of stored numbers.
    """
    if header.scale.table or not header.scale.padding:
        return header.scale.padding
    slope, intercept = _factor(header, k)
    ends = np.array(header.scale.padding, np.float64) * slope + intercept
    return tuple(np.array([ends.min(), ends.max()]).astype(header.scale.dtype).tolist())


def _factor(header: Header, k: int) -> tuple[float, float]:
    factors = header.scale.factors
    return factors[k if len(factors) > 1 else 0]


def _read_slices(
    read: Callable,
    headers: tuple[Header, ...],
    order: Int[np.ndarray, "n"],
    dtype: np.dtype,
    part: Part,
) -> Shaped[np.ndarray, "*part"]:
    """Stack what `read` returns for the slices of a part: frames of one file, or files."""
    frames = headers[0].frames
    slices = [read(headers[i // frames], i % frames, part[1:]) for i in order[part[0]].tolist()]
    return np.stack(slices, dtype=dtype, casting="same_kind")


def _read_stored(header: Header, k: int, part: Part) -> tuple[np.ndarray, Any]:
    """Return the stored numbers of rows and columns, and the data set with the look-up tables."""
    pydicom = dicom_header.import_pydicom()
    from pydicom.pixels import pixel_array

    data, syntax = pydicom.Dataset(), pydicom.uid.UID(header.syntax)
    try:
        if header.is_regular:
            x = pixel_array(header.path, ds_out=data, index=k, transfer_syntax_uid=syntax)
        else:
            data = pydicom.dcmread(header.path, force=True)
            data.file_meta.TransferSyntaxUID = syntax
            x = pixel_array(data, index=k)
        return x[part[:2]], data
    except Exception as error:
        raise dicom_header.unreadable(error) from error


def _read_frame(header: Header, k: int, part: Part) -> Shaped[np.ndarray, "*part"]:
    from pydicom.pixels import apply_color_lut, apply_modality_lut

    x, data = _read_stored(header, k, part)
    scale = header.scale
    try:
        if scale.table:
            x = {"palette": apply_color_lut, "modality": apply_modality_lut}[scale.table](x, data)
        x = x[(..., *part[2:])]
        slope, intercept = _factor(header, k)
        if (slope, intercept) != (1, 0):
            x = x.astype(np.float64)
            x *= slope
            x += intercept
        return np.array(x, scale.dtype)
    except Exception as error:
        raise dicom_header.unreadable(error) from error


def _exists(header: Header, k: int, part: Part) -> Bool[np.ndarray, "*part"]:
    stored, _ = _read_stored(header, k, part)
    if header.scale.table == "palette":
        stored = np.repeat(stored[..., None], header.shape[-1], axis=-1)
    stored, padding = stored[(..., *part[2:])], header.scale.padding
    if not padding:
        return np.ones(stored.shape, bool)
    return (stored < min(padding)) | (stored > max(padding))
