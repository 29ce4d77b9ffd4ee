"""How well an index finds examples of the same class, or the originals of copies.

Beside the vectors of the index are those of the feature that comes to mind first, of thumbnails and
of perceptual hashes. All see the same view of an input.
"""

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from mae_jax.applications.retrieval import copies, descriptors
from mae_jax.applications.retrieval.index import Index
from mae_jax.applications.retrieval.reader import some
from mae_jax.applications.retrieval.rows import Labels, names_of
from mae_jax.data import sources
from mae_jax.evaluators import ranking
from mae_jax.evaluators.evaluator import Result
from mae_jax.evaluators.features import Extractor, Feature
from mae_jax.evaluators.held_out import EvalTransform
from mae_jax.evaluators.neighbours import Gallery
from mae_jax.evaluators.ranking import Scores

_log = logging.getLogger(__name__)
_SEED = 1  # of copies; a feature may have been chosen by those of the seed 0
SIDE = 32  # of the pictures that thumbnails and hashes are made of, at most
BY = ("class", "copies")
TITLES = {  # of the vectors that are compared
    "index": "vectors of the index",
    "feature": "its feature, as it is",
    "naive": "naive: mean of the last block",
    "thumbnails": f"thumbnails of {SIDE}x{SIDE}",
    "hash": "perceptual hash of 64 bits",
}


class Described(NamedTuple):
    """Examples with several vectors of each, by the keys of `TITLES`."""

    names: tuple[str, ...]
    labels: Labels
    vectors: dict[str, Float[np.ndarray, "n d"]]

    def joined(self, other: "Described") -> "Described":
        vectors = {n: np.concatenate([x, other.vectors[n]]) for n, x in self.vectors.items()}
        return Described(self.names + other.names, self.labels.joined(other.labels), vectors)


class Queries(NamedTuple):
    """Queries and what they should find: the rows of the index with the same label."""

    vectors: Mapping[str, Float[np.ndarray, "m d"]]
    labels: Int[np.ndarray, "m"]  # -1 if it is unknown
    own: Int[np.ndarray, "m"] | None = None  # rows that are the queries themselves


class Describer:
    """The vectors that an index makes of examples, and those of its baselines, in one pass."""

    def __init__(self, index: Index):
        self.whitening, self.reader = index.whitening, index.reader
        model, _, transform, mesh, _ = self.reader.loaded
        self.naive = Feature(model.depth - 1, "mean", True)
        is_picture = transform.data["modality"] == "image"
        preview = functools.partial(_small, transform=transform) if is_picture else None
        wanted = [*dict.fromkeys([self.reader.feature, self.naive])]
        self._extract = Extractor(model, wanted, transform, mesh, preview)

    def __call__(self, parts: Sequence[sources.Source]) -> Described:
        """Return the examples of sources that can be read and have finite features."""
        return functools.reduce(Described.joined, map(self._describe, parts))

    def _describe(self, source: sources.Source) -> Described:
        reader, progress = self.reader, functools.partial(tqdm, unit="batch", disable=None)
        variables = reader.loaded.variables
        table = self._extract(variables, source, 0, reader.batch_size, progress)
        feature, small = table.features[reader.feature], table.previews
        found = dict(index=self.whitening(feature), feature=feature)
        found["naive"] = table.features[self.naive]
        if small is not None:
            found["thumbnails"] = descriptors.thumbnails(small)
            if small.shape[-1] in (1, 3):
                found["hash"] = descriptors.perceptual_hashes(small)
        finite = np.isfinite(feature).all(1) & np.isfinite(found["naive"]).all(1)
        labels = Labels(table.labels[finite], tuple(source.classes))
        found = {name: x[finite] for name, x in found.items()}
        return Described(names_of(source, table.index[finite]), labels, found)


def _small(inputs: Float[Array, "b h w c"], transform: EvalTransform) -> Float[Array, "b y x c"]:
    """Return pictures in [0, 1] with sides of at most `SIDE`."""
    mean, std = (
        jnp.array(x, jnp.float32)[None, None, None] for x in (transform.mean, transform.std)
    )
    x = inputs.astype(jnp.float32) * std + mean
    sides = (min(side, SIDE) for side in x.shape[1:-1])
    return jax.image.resize(x, (x.shape[0], *sides, x.shape[-1]), "linear")


def evaluate(
    index: Index,
    queries: Sequence[sources.Source] = (),
    gallery: Sequence[sources.Source] = (),
    by: str = "class",
    examples: int = 0,
    own: bool = False,
) -> Result:
    """Return recall and mean average precision of an index and of its baselines.

    Recall is the share of queries of which one of the first 1, 5 or 10 found is a right one; the
    average precision is over the whole ranking. Both are pessimistic about equal similarities.

    Args:
      queries: by class the examples that are searched for, by default those of the index, each of
        which is left out of what it finds; by copies those that are copied, by default `gallery`.
      gallery: the examples that the index was made of, without which there are no baselines.
      by: "class": another one of the class is right; "copies": the original is.
      examples: the largest number of queries, or of pictures of each source that are copied, a
        fixed random choice; 0 means all.
      own: queries with the names of examples of the index are these examples.

    Raises:
      ValueError: no query has anything to find, or the inputs cannot be copied.
    """
    if by not in BY:
        raise ValueError(f"by = {by!r} is none of {', '.join(BY)}")
    describe, choose = Describer(index), lambda n: sources.fixed_choice(n, examples or None)
    gallery = [_held(index, source) for source in gallery]
    vectors = {"index": index.rows.vectors} | _baselines(index, gallery, describe)
    asked = [some(source, choose(len(source))) for source in queries or gallery]
    if by == "copies":
        labels, groups = np.arange(len(index)), _copied(index, asked, describe)
    elif queries:
        labels, groups = _by_class(index, describe(asked), own)
    else:
        labels, groups = _each_left_out(index, vectors, choose(len(index)))
    scores: dict[str, dict[str, Scores]] = {}
    for name, x in vectors.items():
        of_index = index.gallery if name == "index" else Gallery(x, index.gallery.mesh)
        scores[name] = {
            group: ranking.evaluate(of_index, labels, asked.vectors[name], asked.labels, asked.own)
            for group, asked in groups.items()
        }
    return _report(scores, by)


def _held(index: Index, source: sources.Source) -> sources.Source:
    """Return the examples of a source that an index holds."""
    known, names = {*index.rows.names}, names_of(source, range(len(source)))
    return some(source, np.array([i for i, name in enumerate(names) if name in known], int))


def _baselines(
    index: Index, gallery: Sequence[sources.Source], describe: Describer
) -> dict[str, np.ndarray]:
    """Return the other vectors of the examples of an index, in its order.

    There are none if some of the examples are not in the gallery, which a warning says.
    """
    if not gallery:
        return {}
    found = describe(gallery)
    place = {name: i for i, name in enumerate(found.names)}
    if missing := [name for name in index.rows.names if name not in place]:
        text = "%s of %s examples of the index, such as %r, are no longer in the data it is made of"
        _log.warning(text, f"{len(missing):,}", f"{len(index):,}", missing[0])
        return {}
    rows = [place[name] for name in index.rows.names]
    return {name: x[rows] for name, x in found.vectors.items() if name != "index"}


def _by_class(index: Index, found: Described, own: bool) -> tuple[np.ndarray, dict[str, Queries]]:
    """Return the classes of the index, and queries that should find their own class."""
    of_index = _classes(index)
    if found.labels.values.ndim > 1 or not {*found.labels.names} & {*of_index.names}:
        raise ValueError(
            "the queries have none of the classes of the index, which are "
            f"{', '.join(of_index.names[:5])}, ...: evaluate by copies"
        )
    labels = of_index.joined(found.labels).values
    rows = index.rows_of(found.names) if own else None
    return labels[: len(index)], {"": Queries(found.vectors, labels[len(index) :], rows)}


def _each_left_out(
    index: Index, vectors: Mapping[str, np.ndarray], rows: Int[np.ndarray, "m"]
) -> tuple[np.ndarray, dict[str, Queries]]:
    """Return the classes of the index, and some of its examples as queries."""
    labels = _classes(index).values
    found = {name: np.asarray(x[rows], np.float32) for name, x in vectors.items()}
    return labels, {"": Queries(found, labels[rows], rows)}


def _classes(index: Index) -> Labels:
    labels = index.rows.labels
    if not labels.is_one_class or len(labels.names) < 2:
        raise ValueError(
            "the index has not one of two or more classes for each example: evaluate by copies"
        )
    return labels


def _copied(
    index: Index, originals: Sequence[sources.Source], describe: Describer
) -> dict[str, Queries]:
    """Return copies of each kind, which should find their originals."""
    data = index.reader.loaded.transform.data
    if data["modality"] != "image" or not originals:
        raise ValueError(
            "copies are made of pictures: name those that are copied, or evaluate by class"
        )
    place = {name: row for row, name in enumerate(index.rows.names)}
    groups = {}
    for kind in copies.COPIES:
        copied = functools.partial(copies.of_source, kind=kind, channels=data["channels"])
        found = describe([copied(source, seed=_SEED) for source in originals])
        labels = np.array([place.get(name, -1) for name in found.names])
        groups[kind] = Queries(found.vectors, labels)
    return groups


def _report(scores: Mapping[str, Mapping[str, Scores]], by: str) -> Result:
    """Return the scores as a table: of copies there is recall@1 of each kind."""
    of_all = {name: _mean([*groups.values()]) for name, groups in scores.items()}
    first = of_all["index"]
    kinds = list(scores["index"]) if by == "copies" else []
    head = [*kinds, *(f"recall@{k}" for k in first.recall), "mAP"]
    rows = [[f"{first.queries:,} {'copies' if kinds else 'queries'}", *head]]
    for name, score in of_all.items():
        values = [scores[name][kind].recall[1] for kind in kinds]
        values += [*score.recall.values(), score.mean_average_precision]
        rows.append([f"  {TITLES[name]}", *(f"{x:.3f}" for x in values)])
    notes = ["of each kind of copy: recall@1"] if kinds else []
    if first.left_out:
        why = "the index does not hold their originals" if kinds else "nothing has their class"
        notes.append(f"{first.left_out:,} others are left out, as {why}")
    if len(scores) == 1:
        notes.append("no baselines, as they need the data that the index is made of")
    saved = {n: {group: _saved(x) for group, x in groups.items()} for n, groups in scores.items()}
    for name, score in of_all.items():
        saved[name]["all"] = _saved(score)
    return Result(_saved(first), rows=rows, notes=tuple(notes), details={"scores": saved})


def _mean(parts: Sequence[Scores]) -> Scores:
    """Return the scores of all queries together."""
    weights = [part.queries for part in parts]
    mean = lambda values: float(np.average(values, weights=weights))
    recall = {k: mean([part.recall[k] for part in parts]) for k in parts[0].recall}
    precision = mean([part.mean_average_precision for part in parts])
    return Scores(recall, precision, sum(weights), sum(part.left_out for part in parts))


def _saved(scores: Scores) -> dict[str, Any]:
    recall = {f"recall_{k}": x for k, x in scores.recall.items()}
    rest = dict(queries=scores.queries, left_out=scores.left_out)
    return recall | dict(map=scores.mean_average_precision) | rest
