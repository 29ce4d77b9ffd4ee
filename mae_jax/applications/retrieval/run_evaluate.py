"""Evaluate an index: retrieval evaluate --index=I [--by=class|copies] [--data=SOURCE] [...]

By class, it should find other examples of the class of each query: of --data=SOURCE, or else of
each of its own examples. By copies, it should find the originals of cropped, compressed, mirrored,
turned and captioned copies: of its own pictures, or of those of --data=SOURCE.
"""

import argparse
import logging
from collections.abc import Callable, Mapping

from mae_jax import evaluators
from mae_jax.applications.retrieval import evaluation, search_speed
from mae_jax.applications.retrieval.index import Index
from mae_jax.data import sources
from mae_jax.evaluators import checkpoint, held_out
from mae_jax.output import files

_log = logging.getLogger(__name__)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("--index", required=True, help="the folder of the index")
    add("--data", metavar="SOURCE", help="of the queries; default: the examples of the index")
    add("--split", help="of --data; default: all, or test where a source has no split all")
    add("--by", choices=evaluation.BY, default="class", help="what should be found")
    add("--examples", type=int, default=0, help="of the queries, at most; 0 = all")
    add("--json", type=files.writable, metavar="FILE", help="write all figures there")


def run(options: argparse.Namespace) -> str:
    """Evaluate an index; return tables for the screen.

    Raises:
      ValueError, OSError: one sentence on what does not fit.
    """
    if options.examples < 0:
        raise ValueError(f"--examples={options.examples} must be at least 0 (all)")
    index = Index.load(options.index)
    data = index.reader.loaded.transform.data
    open_part = lambda part: held_out.open_part(part, data)
    queries = [checkpoint.open_split(open_part, options)[1]] if options.data else []
    gallery = _examples_of(index, open_part)
    results = [evaluation.evaluate(index, queries, gallery, options.by, options.examples)]
    try:
        results.append(search_speed.compare(index.rows.vectors, None, index.gallery, index.graph))
    except ImportError as error:
        _log.info("exact search is not compared: %s", error)
    joined = evaluators.join(results)
    if options.json:
        about = dict(index=options.index, data=options.data, by=options.by)
        files.write_json(options.json, about | joined.metrics | joined.details)
    return joined.text


def _examples_of(
    index: Index, open_part: Callable[[Mapping[str, str]], sources.Source]
) -> list[sources.Source]:
    """Return the sources that an index was made of, or none if they have moved."""
    try:
        return [open_part(part) for part in index.about.get("sources", ())]
    except (ValueError, OSError) as error:
        _log.warning("there are no baselines, as the data of the index have moved: %s", error)
        return []
