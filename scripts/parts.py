"""What surrounds the step in a benchmark: either decoder, the input, the loop."""

import contextlib
import gc
import io
import statistics
import tempfile
import time
from typing import Any

import jax
import jax_mae  # this and the next two are beside this file
import rounds
import torch_mae

from mae_jax.planning import flops
from mae_jax.tasks import pretrain
from mae_jax.training import metric_writer

SHARES = (1.0, 0.75, 0.25)  # of the hidden patches that are predicted


def decoders(config, options) -> dict:
    """Steps with the self- and the cross-decoder, with less and less of the hidden patches decoded.

    The cross-decoder has half as many blocks again, as CrossMAE has 12 for 8: about the same FLOPs.
    """
    depth, cross = config["model"]["decoder_depth"], config["model"]["decoder_cross"]
    depths = {"self": round(depth / 1.5), "cross": depth}
    if not cross:
        depths = {"self": depth, "cross": round(depth * 1.5)}
    programs, rows = {}, {}
    for decoder, blocks in depths.items():
        for share in SHARES:
            config["model"] |= dict(decoder_cross=decoder == "cross", decoder_depth=blocks)
            config["mask"] |= dict(decode=share)
            name = f"{decoder}, {blocks} blocks, {share:.0%}"
            programs[name] = program = jax_mae.program(config, name=name)
            model, hide = pretrain.model_of(config), pretrain.hiding_of(config)
            parts = flops.forward_flops(
                model, hide.n, hide.keep, config["data"]["channels"], hide.decode
            )
            analysis = program.compiled.memory_analysis()
            rows[name] = {
                "decoder": decoder,
                "decode": share,
                "memory_planned_bytes": jax_mae.memory(program.compiled)["memory_planned_bytes"],
                "temporary_bytes": analysis.temp_size_in_bytes if analysis else None,
                "forward_flops_per_image": sum(parts.values()),
            }
    contenders = [program.contender for program in programs.values()]
    seconds, _ = rounds.alternate(contenders, options.rounds, options.steps)
    first = next(iter(rows))
    for name, row in rows.items():
        row |= rounds.figures(seconds[name], config["batch_size"])
        row["times_as_long"] = statistics.median(rounds.ratios(seconds[name], seconds[first]))
    return about("decoders", config, options) | {"rows": rows}


def about(part: str, config, options) -> dict:
    """What a report says first."""
    return {
        "part": part,
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cores": torch_mae.cores(),
        "jax": jax.__version__,
        "batch_size": config["batch_size"],
        "rounds": options.rounds,
        "steps": options.steps,
    }


def opened(config):
    """The training examples of a config.

    Raises:
      ValueError: they are not there, with the way out.
    """
    from mae_jax.data import sources  # here, so that the step needs nothing that reads data

    data = config["data"]
    try:
        source = sources.open_source(
            data["train"]["source"], data["train"]["split"], data["modality"]
        )
        return sources.subset(source, data["examples"])
    except (ValueError, OSError, ImportError) as error:
        generated = dict(video="pans", audio="tones", volume="phantoms", text="stdlib")
        name = generated.get(data["modality"], "synthetic")
        raise ValueError(
            f"{error}; generated examples will do with --config.data.train.source={name}"
        ) from error


def one_input_round(config, source, steps: int, start: int) -> dict:
    """Seconds of wall and of CPU for a batch, by a fresh pipeline that nobody else waits for.

    The first batch, which starts threads and fills buffers, is not counted; from then on as many
    examples are under way at the end as at the beginning.
    """
    from mae_jax.data import pipeline
    from mae_jax.data.modalities import transforms as inputs

    batches: Any = pipeline.training_batches(
        source,
        inputs.train_transform(config["data"]),
        batch_size=config["batch_size"],
        seed=config["seed"],
        start=start,
        threads=config["data"]["threads"],
        repeats=config["data"]["repeats"],
    )
    with contextlib.closing(batches):
        next(batches)
        begin, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            batch = next(batches)
        taken, used = time.perf_counter() - begin, time.process_time() - cpu
    return {"seconds": taken / steps, "cpu": used / steps, "bytes": batch["image"].nbytes}


def input_figures(config, taken: list[dict]) -> dict:
    batch = config["batch_size"]
    rate = batch / statistics.median(row["seconds"] for row in taken)
    cpu = statistics.median(row["cpu"] for row in taken) / batch
    return {
        "source": config["data"]["train"]["source"],
        "data_threads": config["data"]["threads"],
        "images_per_second": rate,
        "images_per_second_per_core": rate / torch_mae.cores(),
        "cpu_milliseconds_per_image": 1e3 * cpu,
        "bytes_per_second": rate * taken[0]["bytes"] / batch,
        "rounds_milliseconds": [1e3 * row["seconds"] for row in taken],
    }


def inputs(config, options) -> dict:
    """The pipeline of the config's training data alone: read, decode, crop, put together."""
    source = opened(config)
    taken = [
        one_input_round(config, source, options.steps, number * (options.steps + 2))
        for number in range(options.rounds)
    ]
    return about("input", config, options) | input_figures(config, taken)


def loop(config, options) -> dict:
    """The loop of `mae_jax.train`, beside the step alone and the input alone in alternating rounds.

    It is a short run without evaluation, in a work directory that is dropped.
    """
    source = opened(config)
    half = (0.5,) * config["data"]["channels"]  # measuring them takes long and changes no speed
    config["data"] |= {name: half for name in ("mean", "std") if config["data"][name] == "auto"}
    program = jax_mae.program(config)
    taken, steps = [], []
    for number in range(options.rounds):
        start = number * (options.steps + 2)
        taken.append(one_input_round(config, source, options.steps, start))
        steps.append(rounds.one_round(program.contender, options.steps)[0])
    del program  # and its state, which takes memory
    gc.collect()

    rates = loop_rates(config, len(source), options.rounds, options.steps)
    figures = {
        "input": input_figures(config, taken),
        "step": rounds.figures(steps, config["batch_size"]),
        "loop": {"images_per_second": statistics.median(rates), "rounds_images_per_second": rates},
    }
    speeds = {name: part["images_per_second"] for name, part in figures.items()}
    speeds["loop"] = max(rates)  # it ran after the others: a busy machine only slows it down
    line = bottleneck(**speeds, shared=jax.default_backend() == "cpu")
    return about("loop", config, options) | figures | {"bottleneck": line}


def loop_rates(config, examples: int, windows: int, steps: int) -> list[float]:
    """Images per second that a short run logs, each over so many steps.

    The first five steps are left out: their batches were made while the step was compiled. So is
    the last window, at whose end the loop waits for no other batch.
    """
    from ml_collections import ConfigDict

    from mae_jax import train

    full = -(-5 // steps)  # windows with such batches
    an_epoch = max(1, examples * config["data"]["repeats"] // config["batch_size"])
    config |= dict(
        epochs=(full + windows + 1) * steps / an_epoch, log_every=steps, save_every=10**9
    )
    config["optimizer"] |= dict(warmup_epochs=0)
    config["evaluate"] |= dict(every=0)
    config["data"]["test"] |= dict(source="")
    for name in ("train", "test"):
        config["probe"][name] |= dict(source="")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        train.train(ConfigDict(config), folder)
        _, rates = metric_writer.series(metric_writer.read(folder), "images_per_second")
    return rates[full:-1]


def bottleneck(loop: float, step: float, input: float, shared: bool) -> str:
    """One line that names it, from images per second.

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
