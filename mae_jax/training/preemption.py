"""What happens to a process from outside: it is asked to stop, or nothing moves any more."""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

PREEMPTED, STOPPED = 42, 130  # exit statuses after SIGTERM and Ctrl-C: the same command continues
STATUS = {"SIGTERM": PREEMPTED, "SIGINT": STOPPED, "SIGHUP": 129}


class Interruption:
    """SIGTERM and the first Ctrl-C ask for a stop; `status` is then what to exit with, else 0.

    While there is nothing to finish, `with at_once()`, the signal itself ends the process. A second
    Ctrl-C ends it in any case.

    Args:
      own: the process is there for this alone: it may be ended within a compilation, too, where an
        exception would wait for minutes and then crash it.
    """

    def __init__(self, own: bool = False):
        self.own, self.status, self.interrupts, self.polls = own, 0, 0, 0
        self.finish: Callable[[], bool] | None = None

    @contextlib.contextmanager
    def at_once(self, finish: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """Inside, a signal ends the process where it stands; one from before, at the beginning.

        That is by SystemExit if the process is not our own, or if `finish()`, which may be called
        by another thread, says that there is something left to do.
        """
        before, self.finish = self.finish, finish
        try:
            if self.status:
                raise SystemExit(self.status)
            yield
        finally:
            self.finish = before

    def handle(self, number: int, frame: Any = None) -> None:
        again = self.status
        self.status = again or STATUS[signal.Signals(number).name]
        self.interrupts += number == signal.SIGINT
        if self.finish and not again:
            _say(b"\nstopping; the same command continues\n")
            if self.own and self.finish():
                os._exit(self.status)
            raise SystemExit(self.status)
        if self.interrupts > 1:
            raise KeyboardInterrupt
        if not again:
            _say(b"\nstopping after this step; Ctrl-C again stops at once, without saving\n")

    def watch(self, pipe: int) -> None:
        """Of the numbers of signals: `handle` waits for Python, which a compilation keeps."""
        while number := os.read(pipe, 1):
            name = signal.Signals(number[0]).name
            if name in STATUS and self.finish and self.finish():
                _say(b"\nstopping; the same command continues\n")
                os._exit(self.status or STATUS[name])

    def agreed(self) -> int:
        """The status, once every process has come to this call as often as the first to know."""
        if jax.process_count() > 1:
            self.polls += 1
            if multihost_utils.reached_preemption_sync_point(self.polls):
                self.status = PREEMPTED
        return self.status


def _say(text: bytes) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # a stderr that is no file
        os.write(sys.stderr.fileno(), text)


@contextlib.contextmanager
def handled(own: bool = False) -> Iterator[Interruption]:
    """An `Interruption` that knows of the signals inside; SIGHUP, too, unless it is ignored.

    Several processes learn of SIGTERM by jax's own handler, and a Ctrl-C counts as one. In other
    threads than the main one nothing is handled.
    """
    asked = Interruption(own)
    numbers = [getattr(signal, name) for name in STATUS if hasattr(signal, name)]
    numbers = [x for x in numbers if signal.getsignal(x) is not signal.SIG_IGN]
    handlers: dict[int, Callable] = {number: asked.handle for number in numbers}
    if jax.process_count() > 1:

        def hand_on(number, frame):
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.kill(os.getpid(), signal.SIGTERM)

        handlers = {signal.SIGINT: hand_on}
    if threading.current_thread() is not threading.main_thread():
        handlers = {}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    written = None
    if own and handlers and jax.process_count() == 1:
        read, written = os.pipe()
        os.set_blocking(written, False)
        signal.set_wakeup_fd(written, warn_on_full_buffer=False)
        threading.Thread(target=asked.watch, args=(read,), daemon=True, name="signals").start()
    try:
        yield asked
    finally:
        if written is not None:
            signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)


class Watch:
    """Says on stderr what every thread does when nothing has been done for `seconds`."""

    def __init__(self, seconds: float, told: Callable[[str], None]):
        self.seconds, self.told, self.ended = seconds, told, threading.Event()
        self.does("starting")
        threading.Thread(target=self._look, daemon=True, name="watch").start()

    def does(self, what: str) -> None:
        """Something else begins."""
        self.now = (time.monotonic(), what)

    def _look(self) -> None:
        said = None
        while not self.ended.wait(min(1.0, self.seconds / 4)):
            began, what = now = self.now
            if time.monotonic() - began > self.seconds and now is not said:
                said = now
                self.told(
                    f"{what} for more than {self.seconds:g} s (recovery.stall): the stacks of all "
                    "threads follow; training goes on if that ever ends"
                )
                with contextlib.suppress(Exception):  # a stderr that is no file
                    faulthandler.dump_traceback(sys.__stderr__ or sys.stderr, all_threads=True)

    def close(self) -> None:
        self.ended.set()
