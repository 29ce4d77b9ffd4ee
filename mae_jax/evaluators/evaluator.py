"""The base classes of evaluators, the results that they return, and the context of a model."""

import dataclasses
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from PIL import Image

from mae_jax.data import sources
from mae_jax.data.target_scale import TargetScale
from mae_jax.evaluators import features, held_out
from mae_jax.output import tables


class Unsuitable(Exception):
    """The error of an evaluator whose data lack something, such as labels: it is left out."""


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of an evaluator."""

    metrics: dict[str, float]
    head: str = ""  # the text above the table
    rows: Sequence[Sequence[str]] = ()  # of the table; the first row holds the titles
    notes: tuple[str, ...] = ()  # the lines below the table
    pictures: dict[str, Image.Image] = dataclasses.field(default_factory=dict)
    details: dict[str, Any] = dataclasses.field(default_factory=dict)  # further values, for JSON

    @property
    def text(self) -> str:
        body = [tables.table([list(row) for row in self.rows])] if self.rows else []
        return "\n\n".join(filter(None, [self.head, "\n".join([*body, *self.notes])]))

    def prefixed(self, prefix: str) -> "Result":
        """Return the result with `prefix` before the names of metrics, pictures and details."""
        renamed = lambda values: {f"{prefix}{name}": value for name, value in values.items()}
        fields = {name: renamed(getattr(self, name)) for name in ("metrics", "pictures", "details")}
        return dataclasses.replace(self, **fields)


@dataclasses.dataclass
class Context:
    """A model and its data, from which evaluators are built without a trainer or a whole config.

    The evaluators of a context share sources and features: each is opened or extracted once.
    """

    model: Any
    data: Mapping[str, Any]  # the section of a config; the source "same" is its `train.source`
    mean: tuple[float, ...]  # per channel, of values in [0, 1]
    std: tuple[float, ...]
    mesh: Mesh
    key: jax.Array  # for the masks
    mask: Mapping[str, Any] | None = None  # the section of a config
    loss: str | None = None  # of a classifier: "softmax", "binary", or None if it is unknown
    classes: Sequence[str] | None = None  # the names of a classifier's classes
    targets: TargetScale | None = None  # of a regressor, in its training data
    given: Mapping[str, sources.Source] | None = None  # by split, see `sources.open_source`

    KEPT = 6  # tables: two splits, each of the raw pixels, an untrained and a trained network

    def __post_init__(self):
        self.transform = held_out.EvalTransform(self.data, self.mean, self.std)
        self._sources: dict[tuple, sources.Source] = {}
        self._extractors: dict[features.Feature, features.Extractor] = {}
        self._tables: dict[tuple, tuple[list[weakref.ref], features.Table]] = {}

    def open(self, part: Mapping[str, str]) -> sources.Source:
        """Open the `source` and `split` of a section."""
        key = part["source"], part["split"]
        if key not in self._sources:
            self._sources[key] = held_out.open_part(part, self.data, self.given)
        return self._sources[key]

    def table(
        self,
        variables: dict | None,
        part: Mapping[str, str],
        feature: features.Feature,
        section: Mapping[str, Any],
    ) -> features.Table:
        """Return a feature of the `source` and `split` of a part, by the sizes of a section."""
        leaves = jax.tree.leaves(variables)
        arrays = [weakref.ref(x) for x in leaves]
        key = (*map(id, leaves), part["source"], part["split"], feature, section["examples"])
        alive = lambda entry: all(array() is not None for array in entry[0])
        self._tables = {key: entry for key, entry in self._tables.items() if alive(entry)}
        if key not in self._tables:
            extractor = features.Extractor(self.model, [feature], self.transform, self.mesh)
            extractor = self._extractors.setdefault(feature, extractor)  # compiled once
            sizes = section["examples"], section["batch_size"]
            table = extractor(variables, self.open(part), *sizes)
            newest = list(self._tables.items())[1 - self.KEPT :]
            self._tables = dict(newest) | {key: (arrays, table)}
        return self._tables[key][1]


class Evaluator:
    """A measurement of a model with given variables, `{"params": ..., "batch_stats": ...}`.

    Args:
      section: the section of a config with the evaluator's options.

    Raises:
      ValueError: the options do not fit the model or the data.
      Unsuitable: the evaluator has nothing to measure.
    """

    def __init__(self, section: Mapping[str, Any], context: Context):
        self.section, self.context = section, context
        self.model, self.mesh = context.model, context.mesh

    def evaluate(self, variables: dict) -> Result:
        """Return the metrics that are followed during a training."""
        raise NotImplementedError

    def report(self, variables: dict, untrained: dict | None = None) -> Result:
        """Return the final table: the metrics of `evaluate` and those of its baselines.

        Args:
          untrained: variables of the same model before its training, for a further baseline.
        """
        return self.evaluate(variables)


class HeldOutEvaluator(Evaluator):
    """An evaluator of the examples of one source, see `config.sections.HeldOutEvaluator`."""

    def __init__(self, section: Mapping[str, Any], context: Context):
        super().__init__(section, context)
        self.source, self.transform = context.open(section), context.transform

    def batches(self, examples: int | None = None) -> Iterator[dict[str, jax.Array]]:
        """Yield at most `examples` examples once each, see `held_out.batches`."""
        count = self.section["examples"] if examples is None else examples
        sizes = count, self.section["batch_size"]
        return held_out.batches(self.source, self.transform, *sizes, self.mesh)
