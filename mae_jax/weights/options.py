"""The options of commands that say how `load.find` reads a checkpoint."""

import argparse
from typing import Any

from mae_jax.config import command_line
from mae_jax.models import build
from mae_jax.weights import load

NAMES = ("without", "key", "prefix", "positions", "size", "heads", "decoder_heads", "norm_pix")


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options to a command."""
    add, numbers = parser.add_argument, command_line.numbers
    add("--without", default="", metavar="EXPRESSION", help="parameters to leave out: 'decoder/.*'")
    add("--key", default="", help="which of several networks in a .pth file: model_ema")
    add("--prefix", default="", help="which of several networks in one state dict: teacher.")
    add("--size", type=numbers(int), metavar="H,W", help="of the inputs; default: as trained")
    positions = "what becomes of fixed positions at another --size"
    add("--positions", choices=load.POSITIONS, default=load.POSITIONS[0], help=positions)
    add("--heads", type=int, help="where a file does not say it")
    add("--decoder-heads", type=int, help="likewise")
    flag = argparse.BooleanOptionalAction
    add("--norm-pix", action=flag, default=None, help="predict normalised patches; likewise")
    field = "any other field of the model, likewise: pooling=norm_mean"
    add("--field", type=command_line.assignment, action="append", default=[], help=field)


def given(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `load.find` that the options give."""
    fields = dict(options.field)
    build.check_values(fields)
    return {name: getattr(options, name) for name in NAMES} | fields


def separate(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments of `load.find`, and all other options."""
    others = {n: x for n, x in vars(options).items() if n not in (*NAMES, "field")}
    return given(options), others
