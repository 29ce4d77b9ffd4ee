"""Evaluate an index: retrieval evaluate --index=INDEX --by=class|copies [...]

By class, it should find others of the class of each query: of --data=SOURCE, or else of each of
its own examples. By copies, it should find the originals of cropped, compressed, mirrored, turned
and captioned copies of its own pictures, or of those of SOURCE.
"""

import argparse
import logging

from mae_jax import evaluators
from mae_jax.applications.retrieval import evaluation, reader, search_speed
from mae_jax.applications.retrieval.index import Index
from mae_jax.data import sources
from mae_jax.output import files

_log = logging.getLogger(__name__)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("--index", required=True, help="a folder that the command index wrote")
    add("--by", choices=evaluation.BY, default="class", help="what should be found")
    add("--data", metavar="SOURCE", help="the queries; default: the examples of the index")
    add("--split", help="default: all, or test where a source has no split all")
    add("--examples", type=int, default=0, help="of each source that are queries, at most; 0 = all")
    add("--json", type=files.writable, metavar="FILE", help="for all figures")
    add("--threads", type=int, default=16)


def run(options: argparse.Namespace) -> str:
    """Evaluate an index; return tables for the screen.

    Raises:
      ValueError, OSError: one sentence on what does not fit.
    """
    if options.examples < 0:
        raise ValueError(f"--examples={options.examples} must be at least 0 (all)")
    index = Index.load(options.index, options.threads)
    queries, own = [], False
    if options.data:
        split, source = reader.open_data(index.reader.loaded, options)
        queries, own = [source], index.holds(options.data, split)
    asked = options.by, options.examples, own
    found = evaluation.evaluate(index, queries, _made_of(index), *asked)
    results = [found]
    try:
        results.append(search_speed.compare(index.rows.vectors, None, index.gallery, index.graph))
    except ImportError as error:
        _log.info("exact search is not compared: %s", error)
    joined = evaluators.join(results)
    if options.json:
        about = dict(index=options.index, data=options.data, by=options.by)
        files.write_json(options.json, about | joined.metrics | joined.details)
    return joined.text


def _made_of(index: Index) -> list[sources.Source]:
    """Return the data that an index was made of, or none of them if some have moved."""
    found = []
    try:
        for data, split in index.about.get("data", ()):
            part = argparse.Namespace(data=data, split=split, examples=0)
            found.append(reader.open_data(index.reader.loaded, part)[1])
    except (ValueError, OSError) as error:
        _log.warning("there are no baselines, as the data of the index have moved: %s", error)
        return []
    return found
