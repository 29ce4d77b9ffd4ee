"""Regression: the fine-tuning of an encoder to predict one number or several."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.target_scale import TargetScale
from mae_jax.models import build as networks
from mae_jax.tasks import fine_tuning, losses
from mae_jax.tasks.task import Task


def build(config, source, mean, std, targets: TargetScale) -> Task:
    """Build the task of regression to the targets of `source`; see `tasks.build`.

    The network learns standardised targets; `Task.model`, with the same parameters, predicts them
    in their own units. A number that is unknown has the weight 0 in the loss.
    """
    del source  # its targets are known
    count, data = len(targets.names), config.data
    network = networks.classifier(config.model, count, custom_gradients=True)
    distance = losses.distance(config)
    center, scale = (np.array([x], np.float32) for x in (targets.mean, targets.std))

    def finish(target):  # mixed with an unknown number, a number is unknown as well
        is_known = jnp.isfinite(target)
        weight = losses.averaging(is_known.astype(jnp.float32))
        return {"target": jnp.where(is_known, target, 0), "weight": weight}

    def loss(params, stats, batch):
        outputs, stats = fine_tuning.apply(network, params, stats, batch)
        return (batch["weight"] * distance(outputs, batch["target"])).mean(), ({}, stats)

    def check(label: Any) -> None:
        if np.shape(label) != (count,) or np.isinf(label).any():
            raise Unreadable(f"its label {label} is not {count} finite numbers")

    return Task(
        network.clone(target_mean=targets.mean, target_std=targets.std),
        lambda key: network.init(key, jnp.zeros((1, *data.size, data.channels))),
        fine_tuning.transform_of(config, mean, check),
        fine_tuning.augment_of(config, mean, std, lambda x: (x - center) / scale, finish),
        loss,
        trainable=config.trainable,
    )
