"""Recall and mean average precision of rankings of a whole gallery, without an n x n array."""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from mae_jax.evaluators import neighbours

KS = (1, 5, 10)
MOST = 2**24  # similarities that are held at a time


class Scores(NamedTuple):
    """How early the relevant vectors of a gallery come."""

    recall: dict[int, float]  # for each k, the share of queries with a relevant one in the first k
    mean_average_precision: float
    queries: int
    left_out: int  # queries that no vector of the gallery is relevant to


def evaluate(
    gallery: neighbours.Gallery,
    labels: Int[np.ndarray, "n"],
    queries: Float[np.ndarray, "m d"],
    query_labels: Int[np.ndarray, "m"],
    own: Int[np.ndarray, "m"] | None = None,
    ks: Sequence[int] = KS,
) -> Scores:
    """Return the scores of queries, to which the vectors of the same label are relevant.

    The average precision is over the full ranking, as scikit-learn's. Where a relevant vector and
    another one are equally similar, the other one comes first, so a constant feature has no merit.

    Args:
      labels, query_labels: -1 is a label that is unknown, and the same as no other.
      own: the vectors of the gallery that are the queries themselves, to leave them out; -1 of a
        query that is in no gallery.

    Raises:
      ValueError: no vector of the gallery is relevant to any query.
    """
    ranks, precisions, row = [], [], 0
    for block in similarities(gallery, queries):
        for similarity in block:
            relevant = (labels == query_labels[row]) & (labels >= 0)
            if own is not None and own[row] >= 0:
                similarity[own[row]], relevant[own[row]] = -np.inf, False
            row += 1
            if relevant.any():
                rank, precision = of_query(similarity, relevant)
                ranks.append(rank)
                precisions.append(precision)
    if not ranks:
        raise ValueError(
            f"none of {len(queries):,} queries has a label that another vector of the gallery has: "
            "give labelled queries of its classes"
        )
    recall = {k: float(np.mean(np.array(ranks) <= k)) for k in ks}
    return Scores(recall, float(np.mean(precisions)), len(ranks), len(queries) - len(ranks))


def of_query(
    similarity: Float[np.ndarray, "n"], relevant: Bool[np.ndarray, "n"]
) -> tuple[int, float]:
    """Return the rank of the first relevant vector, from 1 on, and the average precision.

    At least one vector must be relevant. Equal similarities are those of one rank, the last.
    """
    hits = np.sort(similarity[relevant])
    at_least = lambda x: len(x) - np.searchsorted(x, hits)
    before, found = at_least(np.sort(similarity)), at_least(hits)
    return int(before[-1] - found[-1] + 1), float((found / before).mean())


def similarities(
    gallery: neighbours.Gallery, queries: Float[np.ndarray, "m d"]
) -> Iterator[Float[np.ndarray, "block n"]]:
    """Yield the similarities of blocks of queries to all vectors, at most `MOST` at a time."""
    size = max(1, min(len(queries), MOST // max(1, len(gallery))))
    for start in range(0, len(queries), size):
        block = np.zeros((size, queries.shape[1]), np.float32)  # of one shape, compiled once
        part = queries[start : start + size]
        block[: len(part)] = part
        found = _similarities(gallery.blocks, gallery.numbers, block, gallery.metric)
        yield np.array(found[: len(part), : len(gallery)])


@functools.partial(jax.jit, static_argnames="metric")
def _similarities(blocks, numbers, queries, metric: str):
    number, similarity = neighbours.METRICS[metric]
    of_queries = number(queries)[:, None]

    def of_block(block):
        keys, of_keys = block
        keys = keys.astype(jnp.float32)
        products = jnp.matmul(queries, keys.T, precision=jax.lax.Precision.HIGHEST)
        return similarity(products, of_queries, of_keys[None])

    found = jax.vmap(of_block)((blocks, numbers))  # [blocks m block], on the devices of the blocks
    return found.swapaxes(0, 1).reshape(len(queries), -1)
