"""Time a masked autoencoder: its compiled training step, beside the same work in PyTorch.

    python scripts/benchmark.py --config=configs/vit_base.py --config.batch_size=256
    python scripts/benchmark.py --config=configs/vit_base.py --config.batch_size=256 --against=torch
    python scripts/benchmark.py --config=configs/vit_base.py --part=forward --json=forward.json
    python scripts/benchmark.py --config=configs/vit_base.py --part=decoders
    python scripts/benchmark.py --config=configs/quickstart.py --part=input   # read, decode, crop
    python scripts/benchmark.py --config=configs/quickstart.py --part=loop    # what limits it
    python scripts/benchmark.py --config=configs/quickstart.py --peak=measure  # for the MFU
    python scripts/benchmark.py --config=configs/quickstart.py --operations --profile=DIR

All that is compared runs in alternating rounds of one process on one device, and the ratio is taken
round by round. Nothing that reads data is needed; where mae_jax is not installed, set PYTHONPATH to
the repository. FLOPs are counted by hand, in `mae_jax.flops`.
"""

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax_mae  # this and the next five are beside this file
import numpy as np
import operations
import parts
import rounds
import tables
import torch_mae

from mae_jax.config import command_line
from mae_jax.config.errors import UserError
from mae_jax.models import attention
from mae_jax.planning import devices as devicess
from mae_jax.planning import flops
from mae_jax.tasks import pretrain


def benchmark(config, options: argparse.Namespace) -> dict:
    """All figures of the step or of the forward pass, by the names that `--json` writes."""
    attention.check(config["model"]["attention"], jax.default_backend())
    model, hide = pretrain.model_of(config), pretrain.hiding_of(config)
    batch, channels = config["batch_size"], config["data"]["channels"]
    products = flops.forward_flops(model, hide.n, hide.keep, channels, hide.decode)
    work = batch * sum(products.values())
    work = flops.step_flops(products, batch) if options.part == "step" else work

    torch_device = torch_mae.device_of(config) if options.against else ""
    ours = jax_mae.program(config, options.part)
    contenders = [ours.contender]
    if torch_device:
        images = np.asarray(ours.images)
        contenders += torch_mae.contenders(config, images, options.part, torch_device)
        for other in contenders:
            if other.parameters != contenders[0].parameters:
                raise ValueError(
                    f"{other.name} has {other.parameters} parameters, mae_jax "
                    f"{contenders[0].parameters}: that is not the same work"
                )
    device, devices = jax.devices()[0].device_kind, jax.device_count()
    product, product_flops = None, 0
    peak: Any = devicess.peak_flops(device) if options.peak is None else options.peak
    if peak == "measure":
        peak, (product, product_flops) = None, jax_mae.matrix_product(model.dtype)
        contenders.append(product)
    seconds, losses = rounds.alternate(contenders, options.rounds, options.steps)
    for name, loss in losses.items():
        if not math.isfinite(loss):
            raise ValueError(f"the loss of {name} became {loss}: the timings are worth nothing")
    if product:
        losses.pop(product.name)
        peak = product_flops / statistics.median(seconds.pop(product.name))

    rate = work / statistics.median(seconds["mae_jax"])
    figures = {
        "part": options.part,
        "device": device,
        "devices": devices,
        "cores": torch_mae.cores(),
        "jax": jax.__version__,
        "dtype": np.dtype(model.dtype).name,
        "batch_size": batch,
        "accumulation": config["accumulation"],
        "parameters": ours.contender.parameters,
        "patches": hide.n,
        "visible_patches": hide.keep,
        "decoded_patches": hide.decode,
        "rounds": options.rounds,
        "steps": options.steps,
        "compile_seconds": ours.compile_seconds,
        **rounds.figures(seconds["mae_jax"], batch),
        "forward_flops_per_image": products,
        "flops_per_step": work,
        "flops_per_step_program": ours.flops,
        "flops_per_second": rate,
        "peak_flops_per_second": peak and peak * devices,
        "peak_measured": product is not None,
        "mfu": peak and rate / (peak * devices),
        **jax_mae.memory(ours.compiled),
        "loss": losses["mae_jax"],
    }
    for other in contenders[1:]:
        if other is product:
            continue
        ratios = rounds.ratios(seconds[other.name], seconds["mae_jax"])
        figures.setdefault("against", {})[other.name] = {
            **rounds.figures(seconds[other.name], batch),
            "times_as_long": statistics.median(ratios),
            "times_as_long_rounds": ratios,
            "memory_peak_bytes": other.memory,
            "loss": losses[other.name],
        }
    if options.profile or options.operations:
        with tempfile.TemporaryDirectory() as folder:
            path = operations.trace(ours.contender, options.profile or folder)
            if options.operations:
                figures["operations"] = operations.shares(path, ours.compiled.as_text() or "")
    if "against" in figures:
        import torch
        import transformers

        figures |= {"torch": torch.__version__, "transformers": transformers.__version__}
        done = flops.reference_flops(model, hide.n, hide.keep, channels)
        figures["against_forward_flops_per_image"] = done
    return figures


def positive(kind):
    """An argument's type: a `kind` above 0."""

    def read(text: str):
        if not 0 < (value := kind(text)) < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is no number above 0")
        return value

    read.__name__ = kind.__name__  # argparse names it when the text is no number
    return read


def peak_of(text: str) -> float | str:
    """`--peak`: FLOP/s from teraFLOP/s, or "measure"."""
    return text if text == "measure" else 1e12 * positive(float)(text)


peak_of.__name__ = "number"


def refuse(why: str) -> NoReturn:
    """A user's mistake: one sentence, exit status 2."""
    print(f"error: {why}", file=sys.stderr)
    sys.exit(2)


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", required=True, help="configs/NAME.py or :debug; with --config.key=value ...")
    add("--part", choices=tuple(PARTS), default="step", help="what is timed")
    add("--against", choices=("torch",), help="the same work in Hugging Face's ViTMAE")
    add("--rounds", type=positive(int), default=7, help="that the contenders take turns in")
    add("--steps", type=positive(int), default=3, help="that are timed in each round")
    add("--peak", type=peak_of, help="of one device in teraFLOP/s, or `measure`")
    add(
        "--profile", metavar="DIR", help="where a trace of a few steps is written, after the rounds"
    )
    add("--operations", action="store_true", help="also say what the time of a step goes to")
    add("--json", metavar="FILE", help="where the figures are written too, of every round")


PARTS: dict[str, tuple[Callable, Callable]] = {
    "step": (benchmark, tables.step),
    "forward": (benchmark, tables.step),
    "decoders": (parts.decoders, tables.decoders),
    "input": (parts.inputs, tables.inputs),
    "loop": (parts.loop, tables.loop),
}


def main() -> None:
    parser = command_line.Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # or --config.x would be an abbreviation
    )
    arguments(parser)
    try:
        options, changes = parser.parse_known_args()
    except UserError as mistake:
        refuse(str(mistake))
    timed = options.part in ("step", "forward")
    if not timed and (options.against or options.operations or options.profile or options.peak):
        refuse(f"--part={options.part} goes without --against, --operations, --profile and --peak")
    if options.against:  # both frameworks need room on a GPU
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        config = command_line.configured(options.config, changes)
        if config["task"] != "pretrain":
            refuse(f"{options.config} is of task {config['task']!r}: give a config of pre-training")
        measure, table = PARTS[options.part]
        if options.json:
            open(options.json, "a").close()  # before the minutes that it takes
        figures = measure(config, options)
        if options.json:
            with open(options.json, "w") as file:
                file.write(json.dumps(figures, indent=2) + "\n")
    except (UserError, ValueError, OSError) as error:
        refuse(str(error))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr, flush=True)
        os._exit(130)  # a compilation that goes on would crash
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        refuse(
            f"the batch does not fit into the memory of {jax.device_count()} "
            f"{jax.devices()[0].device_kind} device(s): give a smaller --config.batch_size"
        )
    print(table(figures))


if __name__ == "__main__":
    main()
