"""Nearest neighbours of frozen features."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from mae_jax.evaluators.evaluator import Context
from mae_jax.evaluators.feature_accuracy import FeatureAccuracy


class Knn(FeatureAccuracy):
    """Accuracy of nearest neighbours, for a number `k` of them or for each of several."""

    def __init__(self, section: Mapping[str, Any], context: Context):
        super().__init__(section, context)
        k = section["k"]
        self.names = {k: "knn"} if isinstance(k, int) else {each: f"knn_{each}" for each in k}
        self.titles = ["kNN"] if isinstance(k, int) else [f"kNN k={each}" for each in self.names]

    def score(self, *data: np.ndarray) -> tuple[dict[str, float], str]:
        found = accuracies(*data, ks=list(self.names))
        return {name: found[k] for k, name in self.names.items()}, ""


def accuracies(
    train: Float[np.ndarray, "n d"],
    train_labels: Int[np.ndarray, "n"],
    test: Float[np.ndarray, "m d"],
    test_labels: Int[np.ndarray, "m"],
    ks: Sequence[int] = (20,),
    temperature: float = 0.07,
) -> dict[int, float]:
    """Accuracy of the weighted nearest-neighbour classifier of Wu et al. (arXiv 1805.01978).

    The `k` most cosine-similar training examples vote with weight `exp(similarity / temperature)`.

    Returns:
      The accuracy for each of `ks`; all `n` vote where there are fewer than k.
    """
    similarity, index = nearest(train, test, min(max(ks), len(train)))
    weights = np.exp(similarity.astype(np.float64) / temperature)

    def correct(k: int) -> list[bool]:
        votes = zip(train_labels[index[:, :k]], weights[:, :k], test_labels, strict=True)
        return [np.bincount(labels, w).argmax() == label for labels, w, label in votes]

    return {k: float(np.mean(correct(k))) for k in ks}


QUERIES, KEYS = 1024, 2**16  # rows of `test` and of `train` that are compared at a time


def nearest(
    train: Float[np.ndarray, "n d"], test: Float[np.ndarray, "m d"], k: int
) -> tuple[Float[np.ndarray, "m k"], Int[np.ndarray, "m k"]]:
    """Find the `k` rows of `train` with the largest cosine similarity to each row of `test`.

    The search is exact, and of equally similar rows the first one comes first. A block of `train`
    is on the device at a time, which bounds its memory; the device is the first one of the process,
    so that their number does not matter.

    Returns:
      Their similarities, in descending order, and their numbers.
    """
    similarity = np.full((len(test), k), -np.inf, np.float32)
    index = np.zeros((len(test), k), np.int32)
    keys, queries = min(KEYS, len(train)), min(QUERIES, len(test))
    for offset in range(0, len(train), keys):
        block = jnp.asarray(_padded(train[offset : offset + keys], keys))
        for start in range(0, len(test), queries):
            part = slice(start, start + queries)
            so_far = [_padded(x[part], queries) for x in (test, similarity, index)]
            better = _merge(*so_far, block, offset, len(train))
            count = len(index[part])
            similarity[part], index[part] = (np.asarray(x)[:count] for x in better)
    return similarity, index


def _padded(x: np.ndarray, rows: int) -> np.ndarray:
    return np.pad(x, ((0, rows - len(x)), (0, 0)))


@functools.partial(jax.jit, static_argnames="n")
def _merge(test, similarity, index, block, offset, n):
    """The best of those so far and of a block of `train` that begins at row `offset` of `n`."""
    unit = lambda x: x / (jnp.linalg.norm(x, axis=1, keepdims=True) + 1e-12)
    test, block = (unit(x.astype(jnp.float32)) for x in (test, block))
    new = jnp.matmul(test, block.T, precision=jax.lax.Precision.HIGHEST)
    rows = offset + jnp.arange(len(block))
    new = jnp.where(rows[None] < n, new, -jnp.inf)
    both = jnp.concatenate([similarity, new], axis=1)
    best, chosen = jax.lax.top_k(both, similarity.shape[1])  # equal ones in their order
    rows = jnp.concatenate([index, jnp.broadcast_to(rows[None].astype(index.dtype), new.shape)], 1)
    return best, jnp.take_along_axis(rows, chosen, axis=1)
