"""Missing values, which are NaN in a batch, and how much each value counts in a loss."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from mae_jax.data.augment import batch


class Inputs(NamedTuple):
    """Normalised inputs, as networks take them."""

    values: Shaped[Array, "b *size c"]  # 0, which is the mean of the data, where one is missing
    present: Bool[Array, "b *size c"] | None  # which values exist; None if none can be missing
    weight: Float[Array, "b *size c"] | None  # in the loss, 0 if missing; None counts all alike


def split(
    inputs: Shaped[Array, "b *size c"],
    mean: Sequence[float],
    std: Sequence[float],
    data: Mapping[str, Any],
) -> Inputs:
    """Return the inputs of a batch, normalised, apart from what is missing of them.

    Args:
      data: the section of a config. Values can only be missing with `nodata`; `foreground` is the
        weight of the values up to a threshold.
    """
    values, weight = batch.normalize(inputs, mean, std), None
    if data.get("foreground"):
        threshold, background = data["foreground"]
        plain = batch.normalize(inputs, (0.0,) * len(mean), (1.0,) * len(std))
        weight = jnp.where(plain > threshold, 1.0, background)
    if data.get("nodata") is None:
        return Inputs(values, None, weight)
    present = ~jnp.isnan(values)
    weight = jnp.where(present, 1.0 if weight is None else weight, 0.0)
    return Inputs(jnp.where(present, values, 0), present, weight)
