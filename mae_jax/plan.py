"""Plan a run: does it fit, what limits a step, how long will it take? Nothing is trained.

    python -m mae_jax.plan --config=configs/vit_huge.py --topology=v5e:16x16
    python -m mae_jax.plan --config=configs/vit_base.py --topology=v6e:4x4 --mesh=data=4,fsdp=4
    python -m mae_jax.plan --config=configs/vit_base.py --topology=h100:8     # arithmetic alone
    python -m mae_jax.plan --config=configs/quickstart.py --topology=cpu      # or gpu: those here

For a slice of TPUs (v5e:4x4, v5p:2x2x2, v6e:4x4 ...) the step is compiled by the real compiler,
which needs no TPU: `pip install 'mae_jax[tpu]'`. That takes a minute or a few, and most of what is
said comes from it: the memory is its own plan; the bytes are read from the compiled program.

The time of a step is between two figures. At least: the slowest of three (the products, the bytes
that its memory moves, the bytes that its links carry, each at the device's best), as if the others
ran meanwhile. At most: a TPU's compiler expects so many cycles, and then the links; without that
figure, the sum of the three. Reading data, evaluating, saving and restarting come on top.
"""

import argparse
import json
import os
import sys

from mae_jax.config import command_line
from mae_jax.config.errors import UserError, user_errors
from mae_jax.models import rules
from mae_jax.output import tables
from mae_jax.planning import estimate, topology


def report(figures: dict) -> str:
    """A plan as text."""
    memory, state = figures["memory"], figures["state"]
    mesh = ", ".join(f"{name} {size}" for name, size in figures["mesh"].items())
    about = (
        "{devices} x {device} ({mesh}), batch {batch_size:,}, {images_per_share:g} for a share\n"
        "{millions:.1f} M parameters; {choices}"
    ).format(
        **figures
        | dict(mesh=mesh, millions=figures["parameters"] / 1e6)
        | dict(choices=", ".join(f"{k} {x}" for k, x in figures["choices"].items()))
    )
    rows = [
        ("memory of a device", ""),
        ("  parameters", tables.amount(state["params"])),
        ("  optimizer state", tables.amount(state["opt_state"])),
        ("  average of the parameters", tables.amount(state["ema"]) if state["ema"] else ""),
        ("  batch", tables.amount(state["batch"])),
    ]
    if "temp" in memory:
        rows += [
            ("  activations, all that is temporary", tables.amount(memory["temp"])),
            ("  program", tables.amount(memory["generated_code"])),
        ]
    elif not figures["compiled"]:
        rows.append(
            (
                "  gradients, activations before fusing",
                tables.amount(memory["peak"] - sum(state.values())),
            )
        )
    rows.append(("  most in use", tables.amount(memory["peak"])))
    if limit := memory["limit"]:
        room = 1 - memory["peak"] / limit
        rows.append(
            (
                "  of",
                f"{tables.amount(limit)}: {abs(room):.0%} {'free' if room >= 0 else 'too much'}",
            )
        )
    rows += [("", ""), ("a step", "")]
    images = figures["batch_size"]
    for name in ("arithmetic", "program"):
        if value := figures[f"flops_{name}"]:
            title = (
                "  products by arithmetic" if name == "arithmetic" else "  products in the program"
            )
            rows.append((title, f"{tables.amount(value / images, 'FLOP')} an image"))
    if "bytes_moved" in figures:
        shown = figures["images_per_share"]
        if "bytes_accessed" in figures:
            accessed = tables.amount(figures["bytes_accessed"] / shown)
            rows.append(("  bytes its instructions touch", f"{accessed} an image"))
        moved = tables.amount(figures["bytes_moved"] / shown)
        rows.append(("  bytes its memory moves", f"{moved} an image"))
        for kind, row in figures["collectives"].items():
            rows.append(
                (f"  sent by a device, {kind} x {row['times']}", tables.amount(row["sent"]))
            )
    text = tables.table([list(row) for row in rows if row[1] or not row[0].startswith("  ")])
    return "\n\n".join([about, text, *verdict(figures)])


def verdict(figures: dict) -> list[str]:
    """The estimates, and what to do about them."""
    texts = []
    if not figures["compiled"]:
        texts.append(
            "arithmetic alone: nothing was compiled; activations are what differentiation keeps, "
            "before XLA\nfuses and recomputes, and the bytes are the least that must move"
        )
    if not figures["memory"]["fits"]:
        texts.append("DOES NOT FIT; try " + ", or ".join(figures["advice"]))
    if "collectives" not in figures:
        return texts
    if "step_seconds" not in figures:
        return [*texts, "no estimate of the time: the peaks of this device are not known"]
    longest = max(figures["seconds"].values())
    rows = [["time of a step", "estimate", ""]]
    names = {
        "products": "products, at the peak",
        "memory": "bytes moved",
        "links": "bytes sent",
        "cycles": "the compiler's cycles",
    }
    for name, seconds in figures["seconds"].items():
        rows.append(["  " + names[name], f"{1e3 * seconds:,.2f} ms", f"{seconds / longest:.0%}"])
    low, high = figures["step_seconds"]
    rows.append(["at least, at most", f"{1e3 * low:,.1f} to {1e3 * high:,.1f} ms", ""])
    slow, fast = figures["images_per_second"]
    rows.append(["images per second", f"{slow:,.0f} to {fast:,.0f}", ""])
    if "mfu" in figures:
        rows.append(["MFU", "{:.0%} to {:.0%}".format(*figures["mfu"]), ""])
    if "hours" in figures:
        low, high = figures["hours"]
        rows.append([f"the run, {figures['steps']:,} steps", f"{low:,.1f} to {high:,.1f} h", ""])
    texts.append(tables.table(rows))
    left = "an estimate, nothing was run: without reading data, evaluating, saving and restarting"
    unknown = "" if "hours" in figures else "; the hours need --examples=N, of the data set"
    return [*texts, left + unknown]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def positive(text: str) -> int:
    """`--examples`."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} should be a whole number of at least 1")
    return int(text)


def mesh_of(text: str) -> list[str]:
    """`--mesh`: `data=32,fsdp=8` as overrides of the config."""
    sides = [part.partition("=") for part in text.split(",")]
    if not all(name in ("data", "fsdp", "tensor") for name, _, _ in sides):
        raise argparse.ArgumentTypeError(f"{text!r} should be such as data=32,fsdp=8,tensor=1")
    return [f"--config.mesh.{name}={size}" for name, _, size in sides]


def main() -> None:
    """The command line; a user's mistake ends in one sentence and exit status 2."""
    parser = command_line.Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # or --config.x would be an abbreviation
    )
    add = parser.add_argument
    add("--config", required=True, help="configs/NAME.py; with --config.key=value ...")
    add("--topology", required=True, help=topology.FORMS)
    add("--mesh", type=mesh_of, default=[], help="such as data=32,fsdp=8, over the config's")
    add("--examples", type=positive, help="in the training data, where it does not lie here")
    add("--json", metavar="FILE", help="where the figures are written too")
    try:
        with user_errors():
            options, changes = parser.parse_known_args()
            config = command_line.configured(
                options.config, [*options.mesh, *changes], rules=rules.RULES
            )
            if options.json:
                open(options.json, "a").close()  # before the minutes that it takes
            arguments = config, options.topology, options.examples
            figures = estimate.figures(*arguments, say)
            print(report(figures))
            if options.json:
                with open(options.json, "w") as file:
                    file.write(json.dumps(figures, indent=2) + "\n")
    except UserError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr, flush=True)
        os._exit(130)  # a compilation that goes on would crash


if __name__ == "__main__":
    main()
