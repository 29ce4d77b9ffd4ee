"""Classification: fine-tuning, partial fine-tuning and linear probing are its configs."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from mae_jax.data import sources
from mae_jax.data.augment import batch as augment
from mae_jax.data.augment import randaugment, randaugment_color
from mae_jax.data.modalities import transforms
from mae_jax.data.unreadable import Unreadable
from mae_jax.distributed import partitioning
from mae_jax.evaluators import features, heldout
from mae_jax.evaluators import scores as scoress
from mae_jax.models import layers, vit
from mae_jax.output import tables
from mae_jax.tasks.task import Task, module_fields
from mae_jax.training import optimizer


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
        x = batch["image"]
        x = randaugment_color.apply(x, batch["colour"]) if regularize["randaugment"] else x
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
            drawn["paths"] = layers.drop_path(keys[3], len(x), model.depth, rate)
        return drawn

    def loss(params, stats, batch):
        variables = {"params": params} | ({} if stats is None else {"batch_stats": stats})
        logits, updated = model.apply(
            variables, batch["image"], batch.get("paths"), train=True, mutable=["batch_stats"]
        )
        losses = losses_of(logits, batch["target"], config["loss"])
        figures = {}
        if config["loss"] == "softmax":
            figures["accuracy"] = (logits.argmax(-1) == batch["target"].argmax(-1)).mean()
        return losses.mean(), (figures, updated.get("batch_stats"))

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
    several = sources.several(source)
    if several != (config.loss == "binary"):
        raise ValueError(
            f"{config.data.train.source!r} has {'several labels' if several else 'one label'} for "
            f"an example: use loss = {'binary' if several else 'softmax'!r}"
        )
    view = heldout.view_of(config, mean, std)
    view = view._replace(clips=config.evaluate.clips, crops=config.evaluate.crops)
    predict = predictor(model, view, mesh, config.loss)

    def results(variables):
        found = predict(variables, test, config.evaluate.examples, config.evaluate.batch_size)
        text, figures, _ = summary(*found, classes, config.loss)
        return text, figures

    def evaluate(variables):
        _, figures = results(variables) if test is not None else ("", {})
        return {name: x for name, x in figures.items() if name in HEADLINES}

    def report(variables, make_untrained):
        if test is None:
            return "no test data: data.test.source is empty", {}
        return results(variables)

    options = config.optimizer
    if options.name == "lars":
        tx = functools.partial(
            optimizer.lars, momentum=options.momentum, weight_decay=options.weight_decay
        )
    else:
        tx = functools.partial(
            optimizer.adamw,
            **{name: options[name] for name in ("b1", "b2", "weight_decay", "clip", "mu_dtype")},
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
    """`Task.transform`: decode, crop, RandAugment but for its colours, which are drawn as "colour".

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
        moved, colours = zip(
            *(
                randaugment.randaugment(picture, rng, magnitude=magnitude, fill=fill)
                for picture in pictures
            ),
            strict=True,
        )
        if config["data"]["repeats"] == 1:
            return {**example, "image": moved[0], "colour": colours[0]}
        return {**example, "image": np.stack(moved), "colour": np.stack(colours)}

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


class Predicted(NamedTuple):
    """Of each labelled example of a source once, in its order."""

    labels: np.ndarray  # [n], or [n classes]
    scores: np.ndarray  # [n classes]: the probability of each class
    losses: np.ndarray  # [n]


def predictor(model: vit.Classifier, view: heldout.View, mesh: Mesh, kind: str = "softmax"):
    """A function of `variables, source, examples, batch_size`, of at most so many: `Predicted`.

    The probabilities are means over the views of an example, and the losses those of the means.

    Args:
      kind: see `losses_of`.
    """

    def forward(variables, batch):
        x = batch["image"]
        several = x.ndim > len(view.size) + 2
        flat = x.reshape(-1, *x.shape[2:]) if several else x
        logits: Any = model.apply(variables, view.normalize(flat))
        labels = batch["label"]
        target = jax.nn.one_hot(labels, model.classes) if labels.ndim == 1 else labels

        def mean(log):  # of the probabilities of all views, as logarithms: these have no tails
            log = log.reshape(len(x), -1, model.classes)
            return jax.nn.logsumexp(log, axis=1) - jnp.log(log.shape[1])

        if kind == "softmax":
            logits = mean(jax.nn.log_softmax(logits))
            scores = jnp.exp(logits)
        else:
            logits = mean(jax.nn.log_sigmoid(logits)) - mean(jax.nn.log_sigmoid(-logits))
            scores = jax.nn.sigmoid(logits)
        losses = losses_of(logits, target.astype(jnp.float32), kind)
        return labels, scores, losses, batch["valid"]

    forward = jax.jit(forward, out_shardings=partitioning.replicated(mesh))

    def predict(variables, source, examples, batch_size) -> Predicted:
        rows = [
            jax.tree.map(np.asarray, forward(variables, batch))
            for batch in heldout.batches(source, view, examples, batch_size, mesh)
        ]
        labels, scores, losses, valid = (np.concatenate(x) for x in zip(*rows, strict=True))
        chosen = valid & (labels >= 0 if labels.ndim == 1 else True)
        if not chosen.any():
            raise ValueError("no example of the test data has a label")
        labels = labels[chosen]
        if labels.ndim == 2 and not labels.any():
            raise ValueError("no class is true of any example of the test data")
        if labels.ndim == 1 and labels.max() >= model.classes:
            raise ValueError(f"label {labels.max()} is not one of {model.classes} classes")
        return Predicted(labels, scores[chosen], losses[chosen])

    return predict


HEADLINES = ("test_loss", "test_accuracy", "test_map")  # figures during the training


def summary(
    labels, scores, losses, classes, kind: str = "softmax"
) -> tuple[str, dict[str, float], dict[str, dict]]:
    """Accuracy, and precision, recall, F1 and support of each class; or average precisions.

    Args:
      labels, scores, losses: see `Predicted`.
      kind: "binary": several classes may be true at once, and then the figure is the mean over the
        classes of the average precision (mAP).

    Returns:
      A table, the figures of all classes together, and those of each by its name.
    """
    if kind == "binary":
        rows, names = scoress.average_precision(labels, scores), ("average_precision",)
    else:
        rows = scoress.per_class(labels, scores.argmax(-1), len(classes))
        names = scoress.SCORES
    seen = [row for row in rows if row["support"]]
    means = {name: float(np.mean([row[name] for row in seen])) for name in names}
    cells = [
        [name, *(f"{row[score]:.3f}" for score in names), f"{row['support']:,}"]
        for name, row in zip(classes, rows, strict=True)
    ]
    last = ["mean", *(f"{means[score]:.3f}" for score in names), f"{len(labels):,}"]
    titles = [name.replace("_", " ") for name in names]
    table = tables.table([["class", *titles, "support"], *cells, last])
    figures = {"test_loss": float(losses.mean())}
    if kind == "binary":
        figures["test_map"] = means["average_precision"]
        head = f"mAP {figures['test_map']:.4f} (of {len(labels):,} examples)"
    else:
        right = int((labels == scores.argmax(-1)).sum())
        figures |= {"test_accuracy": right / len(labels)} | means
        head = f"accuracy {figures['test_accuracy']:.4f} ({right:,} of {len(labels):,})"
    return f"{head}\n\n{table}", figures, dict(zip(classes, rows, strict=True))
