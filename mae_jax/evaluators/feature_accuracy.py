"""How well frozen features predict labels, as kNN and linear probes report it."""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import numpy as np

from mae_jax.data import sources, target_scale
from mae_jax.evaluators import features
from mae_jax.evaluators.evaluator import Context, Evaluator, Result, Unsuitable


class Scorer(Protocol):
    """A predictor of one kind of labels, see `sources.Source`, made of a section and a context."""

    what: str  # it measures, such as "accuracy"
    titles: list[str]  # of its metrics

    def __call__(
        self, x: np.ndarray, labels: np.ndarray, test_x: np.ndarray, test_labels: np.ndarray
    ) -> tuple[dict[str, float], str]:
        """Return metrics of features [n d] and labels [n *k] of both splits, and a note or ""."""
        ...


class FeatureAccuracy(Evaluator):
    """The accuracy of frozen features, beside those of the raw pixels and an untrained encoder.

    The options are those of `config.sections.FeatureEvaluator`. Examples without a label are left
    out. A subclass says which scorer each kind of labels has.
    """

    scorers: ClassVar[Mapping[str, type]]  # by the kind of labels

    def __init__(self, section: Mapping[str, Any], context: Context):
        super().__init__(section, context)
        self.scorer: Scorer = self.scorers[check_labels(section, context)](section, context)
        depth, block = self.model.depth, section["block"]
        if not -depth <= block < depth:
            raise ValueError(f"block = {block} is none of {depth} blocks, which count from 0")
        self.feature = features.Feature(block % depth, section["pooling"], section["norm"])

    def evaluate(self, variables: dict) -> Result:
        return Result(self.scorer(*self.data(variables))[0])

    def report(self, variables: dict, untrained: dict | None = None) -> Result:
        standardize = self.section["standardize"]
        networks: dict[str, dict | None] = {"trained encoder": variables}
        if untrained is not None:
            raw = f"raw {'values' if len(self.context.transform.size) == 1 else 'pixels'}"
            networks = {raw: None, "untrained encoder": untrained} | networks
        metrics, rows = {}, [[f"{self.scorer.what} of frozen features", *self.scorer.titles]]
        notes: dict[str, list[str]] = {}  # the rows that each note is about
        for label, network in networks.items():  # the trained encoder comes last
            data = self.data(network)
            scores, note = self.scorer(*data)
            metrics |= {f"{name}_{label.split()[0]}": x for name, x in scores.items()}
            if untrained is None:  # without baselines the row names the feature
                label = f"{self.feature}, {'standardised' if standardize else 'as it is'}"
            rows.append([f"  {label}", *(f"{x:.4f}" for x in scores.values())])
            if note:
                notes.setdefault(note, []).append(label)
        counts = f"({len(data[1]):,} train and {len(data[3]):,} test examples)"
        details = {"feature": self.feature._asdict() | {"standardize": standardize}}
        lines = [f"({', '.join(labels)}: {note})" for note, labels in notes.items()]
        return Result(scores | metrics, rows=rows, notes=(counts, *lines), details=details)

    def data(self, variables: dict | None) -> tuple[np.ndarray, ...]:
        """Return the arguments of a scorer for a network; without variables, for raw pixels."""
        parts = []
        for name in ("train", "test"):
            part = self.section[name]
            table = self.context.table(variables, part, self.feature, self.section)
            columns, labels = table.labelled()
            parts += [columns[self.feature], labels]
        x, labels, test_x, test_labels = parts
        if not (np.isfinite(x).all() and np.isfinite(test_x).all()):
            raise ValueError("the features are not finite: the network holds NaN or infinity")
        if self.section["standardize"]:
            x, test_x = features.standardize(x, test_x)
        return x, labels, test_x, test_labels


def check_labels(section: Mapping[str, Any], context: Context) -> sources.LabelKind:
    """Return the kind of labels of a section's sources, `train` and perhaps `test`.

    Raises:
      Unsuitable: the sources have no labels.
      ValueError: only one of the sources has labels, or their classes or targets are different.
    """
    parts = {name: section[name] for name in ("train", "test") if name in section}
    both = [context.open(part) for part in parts.values()]
    specs = " and ".join(f"{name}.source = {part['source']!r}" for name, part in parts.items())
    kinds: set[Any] = {sources.label_kind(source) for source in both}
    if kinds == {"number"}:
        first, last = (target_scale.names_of(source, 0) for source in (both[0], both[-1]))
        if first != last:
            raise ValueError(f"{specs} have different targets: {features.different(first, last)}")
        return "number"
    if "number" in kinds or min(len(source.classes) for source in both) < 2:
        if all(part["source"] == "same" for part in parts.values()) and "number" not in kinds:
            raise Unsuitable("its examples have no labels")
        raise ValueError(
            f'{specs} must have two classes or more, or numbers: name such sources, or "" for '
            "each to go without this evaluator"
        )
    first, last = both[0].classes, both[-1].classes
    if first != last:
        raise ValueError(f"{specs} have different classes: {features.different(first, last)}")
    if len(kinds - {None}) > 1:
        raise ValueError(f"{specs} must both have one class for an example, or several")
    return kinds.pop() or "class"
