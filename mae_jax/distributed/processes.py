"""The processes of a run on several hosts."""

import logging
import os
import signal
import sys
import threading
import time
from typing import NoReturn

import jax

_log = logging.getLogger(__name__)


def start_processes(heartbeat: int = 30) -> None:
    """Join the processes of the other hosts if the environment asks for it, or do nothing.

    The environment asks by `JAX_COORDINATOR_ADDRESS` (with `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID`), by a Slurm or Open MPI job of several tasks, by the names of several workers
    of a TPU slice, or by `MAE_JAX_DISTRIBUTED=1`, for a slice whose hosts jax finds by itself.

    Args:
      heartbeat: seconds without a sign of a process, after which all others end.

    Raises:
      ValueError: the variables are no numbers, or contradict each other.
    """
    env = os.environ
    if address := env.get("JAX_COORDINATOR_ADDRESS"):
        count, index = (_number(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
        if ":" not in address:
            raise ValueError(f"JAX_COORDINATOR_ADDRESS = {address!r} must be HOST:PORT")
        if count is not None and index is None:
            raise ValueError("JAX_NUM_PROCESSES is set, so JAX_PROCESS_ID must be, from 0 up")
        if count is not None and index is not None and index >= count:
            raise ValueError(f"JAX_PROCESS_ID = {index} must be below JAX_NUM_PROCESSES = {count}")
        _log.info("waiting for %s processes at %s", count or "all", address)
        jax.distributed.initialize(address, count, index, heartbeat_timeout_seconds=heartbeat)
    elif (
        int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1
        or int(env.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
        or "," in env.get("TPU_WORKER_HOSTNAMES", "")
        or env.get("MAE_JAX_DISTRIBUTED") == "1"
    ):
        jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat)


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if text is not None and not text.isdigit():
        raise ValueError(f"{name} = {text!r} must be a whole number")
    return None if text is None else int(text)


def exit_in_any_case(status: int) -> None:
    """Let the exiting process end within seconds, even if one of its threads waits for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process is exiting already
    timer = threading.Timer(5, os._exit, [status])
    timer.daemon = True
    timer.start()


def leave(status: int) -> NoReturn:
    """Exit, without waiting for the other processes of the run, which wait for this one."""
    exit_in_any_case(status)
    if jax.process_count() > 1:
        if jax.process_index() == 0:
            time.sleep(3)  # process 0 holds the connection: let the others log why they end
        os._exit(status)
    sys.exit(status)
