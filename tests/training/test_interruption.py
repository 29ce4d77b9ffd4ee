"""Signals, while Python is not there to see them."""

import signal
import subprocess
import sys

import pytest

BUSY = """
import hashlib, sys
from mae_jax import interruption

with interruption.handled(own=True) as stop, stop.at_once(lambda: {finished}):
    print("busy", flush=True)
    # like a compilation: nothing of Python runs before it is over
    hashlib.pbkdf2_hmac("sha256", b"x", b"y", {rounds})
print("over", flush=True)
"""


@pytest.mark.parametrize(
    "name, status", [("SIGTERM", 42), ("SIGINT", 130), ("SIGHUP", 129)], ids=lambda x: str(x)
)
def test_a_signal_ends_what_is_compiling_where_nothing_is_to_be_saved(name, status):
    process = start(finished=True, rounds=10**9)  # for minutes
    process.send_signal(getattr(signal, name))
    assert process.wait(5) == status
    assert b"the same command continues" in process.communicate()[1]


def test_it_waits_where_something_is():
    process = start(finished=False, rounds=10**6)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 42
    assert process.communicate()[0] == b""


def start(**options) -> subprocess.Popen:
    command = [sys.executable, "-c", BUSY.format(**options)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout and process.stdout.readline() == b"busy\n"
    return process
