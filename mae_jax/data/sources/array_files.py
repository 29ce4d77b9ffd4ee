"""Files of arrays: a folder of them, or one whose first axis counts the examples."""

import functools
import importlib
import os
from pathlib import Path
from typing import Any

from mae_jax.data import array_io, arrays
from mae_jax.data.array_io import keys
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.sources import folders, labels, splits
from mae_jax.data.sources.source import Examples, check_split

ENDINGS = {  # of the files of each kind of source
    "arrays": tuple(array_io.FORMATS),
    "geotiff": ("tif", "tiff"),
    "hdf5": ("h5", "hdf5", "he5", "nc"),
    "zarr": ("zarr",),
    "npy": ("npy",),
    "npz": ("npz",),
    "nifti": ("nii", "nii.gz", "mgz", "mgh"),
}
_WITH_KEYS = ("hdf5", "zarr", "npz")
_STACKS = ("npy", "hdf5", "zarr")  # the readers of files that may hold many examples


def open_files(kind: str, path: str, split: str) -> Examples:
    """Open a folder of arrays, or one file: `PATH`, or `PATH::KEY` of files with several arrays.

    Of a folder each file with an ending of the kind is an example, with labels and splits as in
    `folders.pictures`, which may be followed by `::COLUMN` of its table; a Zarr store counts as a
    file. `source[i]["image"]` is its path, with the key. Of one HDF5 file, Zarr store, `.npy` or
    `.npz` file the items of the first axis are the examples, as `arrays.Array`. An array "label" or
    "labels" beside the array has their labels: whole numbers are classes, or unknown if they are
    negative, and other numbers are to be predicted as such. A tenth of the items is held out, by
    the CRC-32 of their numbers. Another file is one example.

    Raises:
      FileNotFoundError: there is no such folder or file, or the folder holds no such files.
      ValueError: the split is unknown or empty, or the file or its labels are of another kind.
    """
    spec = f"{kind}:{path}"
    place, _, rest = path.partition("::")
    place = os.path.expanduser(place)
    key, _, column = rest.partition("::") if kind in _WITH_KEYS else ("", "", rest)
    load = functools.partial(_with_key, key.strip("/"))
    reader = array_io.FORMATS[ENDINGS[kind][0]]
    if kind == "arrays":
        ends = [end for end in array_io.FORMATS if place.lower().endswith(f".{end}")]
        reader = array_io.FORMATS[ends[0]] if ends else ""
    is_store = reader == "zarr" and (place.endswith(".zarr") or _module(reader).is_store(place))
    if not os.path.isfile(place) and not is_store:
        place = f"{place}::{column}" if column else place
        return folders.from_listing(
            folders.list_files(place, split, ENDINGS[kind], spec, "arrays"), load
        )
    check_split(spec, split, splits.SPLITS)
    file = Path(place)
    if reader in _STACKS:
        return _items(spec, _module(reader), load(file), split)
    if not (names := tuple(splits.hold_out([file.name], split))):
        raise ValueError(f"data {spec!r} is one array, which is no example of split {split!r}")
    return folders.from_listing(folders.Listing(file.parent, names, labels.none(1)), load)


def _with_key(key: str, path: Path) -> str:
    return f"{path}::{key}" if key else str(path)


def _module(reader: str) -> Any:
    return importlib.import_module(f"{array_io.__name__}.{reader}")


def _items(spec: str, module: Any, path: str, split: str) -> Examples:
    """Return the items of the first axis of an array, with their labels."""
    try:
        opened = module.open_array(path)
        if not opened.shape:
            raise Unreadable("the array is one number: its first axis would count the examples")
        count = opened.shape[0]
        of_items = _labels(module, path, count)
    except ValueError as error:
        raise ValueError(f"data {spec!r}: {error}") from error
    chosen = [int(i) for i in splits.hold_out([*map(str, range(count))], split)]
    if not chosen:
        raise ValueError(f"data {spec!r} has too few items for split {split!r}: use 'all'")
    stem = Path(keys.split(path)[0]).name
    names = [f"{stem}[{i}]" for i in chosen]
    load = functools.partial(_item, opened, chosen)
    return labels.labelled(load, of_items.of(chosen), names)


def _item(opened: arrays.Array, chosen: list[int], i: int) -> arrays.Array:
    return arrays.item(opened, chosen[i])


def _labels(module: Any, path: str, count: int) -> labels.Labels:
    """Return the labels of all items, from the array of labels beside the array."""
    place, key = keys.split(path)
    held = module.list_keys(place)
    key = key or next((k for k in held if k.rpartition("/")[2] not in keys.LABELS), "")
    group = f"{key.rpartition('/')[0]}/".lstrip("/")
    found = [group + name for name in keys.LABELS if group + name in held and group + name != key]
    if not found:
        return labels.none(count)
    opened = module.open_array(f"{place}::{found[0]}")
    if opened.shape != (count,):
        raise Unreadable(
            f"the labels {found[0]!r} have shape {opened.shape}, not ({count},): correct them, or "
            "give them another name"
        )
    values = opened.read(opened.whole).tolist()
    if opened.dtype.kind == "f":
        return labels.numbers({found[0]: values})
    return labels.one_class([int(value) if value >= 0 else None for value in values])
