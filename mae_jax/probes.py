"""How good are frozen features? Classifiers that need no training of the network."""

import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

from mae_jax import optimizer


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


def lars(
    train: Float[np.ndarray, "n d"],
    train_labels: Int[np.ndarray, "n"],
    test: Float[np.ndarray, "m d"],
    test_labels: Int[np.ndarray, "m"],
    *,
    epochs: int = 90,
    learning_rate: float = 6.4,
    seed: int = 0,
) -> float:
    """Accuracy of a linear classifier trained as He et al. 2021 do (table 10); standardise first.

    Standardised features are what the recipe's BatchNorm makes of features that do not change. With
    fewer than ImageNet's examples the batch is smaller than the recipe's 16,384, for as many steps
    in an epoch (78), and the learning rate stays that of the recipe, 6.4: LARS does not feel the
    size of a gradient, and with the linear rule it would hardly move.
    """
    n, classes = len(train), int(train_labels.max()) + 1
    batch = min(n, 16_384, max(256, n // 78))
    steps = n // batch
    schedule = optimizer.cosine_schedule(learning_rate, 256, epochs * steps, epochs * steps // 9)
    tx = optimizer.lars(schedule, momentum=0.9, weight_decay=0.0)
    start, order = jax.random.split(jax.random.key(seed))
    head = {
        "kernel": 0.01 * jax.random.normal(start, (train.shape[1], classes)),
        "bias": jnp.zeros(classes),
    }
    logits = lambda head, x: x @ head["kernel"] + head["bias"][None]

    @jax.jit
    def epoch(head, opt_state, key, x, labels):
        def step(carry, chosen):
            head, opt_state = carry

            def loss(head):
                y = logits(head, x[chosen])
                return optax.softmax_cross_entropy_with_integer_labels(y, labels[chosen]).mean()

            updates, opt_state = tx.update(jax.grad(loss)(head), opt_state, head)
            return (optax.apply_updates(head, updates), opt_state), None

        batches = jax.random.permutation(key, n)[: steps * batch].reshape(steps, batch)
        return jax.lax.scan(step, (head, opt_state), batches)[0]

    x, labels = jnp.asarray(train, jnp.float32), jnp.asarray(train_labels)
    opt_state = tx.init(head)
    for i in range(epochs):
        head, opt_state = epoch(head, opt_state, jax.random.fold_in(order, i), x, labels)
    kernel, bias = np.asarray(head["kernel"]), np.asarray(head["bias"])
    return float(((test @ kernel + bias).argmax(1) == test_labels).mean())


SCORES = ("precision", "recall", "f1")


def per_class(
    labels: Int[np.ndarray, "n"], predicted: Int[np.ndarray, "n"], classes: int
) -> list[dict[str, float]]:
    """`precision`, `recall`, `f1` and `support` of each class (scikit-learn; 0 where undefined)."""
    from sklearn.metrics import precision_recall_fscore_support

    columns: Any = precision_recall_fscore_support(
        labels,
        predicted,
        labels=range(classes),
        zero_division=0,  # pyright: ignore[reportArgumentType]
    )
    precision, recall, f1, support = columns
    return [
        dict(precision=float(p), recall=float(r), f1=float(f), support=int(n))
        for p, r, f, n in zip(precision, recall, f1, support, strict=True)
    ]


def average_precision(
    labels: Int[np.ndarray, "n classes"], scores: Float[np.ndarray, "n classes"]
) -> list[dict[str, float]]:
    """`average_precision` and `support` of each class, ranked by its scores (scikit-learn).

    A class that is true of no example has 0 of both.
    """
    from sklearn.metrics import average_precision_score

    return [
        dict(
            average_precision=float(average_precision_score(y, s)) if y.any() else 0.0,
            support=int(y.sum()),
        )
        for y, s in zip(labels.T, scores.T, strict=True)
    ]
