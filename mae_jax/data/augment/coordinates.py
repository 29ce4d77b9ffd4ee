"""Where the patches of a batch lie, in steps of a reference spacing."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def of_batch(
    batch: Mapping[str, jax.Array], data: Mapping[str, Any], patch: Sequence[int]
) -> tuple[Float[Array, "b n"], ...] | None:
    """Return the coordinate of each patch along each axis, or None if positions are indices.

    A coordinate is the index of a patch times the spacing of the input divided by the reference, as
    in Scale-MAE (arXiv 2212.14532); each axis has its own, such as the thickness of slices. In
    signals with time stamps it is the mean time of the patch, in steps of patches at the reference.
    Both are the index where the spacing is that of the reference.

    Args:
      batch: has "spacing" [b axes], or "times" [b length] of the values of signals.
      data: the section of a config, with `size` and `reference_spacing`.
    """
    reference = data.get("reference_spacing")
    if not reference:
        return None
    if "times" in batch:
        (side,), times = patch, batch["times"] / reference[0]
        middle = times.reshape(times.shape[0], -1, side).mean(-1)
        return ((middle - (side - 1) / 2) / side,)
    factors = batch["spacing"] / jnp.array(reference, jnp.float32)[None]
    counts = [n // p for n, p in zip(data["size"], patch, strict=True)]
    index = [jnp.arange(n, dtype=jnp.float32)[None] for n in counts]
    return tuple(factors[:, axis, None] * x for axis, x in enumerate(index))
