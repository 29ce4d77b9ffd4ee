"""Signals to stop a process: a scheduler's (SIGTERM), Ctrl-C, or a closed terminal's (SIGHUP)."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

PREEMPTED, INTERRUPTED = 42, 130  # exit statuses after which the same command continues
EXIT_STATUS = {"SIGTERM": PREEMPTED, "SIGINT": INTERRUPTED, "SIGHUP": 129}


class StopSignal:
    """A request to stop the process: `status` is the exit status, or 0 without a request.

    The trainer asks `agreed()` after each step, saves, and exits. Inside `exits_at_once()` the
    signal itself ends the process. A second Ctrl-C raises KeyboardInterrupt anywhere.

    Args:
      own_process: the process only trains, so `os._exit` may end it. An exception raised during
        a compilation is delivered only when XLA returns, and then aborts the process.
    """

    def __init__(self, own_process: bool = False):
        self.own_process, self.status = own_process, 0
        self._interrupts = self._polls = 0
        self._is_saved: Callable[[], bool] | None = None

    @contextlib.contextmanager
    def exits_at_once(self, is_saved: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """End the process at once on a signal inside, or at the start on an earlier one.

        The process ends by SystemExit if it is not our own, or if `is_saved()`, which any thread
        may call, returns False: the state has yet to be saved.
        """
        outer, self._is_saved = self._is_saved, is_saved
        try:
            if self.status:
                raise SystemExit(self.status)
            yield
        finally:
            self._is_saved = outer

    def handle(self, number: int, frame: Any = None) -> None:
        """Handle a signal in the main thread, where Python runs handlers between two bytecodes."""
        is_first = not self.status
        self.status = self.status or EXIT_STATUS[signal.Signals(number).name]
        self._interrupts += number == signal.SIGINT
        if self._is_saved and is_first:
            self._exit_if_saved()
            raise SystemExit(self.status)
        if self._interrupts > 1:
            raise KeyboardInterrupt
        if is_first:
            _say(b"\nstopping after this step; Ctrl-C again stops at once, without saving\n")

    def watch(self, wakeup: int) -> None:
        """Read the numbers of signals in a thread, even while XLA compiles and `handle` waits."""
        with open(wakeup, "rb", buffering=0) as numbers:
            while number := numbers.read(1):
                name = signal.Signals(number[0]).name
                if name in EXIT_STATUS and self._is_saved:
                    self._exit_if_saved(EXIT_STATUS[name])

    def _exit_if_saved(self, status: int = 0) -> None:
        if self.own_process and self._is_saved and self._is_saved():
            _say(b"\nstopping; the same command continues\n")
            os._exit(self.status or status)

    def agreed(self) -> int:
        """Return the status, which changes at the same call in all processes of a run."""
        if jax.process_count() > 1:
            self._polls += 1
            if multihost_utils.reached_preemption_sync_point(self._polls):
                self.status = PREEMPTED
        return self.status


def _say(text: bytes) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # stderr may be no file
        os.write(sys.stderr.fileno(), text)


@contextlib.contextmanager
def handled(own_process: bool = False) -> Iterator[StopSignal]:
    """Yield a `StopSignal` that handles SIGTERM, SIGINT and SIGHUP, unless they are ignored.

    If the run has several processes, jax's own handler takes SIGTERM, and a Ctrl-C is passed on as
    SIGTERM. Outside the main thread no signal is handled.
    """
    stop, several = StopSignal(own_process), jax.process_count() > 1
    with contextlib.ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            for name in ["SIGINT"] if several else EXIT_STATUS:
                number = getattr(signal, name, None)  # Windows has no SIGHUP
                if number and signal.getsignal(number) is not signal.SIG_IGN:
                    handler = _pass_on_as_sigterm if several else stop.handle
                    stack.callback(signal.signal, number, signal.signal(number, handler))
            if own_process and not several:
                read, write = os.pipe()
                os.set_blocking(write, False)
                stack.callback(os.close, write)  # ends the thread
                before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
                stack.callback(signal.set_wakeup_fd, before)
                threading.Thread(target=stop.watch, args=(read,), daemon=True).start()
        yield stop


def _pass_on_as_sigterm(number: int, frame: Any) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), signal.SIGTERM)
