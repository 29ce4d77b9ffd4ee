"""Time the compiled pre-training step on generated pictures that already lie on the devices.

    python scripts/benchmark.py --config=configs/vit_base.py --batch-size=1024
    python scripts/benchmark.py --config=configs/vit_large.py --dtype=bfloat16 --json=large.json
    python scripts/benchmark.py --config=configs/quickstart.py --peak=0.5   # of one device, for MFU

It is the step that `mae_jax.train` runs (augmentation, masks, optimiser, donated state) without
reading data, and needs none of the packages that read data; where mae_jax is not installed, set
PYTHONPATH to the repository. FLOPs are counted by hand, in `forward_flops`.
"""

import argparse
import json
import math
import statistics
import sys
import time
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from mae_jax import config as configs
from mae_jax import mae, metrics, optimizer, sharding
from mae_jax.step import make_init, make_step
from mae_jax.tasks import pretrain

# Dense bfloat16 FLOP/s of what jax calls one device, from the vendors' data sheets, by the first
# words of its `device_kind`; the longest match counts.
PEAKS = {
    "TPU v3": 61.5e12,  # one of the two cores of a chip
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
}
WARMUP = 3  # steps before the timed ones


def forward_flops(
    model: mae.MaskedAutoencoder, patches: int, keep: int, channels: int, decode: int | None = None
) -> dict[str, int]:
    """FLOPs of the forward pass of one picture, part by part: its matrix products alone.

    A product [a b] x [b c] is 2abc. Norms, softmax, GELU and the optimiser are left out (they are
    bound by memory), as is usual for the MFU.

    Args:
      patches, keep: n patches in a picture, of which k are visible.
      decode: how many of the others are predicted, by default all.
    """
    decode = patches - keep if decode is None else decode

    def product(a: int, b: int, c: int) -> int:
        return 2 * a * b * c

    def block(tokens: int, width: int, seen: int | None = None, wide: int | None = None) -> int:
        """Of self-attention, or of cross-attention to `seen` tokens of width `wide`."""
        seen, wide = seen or tokens, wide or width
        projections = 2 * product(tokens, width, width)  # query and out
        projections += 2 * product(seen, wide, width)  # key and value
        attention = 2 * product(tokens, width, seen)  # logits and the weighted sum, all heads
        mlp = 2 * product(tokens, width, int(width * model.mlp_ratio))
        return projections + attention + mlp

    pixels = math.prod(model.patch) * channels  # values in a patch
    width, seen = model.decoder_width, 1 + keep
    if model.decoder_cross:
        into = "feature maps", product(model.depth + 1, seen * model.width, model.decoder_depth)
        decoder_block = block(decode, width, seen, model.width)
    else:
        into = "decoder embedding", product(seen, model.width, width)
        decoder_block = block(seen + decode, width)
    target = pixels // math.prod(model.target_stride or (1,)) * (model.categories or 1)
    return {
        "patch embedding": product(keep, pixels * (model.categories or 1), model.width),
        "encoder blocks": model.depth * block(seen, model.width),
        into[0]: into[1],
        "decoder blocks": model.decoder_depth * decoder_block,
        "head": product(decode, width, target),
    }


def step_flops(forward: int, batch_size: int) -> int:
    """FLOPs of a training step: backward is twice forward.

    Each product has two in the backward pass, one for either factor. (The patch embedding needs
    only one, as nobody asks for the gradient of the pixels: below 1 % of the whole.)
    """
    return 3 * forward * batch_size


def peak_flops(kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of a device kind, if known."""
    words = kind.replace("-", " ") + " "  # "NVIDIA A100-SXM4-80GB"; "NVIDIA L40" is no "NVIDIA L4"
    names = [name for name in PEAKS if words.startswith(name + " ")]
    return PEAKS[max(names, key=len)] if names else None


def build(config):
    """The jitted training step of `config`, a state and a batch, placed as training places them."""
    mesh = sharding.make_mesh(config["mesh"]["data"], config["mesh"]["fsdp"])
    if config["batch_size"] % (mesh.size * config["accumulation"]):
        raise ValueError(
            f"batch size {config['batch_size']} is not a multiple of {mesh.size} device(s) x "
            f"accumulation {config['accumulation']}: give another --batch-size"
        )
    data, options = config["data"], dict(config["optimizer"])
    numbers = lambda name, other: other if data[name] == "auto" else data[name]
    half = (0.5,) * data["channels"]
    init, augment, loss = pretrain.training(config, numbers("mean", half), numbers("std", half))
    ema, rate = options.pop("ema"), options.pop("base_learning_rate")
    del options["warmup_epochs"]
    schedule = optimizer.cosine_schedule(rate, config["batch_size"], steps=100_000, warmup=5_000)
    tx = optimizer.adamw(schedule, **options)

    init_key, step_key, data_key = jax.random.split(jax.random.key(config["seed"]), 3)
    init, step, _ = sharding.jit_training(
        make_init(init, tx, ema),
        make_step(augment, loss, tx, schedule, step_key, config["accumulation"], ema),
        mesh,
    )
    shape = (config["batch_size"], *data["size"], data["channels"])
    draw = lambda key: {"image": jax.random.bits(key, shape, jnp.uint8)}
    batch = jax.jit(draw, out_shardings=sharding.batched(mesh))(data_key)

    return step, init(init_key), batch


def time_steps(step, state, batch, steps: int) -> tuple[list[float], float]:
    """Seconds between the ends of consecutive steps, and the last loss.

    As in training the next step is dispatched before the figures of the last one are read, so the
    device never waits for Python.
    """
    ends, unread = [], None
    for _ in range(WARMUP + steps + 1):
        state, figures = step(state, batch)
        if unread is not None:
            unread["loss"].block_until_ready()
            ends.append(time.perf_counter())
        unread = figures
    assert unread is not None
    loss = float(unread["loss"])
    times = [end - start for start, end in zip(ends, ends[1:], strict=False)]
    return times[-steps:], loss


def memory(compiled) -> dict[str, int | None]:
    """Bytes on one device: what the compiler planned, and the most that was in use."""
    analysis, planned = compiled.memory_analysis(), None
    if analysis is not None:  # donated arguments are outputs too: they are held once
        held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
        planned = held - analysis.alias_size_in_bytes + analysis.temp_size_in_bytes
    used = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {"memory_planned_bytes": planned, "memory_peak_bytes": used}


def benchmark(config, steps: int, peak: float | None) -> dict:
    """All figures of one config, by the names that `--json` writes."""
    model = pretrain.model_of(config)
    hide = pretrain.hiding_of(config)
    n, keep = hide.n, hide.keep
    parts = forward_flops(model, n, keep, config["data"]["channels"], hide.decode)
    forward = sum(parts.values())

    step, state, batch = build(config)
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    lowered = step.lower(state, batch)
    begin = time.perf_counter()
    compiled = lowered.compile()
    compile_seconds = time.perf_counter() - begin
    times, loss = time_steps(compiled, state, batch, steps)
    if not math.isfinite(loss):
        raise ValueError(f"the loss became {loss}: the timings are worth nothing")

    device, devices = jax.devices()[0].device_kind, jax.device_count()
    peak = peak or peak_flops(device)
    seconds = statistics.median(times)
    flops = step_flops(forward, config["batch_size"])
    # Of the program before it is compiled, since nobody sees into cuBLAS's kernels. The compiler
    # counts a loop's body once, so with accumulation there is no figure.
    counted = None if config["accumulation"] > 1 else (lowered.cost_analysis() or {}).get("flops")
    return {
        "device": device,
        "devices": devices,
        "jax": jax.__version__,
        "dtype": np.dtype(model.dtype).name,
        "batch_size": config["batch_size"],
        "accumulation": config["accumulation"],
        "parameters": parameters,
        "patches": n,
        "visible_patches": keep,
        "decoded_patches": hide.decode,
        "steps": steps,
        "compile_seconds": compile_seconds,
        "step_milliseconds": 1e3 * seconds,
        "step_milliseconds_fastest": 1e3 * min(times),
        "step_milliseconds_slowest": 1e3 * max(times),
        "images_per_second": config["batch_size"] / seconds,
        "forward_flops_per_image": parts,
        "flops_per_step": flops,
        "flops_per_step_xla": counted,
        "flops_per_second": flops / seconds,
        "peak_flops_per_second": peak and peak * devices,
        "mfu": peak and flops / seconds / (peak * devices),
        **memory(compiled),
        "loss": loss,
    }


def amount(value: float | None, unit: str) -> str:
    """`19.1 GFLOP`: at least three digits, with the prefix that fits."""
    if value is None:
        return "unknown"
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            value /= scale
            return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {prefix}{unit}"
    return f"{value:.0f} {unit}"


def report(figures: dict) -> str:
    """The figures as an aligned table."""
    forward = figures["forward_flops_per_image"]
    whole = sum(forward.values())
    rows = {
        "device": "{devices} x {device}",
        "parameters": amount(figures["parameters"], ""),
        "computed in": "{dtype}",
        "batch size": "{batch_size} in {accumulation} part(s)",
        "compilation": "{compile_seconds:.1f} s",
        "step, median of {steps}": "{step_milliseconds:,.2f} ms",
        "  fastest": "{step_milliseconds_fastest:,.2f} ms",
        "  slowest": "{step_milliseconds_slowest:,.2f} ms",
        "images per second": "{images_per_second:,.1f}",
        "forward pass of one image": amount(whole, "FLOP"),
        **{f"  {name}": f"{value / whole:.1%}" for name, value in forward.items()},
        "step (3 x forward x batch)": amount(figures["flops_per_step"], "FLOP"),
        "  as XLA counts it": amount(figures["flops_per_step_xla"], "FLOP"),
        "achieved": amount(figures["flops_per_second"], "FLOP/s"),
        "peak": amount(figures["peak_flops_per_second"], "FLOP/s"),
        "MFU": "{mfu:.1%}" if figures["mfu"] else "unknown (give --peak=TFLOPS)",
        "memory of a device, planned": amount(figures["memory_planned_bytes"], "B"),
        "memory of a device, most in use": amount(figures["memory_peak_bytes"], "B"),
    }
    return metrics.table([[x.format(**figures) for x in row] for row in rows.items()])


def positive(kind):
    """An argument's type: a `kind` above 0."""

    def read(text: str):
        if (value := kind(text)) <= 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    read.__name__ = kind.__name__  # argparse names it when the text is no number
    return read


def refuse(why: str) -> NoReturn:
    """A user's mistake: one sentence, exit status 2."""
    print(f"error: {why}", file=sys.stderr)
    sys.exit(2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="configs/NAME.py or configs/NAME.py:debug")
    parser.add_argument("--batch-size", type=positive(int), help="global; default: the config's")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), help="the config's")
    parser.add_argument("--steps", type=positive(int), default=20, help="that are timed")
    parser.add_argument("--peak", type=positive(float), help="of one device, in teraFLOP/s")
    parser.add_argument("--json", metavar="FILE", help="where the figures are written too")
    arguments = parser.parse_args()
    try:
        config = configs.load(arguments.config)
        config["batch_size"] = arguments.batch_size or config["batch_size"]
        config["model"]["dtype"] = arguments.dtype or config["model"]["dtype"]
        peak = arguments.peak and arguments.peak * 1e12
        figures = benchmark(config, arguments.steps, peak)
        if arguments.json:
            with open(arguments.json, "w") as file:
                file.write(json.dumps(figures, indent=2) + "\n")
    except (ValueError, OSError) as error:
        refuse(str(error))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        refuse(
            f"batch size {config['batch_size']} does not fit into the memory of "
            f"{jax.device_count()} {jax.devices()[0].device_kind} device(s): give a smaller "
            "--batch-size"
        )
    print(report(figures))


if __name__ == "__main__":
    main()
