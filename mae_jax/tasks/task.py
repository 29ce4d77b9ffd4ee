"""The parts of a task."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


class Task(NamedTuple):
    """A model and the functions that train it.

    The variables are those of `model.apply`: `{"params": ..., "batch_stats": ...}`. A batch holds
    the inputs, of any modality, as `"image"` [b, *size, c], and `"label"`.
    """

    model: Any  # a flax module
    init: Callable[[jax.Array], Any]  # key -> variables
    transform: Callable[[dict, np.random.Generator], dict]  # example -> arrays, on the host
    augment: Callable[[jax.Array, dict], dict]  # key, global batch -> batch with all random draws
    # parameters, batch_stats, augmented batch -> loss, (metrics, new batch_stats)
    loss: Callable[[Any, Any, dict], tuple[jax.Array, tuple[dict, Any]]]
    trainable: str = ".*"  # regular expression that the whole names of trained parameters match
    rate: float = 1.0  # factor of the learning rate
    decayed: frozenset[str] = frozenset({"kernel"})  # last parts of the names with weight decay
