"""How good is a model? The evaluators of a config, which training and `evaluate` run alike."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mae_jax.evaluators import (
    classification,
    evaluator,
    knn,
    linear_probe,
    reconstruction,
    sweep,
)
from mae_jax.evaluators.evaluator import Context, Result

# What builds the evaluators of each type, from a section and a context; None leaves it out.
TYPES = {
    "reconstruction": reconstruction.build,
    "classification": classification.build,
    "knn": knn.build,
    "linear_probe": linear_probe.build,
    "sweep": sweep.build,
}
USUAL = {name: name for name in TYPES} | {"linear_probe": "linear"}  # names of entries


@dataclasses.dataclass(frozen=True)
class Entry:
    """An evaluator with its place in a config.

    The metrics of an entry with another name than the usual one of its type begin with that name.
    """

    name: str
    every: int  # steps between two evaluations of a training; 0 means only at the end
    evaluator: evaluator.Evaluator
    prefix: str = ""

    def evaluate(self, variables: dict) -> Result:
        """Return the metrics that are followed during a training."""
        return self._named(self.evaluator.evaluate(variables))

    def report(self, variables: dict, untrained: dict | None = None) -> Result:
        """Return the final table, see `Evaluator.report`."""
        return self._named(self.evaluator.report(variables, untrained))

    def _named(self, result: Result) -> Result:
        if not self.prefix:
            return result
        named = result.prefixed(self.prefix)
        return dataclasses.replace(named, head=f"{self.name}\n\n{result.head}".rstrip())


def build(sections: Mapping[str, Mapping[str, Any]], context: Context) -> list[Entry]:
    """Build the evaluators of the section `evaluators` of a config, with their data opened.

    Those of a type stand together, in the order of `TYPES`.

    Raises:
      ValueError: all that does not fit, with the names of the entries.
    """
    context = context.with_tables()
    entries, problems = [], {}
    order = {kind: i for i, kind in enumerate(TYPES)}
    by_type = lambda item: order.get(item[1]["type"], len(order))
    for name, section in sorted(sections.items(), key=by_type):
        kind = section["type"]
        try:
            if kind not in TYPES:
                raise ValueError(f"type {kind!r} must be one of {', '.join(TYPES)}")
            if (made := TYPES[kind](section, context)) is not None:
                prefix = "" if name == USUAL[kind] else f"{name}_"
                entries.append(Entry(name, section.get("every", 0), made, prefix))
        except (ValueError, OSError, ImportError) as error:
            problems.setdefault(str(error), []).append(f"evaluators.{name}")
    if problems:
        each = [f"{' and '.join(names)}: {text}" for text, names in problems.items()]
        raise ValueError("; ".join(each))
    return entries


def report(entries: Sequence[Entry], variables: dict, untrained: dict | None = None) -> Result:
    """Run the reports of all entries, as one: see `Evaluator.report`."""
    return join([entry.report(variables, untrained) for entry in entries])


def join(results: Sequence[Result]) -> Result:
    """All results as one: tables whose rows have the same names become one table."""
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
    merge = lambda name: {k: x for result in results for k, x in getattr(result, name).items()}
    return Result(merge("metrics"), text, pictures=merge("pictures"), details=merge("details"))
