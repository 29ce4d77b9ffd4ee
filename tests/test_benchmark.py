"""scripts/benchmark.py needs nothing that reads data, and counts FLOPs rightly."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from mae_jax import mae, masking

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "benchmark.py"
BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError("blocked: " + name, name=name)

sys.meta_path.insert(0, Blocker())
"""
BLOCKED = {"grain", "tensorflow_datasets", "ml_collections", "tensorboardX", "array_record"}


def run(folder, *arguments):
    (folder / "sitecustomize.py").write_text(BLOCKER.format(blocked=BLOCKED))
    return subprocess.run(
        [sys.executable, "-W", "error", SCRIPT, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def benchmark():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("benchmark", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_runs_without_the_packages_that_read_data(tmp_path):
    path = tmp_path / "figures.json"
    done = run(
        tmp_path, "--config=configs/vit_base.py:debug", "--steps=3", "--peak=2", f"--json={path}"
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(path.read_text())
    wanted = dict(device="cpu", devices=1, dtype="float32", batch_size=8, accumulation=1, steps=3)
    assert wanted.items() <= figures.items()
    assert (figures["patches"], figures["visible_patches"]) == (16, 4)
    seconds = figures["step_milliseconds"] / 1e3
    assert figures["images_per_second"] == pytest.approx(8 / seconds)
    assert figures["flops_per_step"] == 3 * 8 * sum(figures["forward_flops_per_image"].values())
    assert figures["flops_per_second"] == pytest.approx(figures["flops_per_step"] / seconds)
    assert figures["mfu"] == pytest.approx(figures["flops_per_second"] / 2e12)
    assert 0.8 < figures["flops_per_step"] / figures["flops_per_step_xla"] < 1
    fastest, slowest = (figures[f"step_milliseconds_{end}"] for end in ("fastest", "slowest"))
    assert 0 < fastest <= figures["step_milliseconds"] <= slowest
    # At least the parameters and two moments, in float32.
    assert figures["memory_planned_bytes"] > 3 * 4 * figures["parameters"] > 1e6
    assert math.isfinite(figures["loss"])
    assert figures["memory_peak_bytes"] is None  # a CPU does not say
    for line in ("images per second", "MFU", "encoder blocks"):
        assert line in done.stdout


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--config=configs/none.py"], "error: config file 'configs/none.py' does not exist"),
        (["--config=configs/vit_base.py:debug", "--steps=0"], "0 is not above 0"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, arguments, sentence):
    done = run(tmp_path, *arguments)
    assert done.returncode == 2
    assert sentence in done.stderr and "Traceback" not in done.stderr


# In each another part of the model is much of the work, and products are nearly all of it.
PARTS = {
    "encoder blocks": dict(width=256, depth=4),
    "decoder blocks": dict(decoder_width=256, decoder_depth=4),
    "attention": dict(patch=(2, 2), width=64, heads=1, decoder_width=64, decoder_depth=3),
    "patch embedding": dict(patch=(32, 32), width=1024, depth=0, decoder_width=32),
    "decoder embedding": dict(width=4096, depth=0, decoder_width=512),
    "head": dict(patch=(32, 32), width=8, depth=0, decoder_width=64),
}


@pytest.mark.parametrize("part", PARTS)
def test_counts_the_flops_that_xla_counts(benchmark, part):
    """Of the forward pass, before it is compiled: then no product hides in a library call."""
    fields = dict(
        patch=(16, 16),
        width=32,
        depth=1,
        heads=2,
        decoder_width=32,
        decoder_depth=1,
        decoder_heads=1,
        norm_pix=False,
    )
    model = mae.MaskedAutoencoder(**fields | PARTS[part])
    size, channels = (64, 64), 3
    n = math.prod(side // p for side, p in zip(size, model.patch, strict=True))
    keep = masking.keep_count(n, 0.5)
    parts = benchmark.forward_flops(model, n, keep, channels)
    ours = sum(parts.values())
    assert part == "attention" or parts[part] > 0.15 * ours

    images = jnp.zeros((1, *size, channels))
    mask = masking.from_scores(jnp.zeros((1, n)), keep)
    params = jax.eval_shape(model.init, jax.random.key(0), images, mask)
    forward = jax.jit(lambda params: model.apply(params, images, mask).loss)
    theirs = forward.lower(params).cost_analysis()["flops"]
    assert 0.9 < ours / theirs < 1


def test_knows_peaks_by_whole_words(benchmark):
    peaks = {
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA H200": 989e12,
        "NVIDIA L40": None,
        "TPU v4": 275e12,
        "TPU v5 lite": 197e12,
        "TPU v5": 459e12,
        "TPU v6 lite": 918e12,
        "cpu": None,
    }
    assert {kind: benchmark.peak_flops(kind) for kind in peaks} == peaks
