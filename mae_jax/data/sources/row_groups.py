"""Row groups of Parquet files, of which the last ones are kept in memory."""

import bisect
import collections
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.sources import arrow_columns

KEPT = 2**30  # bytes in memory


class Cache:
    """The values read last, up to a number of bytes in all; safe to use from many threads."""

    def __init__(self, limit: int):
        self._limit, self._lock = limit, threading.Lock()
        self._entries: collections.OrderedDict[Any, _Entry] = collections.OrderedDict()

    def get(self, key: Any, read: Callable[[Any], Any]) -> Any:
        """Return `read(key)`, which has `nbytes`; one thread reads while the others wait."""
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
        with entry.lock:
            if entry.value is None:
                entry.value = read(key)
                entry.size = entry.value.nbytes
        with self._lock:
            size = sum(entry.size for entry in self._entries.values())
            while size > self._limit and len(self._entries) > 1:
                size -= self._entries.popitem(last=False)[1].size
        return entry.value


class _Entry:
    def __init__(self):
        self.lock, self.value, self.size = threading.Lock(), None, 0


class Group(NamedTuple):
    """A column of a row group."""

    path: str
    changed: int  # when, in nanoseconds
    number: int
    column: str


_CACHE = Cache(KEPT)  # of the process, so that sources stay picklable


def load(groups: Sequence[Group], ends: Sequence[int], row: int) -> Any:
    """Return the input in a row; `ends` are the numbers of rows up to the end of each group.

    Raises:
      Unreadable: the row group is damaged, or see `arrow_columns.value`.
    """
    k = bisect.bisect_right(ends, row)
    cells = _CACHE.get(groups[k], _read)
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
