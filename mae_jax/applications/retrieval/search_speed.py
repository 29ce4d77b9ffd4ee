"""Exact search against approximate search: what it finds, how fast, and what it takes."""

import time
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from mae_jax.applications.retrieval import approximate
from mae_jax.applications.retrieval.approximate import Graph
from mae_jax.data import sources
from mae_jax.evaluators.evaluator import Result
from mae_jax.evaluators.neighbours import Gallery
from mae_jax.output import tables

K, MOST = 10, 1000  # neighbours of at most so many queries
_TRIALS = 3  # of which the fastest counts


def compare(
    vectors: Float[np.ndarray, "n d"],
    queries: Float[np.ndarray, "m d"] | None = None,
    gallery: Gallery | None = None,
    graph: Graph | None = None,
) -> Result:
    """Return the recall, the speed and the bytes of both kinds of search.

    The recall is the share of the exact `K` nearest neighbours that the graph finds. The speed is
    that of all queries at once, after a first time that does not count.

    Args:
      queries: by default at most `MOST` of the vectors, each of which is left out of what it finds.
      gallery, graph: those of the vectors, if there are any.

    Raises:
      ImportError: `usearch` is not installed.
    """
    own = None
    if queries is None:
        own = sources.fixed_choice(len(vectors), MOST)
        queries = np.asarray(vectors[own], np.float32)
    gallery, start = gallery or Gallery(vectors), time.perf_counter()
    build = "built in {:.1f} s" if graph is None else "of the index"
    graph = graph or Graph.of(vectors)
    build = build.format(time.perf_counter() - start)
    exact, exact_rate = _timed(gallery.search, queries, own)
    found, rate = _timed(graph.search, queries, own)
    recall = approximate.recall(exact, found)
    size, stored = vectors.nbytes, graph.stored.nbytes
    what = f"{len(queries):,} queries of {len(vectors):,} vectors of {vectors.shape[1]} numbers"
    rows = [[what, f"recall@{K}", "queries/s", "bytes"]]
    rows.append(["  exact", "1.000", f"{exact_rate:,.0f}", tables.amount(size)])
    rows.append([f"  usearch, {build}", f"{recall:.3f}", f"{rate:,.0f}", tables.amount(stored)])
    metrics = dict(exact_queries_per_second=exact_rate, exact_bytes=size, usearch_recall_10=recall)
    metrics |= dict(usearch_queries_per_second=rate, usearch_bytes=stored)
    return Result(metrics, rows=rows)


def _timed(
    search: Callable, queries: Float[np.ndarray, "m d"], own: Int[np.ndarray, "m"] | None
) -> tuple[Int[np.ndarray, "m k"], float]:
    """Return the neighbours of queries without themselves, and queries per second."""
    k, seconds = K if own is None else K + 1, []
    _, index = search(queries, k)
    for _ in range(_TRIALS):
        start = time.perf_counter()
        search(queries, k)
        seconds.append(time.perf_counter() - start)
    if own is not None:  # the query itself comes last, and is dropped
        order = np.argsort(index == own[:, None], axis=1, kind="stable")[:, : k - 1]
        index = np.take_along_axis(index, order, axis=1)
    return index, len(queries) / min(seconds)
