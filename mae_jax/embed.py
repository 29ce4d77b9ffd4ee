"""Write features: python -m mae_jax.embed --checkpoint=C --data=SOURCE --to=FILE [--dense] [...]

FILE.parquet, FILE.npz or FILE.zarr gets a row for each example, in the order of the source: its
name, its labels and the pooled tokens of an encoder. With --dense the file (.tif, .nii.gz, .npz or
.zarr) is a map of one input of any size, with a vector for each patch, in the input's own frame;
--to=FOLDER/{name}.tif writes a map of each example. In Python: mae_jax.embed(path, model, params).
"""

import argparse
import sys
import types

import jax

from mae_jax.config import command_line, errors
from mae_jax.data.bad_examples import Unreadable
from mae_jax.distributed import processes
from mae_jax.evaluators import checkpoint, embeddings
from mae_jax.evaluators.embed import embed
from mae_jax.output import console


def parser() -> argparse.ArgumentParser:
    p = command_line.Parser(
        "python -m mae_jax.embed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    checkpoint.add_options(p)
    checkpoint.add_feature_options(p)
    add = p.add_argument
    add("--to", required=True, metavar="FILE", help="for the features")
    add("--overwrite", action="store_true", help="replace existing files")
    add("--split", help="default: all, or test where a source has no split all")
    add("--dense", action="store_true", help="a vector for each patch, and no pooling")
    add("--overlap", type=float, default=0.5, help="of neighbouring tiles, from 0 up to but not 1")
    add("--components", type=int, metavar="N", help="write N principal components of the features")
    return p


def main() -> None:
    """The command line; a user's mistake ends in one sentence and exit status 2."""
    with errors.exits((ValueError, OSError, ImportError, Unreadable)):
        options = parser().parse_args()
        console.install()
        processes.start_processes()
        text = embeddings.write(options)
        if jax.process_index() == 0:
            print(text)


class _Callable(types.ModuleType):  # `mae_jax.embed` names this module and the function
    __call__ = staticmethod(embed)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    main()
