"""Signals, while Python is not there to see them."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from mae_jax.training import preemption

# Like a compilation: nothing of Python runs before it is over.
BUSY = """
import hashlib
from mae_jax.training import preemption

with preemption.handled(own_process=True) as stop, stop.exits_at_once(lambda: {saved}):
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"x", b"y", {rounds})
print("over", flush=True)
"""


def start(**options) -> subprocess.Popen:
    command = [sys.executable, "-c", BUSY.format(**options)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout and process.stdout.readline() == b"busy\n"
    return process


@pytest.mark.parametrize("name, status", [("SIGTERM", 42), ("SIGINT", 130), ("SIGHUP", 129)])
def test_a_signal_ends_what_is_compiling_where_nothing_is_to_be_saved(name, status):
    process = start(saved=True, rounds=2**31 - 1)  # for many minutes
    process.send_signal(getattr(signal, name))
    assert process.wait() == status
    assert b"the same command continues" in process.communicate()[1]


def test_it_waits_where_something_is_to_be_saved():
    process = start(saved=False, rounds=10**6)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 42
    assert process.communicate()[0] == b""


def test_a_signal_is_remembered_until_something_may_end():
    with preemption.handled() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.status == stop.agreed() == 42
        with pytest.raises(SystemExit, match="42"), stop.exits_at_once():
            raise AssertionError("it has ended")
        os.kill(os.getpid(), signal.SIGINT)  # a first Ctrl-C, as of a terminal beside its launcher
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_process_is_left_as_it_was():
    """Handlers, the wakeup file descriptor, and no thread or open pipe of ours."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    before, handler = signal.set_wakeup_fd(write), signal.getsignal(signal.SIGTERM)
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    try:
        with preemption.handled(own_process=True):
            watcher = threading.enumerate()[-1]
            assert signal.getsignal(signal.SIGTERM) != handler
        watcher.join()
        assert signal.getsignal(signal.SIGTERM) == handler
        assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == (threads, files)
        assert signal.set_wakeup_fd(before) == write
    finally:
        signal.set_wakeup_fd(before)
        os.close(read)
        os.close(write)
