"""What happens to a process from outside: it is asked to stop, or nothing moves any more."""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

PREEMPTED, STOPPED = 42, 130  # exit statuses after SIGTERM and Ctrl-C: the same command continues


class Interruption:
    """SIGTERM and the first Ctrl-C ask for a stop; `status` is then what to exit with, else 0.

    The signal itself ends the process, by SystemExit with that status, while there is nothing to
    finish: `with at_once()`. A second Ctrl-C ends it in any case.
    """

    def __init__(self):
        self.status, self.nothing_to_finish, self.polls, self.interrupts = 0, False, 0, 0

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal ends the process where it stands; one from before, at the beginning."""
        self.nothing_to_finish = True
        try:
            if self.status:
                raise SystemExit(self.status)
            yield
        finally:
            self.nothing_to_finish = False

    def handle(self, number, frame) -> None:
        again = self.status
        self.status = again or (PREEMPTED if number == signal.SIGTERM else STOPPED)
        self.interrupts += number == signal.SIGINT
        if self.nothing_to_finish and not again:
            _say(b"\nstopping; the same command continues\n")
            raise SystemExit(self.status)
        if self.interrupts > 1:
            raise KeyboardInterrupt
        if not again:
            _say(b"\nstopping after this step; Ctrl-C again stops at once, without saving\n")

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
def handled() -> Iterator[Interruption]:
    """An `Interruption` that knows of the signals inside.

    Several processes learn of SIGTERM by jax's own handler, and a Ctrl-C counts as one. In other
    threads than the main one nothing is handled.
    """
    asked = Interruption()
    handlers: dict[int, Callable] = {signal.SIGTERM: asked.handle, signal.SIGINT: asked.handle}
    if jax.process_count() > 1:

        def hand_on(number, frame):
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.kill(os.getpid(), signal.SIGTERM)

        handlers = {signal.SIGINT: hand_on}
    if threading.current_thread() is not threading.main_thread():
        handlers = {}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield asked
    finally:
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
