"""Processes, the device mesh, and where arrays live on it."""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

BATCH = ("data", "fsdp")  # the axes that a batch is spread over: all of them

SMALL = 2**16  # parameters with fewer values stay on every device: gathering them costs more


def start_processes() -> None:
    """Join the other hosts where the environment names them; on one host do nothing.

    Asked for by `JAX_COORDINATOR_ADDRESS` (with `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`), by a
    Slurm or Open MPI job of several tasks, and by a TPU slice of several workers.
    """
    env = os.environ
    if address := env.get("JAX_COORDINATOR_ADDRESS"):
        count, index = env.get("JAX_NUM_PROCESSES"), env.get("JAX_PROCESS_ID")
        jax.distributed.initialize(
            address,
            None if count is None else int(count),
            None if index is None else int(index),
        )
    elif (
        int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1
        or int(env.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
        or "," in env.get("TPU_WORKER_HOSTNAMES", "")
    ):
        jax.distributed.initialize()


def make_mesh(data: int, fsdp: int, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over `devices` (all of them); `data = -1` takes what `fsdp` leaves.

    Raises:
      ValueError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if data == -1 and count % fsdp == 0:
        data = count // fsdp
    if data * fsdp != count:
        raise ValueError(
            f"mesh.data = {data} and mesh.fsdp = {fsdp} do not fill the {count} device(s) here: "
            f"use mesh.data = -1 and an fsdp that divides {count}"
        )
    # Not jax.make_mesh: on a TPU slice it interleaves the hosts, and row i of the global batch, for
    # which mask i is drawn, would not be the i-th of the examples that the hosts read.
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    types = (AxisType.Auto,) * 2  # Explicit axes break linen with cut parameters
    return Mesh(np.array(ordered).reshape(data, fsdp), ("data", "fsdp"), axis_types=types)


def spec_of(shape: tuple[int, ...], fsdp: int) -> P:
    """How one array of the state is cut: its largest axis that `fsdp` divides, if it is big.

    A rule over shapes gives a parameter and its optimizer moments the same cut.
    """
    axes = [axis for axis, side in enumerate(shape) if side % fsdp == 0]
    if fsdp == 1 or math.prod(shape) < SMALL or not axes:
        return P()
    cut = max(axes, key=lambda axis: shape[axis])
    return P(*("fsdp" if axis == cut else None for axis in range(cut + 1)))


def jit_training(init: Callable, step: Callable, mesh: Mesh):
    """`key -> state` and `state, batch -> state, figures`, compiled for a mesh.

    The state is born in its shares: no device ever holds more than its own. The step donates it.

    Returns:
      init, step, and the state as `ShapeDtypeStruct`s with their shardings.
    """
    fsdp = mesh.shape["fsdp"]
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(mesh, spec_of(x.shape, fsdp))
        ),
        jax.eval_shape(init, jax.random.key(0)),
    )
    placement = jax.tree.map(lambda x: x.sharding, abstract)
    init = jax.jit(init, out_shardings=placement)
    step = jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(placement, batched(mesh)),
        out_shardings=(placement, replicated(mesh)),
    )
    return init, step, abstract


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def batched(mesh: Mesh) -> NamedSharding:
    """The first axis spread over all devices."""
    return NamedSharding(mesh, P(BATCH))


def place(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This host's share of a batch, as part of the global one on the mesh."""
    return {
        name: jax.make_array_from_process_local_data(batched(mesh), x) for name, x in batch.items()
    }
