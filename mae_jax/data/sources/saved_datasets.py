"""Data sets that `datasets` of Hugging Face saved to a disk."""

import bisect
import functools
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.sources import arrow_columns, folders, parquet_files, shards, tables
from mae_jax.data.sources.source import Examples


def saved(place: str, split: str, modality: str) -> Examples:
    """Open a folder: `PATH` or `PATH::COLUMNS`, as in `parquet_files.rows`.

    It is what `save_to_disk` of a Dataset or a DatasetDict wrote, whose splits are those of the
    data set, or has `.parquet` or `.arrow` files. Nothing is downloaded, no script is run, and
    the inputs are decoded as those of any other source.

    Raises:
      FileNotFoundError: there is no such folder, or it holds no data set.
      ValueError: the data set is damaged, or has no such columns or splits.
      ImportError: `datasets` is not installed.
    """
    arrow_columns.import_pyarrow("hf", "hf")
    path, _, columns = place.partition("::")
    root, spec = Path(path).expanduser(), f"hf:{place}"
    if not root.is_dir():
        raise FileNotFoundError(
            f"data {spec!r}: there is no folder {path!r}; nothing is downloaded: save the data set "
            "with its save_to_disk(), or give the folder of its .parquet files"
        )
    if any(folders.find_files(root, "", ("parquet",))):
        found = shards.find(path, split, "parquet", spec)
        return parquet_files.of_files(found, columns, split, modality, spec)
    parts = _open(root, split, spec)
    first = next(iter(parts))[0]
    column, others = arrow_columns.choose(first.column_names, columns, modality, spec)
    values: dict[str, Sequence[Any]] = {name: [] for name in others}
    for part, _ in parts if others else ():
        table = part.select_columns(others).with_format("arrow")[:]
        for name in others:
            values[name] = [*values[name], *table[name].to_pylist()]
    names = [name for _, name in parts]
    if len({*names}) > 1 and "split" not in values:
        values["split"] = [name for part, name in parts for _ in range(len(part))]
    places = [f"{name or 'row'}[{i}]" for part, name in parts for i in range(len(part))]
    schemas = [(name, part.features.arrow_schema) for part, name in parts]
    label, title = columns.partition(",")[2], f"data {spec!r}"
    classes = arrow_columns.class_names(schemas, others, title)
    table = arrow_columns.label_table(values, schemas[0][1], places, classes, label, title)
    ends = [*itertools.accumulate(len(part) for part, _ in parts)]
    inputs = [part.select_columns([column]).with_format("arrow") for part, _ in parts]
    return tables.examples(table, split, "", functools.partial(_load, inputs, ends, column), spec)


def _open(root: Path, split: str, spec: str) -> list[tuple[Any, str]]:
    """Return the data sets in a folder, each with the name of its split or ""."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"'hf:' needs datasets: pip install 'mae_jax[hf]' ({error})") from error
    try:
        if (stored := root / "dataset_dict.json").is_file():
            names = json.loads(stored.read_text("utf-8"))["splits"]
            return [(datasets.load_from_disk(str(root / name)), name) for name in names]
        if (root / "state.json").is_file():
            return [(datasets.load_from_disk(str(root)), "")]
        found = shards.find(str(root), split, "arrow", spec)
        return [(datasets.Dataset.from_file(file), name) for file, name in found.items()]
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"data {spec!r} holds no data set, or not all of its files: {error}"
        ) from error
    except Exception as error:  # datasets and pyarrow raise types of their own
        raise ValueError(f"data {spec!r} is damaged, or no data set: {error}") from error


def _load(inputs: Sequence[Any], ends: Sequence[int], column: str, row: int) -> bytes | np.ndarray:
    k = bisect.bisect_right(ends, row)
    try:
        i = row - (ends[k - 1] if k else 0)
        cells = inputs[k][i : i + 1][column]
    except Exception as error:
        raise Unreadable(f"the row is damaged: {error}") from error
    return arrow_columns.value(cells.combine_chunks())
