"""Files of named columns: CSV by the standard library, and Parquet by pyarrow."""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Columns = Mapping[str, Sequence[Any] | np.ndarray]  # None and NaN are missing values
Writer = Callable[[Path, Columns], None]


def writer(path: str) -> Writer:
    """Return the function that writes columns to such a file.

    Raises:
      ValueError: the suffix is none of `WRITERS`.
      ImportError: the format needs a package that is not installed.
    """
    suffix = Path(path).suffix
    if suffix not in WRITERS:
        raise ValueError(f"{path!r} must end in {' or '.join(WRITERS)}")
    if suffix == ".parquet":
        _import_pyarrow()
    return WRITERS[suffix]


def write_csv(path: Path, columns: Columns) -> None:
    """Write a line of titles and a line for each row, in UTF-8; a missing value is empty."""
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(columns)
        for row in zip(*columns.values(), strict=True):
            lines.writerow("" if x is None or x != x else x for x in row)


def write_parquet(path: Path, columns: Columns) -> None:
    """Write a table of the same columns; a missing value is null."""
    pyarrow, parquet = _import_pyarrow()
    arrays = {name: pyarrow.array(x, from_pandas=True) for name, x in columns.items()}
    parquet.write_table(pyarrow.table(arrays), path)


WRITERS: dict[str, Writer] = {".csv": write_csv, ".parquet": write_parquet}


def _import_pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            "writing .parquet needs pyarrow: pip install 'mae_jax[parquet]', or write a .csv file"
        ) from error
    return pyarrow, parquet
