"""The evaluators of a config, which training and the command `evaluate` run."""

import dataclasses
import importlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from mae_jax.config import schema, sections
from mae_jax.data.sources import Source
from mae_jax.evaluators.evaluator import Context, Evaluator, HeldOutEvaluator, Result, Unsuitable

__all__ = ["Context", "Evaluator", "HeldOutEvaluator", "Result", "Unsuitable"]
_log = logging.getLogger(__name__)
SECTIONS = {name: kind for kinds in sections.EVALUATORS.values() for name, kind in kinds.items()}


@dataclasses.dataclass(frozen=True)
class Entry:
    """An evaluator with its place in a config.

    The metrics of an entry with another name than the usual one of its type begin with that name.
    """

    name: str
    every: int  # steps between two evaluations of a training; 0 means only at the end
    evaluator: Evaluator
    prefix: str = ""

    def evaluate(self, variables: dict) -> Result:
        """Return the metrics that are followed during a training."""
        return self._prefixed(self.evaluator.evaluate(variables))

    def report(self, variables: dict, untrained: dict | None = None) -> Result:
        """Return the final table, see `Evaluator.report`."""
        return self._prefixed(self.evaluator.report(variables, untrained))

    def _prefixed(self, result: Result) -> Result:
        if not self.prefix:
            return result
        prefixed = result.prefixed(self.prefix)
        return dataclasses.replace(prefixed, head=f"{self.name}\n\n{result.head}".rstrip())


def key_of(seed: int) -> jax.Array:
    """Return the key of the masks of a run with this seed."""
    return jax.random.split(jax.random.key(seed), 3)[2]  # a run uses the others for training


def build(config: Mapping[str, Mapping[str, Any]], context: Context) -> list[Entry]:
    """Build the evaluators of the section `evaluators` of a config, with their data opened.

    Raises:
      ValueError: entries do not fit the model or the data; the message names each of them.
    """
    entries, problems = [], {}
    for name, options in config.items():
        try:
            section = schema.section(SECTIONS[options["type"]], options)
            evaluator = _class_of(section)(section, context)
            prefix = "" if name == (section.usual_name or section.type) else f"{name}_"
            entries.append(Entry(name, section.every, evaluator, prefix))
        except Unsuitable as error:
            _log.info("evaluators.%s is left out: %s", name, error)
        except (ValueError, OSError, ImportError) as error:
            problems.setdefault(str(error), []).append(f"evaluators.{name}")
    if problems:
        messages = [f"{' and '.join(names)}: {text}" for text, names in problems.items()]
        raise ValueError("; ".join(messages))
    return entries


def warn_of_overlap(
    source: Source, config: Mapping[str, Mapping[str, Any]], context: Context
) -> None:
    """Warn of entries of a config whose held-out examples are among those of `source`.

    `source` holds the examples that the model is trained on.
    """
    trained = set(getattr(source, "names", ()))
    for name, entry in config.items():
        part = entry.get("test", entry)
        if not trained or part.get("source") not in ("same", context.data["train"]["source"]):
            continue
        held_out = getattr(context.open(part), "names", ())
        if seen := len(trained.intersection(held_out)):
            _log.warning(
                "evaluators.%s: %d of its %d test examples are among the training examples, so its "
                "figures are no test: choose another split than %r",
                *(name, seen, len(held_out), part["split"]),
            )


def _class_of(section: sections.Evaluator) -> type[Evaluator]:
    """Return the class of a custom evaluator, or for type `knn` the class `Knn` of module `knn`."""
    if not isinstance(section, sections.CustomEvaluator):
        module = importlib.import_module(f"{__name__}.{section.type}")
        return getattr(module, type(section).__name__)
    module, _, name = section.evaluator.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"evaluator = {section.evaluator!r} must be MODULE:CLASS, which Python can import: "
            f"{error}"
        ) from error


def report(entries: Iterable[Entry], variables: dict, untrained: dict | None = None) -> Result:
    """Return the reports of all entries as one result, see `Evaluator.report`."""
    return join([entry.report(variables, untrained) for entry in entries])


def join(results: Sequence[Result]) -> Result:
    """Join results into one; tables whose rows have the same names become one table."""
    joined: list[Result] = []
    for result in results:
        last = joined[-1] if joined else None
        names = [row[0] for row in result.rows]
        if last and names and not result.head and names == [row[0] for row in last.rows]:
            rows = [[*a, *b[1:]] for a, b in zip(last.rows, result.rows, strict=True)]
            notes = tuple(dict.fromkeys([*last.notes, *result.notes]))
            joined[-1] = dataclasses.replace(last, rows=rows, notes=notes)
        else:
            joined.append(result)
    text = "\n\n".join(result.text for result in joined if result.text)
    merge = lambda field: {k: v for result in results for k, v in getattr(result, field).items()}
    return Result(merge("metrics"), text, pictures=merge("pictures"), details=merge("details"))
