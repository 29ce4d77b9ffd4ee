"""Evaluate a checkpoint: python -m mae_jax.evaluate --checkpoint=PATH --data=SOURCE [...]"""

import argparse

import jax

from mae_jax.config import command_line, errors
from mae_jax.data.bad_examples import Unreadable
from mae_jax.distributed import processes
from mae_jax.evaluators import checkpoint
from mae_jax.output import console, files


def parser() -> argparse.ArgumentParser:
    p = command_line.Parser("python -m mae_jax.evaluate", description=__doc__, allow_abbrev=False)
    checkpoint.add_options(p)
    add, flag, numbers = p.add_argument, argparse.BooleanOptionalAction, command_line.numbers
    add("--train-split", help="which the probes learn from; default: as in the run, or train")
    add("--test-split", help="default: as in the run, if it had this --data, or test")
    add("--mask-ratio", type=float, help="default: as trained, or .75")
    checkpoint.add_feature_options(p)
    add("--standardize", action=flag, help="on the training examples; default: likewise")
    add(
        "--sweep",
        action="store_true",
        help="choose a feature, on at most 20,000 training examples or --examples",
    )
    add("--k", type=numbers(int), default=(5, 20, 100), help="neighbours")
    add("--linear", dest="solver", choices=["auto", "sklearn", "lars", "none"])
    add("--evaluator", action="append", default=[], metavar="MODULE:CLASS", help="one of your own")
    add("--seed", type=int, help="of other masks, and of another held-out fifth in a sweep")
    add("--features", type=files.writable, metavar="FILE.npz", help="for the features")
    add("--pictures", dest="pictures_to", metavar="FOLDER", help="for the reconstructions")
    add("--json", type=files.writable, metavar="FILE", help="for the metrics")
    return p


def main() -> None:
    """The command line; a user's mistake ends in one sentence and exit status 2."""
    with errors.exits((ValueError, OSError, ImportError, Unreadable)):
        options = parser().parse_args()
        console.install()
        processes.start_processes()
        text, _ = checkpoint.evaluate(options)
        if jax.process_index() == 0:
            print(text)


if __name__ == "__main__":
    main()
