"""Masks: a score that says which patches to keep, then one argsort.

A strategy only says how much it wants to keep each patch (smaller = keep), as `[b, n]` scores.
`from_scores` sorts them and cuts at a static count, so every strategy has the same shapes.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int


@struct.dataclass
class Mask:
    """Which patches each sample keeps and which it hides; together they are all `n` patches."""

    keep: Int[Array, "b k"]
    hidden: Int[Array, "b m"]


def keep_count(n: int, ratio: float) -> int:
    """How many of `n` patches stay visible at this mask ratio.

    `int(n * (1 - ratio))` alone gives 0 for (10, .9) and 99 for (1000, .9): floats fall short.

    Raises:
      ValueError: no patch would be visible by the ratio's own meaning, or none would be hidden.
    """
    if not 0 < ratio < 1:
        raise ValueError(f"mask ratio {ratio} is not between 0 and 1 (the paper uses 0.75)")
    keep = max(1, int(n * (1 - ratio) + 1e-9))
    if keep >= n:
        raise ValueError(
            f"mask ratio {ratio} hides none of {n} patch(es): use a smaller patch or a higher ratio"
        )
    return keep


def random(key: jax.Array, batch: int, n: int) -> Float[Array, "b n"]:
    """Uniform noise, drawn for each sample: random masking as in He et al. 2021."""
    return jax.random.uniform(key, (batch, n))


def from_scores(scores: Float[Array, "b n"], keep: int) -> Mask:
    """Keep the `keep` patches with the smallest scores of each sample, hide the others."""
    order = jnp.argsort(scores, axis=-1)
    return Mask(keep=order[:, :keep], hidden=order[:, keep:])


def hidden_map(mask: Mask) -> Float[Array, "b n"]:
    """1 where a patch is hidden, 0 where it is visible, in grid order."""
    b, k = mask.keep.shape
    n = k + mask.hidden.shape[1]
    return jnp.ones((b, n)).at[jnp.arange(b)[:, None], mask.keep].set(0.0)
