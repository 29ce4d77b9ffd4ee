"""The predictions of a model for each example of a source, with or without labels."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from mae_jax import evaluators
from mae_jax.config import schema, sections
from mae_jax.data import sources, target_scale
from mae_jax.distributed import partitioning
from mae_jax.evaluators import checkpoint, classification, example_columns, regression
from mae_jax.evaluators.evaluator import Context, HeldOutEvaluator
from mae_jax.output import columns, files
from mae_jax.weights import load

_log = logging.getLogger(__name__)


class Predictions(NamedTuple):
    """The predictions for examples of a source, in its order."""

    index: Int[np.ndarray, "n"]  # in the source
    labels: list[Any]  # as in `sources.Source`; -1 also where an example cannot be read
    outputs: Float[np.ndarray, "n k"]  # NaN where an example has no prediction
    notes: list[str]  # why an example has no prediction, or ""


class Classes(NamedTuple):
    """What a classifier predicts: the probability of each class."""

    names: Sequence[Any]
    loss: str

    type = "classification"  # of the evaluator of these predictions
    noun = "probabilities"

    def __str__(self) -> str:
        return f"in {len(self.names):,} classes"

    def outputs(self, *batch: Any) -> Float[jax.Array, "b classes"]:
        """Return the outputs of a batch, see `classification.scores`."""
        model, transform, variables, examples = batch
        return classification.scores(model, transform, self.loss, variables, examples)[1]

    def columns(self, found: Predictions, source: sources.Source) -> dict[str, Any]:
        """Return `class`; `label` if any example has one; and `p_NAME` for each class.

        Several classes of an example are joined by ";".
        """
        softmax, named = self.loss == "softmax", example_columns.class_names
        chosen = found.outputs.argmax(-1) if softmax else found.outputs > 0.5
        classes = zip(chosen, found.notes, strict=True)
        values = {"class": [None if note else named(row, self.names) for row, note in classes]}
        count = max((np.size(label) for label in found.labels), default=0)
        targets = example_columns.distinct(target_scale.names_of(source, count))
        values |= example_columns.labels(source, found.labels, targets)
        return values | {f"p_{name}": found.outputs[:, k] for k, name in enumerate(self.names)}


class Numbers(NamedTuple):
    """What a regressor predicts: numbers in their own units."""

    names: Sequence[str]

    type = "regression"
    noun = "numbers"

    def __str__(self) -> str:
        return f"with {len(self.names):,} predicted number(s) each"

    def outputs(self, *batch: Any) -> Float[jax.Array, "b t"]:
        """Return the outputs of a batch, see `regression.predicted`."""
        return regression.predicted(*batch)

    def columns(self, found: Predictions, source: sources.Source) -> dict[str, Any]:
        """Return `predicted_NAME` for each target, and `target_NAME` if any example has it."""
        names = example_columns.distinct(self.names)
        values = {f"predicted_{name}": found.outputs[:, k] for k, name in enumerate(names)}
        if sources.label_kind(source) != "number":
            return values
        return values | example_columns.labels(source, found.labels, names)


class Predictor(HeldOutEvaluator):
    """A model that predicts each example of a source once.

    The predictions for an example are means over the clips and crops of the section, as in
    `Classification` and `Regression`, whose metrics are therefore those of the predictions.
    """

    def __init__(
        self, section: sections.ViewsEvaluator, context: Context, predicted: Classes | Numbers
    ):
        super().__init__(section, context)
        self.predicted = predicted
        self.transform = context.transform._replace(clips=section.clips, crops=section.crops)
        replicated = partitioning.replicated(self.mesh)
        self._forward = jax.jit(self._forward_batch, out_shardings=replicated)

    def predict(self, variables: dict) -> Predictions:
        """Return the predictions for all examples, or for a fixed choice of `section.examples`.

        Raises:
          ValueError: no example has a prediction.
        """
        index = sources.fixed_choice(len(self.source), self.section["examples"] or None)
        labels, notes = [-1] * len(index), [""] * len(index)
        outputs = np.full((len(index), self.model.classes), np.nan, np.float32)
        was_read = np.zeros(len(index), bool)
        for batch in self.batches():
            found = jax.tree.map(np.asarray, self._forward(variables, batch))
            valid = found["valid"]
            rows = np.searchsorted(index, found["index"][valid])
            was_read[rows], outputs[rows] = True, found["outputs"][valid]
            for row, label in zip(rows, found["label"][valid], strict=True):
                labels[row] = label
        finite = np.isfinite(outputs).all(-1)
        for row in np.flatnonzero(~finite):
            outputs[row] = np.nan
            notes[row] = f"its {self.predicted.noun} are not finite"
            if not was_read[row]:
                notes[row] = example_columns.reason(self.source, int(index[row]), self.transform)
        if not finite.any():
            raise ValueError(f"no example has a prediction; of the first: {notes[0]}")
        return Predictions(index, labels, outputs, notes)

    def _forward_batch(self, variables, batch) -> dict[str, jax.Array]:
        outputs = self.predicted.outputs(self.model, self.transform, variables, batch)
        kept = {name: batch[name] for name in ("label", "valid", "index")}
        return kept | {"outputs": outputs}


def predict(options: argparse.Namespace) -> str:
    """Write the predictions of a checkpoint, with the options of the command `predict`.

    Returns lines for the screen; raises ValueError, OSError or ImportError with one sentence on
    what does not fit.
    """
    write = columns.writer(options.to)
    if Path(options.to).exists() and not options.overwrite:
        raise ValueError(f"{options.to} exists already: give another --to, or --overwrite")
    info, context = checkpoint.find(options)
    if not getattr(context.model, "classes", 0):
        raise ValueError(
            f"{options.checkpoint} has no classes to predict, and no numbers: fine-tune it first "
            "(python -m mae_jax.train with --config.init.checkpoint), or evaluate its features "
            "(python -m mae_jax.evaluate)"
        )
    split, source = checkpoint.open_split(context.open, options)
    predicted = _predicted(context, source, options)
    given = dict(source=options.data, split=split)
    given |= dict(examples=options.examples, batch_size=options.batch_size)
    entries = checkpoint.entries_of([predicted.type], given, info.config or {})
    entry_name, entry = next(iter(entries.items()))
    if len(entries) > 1:
        _log.info("the clips and crops are those of evaluators.%s, the run's first", entry_name)
    section = schema.section(evaluators.SECTIONS[predicted.type], entry)
    size, mesh = context.transform.size, context.mesh
    variables = {"params": load.parameters(info, size=size, mesh=mesh)}
    found = Predictor(section, context, predicted).predict(variables)
    if jax.process_index() == 0:
        with files.whole(options.to) as path:
            write(path, columns_of(found, source, predicted))
    missing = sum(map(bool, found.notes))
    return (
        f"{options.to}: {len(found.index):,} examples of {options.data}, split {split!r}, "
        f"{predicted}"
        + (f"; {missing:,} without a prediction, whose notes say why" if missing else "")
    )


def _predicted(
    context: Context, source: sources.Source, options: argparse.Namespace
) -> Classes | Numbers:
    """Return what the model of a context predicts of a source."""
    if not context.targets:
        loss = _loss_of(context, source, options)
        return Classes(_names_of(context, source, options.data), loss)
    names = context.targets.names
    if options.loss:
        raise ValueError(
            f"--loss={options.loss} is for classes, but {options.checkpoint} predicts numbers: "
            "leave --loss out"
        )
    if sources.label_kind(source) == "number":
        regression.check_targets(source, names, options.data)
    return Numbers(names)


def _loss_of(context: Context, source: sources.Source, options: argparse.Namespace) -> str:
    """Return the loss of the training: that of the run, of the options or of the labels."""
    if context.loss and options.loss not in (None, context.loss):
        raise ValueError(
            f"--loss={options.loss}, but {options.checkpoint} was trained with loss = "
            f"{context.loss!r}: leave --loss out"
        )
    if known := context.loss or options.loss:
        return known
    loss, other = "softmax", "binary"
    if sources.is_multilabel(source):
        loss, other = other, loss
    text = "%s does not name its loss, which is taken to be %s: else give --loss=%s"
    _log.info(text, options.checkpoint, loss, other)
    return loss


def _names_of(context: Context, source: sources.Source, data: str) -> list[Any]:
    """Return the names of the model's classes, or their numbers if nothing names them."""
    count, of_data = context.model.classes, example_columns.distinct(source.classes)
    names = example_columns.distinct(context.classes or ())
    if len(names) == count:
        if of_data and set(of_data) != set(names):
            _log.info("%s has other classes than the model, which the column label names", data)
        return names
    if len(of_data) == count:
        _log.info("the checkpoint does not name its classes: the names are those of %s", data)
        return of_data
    _log.info("the checkpoint does not name its classes: they are numbers, from 0 on")
    return list(range(count))


def columns_of(
    found: Predictions, source: sources.Source, predicted: Classes | Numbers
) -> dict[str, Any]:
    """Return the columns of a file of predictions, by their titles.

    They are `name`, of an example or else its index; those of what is predicted; and `note`.
    """
    values = {"name": example_columns.names(source, found.index)}
    values |= predicted.columns(found, source)
    return values | {"note": [note or None for note in found.notes]}
