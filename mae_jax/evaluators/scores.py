"""Scores of each class."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

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
