"""Scores of rankings, against scikit-learn's average precision and slow definitions."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import cosine_similarity, euclidean_distances

from mae_jax.evaluators import neighbours, ranking

SIMILARITIES = {"cosine": cosine_similarity, "euclidean": lambda a, b: -euclidean_distances(a, b)}


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(0)
    return rng.normal(size=(90, 5)).astype(np.float32), rng.integers(-1, 6, 90)


def slow_recall(similarity, relevant, k):
    """Whether a relevant one is in the first k, where equal ones come after irrelevant ones."""
    return bool(relevant[np.lexsort((relevant, -similarity))[:k]].any())


def expected(similarity, labels, query_labels, ks):
    precisions, recalls = [], []
    for row, label in zip(similarity, query_labels, strict=True):
        relevant = labels == label
        if label >= 0 and relevant.any():
            precisions.append(average_precision_score(relevant, row))
            recalls.append([slow_recall(row, relevant, k) for k in ks])
    return np.mean(precisions), dict(zip(ks, np.mean(recalls, 0), strict=True))


def check(scores, similarity, labels, query_labels):
    precision, recall = expected(similarity, labels, query_labels, scores.recall)
    assert scores.recall == pytest.approx(recall)
    assert scores.mean_average_precision == pytest.approx(precision)


@pytest.mark.parametrize("metric", SIMILARITIES)
def test_scores_of_queries(vectors, metric, monkeypatch):
    x, labels = vectors
    gallery, queries = neighbours.Gallery(x[:70], metric=metric), x[70:]
    scores = ranking.evaluate(gallery, labels[:70], queries, labels[70:], ks=(1, 3, 10))
    check(scores, SIMILARITIES[metric](queries, x[:70]), labels[:70], labels[70:])
    assert scores.left_out == (labels[70:] < 0).sum() > 0
    assert scores.queries + scores.left_out == 20
    monkeypatch.setattr(ranking, "MOST", 300)  # four queries at a time
    again = ranking.evaluate(gallery, labels[:70], queries, labels[70:], ks=(1, 3, 10))
    assert again.recall == scores.recall
    assert again.mean_average_precision == pytest.approx(scores.mean_average_precision)


def test_each_query_is_left_out(vectors):
    x, labels = vectors
    labels = np.append(labels, 9)  # of one example alone
    x = np.append(x, x[:1], axis=0)
    own = np.arange(len(x))
    gallery = neighbours.Gallery(x)
    scores = ranking.evaluate(gallery, labels, x, labels, own)
    similarity, rest = cosine_similarity(x), ~np.eye(len(x), dtype=bool)
    precisions = [
        average_precision_score((labels == label)[keep], row[keep])
        for row, label, keep in zip(similarity, labels, rest, strict=True)
        if label not in (-1, 9)
    ]
    assert scores.mean_average_precision == pytest.approx(np.mean(precisions), rel=1e-5)
    assert scores.left_out == (labels < 0).sum() + 1


def test_equal_similarities_count_as_the_last_of_them():
    hits = np.array([1, 0, 1, 0, 0], bool)
    similarity = np.array([3.0, 3, 1, 1, 0], np.float32)
    rank, precision = ranking.of_query(similarity, hits)
    assert rank == 2
    assert precision == pytest.approx((1 / 2 + 2 / 4) / 2)
    rank, precision = ranking.of_query(np.zeros(5, np.float32), hits)
    assert rank == 4 and precision == pytest.approx(2 / 5)


def test_coarse_vectors(vectors):
    """Vectors of signs have many equal similarities, as perceptual hashes have."""
    x, labels = np.sign(vectors[0][:, :4]) / 2, vectors[1]
    scores = ranking.evaluate(neighbours.Gallery(x[:60]), labels[:60], x[60:], labels[60:])
    check(scores, np.float32(x[60:] @ x[:60].T), labels[:60], labels[60:])


def test_no_relevant_vector(vectors):
    x, _ = vectors
    with pytest.raises(ValueError, match="none of 20 queries has a label"):
        ranking.evaluate(neighbours.Gallery(x[:70]), np.zeros(70, int), x[70:], np.ones(20, int))
