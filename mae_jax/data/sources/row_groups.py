"""Row groups of Parquet files, of which the last ones are kept in memory."""

import bisect
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

from mae_jax.data import cache
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.sources import arrow_columns

KEPT = 2**30  # bytes in memory


class Group(NamedTuple):
    """A column of a row group."""

    path: str
    changed: int  # when, in nanoseconds
    number: int
    column: str


_CACHE = cache.Cache(KEPT)  # of the process, so that sources stay picklable


def load(groups: Sequence[Group], ends: Sequence[int], row: int) -> Any:
    """Return the input in a row; `ends` are the numbers of rows up to the end of each group.

    Raises:
      Unreadable: the row group is damaged, or see `arrow_columns.value`.
    """
    k = bisect.bisect_right(ends, row)
    cells = _CACHE.get(groups[k], functools.partial(_read, groups[k]))
    start = ends[k - 1] if k else 0
    return arrow_columns.value(cells.slice(row - start, 1).combine_chunks())


@functools.lru_cache(maxsize=1024)
def read_metadata(path: str, changed: int) -> Any:
    """Return the metadata of a Parquet file that was changed at this time."""
    from pyarrow import parquet

    return parquet.read_metadata(path)


def _read(group: Group) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        metadata = read_metadata(group.path, group.changed)
        with parquet.ParquetFile(group.path, metadata=metadata) as file:
            table = file.read_row_group(group.number, [group.column], use_threads=False)
        return table[group.column]
    except (pyarrow.ArrowException, OSError) as error:
        raise Unreadable(
            f"row group {group.number} of {group.path!r} is damaged: {error}"
        ) from error
