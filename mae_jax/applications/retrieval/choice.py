"""The feature and the whitening of an index, chosen on its own examples alone."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from mae_jax.applications.retrieval import copies, reader, whitening
from mae_jax.applications.retrieval.whitening import Method
from mae_jax.data import sources
from mae_jax.evaluators import knn, neighbours
from mae_jax.evaluators.features import Extractor, Feature, Table
from mae_jax.evaluators.loaded_model import LoadedModel
from mae_jax.output import tables

METHODS = (Method("pca"), Method("pca", 64), Method("standardize"), Method("none"))
COPIED = 200  # examples that are copied in each way
K = 10  # neighbours that vote for a class


class Candidate(NamedTuple):
    """How a vector could be made of an input."""

    feature: Feature
    method: Method

    def __str__(self) -> str:
        return f"{self.feature}, {self.method}"


class Choice(NamedTuple):
    """The best candidate, and what it was chosen by."""

    best: Candidate
    scores: dict[Candidate, float]
    criterion: str

    def table(self, most: int = 8) -> str:
        """Return a table of the best candidates, and of the plainest one for comparison."""
        ordered = sorted(self.scores, key=lambda candidate: -self.scores[candidate])
        plain = [
            x for x in ordered[most:] if x.method.kind == "none" and x.feature.pooling == "mean"
        ]
        shown = ordered[:most] + sorted(plain, key=lambda x: x.feature[::2])[-1:]
        rows = [[self.criterion, f"of {len(ordered)}"]]
        for candidate in shown:
            star = "*" if candidate == self.best else ""
            rows.append([f"  {candidate}", f"{star}{self.scores[candidate]:.3f}"])
        return tables.table(rows)

    def saved(self) -> dict[str, Any]:
        """Return all candidates with their scores, as JSON holds them."""
        scores = [
            dict(**x.feature._asdict(), **x.method._asdict(), score=score)
            for x, score in self.scores.items()
        ]
        return dict(criterion=self.criterion, candidates=scores)


def candidates(
    loaded: LoadedModel,
    feature: Mapping[str, Any] | None = None,
    methods: Sequence[Method] | None = None,
) -> list[Candidate]:
    """Return what may be chosen: all blocks, poolings and norms with `methods`, or `METHODS`.

    The order is that of preference between equal scores, with blocks near two thirds up first.

    Args:
      feature: fields of `Feature` that are settled.

    Raises:
      ValueError: the feature is to be taken after a norm that the model does not have.
    """
    model, params, *_ = loaded
    settled, depth = dict(feature or {}), model.depth
    if methods is None:
        methods = [x for x in METHODS if x.components < model.encoder.trunk.width]
    has_norm = "norm" in params or "norm" in params["encoder"]
    if settled.get("norm") and not has_norm:
        raise ValueError("the model has no norm after its last block: take the feature before it")
    values = dict(
        block=_blocks(depth),
        pooling=["mean", "cls"] if model.cls_tokens else ["mean"],
        norm=[False, True] if has_norm else [False],
    )
    values |= {name: [value] for name, value in settled.items()}
    features = itertools.starmap(Feature, itertools.product(*values.values()))
    return [Candidate(x, method) for x in features for method in methods]


def usual_feature(model: Any) -> Feature:
    """Return the mean of the patch tokens two thirds up, where they say most of their input."""
    return Feature(_blocks(model.depth)[0], "mean", False)


def _blocks(depth: int) -> list[int]:
    """Return the blocks of an encoder, the one two thirds up first."""
    return sorted(range(depth), key=lambda block: abs(3 * (block + 1) - 2 * depth))


def by_copies(
    loaded: LoadedModel,
    source: sources.Source,
    among: Sequence[Candidate],
    most: int = 2000,
    batch_size: int = 256,
) -> Choice:
    """Choose by how often a copy of a picture is nearest to its original (recall@1).

    Of at most `most` examples, a fixed random choice, `COPIED` are copied in each way of
    `copies.COPIES`.

    Raises:
      ValueError: the inputs are no pictures of 8 bits in gray or color.
    """
    data = loaded.transform.data
    if not _has_copies(data):
        raise ValueError(
            f"copies are made of pictures of 8 bits in gray or color, not of {data['modality']} "
            f"inputs with {data['channels']} channel(s): choose by labels, or not at all"
        )
    chosen = sources.fixed_choice(len(source), most)
    extract = _extractor(loaded, among, batch_size)
    gallery = extract(reader.some(source, chosen))
    copied = gallery.index[sources.fixed_choice(len(gallery.index), COPIED)]
    originals = reader.some(source, chosen[copied])
    tables_of_copies = [
        extract(copies.of_source(originals, kind, data["channels"])) for kind in copies.COPIES
    ]
    place = np.searchsorted(gallery.index, copied)  # the originals' rows

    def recall(candidate: Candidate) -> float:
        x = gallery.features[candidate.feature]
        fitted = whitening.fit(x, candidate.method)
        vectors, found = neighbours.Gallery(fitted(x)), []
        for table in tables_of_copies:
            index = vectors.search(fitted(table.features[candidate.feature]), 1)[1][:, 0]
            found.append(index == place[table.index])
        return float(np.concatenate(found).mean())

    count, of = len(copied) * len(copies.COPIES), len(gallery.index)
    return _best(recall, among, f"recall@1 of {count:,} copies among {of:,} examples")


def by_labels(
    loaded: LoadedModel,
    source: sources.Source,
    among: Sequence[Candidate],
    most: int = 2000,
    batch_size: int = 256,
) -> Choice:
    """Choose by the accuracy of the `K` nearest of the other examples of the gallery.

    At most `most` examples, a fixed random choice, vote for the class of each other, as in
    `knn.accuracies`; those without a class are left out.

    Raises:
      ValueError: the labels are not one class for each example.
    """
    if not _has_classes(source):
        raise ValueError(
            "a choice by labels needs one of two or more classes for each example: choose by "
            "copies, or not at all"
        )
    some = reader.some(source, sources.fixed_choice(len(source), most))
    columns, labels = _extractor(loaded, among, batch_size)(some).labelled()

    def accuracy(candidate: Candidate) -> float:
        x = columns[candidate.feature]
        vectors = whitening.fit(x, candidate.method)(x)
        return knn.leave_one_out(vectors, labels, K)

    return _best(accuracy, among, f"accuracy of {K} neighbours, each of {len(labels):,} left out")


WAYS = {"copies": by_copies, "labels": by_labels}


def usual_way(loaded: LoadedModel, source: sources.Source) -> str:
    """Return by what a choice is made unless it is said: one of `WAYS`, or "none"."""
    if _has_copies(loaded.transform.data):
        return "copies"
    return "labels" if _has_classes(source) else "none"


def _has_copies(data: Mapping[str, Any]) -> bool:
    """Return whether inputs are pictures of 8 bits, in gray or color."""
    return (
        data["modality"] == "image"
        and data["channels"] in (1, 3)
        and data.get("range", "auto") == "auto"
    )


def _has_classes(source: sources.Source) -> bool:
    return len(source.classes) > 1 and sources.label_kind(source) == "class"


def _extractor(
    loaded: LoadedModel, among: Sequence[Candidate], batch_size: int
) -> Callable[[sources.Source], Table]:
    """Return a function of a source that extracts the features of all candidates."""
    wanted = [*dict.fromkeys(candidate.feature for candidate in among)]
    extract = Extractor(loaded.model, wanted, loaded.transform, loaded.mesh)
    return lambda source: extract(loaded.variables, source, 0, batch_size)


def _best(
    score: Callable[[Candidate], float], among: Sequence[Candidate], criterion: str
) -> Choice:
    bar = tqdm(among, desc="features are compared", unit="feature", disable=None)
    scores = {candidate: score(candidate) for candidate in bar}
    return Choice(max(scores, key=lambda candidate: scores[candidate]), scores, criterion)
