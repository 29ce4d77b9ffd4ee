"""Features are what they say, and each is extracted once."""

import jax
import numpy as np
import pytest
from PIL import Image

from mae_jax import evaluators
from mae_jax.data import sources
from mae_jax.data.modalities import transforms
from mae_jax.evaluators import features, held_out
from mae_jax.evaluators.features import Feature
from mae_jax.models import layers

TRAIN, TEST = (dict(source="same", split=split) for split in ("train", "test"))
SMALL = dict(modality="image", size=(32, 32), channels=3, repeats=1, center_crop=0.875, threads=2)


def sections(source="same", test="test", solver="auto", **options):
    part = lambda split: dict(source=source, split=split)
    shared = dict(train=part("train"), test=part(test), examples=0, batch_size=16) | options
    return dict(
        knn=dict(shared, type="knn", k=20), linear=dict(shared, type="linear_probe", solver=solver)
    )


def test_features_of_each_kind(autoencoder, mesh):
    """Blocks, poolings and norms by hand."""
    model, variables = autoencoder
    wanted = [Feature(0, "cls", False), Feature(1, "mean", False), Feature(0, "both", True)]
    transform = held_out.EvalTransform(SMALL, (0.5,) * 3, (0.25,) * 3)
    source = sources.open_source("synthetic", "test")
    table = features.Extractor(model, wanted, transform, mesh)(variables, source, 8, 8)
    batch = next(held_out.batches(source, transform, 8, 8, mesh))
    inputs = transform.normalize(jax.device_get(batch["image"]))
    _, (_, *blocks) = model.apply(variables, inputs, method="encode")
    norm = layers.Norm(1e-6)
    normed = norm.apply({"params": variables["params"]["encoder"]["norm"]}, blocks[0])
    both = np.concatenate([normed[:, 0], normed[:, 1:].mean(1)], axis=-1)
    expected = [blocks[0][:, 0], blocks[1][:, 1:].mean(1), both]
    for feature, x in zip(wanted, expected, strict=True):
        np.testing.assert_allclose(table.features[feature], x, atol=1e-4)


def test_accuracies_of_pixels_are_scikit_learns(autoencoder, context):
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler

    model, variables = autoencoder
    made = evaluators.build(sections("photos", examples=90, batch_size=64), context(model))
    result = evaluators.report(made, variables, variables)
    assert 0 <= result.metrics["linear_raw"] <= 1
    for name in ("knn", "linear"):
        metrics = result.metrics
        assert (
            metrics[name]
            == metrics[f"{name}_untrained"]
            == metrics[f"{name}_trained"]
            != metrics[f"{name}_raw"]
        )

    transform = transforms.eval_transform(SMALL)
    parts = []
    for split in ("train", "test"):
        source = sources.open_source("photos", split)
        rows = [transform(source[int(i)]) for i in sources.fixed_choice(len(source), 90)]
        pixels = np.stack([row["image"].ravel() / 255 for row in rows])
        parts.append([pixels, [row["label"] for row in rows]])
    (x, y), (test_x, test_y) = parts
    scaler = StandardScaler().fit(x)
    weigh = lambda distance: np.exp((1 - distance) / 0.07)
    oracle = KNeighborsClassifier(20, metric="cosine", weights=weigh).fit(scaler.transform(x), y)
    expected = oracle.score(scaler.transform(test_x), test_y)
    assert result.metrics["knn_raw"] == pytest.approx(expected, abs=0.02)


def test_evaluators_of_a_list_share_each_feature(autoencoder, context, monkeypatch):
    """Of each network and split one pass, for kNN and the linear probe together."""
    model, variables = autoencoder
    passes = []
    extract = features.Extractor.__call__
    counted = lambda self, v, source, *rest: (
        passes.append(len(source)) or extract(self, v, source, *rest)
    )
    monkeypatch.setattr(features.Extractor, "__call__", counted)
    made = evaluators.build(sections(), context(model))
    results = [entry.evaluate(variables) for entry in made]
    assert passes == [64, 32]
    assert [list(result.metrics) for result in results] == [["knn"], ["linear"]]
    other = jax.tree.map(lambda x: -x, variables)
    again = [entry.evaluate(other) for entry in made]  # these are other features
    assert passes == [64, 32] * 2 and results[0].metrics != again[0].metrics
    passes.clear()
    evaluators.report(made, variables, other)
    assert len(passes) <= 6
    del other, again
    gone = made[0].evaluator.context
    gone.table(None, TEST, Feature(), dict(examples=0, batch_size=16))
    alive = [all(ref() is not None for ref in refs) for refs, _ in gone._tables.values()]
    assert all(alive)  # features of networks that are gone are not kept


def test_as_it_is_means_as_it_is(autoencoder, context):
    """Without standardising, kNN and the linear probe both see the features themselves."""
    model, variables = autoencoder
    made = evaluators.build(sections(standardize=False, solver="sklearn"), context(model))
    x, _, test_x, _ = made[1].evaluator.data(variables)
    assert abs(x.mean(0)).max() > 1e-3
    section = dict(examples=0, batch_size=16)
    raw = made[1].evaluator.context.table(variables, TRAIN, Feature(1), section)
    np.testing.assert_array_equal(x, raw.features[Feature(1)])
    result = evaluators.report(made, variables)
    assert "as it is" in result.text and "standardised" not in result.text
    made = evaluators.build(sections(standardize=False, solver="lars"), context(model))
    assert "linear (lars, standardised)" in made[1].evaluator.scorer.titles[0]


def test_what_they_need(autoencoder, context, tmp_path):
    model, _ = autoencoder
    for i in range(4):
        Image.new("RGB", (9, 9)).save(tmp_path / f"{i}.png")
    folder = f"folder:{tmp_path}"
    with pytest.raises(ValueError, match="evaluators.knn and evaluators.linear: .*must have two"):
        evaluators.build(sections(folder, "train"), context(model))
    data = dict(context(model).data, train=dict(source=folder, split="train"))
    assert evaluators.build(sections("same", "train"), context(model, data=data)) == []
    with pytest.raises(ValueError, match="block = 7 is none of 2 blocks"):
        evaluators.build(sections(block=7), context(model))


def test_standardize():
    train, other = np.random.default_rng(0).normal(3, 2, (2, 50, 4))
    a, b = features.standardize(train, other)
    np.testing.assert_allclose(a.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(a.std(0), 1, rtol=1e-4)
    np.testing.assert_allclose(b * train.std(0) + train.mean(0), other, rtol=1e-4)
