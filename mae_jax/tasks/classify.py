"""Classification, with configs for fine-tuning, partial fine-tuning and linear probing."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from mae_jax.data import sources
from mae_jax.data.augment import batch as augment
from mae_jax.data.bad_examples import Unreadable
from mae_jax.models import build as networks
from mae_jax.tasks import fine_tuning
from mae_jax.tasks.task import Task


def build(config, source, mean, std) -> Task:
    """Build the task of classification, with the classes of `source`; see `tasks.build`.

    Raises:
      ValueError: there are fewer than two classes, or the loss or the weights do not fit the
        labels.
    """
    spec, classes = config.data.train.source, len(source.classes)
    if classes < 2:
        raise ValueError(
            f"{spec!r} has {classes} class(es), and two or more are needed: "
            + (
                "its labels are numbers, so use task = 'regress'"
                if sources.label_kind(source) == "number"
                else "put the files of each class into a folder of its own, or write a labels.csv "
                "beside them, or name another source"
            )
        )
    multilabel = sources.is_multilabel(source)
    if multilabel != (config.loss == "binary"):
        raise ValueError(
            f"{spec!r} has {'several labels' if multilabel else 'one label'} "
            f"for an example: use loss = {'binary' if multilabel else 'softmax'!r}"
        )
    model, data = networks.classifier(config.model, classes, custom_gradients=True), config.data
    weights, finish = class_weights(config.class_weights, source, spec), _unweighted
    if weights:
        finish = functools.partial(weigh_presence if multilabel else weigh_examples, weights)

    def target_of(label):
        if label.ndim == 1:
            return augment.targets(label, classes, config.regularize.label_smoothing)
        return label.astype(jnp.float32)

    def loss(params, stats, batch):
        logits, stats = fine_tuning.apply(model, params, stats, batch)
        target, weight, metrics = batch["target"], batch.get("weight", 1.0), {}
        if multilabel:  # the mean over the classes, as an example may have several
            values = (weight * optax.sigmoid_binary_cross_entropy(logits, target)).mean(-1)
        else:
            values = optax.softmax_cross_entropy(logits, weight * target)
            metrics["accuracy"] = (logits.argmax(-1) == target.argmax(-1)).mean()
        return values.mean(), (metrics, stats)

    return Task(
        model,
        lambda key: model.init(key, jnp.zeros((1, *data.size, data.channels))),
        fine_tuning.transform_of(config, mean, label_check(classes)),
        fine_tuning.augment_of(config, mean, std, target_of, finish),
        loss,
        trainable=config.trainable,
    )


def label_check(classes: int) -> Callable[[Any], None]:
    """Return a function that raises Unreadable for a label that is none of the classes."""

    def check(label: Any) -> None:
        if np.ndim(label) == 0 and not 0 <= label < classes:
            raise Unreadable(f"its label {label} is not one of {classes} classes")

    return check


def _unweighted(target: Float[Array, "b classes"]) -> dict:
    return {"target": target}


def weigh_examples(weights: Sequence[float], target: Float[Array, "b classes"]) -> dict:
    """Return the target and the weights of examples, each by its class or its share of classes.

    They are divided by their mean over the batch, as `torch.nn.CrossEntropyLoss` does.
    """
    row = jnp.array(weights, jnp.float32)[None]
    row = row / (row * target).sum(-1).mean()
    return {"target": target, "weight": jnp.broadcast_to(row, target.shape)}


def weigh_presence(weights: Sequence[float], target: Float[Array, "b classes"]) -> dict:
    """Return the target and the weights of its ones against its zeros, one by one.

    They are the `pos_weight` of `torch.nn.BCEWithLogitsLoss`.
    """
    return {"target": target, "weight": 1 + (jnp.array(weights, jnp.float32)[None] - 1) * target}


def class_weights(
    weights: str | Sequence[float], source: sources.Source, spec: str
) -> tuple[float, ...]:
    """Return the weight of each class, of which "balanced" ones come from the training labels.

    "balanced" is n / (classes * n of the class), as in scikit-learn; if an example may have several
    classes, the number of examples without a class for each example that has it.

    Raises:
      ValueError: the number of weights is not that of the classes; or the source does not know its
        labels, or a class has no examples, so that nothing is "balanced".
    """
    classes = source.classes
    if weights != "balanced":
        if weights and len(weights) != len(classes):
            raise ValueError(
                f"class_weights has {len(weights)} values, but {spec!r} has {len(classes)} "
                "classes: give one for each"
            )
        return tuple(map(float, weights))
    labels = sources.labels_of(source)
    if labels is None:
        raise ValueError(
            f"{spec!r} does not tell its labels without reading its examples, from which "
            "class_weights = 'balanced' would follow: give a tuple of weights"
        )
    if labels.ndim == 2:
        counts = labels.astype(int).sum(0)
        others = len(labels) - counts
    else:
        counts = np.bincount(labels[labels >= 0], minlength=len(classes))
        others = np.full(len(classes), counts.sum() / len(classes))
    if not (counts.all() and others.all()):
        name = classes[int(np.argmin(np.minimum(counts, others)))]
        raise ValueError(
            f"class {name!r} has {'all' if counts.all() else 'none'} of the training examples, so "
            "class_weights = 'balanced' cannot weigh it: give a tuple of weights"
        )
    return tuple((others / counts).tolist())
