"""Files that stay open between reads, one for each thread."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerThread(Generic[T]):
    """What `open()` returns, called once by each thread that needs it; picklable if `open` is.

    Files are closed when this object is dropped, or their thread ends.
    """

    def __init__(self, open: Callable[[], T]):
        self._open, self._local = open, threading.local()

    def __reduce__(self):
        return PerThread, (self._open,)

    def get(self) -> T:
        """Return that of this thread."""
        if not hasattr(self._local, "opened"):
            self._local.opened = self._open()
        return self._local.opened
