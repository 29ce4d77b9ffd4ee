"""The strength of the noise of an input, and what an input and a prediction of it say together."""

from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from mae_jax.data.bad_examples import Unreadable

# The high-pass filter of Daubechies' wavelet with two vanishing moments ("db2").
_ROOT = np.sqrt(3)
_HIGH_PASS = np.array([_ROOT - 1, 3 - _ROOT, -3 - _ROOT, 1 + _ROOT]) / np.sqrt(32)
_MEDIAN = 0.6744897501960817  # of the absolute value of a standard normal variable


def estimate(x: Float[np.ndarray, "*sides c"]) -> Float[np.ndarray, "c"]:
    """Return the standard deviation of the noise of each channel.

    It is the median absolute value of the wavelet coefficients that are details along every side,
    divided by that of a standard normal variable (Donoho & Johnstone 1994). Coefficients of 0 do
    not count, such as those of an empty border, nor do those with a missing value, which is NaN, or
    with the least or the greatest value of the channel, where noise is clipped. A channel without
    any others has no noise.

    The estimate assumes Gaussian noise that is equally strong everywhere and not correlated between
    neighbours. It is too small for pictures that were compressed, resized or demosaicked, and too
    large for weak noise on fine texture.

    Raises:
      Unreadable: a side is shorter than four values.
    """
    taps = len(_HIGH_PASS)
    if min(x.shape[:-1]) < taps:
        raise Unreadable(
            f"an input of size {x.shape[:-1]} is too small to estimate its noise: give sigma"
        )
    exists: Any = dict(axis=tuple(range(x.ndim - 1)), keepdims=True, where=~np.isnan(x))
    low, high = x.min(initial=np.inf, **exists), x.max(initial=-np.inf, **exists)
    rounding = 1e-9 * np.abs(x).max(initial=0, where=~np.isnan(x))
    x = np.where((x > low) & (x < high), x, np.nan)
    for axis in range(x.ndim - 1):
        x = np.moveaxis(x, axis, 0)
        count = (len(x) - taps) // 2 + 1
        shifted = (_HIGH_PASS[i] * x[i : i + 2 * count - 1 : 2] for i in range(taps))
        x = sum(shifted, start=np.zeros(()))
        x = np.moveaxis(x, 0, axis)
    channels = np.abs(x).reshape(-1, x.shape[-1]).T
    details = [d[np.isfinite(d) & (d > rounding)] for d in channels]
    return np.array([np.median(d) / _MEDIAN if d.size else 0.0 for d in details])


def combine(
    noisy: Float[np.ndarray, "*sides c"],
    prediction: Float[np.ndarray, "*sides c"],
    sigma: Float[np.ndarray, "c"],
    side: int = 5,
) -> Float[np.ndarray, "*sides c"]:
    """Return the mean of each value given both its noisy value y and its prediction p from others.

    As the noise of y is independent of p, that is (v y + sigma^2 p) / (v + sigma^2), where v is
    the variance of the error of p: the mean of (y - p)^2 around the value minus sigma^2, or 0 (the
    local filter of Lee 1980; for blind spots see Laine et al., arXiv 1901.10277).

    Args:
      noisy: NaN where a value is missing, as the result is.
      side: of the box around a value, in which v is measured.
    """
    noise = np.square(sigma).reshape((1,) * (noisy.ndim - 1) + (-1,))
    error = np.square(noisy - prediction)
    exists = np.isfinite(error)
    around = lambda x: ndimage.uniform_filter(x, (side,) * (x.ndim - 1) + (1,))
    count = np.maximum(around(exists.astype(np.float64)), 1e-9)
    variance = np.maximum(around(np.where(exists, error, 0)) / count - noise, 0)
    share = np.divide(
        variance, variance + noise, out=np.ones_like(error), where=variance + noise > 0
    )
    return share * noisy + (1 - share) * prediction
