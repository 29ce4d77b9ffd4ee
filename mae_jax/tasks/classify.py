"""Classification: fine-tuning, partial fine-tuning and linear probing are its configs."""

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
from mae_jax.models import layers
from mae_jax.models.heads.classification import Classifier
from mae_jax.tasks.task import Task


def model_of(config, classes: int) -> Classifier:
    """The network that a config describes."""
    return networks.classifier(config["model"], classes, custom_gradients=True)


def build(config, source, mean, std) -> Task:
    """The task of classification, with the classes of `source`; see `tasks.build`.

    Raises:
      ValueError: there are fewer than two classes, or the loss does not fit the labels.
    """
    classes = source.classes
    if len(classes) < 2:
        raise ValueError(
            f"{config.data.train.source!r} has {len(classes)} classes, and two or more are needed: "
            "put the pictures of each class into a folder of its own, or name another source"
        )
    multilabel = sources.is_multilabel(source)
    if multilabel != (config.loss == "binary"):
        raise ValueError(
            f"{config.data.train.source!r} has {'several labels' if multilabel else 'one label'} "
            f"for an example: use loss = {'binary' if multilabel else 'softmax'!r}"
        )
    model, data = model_of(config, len(classes)), config["data"]

    def init(key):
        return model.init(key, jnp.zeros((1, *data["size"], data["channels"])))

    def loss(params, stats, batch):
        variables = {"params": params} | ({} if stats is None else {"batch_stats": stats})
        logits, updated = model.apply(
            variables, batch["image"], batch.get("paths"), train=True, mutable=["batch_stats"]
        )
        losses = losses_of(logits, batch["target"], config["loss"])
        metrics = {}
        if config["loss"] == "softmax":
            metrics["accuracy"] = (logits.argmax(-1) == batch["target"].argmax(-1)).mean()
        return losses.mean(), (metrics, updated.get("batch_stats"))

    return Task(
        model,
        init,
        transform_of(config, mean, len(classes)),
        augment_of(config, mean, std, len(classes)),
        loss,
        trainable=config["trainable"],
    )


def augment_of(config, mean, std, classes: int) -> Callable[[jax.Array, dict], dict]:
    """`Task.augment`: all of a batch that is random and drawn on the devices."""
    regularize, depth = config["regularize"], config["model"]["depth"]

    def augmented(key, batch):
        keys = jax.random.split(key, 4)
        x = batch["image"]
        x = randaugment_color.apply(x, batch["color"]) if regularize["randaugment"] else x
        x = augment.flip(keys[0], x) if config["data"].get("flip") else x
        x = augment.normalize(x, mean, std)
        if regularize["erase"]:
            x = augment.erase(keys[1], x, regularize["erase"])
        target = batch["label"]
        if target.ndim == 1:
            target = augment.targets(target, classes, regularize["label_smoothing"])
        target = target.astype(jnp.float32)
        x, target = augment.mix(keys[2], x, target, regularize["mixup"], regularize["cutmix"])
        drawn = {"image": x, "target": target}
        if rate := regularize["drop_path"]:
            drawn["paths"] = layers.drop_path(keys[3], len(x), depth, rate)
        return drawn

    return augmented


def transform_of(config, mean, classes: int) -> Callable:
    """`Task.transform`: decode, crop, RandAugment but for its colors, which are drawn as "color".

    A label that is none of the classes is refused there, because jax would not.
    """
    magnitude = config["regularize"]["randaugment"]
    crop = transforms.train_transform(config["data"])
    fill = tuple(round(255 * x) for x in mean) if magnitude else ()

    def transform(example: dict, rng: np.random.Generator) -> dict:
        label = example["label"]
        if np.ndim(label) == 0 and not 0 <= label < classes:
            raise Unreadable(f"its label {label} is not one of {classes} classes")
        example = crop(example, rng)
        if not magnitude:
            return example
        x = example["image"]
        pictures = x[None] if config["data"]["repeats"] == 1 else x
        moved, colors = zip(
            *(
                randaugment.randaugment(picture, rng, magnitude=magnitude, fill=fill)
                for picture in pictures
            ),
            strict=True,
        )
        if config["data"]["repeats"] == 1:
            return {**example, "image": moved[0], "color": colors[0]}
        return {**example, "image": np.stack(moved), "color": np.stack(colors)}

    return transform


def losses_of(logits: jax.Array, target: jax.Array, kind: str) -> jax.Array:
    """Cross-entropy of each example `[b]` with a target `[b, classes]`.

    Args:
      kind: "softmax", of one distribution over the classes; "binary", the mean over the classes of
        each one's own, where several may be true at once.
    """
    if kind == "softmax":
        return optax.softmax_cross_entropy(logits, target)
    return optax.sigmoid_binary_cross_entropy(logits, target).mean(-1)
