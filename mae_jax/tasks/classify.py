"""Classification, with configs for fine-tuning, partial fine-tuning and linear probing."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mae_jax.data import sources
from mae_jax.data.augment import batch as augment
from mae_jax.data.augment import randaugment, randaugment_color
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.modalities import transforms
from mae_jax.models import build as networks
from mae_jax.models.heads import classification
from mae_jax.tasks.task import Task


def build(config, source, mean, std) -> Task:
    """Build the task of classification, with the classes of `source`; see `tasks.build`.

    Raises:
      ValueError: there are fewer than two classes, or the loss does not fit the labels.
    """
    classes = len(source.classes)
    if classes < 2:
        raise ValueError(
            f"{config.data.train.source!r} has {classes} classes, and two or more are needed: "
            "put the pictures of each class into a folder of its own, or name another source"
        )
    multilabel = sources.is_multilabel(source)
    if multilabel != (config.loss == "binary"):
        raise ValueError(
            f"{config.data.train.source!r} has {'several labels' if multilabel else 'one label'} "
            f"for an example: use loss = {'binary' if multilabel else 'softmax'!r}"
        )
    model, data = networks.classifier(config.model, classes, custom_gradients=True), config.data

    def loss(params, stats, batch):
        variables = {"params": params} | ({} if stats is None else {"batch_stats": stats})
        logits, updated = model.apply(
            variables,
            batch["image"],
            batch.get("drop_path_scale"),
            train=True,
            mutable=["batch_stats"],
        )
        target, metrics = batch["target"], {}
        if multilabel:  # the mean over the classes, as an example may have several
            losses = optax.sigmoid_binary_cross_entropy(logits, target).mean(-1)
        else:
            losses = optax.softmax_cross_entropy(logits, target)
            metrics["accuracy"] = (logits.argmax(-1) == target.argmax(-1)).mean()
        return losses.mean(), (metrics, updated.get("batch_stats"))

    return Task(
        model,
        lambda key: model.init(key, jnp.zeros((1, *data.size, data.channels))),
        transform_of(config, mean, classes),
        augment_of(config, mean, std, classes),
        loss,
        trainable=config.trainable,
    )


def augment_of(config, mean, std, classes: int) -> Callable[[jax.Array, dict], dict]:
    """Return `Task.augment`, which makes the random changes of a batch on the devices."""
    regularize, flip, depth = config.regularize, config.data.get("flip"), config.model.depth

    def augmented(key, batch):
        keys = jax.random.split(key, 4)
        inputs, target = batch["image"], batch["label"]
        if regularize.randaugment:
            inputs = randaugment_color.apply(inputs, batch["color"])
        inputs = augment.flip(keys[0], inputs) if flip else inputs
        inputs = augment.normalize(inputs, mean, std)
        if regularize.erase:
            inputs = augment.erase(keys[1], inputs, regularize.erase)
        if target.ndim == 1:
            target = augment.targets(target, classes, regularize.label_smoothing)
        target = target.astype(jnp.float32)
        inputs, target = augment.mix(keys[2], inputs, target, regularize.mixup, regularize.cutmix)
        batch = {"image": inputs, "target": target}
        if regularize.drop_path:
            batch["drop_path_scale"] = classification.drop_path(
                keys[3], len(inputs), depth, regularize.drop_path
            )
        return batch

    return augmented


def transform_of(config, mean, classes: int) -> Callable:
    """Return `Task.transform`: a crop, and the operations of RandAugment that move pixels.

    The devices apply the operations on colors, with the numbers drawn under the key "color". A
    label outside the classes is refused, because jax would accept it silently.
    """
    magnitude, repeats = config.regularize.randaugment, config.data.repeats
    crop = transforms.train_transform(config.data)
    fill = tuple(round(255 * x) for x in mean) if magnitude else ()

    def transform(example: dict, rng: np.random.Generator) -> dict:
        label = example["label"]
        if np.ndim(label) == 0 and not 0 <= label < classes:
            raise Unreadable(f"its label {label} is not one of {classes} classes")
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
