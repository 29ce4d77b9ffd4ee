import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from mae_jax.evaluators import knn, linear_probe


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return x[:1000], y[:1000], x[1000:], y[1000:]


@pytest.mark.parametrize("k", [1, 20])
def test_knn_is_scikit_learns(digits, k):
    train, train_y, test, test_y = digits
    weigh = lambda distance: np.exp((1 - distance) / 0.07)
    oracle = KNeighborsClassifier(k, metric="cosine", weights=weigh).fit(train, train_y)
    assert knn.knn(*digits, ks=(k, 7))[k] == pytest.approx(oracle.score(test, test_y), abs=1e-3)


def test_more_neighbours_than_examples():
    x, y = np.eye(3), np.arange(3)
    assert knn.knn(x, y, x, y) == {20: 1.0}


def test_linear_learns_what_is_there_and_not_what_is_not(digits):
    train, train_y, test, test_y = digits
    train, test = knn.standardize(train, test)
    assert linear_probe.linear(train, train_y, test, test_y) > 0.88
    noise = np.random.default_rng(0).permutation(train_y)
    assert linear_probe.linear(train, noise, test, test_y) < 0.3


def test_standardize():
    train, other = np.random.default_rng(0).normal(3, 2, (2, 50, 4))
    a, b = knn.standardize(train, other)
    np.testing.assert_allclose(a.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(a.std(0), 1, rtol=1e-4)
    np.testing.assert_allclose(b * train.std(0) + train.mean(0), other, rtol=1e-4)
