"""Losses of numbers of any shape, and weights under which their mean does not depend on batches."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float


def distance(options: Mapping[str, Any]) -> Callable[[Array, Array], Array]:
    """Return the loss of each number, a function of predictions and targets of one shape.

    Args:
      options: `loss`, which is "l2" (squared), "l1" (absolute) or "huber", and `huber_delta`.
    """
    return {
        "l2": optax.squared_error,
        "l1": lambda prediction, target: jnp.abs(prediction - target),
        "huber": functools.partial(optax.huber_loss, delta=options["huber_delta"]),
    }[options["loss"]]


def averaging(weights: Float[Array, "b *k"]) -> Float[Array, "b *k"]:
    """Return weights with the mean 1 (or 0, if all are 0), of a whole batch.

    The weighted mean of losses, `sum(w * loss) / sum(w)`, is then the plain mean of `w * loss`. A
    step may compute this mean of equal parts of the batch, one after the other, although the parts
    have different sums of weights.
    """
    mean = weights.mean()
    return weights / jnp.where(mean > 0, mean, 1.0)
