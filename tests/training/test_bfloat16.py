"""What accelerators run: bfloat16 with every attention, on several devices, and resumed."""

import functools
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from mae_jax import tasks
from mae_jax.config import command_line, schema
from mae_jax.distributed import device_mesh, partitioning
from mae_jax.train import train
from mae_jax.training import optimizer, program

ROOT = Path(__file__).parents[2]


def debug(**changes) -> schema.Config:
    changes = {"evaluators": {}, "log_every": 1, "model.depth": 1} | changes
    return schema.updated(command_line.load(f"{ROOT}/configs/vit_base.py:debug"), changes)


@functools.cache
def losses(dtype: str, attention: str, data: int = 1, fsdp: int = 1) -> list[float]:
    """The losses of four steps on the same batch."""
    config = debug(**{"model.dtype": dtype, "model.attention": attention})
    mean = std = (0.5,) * 3
    mesh = device_mesh.make_mesh(data, fsdp, devices=jax.devices()[: data * fsdp])
    schedule = optimizer.cosine_schedule(0.02, 16, 10, 0)
    task = tasks.build(config, None, mean, std)
    made = program.make_program(config, task, mesh, schedule, jax.random.key(1))
    state, step, found = made.init(jax.random.key(0)), made.step, []
    images = np.random.default_rng(0).integers(0, 256, (16, *config.data.size, 3), np.uint8)
    batch = {"image": images, "label": np.zeros(16, np.int32)}
    for _ in range(4):
        state, metrics = step(state, partitioning.place(batch, mesh))
        found.append(float(metrics["loss"]))
    assert {x.dtype.name for x in jax.tree.leaves(state.params)} == {"float32"}
    return found


@pytest.mark.optimised
@pytest.mark.parametrize("attention", ["reference", "recompute", "per_sample"])
def test_bfloat16_trains_like_float32(attention):
    half, full = losses("bfloat16", attention), losses("float32", "reference")
    np.testing.assert_allclose(half, full, rtol=0.02)
    assert half != full and half[-1] < half[0]


@pytest.mark.optimised
def test_bfloat16_trains_on_four_devices_as_on_one(monkeypatch):
    monkeypatch.setattr(partitioning, "SMALL", 0)  # shard the parameters of a tiny network too
    one, four = losses("bfloat16", "recompute"), losses("bfloat16", "recompute", 2, 2)
    np.testing.assert_allclose(four, one, rtol=0.005)


def test_a_bfloat16_run_resumes_bit_for_bit(tmp_path):
    config = debug(**{"model.dtype": "bfloat16", "model.attention": "recompute"})
    straight = train(config, tmp_path / "straight")
    shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "8")
    (tmp_path / "resumed" / "report.txt").unlink()
    resumed = train(config, tmp_path / "resumed")
    assert int(resumed.step) == 8
    jax.tree.map(np.testing.assert_array_equal, resumed, straight)
