"""Whether a written file computes what its model computes, in a process without this package."""

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mae_jax.exchange.computation import INSTALL, Computation

BATCH_SIZES = (1, 3)
TOLERANCE = 1e-3  # of the largest value; rounding gives about 1e-6
TIMED_BATCH, ROUNDS = 8, 5


def report(path: Path, made: Computation) -> str:
    """Return lines with the largest differences on random inputs and, for ONNX, the speeds.

    Raises:
      ValueError: the file cannot be run, or differs by more than rounding.
      ImportError: onnxruntime is missing.
    """
    if path.suffix == ".onnx" and importlib.util.find_spec("onnxruntime") is None:
        raise ImportError(f"--check of an .onnx file needs the package onnxruntime: {INSTALL}")
    cpu = jax.local_devices(backend="cpu")[0]
    with jax.default_device(cpu):
        function, params = jax.jit(made.function), jax.device_put(made.params, cpu)
        lines = _differences(path, made, lambda *inputs: function(params, *inputs))
        if path.suffix == ".onnx":
            lines.append(_speeds(path, made, lambda *inputs: function(params, *inputs)))
    return "\n".join(lines)


def random_inputs(made: Computation, batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Return uniform inputs: bytes, numbers of the vocabulary, or floats in [0, 1]."""
    generator, inputs = np.random.default_rng(seed), {}
    for name, x in made.inputs.items():
        shape, high = (batch, *x.shape[1:]), made.metadata.get("vocab_size") or 256
        is_float = jnp.issubdtype(x.dtype, jnp.floating)
        values = generator.uniform(size=shape) if is_float else generator.integers(0, high, shape)
        inputs[name] = values.astype(x.dtype)
    return inputs


def _differences(path: Path, made: Computation, function: Callable) -> list[str]:
    """Compare the outputs of the file with those of a function."""
    expected, found = [], []
    with tempfile.TemporaryDirectory() as folder:
        pairs = []
        for batch in BATCH_SIZES:
            inputs = random_inputs(made, batch, seed=batch)
            expected.append(jax.tree.map(np.asarray, function(*inputs.values())))
            pairs += [Path(folder) / f"{batch}.npz", Path(folder) / f"{batch}_out.npz"]
            np.savez(pairs[-2], allow_pickle=False, **inputs)
        _run(path, pairs)
        for output in pairs[1::2]:
            with np.load(output) as arrays:
                found.append(dict(arrays))
    lines = [f"without mae_jax, on random batches of {' and '.join(map(str, BATCH_SIZES))}:"]
    for name in made.outputs:
        largest = max(np.abs(x[name]).max() for x in expected)
        pairs = [(x[name], y[name]) for x, y in zip(expected, found, strict=True)]
        difference = max(np.abs(x.astype(np.float64) - y).max() for x, y in pairs)
        lines.append(f"  {name}: largest difference {difference:.1e} of values up to {largest:.3g}")
        if not difference <= TOLERANCE * largest:
            raise ValueError(
                f"{path.name} computes another {name}: {lines[-1].strip()}, which is more than "
                "rounding; nothing was written"
            )
    return lines


def _run(path: Path, pairs: list[Path]) -> None:
    """Run the file in an isolated process, for pairs of files of inputs and of outputs."""
    script = Path(__file__).with_name(f"run_{path.suffix[1:]}.py")
    command = [sys.executable, "-I", script, path, *pairs]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}  # a second process has no TPU
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["it ended without a message"]
        raise ValueError(f"{path.name} does not run without mae_jax: {last[0]}")


def _speeds(path: Path, made: Computation, function: Callable) -> str:
    """Time onnxruntime and jax in turns, on the same CPU, and take the best of several rounds."""
    import onnxruntime  # pyright: ignore[reportMissingImports]

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = random_inputs(made, TIMED_BATCH)
    runs = {
        "onnxruntime": lambda: session.run(None, inputs),
        "jax": lambda: jax.block_until_ready(function(*inputs.values())),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 + ROUNDS):  # the first round compiles
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    best = {name: TIMED_BATCH / min(times[1:]) for name, times in seconds.items()}
    speeds = ", ".join(f"{name} {speed:.2f}" for name, speed in best.items())
    return f"  examples/s on this CPU, batch {TIMED_BATCH}, best of {ROUNDS}: {speeds}"
