"""What the training loop needs to know of a task."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from PIL import Image

from mae_jax.models import attention


def module_fields(config) -> dict[str, Any]:
    """The fields of a module that a config's section `model` describes."""
    fields: dict[str, Any] = dict(config["model"])
    if fields["dtype"] == "auto":
        fields["dtype"] = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if fields["attention"] == "auto":
        fields["attention"] = attention.suited()
    nested = lambda x: tuple(map(nested, x)) if isinstance(x, list | tuple) else x
    return {name: nested(x) for name, x in fields.items()}


class Task(NamedTuple):
    """A task is these functions; the loop in `train.py` owns everything else.

    Variables are those of `model.apply`: `{"params": ..., "batch_stats": ...}`.
    """

    init: Callable[[jax.Array], dict]  # key -> variables
    transform: Callable[[dict, np.random.Generator], dict]  # example -> what the device gets
    augment: Callable[[jax.Array, dict], dict]  # key, global batch -> all that is random, drawn
    loss: Callable[[Any, Any, dict], tuple[jax.Array, tuple[dict, Any]]]  # see `step.make_step`
    optimizer: Callable[[optax.Schedule], optax.GradientTransformation]
    evaluate: Callable[[dict], dict[str, float]]  # variables -> figures
    draw: Callable[[dict], Image.Image | None]  # variables -> picture
    report: Callable[[dict, Callable[[], dict]], tuple[str, dict[str, float]]]
    # trained and how to make untrained variables -> text, figures
    trainable: str = ".*"  # expression that the names of the trained parameters match
    rate: float = 1.0  # factor of the learning rate
