"""Each example is predicted once, whatever the batch size and the devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.config import sections
from mae_jax.data import sources
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.modalities import transforms
from mae_jax.distributed import device_mesh
from mae_jax.evaluators import example_columns, predictions

KIND = predictions.Classes("abcd", "softmax")
BAD = 6  # an example that cannot be read


def section(**changes):
    return sections.Classification(
        type="classification", **dict(source="same", split="test") | changes
    )


def load(i):
    if i == BAD:
        raise Unreadable("it is broken")
    return sources.open_source("synthetic", "test")[i] | ({"label": -1} if i == 2 else {})


@pytest.fixture
def some():
    """The first 11 generated pictures, of which one cannot be read and one has no label."""
    classes = sources.open_source("synthetic", "test").classes
    return sources.Examples(11, load, classes, names=[f"{i}.png" for i in range(11)])


@pytest.mark.parametrize("batch_size, shape", [(3, (4, 1)), (64, (1, 1)), (5, (1, 2, 2))])
def test_every_example_once_in_the_order_of_the_source(
    classifier, context, some, batch_size, shape, monkeypatch
):
    model, variables = classifier
    mesh = device_mesh.make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])
    given = context(model, mesh=mesh)
    monkeypatch.setattr(given, "open", lambda part: some)
    found = predictions.Predictor(section(batch_size=batch_size), given, KIND)
    found = found.predict(variables)
    np.testing.assert_array_equal(found.index, np.arange(11))
    assert found.labels == [-1 if i in (2, BAD) else i % 4 for i in range(11)]
    assert found.notes == [""] * BAD + ["cannot read '6.png': it is broken"] + [""] * 4
    read = [i for i in range(11) if i != BAD]
    transform = transforms.eval_transform(given.data)
    images = jnp.stack([jnp.asarray(transform(some[i])["image"]) for i in read])
    logits = jax.jit(model.apply)(variables, given.transform.normalize(images))
    expected = jax.nn.softmax(logits)
    np.testing.assert_allclose(found.outputs[read], expected, rtol=1e-4)
    assert np.isnan(found.outputs[BAD]).all()


def test_some_examples_are_those_of_an_evaluation(classifier, context):
    found = predictions.Predictor(section(examples=7), context(classifier[0]), KIND)
    found = found.predict(classifier[1])
    expected = sources.fixed_choice(len(sources.open_source("synthetic", "test")), 7)
    np.testing.assert_array_equal(found.index, expected)
    assert found.labels == [i % 4 for i in expected]


def test_what_is_not_finite_is_no_prediction(classifier, context):
    model, variables = classifier
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), variables)
    predictor = predictions.Predictor(section(examples=7), context(model), KIND)
    with pytest.raises(ValueError, match="no example has a prediction; .* are not finite"):
        predictor.predict(broken)


def columns(names, loss, labels, classes=("cat", "dog"), files=("a", "b", "c")):
    nan = np.nan
    probabilities = np.array([[0.75, 0.5625], [0.25, 0.375], [nan, nan]], np.float32)
    found = predictions.Predictions(np.arange(3), labels, probabilities, ["", "", "broken"])
    source = sources.Examples(3, load, classes, "title", names=files)
    table = predictions.columns_of(found, source, predictions.Classes(names, loss))
    return {k: list(x) if k[:2] != "p_" else x.tolist()[:2] for k, x in table.items()}


def test_columns_of_classes_that_exclude_each_other():
    table = columns(["cat", "dog"], "softmax", [1, 0, -1])
    assert list(table) == ["name", "class", "label", "p_cat", "p_dog", "note"]
    assert table["class"] == ["cat", "dog", None] and table["label"] == ["dog", "cat", None]
    assert table["p_cat"] == [0.75, 0.25] and table["p_dog"] == [0.5625, 0.375]
    assert table["name"] == ["a", "b", "c"] and table["note"] == [None, None, "broken"]


def test_columns_of_several_classes():
    labels = [np.array([1, 1]), np.array([0, 1]), -1]
    table = columns(["cat", "dog"], "binary", labels)
    assert table["class"] == ["cat;dog", "", None] and table["label"] == ["cat;dog", "dog", None]
    assert columns([0, 1], "binary", [-1] * 3)["class"] == ["0;1", "", None]


def test_columns_without_names_or_labels():
    table = columns([0, 1], "softmax", [-1] * 3, classes=(), files=())
    assert list(table) == ["name", "class", "p_0", "p_1", "note"]
    assert table["class"] == [0, 1, None] and table["name"] == [0, 1, 2]
    assert columns([0, 1], "softmax", [7, 5, -1], ())["label"] == [7, 5, None]
    assert columns([0, 1], "softmax", [0] * 3, files=("\udcff",) * 3)["name"][0] == r"\udcff"


def test_classes_of_one_name_stay_apart():
    assert example_columns.distinct(["crane", "cat", "crane"]) == ["crane (0)", "cat", "crane (2)"]
