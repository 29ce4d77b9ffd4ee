"""The features of all examples of a source, in files: pooled ones as rows, dense ones as maps."""

import argparse
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from mae_jax.config import schema, sections
from mae_jax.data import sources
from mae_jax.evaluators import checkpoint, example_columns, feature_files, feature_maps
from mae_jax.evaluators.dense import DenseExtractor
from mae_jax.evaluators.evaluator import Context
from mae_jax.evaluators.features import Extractor, Feature
from mae_jax.weights import load
from mae_jax.weights.checkpoint_info import CheckpointInfo


def write(options: argparse.Namespace) -> str:
    """Write the features of a source, with the options of the command `embed`.

    Returns lines for the screen; raises ValueError, OSError or ImportError with one sentence on
    what does not fit.
    """
    if not options.dense:
        feature_files.row_writer(options.to)
    _check(options)
    info, context = checkpoint.find(options)
    split, source = checkpoint.open_split(context.open, options)
    index = sources.fixed_choice(len(source), options.examples or None)
    feature, size = _feature(info, context, options), context.transform.size
    about: dict[str, Any] = dict(checkpoint=options.checkpoint, data=options.data, split=split)
    about |= dict(feature=str(feature), size=list(size))
    model, transform, mesh = context.model, context.transform, context.mesh
    variables = lambda: {"params": load.parameters(info, size=size, mesh=mesh)}
    if options.dense:
        sizes = options.overlap, options.batch_size
        extractor = DenseExtractor(model, feature, transform, mesh, *sizes)
        feature_files.map_writer(options.to, len(size))
        files = feature_maps.places(options.to, source, index, options.overwrite)
        maps = feature_maps.Maps(extractor, variables(), source)
        written = maps.write(files, options.components, about | {"overlap": options.overlap})
    else:
        feature_files.make_place(options.to, options.overwrite)
        extractor = Extractor(model, [feature], transform, mesh)
        table = extractor(variables(), source, options.examples, options.batch_size)
        rows = _rows(table.features[feature], table.labels, table.index, index, source, context)
        if jax.process_index() == 0:
            feature_files.row_writer(options.to)(options.to, rows, about)
        missing = sum(map(bool, rows.notes))
        written = f"{len(index):,} examples, {rows.features.shape[1]:,} numbers each" + (
            f"; {missing:,} without features, whose notes say why" if missing else ""
        )
    return f"{options.to}: {written} ({options.data}, split {split!r}; {feature})"


def _check(options: argparse.Namespace) -> None:
    """Raise ValueError for options that do not belong together."""
    dense = dict(overlap=options.overlap != 0.5, components=options.components)
    if not options.dense and (given := [name for name, is_given in dense.items() if is_given]):
        raise ValueError(f"--{given[0]} is for dense features: give --dense, or leave it out")
    if options.dense and options.pooling:
        raise ValueError("dense features are not pooled: leave --pooling out, or --dense")
    if options.components is not None and options.components < 1:
        raise ValueError(f"--components={options.components} must be at least 1")
    if options.dense and jax.process_count() > 1:
        raise ValueError(
            "dense features are written by one process: start one, or one for each part of the data"
        )


def _feature(info: CheckpointInfo, context: Context, options: argparse.Namespace) -> Feature:
    """Return the feature that options choose, else the one of the run's nearest neighbours."""
    names = ("block", "pooling", "norm")
    given = {name: getattr(options, name) for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    part = dict(source=options.data, split="")
    entries = checkpoint.entries_of(["knn"], given | dict(train=part, test=part), info.config or {})
    section = schema.section(sections.Knn, next(iter(entries.values())))
    depth = context.model.depth
    if not -depth <= section.block < depth:
        raise ValueError(f"--block={section.block} is none of {depth} blocks, from 0 on")
    pooling = "patches" if options.dense else section.pooling
    norm = section.norm and _has_norm(context.model, pooling)
    return Feature(section.block % depth, pooling, norm)


def _has_norm(model: Any, pooling: str) -> bool:
    """Return whether a feature of a model can pass a norm: of its tokens, or once it is pooled."""
    after_pooling = getattr(model, "pooling", "") == "mean"  # see `heads.classification`
    return model.encoder.final_norm or after_pooling and pooling != "patches"


def _rows(
    found: np.ndarray,
    labels: np.ndarray,
    read: Int[np.ndarray, "m"],
    index: Int[np.ndarray, "n"],
    source: sources.Source,
    context: Context,
) -> feature_files.Rows:
    """Return a row for each of the examples `index`, of which the examples `read` have features."""
    rows = np.searchsorted(index, read)
    notes = ["its features are not finite"] * len(index)
    features = np.full((len(index), found.shape[1]), np.nan, np.float32)
    features[rows] = np.where(np.isfinite(found).all(-1, keepdims=True), found, np.nan)
    unknown = np.nan if labels.dtype.kind == "f" else -1
    of_all = np.full((len(index), *labels.shape[1:]), unknown, labels.dtype)
    of_all[rows] = labels
    was_read = np.isin(index, read)
    for row, x in enumerate(features):
        if np.isfinite(x).all():
            notes[row] = ""
        elif not was_read[row]:
            notes[row] = example_columns.reason(source, int(index[row]), context.transform)
    listed = [label if known else -1 for label, known in zip(of_all, was_read, strict=True)]
    targets = getattr(source, "targets", ()) or range(of_all.shape[-1])
    columns = example_columns.labels(source, listed, example_columns.distinct([*map(str, targets)]))
    return feature_files.Rows(
        example_columns.names(source, index), features, of_all, columns, notes
    )
