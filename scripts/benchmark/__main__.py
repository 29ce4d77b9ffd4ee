"""Time a masked autoencoder: its compiled training step, beside the same work in PyTorch.

    python -m scripts.benchmark --config=configs/vit_base.py --config.batch_size=256
    python -m scripts.benchmark --config=configs/vit_base.py --config.batch_size=256 --against=torch
    python -m scripts.benchmark --config=configs/vit_base.py --part=forward --json=forward.json
    python -m scripts.benchmark --config=configs/vit_base.py --part=decoders   # or attention
    python -m scripts.benchmark --config=configs/quickstart.py --part=input   # read, decode, crop
    python -m scripts.benchmark --config=configs/quickstart.py --part=loop    # what limits it
    python -m scripts.benchmark --config=configs/quickstart.py --peak=measure  # for the MFU
    python -m scripts.benchmark --config=configs/quickstart.py --operations --profile=DIR

Run it in the repository. The step is the one that `mae_jax.train` runs with the same config. All
that is compared runs in alternating rounds of one process on one device, and the ratio is taken
round by round. Timing the step needs no package that reads data. FLOPs are counted by arithmetic,
see `mae_jax/planning/flops.py`. On a GPU machine `python -m scripts.benchmark.gpu` measures all of
this in one run.
"""

import argparse
import os
from collections.abc import Callable

import jax

from mae_jax.config import command_line, errors
from mae_jax.models import rules
from mae_jax.output import files
from scripts.benchmark import report, sections

PARTS: dict[str, tuple[Callable, Callable]] = {
    "step": (sections.steps, report.steps),
    "forward": (sections.steps, report.steps),
    "decoders": (sections.decoders, report.variants),
    "attention": (sections.implementations, report.variants),
    "input": (sections.inputs, report.inputs),
    "loop": (sections.loop, report.loop),
}


def arguments() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = command_line.Parser(
        prog="python -m scripts.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # or --config.x would be an abbreviation
    )
    add = parser.add_argument
    add("--config", required=True, help="configs/NAME.py or :debug; with --config.key=value ...")
    add("--part", choices=tuple(PARTS), default="step", help="what is timed")
    add("--against", choices=("torch",), help="the same work in Hugging Face's ViTMAE")
    add("--rounds", type=int, default=7, help="that the contenders take turns in")
    add("--steps", type=int, default=3, help="that are timed in each round")
    add("--peak", help="of one device in teraFLOP/s, or `measure`")
    add("--profile", metavar="DIR", help="where a trace of a few steps is written afterwards")
    add("--operations", action="store_true", help="also say what the time of a step goes to")
    add("--json", type=files.writable, metavar="FILE", help="where the metrics are written too")
    return parser


def check(options: argparse.Namespace) -> None:
    """Raise ValueError for options that exclude each other."""
    if min(options.rounds, options.steps) < 1:
        raise ValueError("--rounds and --steps must be at least 1")
    if options.part in ("step", "forward"):
        return
    if options.against or options.operations or options.profile or options.peak:
        others = "--against, --operations, --profile and --peak"
        raise ValueError(f"--part={options.part} goes without {others}")


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    with errors.exits((ValueError, OSError)):
        options, changes = arguments().parse_known_args(argv)
        check(options)
        if options.peak not in (None, "measure"):
            options.peak = 1e12 * float(options.peak)
        if options.against:  # both frameworks need room on a GPU
            os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        config = command_line.configured(options.config, changes, rules=rules.RULES)
        if config.task != "pretrain":
            kind = f"{options.config} is of task {config.task!r}"
            raise ValueError(f"{kind}: give a config of pre-training")
        measure, text = PARTS[options.part]
        try:
            metrics = measure(config, options)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise ValueError(
                f"the batch does not fit into the memory of {jax.device_count()} "
                f"{jax.devices()[0].device_kind} device(s): give a smaller --config.batch_size"
            ) from error
        if options.json:
            files.write_json(options.json, metrics)
        print(text(metrics))


if __name__ == "__main__":
    main()
