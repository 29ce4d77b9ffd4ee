"""The sweep scores every feature, on training examples alone."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from mae_jax import evaluators
from mae_jax.evaluators.features import Extractor, Feature

TRAIN = dict(source="same", split="train")


def test_its_scores_are_scikit_learns_on_a_fifth(autoencoder, context):
    model, variables = autoencoder
    section = dict(type="sweep", train=TRAIN, examples=0, batch_size=32, seed=3)
    given = context(model)
    (entry,) = evaluators.build({"sweep": section}, given)
    result = entry.evaluate(variables)
    found = {tuple(row.values())[:4]: row["knn_train"] for row in result.details["sweep"]}
    assert len(found) == 2 * 3 * 2 * 2  # blocks, poolings, norms, standardised or not
    assert result.metrics["knn_train"] == max(found.values())
    chosen = tuple(result.details["chosen"].values())
    assert found[chosen] == max(found.values()) and "* chosen" in result.text

    feature = Feature(0, "cls", False)
    extract = Extractor(model, [feature], given.transform, given.mesh)
    table = extract(variables, given.open(TRAIN), 0, 32)
    x, y = table.features[feature], table.labels
    held, kept = np.split(np.random.default_rng(3).permutation(64), [12])
    weigh = lambda distance: np.exp((1 - distance) / 0.07)
    oracle = KNeighborsClassifier(20, metric="cosine", weights=weigh).fit(x[kept], y[kept])
    assert found[0, "cls", False, False] == pytest.approx(oracle.score(x[held], y[held]), abs=0.09)
