"""Rows of Parquet files."""

import functools
import itertools
import logging
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from mae_jax.data import notices
from mae_jax.data.sources import arrow_columns, row_groups, shards, tables
from mae_jax.data.sources.source import Examples

_log = logging.getLogger(__name__)
_LARGE = 2**26  # bytes of a row group that are many to read for one example


def rows(place: str, split: str, modality: str) -> Examples:
    """Open the rows of Parquet files: `PATH` or `PATH::COLUMNS`.

    `shards.find` says what PATH may be, `arrow_columns.choose` COLUMNS, and `arrow_columns.value`
    the values of an input. Labels, splits, groups and folds are in columns as in
    `tables.read_csv`. A whole number as a label is the number of a class, whose name the file may
    have from Hugging Face's `datasets`. To read an example a row group is read, and the last ones
    are kept, up to 1 GiB in all.

    Raises:
      FileNotFoundError: there are no such files.
      ValueError: a file is damaged or no Parquet file, or has no such columns or splits.
      ImportError: pyarrow is not installed.
    """
    arrow_columns.import_pyarrow("parquet")
    path, _, columns = place.partition("::")
    found = shards.find(path, split, "parquet", f"parquet:{place}")
    return of_files(found, columns, split, modality, f"parquet:{place}")


def of_files(files: dict[str, str], columns: str, split: str, modality: str, spec: str) -> Examples:
    """Open the rows of files, each with the name of its split or ""; otherwise as `rows`."""
    import pyarrow

    parts = [_open(path, columns, modality, spec) for path in files]
    groups = [group for part in parts for group in part.groups]
    ends = [*itertools.accumulate(count for part in parts for count in part.counts)]
    _tell_large(groups, parts, spec)
    try:
        table = pyarrow.concat_tables([part.table for part in parts], promote_options="permissive")
    except pyarrow.ArrowException as error:
        raise ValueError(f"data {spec!r} has files with different columns: {error}") from error
    values: dict[str, Sequence[Any]] = {
        name: table[name].to_pylist() for name in table.column_names
    }
    if any(files.values()) and "split" not in values:
        of_parts = zip(files.values(), parts, strict=True)
        values["split"] = [name for name, part in of_parts for _ in range(part.table.num_rows)]
    names = zip(shards.short_names(files), parts, strict=True)
    places = [f"{name}[{i}]" for name, part in names for i in range(part.table.num_rows)]
    schemas, title = [(part.path, part.schema) for part in parts], f"data {spec!r}"
    classes = arrow_columns.class_names(schemas, table.column_names, title)
    label = columns.partition(",")[2]
    labelled = arrow_columns.label_table(values, table.schema, places, classes, label, title)
    load = functools.partial(row_groups.load, groups, ends)
    return tables.examples(labelled, split, "", load, spec)


class _File(NamedTuple):
    path: str
    groups: Sequence[row_groups.Group]
    counts: Sequence[int]  # of rows, by group
    bytes: int  # of the columns, unpacked
    table: Any  # of labels and splits
    schema: Any  # of all columns


def _open(path: str, columns: str, modality: str, spec: str) -> _File:
    import pyarrow
    from pyarrow import parquet

    try:
        changed = os.stat(path).st_mtime_ns
        metadata = row_groups.read_metadata(path, changed)
        schema = metadata.schema.to_arrow_schema()
        column, others = arrow_columns.choose(schema.names, columns, modality, spec)
        with parquet.ParquetFile(path, metadata=metadata) as file:
            table = file.read(others)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path!r} is damaged, or no Parquet file: {error}") from error
    numbers = range(metadata.num_row_groups)
    groups = [row_groups.Group(path, changed, number, column) for number in numbers]
    all_of = [metadata.row_group(number) for number in numbers]
    size = sum(group.total_byte_size for group in all_of)
    counts = [group.num_rows for group in all_of]
    return _File(path, groups, counts, size, table, schema)


def _tell_large(groups: Sequence[row_groups.Group], parts: Sequence[_File], spec: str) -> None:
    size = sum(part.bytes for part in parts)
    if groups and size > row_groups.KEPT and size / len(groups) > _LARGE:
        notices.once(
            _log.warning,
            f"data {spec!r} has row groups of {size / len(groups) / 1e6:.0f} MB, one of which is "
            "read for nearly every example: write them smaller (row_group_size=100), or run "
            "python -m mae_jax.data.prepare",
        )
