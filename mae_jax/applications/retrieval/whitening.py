"""Linear maps of features, fitted on a gallery, after which cosine similarity says more.

A few dimensions with a high variance carry little information and dominate the cosine of features
of masked autoencoders (arXiv 2401.00463).
"""

import logging
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from sklearn.covariance import ledoit_wolf

from mae_jax.data import sources

_log = logging.getLogger(__name__)
MOST = 50_000  # examples that a map is fitted on, a fixed random choice
KINDS = ("none", "standardize", "pca")
_ROWS = 1024  # vectors that are mapped at a time, always in this shape: a CPU gives the same bits


class Method(NamedTuple):
    """How features are mapped.

    "none" leaves them; "standardize" gives every dimension mean 0 and variance 1; "pca" makes the
    covariance matrix the unit matrix, in `components` dimensions (0 = all) with the largest
    variance.
    """

    kind: str = "pca"
    components: int = 0
    # the share of the unit matrix in the covariance matrix; None: by Ledoit and Wolf (2004)
    shrinkage: float | None = None

    def __str__(self) -> str:
        if self.kind != "pca":
            return {"none": "as it is", "standardize": "standardised"}[self.kind]
        parts = [f"{self.components} components"] if self.components else []
        parts += [] if self.shrinkage is None else [f"shrinkage {self.shrinkage:g}"]
        return f"whitened ({', '.join(parts)})" if parts else "whitened"


class Whitening(NamedTuple):
    """A map of features to the vectors of an index, which have the length 1."""

    mean: Float[np.ndarray, "d"]
    matrix: Float[np.ndarray, "d e"]

    def __call__(self, x: Float[np.ndarray, "n d"], unit: bool = True) -> np.ndarray:
        """Return the vectors [n e] of features; with `unit` False before they get the length 1."""
        found = np.empty((len(x), self.matrix.shape[1]), np.float32)
        for start in range(0, len(x), _ROWS):
            part = x[start : start + _ROWS]
            padded = np.zeros((_ROWS, x.shape[1]), np.float32)
            padded[: len(part)] = part
            found[start : start + _ROWS] = _mapped(padded, *self, unit)[: len(part)]
        return found


def fit(x: Float[np.ndarray, "n d"], method: Method) -> Whitening:
    """Return the map that is fitted on the features of a gallery.

    Raises:
      ValueError: the method is unknown, or the examples are too few or all alike.
    """
    if method.kind not in KINDS:
        raise ValueError(f"whitening {method.kind!r} is none of {', '.join(KINDS)}")
    x, d = x[sources.fixed_choice(len(x), MOST)].astype(np.float64), x.shape[1]
    if method.kind == "none":
        return _rounded(np.zeros(d), np.eye(d))
    if len(x) < 2 or not np.ptp(x, axis=0).any():
        raise ValueError(
            f"features of {len(x)} example(s) that do not differ cannot be whitened: give more "
            "examples, or no whitening"
        )
    if len(x) <= d:
        _log.warning(
            "%s are few for a whitening of %d dimensions, which may do more harm than good: give "
            "more examples, or no whitening",
            f"{len(x):,} examples",
            d,
        )
    mean = x.mean(0)
    if method.kind == "standardize":
        return _rounded(mean, np.diag(1 / (x.std(0) + 1e-6)))
    return _rounded(mean, _principal(x - mean, method))


def _principal(x: np.ndarray, method: Method) -> np.ndarray:
    if method.shrinkage is None:
        covariance, _ = ledoit_wolf(x, assume_centered=True)
    else:
        covariance, shrunk = x.T @ x / len(x), method.shrinkage
        unit = np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        covariance = (1 - shrunk) * covariance + shrunk * unit
    variances, directions = np.linalg.eigh(covariance)  # ascending
    found = int((variances > 1e-10 * variances[-1]).sum())
    if method.components > found:
        raise ValueError(
            f"components = {method.components} are more than the {found} in which the features of "
            f"the gallery vary: use {found} or fewer, or 0 for all"
        )
    kept = slice(-(method.components or found), None)
    return (directions[:, kept] / np.sqrt(variances[kept]))[:, ::-1]


def _rounded(mean: np.ndarray, matrix: np.ndarray) -> Whitening:
    return Whitening(mean.astype(np.float32), np.ascontiguousarray(matrix, np.float32))


@jax.jit
def _mapped(x, mean, matrix, unit):
    y = jnp.matmul(x - mean[None], matrix, precision=jax.lax.Precision.HIGHEST)
    length = jnp.linalg.norm(y, axis=1, keepdims=True) + 1e-12
    return jnp.where(unit, y / length, y)
