"""Arrays in Zarr stores of formats 2 and 3 on the disk: `STORE::KEY`, read by zarr."""

import functools
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mae_jax.data import arrays
from mae_jax.data.array_io import keys, packing
from mae_jax.data.bad_examples import Unreadable, reason
from mae_jax.output import files

METADATA = ("zarr.json", ".zarray", ".zgroup")  # a folder with one of these files is a store
# Codecs of numbers alone. Others may run code that lies in the store, as that of pickles does.
_CODECS = frozenset(
    "adler32 astype bitround blosc bytes bz2 crc32 crc32c delta fixedscaleoffset fletcher32 gzip "
    "jenkins_lookup3 lz4 lzma packbits pcodec quantize sharding_indexed shuffle transpose zfpy "
    "zlib zstd".split()
)


def open_array(path: str) -> arrays.Array:
    """Open an array of a store; without a key, the one at its root or the only one.

    Arrays of labels, and those that xarray has for the steps along an axis, do not count as others.
    Attributes say scale and missing values (`packing.from_attributes`), and a fill value other than
    0 stands for missing ones as well.

    Raises:
      Unreadable: the store is damaged, or holds no such array of real numbers.
      OSError: the store does not exist.
      ImportError: zarr is not installed.
    """
    place, key = keys.split(path)
    array = _find(place, key)
    shape, dtype = array.shape, array.dtype
    arrays.check(shape, dtype)
    if unknown := sorted({*_codecs(array.metadata.to_dict())} - _CODECS):
        raise Unreadable(f"the array is coded by {', '.join(unknown)}: write it by zstd or blosc")
    arrays.check_bytes("a chunk", array.chunks, dtype, "write smaller chunks")
    attributes = dict(array.attrs)
    if array.fill_value is not None and array.fill_value != 0:
        attributes.setdefault("_FillValue", np.asarray(array.fill_value))
    packed = packing.from_attributes(attributes, dtype)
    read = functools.partial(_read, array, packed)
    return arrays.Array(shape, packed.dtype, read, nodata=packed.missing)


def write(
    path: str, values: np.ndarray | Mapping[str, np.ndarray], attributes: Mapping[str, Any]
) -> None:
    """Write an array, or several by their keys, with attributes of the root of a store.

    The store is written whole or not at all, and takes the place of another one.

    Raises:
      FileExistsError: there is something else at `path`.
      ImportError: zarr is not installed.
    """
    zarr = _import()
    if os.path.lexists(path) and not is_store(path):
        raise FileExistsError(f"{path!r} is no Zarr store: remove it, or choose another name")
    root: dict[str, Any] = dict(attributes=dict(attributes), zarr_format=3)
    with files.whole(path) as temporary:
        if isinstance(values, Mapping):
            group = zarr.create_group(temporary, **root)
            for key, array in values.items():
                group.create_array(key, data=array)
        else:
            zarr.create_array(temporary, data=values, **root)


def list_keys(place: str) -> tuple[str, ...]:
    """Return the keys of the arrays of numbers in a store; the key of one at its root is ""."""
    return tuple(_numbers(_open(place)))


def is_store(place: str | os.PathLike[str]) -> bool:
    """Return whether a folder is a store."""
    return any(os.path.isfile(os.path.join(place, name)) for name in METADATA)


def _import() -> Any:
    try:
        import zarr
    except ImportError as error:
        raise ImportError("Zarr stores need zarr: pip install 'mae_jax[zarr]'") from error
    return zarr


def _open(place: str, key: str = "") -> Any:
    """Return zarr's group or array at `key`."""
    zarr = _import()
    os.stat(place)
    if not is_store(place):
        raise Unreadable(f"no Zarr store: its folder would hold {' or '.join(METADATA)}")
    try:
        return zarr.open(zarr.storage.LocalStore(place, read_only=True), path=key, mode="r")
    except Exception as error:  # zarr raises many types on damaged stores
        if key and isinstance(error, FileNotFoundError):
            return None
        raise _damaged(error) from error


def _find(place: str, key: str) -> Any:
    """Return zarr's array at `key`."""
    array = _open(place, key)
    if not key and not isinstance(array, _import().Array):
        array = _open(place, keys.only(_numbers(array)))
    if not isinstance(array, _import().Array):
        held = keys.shown(list_keys(place))
        raise Unreadable(f"{key!r} is no array; the store holds {held}")
    return array


def _numbers(node: Any) -> Iterator[str]:
    """Yield the keys of the arrays of numbers, without those that are coordinates of an axis."""
    zarr = _import()
    if isinstance(node, zarr.Array):
        yield ""
        return
    try:
        members = node.members(max_depth=None)
    except Exception as error:
        raise _damaged(error) from error
    for key, member in members:
        if isinstance(member, zarr.Array) and member.dtype.kind in "biuf":
            axes = member.attrs.get("_ARRAY_DIMENSIONS")
            axes = axes or getattr(member.metadata, "dimension_names", None) or ()
            if [*axes] != [key.rpartition("/")[2]]:
                yield key


def _codecs(metadata: Any) -> Iterator[str]:
    """Yield the names of the codecs, also those within codecs."""
    if isinstance(metadata, Mapping):
        groups = ("codecs", "index_codecs", "filters", "compressor", "configuration")
        if isinstance(name := metadata.get("id", metadata.get("name")), str):
            yield name.removeprefix("numcodecs.")
        for group in groups:
            yield from _codecs(metadata.get(group))
    elif isinstance(metadata, list | tuple):
        for codec in metadata:
            yield from _codecs(codec)


def _read(array: Any, packed: packing.Packing, part: arrays.Part) -> np.ndarray:
    shape = arrays.lengths(part, array.shape)
    arrays.check_bytes("a part", shape, array.dtype, "split the array")
    try:
        return packed.unpack(array[part])
    except Exception as error:
        raise _damaged(error) from error


def _damaged(error: Exception) -> Unreadable:
    return Unreadable(f"no readable Zarr store ({reason(error)}): write it again")
