"""Our side of a benchmark: the compiled step, the forward pass alone, and a large matrix product.

The step is the one that `mae_jax.train` runs (augmentation, masks, optimiser, donated state), on
generated pictures that already lie on the devices; nothing here reads data.
"""

import os
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
from rounds import Contender  # beside this file

from mae_jax.distributed import device_mesh, partitioning
from mae_jax.planning import flops
from mae_jax.tasks import pretrain
from mae_jax.training import optimizer
from mae_jax.training.step import make_init, make_step

SIDES = {"cpu": 2048}  # of the large matrices, by backend


class Program(NamedTuple):
    """A compiled program, and what is known of it."""

    contender: Contender
    images: jax.Array  # of its batch, uint8 [b *size c]
    compiled: jax.stages.Compiled
    compile_seconds: float
    flops: int | None  # of the products of one run, on all devices together


def program(config, part: str = "step", name: str = "mae_jax") -> Program:
    """The step of a config (or, with `part="forward"`, its loss alone), compiled and ready to run.

    Raises:
      ValueError: the batch cannot be spread over the devices.
    """
    mesh = device_mesh.make_mesh(**config["mesh"])
    device_mesh.check_batch(config["batch_size"], config["accumulation"], mesh)
    data, options = config["data"], dict(config["optimizer"])
    numbers = lambda name, other: other if data[name] == "auto" else data[name]
    half = (0.5,) * data["channels"]
    init, augment, loss = pretrain.training(config, numbers("mean", half), numbers("std", half))
    ema, rate = options.pop("ema"), options.pop("base_learning_rate")
    del options["warmup_epochs"]
    shard = options.pop("shard")
    schedule = optimizer.cosine_schedule(rate, config["batch_size"], steps=100_000, warmup=5_000)
    tx = optimizer.adamw(schedule, **options)

    init_key, step_key, data_key = jax.random.split(jax.random.key(config["seed"]), 3)
    make_state, step, abstract = partitioning.jit_training(
        make_init(init, tx, ema),
        make_step(augment, loss, tx, schedule, step_key, config["accumulation"], ema),
        mesh,
        shard,
    )
    shape = (config["batch_size"], *data["size"], data["channels"])
    draw = lambda key: {"image": jax.random.bits(key, shape, jnp.uint8)}
    batch = jax.jit(draw, out_shardings=partitioning.batched(mesh))(data_key)
    state = make_state(init_key)
    parameters = sum(x.size for x in jax.tree.leaves(state.params))

    if part == "forward":
        shardings = jax.tree.map(lambda x: x.sharding, abstract.params)
        state, step = (
            state.params,
            jax.jit(
                lambda params, batch: loss(params, None, augment(step_key, batch))[0],
                in_shardings=(shardings, partitioning.batched(mesh)),
            ),
        )
    traced = step.trace(state, batch)
    products = flops.program_flops(traced)
    lowered = traced.lower()
    begin = time.perf_counter()
    compiled = lowered.compile()
    compile_seconds = time.perf_counter() - begin
    refuse_too_large(compiled)

    def dispatch():
        nonlocal state
        if part == "forward":
            return compiled(state, batch)
        state, figures = compiled(state, batch)
        return figures["loss"]

    contender = Contender(name, dispatch, jax.block_until_ready, parameters)
    return Program(contender, batch["image"], compiled, compile_seconds, products)


def refuse_too_large(compiled: jax.stages.Compiled) -> None:
    """Raise ValueError where a host would run out of memory; accelerators say so themselves."""
    needed = memory(compiled)["memory_planned_bytes"] or 0
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if jax.default_backend() == "cpu" and needed > there:
        raise ValueError(
            f"this takes {needed / 1e9:.0f} GB and the machine has {there / 1e9:.0f} GB: give a "
            "smaller --config.batch_size"
        )


def matrix_product(dtype) -> tuple[Contender, int]:
    """A product of large square matrices on one device, and its FLOPs: what the device can do."""
    side = SIDES.get(jax.default_backend(), 8192)
    key = jax.random.key(0)
    a = jax.random.normal(key, (side, side), dtype)

    def square(a):
        product = a @ a
        return product, product[0, 0]

    run = jax.jit(square).lower(a).compile()
    wait = lambda running: jax.block_until_ready(running)[1]
    return Contender("matrix product", lambda: run(a), wait), 2 * side**3


def memory(compiled: jax.stages.Compiled) -> dict[str, int | None]:
    """Bytes on one device: what the compiler planned, and the most that was in use."""
    analysis, planned = compiled.memory_analysis(), None
    if analysis is not None:  # donated arguments are outputs too: they are held once
        held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
        planned = held - analysis.alias_size_in_bytes + analysis.temp_size_in_bytes
    used = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {"memory_planned_bytes": planned, "memory_peak_bytes": used}
