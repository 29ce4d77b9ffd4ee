"""Arrays in HDF5 files, and so in those of netCDF-4 and MATLAB 7.3: `FILE::KEY`, read by h5py."""

import contextlib
import functools
import logging
import os
import posixpath
from collections.abc import Iterator
from typing import Any

import numpy as np

from mae_jax.data import arrays, notices
from mae_jax.data.array_io import keys, packing, per_thread
from mae_jax.data.bad_examples import Unreadable, reason

_MAX_LINKS = 16  # soft links on the way to an array
_MATLAB = (
    "MATLAB stores axes in reverse: what is (h, w, c) there is read as [c, w, h], so that pictures "
    "lie on their sides"
)
_log = logging.getLogger(__name__)


def open_array(path: str) -> arrays.Array:
    """Open an array of an HDF5 file; without a key, the only one.

    Arrays of labels, and those that netCDF has for the steps along an axis, do not count as others.
    Attributes say scale and missing values (`packing.from_attributes`). Nothing outside of the
    file is read: neither external links and external data nor virtual arrays of other files.

    Raises:
      Unreadable: the file is of another kind or damaged, or holds no such array of real numbers.
      OSError: the file does not exist.
      ImportError: h5py is not installed.
    """
    place, key = keys.split(path)
    with _translated(), _open(place) as file:
        key = key or keys.only(_numbers(file))
    opened = per_thread.PerThread(functools.partial(_open_dataset, place, key))
    _, dataset = opened.get()
    with _translated():
        shape, dtype = dataset.shape or (), dataset.dtype
        arrays.check(shape if dataset.shape is not None else (0,), dtype)
        if dataset.chunks:
            arrays.check_bytes("a chunk", dataset.chunks, dtype, "write smaller chunks")
        packed = packing.from_attributes(dataset.attrs, dtype)
        if "MATLAB_class" in dataset.attrs:
            notices.once(_log.warning, _MATLAB)
    read = functools.partial(_read, opened, packed)
    return arrays.Array(shape, packed.dtype, read, nodata=packed.missing)


def list_keys(place: str) -> tuple[str, ...]:
    """Return the keys of the arrays of numbers in a file."""
    with _translated(), _open(place) as file:
        return tuple(_numbers(file))


def _read(opened: per_thread.PerThread, packed: packing.Packing, part: arrays.Part) -> np.ndarray:
    _, dataset = opened.get()
    with _translated():
        shape = arrays.lengths(part, dataset.shape)
        arrays.check_bytes("a part", shape, dataset.dtype, "split the array")
        return packed.unpack(dataset[part])


def _open(place: str) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ImportError("HDF5 files need h5py: pip install 'mae_jax[hdf5]'") from error
    os.stat(place)
    return h5py.File(place, "r")


def _open_dataset(place: str, key: str) -> tuple[Any, Any]:
    """Return an open file, which its array needs, and the array at `key`."""
    with _translated():
        file = _open(place)
        return file, _find(file, key)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Raise `Unreadable` instead of the many types that h5py raises on damaged files."""
    try:
        yield
    except (Unreadable, FileNotFoundError, ImportError):
        raise
    except Exception as error:
        raise Unreadable(
            f"no readable HDF5 file ({reason(error)}): save it again, netCDF-3 as netCDF-4"
        ) from error


def _numbers(file: Any) -> Iterator[str]:
    """Yield the keys of the arrays of numbers, without following links."""
    import h5py

    found = []
    file.visititems(lambda name, node: found.append((name, node)))
    for name, node in found:
        if isinstance(node, h5py.Dataset) and node.dtype.kind in "biuf" and not node.is_scale:
            yield name


def _find(file: Any, key: str) -> Any:
    """Return the array at `key`, which lies in this file."""
    import h5py

    node = _follow(file, key)
    if not isinstance(node, h5py.Dataset):
        raise Unreadable(f"{key!r} is no array; the file holds {keys.shown(_numbers(file))}")
    if node.external or node.is_virtual and any(s.file_name != "." for s in node.virtual_sources()):
        raise Unreadable(f"the array {key!r} lies in other files, which are not read: copy it")
    return node


def _follow(file: Any, key: str) -> Any:
    """Return the object at `key`, or None, following links within the file only."""
    import h5py

    todo, done, links = key.split("/")[::-1], "/", 0
    while todo:
        name = todo.pop()
        if name in ("", "."):
            continue
        group = file[done]
        link = group.get(name, getlink=True) if isinstance(group, h5py.Group) else None
        if isinstance(link, h5py.ExternalLink):
            raise Unreadable(f"{key!r} links to another file, which is not read: copy the array")
        if isinstance(link, h5py.SoftLink):
            links += 1
            if links > _MAX_LINKS:
                raise Unreadable(f"{key!r} is a link to itself: correct it")
            todo += link.path.split("/")[::-1]
            done = "/" if link.path.startswith("/") else done
        elif link is None:
            return None
        else:
            done = posixpath.join(done, name)
    return file[done]
