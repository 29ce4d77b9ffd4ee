"""What a model makes of inputs: a feature of each, with its name, its labels and a thumbnail."""

import argparse
import dataclasses
import functools
import logging
import os
from typing import Any

import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from mae_jax.applications.retrieval import thumbnails
from mae_jax.applications.retrieval.rows import Labels, Rows, names_of
from mae_jax.data import sources
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.sources import source as reading
from mae_jax.evaluators import checkpoint, held_out
from mae_jax.evaluators.features import Extractor, Feature
from mae_jax.evaluators.loaded_model import LoadedModel

_log = logging.getLogger(__name__)
Inputs = sources.Source | list[Any] | tuple[Any, ...]  # a list of what the modality reads


@dataclasses.dataclass(frozen=True)
class Reader:
    """A model that reads examples.

    Args:
      side: of the thumbnails; 0 makes none.
      batch_size: the number of examples that are encoded at once.
    """

    loaded: LoadedModel
    feature: Feature
    side: int = 64
    batch_size: int = 256

    def __call__(self, inputs: Inputs) -> tuple[Rows, Int[np.ndarray, "n"]]:
        """Return the examples that can be read, and their indices; their vectors are the feature.

        A warning counts the others.

        Raises:
          Unreadable: no example can be read.
          ValueError: no example has a finite feature.
        """
        source = as_source(inputs)
        batches = -(-len(source) // self.batch_size)
        progress = functools.partial(
            tqdm, total=batches, desc="examples are encoded", unit="batch", disable=None
        )
        extract, variables = self._extractor, self.loaded.variables
        table = extract(variables, source, 0, self.batch_size, progress)
        names = names_of(source, table.index)
        labels = Labels(table.labels, _label_names(source))
        pictures = table.previews
        if pictures is not None:
            pictures = thumbnails.drawn(pictures, self.loaded.transform)
        rows = Rows(names, table.features[self.feature], labels, pictures)
        finite = np.flatnonzero(np.isfinite(rows.vectors).all(1))
        if len(finite) < len(rows.names):
            first = names[np.setdiff1d(np.arange(len(names)), finite)[0]]
            text = "the features of %d of %d examples are not finite: %r%s"
            if not len(finite):
                raise ValueError(text % (len(names), len(names), first, ", ..."))
            _log.warning(text, len(names) - len(finite), len(names), first, ", which are left out")
        return rows.take(finite), table.index[finite]

    def note(self, source: sources.Source, i: int) -> str:
        """Return why an example has no vector."""
        try:
            reading.read(source, i, self.loaded.transform.on_host)
        except Unreadable as error:
            return str(error)
        return f"the features of {source.name(i)!r} are not finite"

    @functools.cached_property
    def _extractor(self) -> Extractor:
        model, _, transform, mesh, _ = self.loaded
        preview = thumbnails.maker(transform, self.side) if self.side else None
        return Extractor(model, [self.feature], transform, mesh, preview)


def as_source(inputs: Inputs) -> sources.Source:
    """Return inputs as a source: see `sources.of_inputs`."""
    return inputs if hasattr(inputs, "classes") else sources.of_inputs(inputs)  # pyright: ignore


def normal(data: str) -> str:
    """Return a source with an absolute path in place of one that is not, if it has one."""
    kind, colon, place = data.partition(":")
    return f"{kind}:{os.path.abspath(place)}" if os.path.exists(place) else f"{kind}{colon}{place}"


def some(source: sources.Source, index: Int[np.ndarray, "n"]) -> sources.Source:
    """Return some of the examples of a source, with their names and labels."""
    names, labels = [source.name(int(i)) for i in index], sources.labels_of(source)
    labels = None if labels is None else labels[index]
    load = lambda i: source[int(index[i])]
    kind = sources.label_kind(source)
    return sources.Examples(
        len(index), load, source.classes, names=names, labels=labels, label_kind=kind
    )


def open_data(
    loaded: LoadedModel, options: argparse.Namespace, otherwise: str = "test"
) -> tuple[str, sources.Source]:
    """Return the split of `--data`, and at most `--examples` of its examples.

    See `checkpoint.open_split`.
    """
    if options.examples < 0:
        raise ValueError(f"--examples={options.examples} must be at least 0 (all)")
    data = {**loaded.transform.data, "train": {"source": ""}}
    open_part = lambda part: held_out.open_part(part, data)
    split, source = checkpoint.open_split(open_part, options, otherwise)
    if not options.examples:
        return split, source
    return split, some(source, sources.fixed_choice(len(source), options.examples))


def _label_names(source: sources.Source) -> tuple[str, ...]:
    if sources.label_kind(source) == "number":
        return tuple(map(str, getattr(source, "targets", ())))
    return tuple(source.classes)
