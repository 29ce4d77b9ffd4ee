"""Accuracy of a classifier of frozen features: what kNN and linear probes have in common."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from mae_jax.data import sources
from mae_jax.evaluators import features
from mae_jax.evaluators.evaluator import Context, Evaluator, Result


class Score(NamedTuple):
    """How well a classifier of features does."""

    metrics: dict[str, float]
    note: str = ""  # that belongs to them


Scorer = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], Score]
# features [n d] and labels [n] to learn from, features [m d] and labels [m] to be tested on


class FeatureAccuracy(Evaluator):
    """A score of frozen features, beside that of the raw pixels and of an untrained encoder.

    Examples without a label are left out.

    Args:
      section: `train` and `test`, each a `source` and a `split`; `examples` of each at most (0
        means all) and `batch_size`. Optional: `block`, `pooling` and `norm` of the feature, and
        whether to `standardize` it on the training examples.
      score: the classifier.
      titles: of the columns of its metrics.

    Raises:
      ValueError: the two sources have different classes, or none.
    """

    def __init__(
        self, section: Mapping[str, Any], context: Context, score: Scorer, titles: list[str]
    ):
        self.section, self.score, self.titles = section, score, titles
        self.tables: Any = context.with_tables().tables
        self.standardize = section.get("standardize", True)
        depth, block = context.model.depth, section.get("block", -1)
        if not -depth <= block < depth:
            raise ValueError(f"block = {block} is none of {depth} blocks, which count from 0")
        self.feature = features.Feature(
            block % depth, section.get("pooling", "mean"), section.get("norm", True)
        )

    def evaluate(self, variables: dict) -> Result:
        score = self.score(*self.data(variables))
        return Result(score.metrics, notes=(score.note,) * bool(score.note))

    def report(self, variables: dict, untrained: dict | None = None) -> Result:
        networks: dict[str, dict | None] = {"trained encoder": variables}
        if untrained is not None:
            networks = {"raw pixels": None, "untrained encoder": untrained} | networks
        metrics, rows, notes = {}, [["accuracy of frozen features", *self.titles]], []
        for name, network in networks.items():
            data = self.data(network)
            score = self.score(*data)
            metrics |= {f"{key}_{name.split()[0]}": x for key, x in score.metrics.items()}
            standard = "standardised" if self.standardize else "as it is"
            label = name if untrained is not None else f"{self.feature}, {standard}"
            rows.append([f"  {label}", *(f"{x:.4f}" for x in score.metrics.values())])
            notes += [f"({label}: {score.note})"] * bool(score.note)
        counts = f"({len(data[1]):,} train and {len(data[3]):,} test examples)"
        metrics = {**score.metrics, **metrics}  # the last network is the trained one
        details = {"feature": self.feature._asdict() | {"standardize": self.standardize}}
        return Result(metrics, rows=rows, notes=(counts, *notes), details=details)

    def data(self, variables: dict | None) -> tuple[np.ndarray, ...]:
        """Return what `Scorer` takes, of a network; without variables, of the pixels."""
        parts = []
        for name in ("train", "test"):
            columns, labels = self.tables.table(
                variables,
                self.section[name],
                self.feature,
                self.section["examples"],
                self.section["batch_size"],
            ).labelled()
            parts += [columns[self.feature], labels]
        x, labels, test_x, test_labels = parts
        if not (np.isfinite(x).all() and np.isfinite(test_x).all()):
            raise ValueError("the features are not finite: the network holds NaN or infinity")
        if self.standardize:
            x, test_x = features.standardize(x, test_x)
        return x, labels, test_x, test_labels


def labelled(section: Mapping[str, Any], context: Context) -> bool:
    """Whether the sources of a section, `train` and maybe `test`, have classes to tell apart.

    Raises:
      ValueError: only one of them has, or their classes are different.
    """
    parts = {name: section[name] for name in ("train", "test") if name in section}
    opened = [context.open(part) for part in parts.values() if part["source"]]
    if not opened or sources.is_multilabel(opened[0]):
        return False  # an example has several labels, and these classifiers give one
    specs = " and ".join(f"{name}.source = {part['source']!r}" for name, part in parts.items())
    if len(opened) < len(parts) or min(len(source.classes) for source in opened) < 2:
        if all(part["source"] == "same" for part in parts.values()):
            return False  # a folder of pictures without labels
        raise ValueError(
            f'{specs} must have two classes or more: name such sources, or "" for each to go '
            "without this evaluator"
        )
    first, last = opened[0].classes, opened[-1].classes
    if first != last:
        raise ValueError(f"{specs} have different classes: {features.different(first, last)}")
    return True
