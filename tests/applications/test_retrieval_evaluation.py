"""The evaluation of an index, by class and by copies, beside its baselines."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from mae_jax.applications import retrieval
from mae_jax.applications.retrieval import __main__ as command
from mae_jax.applications.retrieval import copies, evaluation, run_evaluate, search_speed
from mae_jax.applications.retrieval.reader import some
from mae_jax.data import sources
from mae_jax.evaluators import loaded_model, ranking
from mae_jax.evaluators.features import Extractor, Feature
from mae_jax.evaluators.neighbours import Gallery
from tests import tiny_models

COUNT = 25


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of three classes, and one that is alone in its class."""
    root, rng = tmp_path_factory.mktemp("data") / "pictures", np.random.default_rng(0)
    for i in range(COUNT):
        name = ["blue", "green", "red"][i % 3] if i < COUNT - 1 else "single"
        pixels = rng.integers(256, size=(5, 6, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize((24, 20), Image.Resampling.BICUBIC)
        (root / name).mkdir(parents=True, exist_ok=True)
        picture.save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def source(folder):
    return sources.open_source(f"folder:{folder}", "all")


@pytest.fixture(scope="module")
def index(tmp_path_factory, source):
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    tiny_models.export(path, *tiny_models.MODELS["autoencoder"])
    loaded = loaded_model.of(str(path), center_crop=1.0, threads=1)
    return retrieval.Index.build(loaded, source, side=0, batch_size=8)


@pytest.fixture(scope="module")
def by_class(index, source):
    return evaluation.evaluate(index, gallery=[source])


def test_each_example_is_left_out_by_class(index, by_class):
    x, labels = index.rows.vectors, index.rows.labels.values
    expected = ranking.evaluate(Gallery(x), labels, x, labels, np.arange(COUNT))
    assert by_class.metrics["map"] == pytest.approx(expected.mean_average_precision)
    assert by_class.metrics["recall_5"] == pytest.approx(expected.recall[5])
    assert by_class.metrics["queries"] == 24 and by_class.metrics["left_out"] == 1
    assert "1 others are left out, as nothing has their class" in by_class.text


def test_baselines_are_of_the_same_examples(index, source, by_class):
    model, params, transform, mesh, _ = index.reader.loaded
    last = Feature(model.depth - 1, "mean", True)
    table = Extractor(model, [last], transform, mesh)({"params": params}, source, 0, 8)
    x, labels = table.features[last], index.rows.labels.values
    expected = ranking.evaluate(Gallery(x), labels, x, labels, np.arange(COUNT))
    found = by_class.details["scores"]
    assert list(found) == list(evaluation.TITLES)
    assert found["naive"][""]["map"] == pytest.approx(expected.mean_average_precision, rel=1e-4)
    maps = {round(scores["all"]["map"], 6) for scores in found.values()}
    assert len(maps) == len(found)


def test_queries_of_other_data_have_the_classes_of_these_names(index, source, folder, tmp_path):
    for name in ("red", "green"):  # which are numbers 2 and 1 in the index, and 1 and 0 here
        shutil.copytree(folder / name, tmp_path / name)
    (tmp_path / "other").mkdir()
    shutil.copy(folder / "single" / "24.png", tmp_path / "other")
    queries = sources.open_source(f"folder:{tmp_path}", "all")
    result = evaluation.evaluate(index, [queries])
    labels, names = index.rows.labels.values, [name.split("/")[0] for name in source.names]
    asked = np.array([n in ("red", "green") for n in names])
    x = index.rows.vectors
    expected = ranking.evaluate(Gallery(x), labels, x[asked], labels[asked])
    assert result.metrics["map"] == pytest.approx(expected.mean_average_precision, rel=1e-4)
    assert result.metrics["left_out"] == 1 and list(result.details["scores"]) == ["index"]
    assert "no baselines" in result.text
    own = evaluation.evaluate(index, [some(source, np.arange(3, 9))], own=True)
    rows = np.arange(3, 9)
    expected = ranking.evaluate(Gallery(x), labels, x[rows], labels[rows], rows)
    assert own.metrics["map"] == pytest.approx(expected.mean_average_precision, rel=1e-4)


def test_copies_that_are_equal_or_tell_nothing(index, source, monkeypatch):
    empty = lambda picture, rng: Image.new("RGB", picture.size, "gray")
    kinds = {"same": lambda picture, rng: picture, "empty": empty}
    monkeypatch.setattr(copies, "COPIES", kinds)
    result = evaluation.evaluate(index, gallery=[source], by="copies")
    for name, scores in result.details["scores"].items():
        assert scores["same"]["recall_1"] == scores["same"]["map"] == 1
        assert scores["empty"]["recall_1"] <= 1 / COUNT, name
        assert scores["all"]["queries"] == 2 * COUNT
        assert scores["all"]["map"] == pytest.approx((1 + scores["empty"]["map"]) / 2)


def test_copies_of_pictures_that_the_index_does_not_hold(index, source, monkeypatch):
    monkeypatch.setattr(copies, "COPIES", {"flip": copies.flip})
    known = sources.Examples(6, source.load, source.classes, names=[*source.names[:4], "a", "b"])
    result = evaluation.evaluate(index, [known], by="copies")
    assert result.metrics["queries"] == 4 and result.metrics["left_out"] == 2


def test_examples_that_are_gone(index, source, caplog):
    part = sources.Examples(5, source.load, source.classes, names=source.names[:5])
    result = evaluation.evaluate(index, gallery=[part], by="class", examples=10)
    assert "20 of 25 examples of the index, such as" in caplog.text
    assert list(result.details["scores"]) == ["index"] and "no baselines" in result.text
    assert result.metrics["queries"] + result.metrics["left_out"] == 10


def test_mistakes(index, source):
    with pytest.raises(ValueError, match="'color' is none of class, copies"):
        evaluation.evaluate(index, by="color")
    with pytest.raises(ValueError, match="name those that are copied"):
        evaluation.evaluate(index, by="copies")
    with pytest.raises(ValueError, match="none of the classes of the index"):
        evaluation.evaluate(index, [sources.open_source("digits", "test")], examples=8)
    unlabelled = index.rows.labels._replace(names=())
    other = retrieval.Index(
        index.reader, index.whitening, index.rows._replace(labels=unlabelled), {}
    )
    with pytest.raises(ValueError, match="evaluate by copies"):
        evaluation.evaluate(other)


class Halfway:
    """A graph that finds every other one of the exact neighbours."""

    stored = np.zeros(100, np.uint8)

    def __init__(self, gallery):
        self.gallery = gallery

    def search(self, queries, k):
        similarity, index = self.gallery.search(queries, k)
        return similarity, np.where(np.arange(k) % 2, index, -1)


def test_search_speed():
    x = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    gallery = Gallery(x)
    found = search_speed.compare(x, None, gallery, Halfway(gallery)).metrics  # type: ignore
    assert found["usearch_recall_10"] == pytest.approx(0.5)  # and the query itself is not counted
    assert found["exact_bytes"] == 300 * 8 * 4 and found["usearch_bytes"] == 100
    found = search_speed.compare(x, x[:50] + 0.1, gallery, Halfway(gallery))  # type: ignore
    assert found.metrics["usearch_recall_10"] == pytest.approx(0.5)
    assert "50 queries of 300 vectors of 8 numbers" in found.text


def test_graph_of_usearch():
    pytest.importorskip("usearch")
    x = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    assert search_speed.compare(x).metrics["usearch_recall_10"] > 0.95


def test_command(index, folder, tmp_path, monkeypatch):
    def compare(*vectors):
        raise ImportError("there is no usearch")

    monkeypatch.setattr(search_speed, "compare", compare)
    index.about["data"] = [[f"folder:{folder}", "all"]]
    index.save(str(tmp_path / "index"))
    file = tmp_path / "found.json"
    options = command.parser().parse_args(
        ["evaluate", f"--index={tmp_path}/index", f"--json={file}"]
    )
    text = run_evaluate.run(options)
    found = json.loads(file.read_text())
    assert found["by"] == "class" and list(found["scores"]) == list(evaluation.TITLES)
    assert f"{found['map']:.3f}" in text and evaluation.TITLES["hash"] in text
    options.examples = -1
    with pytest.raises(ValueError, match="--examples=-1"):
        run_evaluate.run(options)
