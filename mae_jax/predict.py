"""Predict labels: python -m mae_jax.predict --checkpoint=C --data=SOURCE --to=FILE.csv [...]

FILE.csv or FILE.parquet gets a row for each example, in the order of the source: its name, the
predicted class and the probability of each class, or the predicted numbers, and the labels if there
are any. An example that cannot be read has a row with a note.
"""

import argparse

import jax

from mae_jax.config import command_line, errors
from mae_jax.data.bad_examples import Unreadable
from mae_jax.distributed import processes
from mae_jax.evaluators import checkpoint, predictions
from mae_jax.output import console, files


def parser() -> argparse.ArgumentParser:
    p = command_line.Parser(
        "python -m mae_jax.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    checkpoint.add_options(p)
    add = p.add_argument
    add("--to", required=True, type=files.writable, metavar="FILE.csv|.parquet")
    add("--overwrite", action="store_true", help="replace an existing file")
    add("--split", help="default: all, or test where a source has no split all")
    add(
        "--loss",
        choices=["softmax", "binary"],
        help="where a file does not say it; default: "
        "binary if the examples have several labels, else softmax: one class is true",
    )
    return p


def main() -> None:
    """The command line; a user's mistake ends in one sentence and exit status 2."""
    with errors.exits((ValueError, OSError, ImportError, Unreadable)):
        options = parser().parse_args()
        console.install()
        processes.start_processes()
        text = predictions.predict(options)
        if jax.process_index() == 0:
            print(text)


if __name__ == "__main__":
    main()
