"""How good are frozen features? Two classifiers that need no training of the network."""

import warnings

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
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Accuracy of the weighted nearest-neighbour classifier of Wu et al. (arXiv 1805.01978).

    The `k` most cosine-similar training examples vote with weight `exp(similarity / temperature)`.
    """
    k = min(k, len(train))
    unit = lambda x: x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-12)
    train, test = unit(train), unit(test)
    classes = int(train_labels.max()) + 1
    correct = 0
    for start in range(0, len(test), 1024):  # a block of queries at a time bounds the memory
        similarity = test[start : start + 1024] @ train.T
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        weights = np.exp(np.take_along_axis(similarity, nearest, 1) / temperature)
        votes = np.zeros((len(nearest), classes))
        np.add.at(votes, (np.arange(len(nearest))[:, None], train_labels[nearest]), weights)
        correct += int((votes.argmax(1) == test_labels[start : start + 1024]).sum())
    return correct / len(test)


def linear(
    train: Float[np.ndarray, "n d"],
    train_labels: Int[np.ndarray, "n"],
    test: Float[np.ndarray, "m d"],
    test_labels: Int[np.ndarray, "m"],
) -> float:
    """Accuracy of a logistic regression (scikit-learn, L2 with C = 1); standardise first."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe = LogisticRegression(max_iter=200).fit(train, train_labels)
    return float(probe.score(test, test_labels))
