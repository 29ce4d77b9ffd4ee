"""The step that `mae_jax.train` runs, compiled and ready to be timed.

Its batch is generated on the devices, and no data are read.
"""

import os
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mae_jax import tasks
from mae_jax.distributed import device_mesh, partitioning
from mae_jax.models import attention
from mae_jax.planning import estimate, flops
from mae_jax.training.program import Program, make_program
from mae_jax.training.run import make_schedule
from scripts.benchmark.alternating import Contender

SIDES = {"cpu": 2048}  # of the large matrices, by backend
EXAMPLES = 1_281_167  # of ImageNet: the schedule of the learning rate has its length


class Compiled(NamedTuple):
    """A compiled program, and what is known about it."""

    contender: Contender
    inputs: jax.Array  # of its batch, [b *size c]
    dtype: Any  # of its products
    executable: jax.stages.Compiled
    compile_seconds: float
    flops: int | None  # of the products of one run, on all devices together


def training_program(config, examples: int = EXAMPLES) -> tuple[tasks.Task, Program, jax.Array]:
    """Build the task and the program of a config as `mae_jax.train` does.

    Args:
      examples: in the training data.

    Returns:
      The task, the program, and the key of the initial state.

    Raises:
      ValueError: the devices cannot share the batch, or do not run the attention.
    """
    attention.check(config.model.attention, jax.default_backend())
    mesh = device_mesh.make_mesh(**config.mesh)
    device_mesh.check_batch(config.batch_size, config.accumulation, mesh)
    task = estimate.make_task(config, None)
    schedule, _ = make_schedule(config, examples, task.rate)
    init_key, step_key, _ = jax.random.split(jax.random.key(config.seed), 3)
    return task, make_program(config, task, mesh, schedule, step_key), init_key


def compile(config, part: str = "step", name: str = "mae_jax") -> Compiled:
    """Compile the step of a config or, with `part="forward"`, its loss alone."""
    task, program, init_key = training_program(config)
    state = program.init(init_key)
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    batch = draw_batch(config, partitioning.batched(mesh_of(program)))
    if part == "step":
        step = program.step
    else:
        key = jax.random.key(config.seed)
        loss = lambda params, batch: task.loss(params, None, task.augment(key, batch))[0]
        state, step = state.params, jax.jit(loss)
    traced = step.trace(state, batch)
    lowered = traced.lower()
    begin = time.perf_counter()
    executable = lowered.compile()
    compile_seconds = time.perf_counter() - begin
    refuse_too_large(executable)

    def dispatch():
        nonlocal state
        if part == "forward":
            return executable(state, batch)
        state, metrics = executable(state, batch)
        return metrics["loss"]

    contender = Contender(name, dispatch, jax.block_until_ready, parameters)
    products = flops.program_flops(traced)
    dtype = task.model.encoder.trunk.ops.dtype
    return Compiled(contender, batch["image"], dtype, executable, compile_seconds, products)


def mesh_of(program: Program) -> jax.sharding.Mesh:
    """Return the mesh that a program is for."""
    return jax.tree.leaves(program.abstract)[0].sharding.mesh


def draw_batch(config, sharding) -> dict[str, jax.Array]:
    """Draw a random batch on the devices, with the shapes that training gets."""

    def draw(key):
        batch = {}
        for name, x in estimate.batch_shapes(config, sharding).items():
            if jnp.issubdtype(x.dtype, jnp.floating):
                batch[name] = jax.random.uniform(key, x.shape, x.dtype)
            else:
                batch[name] = jax.random.bits(key, x.shape, jnp.uint8).astype(x.dtype)
        return batch

    return jax.jit(draw, out_shardings=sharding)(jax.random.key(config.seed))


def refuse_too_large(executable: jax.stages.Compiled) -> None:
    """Raise ValueError where a host would run out of memory; accelerators say so themselves."""
    needed = memory(executable)["memory_planned_bytes"] or 0
    present = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if jax.default_backend() == "cpu" and needed > present:
        raise ValueError(
            f"this takes {needed / 1e9:.0f} GB and the machine has {present / 1e9:.0f} GB: give a "
            "smaller --config.batch_size"
        )


def matrix_product(dtype) -> tuple[Contender, int]:
    """A product of large square matrices, which shows what one device can do, and its FLOPs."""
    side = SIDES.get(jax.default_backend(), 8192)
    a = jax.random.normal(jax.random.key(0), (side, side), dtype)

    def square(a):
        product = a @ a
        return product, product[0, 0]

    run = jax.jit(square).lower(a).compile()
    wait = lambda running: jax.block_until_ready(running)[1]
    return Contender("matrix product", lambda: run(a), wait), 2 * side**3


def memory(executable: jax.stages.Compiled) -> dict[str, int | None]:
    """Return bytes on one device: what the compiler planned, and the most that was in use."""
    analysis, planned = executable.memory_analysis(), None
    if analysis is not None:  # donated arguments are outputs too: they are held once
        held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
        planned = held - analysis.alias_size_in_bytes + analysis.temp_size_in_bytes
    used = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {"memory_planned_bytes": planned, "memory_peak_bytes": used}


def temporary_bytes(executable: jax.stages.Compiled) -> int | None:
    """Return the bytes on one device that are needed during a run alone."""
    analysis = executable.memory_analysis()
    return None if analysis is None else analysis.temp_size_in_bytes
