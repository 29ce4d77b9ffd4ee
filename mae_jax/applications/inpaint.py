"""Fill pictures: python -m mae_jax.applications.inpaint --checkpoint=C --image=F --mask=F --to=F

The mask is a picture of the same size, which is not black where pixels are to be filled. All other
pixels stay as they are, to the bit, so that the result is a .png, .tif or .npy file, of the type of
the picture. Many pictures are filled with folders in the place of all three files: each mask has
the name of its picture, up to the ending. In Python: mae_jax.applications.restore.inpaint(...).
"""

import argparse

from mae_jax.applications.restore import inpainted_files
from mae_jax.config import command_line, errors
from mae_jax.data.bad_examples import Unreadable
from mae_jax.distributed import processes
from mae_jax.evaluators import checkpoint
from mae_jax.output import console, files


def parser() -> argparse.ArgumentParser:
    p = command_line.Parser(
        "python -m mae_jax.applications.inpaint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    checkpoint.add_model_options(p)
    p.set_defaults(batch_size=32)
    add = p.add_argument
    add("--image", required=True, metavar="FILE", help="the picture, or a folder of pictures")
    add("--mask", required=True, metavar="FILE", help="its mask, or a folder of masks")
    add("--to", required=True, metavar="FILE", help="for the filled picture, or a folder")
    add("--side-by-side", metavar="FILE.png", help="for a picture of all three, or a folder")
    add("--overwrite", action="store_true", help="replace existing files")
    add("--overlap", type=float, default=0.5, help="of neighbouring tiles, from 0 up to but not 1")
    add("--json", type=files.writable, metavar="FILE", help="for what was filled")
    return p


def main() -> None:
    """The command line; a user's mistake ends in one sentence and exit status 2."""
    with errors.exits((ValueError, OSError, ImportError, Unreadable)):
        options = parser().parse_args()
        console.install()
        processes.start_processes()
        print(inpainted_files.write(options))


if __name__ == "__main__":
    main()
