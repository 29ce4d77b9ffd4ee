"""Write a model for other runtimes: python -m mae_jax.export --checkpoint=PATH --to=FILE [...]

FILE.onnx is for ONNX runtimes, FILE.stablehlo for `jax.export.deserialize` on CPUs, GPUs and TPUs.
`mae_jax.load` documents which checkpoints can be read, and what the options of the model mean.
PATH may also be a detector of `mae_jax.applications.anomaly`, whose inputs are then of one tile.
"""

import argparse
import sys
from collections.abc import Sequence

from mae_jax.applications import fitted_folder
from mae_jax.applications.anomaly import detector, exported
from mae_jax.config import command_line, errors
from mae_jax.exchange import artefacts, computation
from mae_jax.output import console
from mae_jax.weights import options


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = command_line.Parser(
        prog="python -m mae_jax.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add, numbers = parser.add_argument, command_line.numbers
    add("--checkpoint", required=True, metavar="PATH[:STEP]")
    add("--to", dest="target", required=True, metavar="FILE.onnx|FILE.stablehlo")
    what = "default: predict if the model has classes, else encode"
    add("--what", choices=sorted(computation.WHAT), default="", help=what)
    add("--pooling", choices=["mean", "cls", "both"], default="", help="of the feature")
    check = "run the file without this package, and compare"
    add("--check", dest="run_check", action="store_true", help=check)
    add("--overwrite", action="store_true", help="replace an existing file")
    add("--mean", type=numbers(float), help="per channel, of pixels in [0, 1]")
    add("--std", type=numbers(float))
    options.add(parser)
    return parser.parse_args(argv)


def main() -> None:
    """Run the command line; a user's mistake ends in one sentence and exit status 2."""
    console.install()
    with errors.exits():
        given, others = options.separate(parse(sys.argv[1:]))
        path = others.pop("checkpoint")
        is_detector = fitted_folder.is_folder(path, detector.KIND)
        make = exported.make if is_detector else computation.make
        print(artefacts.export(path, others.pop("target"), make=make, **others | given))


if __name__ == "__main__":
    main()
