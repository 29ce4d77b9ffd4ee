"""Add examples to an index: retrieval add --index=INDEX --data=SOURCE [...]

The feature and the whitening stay those that the first examples chose: where many others come, or
unlike ones, make the index again.
"""

import argparse

import numpy as np

from mae_jax.applications.retrieval.index import Index
from mae_jax.applications.retrieval.reader import open_data, some
from mae_jax.applications.retrieval.rows import names_of
from mae_jax.applications.retrieval.run_index import sizes_of


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("--index", required=True, help="a folder that the command index wrote")
    add("--data", required=True, help="folder:PATH, idx:PATH, tfds:NAME, ...")
    add("--split", help="default: all, or train where a source has no split all")
    add("--examples", type=int, default=0, help="at most; 0 = all")
    add("--only-new", action="store_true", help="leave out examples whose names the index has")
    add("--threads", type=int, default=16)


def run(options: argparse.Namespace) -> str:
    """Add examples and write the index; return lines for the screen.

    Raises:
      ValueError, OSError, ImportError: one sentence on what does not fit.
    """
    index = Index.load(options.index, options.threads)
    split, source = open_data(index.reader.loaded, options, otherwise="train")
    note = ""
    if options.only_new:
        known, names = {*index.rows.names}, names_of(source, range(len(source)))
        new = np.array([i for i, name in enumerate(names) if name not in known], int)
        note = f", beside {len(names) - len(new):,} that it had"
        if not len(new):
            return f"{options.index}: it has all {len(names):,} examples of {options.data} already"
        source = some(source, new)
    count = index.add(source)
    index.about["data"] = [*index.about.get("data", ()), [options.data, split]]
    index.save(options.index, overwrite=True)
    return (
        f"{options.index}: {count:,} examples of {options.data}, split {split!r}, were added{note}"
        f"; {len(index):,} in all, {sizes_of(index)}; the feature and the whitening are still "
        f"those of the first {index.about['fitted_on']:,}"
    )
