"""The evaluation of a detector on examples with masks, beside scores that need no network."""

import collections
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from tqdm import tqdm

from mae_jax.applications.anomaly import baselines, figures, layout, score_maps
from mae_jax.applications.anomaly.calibration import COMBINED
from mae_jax.applications.anomaly.detector import Detector, Scores
from mae_jax.applications.anomaly.figures import Map, Mask, Scored
from mae_jax.applications.anomaly.layout import GOOD, Example
from mae_jax.applications.anomaly.metrics import Counts
from mae_jax.data import sources
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.sources import source as reading
from mae_jax.evaluators.evaluator import Result
from mae_jax.evaluators.tiled_inputs import TiledInputs

RANKS = "rank average"
_MOST_LEARNED = 500  # good inputs that baselines learn from


class Seen(NamedTuple):
    """An example with its scores, of which the input itself is dropped."""

    example: Example
    sides: tuple[int, ...]
    scores: dict[str, float]
    maps: dict[str, Map]


def evaluate(
    detector: Detector,
    examples: Sequence[Example],
    good: sources.Source | None = None,
    drawn: Callable[[Example, Scores, Mask], None] | None = None,
) -> Result:
    """Return the figures of a detector, and of baselines, on examples with masks.

    Masks count by their values: every value of an input belongs to the pixel figures, and the maps
    of patches are enlarged to them. A mask of another size than its input, and an anomaly without a
    mask, are told, and do not count in these. Maps of baselines are averaged over 3x3 patches as
    those of a detector are, and an input is scored by the same rule.

    Args:
      examples: good ones, and others with anomalies: of `layout.examples`, or made in Python of
        arrays and masks.
      good: what the baselines learn from, at most 500 examples; without it only the blur is shown.
      drawn: is called with each example, its scores and its mask.
    """
    patch, notes, seen = detector.loaded.model.patch, Notes(), []
    known = _learned(detector, good, notes)
    table: dict[str, Scored] = collections.defaultdict(Scored)
    for example, scores in _scanned(detector, examples, notes):
        mask = _mask(example, scores.opened.sides, notes)
        if np.isnan([*scores.scores.values()]).any():
            notes.add("no patch has data, so it has no score", example.name)
        found = {name: (scores.scores[name], scores.maps[name]) for name in scores.scores}
        x = baselines.read(scores.opened, detector.loaded)
        found |= {name: _of_baseline(baseline(x)) for name, baseline in known.items()}
        for name, (score, map) in found.items():
            table[name].add(example.kind, score)
            if mask is not None and map is not None:
                table[name].add_map(example.kind, map, patch, mask)
        seen.append(Seen(example, scores.opened.sides, scores.scores, scores.maps))
        if drawn:
            drawn(example, scores, np.zeros(scores.opened.sides, bool) if mask is None else mask)
    if not seen:
        raise ValueError(f"none of {len(examples):,} examples can be read: {notes.told[0]}")
    if len(detector.scorers) > 1:
        table[RANKS] = _rank_average(detector, seen)
    order = [*detector.scorers, RANKS, COMBINED]
    table = {name: table[name] for name in sorted(table, key=lambda n: _place(n, order))}
    return _result(detector, table, notes)


class Notes:
    """What was left out, told once for each reason."""

    def __init__(self):
        self._names: dict[str, list[str]] = collections.defaultdict(list)
        self.lines: list[str] = []

    def add(self, reason: str, name: str) -> None:
        self._names[reason].append(name)

    @property
    def all(self) -> tuple[str, ...]:
        return (*self.lines, *self.told)

    @property
    def told(self) -> list[str]:
        lines = []
        for reason, names in self._names.items():
            others = f" and {len(names) - 1:,} others" if len(names) > 1 else ""
            lines.append(f"{names[0]}{others}: {reason}")
        return lines


def _learned(
    detector: Detector, good: sources.Source | None, notes: Notes
) -> dict[str, baselines.Baseline]:
    """Return the baselines, fitted on good examples."""
    known = baselines.unfitted(detector.loaded)
    if good is None:
        notes.lines.append("no good examples are given for the baselines that learn: see --good")
        return {"blur": known["blur"]}
    inputs, count = _inputs(detector), 0
    chosen = sources.fixed_choice(len(good), _MOST_LEARNED)
    for i in tqdm(chosen, "baselines", unit=" examples", mininterval=1, disable=None):
        try:
            opened = reading.read(good, int(i), lambda example: inputs.open(example["image"]))
            x = baselines.read(opened, detector.loaded)
        except Unreadable as error:
            notes.add("the baselines learn nothing from it", str(error))
            continue
        count += 1
        for baseline in known.values():
            baseline.learn(x)
    if not count:
        raise ValueError(f"none of {len(good):,} good examples can be read: give another --good")
    notes.lines.append(f"the baselines learn from {count:,} of {len(good):,} good examples")
    return known


def _inputs(detector: Detector) -> TiledInputs:
    loaded = detector.loaded
    return TiledInputs(loaded.model, loaded.transform, loaded.mesh)


def _scanned(
    detector: Detector, examples: Sequence[Example], notes: Notes
) -> Iterator[tuple[Example, Scores]]:
    """Yield the examples that have scores."""
    load = lambda i: dict(image=examples[i].value, label=-1)
    source = sources.Examples(len(examples), load, (), names=[x.name for x in examples])
    found = detector.scan(source)
    for i, scores in tqdm(
        found, "scoring", len(examples), unit=" examples", mininterval=1, disable=None
    ):
        if isinstance(scores, Unreadable):
            notes.add("left out, as it cannot be scored", str(scores))
        else:
            yield examples[i], scores


def _mask(example: Example, sides: tuple[int, ...], notes: Notes) -> Mask | None:
    """Return where an example is anomalous, or None if that is not known."""
    if example.kind == GOOD:
        return np.zeros(sides, bool)
    if example.mask is None:
        notes.add("no mask, so it does not count in the pixel figures", example.name)
        return None
    try:
        mask, levels = layout.read_mask(example.mask)
    except Unreadable as error:
        notes.add("its mask does not count, as it cannot be read", f"{example.name} ({error})")
        return None
    if mask.shape != sides:
        sizes = f"{example.name} (mask {mask.shape}, input {sides})"
        notes.add("its mask has another size, and does not count", sizes)
        return None
    if not mask.any():
        notes.add("its mask is empty, so all of it counts as good", example.name)
    elif levels > 2:
        notes.add("its mask has several values, of which all above 0 count", example.name)
    return mask


def _of_baseline(found: baselines.Found) -> tuple[float, Map | None]:
    """Return the score and the map of a baseline, made as those of a detector."""
    if found.map is None:
        return float(found.score or 0), None
    map = score_maps.local_mean(found.map, range(found.map.ndim))
    return float(score_maps.score(map[None])[0]), map


def _rank_average(detector: Detector, seen: Sequence[Seen]) -> Scored:
    """Return the mean over the scorers of the ranks that they give examples, and patches.

    Ranks are among all that are evaluated, so there is no threshold.
    """
    shapes = [next(iter(x.maps.values())).shape for x in seen]
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    total, of_patches = np.zeros(len(seen)), np.zeros(ends[-1], np.float32)
    rank = lambda x: scipy.stats.rankdata(x, nan_policy="omit") / len(x)
    for name in detector.scorers:
        total += rank([x.scores[name] for x in seen])
        of_patches += rank(np.concatenate([x.maps[name].ravel() for x in seen]))
    ranks, told_before = Scored(), Notes()
    parts = zip(total, np.split(of_patches, ends[:-1]), shapes, seen, strict=True)
    for score, part, shape, x in parts:
        ranks.add(x.example.kind, float(score))
        if (mask := _mask(x.example, x.sides, told_before)) is not None:
            map = part.reshape(shape)
            ranks.add_map(x.example.kind, map, detector.loaded.model.patch, mask)
    return ranks


def _place(name: str, order: Sequence[str]) -> int:
    return order.index(name) if name in order else len(order)


def _result(detector: Detector, table: Mapping[str, Scored], notes: Notes) -> Result:
    kinds = [*dict.fromkeys(kind for x in table.values() for kind in x.kinds if kind != GOOD)]
    whole = {name: x.figures(kinds) for name, x in table.items()}
    by_kind = {name: {kind: x.figures([kind]) for kind in kinds} for name, x in table.items()}
    cells = lambda figures: ["-" if x != x else f"{x:.3f}" for x in figures.values()]
    rows = [["all kinds", *figures.NAMES.values()]]
    rows += [[name, *cells(figures)] for name, figures in whole.items()]
    best = COMBINED if len(detector.scorers) > 1 else next(iter(detector.scorers))
    if len(kinds) > 1:
        rows += [[""] * len(rows[0]), [f"by kind, {best}", *figures.NAMES.values()]]
        rows += [[kind, *cells(by_kind[best][kind])] for kind in kinds]
    alarms = _false_alarms(detector, table)
    resolution = max(c.resolution for x in table.values() for c in [Counts(), *x.counts.values()])
    left_out = max(sum(c.left_out for c in x.counts.values()) for x in table.values())
    if resolution:
        notes.lines.append(f"scores that differ by less than {resolution:.1e} of them count as one")
    if left_out:
        notes.lines.append(f"{left_out:,} values without data do not count in the pixel figures")
    counts = collections.Counter(next(iter(table.values())).kinds)
    good = counts.pop(GOOD, 0)
    head = f"{good:,} good examples and {sum(counts.values()):,} anomalies of {len(kinds)} kind(s)"
    flat = {f"{name}_{key}": x for name, found in whole.items() for key, x in found.items()}
    metrics = {name.replace(" ", "_"): x for name, x in flat.items() if x == x}
    details = dict(scorers=whole, by_kind=by_kind, false_alarms=alarms, notes=list(notes.all))
    lines = [f"false alarms: {_told(name, x)}" for name, x in alarms.items()]
    return Result(metrics, head, rows, ("", *lines, *notes.all), details=details)


def _false_alarms(detector: Detector, table: Mapping[str, Scored]) -> dict[str, dict[str, Any]]:
    """Return how many good examples are above each threshold, beside the promised share."""
    found = {}
    for name, limit in detector.thresholds.items():
        if name not in table:
            continue
        pairs = zip(table[name].kinds, table[name].scores, strict=True)
        scores = [score for kind, score in pairs if kind == GOOD and score == score]
        above = sum(score > limit for score in scores)
        found[name] = dict(above=above, good=len(scores), threshold=limit)
        found[name]["promised"] = detector.calibration.false_alarms
    return found


def _told(name: str, x: Mapping[str, Any]) -> str:
    share = f" ({x['above'] / x['good']:.3f})" if x["good"] else ""
    return (
        f"{x['above']:,} of {x['good']:,} good examples{share} are above the threshold of {name}; "
        f"promised are {x['promised']:g}"
    )
