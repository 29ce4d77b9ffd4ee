"""A mask: which patches of each sample are visible, and which of the others are predicted."""

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int


@struct.dataclass
class Mask:
    """Which of `n` patches each sample shows to the encoder, and which of the others it predicts.

    `masked` holds all of the others, or some of them (`partial`). Samples of a batch in which some
    patches have no data show and predict fewer patches than others: `shown` and `predicted` say
    which places of `visible` and `masked` count. Both are None if all do.
    """

    visible: Int[Array, "b k"]
    masked: Int[Array, "b m"]
    n: int = struct.field(pytree_node=False)
    shown: Bool[Array, "b k"] | None = None
    predicted: Bool[Array, "b m"] | None = None


def from_scores(
    scores: Float[Array, "b n"], keep: int, present: Bool[Array, "b n"] | None = None
) -> Mask:
    """Show the `keep` patches with the smallest scores of each sample, and mask the others.

    Args:
      present: the patches that have data; by default all. The share `keep / n` of them is shown, at
        least one, and the others of them are predicted. A patch without data is neither shown nor
        predicted, and a sample with fewer than two patches predicts none.

    Raises:
      ValueError: `keep` shows no patch, or masks none: a loss over no patches is NaN.
    """
    n = scores.shape[1]
    if not 0 < keep < n:
        raise ValueError(
            f"keep = {keep} of {n} patches: keep at least 1 and mask at least 1; to encode a whole "
            "input call encode(inputs) without a mask"
        )
    if present is None:
        order = jnp.argsort(scores, axis=-1)
        return Mask(visible=order[:, :keep], masked=order[:, keep:], n=n)
    order = jnp.argsort(jnp.where(present, scores, jnp.inf), axis=-1)
    count = present.sum(-1, keepdims=True)
    shown = jnp.minimum(jnp.maximum(count * keep // n, 1), count)  # at most `keep`
    places = shown + jnp.arange(n - keep)[None]
    return Mask(
        visible=order[:, :keep],
        masked=jnp.take_along_axis(order, places, axis=1),
        n=n,
        shown=jnp.arange(keep)[None] < shown,
        predicted=places < count,
    )


def from_map(
    masked: Bool[Array, "b n"],
    keep: int,
    predict: int,
    present: Bool[Array, "b n"] | None = None,
) -> Mask:
    """Mask exactly the patches of a map, of which each sample may have another number.

    Args:
      keep, predict: the largest number of patches that a sample shows, and predicts. Of a sample
        with more of them, the first ones in the order of the grid count.
      present: the patches that have data; by default all. The others are not shown.
    """
    shown = ~masked if present is None else ~masked & present
    places = lambda chosen, count: jnp.argsort(~chosen, axis=-1)[:, :count]  # chosen ones first
    counts = lambda chosen, count: jnp.arange(count)[None] < chosen.sum(-1, keepdims=True)
    return Mask(
        visible=places(shown, keep),
        masked=places(masked, predict),
        n=masked.shape[1],
        shown=counts(shown, keep),
        predicted=counts(masked, predict),
    )


def whole(present: Bool[Array, "b n"]) -> Mask:
    """Show every patch that has data, in the order of the grid, and predict none."""
    b, n = present.shape
    order = jnp.broadcast_to(jnp.arange(n)[None], (b, n))
    return Mask(order, order[:, :0], n, shown=present, predicted=present[:, :0])


def partial(mask: Mask, noise: Float[Array, "b m"], count: int) -> Mask:
    """Predict only the `count` masked patches with the smallest noise of each sample.

    The others are neither seen nor predicted: partial decoding of CrossMAE (arXiv 2401.14391). With
    uniform noise each masked patch is equally likely, so the loss is the full one on average.
    """
    if mask.predicted is not None:
        noise = jnp.where(mask.predicted, noise, jnp.inf)
    chosen = jnp.argsort(noise, axis=-1)[:, :count]
    take = lambda x: None if x is None else jnp.take_along_axis(x, chosen, axis=1)
    return mask.replace(masked=take(mask.masked), predicted=take(mask.predicted))  # pyright: ignore


def masked_map(mask: Mask) -> Float[Array, "b n"]:
    """Return 0 where a patch is visible, and 1 where it is not: masked, predicted or not."""
    samples = jnp.arange(mask.visible.shape[0])[:, None]
    values = 0.0 if mask.shown is None else 1.0 - mask.shown
    return jnp.ones((mask.visible.shape[0], mask.n)).at[samples, mask.visible].set(values)


def keys(mask: Mask | None, before: int = 0, after: int = 0) -> Bool[Array, "b k"] | None:
    """Return which visible tokens may be attended to, between others that always may.

    The result is None if all may, as the argument `key_mask` of attention.
    """
    if mask is None or mask.shown is None:
        return None
    return jnp.pad(mask.shown, ((0, 0), (before, after)), constant_values=True)
