"""What classification and regression share: how labelled examples are read and augmented."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from mae_jax.data.augment import batch as augment
from mae_jax.data.augment import coordinates, missing, randaugment, randaugment_color
from mae_jax.data.modalities import transforms
from mae_jax.models.heads import classification


def transform_of(config, mean, check: Callable[[Any], None]) -> Callable:
    """Return `Task.transform`: a crop, and the operations of RandAugment that move pixels.

    The devices apply the operations on colors, with the numbers drawn under the key "color".

    Args:
      check: raises Unreadable for a label that jax would accept silently.
    """
    magnitude, repeats = config.regularize.randaugment, config.data.repeats
    crop = transforms.train_transform(config.data)
    fill = tuple(round(255 * x) for x in mean) if magnitude else ()

    def transform(example: dict, rng: np.random.Generator) -> dict:
        check(example["label"])
        example = crop(example, rng)
        if not magnitude:
            return example
        views = example["image"] if repeats > 1 else example["image"][None]
        pairs = [
            randaugment.randaugment(view, rng, magnitude=magnitude, fill=fill) for view in views
        ]
        moved, colors = (np.stack(x) for x in zip(*pairs, strict=True))
        rows = slice(None) if repeats > 1 else 0
        return {**example, "image": moved[rows], "color": colors[rows]}

    return transform


def augment_of(
    config,
    mean,
    std,
    target_of: Callable[[Shaped[Array, "b *k"]], Float[Array, "b k"]],
    finish: Callable[[Float[Array, "b k"]], dict[str, jax.Array]],
) -> Callable[[jax.Array, dict], dict]:
    """Return `Task.augment`, which makes the random changes of a batch on the devices.

    Args:
      target_of: labels -> targets, which mixup mixes.
      finish: mixed targets of the global batch -> "target" and, if losses are weighted, "weight".
    """
    regularize, flip, depth = config.regularize, config.data.get("flip"), config.model.depth

    def augmented(key, batch):
        keys = jax.random.split(key, 4)
        inputs, target = batch["image"], target_of(batch["label"])
        if regularize.randaugment:
            inputs = randaugment_color.apply(inputs, batch["color"])
        inputs = augment.flip(keys[0], inputs) if flip else inputs
        inputs, present, _ = missing.split(inputs, mean, std, config.data)
        if regularize.erase:
            inputs = augment.erase(keys[1], inputs, regularize.erase)
        cutmix = regularize.get("cutmix", 0.0)
        if present is not None:  # is mixed alike: a value exists if it does so in either input
            inputs = jnp.concatenate([inputs, present.astype(inputs.dtype)], axis=-1)
        inputs, target = augment.mix(keys[2], inputs, target, regularize.mixup, cutmix)
        places = coordinates.of_batch(batch, config.data, config.model.patch)
        batch = {"image": inputs, **finish(target)}
        batch |= {} if places is None else {"coordinates": places}
        if present is not None:
            inputs, present = jnp.split(inputs, 2, axis=-1)
            batch |= {"image": inputs, "present": present > 0}
        if regularize.drop_path:
            batch["drop_path_scale"] = classification.drop_path(
                keys[3], len(inputs), depth, regularize.drop_path
            )
        return batch

    return augmented


def apply(model: Any, params: Any, stats: Any, batch: dict) -> tuple[Float[Array, "b k"], Any]:
    """Return the outputs of a network in training, and the new statistics of its BatchNorm."""
    variables = {"params": params} | ({} if stats is None else {"batch_stats": stats})
    outputs, updated = model.apply(
        variables,
        batch["image"],
        batch.get("drop_path_scale"),
        train=True,
        present=batch.get("present"),
        coordinates=batch.get("coordinates"),
        mutable=["batch_stats"],
    )
    return outputs, updated.get("batch_stats")
