"""scripts/benchmark.py needs nothing that reads data, and compares fairly."""

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
from mae_jax.config.errors import UserError
from mae_jax.data import sources
from mae_jax.planning import flops
from mae_jax.tasks import pretrain

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))  # the scripts import each other

import benchmark  # noqa: E402
import jax_mae  # noqa: E402
import parts  # noqa: E402
import rounds  # noqa: E402
import tables  # noqa: E402
import torch_mae  # noqa: E402

SCRIPT = ROOT / "scripts" / "benchmark.py"
BLOCKER = """
import sys
import time

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError("blocked: " + name, name=name)

sys.meta_path.insert(0, Blocker())
"""
BLOCKED = {"grain", "tensorflow_datasets", "ml_collections", "tensorboardX", "array_record"}


def run(folder, *arguments, **environment):
    (folder / "sitecustomize.py").write_text(BLOCKER.format(blocked=BLOCKED))
    path = {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-W", "error", SCRIPT, *arguments],
        cwd=ROOT,
        env=os.environ | path | environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def tiny():
    return command_line.load(f"{ROOT}/configs/vit_base.py:debug")


class Clock:
    """A made-up time, which only the programs that are timed move on."""

    now = 0.0

    def contender(self, name, seconds, parameters=0):
        def dispatch():
            self.now += seconds()

        return rounds.Contender(name, dispatch, lambda _: 0.5, parameters)

    def program(self, name, seconds):
        compiled = jax.jit(lambda: 0).lower().compile()
        return jax_mae.Program(self.contender(name, seconds), np.zeros(()), compiled, 1.0, None)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(rounds.time, "perf_counter", lambda: clock.now)
    return clock


def test_runs_without_the_packages_that_read_data(tmp_path):
    path = tmp_path / "figures.json"
    done = run(
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
    figures = json.loads(path.read_text())
    wanted = dict(part="step", device="cpu", devices=1, dtype="float32", batch_size=4, steps=2)
    assert wanted.items() <= figures.items()
    assert (figures["patches"], figures["visible_patches"]) == (16, 4)
    seconds = figures["step_milliseconds"] / 1e3
    assert figures["images_per_second"] == pytest.approx(4 / seconds)
    forward = 4 * sum(figures["forward_flops_per_image"].values())
    assert 0.9 < figures["flops_per_step"] / (3 * forward) < 1
    assert figures["flops_per_second"] == pytest.approx(figures["flops_per_step"] / seconds)
    assert figures["mfu"] == pytest.approx(figures["flops_per_second"] / 2e12)
    assert figures["flops_per_step"] == figures["flops_per_step_program"]
    taken = figures["rounds_milliseconds"]
    assert len(taken) == 3 and sorted(taken)[1] == figures["step_milliseconds"] > 0
    # At least the parameters and two moments, in float32.
    assert figures["memory_planned_bytes"] > 3 * 4 * figures["parameters"] > 1e5
    assert math.isfinite(figures["loss"])
    assert figures["memory_peak_bytes"] is None  # a CPU does not say
    assert figures["operations"]["kind"]["matrix products"] > 0
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    for line in ("images per second", "MFU", "encoder blocks", "matrix products", "/block_#/"):
        assert line in done.stdout


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--config=configs/none.py"], "error: config file 'configs/none.py' does not exist"),
        (["--config=configs/vit_base.py:debug", "--steps=0"], "0 is no number above 0"),
        (["--config=configs/finetune_quickstart.py"], "is of task 'classify'"),
        (["--config=configs/vit_base.py", "--part=loop", "--against=torch"], "goes without"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, arguments, sentence):
    done = run(tmp_path, *arguments)
    assert done.returncode == 2
    assert sentence in done.stderr and "Traceback" not in done.stderr


def test_changes_a_config_as_training_does():

    changes = {
        "--config.model.dtype=bfloat16": ("model.dtype", "bfloat16"),
        "--config.model.patch=(8, 8)": ("model.patch", (8, 8)),
        "--config.data.train.source=photos": ("data.train.source", "photos"),
        "--config.data.mean=auto": ("data.mean", "auto"),
        "--config.mask.ratio=.5": ("mask.ratio", 0.5),
        "--noconfig.model.norm_pix": ("model.norm_pix", False),
        "--config.model.learned_positions": ("model.learned_positions", True),
        "--config.data.flip=false": ("data.flip", False),
    }
    config = command_line.configured(f"{ROOT}/configs/vit_base.py:debug", list(changes))
    flat = command_line.flatten(config)
    assert {name: flat[name] for name, _ in changes.values()} == dict(changes.values())


@pytest.mark.parametrize(
    "change, sentence",
    [
        ("--config.model.deth=3", "unknown config key model.deth: did you mean model.depth?"),
        ("--config.model.depth=x", "model.depth = 'x' must be a whole number of at least 1"),
        ("--config.data.flip=maybe", "data.flip = 'maybe' must be True or False"),
        ("--batchsize=3", "unknown option --batchsize"),
    ],
)
def test_refuses_changes_that_no_config_has(change, sentence):

    with pytest.raises((ValueError, UserError), match=sentence.replace("?", r"\?")):
        command_line.configured(f"{ROOT}/configs/vit_base.py:debug", [change])


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

    monkeypatch.setattr(rounds.time, "perf_counter", lambda: now)
    contender = rounds.Contender("made up", dispatch, wait)
    for steps in (1, 3):
        seconds, _ = rounds.one_round(contender, steps)
        assert seconds == pytest.approx(1.0, abs=0.002)
        assert now >= free  # the next contender has the device for itself


def test_rounds_take_turns(clock):
    """Each round has everyone, every second one backwards, so drift and noise hit all alike."""
    log = []

    def slowing(name, share):  # a machine that slows down all the time
        return clock.contender(name, lambda: log.append(name) or share * (1 + len(log)))

    pair = [slowing("a", 1.0), slowing("b", 3.0)]
    seconds, losses = rounds.alternate(pair, rounds=4, steps=1)
    turns = ["a", "a", "b", "b"], ["b", "b", "a", "a"]  # each with a step that is not counted
    assert log == ["a", "a", "b", "b", *turns[0], *turns[1], *turns[0], *turns[1]]
    assert losses == {"a": 0.5, "b": 0.5}
    ratios = rounds.ratios(seconds["b"], seconds["a"])
    assert min(ratios) < 3 < max(ratios) and np.mean(ratios) == pytest.approx(3, rel=0.05)


def test_the_reference_does_little_more_than_we_do():
    """At the size that it was made for, ViT-B/16, both count the same FLOPs within 2 %."""
    config = command_line.load(f"{ROOT}/configs/vit_base.py")
    model, hide = pretrain.model_of(config), pretrain.hiding_of(config)
    ours = sum(flops.forward_flops(model, hide.n, hide.keep, 3).values())
    theirs = sum(flops.reference_flops(model, hide.n, hide.keep, 3).values())
    assert 1 < theirs / ours < 1.02


@pytest.mark.parity
def test_ratios_are_of_the_same_round_and_work(tiny, clock, monkeypatch):
    """Noise that lasts for a round is in both its times, and not in the ratio."""
    noise = iter([1.0] * 12 + [3.0] * 6 + [1.0] * 6)  # 3 contenders, 2 steps; 1 round not counted
    ours = clock.program("mae_jax", lambda: next(noise))
    four = clock.contender("others", lambda: 4 * next(noise))
    product = clock.contender("matrix product", lambda: 0.5 * next(noise))
    forward = sum(flops.forward_flops(pretrain.model_of(tiny), 16, 4, 3).values()) * 8
    monkeypatch.setattr(jax_mae, "program", lambda config, part: ours)
    monkeypatch.setattr(jax_mae, "matrix_product", lambda dtype: (product, forward))
    monkeypatch.setattr(torch_mae, "contenders", lambda *arguments: [four])
    monkeypatch.setattr(jax, "device_count", lambda: 1)

    options = argparse.Namespace(part="forward", against="torch", rounds=3, steps=1, peak="measure")
    options.profile, options.operations = None, False
    figures = benchmark.benchmark(tiny, options)
    other = figures["against"]["others"]
    assert figures["rounds_milliseconds"] == [1e3, 3e3, 1e3]
    assert other["rounds_milliseconds"] == [4e3, 12e3, 4e3]
    assert other["times_as_long_rounds"] == [4.0, 4.0, 4.0] and other["times_as_long"] == 4.0
    assert figures["peak_measured"] and figures["mfu"] == 0.5  # the product takes half the time
    *_, row = [line for line in tables.step(figures).splitlines() if line.startswith("others ")]
    assert row.split()[1:] == ["4,000.00", "ms", "2.0", "4.00", "4.00", "to", "4.00", "unknown"]

    small = clock.contender("small", lambda: 1.0, parameters=3)
    monkeypatch.setattr(torch_mae, "contenders", lambda *arguments: [small])
    with pytest.raises(ValueError, match="not the same work"):
        benchmark.benchmark(tiny, options)


def test_decoders_cost_what_they_decode(tiny, clock, monkeypatch):
    """A decoder that takes a second for each hidden patch that it decodes."""

    def program(config, name):
        patches = pretrain.hiding_of(config).decode
        return clock.program(name, lambda: patches)

    monkeypatch.setattr(jax_mae, "program", program)
    tiny["model"] |= dict(decoder_depth=2)
    figures = parts.decoders(tiny, argparse.Namespace(rounds=2, steps=2))
    assert json.loads(json.dumps(figures)) == figures
    rows = list(figures["rows"].values())
    assert [row["step_milliseconds"] for row in rows] == [12e3, 9e3, 3e3] * 2
    assert [row["times_as_long"] for row in rows] == [1.0, 0.75, 0.25] * 2
    costs = [row["forward_flops_per_image"] for row in rows]
    assert costs[:3] == sorted(costs[:3], reverse=True) and costs[0] > 1.4 * costs[2]
    assert costs[3] == pytest.approx(costs[0], rel=0.1)  # 3 blocks of cross-attention for 2
    assert tables.decoders(figures).count("\n") == 2 + len(rows)


def test_the_input_is_timed_alone_and_the_loop_beside_it(tiny, monkeypatch):
    """An input that takes 50 ms for a picture is the bottleneck, and its own time is found."""

    class Slow(sources.Subset):
        def __getitem__(self, i):
            time.sleep(0.05)
            return super().__getitem__(i)

    slow = Slow(sources.open_source("synthetic", "train"), np.arange(64))
    monkeypatch.setattr(sources, "open_source", lambda *arguments: slow)
    tiny["data"] |= dict(threads=2)
    tiny["model"] |= dict(depth=1)
    options = argparse.Namespace(rounds=2, steps=2)
    figures = parts.inputs(tiny, options)
    assert 25 < figures["images_per_second"] < 41  # two threads, each 20 at most
    assert figures["cpu_milliseconds_per_image"] < 25  # to sleep is no work
    assert figures["bytes_per_second"] == figures["images_per_second"] * 64 * 64 * 3
    assert "images per second" in tables.inputs(figures)

    quick = Clock().program("mae_jax", lambda: time.sleep(0.01) or 0.01)
    monkeypatch.setattr(jax_mae, "program", lambda config: quick)
    figures = parts.loop(tiny, options)
    assert len(figures["loop"]["rounds_images_per_second"]) == 2
    assert 25 < figures["loop"]["images_per_second"] < 45  # no batch that was there before
    assert figures["bottleneck"].startswith("bottleneck: input (")
    assert tables.loop(figures).splitlines()[-1] == figures["bottleneck"]


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

    assert parts.bottleneck(*speeds).startswith(f"bottleneck: {line}")


def test_refuses_what_the_machine_has_no_memory_for(monkeypatch):
    monkeypatch.setattr(jax_mae.os, "sysconf", lambda name: 1000)  # 1 MB
    compiled = jax.jit(jnp.sin).lower(jax.ShapeDtypeStruct((2**20,), jnp.float32)).compile()
    with pytest.raises(ValueError, match="smaller --config.batch_size"):
        jax_mae.refuse_too_large(compiled)


def test_says_what_to_do_without_the_data(tmp_path):

    config = command_line.load(f"{ROOT}/configs/folder.py")
    config["data"]["train"]["source"] = f"folder:{tmp_path}/none"
    with pytest.raises(ValueError, match="none.*--config.data.train.source=synthetic"):
        parts.opened(config)
