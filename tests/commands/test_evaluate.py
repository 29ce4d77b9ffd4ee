"""Any checkpoint can be evaluated: exact counts, and nothing is chosen on test data."""

import json
import re
import shutil
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import mae_jax
from mae_jax import evaluate
from mae_jax.config import command_line
from mae_jax.data import sources
from mae_jax.data.augment import batch as augment
from mae_jax.data.modalities import transforms
from mae_jax.evaluators import checkpoint, features, knn
from mae_jax.train import train

SMALL = dict(modality="image", size=(32, 32), channels=3, repeats=1, center_crop=0.875, threads=2)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A finished pre-training in debug size."""
    workdir = tmp_path_factory.mktemp("run")
    train(command_line.load("configs/quickstart.py:debug"), workdir)
    return workdir


def run(*arguments):
    return checkpoint.evaluate(evaluate.parser().parse_args([str(a) for a in arguments]))


@pytest.fixture(scope="module")
def plain(workdir, tmp_path_factory):
    file = tmp_path_factory.mktemp("features") / "features"
    arguments = (f"--checkpoint={workdir}", "--data=synthetic", "--threads=2")
    return arguments, run(*arguments, f"--features={file}"), file


def test_the_figures_do_not_depend_on_the_batch(plain):
    arguments, (text, figures), _ = plain
    _, other = run(*arguments, "--batch-size=5")
    assert "(32 examples)" in text and "(64 train and 32 test examples)" in text
    for name in ("loss", "loss_visible_mean", "knn_5", "knn_20", "linear"):
        assert other[name] == pytest.approx(figures[name], rel=1e-5), name


def test_features_are_what_they_say(plain, workdir):
    """One picture at a time, through `mae_jax.load`; kNN by hand from the file."""
    _, (_, figures), file = plain
    stored = np.load(file)  # pickles are not allowed here
    model, params = mae_jax.load(workdir)
    source, transform = (
        sources.open_source("synthetic", "test"),
        transforms.eval_transform(SMALL),
    )
    data = json.loads((workdir / "config.json").read_text())["data"]
    for i in (0, 13, 31):
        image = augment.normalize(
            jnp.asarray(transform(source[i])["image"])[None], data["mean"], data["std"]
        )
        tokens, _ = model.apply({"params": params}, image, method="encode")
        np.testing.assert_allclose(stored["test_features"][i], tokens[0, 1:].mean(0), atol=1e-4)
    np.testing.assert_array_equal(stored["test_labels"], np.arange(32) % 4)
    np.testing.assert_array_equal(stored["train_index"], np.arange(64))
    assert stored["classes"].tolist() == ["disc", "ring", "square", "triangle"]
    x, y = features.standardize(stored["train_features"], stored["test_features"])
    again = knn.accuracies(x, stored["train_labels"], y, stored["test_labels"], ks=(5,))[5]
    assert figures["knn_5"] == again


def test_the_feature_is_that_of_the_run_unless_an_option_says_another(workdir, tmp_path):
    run_with_options = shutil.copytree(workdir, tmp_path / "run")
    config = json.loads((workdir / "config.json").read_text())
    first = config["evaluators"].pop("knn")  # entries are found by their types, not by their names
    config["evaluators"]["first"] = first | {"block": 0, "pooling": "cls", "standardize": False}
    (run_with_options / "config.json").write_text(json.dumps(config))
    arguments = [f"--checkpoint={run_with_options}", "--data=synthetic", "--linear=none"]
    assert "block 0, cls, after the norm, as it is" in run(*arguments)[0]
    text, metrics = run(*arguments, "--pooling=mean", "--standardize")
    assert "block 0, mean, after the norm, standardised" in text
    assert metrics["first_feature"]["pooling"] == "mean"


def test_the_loss_is_that_of_the_report_of_the_run(plain, workdir):
    _, (text, metrics), _ = plain
    reported = re.search(r" trained network +([\d.]+)", (workdir / "report.txt").read_text())[1]
    assert f"{metrics['loss']:.4f}" == reported and reported in text
    assert "(block 1, mean, after the norm, standardised: k above 64 counts as 64" in text


def test_a_sweep_chooses_on_training_examples(plain):
    """Other test data do not change what is chosen, nor the scores it is chosen by."""
    arguments, _, _ = plain
    text, figures = run(*arguments, "--sweep", "--linear=none")
    _, other = run(*arguments, "--sweep", "--linear=none", "--test-split=train")
    assert figures["sweep"] == other["sweep"]
    assert len(figures["sweep"]) == 2 * 3 * 2 * 2  # blocks, poolings, norms, standardised or not
    best = max(figures["sweep"], key=lambda row: row["knn_train"])
    assert best["knn_train"] == pytest.approx(float(text.split("*")[1][:5]), abs=1e-3)
    assert len({row["knn_train"] for row in figures["sweep"]}) > 1


@pytest.mark.parametrize(
    "changes, sentence",
    [
        (["--checkpoint=/no/such"], "there is no '/no/such'"),
        (["--checkpoint={workdir}:77"], "no step 77: it has 4, 8"),
        (["--size=abc"], "'abc' should be whole numbers such as 224,224"),
        (["--std=0,1,1"], "must be above 0"),
        (
            ["--json=/no/such/f.json"],
            "--json: '/no/such/f.json' cannot be written: give the path of a file",
        ),
        (["--data=phot"], "unknown data 'phot'"),
        (["--data=folder:{empty}"], "no pictures in"),
        (["--test-split=other"], "no split 'other'"),
        (["--size=33,32"], r"use \(32, 32\) or \(40, 32\)"),
        (["--mean=0.5"], "has 1 values, and the model has 3"),
        (["--block=7"], "--block=7 is none of 2 blocks"),
        (
            ["--k=5,5"],
            r"evaluators.knn: k = \(5, 5\) must be a whole number of at least 1, or a tuple",
        ),
        (["--examples=-1"], r"--examples=-1 must be at least 0 \(all\)"),
        (["--mask-ratio=1"], "--mask-ratio=1.0 must be between 0 and 1"),
        (["--heads=2"], "has heads = 3, not 2: leave heads out"),
        (["--norm-pix"], "has norm_pix = False, not True"),
        (["--std=inf,1,1"], "--std=.* must be finite numbers"),
        (["--size=32"], r"--size=\(32,\) must be 2 numbers"),
        (["--data=folder:{broken}"], "cannot read 'test/a/0.png'"),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else "",
)
def test_mistakes_end_in_one_sentence(workdir, tmp_path, changes, sentence, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    for name in ("a/0.png", "a/1.png", "b/2.png", "b/3.png"):
        file = tmp_path / "broken" / "test" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"not a picture")
    places = dict(workdir=workdir, empty=tmp_path / "empty", broken=tmp_path / "broken")
    arguments = [f"--checkpoint={workdir}", "--data=synthetic"]
    arguments += [change.format(**places) for change in changes]
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])
    with pytest.raises(SystemExit) as stopped:
        evaluate.main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert re.search(sentence, error) and error.count("\n") == 1, error


def test_a_first_example_that_cannot_be_read_does_not_end_it(workdir, tmp_path):
    for split in ("train", "test"):
        for i in range(6):
            file = tmp_path / split / "ab"[i % 2] / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), (40 * i, 0, 250 * (i % 2))).save(file)
        (tmp_path / split / "a" / "0.png").write_bytes(b"not a picture")
    arguments = (f"--checkpoint={workdir}", f"--data=folder:{tmp_path}", "--threads=2")
    text, metrics = run(*arguments, "--k=1")
    assert "(5 examples)" in text and "(5 train and 5 test examples)" in text
    assert metrics["knn_1"] >= 0.6 and metrics["loss"] > 0


def test_all_examples_are_the_default(plain, tmp_path):
    arguments, (_, metrics), _ = plain
    text, fewer = run(*arguments, "--examples=20", "--linear=none", f"--pictures={tmp_path}")
    assert [path.name for path in tmp_path.iterdir()] == ["reconstruction.png"]
    assert "(20 examples)" in text and "(20 train and 20 test examples)" in text
    assert fewer["loss"] != metrics["loss"]


COUNT = """
from mae_jax import evaluators
class Count(evaluators.HeldOutEvaluator):
    def evaluate(self, variables):
        return evaluators.Result({"valid": sum(int(x["valid"].sum()) for x in self.batches())})
"""


def test_pictures_without_classes_and_an_evaluator_of_your_own(workdir, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "counting.py").write_text(COUNT)
    for i in range(12):
        Image.new("RGB", (40, 40), (20 * i, 0, 0)).save(tmp_path / f"{i}.png")
    file = tmp_path / "out.npz"
    arguments = (f"--checkpoint={workdir}", f"--data=folder:{tmp_path}", "--threads=2")
    arguments += ("--test-split=all", "--evaluator=counting:Count")
    text, figures = run(*arguments, f"--features={file}")
    assert "no classes" in text and figures["loss"] > 0 and figures["count_valid"] == 12
    assert np.load(file)["test_features"].shape == (12, 48)


def test_the_command_line(workdir, tmp_path, capsys, monkeypatch):
    arguments = [f"--checkpoint={workdir}", "--data=synthetic", f"--json={tmp_path / 'f.json'}"]
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])
    evaluate.main()
    figures, printed = json.loads((tmp_path / "f.json").read_text()), capsys.readouterr().out
    assert f"{figures['loss']:.4f}" in printed and f"{figures['linear']:.4f}" in printed
