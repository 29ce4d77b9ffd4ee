"""The file of predictions: what `evaluate` measures, for data with and without labels."""

import csv
import sys

import numpy as np
import pytest
import tiny_models
from PIL import Image
from pyarrow import parquet

from mae_jax import evaluate, predict
from mae_jax.data import sources
from mae_jax.evaluators import checkpoint, predictions
from mae_jax.models import build
from mae_jax.output import columns

NAMES = ["a", "b", "c", "d", "e"]
STATISTICS = dict(mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3])


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A file of another project: it names neither its classes nor its loss."""
    params = tiny_models.random_params(tiny_models.model("classifier"))
    state = tiny_models.reference_state("classifier", params)
    return tiny_models.save(tmp_path_factory.mktemp("foreign") / "c.safetensors", state)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Six pictures without labels, and a file that is no picture."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(6):
        Image.new("RGB", (20, 20), (40 * i, 0, 250 * (i % 2))).save(folder / f"{i}.png")
    (folder / "3a.png").write_bytes(b"not a picture")
    return folder


def run(*arguments) -> str:
    return predictions.predict(predict.parser().parse_args([str(a) for a in arguments]))


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_accuracy_of_the_file_is_that_of_evaluate(tmp_path, caplog):
    """With the clips and crops of the run's first evaluator, which an exported file keeps."""
    classes = list(sources.open_source("pans", "test", "video").classes)
    data = dict(modality="video", stride=2, center_crop=0.9)
    views = {"classification": dict(clips=2, crops=3), "one_view": dict(clips=1, crops=1)}
    entries = {name: {"type": "classification"} | options for name, options in views.items()}
    fields, size = dict(patch=(2, 8, 8), width=24, depth=1, heads=3, classes=8), (4, 16, 16)
    model = tiny_models.export(
        tmp_path / "c.safetensors",
        "Classifier",
        fields,
        tiny_models.random_params(build.model("Classifier", fields), size),
        size=size,
        classes=classes,
        config=dict(data=data, loss="softmax", evaluators=entries),
        **STATISTICS,
    )
    given = [f"--checkpoint={model}", "--data=pans", "--threads=2", "--examples=31"]
    options = evaluate.parser().parse_args([*given, "--linear=none", "--k=1"])
    _, metrics = checkpoint.evaluate(options)
    caplog.set_level("INFO", "mae_jax")
    text = run(*given, f"--to={tmp_path / 'p.csv'}", "--batch-size=10")
    assert "are those of evaluators.classification, the run's first" in caplog.text
    assert "31 examples of pans, split 'test', in 8 classes" in text and "note" not in text
    table = rows(tmp_path / "p.csv")
    assert np.mean([row["class"] == row["label"] for row in table]) == metrics["test_accuracy"]
    losses = [-np.log(float(row[f"p_{row['label']}"])) for row in table]
    assert np.mean(losses) == pytest.approx(metrics["test_loss"], rel=1e-4)
    assert metrics["test_loss"] != pytest.approx(metrics["one_view_test_loss"], rel=0.01)
    assert [int(row["name"]) for row in table] == sources.fixed_choice(160, 31).tolist()


def test_pictures_without_labels(classifier, pictures, tmp_path, caplog):
    arguments = f"--checkpoint={classifier}", "--heads=3", f"--data=folder:{pictures}"
    caplog.set_level("INFO", "mae_jax")
    text = run(*arguments, f"--to={tmp_path / 'p.csv'}", "--batch-size=3")
    assert "7 examples" in text and "split 'all'" in text and "1 without a prediction" in text
    assert "does not name its classes: they are numbers" in caplog.text
    assert "does not name its loss, which is taken to be softmax" in caplog.text
    table = rows(tmp_path / "p.csv")
    assert [row["name"] for row in table] == [f"{i}.png" for i in ("0", 1, 2, 3, "3a", 4, 5)]
    assert list(table[0]) == ["name", "class", *(f"p_{k}" for k in range(5)), "note"]
    assert "3a.png" in table[4]["note"] and table[4]["class"] == table[4]["p_0"] == ""
    for row in table[:4] + table[5:]:
        p = [float(row[f"p_{k}"]) for k in range(5)]
        assert sum(p) == pytest.approx(1, rel=1e-5) and int(row["class"]) == np.argmax(p)
        assert row["note"] == ""

    run(*arguments, f"--to={tmp_path / 'p.parquet'}", "--loss=binary")
    other = parquet.read_table(tmp_path / "p.parquet").to_pylist()
    assert [row["name"] for row in other] == [row["name"] for row in table]
    assert other[4]["p_1"] is None and "3a.png" in other[4]["note"] and other[0]["note"] is None
    for row in other[:4] + other[5:]:
        assert row["class"] == ";".join(str(k) for k in range(5) if row[f"p_{k}"] > 0.5)


def test_names_and_labels_of_the_data(classifier, tmp_path, caplog):
    for i, name in enumerate(NAMES * 2):
        file = tmp_path / "data" / name / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (25 * i, 250 - 20 * i, 90)).save(file)
    caplog.set_level("INFO", "mae_jax")
    to = tmp_path / "p.csv"
    arguments = [f"--checkpoint={classifier}", "--heads=3", f"--to={to}"]
    run(*arguments, f"--data=folder:{tmp_path / 'data'}")
    assert "the names are those of folder:" in caplog.text
    table = rows(to)
    assert [row["label"] for row in table] == sorted(NAMES * 2)
    assert list(table[0])[:3] == ["name", "class", "label"] and "p_e" in table[0]
    assert {row["class"] for row in table} <= set(NAMES)

    (tmp_path / "data" / "e" / "4.png").rename(tmp_path / "data" / "f.png")
    with pytest.raises(ValueError, match="p.csv exists already: give another --to, or --overwr"):
        run(*arguments, f"--data=folder:{tmp_path / 'data'}")
    run(*arguments, f"--data=folder:{tmp_path / 'data'}", "--overwrite")
    assert [row["label"] for row in rows(to)] == [*sorted(NAMES * 2)[:-1], ""]


def test_a_file_is_written_whole_or_not_at_all(classifier, pictures, tmp_path, monkeypatch):
    def fail(path, columns):
        path.write_text("a part")
        raise OSError("the disk is full")

    (tmp_path / "p.csv").write_text("old")
    monkeypatch.setitem(columns.WRITERS, ".csv", fail)
    with pytest.raises(OSError, match="disk is full"):
        run(
            *(f"--checkpoint={classifier}", "--heads=3", f"--data=folder:{pictures}"),
            *(f"--to={tmp_path / 'p.csv'}", "--overwrite"),
        )
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize(
    "changes, sentence",
    [
        (["--to={folder}/p.txt"], "p.txt' must end in .csv or .parquet"),
        (["--to=/no/such/p.csv"], "--to: '/no/such/p.csv' cannot be written"),
        (["--checkpoint={autoencoder}"], "has no classes to predict, and no numbers: fine-tune it"),
        (["--checkpoint={softmax}", "--loss=binary"], "was trained with loss = 'softmax': leave"),
        (["--split=other"], "has no split 'other'"),
        (["--data=phot"], "unknown data 'phot'"),
        (["--data=folder:{folder}/bad"], "none of 1 examples can be read"),
        (["--batch-size=0"], "--batch-size=0 must be at least 1"),
        (["--heads=5"], "heads = 5 does not divide width = 24"),
        (["--checkpoint={foreign}"], "does not say how many heads its 24 channels have"),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else "",
)
def test_mistakes_end_in_one_sentence(classifier, tmp_path, changes, sentence, capsys, monkeypatch):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"not a picture")
    export = lambda name, **known: tiny_models.export(
        tmp_path / f"{name}.safetensors", *tiny_models.MODELS[name], **known
    )
    known = dict(config=dict(data=dict(modality="image"), loss="softmax"))
    places = dict(folder=tmp_path, foreign=classifier, autoencoder=export("autoencoder"))
    places["softmax"] = export("classifier", **known)
    arguments = [f"--checkpoint={classifier}", "--data=synthetic", f"--to={tmp_path / 'p.csv'}"]
    arguments += [] if "--checkpoint" in changes[0] else ["--heads=3"]
    arguments += [change.format(**places) for change in changes]
    monkeypatch.setattr(sys, "argv", ["predict", *arguments])
    with pytest.raises(SystemExit) as stopped:
        predict.main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert sentence in error and error.count("\n") == 1, error
    assert not (tmp_path / "p.csv").exists()


def test_parquet_needs_its_package(classifier, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'mae_jax\[parquet\]', or write a .csv"):
        run(f"--checkpoint={classifier}", "--data=synthetic", f"--to={tmp_path / 'p.parquet'}")
