"""Linear probes learn what is there, and say when they did not finish."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from mae_jax import evaluators
from mae_jax.evaluators import features, linear_probe


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    train, test = features.standardize(x[:1000], x[1000:])
    return train, y[:1000], test, y[1000:]


def test_logistic_regression_learns_what_is_there_and_not_what_is_not(digits):
    train, train_y, test, test_y = digits
    exact = LogisticRegression(max_iter=5000, tol=1e-6).fit(train, train_y).score(test, test_y)
    accuracy, converged = linear_probe.logistic_regression(*digits)
    assert converged and accuracy == pytest.approx(exact, abs=4e-3)
    noise = np.random.default_rng(0).permutation(train_y)
    assert linear_probe.logistic_regression(train, noise, test, test_y, 60)[0] < 0.3


def test_a_probe_that_did_not_converge_says_so(digits, autoencoder, context, monkeypatch, caplog):
    assert not linear_probe.logistic_regression(*digits, iterations=3)[1]
    monkeypatch.setattr(linear_probe, "ITERATIONS", 2)
    model, variables = autoencoder
    part = lambda split: dict(source="same", split=split)
    section = dict(type="linear_probe", train=part("train"), test=part("test"))
    section |= dict(examples=0, batch_size=32, solver="sklearn")
    (entry,) = evaluators.build({"linear": section}, context(model))
    assert "did not converge in 2 iterations" in entry.report(variables).text
    assert "did not converge in 2 iterations" in caplog.text
    monkeypatch.setattr(linear_probe, "ITERATIONS", 1000)
    assert "converge" not in entry.report(variables).text


def test_lars_learns_what_is_there_and_not_what_is_not(digits):
    train, train_y, test, test_y = digits
    assert linear_probe.lars_probe(*digits) > 0.85
    noise = np.random.default_rng(0).permutation(train_y)
    assert linear_probe.lars_probe(train, noise, test, test_y, epochs=20) < 0.3


def test_lars_standardises_as_the_recipe_does(digits):
    train, train_y, test, test_y = digits
    stretched = np.exp(np.linspace(-5, 5, train.shape[1]))
    moved = [x * stretched + 3 for x in (train, test)]
    found = linear_probe.lars_probe(moved[0], train_y, moved[1], test_y, epochs=9)
    expected = linear_probe.lars_probe(*digits, epochs=9)
    assert found == pytest.approx(expected, abs=0.01)
