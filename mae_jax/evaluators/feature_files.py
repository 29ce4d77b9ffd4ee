"""Files of features: a row for each example, or a map of one input."""

import importlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from mae_jax.data.array_io import geotiff, nifti, zarr
from mae_jax.evaluators.dense import FeatureMap
from mae_jax.output import files

Metadata = Mapping[str, Any]  # what JSON can hold


class Rows(NamedTuple):
    """Pooled features of examples, in the order of their source."""

    names: list[Any]
    features: Float[np.ndarray, "n d"]  # NaN where an example has none
    labels: Shaped[np.ndarray, "n *k"]  # as in `sources.Source`
    label_columns: Mapping[str, Any]  # see `example_columns.labels`
    notes: list[str]  # why an example has no features, or ""


def row_writer(path: str) -> Callable[[str, Rows, Metadata], None]:
    """Return the function that writes rows to such a file.

    Raises:
      ValueError: files with this ending hold no rows.
      ImportError: the package that writes them is not installed.
    """
    return _writer(path, ROWS, "pooled features are written to {}")


def map_writer(path: str, sides: int) -> Callable[[str, FeatureMap, Metadata], None]:
    """Return the function that writes a map of inputs with so many sides to such a file.

    Raises:
      ValueError: files with this ending hold no such maps.
      ImportError: the package that writes them is not installed.
    """
    wrong = {2: (".nii", ".nii.gz"), 3: (".tif", ".tiff")}.get(sides, _OF_PLACES)
    endings = {end: write for end, write in MAPS.items() if end not in wrong}
    return _writer(path, endings, f"dense features of {sides} side(s) are written to {{}}")


def make_place(path: str, overwrite: bool) -> None:
    """Make the folder of a new file; raise ValueError if the file cannot be written, or exists."""
    target, folder = Path(path), Path(path).absolute().parent
    if target.is_dir() and not zarr.is_store(target):
        raise ValueError(f"{path!r} is a folder: give the path of a file")
    if target.exists() and not overwrite:
        raise ValueError(f"{path} exists already: give another --to, or --overwrite")
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{path!r} cannot be written: its folder is read-only")


def has_frame(path: str) -> bool:
    """Return whether files with this ending are read as maps of the world, or of a body."""
    return bool(ending(path, _OF_PLACES))


def ending(path: str, endings: Iterable[str]) -> str:
    """Return which of the endings a path has, or ""."""
    return max((end for end in endings if path.lower().endswith(end)), key=len, default="")


def _writer(path: str, endings: Mapping[str, Callable], rule: str) -> Callable:
    if not (end := ending(path, endings)):
        *others, last = endings
        raise ValueError(f"{path!r}: {rule.format(', '.join(others))} or {last}")
    package, extra = _PACKAGES.get(end, ("numpy", ""))
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"writing {end} needs {package}: pip install 'mae_jax[{extra}]', or write .npz"
        ) from error
    return endings[end]


def _write_parquet(path: str, rows: Rows, about: Metadata) -> None:
    """Write the columns `name`, those of labels, `feature` (a list of float32) and `note`."""
    import pyarrow
    from pyarrow import parquet

    has_none = np.array([bool(note) for note in rows.notes])
    flat = pyarrow.array(rows.features.ravel())
    width = rows.features.shape[1]
    values = {"name": pyarrow.array(rows.names)}
    values |= {n: pyarrow.array(x, from_pandas=True) for n, x in rows.label_columns.items()}
    values["feature"] = pyarrow.FixedSizeListArray.from_arrays(
        flat, width, mask=pyarrow.array(has_none)
    )
    values["note"] = pyarrow.array([note or None for note in rows.notes], pyarrow.string())
    table = pyarrow.table(values).replace_schema_metadata({"mae_jax": json.dumps(about)})
    with files.whole(path) as temporary:
        parquet.write_table(table, temporary)


def _write_npz_rows(path: str, rows: Rows, about: Metadata) -> None:
    text = dict(names=np.array(rows.names), notes=np.array(rows.notes, str))
    _write_npz(path, text | dict(features=rows.features, labels=rows.labels), about)


def _write_zarr_rows(path: str, rows: Rows, about: Metadata) -> None:
    attributes = {**about, "names": rows.names, "notes": rows.notes}
    zarr.write(path, dict(features=rows.features, labels=rows.labels), attributes)


def _write_geotiff(path: str, found: FeatureMap, about: Metadata) -> None:
    geotiff.write(path, found.values, found.frame, nodata=np.nan, tags=about)


def _write_nifti(path: str, found: FeatureMap, about: Metadata) -> None:
    nifti.write(path, found.values, found.frame, description=str(about["feature"]))


def _write_npz_map(path: str, found: FeatureMap, about: Metadata) -> None:
    place = {}
    if found.frame:
        place = dict(affine=found.frame.affine, crs=np.array(found.frame.crs))
    if found.spacing:
        place["spacing"] = np.array(found.spacing)
    _write_npz(path, dict(features=found.values, **place), {**about, **_corner(found)})


def _write_zarr_map(path: str, found: FeatureMap, about: Metadata) -> None:
    place = _corner(found)
    if found.frame:
        place |= dict(affine=found.frame.affine.tolist(), crs=found.frame.crs)
    if found.spacing:
        place["spacing"] = list(found.spacing)
    zarr.write(path, found.values, {**about, **place})


def _corner(found: FeatureMap) -> dict[str, Any]:
    """Return what whole indices mean in the affine matrix."""
    return {"index": "corner" if found.frame.corner else "centre"} if found.frame else {}


def _write_npz(path: str, arrays: Mapping[str, np.ndarray], about: Metadata) -> None:
    """Write arrays, and a text of JSON `metadata`, all of which numpy reads without pickles."""
    with files.whole(path) as temporary, open(temporary, "wb") as file:
        everything: dict[str, Any] = dict(arrays, metadata=np.array(json.dumps(about)))
        np.savez(file, **everything)


_PACKAGES = {  # and the extras that install them
    ".parquet": ("pyarrow", "parquet"),
    ".zarr": ("zarr", "zarr"),
    **dict.fromkeys((".tif", ".tiff"), ("rasterio", "geotiff")),
    **dict.fromkeys((".nii", ".nii.gz"), ("nibabel", "nifti")),
}
_OF_PLACES = (".tif", ".tiff", ".nii", ".nii.gz")
ROWS = {".parquet": _write_parquet, ".npz": _write_npz_rows, ".zarr": _write_zarr_rows}
MAPS = {
    **dict.fromkeys((".tif", ".tiff"), _write_geotiff),
    **dict.fromkeys((".nii", ".nii.gz"), _write_nifti),
    ".npz": _write_npz_map,
    ".zarr": _write_zarr_map,
}
