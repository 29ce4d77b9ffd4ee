"""Regression: what is learned is the number in its own unit, and what is unknown is not learned."""

import csv
import json
import shutil

import jax
import numpy as np
import optax
import pytest
from PIL import Image

import mae_jax
from mae_jax import evaluate, predict, tasks
from mae_jax.config import command_line, schema
from mae_jax.config.errors import UserError
from mae_jax.data import sources, target_scale
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.target_scale import TargetScale
from mae_jax.distributed import device_mesh, partitioning
from mae_jax.evaluators import checkpoint, predictions
from mae_jax.exchange import computation
from mae_jax.planning import estimate
from mae_jax.tasks import losses
from mae_jax.train import train
from mae_jax.training import program
from mae_jax.weights import export

MEAN, STD = (0.3,) * 10, (0.2,) * 10
SCALE = TargetScale(("age", "weight"), (50.0, -2e3), (10.0, 400.0))


def config(**changes) -> schema.Config:
    values = command_line.load("configs/finetune_multispectral_small.py:debug")
    return schema.updated(values, changes)


CHANGES = {"log_every": 1, "model.head_std": 0.5}  # so that the predictions differ


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished regression in debug size."""
    workdir = tmp_path_factory.mktemp("regressed")
    return workdir, train(config(**CHANGES), workdir)


@pytest.mark.parametrize("name", ["l2", "l1", "huber"])
def test_losses_by_hand(name):
    error = np.array([-3.0, -0.5, 0.0, 0.2, 2.0], np.float32)
    huber = np.where(np.abs(error) <= 0.7, error**2 / 2, 0.7 * (np.abs(error) - 0.35))
    expected = {"l2": error**2, "l1": np.abs(error), "huber": huber}[name]
    found = losses.distance(dict(loss=name, huber_delta=0.7))(error + 1, np.ones(5, np.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_a_weighted_mean_is_the_mean_of_parts():
    rng = np.random.default_rng(0)
    weights, values = rng.uniform(size=(8, 3)), rng.normal(size=(8, 3))
    parts = (losses.averaging(weights) * values).reshape(4, 2, 3).mean((1, 2))
    np.testing.assert_allclose(parts.mean(), np.average(values, weights=weights), rtol=1e-5)
    assert not losses.averaging(np.zeros((2, 2))).any()  # and not NaN


def batch(labels) -> dict:
    pixels = jax.random.uniform(jax.random.key(3), (len(labels), 24, 24, 10))
    return {"image": np.asarray(pixels), "label": np.array(labels, np.float32)}


def test_the_loss_is_of_standardised_known_numbers():
    """By hand from the model's predictions, which are in the units of the targets."""
    labels = [[60, np.nan], [40, -1800], [np.nan, np.nan], [55, -2500]]
    options = config(loss="huber", huber_delta=0.5, **{"data.size": (24, 24), "data.flip": False})
    task = tasks.build(options, None, MEAN, STD, SCALE)
    variables = jax.jit(task.init)(jax.random.key(0))
    head = variables["params"]["head"]
    head["kernel"] = jax.random.normal(jax.random.key(1), head["kernel"].shape)
    augmented = task.augment(jax.random.key(1), batch(labels))
    loss, _ = task.loss(variables["params"], None, augmented)
    predicted = np.asarray(task.model.apply(variables, augmented["image"]))
    difference = (predicted - labels) / np.array(SCALE.std)
    known = difference[~np.isnan(difference)]
    assert len(known) == 5 and 3 < np.abs(known).max()
    np.testing.assert_allclose(loss, optax.huber_loss(known, delta=0.5).mean(), rtol=1e-4)


def test_the_curve_does_not_depend_on_devices_or_accumulation_or_unknown_numbers():
    """Mixed, and with unknown numbers in some parts of the batch only."""
    labels = np.stack([np.linspace(30, 70, 16), np.linspace(-3e3, -1e3, 16)], -1)
    labels[[0, 1, 5, 9], 0] = np.nan
    changes = {"data.size": (24, 24), "model.depth": 1, "regularize.mixup": 0.8}
    changes |= {"regularize.drop_path": 0.2, "model.channel_groups": ()}

    def run(devices, accumulation):
        options = config(batch_size=16, accumulation=accumulation, **changes)
        mesh = device_mesh.make_mesh(devices, devices=jax.devices()[:devices])
        task = tasks.build(options, None, MEAN, STD, SCALE)
        made = program.make_program(options, task, mesh, lambda step: 1e-3, jax.random.key(1))
        state, found = made.init(jax.random.key(0)), []
        for _ in range(3):
            state, figures = made.step(state, partitioning.place(batch(labels), mesh))
            found.append([float(figures[name]) for name in ("loss", "gradient_norm")])
        return found

    plain = run(1, 1)
    assert plain[0] != plain[-1] and np.isfinite(plain).all()
    np.testing.assert_allclose(run(2, 4), plain, rtol=1e-5)


def test_a_run_resumes_bit_for_bit(run, tmp_path):
    workdir, state = run
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "8")
    (tmp_path / "run" / "report.txt").unlink()
    resumed = train(config(**CHANGES), tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, resumed, state)
    text = (workdir / "report.txt").read_text()
    assert (tmp_path / "run" / "report.txt").read_text() == text and "RMSE of mean" in text


def test_the_scale_is_that_of_the_training_examples(run):
    stored = json.loads((run[0] / "statistics.json").read_text())["targets"]
    source = sources.subset(sources.open_source("mixtures", "train", "volume"), 64)
    labels = np.stack([source[i]["label"] for i in range(64)])
    assert stored["names"] == ["red", "green", "blue", "dark"]
    np.testing.assert_allclose(stored["mean"], labels.mean(0), rtol=1e-6)
    np.testing.assert_allclose(stored["std"], labels.std(0), rtol=1e-5)


def test_its_model_predicts_in_the_units_of_the_targets(run, tmp_path):
    """Loaded from the directory and from an exported file."""
    workdir, state = run
    scale = TargetScale.of(json.loads((workdir / "statistics.json").read_text())["targets"])
    statistics = json.loads((workdir / "statistics.json").read_text())
    task = tasks.build(config(), None, statistics["mean"], statistics["std"], scale)
    x = jax.random.normal(jax.random.key(0), (2, 32, 32, 10))
    expected = np.asarray(task.model.apply(state.best, x))
    assert np.abs(expected - scale.mean).max() > 0.05
    export.export(str(workdir), tmp_path / "model.safetensors")
    for path in (workdir, tmp_path / "model.safetensors"):
        model, params = mae_jax.load(path)
        assert not model.target_mean  # the scale is in the head
        np.testing.assert_allclose(model.apply({"params": params}, x), expected, atol=1e-5)


def test_evaluate_and_predict_repeat_the_figures_of_the_run(run, tmp_path):
    workdir, _ = run
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    (reported,) = [r for r in records if "test_r2" in r and r["step"] == 8]
    exported = tmp_path / "model.safetensors"
    export.export(str(workdir), exported)
    for path in (workdir, exported):
        given = [f"--checkpoint={path}", "--data=mixtures", "--threads=2"]
        options = evaluate.parser().parse_args([*given, "--examples=32"])
        text, metrics = checkpoint.evaluate(options)
        for name in ("test_r2", "test_mae", "test_rmse", "baseline_mae"):
            assert metrics[name] == pytest.approx(reported[name], rel=1e-4), name
        assert "R2 of mean" in text and metrics["linear_r2"] > 0.5 and "knn_5_r2" in metrics
    to = tmp_path / "p.csv"
    options = predict.parser().parse_args([*given, "--examples=32", f"--to={to}"])
    assert "with 4 predicted number(s) each" in predictions.predict(options)
    with open(to, newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:3] == ["name", "predicted_red", "predicted_green"]
    errors = [
        [abs(float(row[f"predicted_{name}"]) - float(row[f"target_{name}"])) for row in rows]
        for name in ("red", "green", "blue", "dark")
    ]
    assert np.mean(errors) == pytest.approx(metrics["test_mae"], rel=1e-4)


def labelled(labels, names=("age", "weight")) -> sources.Examples:
    labels = np.array(labels, np.float32)
    load = lambda i: {"image": np.zeros((24, 24, 10), np.float32), "label": labels[i]}
    return sources.Examples(len(labels), load, (), "numbers", labels=labels, targets=names)


def test_the_scale_leaves_unknown_numbers_out_and_says_so(caplog):
    caplog.set_level("INFO", "mae_jax")
    scale = target_scale.measure(labelled([[1, 5], [np.nan, 7], [4, 9]]))
    assert scale.names == ("age", "weight")
    np.testing.assert_allclose([*scale.mean, *scale.std], [2.5, 7, 1.5, np.std([5, 7, 9])])
    assert "1 of 3 training examples have no target 'age'" in caplog.text
    assert "weight" not in caplog.text


@pytest.mark.parametrize(
    "labels, sentence",
    [
        ([[1, 2], [np.inf, 3]], "target 'age' is infinite"),
        ([[1, np.nan], [2, np.nan]], "target 'weight' is unknown in all 2"),
        ([[1, 2], [3, 2], [4, np.nan]], "target 'weight' is 2 in all training examples"),
    ],
)
def test_targets_without_a_scale_are_refused(labels, sentence):
    with pytest.raises(ValueError, match=sentence):
        target_scale.measure(labelled(labels))


def test_other_labels_are_refused(tmp_path, run):
    with pytest.raises(UserError, match="are no numbers, which task 'regress' needs"):
        train(config(**{"data.train.source": "spectra"}), tmp_path / "a")
    with pytest.raises(
        UserError, match="two or more are needed: its labels are numbers, so use task"
    ):
        values = dict(command_line.load("configs/finetune_quickstart.py:debug"))
        values["data"] = dict(config().data)
        train(values | {"evaluators": {}}, tmp_path / "b")
    with pytest.raises(UserError, match="the labels of 'spectra' are no numbers"):
        train(config(**{"evaluators.regression.source": "spectra"}), tmp_path / "c")
    transform = tasks.build(config(), None, MEAN, STD, SCALE).transform
    example = labelled([[1, np.inf], [1, 2]])[0]
    with pytest.raises(Unreadable, match="is not 2 finite numbers"):
        transform(example, np.random.default_rng(0))
    (stored := tmp_path / "run").mkdir()
    shutil.copytree(run[0], stored, dirs_exist_ok=True)
    (stored / "statistics.json").write_text('{"mean": [0.5], "std": [0.5]}')
    with pytest.raises(ValueError, match="statistics.json is damaged or gone"):
        mae_jax.load(stored)


def test_a_table_of_pictures(tmp_path, caplog):
    """Two numbers a picture, of which some are unknown; then pictures without a table."""
    (folder := tmp_path / "data").mkdir()
    lines = ["file,target:red,target:year,split"]
    for i in range(24):
        Image.new("RGB", (20, 20), (10 * i, 90, 30)).save(folder / f"{i}.png")
        year = "" if i % 5 == 0 else 1990 + i
        lines.append(f"{i}.png,{10 * i},{year},{'test' if i % 3 == 0 else 'train'}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    values, other = (
        dict(command_line.load(f"configs/{name}.py:debug"))
        for name in ("finetune_multispectral_small", "finetune_quickstart")
    )
    data = {**dict(other["data"]), "examples": 0, "flip": False, "mean": (0.5,) * 3}
    data |= {"train": {"source": f"folder:{folder}", "split": "train"}, "std": (0.25,) * 3}
    model = {**dict(values["model"]), "channel_groups": (), "patch": (8, 8)}
    caplog.set_level("INFO", "mae_jax")
    train(values | dict(data=data, model=model, epochs=4.0, save_every=99), tmp_path / "run")
    assert "of 16 training examples have no target 'year'" in caplog.text
    report = (tmp_path / "run" / "report.txt").read_text()
    assert report.index("\nred") < report.index("\nyear") < report.index("\nmean")
    (folder / "labels.csv").unlink()
    to = tmp_path / "p.csv"
    arguments = [f"--checkpoint={tmp_path / 'run'}", f"--data=folder:{folder}", f"--to={to}"]
    predictions.predict(predict.parser().parse_args(arguments))
    with open(to, newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["name", "predicted_red", "predicted_year", "note"] and len(rows) == 24
    years = [float(row["predicted_year"]) for row in rows]
    assert 1985 < min(years) <= max(years) < 2020


def test_a_plan_has_its_labels():
    options = config()
    source = estimate.find_source(options, None)
    shapes = estimate.batch_shapes(options, None, source)
    assert shapes["label"].shape == (8, 4) and shapes["label"].dtype == np.float32
    assert len(estimate.make_task(options, source).model.target_mean) == 4


def test_an_exported_computation_predicts_numbers(run):
    made = computation.make(str(run[0]))
    assert made.outputs["numbers"].shape[1:] == (4,)
    assert made.metadata["targets"] == ("red", "green", "blue", "dark")
