"""Search an index: retrieval search --index=INDEX --data=SOURCE --to=FILE.csv [...]

FILE.csv, .parquet or .json gets the nearest examples of the index for each example of SOURCE, the
most similar first, and --sheet=FILE.png a picture of them. Queries from the data that the index was
made of leave themselves out.
"""

import argparse
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mae_jax.applications.retrieval import approximate, results
from mae_jax.applications.retrieval.index import Index
from mae_jax.applications.retrieval.reader import open_data
from mae_jax.applications.retrieval.results import Results
from mae_jax.applications.retrieval.rows import names_of
from mae_jax.output import files

SHEETS = (".png", ".jpg")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add, flag = parser.add_argument, argparse.BooleanOptionalAction
    add("--index", required=True, help="a folder that the command index wrote")
    add("--data", required=True, help="the queries: folder:PATH, idx:PATH, tfds:NAME, ...")
    add("--split", help="default: all, or test where a source has no split all")
    add("--examples", type=int, default=0, help="at most; 0 = all")
    add("--k", type=int, default=10, help="neighbours of each query")
    add("--to", required=True, type=files.writable, metavar="FILE.csv|.parquet|.json")
    add("--overwrite", action="store_true", help="replace existing files")
    add("--sheet", type=files.writable, metavar="FILE.png", help="for a picture of the first ones")
    add("--sheet-queries", type=int, default=16, metavar="N", help="that it shows")
    own = "leave out the query itself, by its name; default: if the index was made of --data"
    add("--exclude-self", action=flag, help=own)
    add("--approximate", action="store_true", help="by a graph of usearch, compared with exactly")
    add("--json", type=files.writable, metavar="FILE", help="for the counts and the recall")
    add("--threads", type=int, default=16)


def run(options: argparse.Namespace) -> str:
    """Write the neighbours of the queries; return lines for the screen.

    Raises:
      ValueError, OSError, ImportError: one sentence on what does not fit.
    """
    write = results.writer(options.to)
    for path in filter(None, (options.to, options.sheet)):
        if Path(path).exists() and not options.overwrite:
            raise ValueError(f"{path} exists already: give another place, or --overwrite")
    if options.sheet_queries < 1:
        raise ValueError(f"--sheet-queries={options.sheet_queries} must be at least 1")
    if options.sheet and Path(options.sheet).suffix not in SHEETS:
        raise ValueError(f"--sheet={options.sheet} must end in {' or '.join(SHEETS)}")
    index = Index.load(options.index, options.threads)
    index.check(options.k)
    if options.sheet and index.rows.thumbnails is None:
        raise ValueError(f"{options.index} has no thumbnails for --sheet: leave --sheet out")
    split, source = open_data(index.reader.loaded, options)
    queries, read = index.read(source)
    is_own = options.exclude_self
    if is_own is None:
        is_own = index.holds(options.data, split)
    search = functools.partial(index.search, queries.vectors, options.k, queries.names * is_own)
    found = search(approximate=options.approximate)
    about: dict[str, Any] = dict(index=options.index, data=options.data, split=split, k=options.k)
    about |= dict(queries=len(source), without=len(source) - len(read), exclude_self=is_own)
    if options.approximate:
        about["recall"] = approximate.recall(search().indices, found.indices)
    notes = {i: index.reader.note(source, i) for i in {*range(len(source))} - {*read.tolist()}}
    names = names_of(source, range(len(source)))
    answer = Results(names, read, queries, found, index.rows, notes)
    with files.whole(options.to) as path:
        write(path, answer)
    if options.sheet:
        results.sheet(answer, options.sheet_queries).save(options.sheet)
    if options.json:
        files.write_json(options.json, about)
    return _report(about, options)


def _report(about: Mapping[str, Any], options: argparse.Namespace) -> str:
    text = (
        f"{options.to}: the {options.k:,} nearest examples of {options.index} for each of "
        f"{about['queries']:,} queries, {options.data}, split {about['split']!r}"
    )
    text += ", which leave themselves out" if about["exclude_self"] else ""
    if about["without"]:
        text += f"; {about['without']:,} without neighbours, whose notes say why"
    if "recall" in about:
        text += f"; of the exact neighbours {about['recall']:.1%} are found"
    return text + (f"\n{options.sheet}: a picture of the first ones" if options.sheet else "")
