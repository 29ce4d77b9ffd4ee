"""The errors of a regressor on held-out examples."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from mae_jax.data import sources, target_scale
from mae_jax.distributed import partitioning
from mae_jax.evaluators import classification
from mae_jax.evaluators.evaluator import Context, HeldOutEvaluator, Result, Unsuitable

FOLLOWED = ("test_r2", "test_mae", "test_rmse")  # the metrics that `evaluate` returns


class Scores(NamedTuple):
    """How well some numbers are predicted; NaN where a score is undefined."""

    r2: float  # 1 - squared errors / squared deviations from the mean of these numbers
    mae: float  # mean absolute error
    rmse: float  # root of the mean squared error


class Regression(HeldOutEvaluator):
    """R2, mean absolute error and root mean squared error of each target, in its own unit.

    Beside them stand those of a baseline that predicts the mean of the training examples. Examples
    without a target are left out of its scores. The prediction for an example is the mean over its
    clips and crops.

    Raises:
      ValueError: the data have other targets than the model.
    """

    def __init__(self, section: Mapping[str, Any], context: Context):
        super().__init__(section, context)
        if not context.targets:
            raise Unsuitable("the model predicts no numbers")
        self.scale = context.targets
        views = {name: section[name] for name in ("clips", "crops")}
        self.transform = context.transform._replace(**views)
        check_targets(self.source, self.scale.names, section["source"])
        replicated = partitioning.replicated(self.mesh)
        self._forward = jax.jit(self._forward_batch, out_shardings=replicated)

    def evaluate(self, variables: dict) -> Result:
        metrics = self.report(variables).metrics
        return Result({name: metrics[name] for name in FOLLOWED if name in metrics})

    def report(self, variables: dict, untrained: dict | None = None) -> Result:
        labels, predictions = self.predict(variables)
        return summary(labels, predictions, self.scale.names, self.scale.mean)

    def predict(self, variables: dict) -> tuple[np.ndarray, np.ndarray]:
        """Return the targets [n t], NaN where they are unknown, and the predictions [n t]."""
        rows = [jax.tree.map(np.asarray, self._forward(variables, x)) for x in self.batches()]
        labels, predictions, valid = map(np.concatenate, zip(*rows, strict=True))
        if not np.isfinite(predictions[valid]).all():
            raise ValueError("the predictions are not finite: the network holds NaN or infinity")
        if np.isnan(labels[valid]).all():
            raise ValueError("no example of the test data has a target")
        return labels[valid], predictions[valid]

    def _forward_batch(self, variables, batch) -> tuple[jax.Array, ...]:
        outputs = predicted(self.model, self.transform, variables, batch)
        return batch["label"], outputs, batch["valid"]


def predicted(model, transform, variables, batch) -> Float[jax.Array, "b t"]:
    """Return the predicted numbers of each example, the means over its views."""
    return classification.outputs_of_views(model, transform, variables, batch).mean(1)


def check_targets(source: sources.Source, names: Sequence[str], spec: str) -> None:
    """Raise ValueError if the labels of a source are not the targets with these names."""
    if sources.label_kind(source) != "number":
        raise ValueError(f"the labels of {spec!r} are no numbers, which the model predicts")
    of_data = target_scale.names_of(source, len(names))
    if of_data != tuple(names):
        raise ValueError(
            f"the model predicts {', '.join(names)}, but {spec!r} has the targets "
            f"{', '.join(of_data)}: evaluate it on data of the same targets, or its features alone "
            "(evaluate --without='head/.*')"
        )


def scores(labels: Float[np.ndarray, "n"], predictions: Float[np.ndarray, "n"]) -> Scores:
    """Return the scores of predictions, over the examples whose label is known."""
    from sklearn import metrics as sklearn

    known = ~np.isnan(labels)
    if not known.any():
        return Scores(np.nan, np.nan, np.nan)
    pair = labels[known].astype(np.float64), predictions[known].astype(np.float64)
    r2 = sklearn.r2_score(*pair) if np.ptp(pair[0]) else np.nan
    mae, mse = sklearn.mean_absolute_error(*pair), sklearn.mean_squared_error(*pair)
    return Scores(float(r2), float(mae), float(np.sqrt(mse)))


def mean_scores(labels: Float[np.ndarray, "n t"], predictions: Float[np.ndarray, "n t"]) -> Scores:
    """Return the means over the targets of the scores that are defined."""
    rows = [scores(y, p) for y, p in zip(labels.T, predictions.T, strict=True)]
    columns = [[x for x in column if np.isfinite(x)] for column in zip(*rows, strict=True)]
    return Scores(*(float(np.mean(column)) if column else np.nan for column in columns))


def summary(
    labels: Float[np.ndarray, "n t"],
    predictions: Float[np.ndarray, "n t"],
    names: Sequence[str],
    training_mean: Sequence[float],
) -> Result:
    """Return the scores of each target and their mean, beside those of `training_mean` if known.

    A mean over targets of different units has no unit. Scores that are undefined, such as R2 of a
    target that is the same in all examples, are left out of means and metrics.
    """
    titles = [name.upper() for name in Scores._fields]
    shown = {"": predictions}
    if training_mean:
        shown["baseline_"] = np.broadcast_to(np.array(training_mean), labels.shape)
        titles += [f"{title} of mean" for title in titles]
    known, details = (~np.isnan(labels)).sum(0), {}
    rows = [["target", *titles, "known"]]
    for k, name in enumerate(names):
        found = {prefix: scores(labels[:, k], x[:, k]) for prefix, x in shown.items()}
        rows.append([name, *_cells(found), f"{known[k]:,}"])
        details[name] = _defined(found) | {"known": int(known[k])}
    means = {prefix: mean_scores(labels, x) for prefix, x in shown.items()}
    if len(names) > 1:
        rows.append(["mean", *_cells(means), f"{len(labels):,}"])
    metrics = _defined({"test_": means.pop(""), **means})
    notes = ("(of mean: predicting the mean of the training examples)",) if training_mean else ()
    text = f"R2 {metrics['test_r2']:.4f}" if "test_r2" in metrics else "R2 is undefined"
    return Result(
        metrics, f"{text} (of {len(labels):,} examples)", rows, notes, details={"targets": details}
    )


def _cells(found: Mapping[str, Scores]) -> list[str]:
    return [f"{x:.4g}" if np.isfinite(x) else "" for row in found.values() for x in row]


def _defined(found: Mapping[str, Scores]) -> dict[str, float]:
    """Return the scores that are not NaN, with their prefixes before their names."""
    named = ((f"{p}{name}", x) for p, row in found.items() for name, x in row._asdict().items())
    return {name: x for name, x in named if np.isfinite(x)}
