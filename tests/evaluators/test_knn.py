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


@pytest.mark.parametrize("k", [3, 200])
def test_each_example_is_classified_by_the_others(digits, k):
    x, y = (part[:30] for part in digits[:2])
    x[7] = x[6]  # the same, so either may come first
    others = lambda i: np.delete(np.arange(30), i)
    one = lambda i: knn.accuracies(x[others(i)], y[others(i)], x[i : i + 1], y[i : i + 1], (k,))[k]
    assert knn.leave_one_out(x, y, k) == pytest.approx(np.mean([one(i) for i in range(30)]))


def test_more_neighbours_than_examples():
    x, y = np.eye(3), np.arange(3)
    assert knn.accuracies(x, y, x, y) == {20: 1.0}
