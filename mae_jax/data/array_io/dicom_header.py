"""The headers of DICOM files: shape, scale, place and missing values of pixels that stay unread."""

import functools
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mae_jax.data.bad_examples import Unreadable, reason

_MAX_FRAME = 2**30  # bytes
_MAX_DEFLATED = 2**20  # bytes of a deflated file, which can become a thousand times as many
EQUAL = 1e-3  # up to here directions and spacings are equal
_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")  # the first bytes of files without a preamble
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_PADDING = ("PixelPaddingValue", "PixelPaddingRangeLimit")
_FLOATS = ("", "Float", "DoubleFloat")  # elements for each kind of pixels
_MACROS = {  # where files of many frames say what others say once
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "ImagePositionPatient": "PlanePositionSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "SpacingBetweenSlices": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
}
_TAGS = (
    *_MACROS,
    *"PatientID SeriesInstanceUID PhotometricInterpretation SamplesPerPixel Rows Columns".split(),
    *"BitsAllocated BitsStored PixelRepresentation NumberOfFrames ModalityLUTSequence".split(),
    *(f"{of}{name}" for name in _PADDING for of in _FLOATS),
    *"ImagerPixelSpacing DoseGridScaling".split(),
    *"GridFrameOffsetVector RedPaletteColorLookupTableDescriptor".split(),
    *"SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence".split(),
)


class Scale(NamedTuple):
    """How stored numbers become values."""

    stored: np.dtype
    dtype: np.dtype
    table: str  # the look-up table that is applied, "palette" or "modality", or ""
    factors: tuple[tuple[float, float], ...]  # slope and intercept, of each frame or of all
    padding: tuple[float, ...]  # see `_padding`


class Grid(NamedTuple):
    """Where the pixels of a file lie; what the file does not say is empty or 0."""

    orientation: tuple[float, ...]  # the directions of a row and of a column
    spacing: tuple[float, ...]  # between rows, and between columns
    distance: float  # between slices
    positions: tuple[tuple[float, ...], ...]  # of the first pixel of each frame


class Header(NamedTuple):
    """What a file says of its pixels."""

    path: str
    patient: str  # PatientID
    series: str  # SeriesInstanceUID
    syntax: str  # the UID of the transfer syntax, which names the compression
    is_regular: bool  # a frame can be read alone: the file is not deflated, and as its syntax says
    photometric: str  # PhotometricInterpretation
    frames: int
    shape: tuple[int, ...]  # of a frame, [h, w] or [h, w, 3]
    scale: Scale
    grid: Grid


def read_header(path: str | os.PathLike[str]) -> Header:
    """Return what a file says of its pixels; errors are those of `dicom.open_array`."""
    status = os.stat(path)
    return _read_header(os.path.abspath(path), status.st_size, status.st_mtime_ns)


def import_pydicom() -> Any:
    """Return the module pydicom, or raise an ImportError that names the extra."""
    try:
        import pydicom
    except ImportError as error:
        raise ImportError(
            "reading DICOM files needs pydicom: pip install 'mae_jax[dicom]'"
        ) from error
    return pydicom


def unreadable(error: Exception) -> Unreadable:
    """Return the error of a damaged file."""
    return Unreadable(f"not a readable DICOM file ({reason(error)}): export it again")


@functools.lru_cache(maxsize=2**17)  # sources of several splits read the same files
def _read_header(path: str, size: int, changed: int) -> Header:
    pydicom = import_pydicom()
    try:
        with open(path, "rb") as file:
            _check_start(file, size)
            data = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=_TAGS)
            encoding = {
                (True, True): pydicom.uid.ImplicitVRLittleEndian,
                (False, True): pydicom.uid.ExplicitVRLittleEndian,
            }.get(data.original_encoding, pydicom.uid.ExplicitVRBigEndian)
            syntax = pydicom.uid.UID(data.file_meta.get("TransferSyntaxUID") or encoding)
            data.file_meta.TransferSyntaxUID = syntax
            _check_header(data, syntax, size)
            keyword, is_regular = _find_pixels(file, data, syntax, size)
        return Header(
            path=path,
            patient=str(data.get("PatientID") or ""),
            series=str(data.get("SeriesInstanceUID") or ""),
            syntax=str(syntax),
            is_regular=is_regular,
            photometric=str(data.get("PhotometricInterpretation") or ""),
            frames=_frames(data),
            shape=_shape(data),
            scale=_scale(data, keyword != "PixelData"),
            grid=_grid(data),
        )
    except (Unreadable, ImportError):
        raise
    except Exception as error:  # pydicom raises many types on damaged files
        raise unreadable(error) from error


def _check_start(file: Any, size: int) -> None:
    """Raise an `Unreadable` if `file` is no DICOM file, or may unpack to very much."""
    pydicom = import_pydicom()
    start = file.read(132)
    if start[128:] != b"DICM" and start[:2] not in _GROUPS:
        raise Unreadable("no DICOM file: remove it, or name it as what it is")
    if start[128:] == b"DICM" and size > _MAX_DEFLATED:
        meta = pydicom.filereader.read_file_meta_info(file.name)
        if meta.get("TransferSyntaxUID") == pydicom.uid.DeflatedExplicitVRLittleEndian:
            raise Unreadable("a deflated file of more than 1 MiB: decompress it")
    file.seek(0)


def _check_header(data: Any, syntax: Any, size: int) -> None:
    """Raise an error unless the header speaks of pixels that a file of this size may have.

    Raises:
      Unreadable: there are none, or too many, or pydicom cannot decode them.
      ImportError: their decoder is not installed.
    """
    pydicom = import_pydicom()
    if not data.get("Rows") or not data.get("Columns"):
        raise Unreadable("no pixels: a report, a plan or an index is no picture")
    try:
        decoder = pydicom.pixels.get_decoder(syntax)
    except NotImplementedError as error:
        raise Unreadable(f"pydicom does not decode {syntax.name!r}: convert the file") from error
    if not decoder.is_available:
        raise ImportError(f"decoding {syntax.name!r} needs gdcm: pip install 'mae_jax[dicom]'")
    frames, bits = _frames(data), _bits(data)
    if not 0 < bits <= 8 * _MAX_FRAME or not 0 < frames <= size:
        raise Unreadable(
            f"the header promises {frames} frames of {bits // 8} bytes: above 1 GiB, or damaged"
        )


def _find_pixels(file: Any, data: Any, syntax: Any, size: int) -> tuple[str, bool]:
    """Return the keyword of the pixels at which `file` stands, and if they are as `syntax` says.

    Raises:
      Unreadable: there are no pixels, or fewer or more than the header says.
    """
    pydicom = import_pydicom()
    if syntax == pydicom.uid.DeflatedExplicitVRLittleEndian:
        return _PIXELS[0], False
    order, element = "<" if syntax.is_little_endian else ">", file.read(12)
    tag = np.frombuffer(element[:4], f"{order}u2").tolist() if len(element) == 12 else (0, 0)
    keyword = pydicom.datadict.keyword_for_tag(tuple(tag))
    if keyword not in _PIXELS:
        raise Unreadable("no pixels: the file ends before them")
    is_implicit = element[4:6] not in (b"OB", b"OW", b"OF", b"OD")  # some files err
    if is_implicit:
        file.seek(-4, os.SEEK_CUR)
    if syntax.is_encapsulated:
        _check_fragments(file, size)
    else:
        place, bits = (4 if is_implicit else 8), _bits(data)
        length = int(np.frombuffer(element[place : place + 4], f"{order}u4")[0])
        held = min(length, size - file.tell())
        needed = -(-bits * _frames(data) // 8)
        if not needed <= held < needed + max(2, bits // 8):
            raise Unreadable(
                f"the header promises {needed} bytes of pixels, and the file has {held}: it is "
                "truncated or damaged, export it again"
            )
    return keyword, is_implicit == syntax.is_implicit_VR


def _check_fragments(file: Any, size: int) -> None:
    """Raise an `Unreadable` if the file ends inside of a fragment of compressed pixels."""
    while len(item := file.read(8)) == 8 and item[:4] == b"\xfe\xff\x00\xe0":
        if file.seek(int.from_bytes(item[4:], "little"), os.SEEK_CUR) > size:
            raise Unreadable("the compressed pixels are truncated: export the file again")


def _count(data: Any, name: str) -> int:
    """Return a whole number of the header, 1 if it is missing."""
    value = data.get(name) or 1
    if not isinstance(value, int | float | str):  # a damaged header may have thousands
        raise Unreadable(f"{name} is not one number: the file is damaged, export it again")
    return int(value)


def _frames(data: Any) -> int:
    return _count(data, "NumberOfFrames")


def _shape(data: Any) -> tuple[int, ...]:
    is_palette = data.PhotometricInterpretation == "PALETTE COLOR"
    samples = 3 if is_palette else _count(data, "SamplesPerPixel")
    return _count(data, "Rows"), _count(data, "Columns"), *([samples] if samples > 1 else [])


def _bits(data: Any) -> int:
    """Return the number of bits that a frame has without compression."""
    names = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")
    bits = math.prod(_count(data, name) for name in names)
    return bits * 2 // 3 if data.PhotometricInterpretation == "YBR_FULL_422" else bits


def _scale(data: Any, is_float: bool) -> Scale:
    from pydicom.pixels.utils import pixel_dtype

    stored = pixel_dtype(data, as_float=is_float).newbyteorder("=")
    padding = _padding(data, stored)
    if data.PhotometricInterpretation == "PALETTE COLOR":
        bits = data.RedPaletteColorLookupTableDescriptor[2]
        return Scale(stored, np.dtype(f"u{bits // 8}"), "palette", ((1.0, 0.0),), padding)
    if data.get("ModalityLUTSequence"):
        return Scale(stored, np.dtype(np.uint16), "modality", ((1.0, 0.0),), padding)
    dose = _numbers(data.get("DoseGridScaling"), 1)
    slopes = _of_frames(data, "RescaleSlope", 1)
    intercepts = _of_frames(data, "RescaleIntercept", 1)
    factors = [
        ((dose or slope or (1.0,))[0], (intercept or (0.0,))[0])
        for slope, intercept in zip(slopes, intercepts, strict=True)
    ]
    if any(slope == 0 for slope, _ in factors):
        raise Unreadable("RescaleSlope = 0 would make all values equal: correct it")
    is_scaled = any(factor != (1, 0) for factor in factors)
    dtype = np.result_type(stored, np.float32) if is_scaled else stored
    factors = factors[:1] if len({*factors}) == 1 else factors
    return Scale(stored, dtype, "", tuple(factors), padding)


def _padding(data: Any, stored: np.dtype) -> tuple[float, ...]:
    """Return the stored numbers that stand for missing values: nothing, one, or two limits."""
    found = [[x for of in _FLOATS if (x := data.get(of + name)) is not None] for name in _PADDING]
    padding = tuple(float(x[0]) for x in found if x) if found[0] else ()
    if stored.kind in "iu":  # unsigned bits often stand for a negative number
        padding = tuple(np.array(padding, np.int64).astype(stored).tolist())
    return padding


def _grid(data: Any) -> Grid:
    orientation = _common(_of_frames(data, "ImageOrientationPatient", 6))
    row, column = np.reshape(orientation or [0.0] * 6, (2, 3))
    if not np.allclose([row @ row, column @ column, row @ column], [1, 1, 0], atol=0.01):
        orientation = ()
    spacing = _common(_of_frames(data, "PixelSpacing", 2))
    spacing = spacing or _numbers(data.get("ImagerPixelSpacing"), 2)
    between, thick = (
        _common(_of_frames(data, name, 1)) for name in ("SpacingBetweenSlices", "SliceThickness")
    )
    positions = _of_frames(data, "ImagePositionPatient", 3)
    offsets = _numbers(data.get("GridFrameOffsetVector"), _frames(data))
    if offsets and orientation and all(positions):
        steps = np.subtract(offsets, offsets[0])[:, None] * np.cross(row, column)
        positions = [tuple(place) for place in (steps + positions[0]).tolist()]
    known = len(positions) == _frames(data) and all(positions)
    return Grid(
        orientation=orientation,
        spacing=spacing if all(length > 0 for length in spacing) else (),
        distance=abs((between or thick or (0.0,))[0]),
        positions=tuple(positions) if known else (),
    )


def _of_frames(data: Any, name: str, count: int) -> list[tuple[float, ...]]:
    """Return what the header says of each frame, or once if it says the same of all."""
    shared = data.get("SharedFunctionalGroupsSequence") or []
    own = data.get("PerFrameFunctionalGroupsSequence") or []
    if own and len(own) != _frames(data):
        raise Unreadable(f"{_frames(data)} frames, and descriptions of {len(own)}: export it again")
    found = []
    for groups in [[group, *shared] for group in own] or [shared]:
        macros = [group[_MACROS[name]][0] for group in groups if group.get(_MACROS[name])]
        values = (_numbers(place.get(name), count) for place in (*macros, data))
        found.append(next(filter(None, values), ()))
    return found


def _numbers(value: Any, count: int) -> tuple[float, ...]:
    """Return `count` finite numbers, or nothing if the element is missing, empty or malformed."""
    if value is None or value == "":
        return ()
    numbers = np.atleast_1d(np.asarray(value, np.float64))
    is_right = numbers.shape == (count,) and np.isfinite(numbers).all()
    return tuple(numbers.tolist()) if is_right else ()


def _common(found: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    """Return the numbers that all frames share, or nothing."""
    return found[0] if all(are_equal(found[0], other) for other in found) else ()


def are_equal(one: tuple[float, ...], two: tuple[float, ...]) -> bool:
    """Return whether as many numbers are equal but for rounding."""
    return one == two or (len(one) == len(two) and np.allclose(one, two, rtol=0, atol=EQUAL))
