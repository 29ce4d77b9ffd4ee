"""Lines of the log that a process writes once, though many examples or splits give rise to them."""

import threading
from collections.abc import Callable
from typing import Any

_told: set[tuple[Any, ...]] = set()
_lock = threading.Lock()


def once(log: Callable[..., None], text: str, *arguments: Any) -> None:
    """Call `log(text, *arguments)` unless it was called with the same; safe to use from threads.

    Args:
      log: a method of a logger, such as `_log.warning`.
      arguments: what `text` is formatted with; they are hashable.
    """
    key = (text, *arguments)
    with _lock:
        if key in _told:
            return
        _told.add(key)
    log(text, *arguments)
