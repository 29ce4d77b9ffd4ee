"""Remove examples from an index: retrieval remove --index=INDEX NAME [NAME ...]"""

import argparse

from mae_jax.applications.retrieval.index import Index
from mae_jax.applications.retrieval.run_index import sizes_of


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("--index", required=True, help="a folder that the command index wrote")
    add("names", nargs="+", metavar="NAME", help="of an example, as a search writes it")


def run(options: argparse.Namespace) -> str:
    """Remove examples and write the index; return lines for the screen.

    Raises:
      ValueError, OSError, ImportError: one sentence on what does not fit.
    """
    index = Index.load(options.index)
    before = len(index)
    index.remove(options.names)
    index.save(options.index, overwrite=True)
    gone = before - len(index)
    return f"{options.index}: {gone:,} removed; {len(index):,} examples are left, {sizes_of(index)}"
