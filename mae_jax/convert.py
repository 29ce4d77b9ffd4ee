"""Convert checkpoints: python -m mae_jax.convert --from=PATH[:STEP] --to=PATH [--size=H,W ...]

`mae_jax.load` documents what can be read and what the options mean. The suffix of --to, or
--format, says what is written: NAME.pth is a file of the reference, NAME.safetensors one of this
project, and a folder is for Hugging Face's `ViTMAEForPreTraining.from_pretrained(folder)`.
--format=vit writes a folder for its `ViTModel` or `ViTForImageClassification`, and --format=timm
one for `timm.create_model("local-dir:FOLDER", pretrained=True)`.
hf:ORG/NAME is a repository of the Hugging Face Hub, with a card that is made of the run's files.
"""

import argparse
import sys
from collections.abc import Sequence

from mae_jax.config import command_line, errors
from mae_jax.output import console
from mae_jax.weights import export, options, publish


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
    add("--eps", type=float, help="epsilon of the LayerNorms")
    options.add(parser)
    return parser.parse_args(argv)


def main() -> None:
    """Run the command line; a user's mistake ends in one sentence and exit status 2."""
    console.install()
    with errors.exits():
        given, others = options.separate(parse(sys.argv[1:]))
        print(publish.convert(**others | given))


if __name__ == "__main__":
    main()
