"""An index finds the same examples however it was made, and refuses what it cannot hold."""

import dataclasses
import sys

import jax
import numpy as np
import pytest
import tiny_models
from PIL import Image

from mae_jax.applications import retrieval
from mae_jax.applications.retrieval import choice, copies, thumbnails, whitening
from mae_jax.applications.retrieval.reader import some
from mae_jax.applications.retrieval.whitening import Method
from mae_jax.data import sources
from mae_jax.data.bad_examples import Unreadable
from mae_jax.distributed import device_mesh, partitioning
from mae_jax.evaluators import loaded_model
from mae_jax.evaluators.features import Extractor
from mae_jax.evaluators.held_out import EvalTransform

SHOWN = dict(size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3, center_crop=1.0)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    tiny_models.export(path, *tiny_models.MODELS["autoencoder"])
    return loaded_model.of(str(path), **SHOWN)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of ten pictures of squares, and a file that is no picture."""
    place, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(20):
        file = place / "ab"[i % 2] / f"{i:02}.png"
        file.parent.mkdir(exist_ok=True)
        squares = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(squares.repeat(4, 0).repeat(4, 1)).save(file)
    (place / "b" / "bad.png").write_bytes(b"not a picture")
    return place


@pytest.fixture(scope="module")
def source(folder):
    return sources.open_source(f"folder:{folder}", "all")


@pytest.fixture(scope="module")
def index(loaded, source):
    return retrieval.Index.build(loaded, source, batch_size=8)


def equal(a, b):
    assert a.names == b.names and a.labels.names == b.labels.names
    for name in ("vectors", "thumbnails"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    np.testing.assert_array_equal(a.labels.values, b.labels.values)


def test_an_index_that_was_changed_is_a_fresh_one(loaded, source, index):
    assert len(index) == 20 and "b/bad.png" not in index.rows.names
    fitted, feature = index.whitening, index.reader.feature
    grown = retrieval.Index.build(loaded, some(source, np.arange(6)), feature, fitted, batch_size=8)
    assert grown.rows.labels.names == ("a", "b")
    grown.search(index.rows.vectors, 1, approximate=True)
    grown.search(index.rows.vectors, 1)  # the gallery is made again after a change
    assert grown.add(some(source, np.arange(6, 21))) == 14
    equal(grown.rows, index.rows)
    approximate = grown.search(index.rows.vectors, 5, approximate=True)  # makes a graph
    np.testing.assert_array_equal(approximate.indices, index.search(index.rows.vectors, 5).indices)
    grown.remove(["a/02.png", "b/01.png"])
    kept = [i for i in range(21) if source.name(i) not in ("a/02.png", "b/01.png")]
    fresh = retrieval.Index.build(
        loaded, some(source, np.array(kept)), feature, fitted, batch_size=8
    )
    equal(grown.rows, fresh.rows)
    found, expected = (x.search(index.rows.vectors, 5) for x in (grown, fresh))
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.similarities, expected.similarities)
    approximate = grown.search(index.rows.vectors, 5, approximate=True)
    np.testing.assert_array_equal(approximate.indices, found.indices)
    grown.remove(grown.rows.names)
    assert len(grown) == 0 and len(grown.graph) == 0


def test_a_search_finds_pictures_and_leaves_out_the_query(folder, index):
    paths = [str(folder / name) for name in index.rows.names[:3]]
    found = index.search(paths, 4)
    assert [row[0] for row in found.names] == [*index.rows.names[:3]]
    np.testing.assert_allclose(found.similarities[:, 0], 1, atol=1e-6)
    exact = index.rows.vectors[:3] @ index.rows.vectors.T
    order = np.argsort(-exact, axis=1, kind="stable")
    np.testing.assert_array_equal(found.indices, order[:, :4])
    others = index.search(index.rows.vectors[:3], 4, own=index.rows.names[:3])
    np.testing.assert_array_equal(others.indices, order[:, 1:5])
    own = [index.rows.names[0], None, "unknown"]
    found = index.search(index.rows.vectors[:3], 20, own)
    np.testing.assert_array_equal(found.indices[1:], order[1:])
    np.testing.assert_array_equal(found.indices[0], [*order[0, 1:], -1])
    assert found.names[0][-1] is None and np.isnan(found.similarities[0, -1])


def test_devices_and_batches_change_nothing(loaded, source, index):
    mesh = device_mesh.make_mesh(devices=jax.devices()[:1])  # in place of four
    params = jax.device_put(loaded.params, partitioning.replicated(mesh))
    other = loaded._replace(mesh=mesh, params=params)
    other = retrieval.Index.build(other, source, None, index.whitening, batch_size=20)
    np.testing.assert_allclose(other.rows.vectors, index.rows.vectors, atol=1e-5)
    np.testing.assert_array_equal(other.rows.thumbnails, index.rows.thumbnails)
    found, expected = (x.search(index.rows.vectors[:7], 5) for x in (other, index))
    assert found.names == expected.names
    np.testing.assert_allclose(found.similarities, expected.similarities, atol=1e-5)


def test_a_saved_index_is_the_same(loaded, source, tmp_path):
    few = some(source, np.arange(8))
    index = retrieval.Index.build(loaded, few, dtype="float16", batch_size=8)
    index.search(index.rows.vectors, 3, approximate=True)  # makes the graph
    index.save(str(tmp_path / "i"))
    found = retrieval.Index.load(str(tmp_path / "i"))
    assert found.rows.vectors.dtype == np.float16
    equal(found.rows, index.rows)
    assert found.reader.feature == index.reader.feature and found.about == index.about
    expected = index.search(few, 3)
    for approximate in (False, True):
        neighbours = found.search(few, 3, approximate=approximate)
        np.testing.assert_array_equal(neighbours.indices, expected.indices)
        np.testing.assert_allclose(neighbours.similarities, expected.similarities, atol=2e-3)
    with pytest.raises(ValueError, match="--overwrite"):
        index.save(str(tmp_path / "i"))


def test_mistakes_are_sentences(loaded, source, index, folder, monkeypatch):
    with pytest.raises(ValueError, match="no example 'c.png'"):
        index.remove(["a/00.png", "c.png"])
    assert len(index) == 20
    with pytest.raises(ValueError, match=r"has 2 of these 2 examples already, such as 'a/00.png'"):
        index.add(some(source, np.arange(2)))
    with pytest.raises(ValueError, match="2 examples are named 'x'"):
        retrieval.Index.build(loaded, ["x", "x"])
    with pytest.raises(Unreadable, match="bad.png"):
        index.search([str(folder / "a" / "00.png"), str(folder / "b" / "bad.png")])
    for approximate in (False, True):
        with pytest.raises(ValueError, match=r"queries of shape \(1, 3\)"):
            index.search(np.ones((1, 3)), approximate=approximate)
    with pytest.raises(ValueError, match="'a/00.png' is one name"):
        index.remove("a/00.png")
    with pytest.raises(ValueError, match="inputs of type str are no list"):
        index.search(str(folder / "a" / "00.png"))
    with pytest.raises(ValueError, match="k = 0 must be at least 1"):
        index.search(index.rows.vectors, 0)
    with pytest.raises(ValueError, match="dtype = 'int8' is none of float32, float16"):
        retrieval.Index.build(loaded, source, dtype="int8")
    numbers = sources.Examples(1, lambda i: source[i] | {"label": np.ones(2, np.float32)}, ())
    with pytest.raises(ValueError, match="the labels do not fit"):
        index.add(numbers)
    empty = dataclasses.replace(index, rows=index.rows.take([]))
    with pytest.raises(ValueError, match="the index is empty"):
        empty.search(index.rows.vectors)
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    with pytest.raises(ImportError, match=r"pip install 'mae_jax\[retrieval\]'"):
        dataclasses.replace(index, graph=None).search(index.rows.vectors, approximate=True)


def test_classes_are_joined_by_their_names(loaded, source, index):
    c = sources.Examples(1, lambda i: source[0] | {"label": 0}, ("c",), names=["c/1"])
    b = sources.Examples(1, lambda i: source[1] | {"label": 0}, ("b",), names=["b/new"])
    unknown = sources.Examples(1, lambda i: source[2] | {"label": -1}, (), names=["?"])
    grown = dataclasses.replace(index)
    for more in (c, b, unknown):
        grown.add(more)
    assert grown.rows.labels.names == ("a", "b", "c")
    assert grown.rows.labels.values[-3:].tolist() == [2, 1, -1]
    assert grown.rows.labels.texts()[-4:] == ["b", "c", "b", None]


def test_an_index_knows_the_data_that_it_holds(index, folder, monkeypatch):
    made = dataclasses.replace(index, about={"data": [[f"folder:{folder}", "train"]]})
    monkeypatch.chdir(folder.parent)
    for place in (str(folder), f"{folder}/", folder.name, f"./{folder.name}"):
        assert made.holds(f"folder:{place}", "train") and made.holds(f"folder:{place}", "all")
        assert not made.holds(f"folder:{place}", "test")
    assert not made.holds(f"folder:{folder / 'a'}", "train")


def test_paths_are_inputs(index, folder):
    file = folder / "a" / "00.png"
    assert index.search([file], 1).names == index.search([str(file)], 1).names == [["a/00.png"]]


def test_a_whitening_of_few_examples_is_told(caplog):
    x = np.random.default_rng(0).normal(size=(9, 8)).astype(np.float32)
    whitening.fit(x, Method("pca"))
    assert not caplog.messages
    whitening.fit(x[:8], Method("pca"))
    assert "8 examples are few" in caplog.text


@pytest.mark.parametrize("components", [0, 5])
def test_a_whitened_gallery_has_the_unit_covariance(components):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(500, 12)) @ rng.normal(size=(12, 12)) + 3).astype(np.float32)
    fitted = whitening.fit(x, Method("pca", components, shrinkage=0))
    y = fitted(x, unit=False)
    np.testing.assert_allclose(np.cov(y.T, bias=True), np.eye(components or 12), atol=1e-3)
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-3)
    unit = fitted(x)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(fitted(x[7:9]), unit[7:9])
    variances = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
    kept = np.linalg.norm(fitted.matrix, axis=0) ** -2  # the largest variances come first
    np.testing.assert_allclose(kept, variances[: components or 12], rtol=1e-4)


def test_other_methods():
    x = np.random.default_rng(0).normal(2, 5, (50, 4)).astype(np.float32)
    y = whitening.fit(x, Method("standardize"))(x, unit=False)
    np.testing.assert_allclose(y, (x - x.mean(0)) / x.std(0), atol=1e-5)
    np.testing.assert_array_equal(whitening.fit(x, Method("none"))(x, unit=False), x)
    shrunk = whitening.fit(x, Method())(x, unit=False).var(0)
    assert (abs(shrunk - 1) < 0.5).all() and np.ptp(shrunk) > 0.01  # by Ledoit and Wolf
    with pytest.raises(ValueError, match="'zca' is none of none, standardize, pca"):
        whitening.fit(x, Method("zca"))
    with pytest.raises(ValueError, match="components = 5 are more than the 4"):
        whitening.fit(x, Method("pca", 5))
    with pytest.raises(ValueError, match="1 example"):
        whitening.fit(x[:1], Method())


def test_a_choice_counts_copies_that_are_nearest_to_their_originals(loaded, source):
    methods = [Method("standardize"), Method("none")]
    among = choice.candidates(loaded, dict(pooling="mean", norm=False), methods)
    assert [x.feature.block for x in among] == [0, 0, 1, 1]
    found = choice.by_copies(loaded, source, among, batch_size=20)
    extract = Extractor(loaded.model, [among[2].feature], loaded.transform, loaded.mesh)
    of = lambda source: extract(loaded.variables, source, 0, 20).features[among[2].feature]
    x, hits = of(source), []
    for kind in copies.COPIES:
        y = of(copies.of_source(some(source, np.delete(np.arange(21), 20)), kind, 3))
        a, b = ((z - x.mean(0)) / (x.std(0) + 1e-6) for z in (x, y))
        unit = lambda z: z / np.linalg.norm(z, axis=1, keepdims=True)
        hits += [*((unit(b) @ unit(a).T).argmax(1) == np.arange(20))]
    assert found.scores[among[2]] == pytest.approx(np.mean(hits))
    assert found.scores[found.best] == max(found.scores.values())
    assert "recall@1 of 100 copies among 20 examples" in found.table()


def test_a_choice_by_labels(loaded, source):
    among = choice.candidates(loaded, dict(pooling="mean", norm=True, block=0), [Method("none")])
    found = choice.by_labels(loaded, some(source, np.arange(20)), among, batch_size=20)
    assert 0 <= found.scores[found.best] < 0.9  # the colors say nothing of the classes
    with pytest.raises(ValueError, match="needs one of two or more classes"):
        choice.by_labels(loaded, sources.Examples(1, source.load, ()), among)


def test_thumbnails():
    def made(modality, inputs, side=8):
        data = dict(modality=modality, size=inputs.shape[1:-1])
        transform = EvalTransform(data, (0.5,) * inputs.shape[-1], (0.25,) * inputs.shape[-1])
        small = np.asarray(jax.jit(thumbnails.maker(transform, side))(inputs))
        return thumbnails.drawn(small, transform)

    picture = np.random.default_rng(0).random((2, 12, 16, 3)).astype(np.float32)
    pixels = made("image", (picture - 0.5) / 0.25, 16)
    np.testing.assert_array_equal(pixels, np.rint(255 * picture))
    assert made("image", picture).shape == (2, 6, 8, 3)
    volume = np.arange(6 * 8 * 8, dtype=np.float32).reshape(1, 6, 8, 8, 1)
    strip = made("volume", volume)
    assert strip.shape == (1, 8, 4 * 9, 1)  # four slices with gaps
    assert strip[0, 0, 0, 0] == 0 and strip[0, -1, -2, 0] == 255
    time = np.linspace(-1, 1, 8, dtype=np.float32)[None, :, None]
    curve = made("signal", np.concatenate([time, -time], -1))
    assert curve.shape == (1, 8, 8, 1) and (curve[0].min(0) == 0).all()
    with pytest.raises(ValueError, match="texts have no thumbnails"):
        made("text", np.zeros((1, 8, 1)))
