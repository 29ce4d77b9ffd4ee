"""A cache of large values that is bounded by their bytes."""

import collections
import threading
from collections.abc import Callable
from typing import Any


class Cache:
    """The values read last, up to a number of bytes in all; safe to use from many threads."""

    def __init__(self, limit: int):
        self._limit, self._lock = limit, threading.Lock()
        self._entries: collections.OrderedDict[Any, _Entry] = collections.OrderedDict()

    def get(self, key: Any, read: Callable[[], Any]) -> Any:
        """Return `read()`, which has `nbytes`; one thread reads a key while the others wait."""
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
        with entry.lock:
            if entry.value is None:
                entry.value = read()
                entry.size = entry.value.nbytes
        with self._lock:
            size = sum(entry.size for entry in self._entries.values())
            while size > self._limit and len(self._entries) > 1:
                size -= self._entries.popitem(last=False)[1].size
        return entry.value


class _Entry:
    def __init__(self):
        self.lock, self.value, self.size = threading.Lock(), None, 0
