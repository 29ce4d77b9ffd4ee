"""The mesh of devices, and how a batch is cut over it."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

BATCH = ("data", "fsdp")  # the axes that a batch is spread over; along `tensor` it is the same


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
