"""What is known about a checkpoint before its parameters are read."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mae_jax.config import old_keys
from mae_jax.models import build, patches, positions

Abstract = dict[str, jax.ShapeDtypeStruct]  # name -> shape, dtype and, maybe, sharding


class CheckpointInfo(NamedTuple):
    """A model, where its parameters are stored, and what it was trained on."""

    path: str
    kind: str  # "MaskedAutoencoder" or "Classifier"
    fields: dict[str, Any]  # flat, as in the section `model` of a config: see `build.FIELDS`
    shapes: dict[str, tuple[int, ...]]  # of the parameters; learned positions as they are stored
    read: Callable[[Abstract], dict[str, jax.Array]]  # names with shardings -> arrays
    channels: int
    size: tuple[int, ...] | None = None  # of the inputs it was trained on
    classes: list[str] | None = None  # their names
    mean: list[float] | None = None  # per channel, of pixels in [0, 1]
    std: list[float] | None = None
    config: Mapping | None = None  # of a work directory, or what an exported file keeps of it
    without: str = ""  # an expression over the names of parameters that may be missing

    def grid(self, size: Sequence[int]) -> tuple[int, ...]:
        """The grid of tokens of inputs of `size`, as `model.grid`."""
        groups = self.fields.get("channel_groups")
        grid = patches.grid_of(size, self.fields["patch"])
        return (len(groups), *grid) if groups else grid

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
        return build.model(self.kind, self.fields | {"attention": "auto"})


def read_fields(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a model that JSON keeps: under their names of today, with tuples for lists."""
    new_name = lambda name: old_keys.new_names(f"model.{name}", {})[0].removeprefix("model.")
    tuples = lambda x: tuple(map(tuples, x)) if isinstance(x, list) else x
    return {new_name(name): tuples(x) for name, x in stored.items()}


def fixed_positions(info: CheckpointInfo, size: Sequence[int]) -> dict[str, np.ndarray]:
    """The tables that learned positions start with, by the names of these parameters."""
    grid, separable = info.grid(size), info.fields.get("separable_positions", False)
    return {
        f"{part}/{name}": table
        for part, width in {"encoder": "width", "decoder": "decoder_width"}.items()
        if width in info.fields
        for name, table in positions.initial_tables(grid, info.fields[width], separable).items()
    }


def place(x: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """The array `x`, of which each device reads no more than its share; never a view of a file."""
    part = lambda index: np.array(x[index], leaf.dtype, order="C")
    if leaf.sharding is None:
        return jnp.asarray(part((slice(None),) * len(leaf.shape)))
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, part)


def fold_batch_norm(kernel, bias, mean, var, eps: float = 1e-6):
    """Kernel and bias of a head that equals a BatchNorm without parameters and a head after it."""
    scale = 1 / (var + eps) ** 0.5
    return kernel * scale[:, None], bias - (mean * scale) @ kernel
