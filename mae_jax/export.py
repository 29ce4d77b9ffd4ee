"""Write a model for other runtimes: python -m mae_jax.export --checkpoint=PATH --to=FILE [...]

FILE.onnx is for ONNX runtimes, FILE.stablehlo for `jax.export.deserialize` on CPUs, GPUs and TPUs.
`mae_jax.load` documents which checkpoints can be read, and what the options of the model mean.
"""

import argparse
import sys
from collections.abc import Sequence

from mae_jax.config import command_line, errors
from mae_jax.exchange import artefacts, computation
from mae_jax.output import console


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = command_line.Parser(
        prog="python -m mae_jax.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add, numbers, flag = parser.add_argument, command_line.numbers, argparse.BooleanOptionalAction
    add("--checkpoint", required=True, metavar="PATH[:STEP]")
    add("--to", dest="target", required=True, metavar="FILE.onnx|FILE.stablehlo")
    what = "default: predict if the model has classes, else encode"
    add("--what", choices=sorted(computation.WHAT), default="", help=what)
    add("--pooling", choices=["mean", "cls", "both"], default="", help="of the feature")
    check = "run the file without this package, and compare"
    add("--check", dest="run_check", action="store_true", help=check)
    add("--overwrite", action="store_true", help="replace an existing file")
    size = "size of the inputs; learned positions are resized"
    add("--size", type=numbers(int), metavar="H,W", help=size)
    add("--mean", type=numbers(float), help="per channel, of pixels in [0, 1]")
    add("--std", type=numbers(float))
    add("--without", default="", metavar="EXPRESSION", help="parameters to leave out: 'head/.*'")
    for part in ("", "decoder-"):
        add(f"--{part}heads", type=int, help="where a file does not say it")
    add("--norm-pix", action=flag, help="normalised patches as targets")
    field = "of the model, where a file does not say it: pooling=norm_mean"
    add("--field", type=command_line.assignment, action="append", default=[], help=field)
    return parser.parse_args(argv)


def main() -> None:
    """Run the command line; a user's mistake ends in one sentence and exit status 2."""
    console.install()
    with errors.exits():
        options = vars(parse(sys.argv[1:]))
        options |= dict(options.pop("field"))
        print(artefacts.export(options.pop("checkpoint"), options.pop("target"), **options))


if __name__ == "__main__":
    main()
