"""A mask: which patches of each sample are visible, and which of the others are predicted."""

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int


@struct.dataclass
class Mask:
    """Which of `n` patches each sample shows to the encoder, and which of the others it predicts.

    `masked` holds all of the others, or some of them (`partial`).
    """

    visible: Int[Array, "b k"]
    masked: Int[Array, "b m"]
    n: int = struct.field(pytree_node=False)


def from_scores(scores: Float[Array, "b n"], keep: int) -> Mask:
    """Show the `keep` patches with the smallest scores of each sample, and mask the others.

    Raises:
      ValueError: `keep` shows no patch, or masks none: a loss over no patches is NaN.
    """
    n = scores.shape[1]
    if not 0 < keep < n:
        raise ValueError(
            f"keep = {keep} of {n} patches: keep at least 1 and mask at least 1; to encode a whole "
            "input call encode(inputs) without a mask"
        )
    order = jnp.argsort(scores, axis=-1)
    return Mask(visible=order[:, :keep], masked=order[:, keep:], n=n)


def partial(mask: Mask, noise: Float[Array, "b m"], count: int) -> Mask:
    """Predict only the `count` masked patches with the smallest noise of each sample.

    The others are neither seen nor predicted: partial decoding of CrossMAE (arXiv 2401.14391). With
    uniform noise each masked patch is equally likely, so the loss is the full one on average.
    """
    chosen = jnp.argsort(noise, axis=-1)[:, :count]
    return Mask(mask.visible, jnp.take_along_axis(mask.masked, chosen, axis=1), mask.n)


def masked_map(mask: Mask) -> Float[Array, "b n"]:
    """Return 1 where a patch is masked, predicted or not, and 0 where it is visible."""
    samples = jnp.arange(mask.visible.shape[0])[:, None]
    return jnp.ones((mask.visible.shape[0], mask.n)).at[samples, mask.visible].set(0.0)
