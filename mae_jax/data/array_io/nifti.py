"""Volumes [x, y, z] or [x, y, z, t] in files of NIfTI, Analyze and FreeSurfer, read by nibabel.

The axes keep the order and the direction that they have in the file. The frame says where they
point: its world coordinates are millimetres to the right, to the front and to the top of the head
(RAS+). Analyze files do not say it, and have no frame. The values of a `.hdr` file are in the
`.img` file beside it.
"""

import functools
import gzip
import math
import os
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from mae_jax.data import cache
from mae_jax.data.arrays import Array, Frame, Part
from mae_jax.data.bad_examples import Unreadable, reason
from mae_jax.output import files

_MAX_RATIO = 1032  # bytes that one byte of a gzip file can become
_MAX_HELD = 2**30  # bytes of unpacked volumes that a process holds
_MAX_SIDE = 2**15 - 1  # of NIfTI-1
_MILLIMETRES = {"meter": 1e3, "micron": 1e-3}

_CACHE = cache.Cache(_MAX_HELD)  # of the process


def open_array(path: str | os.PathLike[str]) -> Array:
    """Open a volume [x, y, z], [x, y, z, t] with its fourth axis as channels, or a picture [x, y].

    The slope and the intercept of the header are applied, and the values are float32 then (float64
    if they are stored in more than 24 bits); otherwise they keep their type. An uncompressed file
    is memory-mapped. A compressed one is unpacked for its first part, and a process holds up to
    1 GiB of such volumes. Of a larger one, each part is unpacked anew.

    Raises:
      Unreadable: the file is damaged, or holds no volume of real numbers.
      FileNotFoundError: the file does not exist.
      ImportError: nibabel is not installed.
    """
    nibabel = _import_nibabel()
    os.stat(path)
    try:
        image = nibabel.load(path)
        if not isinstance(image, nibabel.spatialimages.SpatialImage):
            raise Unreadable(f"a {type(image).__name__} is no volume: convert it to NIfTI")
        stored, shape = image.dataobj, tuple(map(int, image.shape))
        _check(stored, shape)
        spacing, frame = _geometry(image, nibabel)
    except Unreadable:
        raise
    except Exception as error:  # nibabel, numpy and gzip raise many types on damaged files
        raise _unreadable(error) from error
    # A fifth axis is a vector's, beside a single moment.
    channels = [axis for axis in range(3, len(shape)) if shape[axis] > 1] or [3][: len(shape) - 3]
    if len(shape) < 2 or len(channels) > 1:
        raise Unreadable(f"an array of shape {shape} is no volume [x, y, z, t]: cut it into some")
    axes = (*range(min(3, len(shape))), *channels)
    dtype = stored.dtype.newbyteorder("=")
    if (stored.slope, stored.inter) != (1, 0):
        dtype = np.result_type(dtype, np.float32)
    return Array(
        shape=tuple(shape[axis] for axis in axes),
        dtype=dtype,
        read=functools.partial(_read, stored, axes, dtype),
        sides=min(3, len(shape)),
        spacing=spacing,
        frame=frame,
    )


def write(
    path: str | os.PathLike[str],
    values: Float[np.ndarray, "x y z c"],
    frame: Frame | None,
    description: str = "",
) -> None:
    """Write float32 values to a `.nii` or `.nii.gz` file; the sizes of voxels are those of `frame`.

    The file is written whole or not at all. Its header holds 79 bytes of the description.

    Raises:
      ValueError: the values or the frame have not three sides.
      ImportError: nibabel is not installed.
    """
    nibabel = _import_nibabel()
    if values.ndim != 4 or frame is not None and frame.affine.shape != (4, 4):
        raise ValueError(
            f"values of shape {values.shape} have not three sides, as NIfTI files do: write .npz"
        )
    affine = np.eye(4) if frame is None else np.array(frame.affine, np.float64)
    if frame is not None and frame.corner:  # the centre of the first voxel
        affine[:3, 3] += affine[:3, :3].sum(1) / 2
    kind = nibabel.Nifti1Image if max(values.shape) <= _MAX_SIDE else nibabel.Nifti2Image
    image = kind(np.asarray(values, np.float32), affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description.encode()[:79]
    opened = gzip.open if str(path).lower().endswith("gz") else open
    with files.whole(str(path)) as temporary, opened(temporary, "wb") as file:
        image.to_stream(file)


def _import_nibabel() -> Any:
    try:
        import nibabel
    except ImportError as error:
        raise ImportError(
            "reading NIfTI files needs nibabel: pip install 'mae_jax[nifti]'"
        ) from error
    return nibabel


def _unreadable(error: Exception) -> Unreadable:
    return Unreadable(f"not a readable NIfTI file ({reason(error)}): save it again")


def _is_packed(stored: Any) -> bool:
    return stored.file_like.lower().endswith("gz")


def _check(stored: Any, shape: tuple[int, ...]) -> None:
    """Raise an `Unreadable` unless a proxy of nibabel has real numbers, all of them in its file."""
    if stored.dtype.kind not in "iuf":
        names = ", ".join(stored.dtype.names or [stored.dtype.name])
        raise Unreadable(f"voxels of ({names}) are no real numbers: save one of their parts")
    if min(shape, default=0) < 1:
        raise Unreadable(f"a volume of shape {shape} is empty: remove it")
    needed = stored.offset + math.prod(shape) * stored.dtype.itemsize
    if not os.path.exists(stored.file_like):
        raise Unreadable(f"its values would be in {os.path.basename(stored.file_like)!r}: add it")
    size = os.path.getsize(stored.file_like)
    if needed > size * (_MAX_RATIO if _is_packed(stored) else 1):
        raise Unreadable(
            f"the header promises {needed} bytes, and the file has {size}: it is truncated or "
            "damaged, save it again"
        )


def _geometry(image: Any, nibabel: Any) -> tuple[tuple[float, ...] | None, Frame | None]:
    """Return the lengths of the sides of a voxel in millimetres, and the frame of a volume."""
    units = getattr(image.header, "get_xyzt_units", lambda: ("mm",))()
    unit, sides = _MILLIMETRES.get(units[0], 1.0), min(3, len(image.shape))
    zooms = np.asarray(image.header.get_zooms()[:sides], np.float64) * unit
    spacing = tuple(zooms.tolist()) if (np.isfinite(zooms) & (zooms > 0)).all() else None
    if sides < 3 or not isinstance(image, nibabel.nifti1.Nifti1Pair | nibabel.MGHImage):
        return spacing, None
    affine = np.diag([unit, unit, unit, 1.0]) @ image.affine
    is_frame = np.isfinite(affine).all() and np.linalg.det(affine) != 0
    return spacing, Frame(affine, corner=False) if is_frame else None


def _read(
    stored: Any, axes: tuple[int, ...], dtype: np.dtype, part: Part
) -> Shaped[np.ndarray, "*part"]:
    from nibabel.volumeutils import apply_read_scaling

    index: list[Any] = [0] * len(stored.shape)
    for axis, cut in zip(axes, part, strict=True):
        index[axis] = cut
    size = math.prod(map(int, stored.shape)) * stored.dtype.itemsize
    try:
        if _is_packed(stored) and size > _MAX_HELD:
            return np.array(stored[tuple(index)], dtype)
        if _is_packed(stored):  # the volumes used last are held
            key = stored.file_like, os.stat(stored.file_like).st_mtime_ns
            whole = _CACHE.get(key, functools.partial(_unpack, stored))
        else:
            whole = stored.get_unscaled()
        values = apply_read_scaling(whole[tuple(index)], stored.slope, stored.inter)
        return np.array(values, dtype)
    except Exception as error:
        raise _unreadable(error) from error


def _unpack(stored: Any) -> np.ndarray:
    """Return the numbers of a compressed file, to which no slope is applied."""
    from nibabel.openers import ImageOpener
    from nibabel.volumeutils import array_from_file

    opener: Any = ImageOpener(stored.file_like)
    with opener as file:
        volume = array_from_file(stored.shape, stored.dtype, file, stored.offset, stored.order)
        while file.read(2**20):  # the end of the file has its checksum
            pass
    return volume
