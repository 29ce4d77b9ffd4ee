"""Classification: fine-tuning, partial fine-tuning and linear probing are its configs."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from mae_jax import layers, metrics, optimizer, probes, sharding, vit
from mae_jax.data import augment, images, pipeline, randaugment, sources
from mae_jax.tasks import features, heldout
from mae_jax.tasks.task import Task, module_fields


def model_of(config, classes: int) -> vit.Classifier:
    """The network that a config describes."""
    return vit.Classifier(classes=classes, **module_fields(config))


def training(config, mean, std, classes: int) -> tuple[Callable, Callable, Callable]:
    """`Task.init`, `Task.augment` and `Task.loss`: all that a training step needs."""
    model = model_of(config, classes)
    regularize = config["regularize"]
    shape = (1, *config["data"]["size"], config["data"]["channels"])

    def init(key):
        return model.init(key, jnp.zeros(shape))

    def augmented(key, batch):
        keys = jax.random.split(key, 4)
        x = augment.flip(keys[0], batch["image"]) if config["data"]["flip"] else batch["image"]
        x = augment.normalize(x, mean, std)
        if regularize["erase"]:
            x = augment.erase(keys[1], x, regularize["erase"])
        target = augment.targets(batch["label"], classes, regularize["label_smoothing"])
        x, target = augment.mix(keys[2], x, target, regularize["mixup"], regularize["cutmix"])
        drawn = {"image": x, "target": target}
        if rate := regularize["drop_path"]:
            drawn["paths"] = layers.drop_path(keys[3], len(x), model.depth, rate)
        return drawn

    def loss(params, stats, batch):
        variables = {"params": params} | ({} if stats is None else {"batch_stats": stats})
        logits, updated = model.apply(
            variables, batch["image"], batch.get("paths"), train=True, mutable=["batch_stats"]
        )
        losses = optax.softmax_cross_entropy(logits, batch["target"])
        right = logits.argmax(-1) == batch["target"].argmax(-1)
        return losses.mean(), ({"accuracy": right.mean()}, updated.get("batch_stats"))

    return init, augmented, loss


def build(config, source: sources.Source, mean, std, mesh: Mesh, key: jax.Array) -> Task:
    """The task of a config, with its test data opened; the classes are those of `source`.

    Raises:
      ValueError: fewer than two classes, or test data with other ones.
    """
    del key  # nothing is random in its evaluation
    classes = source.classes
    if len(classes) < 2:
        raise ValueError(
            f"{config.data.train.source!r} has {len(classes)} classes, and two or more are needed: "
            "put the pictures of each class into a folder of its own, or name another source"
        )
    model = model_of(config, len(classes))
    init, augmented, loss = training(config, mean, std, len(classes))
    test = heldout.opened(config, config.data.test) if config.data.test.source else None
    if test is not None and test.classes != classes:
        raise ValueError(
            f"{config.data.train.source!r} and the test data have different classes: "
            f"{features.different(classes, test.classes)}"
        )
    predict = predictor(model, heldout.view_of(config, mean, std), mesh)

    def results(variables):
        return predict(variables, test, config.evaluate.examples, config.evaluate.batch_size)

    def evaluate(variables):
        if test is None:
            return {}
        labels, predicted, losses = results(variables)
        return {
            "test_loss": float(losses.mean()),
            "test_accuracy": float((predicted == labels).mean()),
        }

    def report(variables, make_untrained):
        if test is None:
            return "no test data: data.test.source is empty", {}
        labels, predicted, losses = results(variables)
        text, figures, _ = summary(labels, predicted, classes)
        return text, {"test_loss": float(losses.mean())} | figures

    options = config.optimizer
    if options.name == "lars":
        tx = functools.partial(
            optimizer.lars, momentum=options.momentum, weight_decay=options.weight_decay
        )
    else:
        tx = functools.partial(
            optimizer.adamw,
            **{name: options[name] for name in ("b1", "b2", "weight_decay", "clip")},
            decayed=optimizer.FINETUNED,
            layer_decay=options.layer_decay,
            depth=config.model.depth,
        )
    return Task(
        init=init,
        transform=transform_of(config, mean, len(classes)),
        augment=augmented,
        loss=loss,
        optimizer=tx,
        evaluate=evaluate,
        draw=lambda variables: None,
        report=report,
        trainable=config.trainable,
    )


def transform_of(config, mean, classes: int) -> Callable:
    """`Task.transform`: decode, crop, RandAugment.

    A label that is none of the classes is refused there, because jax would not.
    """
    data, magnitude = config["data"], config["regularize"]["randaugment"]
    crop = pipeline.train_transform(
        tuple(data["size"]),
        data["channels"],
        tuple(data["crop_scale"]),
        tuple(data["crop_ratio"]),
    )
    fill = tuple(round(255 * x) for x in mean)

    def transform(example: dict, rng: np.random.Generator) -> dict:
        if not 0 <= example["label"] < classes:
            raise images.Unreadable(f"its label {example['label']} is not one of {classes} classes")
        example = crop(example, rng)
        if not magnitude:
            return example
        drawn = randaugment.randaugment(example["image"], rng, magnitude=magnitude, fill=fill)
        return {**example, "image": drawn}

    return transform


def predictor(model: vit.Classifier, view: heldout.View, mesh: Mesh):
    """A function of `variables, source, examples, batch_size`: labels, predicted classes, losses.

    Of each labelled example of (at most `examples` of) a source once, in its order: `[n]` each.
    """

    def forward(variables, batch):
        logits: Any = model.apply(variables, view.normalize(batch["image"]))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return batch["label"], logits.argmax(-1), losses, batch["valid"]

    forward = jax.jit(forward, out_shardings=sharding.replicated(mesh))

    def predict(variables, source, examples, batch_size):
        rows = [
            jax.tree.map(np.asarray, forward(variables, batch))
            for batch in heldout.batches(source, view, examples, batch_size, mesh)
        ]
        labels, predicted, losses, valid = (np.concatenate(x) for x in zip(*rows, strict=True))
        if labels.max() >= model.classes:
            raise ValueError(f"label {labels.max()} is not one of {model.classes} classes")
        chosen = valid & (labels >= 0)
        if not chosen.any():
            raise ValueError("no example of the test data has a label")
        return labels[chosen], predicted[chosen], losses[chosen]

    return predict


def summary(labels, predicted, classes) -> tuple[str, dict[str, float], dict[str, dict]]:
    """Accuracy, and precision, recall, F1 and support of each class.

    Returns:
      A table, the figures of all classes together, and those of each by its name.
    """
    scores = probes.per_class(labels, predicted, len(classes))
    accuracy = float((labels == predicted).mean())
    seen = [row for row in scores if row["support"]]
    means = {name: float(np.mean([row[name] for row in seen])) for name in probes.SCORES}
    cells = [
        [name, *(f"{row[score]:.3f}" for score in probes.SCORES), f"{row['support']:,}"]
        for name, row in zip(classes, scores, strict=True)
    ]
    last = ["mean", *(f"{means[score]:.3f}" for score in probes.SCORES), f"{len(labels):,}"]
    text = metrics.table([["class", *probes.SCORES, "support"], *cells, last])
    right = int((labels == predicted).sum())
    text = f"accuracy {accuracy:.4f} ({right:,} of {len(labels):,})\n\n{text}"
    return text, {"test_accuracy": accuracy} | means, dict(zip(classes, scores, strict=True))
