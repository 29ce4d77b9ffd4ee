"""Denoise a picture: python -m mae_jax.applications.denoise --checkpoint=C --image=F --to=F [...]

Each patch is predicted from others, so that no clean pictures are needed. With --steps=N the model
first adapts to the noisy picture itself, in N steps. The result is a .png, .tif or .npy file, of
the type and the size of the picture. In Python: mae_jax.applications.restore.denoise(...).
"""

import argparse

from mae_jax.applications.restore import denoised_file
from mae_jax.config import command_line, errors
from mae_jax.data.bad_examples import Unreadable
from mae_jax.distributed import processes
from mae_jax.evaluators import checkpoint
from mae_jax.output import console, files


def parser() -> argparse.ArgumentParser:
    p = command_line.Parser(
        "python -m mae_jax.applications.denoise",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    checkpoint.add_model_options(p)
    p.set_defaults(batch_size=32)
    add = p.add_argument
    add("--image", required=True, metavar="FILE", help="the noisy picture")
    add("--to", required=True, metavar="FILE", help="for the picture without its noise")
    add("--steps", type=int, default=0, help="of adaptation to the picture; default: none")
    add("--sigma", type=float, help="of the noise, in units of the picture; default: estimated")
    add("--overlap", type=float, default=0.75, help="of neighbouring tiles, from 0 up to below 1")
    add("--seed", type=int, default=0, help="of the masks, and of the crops of the adaptation")
    add("--side-by-side", metavar="FILE.png", help="for a picture of both")
    add("--overwrite", action="store_true", help="replace existing files")
    add("--json", type=files.writable, metavar="FILE", help="for the sigma of each channel")
    return p


def main() -> None:
    """The command line; a user's mistake ends in one sentence and exit status 2."""
    with errors.exits((ValueError, OSError, ImportError, Unreadable)):
        options = parser().parse_args()
        console.install()
        processes.start_processes()
        print(denoised_file.write(options))


if __name__ == "__main__":
    main()
