"""scripts/benchmark times the step of training, needs nothing that reads data, compares fairly."""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.config import command_line
from mae_jax.data import sources
from mae_jax.distributed import partitioning
from mae_jax.planning import estimate
from mae_jax.training import program, run
from scripts.benchmark import alternating, gpu, report, sections, step, torch_mae
from scripts.benchmark.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError("blocked: " + name, name=name)

sys.meta_path.insert(0, Blocker())
"""
BLOCKED = {"grain", "tensorflow_datasets", "tensorboard", "array_record", "sklearn", "matplotlib"}


def benchmark(folder, *arguments):
    """Run the benchmark where the packages that read data are missing."""
    (folder / "sitecustomize.py").write_text(BLOCKER.format(blocked=BLOCKED))
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "scripts.benchmark", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(folder), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )


def configured(*changes):
    return command_line.configured("configs/vit_base.py:debug", changes)


@pytest.fixture
def tiny():
    return configured()


class Clock:
    """A made-up time, which only the programs that are timed move on."""

    now = 0.0

    def contender(self, name, seconds, parameters=0):
        def dispatch():
            self.now += seconds()

        return alternating.Contender(name, dispatch, lambda _: 0.5, parameters)

    def compiled(self, name, seconds):
        executable = jax.jit(lambda: 0).lower().compile()
        contender = self.contender(name, seconds)
        return step.Compiled(contender, jnp.zeros(()), jnp.float32, executable, 1.0, None)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(alternating.time, "perf_counter", lambda: clock.now)
    return clock


def test_runs_without_the_packages_that_read_data(tmp_path):
    path = tmp_path / "metrics.json"
    done = benchmark(
        tmp_path,
        "--config=configs/vit_base.py:debug",
        "--config.batch_size=4",
        "--config.model.depth=1",
        "--noconfig.data.flip",
        "--rounds=3",
        "--steps=2",
        "--peak=2",
        "--operations",
        f"--profile={tmp_path}/profile",
        f"--json={path}",
    )
    assert done.returncode == 0, done.stderr
    metrics = json.loads(path.read_text())
    wanted = dict(part="step", device="cpu", devices=1, dtype="float32", batch_size=4, steps=2)
    assert wanted.items() <= metrics.items()
    assert (metrics["patches"], metrics["visible_patches"]) == (16, 4)
    seconds = metrics["step_milliseconds"] / 1e3
    assert metrics["images_per_second"] == pytest.approx(4 / seconds)
    forward = 4 * sum(metrics["forward_flops_per_image"].values())
    assert 0.9 < metrics["flops_per_step"] / (3 * forward) < 1
    assert metrics["flops_per_second"] == pytest.approx(metrics["flops_per_step"] / seconds)
    assert metrics["mfu"] == pytest.approx(metrics["flops_per_second"] / 2e12)
    assert metrics["flops_per_step"] == metrics["flops_per_step_program"]
    taken = metrics["rounds_milliseconds"]
    assert len(taken) == 3 and sorted(taken)[1] == metrics["step_milliseconds"] > 0
    # At least the parameters and two moments, in float32.
    assert metrics["memory_planned_bytes"] > 3 * 4 * metrics["parameters"] > 1e5
    assert math.isfinite(metrics["loss"])
    assert metrics["memory_peak_bytes"] is None  # a CPU does not say
    assert metrics["operations"]["kind"]["matrix products"] > 0
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    for line in ("images per second", "MFU", "encoder blocks", "matrix products", "/block_#/"):
        assert line in done.stdout


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--config=configs/none.py"], "error: config file 'configs/none.py' does not exist"),
        (
            ["--config=configs/vit_base.py:debug", "--steps=0"],
            "--rounds and --steps must be at least 1",
        ),
        (["--config=configs/finetune_quickstart.py"], "is of task 'classify'"),
        (["--config=configs/vit_base.py", "--part=loop", "--against=torch"], "goes without"),
    ],
)
def test_mistakes_are_one_sentence(capsys, arguments, sentence):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


def test_the_step_is_that_of_training(tmp_path, monkeypatch):
    """The same program, to the learning rates of the same run, with the options of recovery too."""
    recovery = ["--config.recovery.max_skipped_updates=3", "--config.recovery.max_loss_ratio=5"]
    trained = []

    class Enough(Exception):
        pass

    def recorded(*arguments):
        trained.append(program.make_program(*arguments))
        raise Enough

    monkeypatch.setattr(run, "make_program", recorded)
    texts = []
    for options in ([], recovery):
        config = configured("--config.model.depth=1", "--config.data.examples=32", *options)
        with pytest.raises(Enough):
            run.train(config, tmp_path / f"run_{len(texts)}")
        _, timed, _ = step.training_program(config, examples=32)
        batch = estimate.batch_shapes(config, partitioning.batched(step.mesh_of(timed)))
        lowered = [made.step.lower(made.abstract, batch).as_text() for made in (trained[-1], timed)]
        assert lowered[0] == lowered[1]
        texts.append(lowered[1])
    assert texts[0] != texts[1]


@pytest.mark.parametrize("synchronous", [False, True])
def test_a_round_times_its_own_steps_alone(monkeypatch, synchronous):
    """On a made-up clock: programs that return at once, and ones that return when all is done."""
    now, free = 0.0, 0.0  # the time, and when the device has nothing left to do

    def dispatch():
        nonlocal now, free
        now += 0.001
        free = max(now, free) + 1.0
        now = free if synchronous else now
        return free

    def wait(until):
        nonlocal now
        now = max(now, until)
        return 0.0

    monkeypatch.setattr(alternating.time, "perf_counter", lambda: now)
    contender = alternating.Contender("made up", dispatch, wait)
    for steps in (1, 3):
        seconds, _ = alternating.one_round(contender, steps)
        assert seconds == pytest.approx(1.0, abs=0.002)
        assert now >= free  # the next contender has the device for itself


def test_rounds_take_turns(clock):
    """Each round has everyone, every second one backwards, so drift and noise hit all alike."""
    log = []

    def slowing(name, share):  # a machine that slows down all the time
        return clock.contender(name, lambda: log.append(name) or share * (1 + len(log)))

    pair = [slowing("a", 1.0), slowing("b", 3.0)]
    seconds, losses = alternating.alternate(pair, rounds=4, steps=1)
    turns = ["a", "a", "b", "b"], ["b", "b", "a", "a"]  # each with a step that is not counted
    assert log == ["a", "a", "b", "b", *turns[0], *turns[1], *turns[0], *turns[1]]
    assert losses == {"a": 0.5, "b": 0.5}
    ratios = alternating.ratios(seconds["b"], seconds["a"])
    assert min(ratios) < 3 < max(ratios) and np.mean(ratios) == pytest.approx(3, rel=0.05)


def test_the_reference_does_little_more_than_we_do():
    """At the size that it was made for, ViT-B/16, both count the same FLOPs within 2 %."""
    config = command_line.configured("configs/vit_base.py", [])
    ours = sum(estimate.forward_flops(config).values())
    theirs = sum(torch_mae.forward_flops(config).values())
    assert 1 < theirs / ours < 1.02


@pytest.mark.parity
def test_ratios_are_of_the_same_round_and_work(tiny, clock, monkeypatch):
    """Noise that lasts for a round is in both its times, and not in the ratio."""
    noise = iter([1.0] * 12 + [3.0] * 6 + [1.0] * 6)  # 3 contenders, 2 steps; 1 round not counted
    ours = clock.compiled("mae_jax", lambda: next(noise))
    four = clock.contender("others", lambda: 4 * next(noise))
    product = clock.contender("matrix product", lambda: 0.5 * next(noise))
    forward = sum(estimate.forward_flops(tiny).values()) * 8
    monkeypatch.setattr(step, "compile", lambda config, part: ours)
    monkeypatch.setattr(step, "matrix_product", lambda dtype: (product, forward))
    monkeypatch.setattr(torch_mae, "contenders", lambda *arguments: [four])
    monkeypatch.setattr(jax, "device_count", lambda: 1)

    options = argparse.Namespace(part="forward", against="torch", rounds=3, steps=1, peak="measure")
    options.profile, options.operations = None, False
    metrics = sections.steps(tiny, options)
    other = metrics["against"]["others"]
    assert metrics["rounds_milliseconds"] == [1e3, 3e3, 1e3]
    assert other["rounds_milliseconds"] == [4e3, 12e3, 4e3]
    assert other["times_as_long_rounds"] == [4.0, 4.0, 4.0] and other["times_as_long"] == 4.0
    assert metrics["peak_measured"] and metrics["mfu"] == 0.5  # the product takes half the time
    *_, row = [line for line in report.steps(metrics).splitlines() if line.startswith("others ")]
    assert row.split()[1:] == ["4,000.00", "ms", "2.0", "4.00", "4.00", "to", "4.00", "unknown"]

    small = clock.contender("small", lambda: 1.0, parameters=3)
    monkeypatch.setattr(torch_mae, "contenders", lambda *arguments: [small])
    with pytest.raises(ValueError, match="not the same work"):
        sections.steps(tiny, options)


def test_decoders_cost_what_they_predict(clock, monkeypatch):
    """Made-up decoders that take a second for each masked patch that they predict."""

    def compiled(config, name):
        return clock.compiled(name, lambda: round(12 * config.mask.decode))

    monkeypatch.setattr(step, "compile", compiled)
    options = argparse.Namespace(rounds=2, steps=2)
    metrics = sections.decoders(configured("--config.model.decoder_depth=2"), options)
    assert json.loads(json.dumps(metrics)) == metrics
    rows = list(metrics["rows"].values())
    assert [row["step_milliseconds"] for row in rows] == [12e3, 9e3, 3e3] * 2
    assert [row["times_as_long"] for row in rows] == [1.0, 0.75, 0.25] * 2
    costs = [row["forward_flops_per_image"] for row in rows]
    assert costs[:3] == sorted(costs[:3], reverse=True) and costs[0] > 1.4 * costs[2]
    assert costs[3] == pytest.approx(costs[0], rel=0.1)  # 3 blocks of cross-attention for 2
    assert report.variants(metrics).count("\n") == 2 + len(rows)


def test_the_input_is_timed_alone_and_the_loop_beside_it(monkeypatch):
    """An input that takes 50 ms for a picture is the bottleneck, and its own time is found."""

    pictures = sources.open_source("synthetic", "train")
    slow = sources.Examples(64, lambda i: time.sleep(0.05) or pictures[i], pictures.classes)
    monkeypatch.setattr(sources, "open_source", lambda *arguments: slow)
    config = configured("--config.data.threads=2", "--config.model.depth=1")
    options = argparse.Namespace(rounds=2, steps=2)
    metrics = sections.inputs(config, options)
    assert 5 < metrics["images_per_second"] < 41  # two threads, each 20 at most
    assert metrics["cpu_milliseconds_per_image"] < 25  # to sleep is no work
    assert metrics["bytes_per_second"] == metrics["images_per_second"] * 64 * 64 * 3
    assert "images per second" in report.inputs(metrics)

    quick = Clock().compiled("mae_jax", lambda: time.sleep(0.01) or 0.01)
    monkeypatch.setattr(step, "compile", lambda config: quick)
    metrics = sections.loop(config, options)
    assert len(metrics["loop"]["rounds_images_per_second"]) == 2
    assert 5 < metrics["loop"]["images_per_second"] < 45  # no batch that was there before
    assert metrics["bottleneck"].startswith(("bottleneck: input (", "bottleneck: the loop ("))
    assert report.loop(metrics).splitlines()[-1] == metrics["bottleneck"]


@pytest.mark.parametrize(
    "speeds, line",
    [
        ((300, 1204, 312, False), "input (312 images/s; the step could take 1,204)"),
        ((300, 312, 1204, False), "step (312 images/s; the input could give 1,204)"),
        ((240, 312, 1204, True), "step (312 images/s; the input could give 1,204)"),
        ((200, 312, 1204, False), "the loop (200 images/s at best; the step alone could take 312"),
    ],
)
def test_names_the_bottleneck(speeds, line):
    assert sections.bottleneck(*speeds).startswith(f"bottleneck: {line}")


def test_refuses_what_the_machine_has_no_memory_for(monkeypatch):
    monkeypatch.setattr(step.os, "sysconf", lambda name: 1000)  # 1 MB
    compiled = jax.jit(jnp.sin).lower(jax.ShapeDtypeStruct((2**20,), jnp.float32)).compile()
    with pytest.raises(ValueError, match="smaller --config.batch_size"):
        step.refuse_too_large(compiled)


def test_says_what_to_do_without_the_data(tmp_path):
    config = configured(f"--config.data.train.source=folder:{tmp_path}/none")
    with pytest.raises(ValueError, match="none.*--config.data.train.source=synthetic"):
        sections.training_source(config)


def test_the_script_for_a_gpu_machine_runs_anywhere(tmp_path, monkeypatch, capsys):
    """With tiny networks; a part that fails costs no other."""
    path = tmp_path / "gpu.json"
    monkeypatch.setitem(gpu.PARTS, "vit_large", ["--config=configs/none.py"])
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(sys, "argv", ["gpu", "--tiny", f"--json={path}"])
    with pytest.raises(SystemExit) as exit:
        gpu.main()
    assert exit.value.code == 1
    parts, said = json.loads(path.read_text()), capsys.readouterr().out
    assert "configs/none.py" in parts.pop("vit_large")["error"]
    step, rows = parts["vit_base"], parts["attention"]["rows"]
    assert step["dtype"] == "bfloat16"
    assert step["images_per_second"] > 0 and step["memory_planned_bytes"] > 0
    assert step["operations"]["kind"]["matrix products"] > 0
    assert {"reference attention", "recompute attention"} <= set(rows)
    assert all(row["step_milliseconds"] > 0 and row["temporary_bytes"] > 0 for row in rows.values())
    assert "attention: recompute attention" in said
