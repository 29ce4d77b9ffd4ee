"""Convert checkpoints: python -m mae_jax.convert --from=PATH[:STEP] --to=PATH [--size=H,W ...]

`mae_jax.load` documents what can be read and what the options mean. The suffix of --to, or
--format, says what is written: NAME.pth is a file of the reference, NAME.safetensors one of this
project, and a folder is for Hugging Face's `ViTMAEForPreTraining.from_pretrained(folder)`.
--format=vit writes a folder for its `ViTModel` or `ViTForImageClassification`, and --format=timm
one for `timm.create_model("local-dir:FOLDER")`.
hf:ORG/NAME is a repository of the Hugging Face Hub, with a card that is made of the run's files.
"""

import argparse
import sys
from collections.abc import Sequence

from mae_jax.config import command_line, errors
from mae_jax.output import console
from mae_jax.weights import export, load, publish


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = command_line.Parser(
        prog="python -m mae_jax.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--from", dest="source", required=True, metavar="PATH[:STEP]")
    add("--to", dest="target", required=True, metavar="PATH")
    add("--format", dest="target_format", choices=export.FORMATS, default="")
    add("--card", action="store_true", help="write README.md into the folder, also over another")
    add("--license", default="", help="for the card: an identifier of the Hub, cc-by-nc-4.0")
    add("--private", action="store_true", help="make the new repository private")
    add("--overwrite", action="store_true", help="replace an existing file or model")
    add("--without", default="", metavar="EXPRESSION", help="parameters to leave out: 'decoder/.*'")
    add("--key", default="", help="which of several networks in a .pth file: model_ema")
    add("--prefix", default="", help="which of several networks in one state dict: teacher.")
    add("--positions", choices=load.POSITIONS, default="interpolate", help="fixed ones, at --size")
    size = "size of the inputs; learned positions are resized"
    add("--size", type=command_line.numbers(int), metavar="H,W", help=size)
    add("--heads", type=int, help="heads of the encoder, if the file does not tell their number")
    add("--decoder-heads", type=int, help="heads of the decoder")
    add("--norm-pix", action=argparse.BooleanOptionalAction, help="normalised patches as targets")
    add("--eps", type=float, help="epsilon of the LayerNorms")
    field = "of the model, where a file does not say it: pooling=norm_mean"
    add("--field", type=command_line.assignment, action="append", default=[], help=field)
    return parser.parse_args(argv)


def main() -> None:
    """Run the command line; a user's mistake ends in one sentence and exit status 2."""
    console.install()
    with errors.exits():
        options = vars(parse(sys.argv[1:]))
        print(publish.convert(**options | dict(options.pop("field"))))


if __name__ == "__main__":
    main()
