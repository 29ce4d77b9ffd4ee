"""The description of a checkpoint before its parameters are read."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mae_jax.config import old_keys
from mae_jax.data.target_scale import TargetScale
from mae_jax.models import build, patches

Abstract = dict[str, jax.ShapeDtypeStruct]  # name -> shape, dtype and, maybe, sharding


class CheckpointInfo(NamedTuple):
    """A model, the place of its parameters, and the data of its training."""

    path: str
    kind: str  # "MaskedAutoencoder" or "Classifier"
    fields: dict[str, Any]  # flat, as in the section `model` of a config: see `build.FIELDS`
    shapes: dict[str, tuple[int, ...]]  # of the parameters; learned positions as they are stored
    read: Callable[[Abstract], dict[str, jax.Array]]  # names with shardings -> arrays
    channels: int
    size: tuple[int, ...] | None = None  # of the inputs in training
    classes: list[str] | None = None  # the names of the classes
    mean: list[float] | None = None  # per channel, of pixels in [0, 1]
    std: list[float] | None = None
    config: Mapping | None = None  # of a work directory, or the part that an exported file has
    without: str = ""  # an expression over the names of parameters that may be missing
    targets: TargetScale | None = None  # of a regressor, in its training data
    positions: str = "interpolate"  # or "compute": fixed tables of inputs of another size

    def grid(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the grid of tokens of inputs of `size`, as `model.grid` does."""
        groups = self.fields.get("channel_groups")
        grid = patches.grid_of(size, self.fields["patch"])
        return (len(groups), *grid) if groups else grid

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> "CheckpointInfo":
        """Return the checkpoint with more parameters."""

        def read(wanted: Abstract) -> dict[str, jax.Array]:
            rest = {name: leaf for name, leaf in wanted.items() if name not in arrays}
            own = {n: place(arrays[n], leaf) for n, leaf in wanted.items() if n in arrays}
            return own | self.read(rest)

        return self._replace(
            shapes=self.shapes | {n: x.shape for n, x in arrays.items()}, read=read
        )

    @property
    def model(self) -> Any:
        """The module.

        Raises:
          ValueError: the number of heads is unknown, or does not divide the width.
        """
        for part in ("", "decoder_"):
            heads, width = self.fields.get(f"{part}heads", 1), self.fields.get(f"{part}width", 1)
            if heads is None:
                raise ValueError(
                    f"{self.path} does not say how many heads its {width} channels have: give "
                    f"{part}heads, a number that divides {width}"
                )
        return build.model(self.kind, self.fields)


def read_fields(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a model from JSON, with today's names, and tuples for lists."""
    new_name = lambda name: old_keys.new_names(f"model.{name}", {})[0].removeprefix("model.")
    new_value = lambda name, value: old_keys.new_value(f"model.{name}", value)
    tuples = lambda value: tuple(map(tuples, value)) if isinstance(value, list) else value
    return {new_name(name): tuples(new_value(name, x)) for name, x in stored.items()}


def fixed_positions(info: CheckpointInfo, size: Sequence[int]) -> dict[str, np.ndarray]:
    """Return the tables that learned positions start with, by the names of these parameters."""
    parts = {"encoder": ""} | ({"decoder": "decoder_"} if "decoder_width" in info.fields else {})
    fields = build.with_defaults(info.kind, info.fields)
    return {
        f"{part}/{name}": table
        for part, prefix in parts.items()
        for name, table in build.position_table(fields, prefix).start(info.grid(size)).items()
    }


def place(x: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """Return the array `x` placed as `leaf`, with one read of each device's share; never a view."""
    part = lambda index: np.array(x[index], leaf.dtype, order="C")
    if leaf.sharding is None:
        return jnp.asarray(part((slice(None),) * len(leaf.shape)))
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, part)


def read_whole(info: CheckpointInfo, name: str, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    """Return a whole parameter in every process, to make of it the array that `leaf` describes."""
    place = leaf.sharding
    if isinstance(place, NamedSharding):
        place = NamedSharding(place.mesh, P())
    whole = jax.ShapeDtypeStruct(info.shapes[name], leaf.dtype, sharding=place)
    return np.asarray(info.read({name: whole})[name])


def fold_scale(kernel, bias, mean, std):
    """Return kernel and bias of a head whose outputs are `mean + std * output` of the given one."""
    return kernel * std, bias * std + mean


def fold_batch_norm(kernel, bias, mean, var, eps: float = 1e-6):
    """Return kernel and bias of a head that equals a BatchNorm without parameters and a head."""
    scale = 1 / (var + eps) ** 0.5
    return kernel * scale[:, None], bias - (mean * scale) @ kernel
