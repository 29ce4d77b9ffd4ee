"""Exact nearest neighbours, searched on devices that each hold a part of the gallery."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Int

from mae_jax.distributed import device_mesh

QUERIES, KEYS = 1024, 2**13  # at most so many vectors are compared at a time on a device


class Metric(NamedTuple):
    """A similarity of vectors, as a function of their products and of a number for each."""

    number: Callable[[jax.Array], jax.Array]  # [n d] -> [n]
    similarity: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # of products [m n]


def _distance(products, of_queries, of_keys):
    return jnp.sqrt(jnp.maximum(of_queries + of_keys - 2 * products, 0))


METRICS = {
    "cosine": Metric(
        lambda x: 1 / (jnp.linalg.norm(x, axis=1) + 1e-12), lambda products, a, b: products * a * b
    ),
    # the negative distance; differences of nearly equal vectors are as exact as |x|^2 in float32
    "euclidean": Metric(lambda x: (x * x).sum(1), lambda *x: -_distance(*x)),
}


class Gallery:
    """Vectors that are searched for the nearest neighbours of others, often.

    They are cut over all devices of a mesh and stay there. Each device compares its own vectors
    with the queries in blocks of `KEYS`, and the best of all devices are merged. The search is
    exact, up to the rounding of products in float32, and equally similar vectors keep their order.
    The blocks have the same shapes on any number of devices, so a CPU gives the same bits.

    Args:
      vectors: of any type; those of float16 take half the memory and are compared in float32.
      mesh: by default all devices of this process.
      metric: "cosine", or "euclidean" for the negative distance.

    Raises:
      ValueError: a vector is not finite, or the metric is unknown.
    """

    def __init__(
        self, vectors: Float[np.ndarray, "n d"], mesh: Mesh | None = None, metric: str = "cosine"
    ):
        if metric not in METRICS:
            raise ValueError(f"metric = {metric!r} is none of {', '.join(METRICS)}")
        _check("the gallery", vectors)
        if vectors.dtype != np.float16:
            vectors = np.asarray(vectors, np.float32)
        self.shape, self.metric = vectors.shape, metric
        self.mesh = mesh or device_mesh.make_mesh(devices=jax.local_devices())
        block = min(KEYS, _power_of_two(len(vectors), 64))
        count = max(1, -(-len(vectors) // block))
        blocks = -(-count // self.mesh.size) * self.mesh.size

        def part(index) -> np.ndarray:
            first, last, _ = index[0].indices(blocks)
            rows = vectors[first * block : last * block]
            padded = np.zeros(((last - first) * block, vectors.shape[1]), vectors.dtype)
            padded[: len(rows)] = rows
            return padded.reshape(last - first, block, -1)

        sharding = NamedSharding(self.mesh, P(self.mesh.axis_names))
        shape = blocks, block, vectors.shape[1]
        self.blocks = jax.make_array_from_callback(shape, sharding, part)
        self.numbers = _numbers(self.blocks, metric)

    def __len__(self) -> int:
        return self.shape[0]

    def search(
        self, queries: Float[np.ndarray, "m d"], k: int
    ) -> tuple[Float[np.ndarray, "m k"], Int[np.ndarray, "m k"]]:
        """Return the similarities of the nearest vectors, in descending order, and their indices.

        Of a gallery with fewer than `k` vectors all are returned.

        Raises:
          ValueError: the queries have another dimension, or are not finite.
        """
        if queries.ndim != 2 or queries.shape[1] != self.shape[1]:
            raise ValueError(
                f"queries of shape {queries.shape} do not fit a gallery of vectors of "
                f"{self.shape[1]} numbers: give queries of shape (n, {self.shape[1]})"
            )
        _check("the queries", queries)
        k = min(k, len(self))
        if not (k and len(queries)):
            return np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int32)
        block = min(QUERIES, _power_of_two(len(queries), 8))
        starts = range(0, len(queries), block)
        parts = [self._search(queries[start : start + block], block, k) for start in starts]
        similarity, index = (np.concatenate(x) for x in zip(*parts, strict=True))
        return similarity, index

    def _search(self, queries: np.ndarray, block: int, k: int) -> tuple[np.ndarray, ...]:
        padded = np.zeros((block, self.shape[1]), np.float32)
        padded[: len(queries)] = queries
        length = np.int32(len(self))
        found = _nearest(self.blocks, self.numbers, padded, length, self.mesh, self.metric, k)
        return tuple(np.asarray(x)[: len(queries)] for x in found)


def nearest(
    train: Float[np.ndarray, "n d"], test: Float[np.ndarray, "m d"], k: int, metric: str = "cosine"
) -> tuple[Float[np.ndarray, "m k"], Int[np.ndarray, "m k"]]:
    """Find the `k` rows of `train` that are most similar to each row of `test`: see `Gallery`."""
    return Gallery(train, metric=metric).search(test, k)


def _check(name: str, vectors: np.ndarray) -> None:
    if vectors.ndim != 2:
        raise ValueError(f"{name} must have the shape (vectors, numbers), not {vectors.shape}")
    for start in range(0, len(vectors), KEYS):
        finite = np.isfinite(vectors[start : start + KEYS]).all(1)
        if not finite.all():
            raise ValueError(
                f"vector {start + int(finite.argmin())} of {name} is not finite: leave it out"
            )


def _power_of_two(n: int, least: int) -> int:
    return max(least, 1 << max(n - 1, 0).bit_length())


@functools.partial(jax.jit, static_argnames="metric")
def _numbers(blocks: jax.Array, metric: str) -> jax.Array:
    return jax.lax.map(lambda x: METRICS[metric].number(x.astype(jnp.float32)), blocks)


@functools.partial(jax.jit, static_argnames=("mesh", "metric", "k"))
def _nearest(blocks, numbers, queries, length, mesh: Mesh, metric: str, k: int) -> Any:
    number, similarity = METRICS[metric]
    axes = tuple(mesh.axis_names)

    def of_device(blocks, numbers, queries, length):
        count, size = numbers.shape
        own, of_queries = jax.lax.axis_index(axes) * count * size, number(queries)[:, None]

        def of_block(best, block):
            i, keys, of_keys = block
            product = jnp.matmul(
                queries, keys.T.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
            )
            scores = similarity(product, of_queries, of_keys[None])
            scores = jnp.where(scores == 0, 0.0, scores)  # `top_k` sorts -0 below 0
            index = own + i * size + jnp.arange(size)
            scores = jnp.where((index < length)[None], scores, -jnp.inf)
            scores, chosen = jax.lax.top_k(scores, min(k, size))
            return _merged(best, (scores, index[chosen]), k), None

        shape = len(queries), k
        none = jnp.full(shape, -jnp.inf), jnp.full(shape, jnp.iinfo(jnp.int32).max)
        best, _ = jax.lax.scan(of_block, none, (jnp.arange(count), blocks, numbers))
        return _best(*(jax.lax.all_gather(x, axes, axis=1, tiled=True) for x in best), k=k)

    parts = P(axes), P(axes), P(), P()
    search = jax.shard_map(
        of_device, mesh=mesh, in_specs=parts, out_specs=(P(), P()), check_vma=False
    )
    return search(blocks, numbers, queries, length)


def _merged(first, then, k: int):
    """Return the best of two lists, in which all indices of the first are below the others."""
    return _best(*(jnp.concatenate(pair, axis=1) for pair in zip(first, then, strict=True)), k=k)


def _best(scores, index, k: int):
    """Return the `k` best; equal scores keep their order."""
    scores, chosen = jax.lax.top_k(scores, k)
    return scores, jnp.take_along_axis(index, chosen, axis=1)
