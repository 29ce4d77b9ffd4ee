"""Nearest neighbours are exact, whatever the blocks that they are searched in."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from mae_jax.evaluators import knn


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return x[:1000], y[:1000], x[1000:], y[1000:]


@pytest.mark.parametrize("k", [1, 20])
def test_it_is_scikit_learns(digits, k):
    train, train_y, test, test_y = digits
    weigh = lambda distance: np.exp((1 - distance) / 0.07)
    oracle = KNeighborsClassifier(k, metric="cosine", weights=weigh).fit(train, train_y)
    found = knn.accuracies(*digits, ks=(k, 7))[k]
    assert found == pytest.approx(oracle.score(test, test_y), abs=1e-3)


@pytest.mark.parametrize("keys, queries", [(2**16, 1024), (7, 5), (64, 11)])
def test_the_nearest_are_those_of_a_stable_sort(keys, queries, monkeypatch):
    """Of signs, whose similarities are exact and often equal: then the first example counts."""
    rng = np.random.default_rng(0)
    train, test = (rng.choice([-1.0, 1.0], (n, 4)) for n in (50, 23))
    train[3] = 0
    monkeypatch.setattr(knn, "KEYS", keys)
    monkeypatch.setattr(knn, "QUERIES", queries)
    exact = (test / 2) @ (train / 2).T
    order = np.argsort(-exact, axis=1, kind="stable")
    for k in (1, 9, 50):
        similarity, index = knn.nearest(train, test, k)
        np.testing.assert_array_equal(index, order[:, :k])
        np.testing.assert_array_equal(similarity, np.take_along_axis(exact, order, 1)[:, :k])


def test_more_neighbours_than_examples():
    x, y = np.eye(3), np.arange(3)
    assert knn.accuracies(x, y, x, y) == {20: 1.0}
