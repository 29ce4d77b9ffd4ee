"""Nearest neighbours of frozen features."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int


def standardize(train: Float[np.ndarray, "n d"], *others: Float[np.ndarray, "m d"]):
    """Every dimension with zero mean and unit variance on `train`, the same map for `others`.

    MAE features need it before distances: a few high-variance dimensions carry little.
    """
    mean, std = train.mean(0), train.std(0)
    return tuple((x - mean) / (std + 1e-6) for x in (train, *others))


def knn(
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
    unit = lambda x: x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-12)
    train, test = unit(train), unit(test)
    classes, most = int(train_labels.max()) + 1, min(max(ks), len(train))
    correct = dict.fromkeys(ks, 0)
    for start in range(0, len(test), 1024):  # a block of queries at a time bounds the memory
        similarity = test[start : start + 1024] @ train.T
        nearest = np.argpartition(-similarity, most - 1, axis=1)[:, :most]
        weights = np.take_along_axis(similarity, nearest, 1)
        order = np.argsort(-weights, axis=1, kind="stable")
        nearest, weights = (np.take_along_axis(x, order, 1) for x in (nearest, weights))
        weights = np.exp(weights / temperature)
        rows = np.arange(len(nearest))[:, None]
        for k in ks:
            votes = np.zeros((len(nearest), classes))
            np.add.at(votes, (rows, train_labels[nearest[:, :k]]), weights[:, :k])
            correct[k] += int((votes.argmax(1) == test_labels[start : start + 1024]).sum())
    return {k: count / len(test) for k, count in correct.items()}
