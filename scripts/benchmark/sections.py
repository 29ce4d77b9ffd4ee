"""What a benchmark can time: the step or the forward pass, either decoder, the input, the loop."""

import argparse
import contextlib
import gc
import io
import math
import statistics
import tempfile
import time
from typing import Any

import jax
import numpy as np

from mae_jax.config import schema
from mae_jax.models import attention
from mae_jax.planning import devices, estimate, flops
from mae_jax.training import metric_writer
from scripts.benchmark import alternating, step, torch_mae, trace

DECODED = (1.0, 0.75, 0.25)  # shares of the masked patches that are predicted


def about(part: str, config, options: argparse.Namespace) -> dict:
    """Return what every report says first."""
    return {
        "part": part,
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cores": torch_mae.cores(),
        "jax": jax.__version__,
        "batch_size": config.batch_size,
        "rounds": options.rounds,
        "steps": options.steps,
    }


def steps(config, options: argparse.Namespace) -> dict:
    """Time the training step or the forward pass, with PyTorch and a matrix product beside it."""
    torch_device = torch_mae.device_of(config) if options.against else ""
    ours = step.compile(config, options.part)
    others, product, product_flops = [], None, 0
    if torch_device:
        inputs = np.asarray(ours.inputs)
        others = torch_mae.contenders(config, inputs, options.part, torch_device)
        refuse_other_work(ours.contender, others)
    contenders = [ours.contender, *others]
    if options.peak == "measure":
        product, product_flops = step.matrix_product(ours.dtype)
        contenders.append(product)
    seconds, losses = alternating.alternate(contenders, options.rounds, options.steps)
    for name, loss in losses.items():
        if not math.isfinite(loss):
            raise ValueError(f"the loss of {name} became {loss}: the timings are worth nothing")
    offers = devices.find(jax.devices()[0].device_kind)
    peak = options.peak or (offers and offers.flops)
    if product:
        peak = product_flops / statistics.median(seconds[product.name])

    metrics = about(options.part, config, options) | described(config, options.part, ours)
    metrics |= alternating.metrics(seconds["mae_jax"], config.batch_size)
    rate = metrics["flops_per_step"] / (1e-3 * metrics["step_milliseconds"])
    metrics |= {
        "flops_per_second": rate,
        "peak_flops_per_second": peak and peak * jax.device_count(),
        "peak_measured": product is not None,
        "mfu": peak and rate / (peak * jax.device_count()),
        **step.memory(ours.executable),
        "loss": losses["mae_jax"],
    }
    if others:
        metrics |= against(config, others, seconds, losses)
    if options.profile or options.operations:
        with tempfile.TemporaryDirectory() as folder:
            path = trace.record(ours.contender, options.profile or folder)
            if options.operations:
                metrics["operations"] = trace.shares(path, ours.executable.as_text() or "")
    return metrics


def refuse_other_work(ours: alternating.Contender, others: list[alternating.Contender]) -> None:
    """Raise ValueError if another contender trains another number of parameters."""
    for other in others:
        if other.parameters != ours.parameters:
            raise ValueError(
                f"{other.name} has {other.parameters} parameters, mae_jax {ours.parameters}: that "
                "is not the same work"
            )


def described(config, part: str, ours: step.Compiled) -> dict:
    """Return what was compiled, and its FLOPs."""
    (_, masks), parts = estimate.network(config), estimate.forward_flops(config)
    batch = config.batch_size
    return {
        "dtype": np.dtype(ours.dtype).name,
        "accumulation": config.accumulation,
        "parameters": ours.contender.parameters,
        "patches": masks.n,
        "visible_patches": masks.keep,
        "decoded_patches": masks.decode,
        "compile_seconds": ours.compile_seconds,
        "forward_flops_per_image": parts,
        "flops_per_step": (
            flops.step_flops(parts, batch) if part == "step" else batch * sum(parts.values())
        ),
        "flops_per_step_program": ours.flops,
    }


def against(config, others: list[alternating.Contender], seconds: dict, losses: dict) -> dict:
    """Return the metrics of the other contenders, relative to ours."""
    import torch
    import transformers

    rows = {}
    for other in others:
        ratios = alternating.ratios(seconds[other.name], seconds["mae_jax"])
        rows[other.name] = {
            **alternating.metrics(seconds[other.name], config.batch_size),
            "times_as_long": statistics.median(ratios),
            "times_as_long_rounds": ratios,
            "memory_peak_bytes": other.memory,
            "loss": losses[other.name],
        }
    return {
        "against": rows,
        "against_forward_flops_per_image": torch_mae.forward_flops(config),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def decoders(config, options: argparse.Namespace) -> dict:
    """Time steps with either decoder, which predict less and less of the masked patches.

    The cross-decoder has half as many blocks again, as CrossMAE has 12 for 8: about the same FLOPs.
    """
    depth = config.model.decoder_depth
    depths = {"self": depth, "cross": round(depth * 1.5)}
    if config.model.decoder != "self":
        depths = {"self": round(depth / 1.5), "cross": depth}
    changes = {}
    for decoder, blocks in depths.items():
        for share in DECODED:
            changes[f"{decoder} decoder, {blocks} blocks, {share:.0%} predicted"] = {
                "model.decoder": decoder,
                "model.decoder_depth": blocks,
                "mask.decode": share,
            }
    return variants("decoders", config, options, changes)


def implementations(config, options: argparse.Namespace) -> dict:
    """Time steps with each implementation of attention that runs on these devices."""
    changes, backend = {}, jax.default_backend()
    loops = () if backend == "cpu" else ("per_sample",)  # a loop over samples is for CPUs
    for name in [x for x in attention.IMPLEMENTATIONS if x not in loops]:
        with contextlib.suppress(ValueError):
            attention.check(name, backend)
            changes[f"{name} attention"] = {"model.attention": name}
    return variants("attention", config, options, changes)


def variants(
    part: str, config, options: argparse.Namespace, changes: dict[str, dict[str, Any]]
) -> dict:
    """Time the steps of several changes of a config in alternating rounds."""
    contenders, rows = [], {}
    for name, change in changes.items():
        variant = schema.updated(config, change)
        compiled = step.compile(variant, name=name)
        contenders.append(compiled.contender)
        rows[name] = {
            "memory_planned_bytes": step.memory(compiled.executable)["memory_planned_bytes"],
            "temporary_bytes": step.temporary_bytes(compiled.executable),
            "forward_flops_per_image": sum(estimate.forward_flops(variant).values()),
        }
    seconds, losses = alternating.alternate(contenders, options.rounds, options.steps)
    first = next(iter(rows))
    for name, row in rows.items():
        ratios = alternating.ratios(seconds[name], seconds[first])
        row |= alternating.metrics(seconds[name], config.batch_size)
        row |= {"times_as_long": statistics.median(ratios), "loss": losses[name]}
    return about(part, config, options) | {"rows": rows}


def training_source(config):
    """Open the training examples of a config.

    Raises:
      ValueError: they are missing; with the way out.
    """
    from mae_jax.data import image_io, sources  # the step needs nothing that reads data

    image_io.configure_libraries()
    data = config.data
    try:
        source = sources.open_source(data.train.source, data.train.split, data.modality)
        return sources.subset(source, data.examples)
    except (ValueError, OSError, ImportError) as error:
        synthetic = dict(video="pans", audio="tones", volume="phantoms", signal="beats")
        synthetic |= dict(text="stdlib")
        name = synthetic.get(data.modality, "synthetic")
        raise ValueError(
            f"{error}; synthetic examples will do with --config.data.train.source={name}"
        ) from error


def one_input_round(config, source, steps: int, start: int) -> dict:
    """Return the seconds of wall and of CPU for a batch, by a fresh pipeline that nobody else uses.

    The first batch, which starts threads and fills buffers, is not counted; from then on as many
    examples are under way at the end as at the beginning.
    """
    from mae_jax.data import pipeline
    from mae_jax.data.modalities import transforms

    batches: Any = pipeline.training_batches(
        source,
        transforms.train_transform(config.data),
        pipeline.Order(config.batch_size, config.seed, config.data.repeats),
        start=start,
        threads=config.data.threads,
    )
    with contextlib.closing(batches):
        next(batches)
        begin, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            batch = next(batches)
        taken, used = time.perf_counter() - begin, time.process_time() - cpu
    return {"seconds": taken / steps, "cpu": used / steps, "bytes": batch["image"].nbytes}


def input_metrics(config, rounds: list[dict]) -> dict:
    """Summarise the rounds of `one_input_round`."""
    batch = config.batch_size
    rate = batch / statistics.median(row["seconds"] for row in rounds)
    cpu = statistics.median(row["cpu"] for row in rounds) / batch
    return {
        "source": config.data.train.source,
        "data_threads": config.data.threads,
        "images_per_second": rate,
        "images_per_second_per_core": rate / torch_mae.cores(),
        "cpu_milliseconds_per_image": 1e3 * cpu,
        "bytes_per_second": rate * rounds[0]["bytes"] / batch,
        "rounds_milliseconds": [1e3 * row["seconds"] for row in rounds],
    }


def inputs(config, options: argparse.Namespace) -> dict:
    """Time the pipeline of the config's training data alone: read, decode, crop, put together."""
    source = training_source(config)
    rounds = [
        one_input_round(config, source, options.steps, number * (options.steps + 2))
        for number in range(options.rounds)
    ]
    return about("input", config, options) | input_metrics(config, rounds)


def loop(config, options: argparse.Namespace) -> dict:
    """Time the loop of `mae_jax.train`, and the step alone and the input alone in turns.

    The loop is that of a short run without evaluation, in a work directory that is dropped.
    """
    source = training_source(config)
    half = (0.5,) * config.data.channels  # measuring them takes long and changes no speed
    auto = [name for name in ("mean", "std") if config.data[name] == "auto"]
    config = schema.updated(config, {f"data.{name}": half for name in auto})
    compiled = step.compile(config)
    input_rounds, steps = [], []
    for number in range(options.rounds):
        start = number * (options.steps + 2)
        input_rounds.append(one_input_round(config, source, options.steps, start))
        steps.append(alternating.one_round(compiled.contender, options.steps)[0])
    del compiled  # and its state, which takes memory
    gc.collect()

    rates = loop_rates(config, len(source), options.rounds, options.steps)
    metrics = {
        "input": input_metrics(config, input_rounds),
        "step": alternating.metrics(steps, config.batch_size),
        "loop": {"images_per_second": statistics.median(rates), "rounds_images_per_second": rates},
    }
    speeds = {name: part["images_per_second"] for name, part in metrics.items()}
    speeds["loop"] = max(rates)  # it ran after the others: a busy machine only slows it down
    line = bottleneck(**speeds, shared=jax.default_backend() == "cpu")
    return about("loop", config, options) | metrics | {"bottleneck": line}


def loop_rates(config, examples: int, windows: int, steps: int) -> list[float]:
    """Return the images per second that a short run logs, each over so many steps.

    The first five steps are left out: their batches were made while the step was compiled. So is
    the last window, at whose end the loop waits for no other batch.
    """
    from mae_jax import train

    warm = -(-5 // steps)  # windows that hold the first five steps
    per_epoch = max(1, examples * config.data.repeats // config.batch_size)
    changes = dict(epochs=(warm + windows + 1) * steps / per_epoch, log_every=steps, evaluators={})
    changes |= {"save_every": 10**9, "optimizer.warmup_epochs": 0}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        train.train(schema.updated(config, changes), folder)
        _, rates = metric_writer.series(metric_writer.read(folder), "images_per_second")
    return rates[warm:-1]


def bottleneck(loop: float, step: float, input: float, shared: bool) -> str:
    """Name the bottleneck in one line, from images per second.

    Args:
      shared: the step and the input run on the same cores, so their times add up.
    """
    could = 1 / (1 / step + 1 / input) if shared else min(step, input)
    if loop < 0.75 * could:
        return (
            f"bottleneck: the loop ({loop:,.0f} images/s at best; the step alone could take "
            f"{step:,.0f}, the input alone could give {input:,.0f})"
        )
    if input < step:
        return f"bottleneck: input ({input:,.0f} images/s; the step could take {step:,.0f})"
    return f"bottleneck: step ({step:,.0f} images/s; the input could give {input:,.0f})"
