"""The accuracy of a classifier on held-out examples."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

from mae_jax.data import sources
from mae_jax.distributed import partitioning
from mae_jax.evaluators import features
from mae_jax.evaluators.evaluator import Context, HeldOutEvaluator, Result, Unsuitable
from mae_jax.evaluators.held_out import EvalTransform

# The metrics that `evaluate` returns.
FOLLOWED = ("test_loss", "test_accuracy", "test_balanced_accuracy", "test_map")


class Predictions(NamedTuple):
    """The predictions for the labelled examples of a source, in its order."""

    labels: np.ndarray  # [n], or [n classes] if several classes may be true
    probabilities: np.ndarray  # [n classes]
    losses: np.ndarray  # [n]


class Classification(HeldOutEvaluator):
    """The accuracy of a classifier, and the precision, recall and F1 of each class.

    If several classes may be true of an example, the metrics are average precisions and their mean
    (mAP). The probabilities of an example are means over its clips and crops, and its loss is the
    loss of these means.

    Raises:
      ValueError: the data have other classes, or another kind of labels, than the model.
    """

    def __init__(self, section: Mapping[str, Any], context: Context):
        super().__init__(section, context)
        if not self.model.classes:
            raise Unsuitable("the model has no head")
        views = {name: section[name] for name in ("clips", "crops")}
        self.transform = context.transform._replace(**views)
        classes, spec = tuple(self.source.classes), section["source"]
        self.classes = tuple(context.classes or classes)
        if not len(classes) == len(self.classes) == self.model.classes:
            raise ValueError(
                f"the model tells {self.model.classes} classes apart, but {spec!r} has "
                f"{len(classes)}: evaluate it on data of the same classes, or its features alone "
                "(evaluate --without='head/.*')"
            )
        if self.classes != classes:
            raise ValueError(
                f"the model and {spec!r} have different classes: "
                f"{features.different(self.classes, classes)}"
            )
        self.loss = "binary" if sources.is_multilabel(self.source) else "softmax"
        if context.loss not in (None, self.loss):
            kind = "several labels" if self.loss == "binary" else "one label"
            raise ValueError(
                f"the model was trained with loss = {context.loss!r}, but {spec!r} has {kind} for "
                "an example"
            )
        replicated = partitioning.replicated(self.mesh)
        self._forward = jax.jit(self._forward_batch, out_shardings=replicated)

    def evaluate(self, variables: dict) -> Result:
        metrics = self.report(variables).metrics
        return Result({name: metrics[name] for name in FOLLOWED if name in metrics})

    def report(self, variables: dict, untrained: dict | None = None) -> Result:
        return summary(*self.predict(variables), self.classes)

    def predict(self, variables: dict) -> Predictions:
        """Return the predictions of each labelled example."""
        rows = [jax.tree.map(np.asarray, self._forward(variables, x)) for x in self.batches()]
        labels, probabilities, losses, valid = map(np.concatenate, zip(*rows, strict=True))
        labelled = valid & (labels >= 0) if labels.ndim == 1 else valid
        if not labelled.any():
            raise ValueError("no example of the test data has a label")
        labels = labels[labelled]
        if labels.ndim == 2 and not labels.any():
            raise ValueError("no class is true of any example of the test data")
        return Predictions(labels, probabilities[labelled], losses[labelled])

    def _forward_batch(self, variables, batch) -> tuple[jax.Array, ...]:
        labels = batch["label"]
        logits, probabilities = scores(self.model, self.transform, self.loss, variables, batch)
        if self.loss == "softmax":
            target = jax.nn.one_hot(labels, self.model.classes)
            losses = optax.softmax_cross_entropy(logits, target)
        else:
            target = labels.astype(jnp.float32)
            losses = optax.sigmoid_binary_cross_entropy(logits, target).mean(-1)
        return labels, probabilities, losses, batch["valid"]


def scores(
    model: Any,
    transform: EvalTransform,
    loss: str,
    variables: dict,
    batch: Mapping[str, jax.Array],
) -> tuple[Float[jax.Array, "b classes"], Float[jax.Array, "b classes"]]:
    """Return the mean probabilities over the views of each example, as logits and as they are.

    With the loss "softmax" the probabilities of an input have the sum 1; with "binary" each class
    has its own.
    """
    logits = outputs_of_views(model, transform, variables, batch)

    def mean(log):  # averages probabilities over the views; logarithms do not underflow
        return jax.nn.logsumexp(log, axis=1) - jnp.log(log.shape[1])

    if loss == "softmax":
        logits = mean(jax.nn.log_softmax(logits))
        return logits, jnp.exp(logits)
    logits = mean(jax.nn.log_sigmoid(logits)) - mean(jax.nn.log_sigmoid(-logits))
    return logits, jax.nn.sigmoid(logits)


def outputs_of_views(
    model: Any,
    transform: EvalTransform,
    variables: dict,
    batch: Mapping[str, jax.Array],
) -> Float[jax.Array, "b views k"]:
    """Return the outputs of a model with a head for each view of each example of a batch.

    The batch has the inputs, `[b *size c]` or `[b views *size c]`, as "image".
    """
    count = len(batch["image"])
    flat = {name: batch[name] for name in ("image", "spacing", "times") if name in batch}
    if batch["image"].ndim > len(transform.size) + 2:
        flat = {name: x.reshape(-1, *x.shape[2:]) for name, x in flat.items()}
    values, present, _ = transform.split(flat["image"])
    places = dict(present=present, coordinates=transform.coordinates(flat, model))
    known = {name: x for name, x in places.items() if x is not None}
    outputs: Any = model.apply(variables, values, **known)
    return outputs.reshape(count, -1, model.classes)


def summary(
    labels: Int[np.ndarray, "n *classes"],
    probabilities: Float[np.ndarray, "n classes"],
    losses: Float[np.ndarray, "n"],
    classes: Sequence[str],
) -> Result:
    """Return the accuracy, and precision, recall, F1 and support of each class.

    The balanced accuracy is the mean recall of the classes that have examples. With labels
    `[n classes]`, of which several may be true, average precisions replace these. The scores are
    scikit-learn's, with 0 where they are undefined, and means leave out empty classes.
    """
    from sklearn import metrics as sklearn

    metrics = {"test_loss": float(losses.mean())}
    if labels.ndim == 2:
        names, support = ("average_precision",), labels.sum(0)
        columns = [average_precisions(labels, probabilities)]
    else:
        names, predicted = ("precision", "recall", "f1"), probabilities.argmax(-1)
        options: Any = dict(labels=range(len(classes)), zero_division=0)
        scores = sklearn.precision_recall_fscore_support(labels, predicted, **options)
        *columns, support = map(np.asarray, scores)
    columns = dict(zip(names, map(np.asarray, columns), strict=True))
    means = {name: float(column[support > 0].mean()) for name, column in columns.items()}
    if labels.ndim == 2:
        metrics["test_map"] = means["average_precision"]
        head = f"mAP {metrics['test_map']:.4f} (of {len(labels):,} examples)"
    else:
        correct = int((labels == predicted).sum())
        metrics |= {"test_accuracy": correct / len(labels)} | means
        metrics["test_balanced_accuracy"] = means["recall"]
        head = f"accuracy {metrics['test_accuracy']:.4f} ({correct:,} of {len(labels):,})"
        head += f", balanced accuracy {means['recall']:.4f}"
    columns["support"] = support.astype(int)
    per_class = [{name: x[i].item() for name, x in columns.items()} for i in range(len(classes))]
    rows = [["class", *(name.replace("_", " ") for name in columns)]]
    averages = means | {"support": len(labels)}
    for name, row in zip([*classes, "mean"], [*per_class, averages], strict=True):
        rows.append([name, *(f"{row[score]:.3f}" for score in names), f"{row['support']:,}"])
    details = {"classes": dict(zip(classes, per_class, strict=True))}
    return Result(metrics, head, rows, details=details)


def average_precisions(
    labels: Int[np.ndarray, "n classes"], scores: Float[np.ndarray, "n classes"]
) -> Float[np.ndarray, "classes"]:
    """Return the average precision of each class, as scikit-learn, or 0 without examples."""
    from sklearn.metrics import average_precision_score

    pairs = zip(labels.T, scores.T, strict=True)
    return np.array([average_precision_score(y, p) if y.any() else 0.0 for y, p in pairs])


def mean_average_precision(
    labels: Int[np.ndarray, "n classes"], scores: Float[np.ndarray, "n classes"]
) -> float:
    """Return the mean of the average precisions of the classes that have examples."""
    return float(average_precisions(labels, scores)[labels.any(0)].mean())
