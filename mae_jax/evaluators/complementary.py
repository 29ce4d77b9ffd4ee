"""What a masked autoencoder says of every patch of an input, given other patches.

The masks are those of `masking.partition`, which together mask each patch equally often: what is
said of a patch is the mean over the masks that mask it. All inputs of a batch share the masks, so
that a result does not depend on the batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mae_jax.data.augment.missing import Inputs
from mae_jax.models import masking, targets
from mae_jax.models.masking import Mask

Scores = Float[Array, "g 1 n"]  # of the patches, for each of g masks


def losses(
    model: Any, variables: dict, inputs: Inputs, scores: Scores, keep: int, coordinates: Any = None
) -> Float[Array, "b n"]:
    """Return the loss of each patch in the terms of the model's target; NaN where none is.

    Args:
      inputs: a batch [b *size c], normalised.
      keep: how many patches each mask shows: those with the smallest scores.
      coordinates: see `MaskedAutoencoder.__call__`.
    """

    def of_mask(prediction: jax.Array, mask: Mask) -> tuple[jax.Array, jax.Array]:
        found = model.target.losses(prediction, inputs.values, mask.masked, inputs.weight)
        counts = model.target.shares(inputs.values, mask, inputs.weight) > 0
        samples = jnp.arange(found.shape[0])[:, None]  # `len` knows no symbolic batch size
        empty = jnp.zeros((found.shape[0], mask.n))
        place = lambda x: empty.at[samples, mask.masked].set(x)
        return place(jnp.where(counts, found, 0)), place(counts.astype(jnp.float32))

    return _mean(of_mask, model, variables, inputs, scores, keep, coordinates)


def predictions(
    model: Any, variables: dict, inputs: Inputs, scores: Scores, keep: int, coordinates: Any = None
) -> Float[Array, "b *size c"]:
    """Return the prediction of each value, normalised as the inputs; NaN where none is.

    Args:
      inputs, keep, coordinates: as in `losses`.
    """

    def of_mask(prediction: jax.Array, mask: Mask) -> tuple[jax.Array, jax.Array]:
        filled = model.target.to_inputs(prediction, inputs.values, mask, inputs.weight)
        counts = model.target.masked_values(inputs.values, mask)
        return jnp.where(counts, filled, 0), counts.astype(jnp.float32)

    check_pixels(model)
    return _mean(of_mask, model, variables, inputs, scores, keep, coordinates)


def check_pixels(model: Any) -> None:
    """Raise ValueError unless a model predicts the values of patches themselves."""
    target = getattr(model, "target", None)
    if not isinstance(target, targets.PixelTarget):
        raise ValueError("the model has no decoder that predicts values: use a pre-trained one")
    if target.norm:
        raise ValueError(
            "the model was trained with norm_pix, so its predictions have neither brightness nor "
            "contrast: use one that was trained with model.norm_pix=False"
        )


def _mean(
    of_mask: Callable[[jax.Array, Mask], tuple[jax.Array, jax.Array]],
    model: Any,
    variables: dict,
    inputs: Inputs,
    scores: Scores,
    keep: int,
    coordinates: Any,
) -> jax.Array:
    """Return the mean of values over masks, given their sums and their counts under a mask."""
    present = None if inputs.present is None else model.present(inputs.present)

    def values(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
        scores = jnp.broadcast_to(scores, (inputs.values.shape[0], scores.shape[-1]))
        mask = masking.from_scores(scores, keep, present)
        out = model.apply(variables, inputs.values, mask, inputs.weight, coordinates)
        return of_mask(out.prediction, mask)

    def add(sums, scores):  # one mask after another, which bounds the memory
        return jax.tree.map(jnp.add, sums, values(scores)), None

    start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(values, scores[0]))
    (total, count), _ = jax.lax.scan(add, start, scores)
    return jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan)
