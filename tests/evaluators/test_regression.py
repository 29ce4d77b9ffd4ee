"""The figures of a regression are scikit-learn's, over the numbers that are known."""

import numpy as np
import pytest
from sklearn import metrics
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsRegressor

from mae_jax import evaluators
from mae_jax.data import sources
from mae_jax.evaluators import classification, knn, linear_probe, regression


@pytest.fixture(scope="module")
def data():
    """Features and two targets of both splits, which are partly unknown."""
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(120, 6)).astype(np.float32), rng.normal(size=(6, 2))
    y = (x @ weights * [1, 50] + rng.normal(size=(120, 2)) * [1, 20]).astype(np.float32)
    y[::7, 0] = np.nan
    y[3, 1] = np.nan
    return x[:80], y[:80], x[80:], y[80:]


def test_scores_are_scikit_learns(data):
    _, train, _, test = data
    predictions = test + np.random.default_rng(1).normal(size=test.shape) * [0.5, 30]
    predictions[np.isnan(predictions)] = 0
    result = regression.summary(test, predictions, ("a", "b"), np.nanmean(train, 0).tolist())
    for k, name in enumerate("ab"):
        known = ~np.isnan(test[:, k])
        pair = test[known, k], predictions[known, k]
        expected = dict(
            r2=metrics.r2_score(*pair),
            mae=metrics.mean_absolute_error(*pair),
            rmse=metrics.root_mean_squared_error(*pair),
            known=known.sum(),
        )
        constant = np.full(known.sum(), np.nanmean(train[:, k]))
        expected["baseline_mae"] = metrics.mean_absolute_error(pair[0], constant)
        expected["baseline_r2"] = metrics.r2_score(pair[0], constant)
        found = result.details["targets"][name]
        assert {n: found[n] for n in expected} == pytest.approx(expected, rel=1e-4)
    means = [result.details["targets"][name]["r2"] for name in "ab"]
    assert result.metrics["test_r2"] == pytest.approx(np.mean(means))
    assert result.metrics["baseline_r2"] <= 0 < result.metrics["test_r2"]


def test_what_is_undefined_is_left_out():
    """R2 of equal numbers, and all scores of a target that is nowhere known."""
    labels = np.array([[2.0, np.nan, 1.0], [2.0, np.nan, 3.0]])
    result = regression.summary(labels, labels.copy() + 1, "abc", ())
    assert result.details["targets"]["a"] == dict(mae=1.0, rmse=1.0, known=2)
    assert result.details["targets"]["b"] == dict(known=0)
    assert result.metrics["test_mae"] == 1 and result.metrics["test_r2"] == 0.0
    assert "of mean" not in result.text


def test_a_ridge_probe_is_scikit_learns(data):
    x, y, test_x, _ = data
    found = linear_probe.ridge(x, y, test_x)
    order = np.random.default_rng(0).permutation(80)
    for k in range(2):
        known = order[~np.isnan(y[order, k])]
        fold = np.where(np.arange(len(known)) < len(known) // 5, 0, -1)  # -1: never held out
        options = dict(cv=PredefinedSplit(fold), scoring="neg_mean_squared_error")
        search = GridSearchCV(Ridge(), {"alpha": linear_probe.ALPHAS}, **options)
        search.fit(x[known].astype(float), y[known, k])
        np.testing.assert_allclose(found[:, k], search.predict(test_x), rtol=1e-3)


def test_a_ridge_probe_learns_what_is_there_and_not_what_is_not(data):
    x, y, test_x, test_y = data
    exact = LinearRegression().fit(x[y[:, 1] == y[:, 1]], y[y[:, 1] == y[:, 1], 1])
    known = ~np.isnan(test_y[:, 1])
    expected = exact.score(test_x[known], test_y[known, 1])
    scores = [
        regression.scores(test_y[:, 1], linear_probe.ridge(x, labels, test_x)[:, 1]).r2
        for labels in (y, np.random.default_rng(0).permutation(y))
    ]
    assert scores[0] == pytest.approx(expected, abs=0.05) and scores[1] < 0.2 < 0.6 < scores[0]


def test_neighbours_of_numbers_are_scikit_learns(data):
    x, y, test_x, _ = data
    found = knn.neighbour_means(x, y, test_x, ks=(3, 9))
    weigh = lambda distance: np.exp((1 - distance) / 0.07)
    for n in (3, 9):
        for k in range(2):
            known = ~np.isnan(y[:, k])
            oracle = KNeighborsRegressor(n, metric="cosine", weights=weigh)
            expected = oracle.fit(x[known], y[known, k]).predict(test_x)
            np.testing.assert_allclose(found[n][:, k], expected, rtol=1e-3, atol=1e-3)


def test_a_probe_of_several_classes_is_scikit_learns(data):
    """One logistic regression for each class; classes of no or all examples tell nothing."""
    x, y, test_x, test_y = data
    labels, test_labels = (np.nan_to_num(z) @ [[1, 1, 0], [0, 0.01, 0.02]] > 0 for z in (y, test_y))
    labels, test_labels = labels.astype(np.uint8), test_labels.astype(np.uint8)
    labels = np.c_[labels, np.zeros_like(labels[:, :1])]
    test_labels = np.c_[test_labels, np.zeros_like(test_labels[:, :1])]
    scores, converged = linear_probe.logistic_regressions(x, labels, test_x)
    oracle = OneVsRestClassifier(LogisticRegression(tol=1e-6)).fit(x, labels[:, :3])
    np.testing.assert_allclose(scores[:, :3], oracle.decision_function(test_x), atol=0.06)
    assert converged and not scores[:, 3].any()
    found = classification.mean_average_precision(test_labels, scores)
    expected = metrics.average_precision_score(test_labels[:, :3], scores[:, :3], average="macro")
    assert found == pytest.approx(expected) and found > 0.8
    section, context = dict(solver="lars", standardize=True), None
    by_lars, _ = linear_probe.ClassesScorer(section, context)(x, labels, test_x, test_labels)
    assert by_lars["linear_map"] == pytest.approx(found, abs=0.05)


@pytest.fixture
def sources_of(monkeypatch):
    """`sources_of(context, labels, classes, targets)` makes "same" a source of such labels."""

    def use(context, labels, classes=(), targets=()):
        pictures = sources.open_source("synthetic", "test")
        load = lambda i: {**pictures[i], "label": labels[i]}
        source = sources.Examples(len(labels), load, classes, labels=labels, targets=targets)
        monkeypatch.setattr(context, "open", lambda part: source)
        return context

    return use


PARTS = {name: dict(source="same", split=name) for name in ("train", "test")}


@pytest.mark.parametrize("kind", ["classes", "number"])
def test_each_kind_of_label_has_its_probes(autoencoder, context, sources_of, kind):
    model, variables = autoencoder
    rng = np.random.default_rng(0)
    labels, names = rng.normal(size=(32, 2)).astype(np.float32), {"targets": ("a", "b")}
    if kind == "classes":
        labels, names = (labels > 0).astype(np.uint8), {"classes": ("a", "b")}
    section = dict(type="knn", k=(1, 5), batch_size=32, **PARTS)
    probes = {"knn": section, "linear": dict(type="linear_probe", batch_size=32, **PARTS)}
    probes["sweep"] = dict(type="sweep", train=PARTS["train"], batch_size=32)
    made = evaluators.build(probes, sources_of(context(model), labels, **names))
    result = evaluators.report(made, variables)
    ends = {"classes": ("map",), "number": ("r2", "mae")}[kind]
    for end in ends:
        assert result.metrics[f"knn_1_{end}"] == pytest.approx(
            0.0 if end == "mae" else 1.0
        )  # itself
    expected = {f"{name}_{end}" for name in ("knn_1", "knn_5", "linear") for end in ends}
    assert expected <= result.metrics.keys() and "knn_train" in result.metrics
    assert {"classes": "mAP", "number": "R2 and MAE"}[kind] in result.text


def test_other_targets_are_refused(autoencoder, context):
    model, _ = autoencoder
    given = context(model)
    numbers = np.zeros((4, 1), np.float32)
    made = {
        name: sources.Examples(4, lambda i: {"label": numbers[i]}, (), labels=numbers, targets=(x,))
        for name, x in (("train", "age"), ("test", "weight"))
    }
    given.open = lambda part: made[part["split"]]
    with pytest.raises(ValueError, match="have different targets: age, weight"):
        evaluators.build({"knn": dict(type="knn", **PARTS)}, given)
    with pytest.raises(ValueError, match="the model predicts weight, but 'x' has the targets age"):
        regression.check_targets(made["train"], ("weight",), "x")
