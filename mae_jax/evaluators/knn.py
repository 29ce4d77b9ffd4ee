"""Nearest neighbours of frozen features."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int, Shaped

from mae_jax.evaluators import classification, neighbours, regression
from mae_jax.evaluators.evaluator import Context
from mae_jax.evaluators.feature_accuracy import FeatureAccuracy


class _Scorer:
    """Nearest neighbours, for one number `k` of neighbours or for several."""

    what: str
    metrics: ClassVar[Mapping[str, str]]  # ends of their names -> ends of their titles
    scores: ClassVar[Callable[..., dict[int, tuple[float, ...]]]]  # see the functions below

    def __init__(self, section: Mapping[str, Any], context: Context):
        k = section["k"]
        self.names = {k: "knn"} if isinstance(k, int) else {each: f"knn_{each}" for each in k}
        titles = ["kNN"] if isinstance(k, int) else [f"kNN k={each}" for each in self.names]
        self.titles = [f"{title}{end}" for title in titles for end in self.metrics.values()]

    def __call__(self, *data: np.ndarray) -> tuple[dict[str, float], str]:
        scores, n = type(self).scores(*data, ks=list(self.names)), len(data[0])
        found = {
            f"{name}{end}": x
            for k, name in self.names.items()
            for end, x in zip(self.metrics, scores[k], strict=True)
        }
        note = f"k above {n} counts as {n}, the number of training examples"
        return found, note if max(scores) > n else ""


class ClassScorer(_Scorer):
    """The accuracy of nearest neighbours."""

    what, metrics = "accuracy", {"": ""}

    @staticmethod
    def scores(*data, ks):
        return {k: (x,) for k, x in accuracies(*data, ks=ks).items()}


class ClassesScorer(_Scorer):
    """The mean average precision of nearest neighbours."""

    what, metrics = "mAP", {"_map": ""}

    @staticmethod
    def scores(x, labels, test_x, test_labels, ks):
        means = neighbour_means(x, labels, test_x, ks)
        return {k: (classification.mean_average_precision(test_labels, means[k]),) for k in ks}


class NumberScorer(_Scorer):
    """R2 and the mean absolute error of the mean of nearest neighbours."""

    what, metrics = "R2 and MAE", {"_r2": " R2", "_mae": " MAE"}

    @staticmethod
    def scores(x, labels, test_x, test_labels, ks):
        means = neighbour_means(x, labels, test_x, ks)
        return {k: regression.mean_scores(test_labels, means[k])[:2] for k in ks}


SCORERS = {"class": ClassScorer, "classes": ClassesScorer, "number": NumberScorer}


class Knn(FeatureAccuracy):
    """How well nearest neighbours predict labels."""

    scorers = SCORERS


def accuracies(
    train: Float[np.ndarray, "n d"],
    train_labels: Int[np.ndarray, "n"],
    test: Float[np.ndarray, "m d"],
    test_labels: Int[np.ndarray, "m"],
    ks: Sequence[int] = (20,),
    temperature: float = 0.07,
) -> dict[int, float]:
    """Return the accuracy of the weighted kNN classifier of Wu et al. (arXiv 1805.01978).

    The `k` most cosine-similar training examples vote with weight `exp(similarity / temperature)`.

    Returns:
      The accuracy for each of `ks`; all `n` examples vote if they are fewer than k.
    """
    similarity, index = neighbours.nearest(train, test, min(max(ks), len(train)))
    labels = train_labels[index]
    return {k: _accuracy(labels[:, :k], similarity[:, :k], test_labels, temperature) for k in ks}


def leave_one_out(
    x: Float[np.ndarray, "n d"], labels: Int[np.ndarray, "n"], k: int, temperature: float = 0.07
) -> float:
    """Return the accuracy of `accuracies` if each example is classified by all others."""
    similarity, index = neighbours.nearest(x, x, k + 1)
    others = np.argsort(index == np.arange(len(x))[:, None], axis=1, kind="stable")
    others = others[:, : min(k, len(x) - 1)]
    similarity, index = (np.take_along_axis(a, others, axis=1) for a in (similarity, index))
    return _accuracy(labels[index], similarity, labels, temperature)


def _accuracy(
    neighbour_labels: Int[np.ndarray, "m k"],
    similarity: Float[np.ndarray, "m k"],
    labels: Int[np.ndarray, "m"],
    temperature: float,
) -> float:
    weights = np.exp(similarity.astype(np.float64) / temperature)
    votes = zip(neighbour_labels, weights, labels, strict=True)
    return float(np.mean([np.bincount(found, w).argmax() == x for found, w, x in votes]))


def neighbour_means(
    train: Float[np.ndarray, "n d"],
    train_labels: Shaped[np.ndarray, "n t"],
    test: Float[np.ndarray, "m d"],
    ks: Sequence[int] = (20,),
    temperature: float = 0.07,
) -> dict[int, Float[np.ndarray, "m t"]]:
    """Return the mean labels of neighbours for each of `ks`, weighted as in `accuracies`.

    The neighbours of a label are those of the training examples in which the label is not NaN.
    """
    means = {k: np.empty((len(test), train_labels.shape[1])) for k in ks}
    patterns, groups = np.unique(~np.isnan(train_labels), axis=1, return_inverse=True)
    for group, known in enumerate(patterns.T):  # labels that are known of the same examples
        columns = np.flatnonzero(groups.ravel() == group)
        similarity, index = neighbours.nearest(train[known], test, min(max(ks), int(known.sum())))
        weights = np.exp(similarity.astype(np.float64) / temperature)
        values = train_labels[known][:, columns][index]  # [m k columns]
        for k in ks:
            w = weights[:, :k, None]
            means[k][:, columns] = (w * values[:, :k]).sum(1) / w.sum(1)
    return means
