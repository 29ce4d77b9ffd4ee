"""The whole run, as a user sees it: files, resume, signals, processes."""

import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from PIL import Image

import mae_jax
from mae_jax.config import command_line, schema
from mae_jax.config.errors import UserError
from mae_jax.train import train
from mae_jax.training import metric_writer
from mae_jax.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
NO_EVALUATORS = [f"--noconfig.evaluators.{name}" for name in ("knn", "linear", "reconstruction")]


def debug(name: str = "vit_base", **changes) -> schema.Config:
    changes = {"model.depth": 1} | changes
    return schema.updated(command_line.load(f"{ROOT}/configs/{name}.py:debug"), changes)


def losses(workdir) -> dict[int, float]:
    return {
        record["step"]: record["loss"] for record in metric_writer.read(workdir) if "loss" in record
    }


def records(workdir) -> list[dict]:
    """All that was recorded, but for the speed."""
    return [
        {name: x for name, x in record.items() if name not in ("images_per_second", "input_wait")}
        for record in metric_writer.read(workdir)
    ]


def arguments_of(workdir, *arguments) -> list[str]:
    config = f"--config={ROOT}/configs/vit_base.py:debug"
    return [config, "--config.model.depth=1", f"--workdir={workdir}", *arguments]


def command(workdir, *arguments) -> list[str]:
    return [sys.executable, "-m", "mae_jax.train", *arguments_of(workdir, *arguments)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of the ImageNet recipe in its debug size, and its last state."""
    workdir = tmp_path_factory.mktemp("finished")
    cv2.setNumThreads(2)
    return workdir, train(debug(log_every=1), workdir)


def test_what_a_run_leaves_behind(finished):
    workdir, state = finished
    assert int(state.step) == 8
    assert json.loads((workdir / "config.json").read_text())["epochs"] == 1
    records = metric_writer.read(workdir)
    steps = [record for record in records if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, 9))
    for record in steps:
        rates = {"images_per_second", "input_wait"}
        assert {"learning_rate", "gradient_norm"} | rates <= record.keys()
        assert np.isfinite(record["loss"]) and record["images_per_second"] > 0
    assert {"test_loss", "knn", "linear"} < next(r for r in records if "test_loss" in r).keys()
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"4", "8"}
    for name in ("step_00000004", "reconstruction", "loss"):
        with Image.open(workdir / "pictures" / f"{name}.png") as picture:
            assert min(picture.size) > 100 and len(picture.convert("RGB").getcolors(2**20)) > 50
    assert list((workdir / "tensorboard").iterdir())


def test_the_report_is_printed_recorded_and_true(finished):
    workdir, _ = finished
    text = (workdir / "report.txt").read_text()
    last = metric_writer.read(workdir)[-1]
    for row, name in [
        ("mean of the visible patches", "loss_visible_mean"),
        ("untrained network", "loss_untrained"),
        ("trained network", "loss_trained"),
        ("raw pixels", "knn_raw"),
        ("untrained encoder", "knn_untrained"),
        ("trained encoder", "knn_trained"),
    ]:
        figure = re.search(rf"^ +{row} +([0-9.]+)", text, re.MULTILINE)[1]
        assert float(figure) == pytest.approx(last[name], abs=6e-4)
    assert last["loss_trained"] < last["loss_untrained"]
    assert last["test_loss"] == last["loss_trained"] and last["knn"] == last["knn_trained"]
    assert metric_writer.series(metric_writer.read(workdir), "test_loss")[0] == [4, 8]


def test_a_training_sets_up_the_libraries_that_read_pictures(finished):
    """Also where `train` is called in a notebook, without the command."""
    assert cv2.getNumThreads() == 1


def test_a_finished_run_says_so(finished, caplog):
    caplog.set_level(logging.INFO, "mae_jax")
    workdir, _ = finished
    before = sorted((p, p.stat().st_mtime) for p in workdir.rglob("*.png"))
    train(debug(log_every=1), workdir)
    assert "is finished" in caplog.text
    assert sorted((p, p.stat().st_mtime) for p in workdir.rglob("*.png")) == before


@pytest.mark.optimised
def test_resume_is_bit_for_bit(finished, tmp_path, monkeypatch):
    """SIGTERM at two steps, then the same call again: as if nothing had happened."""
    straight, state = finished
    take_step = Trainer.take_step

    def take_step_and_stop(self, step, batch):
        take_step(self, step, batch)
        if step == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    for stop in (4, 6):  # 4 is evaluated too
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "take_step", take_step_and_stop)
            with pytest.raises(SystemExit) as stopped:
                train(debug(log_every=1), tmp_path)
        assert stopped.value.code == 42
        assert max(losses(tmp_path)) == stop
    resumed = train(debug(log_every=1), tmp_path)
    assert records(tmp_path) == records(straight)
    jax.tree.map(np.testing.assert_array_equal, resumed, state)


def test_a_run_that_died_in_its_report_makes_it_again(finished, tmp_path):
    straight, _ = finished
    shutil.copytree(straight, tmp_path / "run")
    (tmp_path / "run" / "report.txt").unlink()
    train(debug(log_every=1), tmp_path / "run")
    assert records(tmp_path / "run") == records(straight)
    assert (tmp_path / "run" / "report.txt").read_text() == (straight / "report.txt").read_text()


def test_damaged_checkpoints_and_files_are_named(finished, tmp_path, caplog):
    """The run repeats the steps since the good checkpoint, and records them once."""
    straight, state = finished
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    (run / "report.txt").unlink()
    with (run / "metrics.jsonl").open("a") as f:
        f.write('{"step": 9, "lo')  # the line that was being written
    for file in (run / "checkpoints" / "8" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    resumed = train(debug(log_every=1), run)
    assert "checkpoints/8 cannot be read (" in caplog.text
    assert records(run) == records(straight)
    jax.tree.map(np.testing.assert_array_equal, resumed, state)
    (run / "config.json").write_text("")
    with pytest.raises(UserError, match="config.json is damaged"):
        train(debug(log_every=1), run)


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """Forty pictures as float arrays, of which one has values whose squares are not finite."""
    folder = tmp_path_factory.mktemp("arrays")
    rng = np.random.default_rng(0)
    for i in range(40):
        np.save(folder / f"{i:02}.npy", rng.normal(size=(16, 16, 3)).astype(np.float32))
    np.save(folder / "17.npy", np.full((16, 16, 3), 1e30, np.float32))
    return folder


def of_arrays(folder, **changes) -> schema.Config:
    changes = {
        "data.train.source": f"arrays:{folder}",
        "evaluators": {},
        "data.mean": (0.0, 0.0, 0.0),
        "data.std": (1.0, 1.0, 1.0),
        "data.size": (16, 16),
        "data.channels": 3,
        "data.examples": 0,
        "model.patch": (4, 4),
        "model.norm_pix": False,
        "data.zoom": (1.0, 1.0),
        "log_every": 1,
        "save_every": 2,
        "epochs": 2.0,
    } | changes
    return debug("volume_small", **changes)


def events(workdir) -> list[tuple[int, str]]:
    return [
        (record["step"], record["event"])
        for record in metric_writer.read(workdir)
        if "event" in record
    ]


def test_updates_that_are_not_finite_are_left_out(arrays, tmp_path):
    """Once an epoch the bad example comes; the run goes on, and its state is finite."""
    state = train(of_arrays(arrays, **{"recovery.max_skipped_updates": 3}), tmp_path)
    total, found = int(state.step), events(tmp_path)
    assert found and {kind for _, kind in found} == {"skipped"}
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
    steps = set(range(1, total + 1)) - {step for step, _ in found}
    assert set(losses(tmp_path)) == steps


def test_after_too_many_the_run_goes_back_and_past_the_batches(arrays, tmp_path):
    """As is the default: back to the checkpoint before, and the batch is not seen again."""
    state = train(of_arrays(arrays), tmp_path / "run")
    found = events(tmp_path / "run")
    assert [kind for _, kind in found] == ["bad_update", "rewound"] * (len(found) // 2)
    assert 1 <= len(found) // 2 <= 2
    (bad, _), *_ = found
    text = next(
        r["text"] for r in metric_writer.read(tmp_path / "run") if r.get("event") == "rewound"
    )
    assert f"back to step {(bad - 1) // 2 * 2}, past" in text
    assert sorted(losses(tmp_path / "run")) == list(range(1, int(state.step) + 1))


def test_after_too_many_rewinds_it_stops_with_a_report(arrays, tmp_path):
    changes = {"recovery.max_rewinds": 0}
    with pytest.raises(UserError, match=r"step \d+ diverged, .*17.npy") as stopped:
        train(of_arrays(arrays, **changes), tmp_path)
    for words in ("learning rate 6.2", "gradient norms ", "encoder/block_0 ", "Try a lower"):
        assert words in str(stopped.value)
    report = json.loads((tmp_path / "diverged.json").read_text())
    assert "17.npy" in " ".join(report["examples"]) and len(report["examples"]) == 8
    assert [kind for _, kind in events(tmp_path)] == ["bad_update", "stopped"]


def test_a_diverged_run_stops_and_nothing_that_is_not_finite_is_saved(tmp_path):
    """A learning rate that no rewinding mends."""
    changes = {"optimizer.base_learning_rate": 1e30, "save_every": 1, "log_every": 1}
    changes["evaluators"] = {}
    with pytest.raises(UserError, match=r"step \d diverged, .* Try a lower"):
        train(debug(**changes, **{"recovery.max_skipped_updates": 1}), tmp_path)
    assert "rewound" in {kind for _, kind in events(tmp_path)}
    for step in (tmp_path / "checkpoints").iterdir():
        _, params = mae_jax.load(f"{tmp_path}:{step.name}")
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))


def test_where_nothing_moves_the_stacks_are_said(tmp_path):
    """In a real process: a picture that is a pipe without a writer is waited for, and SIGTERM
    still saves."""
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for i in range(74):  # steps as with the synthetic ones: both runs are compiled once
        pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i:02}.png")
    process = subprocess.Popen(
        command(
            "run",
            f"--config.data.train.source=folder:{tmp_path}/pictures",
            "--config.recovery.stall_timeout=1",
            "--config.epochs=1000",
            *NO_EVALUATORS,
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,  # an absolute config, a relative work directory
    )
    for line in process.stdout:
        if line.startswith("step 6/"):
            for path in (tmp_path / "pictures").glob("*.png"):
                path.unlink()
                os.mkfifo(path)
            break
    said = ""
    for line in process.stderr:
        said += line
        if "batches.py" in line and line.endswith(" in next\n"):
            process.send_signal(signal.SIGTERM)
            break
    assert "nothing has moved for 1 s" in said and "most recent call first" in said
    output, _ = process.communicate()
    assert process.returncode == 42
    step = int(re.search(r"stopped: step (\d+) is saved", output)[1])
    assert (tmp_path / "run" / "checkpoints" / str(step)).is_dir()


def test_a_checkpoint_of_another_model_is_refused(finished, tmp_path):
    straight, _ = finished
    shutil.copytree(straight, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["model"]["width"] = 96
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"checkpoints/8 does not fit .*float32\[\d+, 48\], not"):
        train(debug(log_every=1, **{"model.width": 96}), tmp_path / "run")


def test_pictures_without_labels_of_any_size_and_kind(tmp_path):
    """A folder as people have it; statistics are measured once and kept."""
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for i, (mode, size) in enumerate([("RGB", (70, 40)), ("L", (30, 90)), ("RGBA", (50, 50))] * 5):
        channels = len(mode)
        pixels = rng.integers(0, 256, (*size[::-1], channels), dtype=np.uint8).squeeze()
        Image.fromarray(pixels, mode).save(tmp_path / "pictures" / f"{i}.png")
    place = f"folder:{tmp_path}/pictures"
    changes = {"data.train.source": place, "data.mean": "auto", "data.std": "auto"}
    changes |= {"epochs": 2.0, "data.size": (32, 48)}
    config = debug(**changes)
    train(config, tmp_path / "run")
    Image.new("RGB", (9, 9)).save(tmp_path / "pictures" / "another.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "pictures" / "another2.png")
    with pytest.raises(UserError, match=r"has \d+ examples but had \d+ when"):
        train(config, tmp_path / "run")
    measured = json.loads((tmp_path / "run" / "statistics.json").read_text())
    assert all(0 < x < 1 for x in measured["mean"] + measured["std"])
    assert measured["examples"] < 15
    assert "kNN" not in (tmp_path / "run" / "report.txt").read_text()
    assert "untrained network" in (tmp_path / "run" / "report.txt").read_text()


def test_an_unreadable_picture_is_replaced_and_counted(tmp_path, monkeypatch):
    (tmp_path / "pictures").mkdir()
    for i in range(12):
        Image.new("RGB", (40, 40)).save(tmp_path / "pictures" / f"{i}.png")
    (tmp_path / "pictures" / "broken.png").write_bytes(b"not a picture")
    source = {"data.train.source": f"folder:{tmp_path}/pictures", "epochs": 8.0, "log_every": 1}
    source |= {
        "optimizer.warmup_epochs": 2.0,
        "evaluators": {},
    }  # the steps of the finished run: it is compiled once
    with pytest.raises(UserError, match="1 of 1[23] examples cannot be read: 'broken.png'"):
        train(debug(**source), tmp_path / "run")
    train(debug(**source, **{"data.max_bad_fraction": 0.1}), tmp_path / "run")
    assert "broken.png" in (tmp_path / "run" / "unreadable.txt").read_text()
    last = [record for record in metric_writer.read(tmp_path / "run") if "loss" in record][-1]
    assert 0.07 < last["unreadable"] < 0.1


@pytest.mark.parametrize("classes", [1, 2])
def test_classes_in_folders_and_pictures_outside_of_them(classes, tmp_path):
    """One class is nothing to probe; a picture without a class takes no part in the probe."""
    rng = np.random.default_rng(0)
    for i in range(72):  # as many steps as of the finished run: it is compiled once
        folder = tmp_path / "pictures" / ("abc"[i % classes] if i % 5 else "")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    train(debug(**{"data.train.source": f"folder:{tmp_path}/pictures"}), tmp_path / "run")
    assert ("kNN" in (tmp_path / "run" / "report.txt").read_text()) == (classes == 2)


def environment(devices: int) -> dict[str, str]:
    """That of a process with so many devices of its own."""
    one = {"JAX_PLATFORMS": "cpu", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    return os.environ | one | {"JAX_NUM_CPU_DEVICES": str(devices)}


def test_two_processes_train_as_one_and_the_first_alone_writes(finished, tmp_path):
    """As scripts/launch/gpus.sh starts them: over loopback, each with half of the batch.

    The linear probe is left out: it is fitted to the features that kNN compares.
    """
    straight, _ = finished
    done = subprocess.run(
        ["bash", ROOT / "scripts" / "launch" / "gpus.sh", "--processes=2"]
        + arguments_of(tmp_path, "--config.log_every=1", "--noconfig.evaluators.linear"),
        env=environment(2) | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "0,1"},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert "on 4 cpu device(s), batch 8" in done.stdout
    for words, times in (("parameters on", 1), ("examples/s", 8), ("untrained network", 1)):
        assert len(re.findall(rf"^.*{words}", done.stdout, re.MULTILINE)) == times, words
    a, b = losses(tmp_path), losses(straight)
    np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-5)
    found, expected = (metric_writer.read(run)[-1] for run in (tmp_path, straight))
    assert {"loss_trained", "knn_raw", "knn_trained"} < found.keys() < expected.keys()
    assert found == pytest.approx({name: expected[name] for name in found}, rel=1e-4)


def test_a_mistake_on_two_processes_ends_both(tmp_path):
    """Not after the minutes for which jax would wait for the other one."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    both = environment(2) | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    first, second = (
        subprocess.Popen(
            command(tmp_path, "--config.data.train.source=folder:/no/such"),
            env=both | {"JAX_PROCESS_ID": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for i in range(2)
    )
    _, errors = first.communicate()
    assert first.returncode == 2 and "there is no folder '/no/such'" in errors
    second.communicate()
    assert second.returncode != 0
