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
see `mae_jax/planning/flops.py`. On a GPU machine `python -m scripts.benchmark.gpu` runs everything
that is worth knowing there.
"""

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

import jax

from mae_jax.config import command_line
from mae_jax.config.errors import UserError
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


def refuse(why: str) -> NoReturn:
    """End with a user's mistake: one sentence and exit status 2."""
    print(f"error: {why}", file=sys.stderr)
    sys.exit(2)


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
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


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    try:
        options, changes = arguments().parse_known_args(argv)
        if min(options.rounds, options.steps) < 1:
            refuse("--rounds and --steps must be at least 1")
        if options.peak not in (None, "measure"):
            options.peak = 1e12 * float(options.peak)
        timed = options.part in ("step", "forward")
        if not timed and (options.against or options.operations or options.profile or options.peak):
            others = "--against, --operations, --profile and --peak"
            refuse(f"--part={options.part} goes without {others}")
        if options.against:  # both frameworks need room on a GPU
            os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        config = command_line.configured(options.config, changes, rules=rules.RULES)
        if config.task != "pretrain":
            refuse(f"{options.config} is of task {config.task!r}: give a config of pre-training")
        measure, text = PARTS[options.part]
        metrics = measure(config, options)
        if options.json:
            files.write_json(options.json, metrics)
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
    print(text(metrics))


if __name__ == "__main__":
    main()
