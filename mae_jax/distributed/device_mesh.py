"""The mesh of devices, and how a batch is cut over it."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

_log = logging.getLogger(__name__)

BATCH = ("data", "fsdp")  # the axes that cut a batch; the devices along `tensor` share one part


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices: Sequence[Any] | None = None
) -> Mesh:
    """Return a mesh over `devices` (all of them); `data = -1` takes what the other axes leave.

    Raises:
      ValueError: the axes do not multiply to the number of devices, or `tensor` would go beyond the
        devices of one process, which read one share of the batch.
    """
    devices = jax.devices() if devices is None else devices
    count, model_shards = len(devices), fsdp * tensor
    if data == -1 and count % model_shards == 0:
        data = count // model_shards
    if data * model_shards != count:
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
    types = (AxisType.Auto,) * 3  # Explicit axes break linen with sharded parameters
    return Mesh(_arrange(devices, (data, fsdp, tensor)), (*BATCH, "tensor"), axis_types=types)


def _arrange(devices: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray:
    """Arrange the devices in the shape of a mesh, by the topology of a TPU slice."""
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    slices = {getattr(device, "slice_index", 0) for device in ordered}
    if ordered[0].platform == "tpu" and len(slices) == 1:
        try:
            return mesh_utils.create_device_mesh(shape, ordered, allow_split_physical_axes=True)
        except (ValueError, NotImplementedError) as error:  # such as for a part of a slice
            _log.warning("the mesh ignores the topology of the devices: %s", error)
    return np.array(ordered).reshape(shape)


def batch_shares(mesh: Mesh) -> int:
    """Return the number of parts that a batch is cut into."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def check_batch(batch_size: int, accumulation: int, mesh: Mesh) -> None:
    """Raise ValueError, with the sizes that fit, if the parts of a batch would not be equal."""
    shares = batch_shares(mesh)
    unit = shares * accumulation
    below = batch_size // unit * unit
    if batch_size != below:
        sizes = f"{below} or {below + unit}" if below else unit
        raise ValueError(
            f"batch_size = {batch_size} is not a multiple of {shares} device(s) that share it x "
            f"accumulation {accumulation}: use {sizes}"
        )
