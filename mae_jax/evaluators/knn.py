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
    """The accuracy of nearest neighbours, for one number `k` of neighbours or for several."""

    def __init__(self, section: Mapping[str, Any], context: Context):
        super().__init__(section, context)
        k = section["k"]
        self.names = {k: "knn"} if isinstance(k, int) else {each: f"knn_{each}" for each in k}
        self.titles = ["kNN"] if isinstance(k, int) else [f"kNN k={each}" for each in self.names]

    def score(self, *data: np.ndarray) -> tuple[dict[str, float], str]:
        scores, n = accuracies(*data, ks=list(self.names)), len(data[0])
        note = f"k above {n} counts as {n}, the number of training examples"
        return {name: scores[k] for k, name in self.names.items()}, note if max(scores) > n else ""


def accuracies(
    train: Float[np.ndarray, "n d"],
    train_labels: Int[np.ndarray, "n"],
    test: Float[np.ndarray, "m d"],
    test_labels: Int[np.ndarray, "m"],
    ks: Sequence[int] = (20,),
    temperature: float = 0.07,
) -> dict[int, float]:
    """Return the accuracy of the weighted kNN classifier of Wu et al. (arXiv 1805.01978).

    The `k` most cosine-similar training examples vote with weight `exp(similarity / temperature)`.

    Returns:
      The accuracy for each of `ks`; all `n` examples vote if they are fewer than k.
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

    The search is exact, and equally similar rows keep their order. Blocks of `train` are compared
    in turn on the first device of the process, which bounds its memory; the number of devices
    does not matter.

    Returns:
      The similarities of these rows, in descending order, and the indices of the rows.
    """
    similarity = np.empty((len(test), 0), np.float32)
    index = np.empty((len(test), 0), np.int32)
    for offset in range(0, len(train), KEYS):
        block = jnp.asarray(train[offset : offset + KEYS])
        starts = range(0, len(test), QUERIES)
        parts = [_nearest(block, test[start : start + QUERIES], k) for start in starts]
        new, rows = (np.concatenate(x) for x in zip(*parts, strict=True))
        similarity = np.concatenate([similarity, new], axis=1)
        index = np.concatenate([index, offset + rows], axis=1)
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        similarity, index = (np.take_along_axis(x, order, axis=1) for x in (similarity, index))
    return similarity, index


@functools.partial(jax.jit, static_argnames="k")
def _nearest(train, test, k):
    unit = lambda x: x / (jnp.linalg.norm(x, axis=1, keepdims=True) + 1e-12)
    train, test = (unit(x.astype(jnp.float32)) for x in (train, test))
    similarity = jnp.matmul(test, train.T, precision=jax.lax.Precision.HIGHEST)
    return jax.lax.top_k(similarity, min(k, len(train)))  # equal similarities keep their order
