"""The sharding of arrays over a mesh of devices."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mae_jax.distributed import device_mesh

# The axes of the mesh that cut the axes of a parameter, by the end of its name: `tensor` cuts the
# heads and the width of the MLP, `fsdp` the other side. The first row that matches counts; every
# device holds all of the other parameters. The optimizer's moments have their parameters' names.
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


def spec_of(name: str, shape: Sequence[int], mesh: Mesh, spread: bool = False) -> P:
    """Return the axes of a mesh that cut an array of the state evenly, by `RULES`.

    Args:
      spread: cut the array over `data` as well, for the optimizer's moments: ZeRO's first stage
        (arXiv 1910.02054).
    """
    sizes = {axis: size for axis, size in mesh.shape.items() if size > 1}
    is_large = math.prod(shape) >= SMALL
    if not is_large:
        sizes.pop("fsdp", None)
    rule = next((spec for end, spec in RULES if re.search(f"(^|/){end}$", name)), P())
    axes: list[Any] = [*rule, *[None] * len(shape)][: len(shape)]
    axes = [
        a if a in sizes and n % sizes[a] == 0 else None for a, n in zip(axes, shape, strict=True)
    ]
    if spread and is_large and "data" in sizes:
        parts = [sizes.get(axis, 1) * sizes["data"] for axis in axes]
        even = [i for i, side in enumerate(shape) if side % parts[i] == 0]
        if even:  # cut the longest side, if possible one that is not yet cut
            i = max(even, key=lambda i: (axes[i] is None, shape[i]))
            axes[i] = (axes[i], "data") if axes[i] else "data"
    return P(*axes)


def placed(tree: Any, mesh: Mesh, shard_optimizer: bool = False) -> Any:
    """Return `ShapeDtypeStruct`s of a state, or of parameters, with their shardings."""

    def place_array(path, x):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        spread = shard_optimizer and name.startswith(("opt_state/", "ema/"))
        sharding = NamedSharding(mesh, spec_of(name, x.shape, mesh, spread))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place_array, tree)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def batched(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch: the first axis is cut along all axes but `tensor`."""
    return NamedSharding(mesh, P(device_mesh.BATCH))


def spread(x: jax.Array) -> jax.Array:
    """Constrain the first axis of `x` to be sharded as a batch is, if a step is being compiled.

    XLA infers this sharding everywhere but in loops, where it would gather the batch.
    """
    if not set(device_mesh.BATCH) <= set(jax.sharding.get_abstract_mesh().axis_names):
        return x
    return jax.lax.with_sharding_constraint(x, P(device_mesh.BATCH))


def on_each(heads: int) -> Callable[[Callable], Callable] | None:
    """Return a wrapper that runs a function of `[b, n, heads*dim]` arrays per device, or None.

    The wrapper is `shard_map`, for kernels that XLA cannot partition. The result is None on several
    devices outside a mesh, where the sharding is unknown.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not set(device_mesh.BATCH) <= set(mesh.axis_names):
        return (lambda f: f) if jax.device_count() == 1 else None
    part = P(device_mesh.BATCH, None, "tensor" if heads % mesh.shape["tensor"] == 0 else None)
    return lambda f: jax.shard_map(f, in_specs=part, out_specs=part, check_vma=False)


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Return the rows of a global batch that this process's devices hold, in ascending order."""
    parts = batched(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[part] for part in parts if part]))


def place(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Place a global batch on the mesh, given the `local_rows` of this process."""

    def put(x: np.ndarray) -> jax.Array:
        size = len(x) * jax.process_count()
        rows = local_rows(mesh, size)

        def shard(index) -> np.ndarray:
            part = range(size)[index[0]]
            first = np.searchsorted(rows, part.start)  # the rows of a shard are contiguous
            return x[first : first + len(part)]

        return jax.make_array_from_callback((size, *x.shape[1:]), batched(mesh), shard)

    return {name: put(x) for name, x in batch.items()}
