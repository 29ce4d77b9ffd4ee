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


def keep_count(n: int, ratio: float, together: int = 1) -> int:
    """Return how many of `n` patches stay visible at this mask ratio.

    `int(n * (1 - ratio))` alone gives 0 for (10, .9) and 99 for (1000, .9): floats fall short.

    Args:
      together: the number of patches that are masked together, such as those of a tube. As many
        such groups are masked as the ratio allows (VideoMAE keeps 8 * 20 of 8 * 196 at .9).

    Raises:
      ValueError: the ratio shows no patch by its own meaning, or masks none.
    """
    if not 0 < ratio < 1:
        raise ValueError(f"mask ratio {ratio} is not between 0 and 1 (the paper uses 0.75)")
    if together > 1:
        groups = n // together
        keep = together * max(1, groups - int(groups * ratio + 1e-9))
    else:
        keep = max(1, int(n * (1 - ratio) + 1e-9))
    if keep >= n:
        what = f"{n} patch(es)" if together == 1 else f"{n // together} group(s) of {together}"
        raise ValueError(
            f"mask ratio {ratio} masks none of {what}: use a smaller patch or a higher ratio"
        )
    return keep


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
    return mask.replace(masked=jnp.take_along_axis(mask.masked, chosen, axis=1))


def masked_map(mask: Mask) -> Float[Array, "b n"]:
    """Return 1 where a patch is masked, predicted or not, and 0 where it is visible."""
    samples = jnp.arange(len(mask.visible))[:, None]
    return jnp.ones((len(mask.visible), mask.n)).at[samples, mask.visible].set(0.0)
