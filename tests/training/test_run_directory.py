"""A work directory belongs to one config, one data set, and one process at a time."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from mae_jax.config import command_line, schema
from mae_jax.training.run_directory import RunDirectory


class Source:
    """Three examples of two classes, of which the pixels are 0, 1 and 2."""

    classes = ("a", "b")

    def __len__(self):
        return 3

    def __getitem__(self, i):
        return {"image": np.full((2, 2, 3), i, np.uint8), "label": 0}

    def name(self, i):
        return str(i)


def config(**changes) -> schema.Config:
    config = schema.validate(command_line.load("configs/vit_base.py:debug"))
    return schema.updated(config, changes)


@pytest.fixture
def run(tmp_path):
    """The directory of a run that has saved."""
    run = RunDirectory(tmp_path / "run")
    run.measured(Source(), config().data)
    (run.checkpoints / "4").mkdir(parents=True)
    (run.path / "metrics.jsonl").write_text('{"step": 8, "loss": 1.0}\n')
    run.write_config(config())
    return run


def check(run, config):
    """All that is asked before a run goes on without a checkpoint that can be used."""
    run.check_config(config)
    run.measured(Source(), config.data)
    if not any(run.checkpoints.iterdir()):
        run.check_unlost(first_save=4)


def test_the_same_config_goes_on(run):
    check(run, config())
    check(run, config(log_every=7, **{"recovery.max_rewinds": 9}))
    run.write_config(config(seed=3))  # it has one
    check(run, config())
    with pytest.raises(ValueError, match="another config .*seed: 0 before, 7 now.*--workdir"):
        check(run, config(seed=7))


@pytest.mark.parametrize(
    "lose, words",
    [
        (lambda run: shutil.rmtree(run.checkpoints), "has lost its checkpoints/"),
        (lambda run: (run.checkpoints / "4").rmdir(), "trained to step 8, and has lost its check"),
        (lambda run: run.config.unlink(), "has checkpoints and no config.json"),
        (lambda run: run.config.write_text("[]"), "config.json is damaged"),
        (lambda run: (run.path / "statistics.json").unlink(), "statistics.json is gone"),
        (
            lambda run: (run.path / "statistics.json").write_text("{}"),
            "is damaged: its examples is None",
        ),
    ],
)
def test_what_it_lost_is_named_and_nothing_is_changed(run, lose, words):
    lose(run)
    before = sorted(Path(run.path).rglob("*"))
    with pytest.raises(ValueError, match=words):
        check(run, config())
    assert before == sorted(Path(run.path).rglob("*"))


def test_other_data_are_refused(run):
    for name, value, words in [
        ("__len__", lambda self: 4, "has 4 examples but had 3 when"),
        ("classes", ("a", "c"), "has other classes than when"),
    ]:
        other = type("Other", (Source,), {name: value})
        with pytest.raises(ValueError, match=words):
            run.measured(other(), config().data)


def test_precision_is_that_of_the_start(run):
    """ "auto" is resolved before it is stored; a directory that holds "auto" goes on, too."""
    auto = config()
    assert auto.model.dtype == "auto"
    on_tpu = schema.resolved(auto, "tpu", None)
    run.config.unlink()
    run.write_config(on_tpu)
    on_cpu = schema.resolved(auto, "cpu", run.stored_config())
    assert on_cpu.model.dtype == on_tpu.model.dtype == "bfloat16"
    run.check_config(on_cpu)
    with pytest.raises(ValueError, match="model.dtype: bfloat16 before, float32 now"):
        run.check_config(config(**{"model.dtype": "float32"}))
    run.config.unlink()
    run.write_config(auto)
    run.check_config(schema.resolved(auto, "cpu", run.stored_config()))


def test_a_second_process_is_refused(tmp_path):
    with RunDirectory(tmp_path).locked():
        with pytest.raises(ValueError, match=rf"in use by another process \({os.getpid()} on"):
            with RunDirectory(epath.Path(tmp_path)).locked():
                pass
    with RunDirectory(tmp_path).locked():
        pass


def test_runs_of_version_0_1_keep_their_choice_of_examples(tmp_path):
    """Their statistics.json does not say that `data.examples` is balanced over classes."""
    statistics, run = tmp_path / "statistics.json", RunDirectory(tmp_path)
    assert run.draws_balanced
    statistics.write_text('{"examples": 64}')
    assert run.draws_balanced  # without a config the run never began
    run.config.write_text("{}")
    assert not run.draws_balanced
    statistics.write_text('{"examples": 64, "balanced": true}')
    assert run.draws_balanced
