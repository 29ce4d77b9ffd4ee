"""Two processes with two devices each, over loopback, of which one is disturbed."""

import os
import signal
import socket
import time

import pytest
import runs
from runs import KILL, TERM

# the time until one notices that the other is gone counts: nothing else may run meanwhile
pytestmark = pytest.mark.faults("fault", alone=True)
HEARTBEAT, MARGIN = 10, 30  # seconds of silence, and more on a busy machine


def pair(command, workdir, *more):
    """Start the same command as two processes."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    variables = {
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
    }
    return [
        command.run(workdir, *more, devices=2, **variables, JAX_PROCESS_ID=str(i)) for i in range(2)
    ]


def end(processes, status):
    statuses = [process.ended() for process in processes]
    assert statuses == [status] * 2, " / ".join(process.last for process in processes)


@runs.cases(
    "which", {"2 processes: SIGTERM to the first": 0, "2 processes: SIGTERM to the second": 1}
)
def test_one_is_terminated(wide, workdir, happened, which):
    for step in (20, 40)[: 2 - which]:  # also after a resume and a save
        processes = pair(wide, workdir)
        processes[0].at(step)
        processes[which].send(TERM)
        end(processes, 42)
    done = runs.reached(workdir)
    if which:
        start, what = wide.finish(workdir, devices=4), "one process with four devices"
    else:
        end(again := pair(wide, workdir), 0)
        start, what = again[0].start, "two processes"
    assert done - start <= 2
    text = f"both 42 with step {start} saved; {what} went on, {wide.close(workdir)}"
    happened(text, max(0, done - start))


GONE = {
    "2 processes: SIGKILL of the first": (0, KILL),
    "2 processes: SIGKILL of the second": (1, KILL),
    "2 processes: SIGSTOP of the second": (1, signal.SIGSTOP),
}


@runs.cases("which, number", GONE)
def test_one_is_gone(wide, workdir, happened, which, number):
    """One is killed or frozen: the other ends soon, and both can be started again."""
    processes = pair(wide, workdir, f"--config.recovery.heartbeat_timeout={HEARTBEAT}")
    processes[0].at(40)
    began = time.monotonic()
    processes[which].send(number)
    status = processes[1 - which].ended(HEARTBEAT + MARGIN)
    seconds = time.monotonic() - began
    processes[which].kill()
    assert status != 0
    done, good = runs.reached(workdir), max(runs.committed(workdir), default=0)
    start = wide.finish(workdir, devices=4)
    assert start >= good and done - start <= 2 * wide.save_every
    text = f"the other ended with status {status} after {seconds:.0f} s; one process went on"
    happened(f"{text} from step {start}, {wide.close(workdir)}", max(0, done - start))


def test_damaged_for_one(wide, workdir, happened):
    """2 processes: what one of them reads is damaged"""
    end(pair(wide, workdir, "--config.mesh.fsdp=4"), 0)
    newest = workdir / "checkpoints" / str(wide.steps)
    files = [x for x in (newest / "state" / "ocdbt.process_1").rglob("*") if x.is_file()]
    assert files, "the second process wrote nothing"
    for file in files:
        os.truncate(file, file.stat().st_size // 2)
    (workdir / "report.txt").unlink()
    end(again := pair(wide, workdir, "--config.mesh.fsdp=4"), 0)
    assert any(str(newest) in process.text for process in again), "it is not named"
    assert again[0].start == wide.steps - wide.save_every
    happened(f"named; both went on from step {again[0].start}", wide.save_every)


def test_from_one_to_two(wide, workdir, happened):
    """1 process, then 2"""
    run = wide.run(workdir)
    run.at(20)
    run.send(TERM)
    run.ends(42)
    done = runs.reached(workdir)
    end(processes := pair(wide, workdir), 0)
    start = processes[0].start
    happened(f"went on from step {start}; {wide.close(workdir)}", max(0, done - start))
