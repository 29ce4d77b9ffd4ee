"""Processes, the device mesh, and where arrays live on it."""

import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

BATCH = ("data", "fsdp")  # the axes that a batch is spread over; along `tensor` it is the same

# Which axes of the mesh cut which axes of a parameter, by the end of its name: `tensor` the heads
# and the width of the MLP, `fsdp` the other side. The first row that fits counts; what none names
# is whole on every device. The optimizer's moments are called like their parameters.
RULES = (
    (r"attention/(query|key|value)/kernel", P("fsdp", "tensor")),
    (r"attention/(query|key|value)/bias", P("tensor")),
    (r"attention/out/kernel", P("tensor", "fsdp")),
    (r"mlp/fc1/kernel", P("fsdp", "tensor")),
    (r"mlp/fc1/bias", P("tensor")),
    (r"mlp/fc2/kernel", P("tensor", "fsdp")),
    (r"embedding/kernel", P(None, "fsdp")),
    (r"head/kernel", P("fsdp", None)),
    (r"positions(_time|_space)?", P(None, "fsdp")),
)
SMALL = 2**16  # arrays with fewer values are not cut by fsdp: gathering them costs more


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


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh over `devices` (all of them); `data = -1` takes what the other axes leave.

    Raises:
      ValueError: the axes do not multiply to the number of devices, or `tensor` would go beyond the
        devices of one process, which read one share of the batch.
    """
    devices = jax.devices() if devices is None else devices
    count, others = len(devices), fsdp * tensor
    if data == -1 and count % others == 0:
        data = count // others
    if data * others != count:
        raise ValueError(
            f"mesh.data = {data}, mesh.fsdp = {fsdp} and mesh.tensor = {tensor} do not fill the "
            f"{count} device(s) here: use mesh.data = -1 and others whose product divides {count}"
        )
    local = count // len({device.process_index for device in devices})
    if local % tensor:
        raise ValueError(
            f"mesh.tensor = {tensor} does not divide the {local} device(s) of a process: start one "
            "process for each host, or use another"
        )
    # Not jax.make_mesh: on a TPU slice it interleaves the hosts, and row i of the global batch, for
    # which mask i is drawn, would not be the i-th of the examples that the hosts read.
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    types = (AxisType.Auto,) * 3  # Explicit axes break linen with cut parameters
    axes = ("data", "fsdp", "tensor")
    return Mesh(np.array(ordered).reshape(data, fsdp, tensor), axes, axis_types=types)


def batch_shares(mesh: Mesh) -> int:
    """How many parts a batch is cut in."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def check_batch(batch_size: int, accumulation: int, mesh: Mesh) -> None:
    """Raise ValueError, with the sizes that fit, if the parts of a batch would not be equal."""
    step = batch_shares(mesh) * accumulation
    if batch_size % step:
        below, above = batch_size // step * step, -(-batch_size // step) * step
        raise ValueError(
            f"batch_size = {batch_size} is not a multiple of {batch_shares(mesh)} device(s) that "
            f"share it x accumulation {accumulation}: use {f'{below} or ' if below else ''}{above}"
        )


def spec_of(name: str, shape: Sequence[int], mesh: Mesh, spread: bool = False) -> P:
    """How an array of the state is cut over a mesh, by `RULES`; never unevenly.

    Args:
      spread: cut it over `data` too, for the optimizer's moments: ZeRO's first stage
        (arXiv 1910.02054).
    """
    rule = next((spec for end, spec in RULES if re.search(f"(^|/){end}$", name)), P())
    axes: list[Any] = [*rule, *[None] * len(shape)][: len(shape)]
    big = math.prod(shape) >= SMALL
    for i, (axis, side) in enumerate(zip(axes, shape, strict=True)):
        if axis and (side % mesh.shape.get(axis, 1) or (axis == "fsdp" and not big)):
            axes[i] = None
    if spread and big:
        free = [i for i, side in enumerate(shape) if side % (_cut(axes[i], mesh, "data")) == 0]
        if free:
            i = max(free, key=lambda i: (axes[i] is None, shape[i]))
            axes[i] = "data" if axes[i] is None else (axes[i], "data")
    return P(*(axis if _cut(axis, mesh) > 1 else None for axis in axes))


def _cut(axis: str | tuple[str, ...] | None, mesh: Mesh, *more: str) -> int:
    axes = axis if isinstance(axis, tuple) else (axis,) if axis else ()
    return math.prod(mesh.shape.get(name, 1) for name in (*axes, *more))


def placed(tree: Any, mesh: Mesh, shard_optimizer: bool = False) -> Any:
    """`ShapeDtypeStruct`s of a state, or of parameters, with their places on a mesh."""

    def one(path, x):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = spec_of(
            name, x.shape, mesh, shard_optimizer and name.startswith(("opt_state/", "ema/"))
        )
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(one, tree)


def jit_training(init: Callable, step: Callable, mesh: Mesh, shard_optimizer: bool = False):
    """`key -> state` and `state, batch -> state, figures`, compiled for a mesh.

    The state is born in its shares: no device ever holds more than its own. The step donates it.

    Args:
      shard_optimizer: cut the optimizer's moments (and an average) over all devices, also where
        each has a copy of the parameters.

    Returns:
      init, step, and the state as `ShapeDtypeStruct`s with their shardings.
    """
    abstract = placed(jax.eval_shape(init, jax.random.key(0)), mesh, shard_optimizer)
    placement = jax.tree.map(lambda x: x.sharding, abstract)

    def on_mesh(state, batch):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for `spread`
            return step(state, batch)

    compiled_step = jax.jit(
        on_mesh,
        donate_argnums=0,
        in_shardings=(placement, batched(mesh)),
        out_shardings=(placement, replicated(mesh)),
    )
    return jax.jit(init, out_shardings=placement), compiled_step, abstract


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def batched(mesh: Mesh) -> NamedSharding:
    """The first axis spread over all devices, but those along `tensor`."""
    return NamedSharding(mesh, P(BATCH))


def spread(x: jax.Array) -> jax.Array:
    """`x`, with its first axis spread over the devices where a step is compiled for a mesh.

    The compiler finds that out by itself but in loops, where it would gather the batch.
    """
    axes = jax.sharding.get_abstract_mesh().axis_names
    return jax.lax.with_sharding_constraint(x, P(BATCH)) if set(BATCH) <= set(axes) else x


def on_each(heads: int) -> Callable[[Callable], Callable] | None:
    """What makes of a function of arrays `[b n h·d]` one that each device calls on its own part.

    For what the compiler cannot cut itself. None where several devices may share the arrays and no
    step is compiled for a mesh, which would say how.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not set(BATCH) <= set(mesh.axis_names):
        return (lambda f: f) if jax.device_count() == 1 else None
    part = P(BATCH, None, "tensor" if heads % mesh.shape["tensor"] == 0 else None)
    return lambda f: jax.shard_map(f, in_specs=part, out_specs=part, check_vma=False)


def place(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This host's share of a batch, as part of the global one on the mesh."""
    return {
        name: jax.make_array_from_process_local_data(batched(mesh), x) for name, x in batch.items()
    }
