"""The principal components of many vectors, which are never held all at once."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Components(NamedTuple):
    """The directions in which vectors differ most."""

    mean: Float[np.ndarray, "d"]
    directions: Float[np.ndarray, "d n"]  # orthonormal, the most important first
    shares: Float[np.ndarray, "n"]  # of the variance

    def project(self, x: Float[np.ndarray, "*b d"]) -> Float[np.ndarray, "*b n"]:
        """Return the coordinates of vectors in float32; a vector with NaN gives NaN."""
        return ((x - self.mean) @ self.directions).astype(np.float32)


def fit(parts: Iterable[Float[np.ndarray, "*b d"]], count: int) -> Components:
    """Return the first `count` components of all vectors of the parts, without those with NaN.

    The largest entry of each direction is positive, so that the same vectors give the same signs.

    Raises:
      ValueError: the vectors have fewer numbers, or there are fewer than two vectors.
    """
    n, mean, scatter = 0, np.zeros(1), np.zeros((1, 1))
    for part in parts:
        x = part.reshape(-1, part.shape[-1]).astype(np.float64)
        x = x[~np.isnan(x).any(-1)]
        if not len(x):
            continue
        center, m = x.mean(0), len(x)  # Chan, Golub and LeVeque 1983
        shift, x = center - mean, x - center
        scatter = scatter + x.T @ x + np.outer(shift, shift) * (n * m / (n + m))
        mean, n = mean + shift * (m / (n + m)), n + m
    if n < 2 or count > len(mean):
        raise ValueError(
            f"{count} components of {n} feature vectors with {len(mean)} numbers: choose fewer"
        )
    values, vectors = np.linalg.eigh(scatter)
    values, vectors = values[::-1][:count], vectors[:, ::-1][:, :count]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(0)[None], axis=0)
    shares = values.clip(0) / max(np.trace(scatter), np.finfo(float).tiny)
    return Components(mean, vectors * np.sign(largest), shares)
