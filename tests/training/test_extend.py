"""Runs that go on after their end, or with data that moved: what `changes.json` records."""

import json
import logging
import os
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from mae_jax.config import changes, command_line, schema
from mae_jax.config.errors import UserError
from mae_jax.output import files
from mae_jax.train import train
from mae_jax.training import metric_writer, optimizer
from mae_jax.training.trainer import Trainer
from mae_jax.weights import load

ROOT = Path(__file__).parents[2]


def debug(**changes) -> schema.Config:
    """8 steps for each epoch, of which the first two warm up; no evaluators."""
    changes = {"model.depth": 1, "evaluators": {}, "log_every": 1, "keep": 9} | changes
    return schema.updated(command_line.load(f"{ROOT}/configs/vit_base.py:debug"), changes)


def records(workdir, name: str) -> dict[int, float]:
    return {r["step"]: r[name] for r in metric_writer.read(workdir) if name in r}


def arrays_equal(a, b) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def contents(workdir) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in Path(workdir).glob("*.*") if p.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of one epoch, and its last state."""
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, train(debug(), workdir)


@pytest.fixture(scope="module")
def extended(finished, tmp_path_factory):
    """That run, extended to two epochs without an interruption, its last state and the log."""
    workdir = tmp_path_factory.mktemp("extended") / "run"
    shutil.copytree(finished[0], workdir)
    log, handler = logging.getLogger("mae_jax.training.run"), logging.Handler()
    lines = []
    handler.emit = lambda record: lines.append(record.getMessage())
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)
    state = train(debug(), workdir, extend=2)
    log.removeHandler(handler)
    log.setLevel(level)
    return workdir, state, "\n".join(lines)


def test_an_extended_run_goes_on_and_says_how(finished, extended):
    (before, _), (workdir, state, log) = finished, extended
    assert int(state.step) == 16
    assert list(records(workdir, "loss")) == list(range(1, 17))
    losses = list(records(workdir, "loss").values())
    assert losses[:8] == list(records(before, "loss").values())
    # Records are of the update that led to a step. The first new one continues at 0, where the
    # cosine ended, and the others are on the cosine of two epochs.
    rates = list(records(workdir, "learning_rate").values())
    peak = 1.5e-4 * 8 / 256
    cosine = [peak * (1 + np.cos(np.pi * (step - 2) / 14)) / 2 for step in range(9, 16)]
    np.testing.assert_allclose(rates[8:], [0, *cosine], atol=1e-6 * peak)
    for words in ("from 1 to 2 epochs", "was 0 at step 8", "from step 9 (", "ends at 0"):
        assert words in log
    assert json.loads((workdir / "config.json").read_text())["epochs"] == 1
    stored = json.loads((workdir / "changes.json").read_text())
    assert stored == {"extended": [{"step": 8, "before": 1, "now": 2}], "relocated": []}
    assert (workdir / "report_00000008.txt").exists() and (workdir / "report.txt").exists()
    for step in (8, 16):
        assert load.find(f"{workdir}:{step}").config["epochs"] == 2


def stop_after(monkeypatch, step: int) -> None:
    """Let SIGTERM come while this step is computed."""
    take_step = Trainer.take_step

    def take_step_and_stop(self, number, batch):
        take_step(self, number, batch)
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "take_step", take_step_and_stop)


def test_extended_in_its_warm_up_a_run_is_one_of_more_epochs(tmp_path, monkeypatch):
    """Bit for bit: the moments, the order of the data and the learning rates are the same."""
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stop_after(patch, 2)
        train(debug(), tmp_path / "extended")
    state = train(debug(), tmp_path / "extended", extend=2)
    arrays_equal(state, train(debug(epochs=2.0), tmp_path / "straight"))
    for name in ("loss", "learning_rate"):
        a, b = (records(tmp_path / run, name) for run in ("extended", "straight"))
        assert a == b


def test_the_learning_rate_has_no_jump():
    """Before the step it is the schedule's, and from the end of the rise on the longer one's."""
    short, long = (optimizer.cosine_schedule(1.0, 256, steps, 10) for steps in (100, 400))
    schedule = optimizer.extended(short, long, 60, 20)
    rates = np.array([schedule(step) for step in range(400)])
    for step in (0, 5, 59, 60):
        assert rates[step] == short(step)
    for step in (80, 81, 399):
        assert rates[step] == long(step)
    np.testing.assert_allclose(rates[70], (long(70) + short(60) + long(70) - long(60)) / 2, 1e-6)
    assert np.abs(np.diff(rates[20:])).max() < 0.03


@pytest.mark.parametrize("options", [{"extend": 2}, {}])
def test_the_same_command_again_changes_nothing(extended, options, caplog):
    caplog.set_level(logging.INFO, "mae_jax")
    workdir, state, _ = extended
    before = contents(workdir)
    arrays_equal(train(debug(), workdir, **options), state)
    assert "is finished" in caplog.text and contents(workdir) == before


def test_killed_at_any_time_it_ends_as_if_nothing_had_happened(
    finished, extended, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)

    def dies(*arguments):
        raise MemoryError

    with monkeypatch.context() as patch:  # between the two files: it makes its report again
        patch.setattr(files, "write_whole", dies)
        with pytest.raises(MemoryError):
            train(debug(), run, extend=2)
    assert not (run / "changes.json").exists()
    assert not (run / "report.txt").exists()
    train(debug(), run)
    assert (run / "report.txt").exists()
    with monkeypatch.context() as patch:  # before the first step
        patch.setattr(Trainer, "fit", dies)
        with pytest.raises(MemoryError):
            train(debug(), run, extend=2)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stop_after(patch, 11)
        train(debug(), run, extend=2)
    assert max(records(run, "loss")) == 11
    arrays_equal(train(debug(), run), extended[1])
    for name in ("loss", "learning_rate"):
        assert records(run, name) == records(extended[0], name)
    assert (run / "changes.json").read_bytes() == (extended[0] / "changes.json").read_bytes()


@pytest.mark.parametrize(
    "extend, words",
    [
        (1, r"--extend=1 is the number of all epochs, of which the run has 2 already: give more"),
        (1e12, r"epochs = 1000000000000.0 are more than 2,147,483,647 steps"),
    ],
)
def test_what_is_no_extension_is_refused_and_nothing_changes(extended, extend, words):
    workdir, _, _ = extended
    before = contents(workdir)
    with pytest.raises(UserError, match=words):
        train(debug(), workdir, extend=extend)
    assert contents(workdir) == before


def test_other_epochs_without_the_option_are_refused(extended):
    with pytest.raises(
        UserError, match=r"epochs: 2.0 before, 3.0 now \(--extend=EPOCHS trains for"
    ):
        train(debug(epochs=3.0), extended[0])
    with pytest.raises(UserError, match="another config .*seed: 0 before, 1 now"):
        train(debug(seed=1), extended[0], extend=3)


@pytest.mark.parametrize("options", [{"extend": 2}, {"relocate": {"a": "b"}}])
def test_without_a_run_nothing_is_extended(options, tmp_path):
    with pytest.raises(UserError, match="holds no run to extend or relocate: check --workdir"):
        train(debug(), tmp_path / "other", **options)
    assert not (tmp_path / "other").exists()


def test_lost_and_damaged_changes_are_named(extended, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(extended[0], run)
    (run / "changes.json").write_text('{"extended": 3}')
    with pytest.raises(UserError, match="changes.json is damaged: restore the file"):
        train(debug(), run)
    (run / "changes.json").unlink()
    with pytest.raises(UserError, match="trained for 2 epochs in all, and its .* say 1: put back"):
        train(debug(), run)
    with pytest.raises(
        ValueError, match="is not that of checkpoint 16 .*epochs: 2.0 before, 1.0 now"
    ):
        load.find(str(run))


def pictures(folder: Path, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for i in range(64):  # steps as those of the other runs: it is compiled once
        place = folder / "ab"[i % 2] / f"{seed}_{i:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(place)


def test_data_that_moved_are_found_again(tmp_path):
    old, new, run = tmp_path / "old", tmp_path / "place" / "new", tmp_path / "run"
    pictures(old / "train")
    split = {"data.train.split": "all"}
    source = lambda place: debug(**{"data.train.source": f"folder:{place}/train"}, **split)
    train(source(old), run)
    report = (run / "report.txt").read_text()
    (run / "report.txt").unlink()
    new.parent.mkdir()
    old.rename(new)
    with pytest.raises(UserError, match="there is no folder .*if the data moved, give --relocate"):
        train(source(old), run)
    with pytest.raises(UserError, match="belongs to another config .*--relocate=OLD=NEW says"):
        train(source(new), run)
    with pytest.raises(UserError, match=r"reads nothing from 'ol', but 'folder:.*/old/train'"):
        train(source(old), run, relocate={"ol": str(new)})
    pictures(tmp_path / "other" / "train", seed=1)
    with pytest.raises(UserError, match="names or labels of the examples of .* are not those when"):
        train(source(old), run, relocate={str(old): str(tmp_path / "other")})
    (tmp_path / "other" / "train" / "a" / "1_00.png").unlink()
    with pytest.raises(UserError, match="has 63 examples but had 64 when"):
        train(source(old), run, relocate={str(old): str(tmp_path / "other")})
    assert not (run / "changes.json").exists()
    for _ in range(2):  # the second time nothing is left to change
        train(source(old), run, relocate={str(old): str(new)})
    assert (run / "report.txt").read_text() == report
    relocated = json.loads((run / "changes.json").read_text())["relocated"]
    assert relocated == [{"before": str(old), "now": str(new)}]
    for place in (old, new):  # the config of a command may name either
        train(source(place), run)
    config = load.find(str(run)).config
    assert config["data"]["train"]["source"] == f"folder:{new}/train"


@pytest.mark.parametrize(
    "before, now, value, moved",
    [
        ("/a", "/b", "folder:/a", "folder:/b"),
        ("/a", "/b", "array_record:/a/x-*", "array_record:/b/x-*"),
        ("/a", "/b", "/a:100", "/b:100"),
        ("/a", "/b", "folder:/ab", "folder:/ab"),
        ("/a", "/b", "folder:/c/a", "folder:/c/a"),
        ("tfds:x", "array_record:/b/*", "tfds:x", "array_record:/b/*"),
        ("/a", "/a/new", "folder:/a/x", "folder:/a/new/x"),
        ("/a/new", "/a", "folder:/a/new/x", "folder:/a/x"),
    ],
)
def test_places(before, now, value, moved):
    """To apply a relocation twice is to apply it once."""
    relocation = changes.Relocation(before=before, now=now)
    assert relocation.moved(value) == moved and relocation.moved(moved) == moved


def test_changes_follow_each_other():
    config = {"epochs": 1.0, "data": {"train": {"source": "folder:/a"}}}
    config["evaluators"] = {"loss": {"source": "same"}, "knn": {"test": {"source": "folder:/a/x"}}}
    made = changes.Changes()
    for epochs, before, now in ((2, "/a", "/b"), (4, "/b", "/a"), (5, "/a", "/c")):
        config = made.applied(config)
        made = made.extend(config, epochs, 8).relocate(config, before, now)
        changed = made.applied(config)
        assert changed["epochs"] == epochs
        assert changed["data"]["train"]["source"] == f"folder:{now}"
        assert changed["evaluators"]["knn"]["test"]["source"] == f"folder:{now}/x"
        assert changed["evaluators"]["loss"]["source"] == "same"
    assert made.applied({"epochs": 1.0, "evaluators": {}}) == {"epochs": 5.0, "evaluators": {}}
    assert made.applied({"epochs": 3.0})["epochs"] == 3.0


@pytest.mark.parametrize(
    "argument, words",
    [
        ("--extend=more", "'more' should be the number of all epochs, such as 100"),
        ("--extend=-1", "'-1' should be the number"),
        ("--extend=nan", "'nan' should be the number"),
        ("--extend", "expected one argument"),
        ("--relocate=/a", "'/a' should be OLD=NEW, two places of files"),
        ("--relocate=/a=/b=/c", "should be OLD=NEW"),
        ("--relocate=/=/c", "should be OLD=NEW"),
    ],
)
def test_arguments_that_say_nothing(argument, words):
    with pytest.raises(UserError, match=words):
        command_line.parse_changes([argument])


def test_arguments():
    arguments = [
        "--config=x",
        "--extend",
        "3",
        "--relocate=/a/=/b",
        "--relocate=c=d",
        "--workdir=y",
    ]
    parsed, rest = command_line.parse_changes(arguments)
    assert parsed == {"extend": 3.0, "relocate": {"/a": "/b", "c": "d"}}
    assert rest == ["--config=x", "--workdir=y"]
    with pytest.raises(UserError, match="unknown option --extent: did you mean --extend"):
        command_line.parse([f"--config={ROOT}/configs/vit_base.py", "--workdir=x", "--extent=3"])
