"""A classifier's own metrics: each example counts once, and the kind of the labels must fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from mae_jax import evaluators
from mae_jax.data import sources
from mae_jax.data.modalities import transforms
from mae_jax.distributed import device_mesh
from mae_jax.evaluators import classification

SECTION = dict(type="classification", source="same", split="test", examples=30, batch_size=5)


@pytest.mark.parametrize("batch_size, devices", [(5, 4), (64, 1)])
def test_every_example_counts_once(classifier, context, batch_size, devices):
    """Accuracy and loss by hand, one picture at a time."""
    model, variables = classifier
    mesh = device_mesh.make_mesh(devices, devices=jax.devices()[:devices])
    given = context(model, mesh=mesh)
    section = SECTION | dict(batch_size=batch_size)
    (entry,) = evaluators.build({"classification": section}, given)
    found = entry.evaluator.predict(variables)
    assert len(found.labels) == 30
    source, transform = (
        sources.open_source("synthetic", "test"),
        transforms.eval_transform(given.data),
    )
    examples = [transform(source[int(i)]) for i in sources.fixed_choice(len(source), 30)]
    images = jnp.stack([jnp.asarray(example["image"]) for example in examples])
    logits = np.asarray(jax.jit(model.apply)(variables, given.transform.normalize(images)))
    labels = np.array([example["label"] for example in examples])
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_array_equal(found.probabilities.argmax(-1), logits.argmax(-1))
    log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = -log[np.arange(30), labels]
    np.testing.assert_allclose(found.losses, losses, rtol=1e-4)
    metrics = entry.evaluate(variables).metrics
    right = (logits.argmax(-1) == labels).mean()
    expected = {"test_loss": losses.mean(), "test_accuracy": right}
    predicted = logits.argmax(-1)
    expected["test_balanced_accuracy"] = balanced_accuracy_score(labels, predicted)
    assert metrics == pytest.approx(expected, rel=1e-4)


def test_scores_of_each_class_by_hand():
    labels, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 0, 2])
    found = classification.summary(labels, np.eye(4)[predicted], np.ones(6), "abcd")
    rows = list(found.details["classes"].values())
    assert rows[0] == pytest.approx(dict(precision=2 / 3, recall=2 / 3, f1=2 / 3, support=3))
    assert rows[1] == pytest.approx(dict(precision=1 / 2, recall=1 / 2, f1=1 / 2, support=2))
    assert rows[3] == dict(precision=0, recall=0, f1=0, support=0)
    assert found.metrics["test_accuracy"] == pytest.approx(4 / 6)
    assert found.metrics["recall"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)  # of those there are
    assert "accuracy 0.6667 (4 of 6)" in found.text


@pytest.mark.parametrize("kind", ["softmax", "binary"])
def test_confident_views_have_a_finite_loss(kind, classifier, context, monkeypatch):
    """Of probabilities that float32 calls 1."""
    logits = np.array([[[90.0, -90.0], [40.0, -3.0]]])
    (entry,) = evaluators.build({"classification": SECTION}, context(classifier[0]))
    evaluator = entry.evaluator
    evaluator.model = type(
        "Fixed", (), {"classes": 2, "apply": lambda self, v, x: jnp.asarray(x[:, 0, 0])}
    )()
    evaluator.loss = kind
    evaluator.transform = evaluator.transform._replace(
        data=dict(size=(1, 1)), mean=(0.0,), std=(1.0,)
    )
    label = np.array([[1, 0]]) if kind == "binary" else np.array([0])
    batch = {"image": logits[:, :, None, None], "label": label, "valid": np.array([True])}
    monkeypatch.setattr(evaluator, "batches", lambda: [batch])
    found = evaluator.predict({})
    p = (1 / (1 + np.exp(-logits))).mean(1)[0]
    assert np.isfinite(found.losses).all()
    expected = -np.log1p(-p[1]) / 2 if kind == "binary" else 0.0
    np.testing.assert_allclose(found.losses, [expected], rtol=1e-3, atol=1e-6)


def test_other_classes_and_labels_are_refused(classifier, context):
    model, _ = classifier
    build = lambda source, **changes: evaluators.build(
        {"classification": SECTION | dict(source=source)}, context(model, **changes)
    )
    with pytest.raises(ValueError, match="tells 4 classes apart, but 'photos' has 10"):
        build("photos")
    with pytest.raises(ValueError, match="have different classes: a, disc"):
        build("synthetic", classes=["a", "ring", "square", "triangle"])
    with pytest.raises(ValueError, match="the same names in another order"):
        build("synthetic", classes=["ring", "disc", "square", "triangle"])
    with pytest.raises(ValueError, match="loss = 'binary', but 'synthetic' has one label"):
        build("synthetic", loss="binary")
