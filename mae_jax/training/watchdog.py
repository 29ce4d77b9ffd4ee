"""A watchdog for runs without progress."""

import contextlib
import faulthandler
import logging
import sys
import threading
import time

_log = logging.getLogger(__name__)


class Watchdog:
    """A thread that shows the stacks of all threads `timeout` seconds after the last `reset()`.

    Python runs one thread at a time, so no other thread runs while this one walks their frames.
    `faulthandler.dump_traceback_later` walks the frames of running threads, which can crash.
    """

    def __init__(self, timeout: float):
        self.timeout, self._closed = timeout, threading.Event()
        self.reset()
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    def reset(self) -> None:
        self._moved = time.monotonic()

    def close(self) -> None:
        self._closed.set()

    def _watch(self) -> None:
        dumped = None
        while not self._closed.wait(min(1.0, self.timeout / 4)):
            moved = self._moved
            if time.monotonic() - moved > self.timeout and moved != dumped:
                dumped = moved
                _log.warning(
                    "nothing has moved for %g s (recovery.stall_timeout): the stacks of all "
                    "threads follow; training goes on once the cause ends",
                    self.timeout,
                )
                with contextlib.suppress(OSError, ValueError, AttributeError):  # e.g. no stderr
                    faulthandler.dump_traceback(sys.__stderr__ or sys.stderr, all_threads=True)
