"""One process of a run dies, and the others notice; real processes."""

import os
import socket
import subprocess
import sys

import pytest

WAITS = """
import sys, time
import jax
from mae_jax import lifeline, sharding

jax.config.update("jax_platforms", "cpu")
lifeline.GRACE = 0.5
sharding.start_processes(heartbeat=100)
with lifeline.held():
    time.sleep(1)  # until all are connected
    print("held", flush=True)
    if sys.stdin.readline() == "fail\\n":
        raise ValueError("an error of this one alone")
print("out", flush=True)
sys.stdin.read()
"""


def start(index: int, port: int) -> subprocess.Popen:
    names = dict(COORDINATOR_ADDRESS=f"127.0.0.1:{port}", NUM_PROCESSES="2", PROCESS_ID=str(index))
    return subprocess.Popen(
        [sys.executable, "-c", WAITS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {f"JAX_{name}": x for name, x in names.items()},
    )


@pytest.fixture
def two():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    processes = [start(index, port) for index in range(2)]
    for process in processes:
        assert process.stdout and process.stdout.readline() == "held\n"
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("dies", [0, 1])
def test_a_process_that_dies_ends_the_other(two, dies):
    two[dies].kill()
    status = two[1 - dies].wait(20)
    if dies == 1:  # else jax itself may be the first to notice
        assert status == 1
        assert "another process has ended: the same command" in two[0].stderr.read()
    assert status != 0


def test_a_process_that_fails_ends_the_other_which_had_time_to_fail_too(two):
    two[1].stdin.write("fail\n")
    two[1].stdin.flush()
    assert two[0].wait(20) == 1
    assert "another process has ended" in two[0].stderr.read()


def test_a_process_that_is_done_does_not(two):
    two[1].stdin.write("\n")
    two[1].stdin.flush()
    assert two[1].stdout.readline() == "out\n"
    two[1].kill()
    with pytest.raises(subprocess.TimeoutExpired):
        two[0].wait(2)
