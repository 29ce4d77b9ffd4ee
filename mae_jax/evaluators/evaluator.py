"""What an evaluator is, what it gives, and what it is built from."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
from jax.sharding import Mesh
from PIL import Image

from mae_jax.data import sources
from mae_jax.evaluators import features, held_out
from mae_jax.output import tables


@dataclasses.dataclass(frozen=True)
class Result:
    """What an evaluator has found."""

    metrics: dict[str, float]
    head: str = ""  # said above the table
    rows: Sequence[Sequence[str]] = ()  # of the table; the first one holds the titles
    notes: tuple[str, ...] = ()  # said below it
    pictures: dict[str, Image.Image] = dataclasses.field(default_factory=dict)
    details: dict[str, Any] = dataclasses.field(default_factory=dict)  # more, for a JSON file

    @property
    def text(self) -> str:
        """All that is for the reader's eye, as plain text."""
        below = [tables.table([list(row) for row in self.rows])] if self.rows else []
        body = "\n".join([*below, *self.notes])
        return "\n\n".join(part for part in (self.head, body) if part)

    def prefixed(self, prefix: str) -> "Result":
        """The same with other names of metrics, pictures and details."""
        named = lambda values: {f"{prefix}{name}": x for name, x in values.items()}
        fields = ("metrics", "pictures", "details")
        return dataclasses.replace(self, **{x: named(getattr(self, x)) for x in fields})


class Evaluator(Protocol):
    """An evaluator measures variables of the model that it was built for.

    Variables are those of `model.apply`: `{"params": ..., "batch_stats": ...}`.
    """

    def evaluate(self, variables: dict) -> Result:
        """Return the metrics that are followed during a training."""
        ...

    def report(self, variables: dict, untrained: dict | None = None) -> Result:
        """Return the final table: the metrics of `evaluate` and those of its baselines.

        Args:
          untrained: variables of the same model before its training, as one more baseline.
        """
        return self.evaluate(variables)


class Context(NamedTuple):
    """What evaluators are built from: a model and its data, but no trainer and no whole config."""

    model: Any
    data: Mapping[str, Any]  # the section of a config; `train.source` is what "same" means
    mean: tuple[float, ...]  # per channel, of values in [0, 1]
    std: tuple[float, ...]
    mesh: Mesh
    key: jax.Array  # the masks depend on it
    mask: Mapping[str, Any] | None = None  # the section of a config
    loss: str | None = None  # of a classifier: "softmax" or "binary"; None if it is not known
    classes: Sequence[str] | None = None  # the names of a classifier's classes
    tables: features.Tables | None = None  # features that the evaluators of a list share

    @property
    def transform(self) -> held_out.EvalTransform:
        """How an example is shown: a single view."""
        return held_out.EvalTransform(self.data, self.mean, self.std)

    def with_tables(self) -> "Context":
        """The same with features that evaluators share."""
        tables = features.Tables(self.model, self.transform, self.mesh)
        return self if self.tables else self._replace(tables=tables)

    def open(self, part: Mapping[str, str]) -> sources.Source:
        """Open the `source` and `split` of a section, once for all evaluators of a list."""
        tables = self.tables
        return tables.open(part) if tables else held_out.open_part(part, self.data)
