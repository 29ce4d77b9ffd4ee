"""What an evaluator is, what it returns, and what it is built from."""

import dataclasses
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from PIL import Image

from mae_jax.data import sources
from mae_jax.evaluators import features, held_out
from mae_jax.output import tables


class Unsuitable(Exception):
    """The data do not have what an evaluator needs, such as labels: the evaluator is left out."""


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of an evaluator."""

    metrics: dict[str, float]
    head: str = ""  # the text above the table
    rows: Sequence[Sequence[str]] = ()  # of the table; the first one holds the titles
    notes: tuple[str, ...] = ()  # the lines below the table
    pictures: dict[str, Image.Image] = dataclasses.field(default_factory=dict)
    details: dict[str, Any] = dataclasses.field(default_factory=dict)  # more, for a JSON file

    @property
    def text(self) -> str:
        body = [tables.table([list(row) for row in self.rows])] if self.rows else []
        return "\n\n".join(filter(None, [self.head, "\n".join([*body, *self.notes])]))

    def prefixed(self, prefix: str) -> "Result":
        """The same result with other names of metrics, pictures and details."""
        named = lambda values: {f"{prefix}{name}": x for name, x in values.items()}
        fields = ("metrics", "pictures", "details")
        return dataclasses.replace(self, **{x: named(getattr(self, x)) for x in fields})


@dataclasses.dataclass
class Context:
    """What evaluators are built from: a model and its data, but no trainer and no whole config.

    The evaluators of a context share sources and features: each is opened or extracted once.
    """

    model: Any
    data: Mapping[str, Any]  # the section of a config; `train.source` is what "same" means
    mean: tuple[float, ...]  # per channel, of values in [0, 1]
    std: tuple[float, ...]
    mesh: Mesh
    key: jax.Array  # of the masks
    mask: Mapping[str, Any] | None = None  # the section of a config
    loss: str | None = None  # of a classifier: "softmax" or "binary"; None if it is not known
    classes: Sequence[str] | None = None  # the names of a classifier's classes

    KEPT = 6  # tables: two splits of three networks: none (pixels), an untrained and a trained one

    def __post_init__(self):
        self.transform = held_out.EvalTransform(self.data, self.mean, self.std)
        self._sources: dict[tuple, sources.Source] = {}
        self._extractors: dict[features.Feature, features.Extractor] = {}
        self._tables: dict[tuple, tuple[list[weakref.ref], features.Table]] = {}

    def open(self, part: Mapping[str, str]) -> sources.Source:
        """Open the `source` and `split` of a section."""
        name = part["source"], part["split"]
        if name not in self._sources:
            self._sources[name] = held_out.open_part(part, self.data)
        return self._sources[name]

    def table(
        self,
        variables: dict | None,
        part: Mapping[str, str],
        feature: features.Feature,
        section: Mapping[str, Any],
    ) -> features.Table:
        """Return one feature of the `examples` of a `source` and its `split`, `part`."""
        leaves = jax.tree.leaves(variables)
        arrays = [weakref.ref(x) for x in leaves]
        name = (*map(id, leaves), part["source"], part["split"], feature, section["examples"])
        alive = lambda kept: all(ref() is not None for ref in kept[0])
        self._tables = {x: kept for x, kept in self._tables.items() if alive(kept)}
        if name not in self._tables:
            extractor = features.Extractor(self.model, [feature], self.transform, self.mesh)
            extractor = self._extractors.setdefault(feature, extractor)  # it is compiled once
            sizes = section["examples"], section["batch_size"]
            table = extractor(variables, self.open(part), *sizes)
            newest = list(self._tables.items())[1 - self.KEPT :]
            self._tables = dict(newest) | {name: (arrays, table)}
        return self._tables[name][1]


class Evaluator:
    """Measures a model with the variables of a step, `{"params": ..., "batch_stats": ...}`.

    Args:
      section: of a config, with the evaluator's options.

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
          untrained: variables of the same model before its training, as one more baseline.
        """
        return self.evaluate(variables)


class HeldOutEvaluator(Evaluator):
    """An evaluator of the examples of one source, see `config.sections.HeldOutEvaluator`."""

    def __init__(self, section: Mapping[str, Any], context: Context):
        super().__init__(section, context)
        self.source, self.transform = context.open(section), context.transform

    def batches(self, examples: int | None = None) -> Iterator[dict[str, jax.Array]]:
        """Read each of at most `examples` examples once, see `held_out.batches`."""
        count = self.section["examples"] if examples is None else examples
        sizes = count, self.section["batch_size"]
        return held_out.batches(self.source, self.transform, *sizes, self.mesh)
