"""The processes of a run on several hosts."""

import os
import sys

import jax


def start_processes(heartbeat: int = 100) -> None:
    """Join the other hosts where the environment names them; on one host do nothing.

    Asked for by `JAX_COORDINATOR_ADDRESS` (with `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`), by a
    Slurm or Open MPI job of several tasks, by a TPU slice of several workers where it names them,
    and by `MAE_JAX_DISTRIBUTED=1` where jax can find them by itself, as on a plain slice.

    Args:
      heartbeat: seconds of silence after which all others give one up, and end.

    Raises:
      ValueError: these variables are no numbers, or not of one another.
    """
    env = os.environ
    if address := env.get("JAX_COORDINATOR_ADDRESS"):
        numbers = []
        for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
            text = env.get(name)
            if text is not None and not text.isdigit():
                raise ValueError(f"{name} = {text!r} must be a whole number")
            numbers.append(None if text is None else int(text))
        count, index = numbers
        if ":" not in address:
            raise ValueError(f"JAX_COORDINATOR_ADDRESS = {address!r} must be HOST:PORT")
        if count is not None and index is None:
            raise ValueError("JAX_NUM_PROCESSES is set, so JAX_PROCESS_ID must be, from 0 up")
        print(f"waiting for {count or 'all'} processes at {address}", file=sys.stderr, flush=True)
        if None not in numbers and index >= count:
            raise ValueError(f"JAX_PROCESS_ID = {index} must be below JAX_NUM_PROCESSES = {count}")
        jax.distributed.initialize(address, count, index, heartbeat_timeout_seconds=heartbeat)
    elif (
        int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1
        or int(env.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
        or "," in env.get("TPU_WORKER_HOSTNAMES", "")
        or env.get("MAE_JAX_DISTRIBUTED") == "1"
    ):
        jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat)
