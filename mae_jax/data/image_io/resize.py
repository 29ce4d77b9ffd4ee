"""Antialiased resizing: bicubic for pictures, several times as fast as Pillow's, and linear."""

import functools
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

_MAX_SHRINK = 3  # a short filter does not suffice beyond this factor


def bicubic(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize `image` uint8 [h, w, c] to [*size, c], nearly like `pillow_bicubic` but faster.

    Pillow widens Keys' cubic (a = -1/2) by the factor s by which a picture shrinks. OpenCV's cubic
    (a = -3/4) stays narrow, so it is fast but aliases. Here a filter of five pixels (seven if s is
    at least 2) is applied before OpenCV's cubic, chosen so that both together are closest to
    Pillow's, which `scripts/experiments/decode.py` measures. An axis that does not shrink is not
    filtered. A picture that shrinks more than 3 times is left to Pillow.
    """
    shrink = [image.shape[axis] / size[axis] for axis in (0, 1)]
    if max(shrink) > _MAX_SHRINK or image.shape[-1] > 4:
        return pillow_bicubic(image, size)
    down, across = (_taps(round(64 * max(1, s))) for s in shrink)
    if max(shrink) > 1:
        image = cv2.sepFilter2D(image, -1, across, down, borderType=cv2.BORDER_REPLICATE)
    image = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    return image.reshape(*size, -1)


def pillow_bicubic(
    image: np.ndarray,
    size: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """Resize `image` uint8 [h, w, c], or its box (left, top, right, bottom), to [*size, c]."""
    channels = image.shape[-1]
    if channels not in (1, 3):  # Pillow's RGBA would darken by the fourth channel
        parts = [pillow_bicubic(image[..., c : c + 1], size, box) for c in range(channels)]
        return np.concatenate(parts, axis=-1)
    picture = Image.fromarray(np.ascontiguousarray(image[..., 0] if channels == 1 else image))
    resized = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box)
    return np.asarray(resized).reshape(*size, channels)


def linear(values: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resize `values` [*sides, c] to [*size, c] like Pillow's BILINEAR, for any number of axes.

    The weights are a triangle as wide as two samples of the coarser grid. uint8 is rounded; other
    values are float32. NaN is a missing value: it has no weight, and a result with less than half
    of its weight is missing.
    """
    if values.shape[:-1] == tuple(size):
        return values
    if values.dtype != np.uint8 and (missing := np.isnan(values)).any():
        weight = linear((~missing).astype(np.float32), size)
        known = linear(np.where(missing, np.float32(0), values), size)
        return np.where(weight < 0.5, np.float32(np.nan), known / np.maximum(weight, 0.5))
    dtype = values.dtype
    for axis, (old, new) in enumerate(zip(values.shape[:-1], size, strict=True)):
        step = old / new
        distance = np.arange(old) - ((np.arange(new) + 0.5) * step - 0.5)[:, None]
        weights = np.maximum(0, 1 - np.abs(distance) / max(1, step))  # [new old]
        weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
        values = np.moveaxis(np.tensordot(weights, values, (1, axis)), 0, axis)
    return np.ascontiguousarray(np.rint(values) if dtype == np.uint8 else values, dtype)


@functools.cache
def _taps(shrink: int) -> np.ndarray:
    """Return the filter for a picture that shrinks by `shrink` / 64, by least squares."""
    if shrink == 64:
        return np.ones(1, np.float32)
    s, x = shrink / 64, np.arange(-8, 8, 1 / 32)
    middle = _cubic(x, -0.75)
    pairs = [_cubic(x - k, -0.75) + _cubic(x + k, -0.75) for k in range(1, 3 if s < 2 else 4)]
    # The middle weight makes the sum 1, so that flat areas do not change.
    sides, target = np.stack(pairs, axis=-1) - 2 * middle[:, None], _cubic(x / s, -0.5) / s - middle
    # Running sums divide by the frequency, like the amplitudes of natural pictures.
    taps = np.linalg.lstsq(sides.cumsum(0), target.cumsum())[0]
    return np.concatenate([taps[::-1], [1 - 2 * taps.sum()], taps]).astype(np.float32)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Return the cubic kernel of Keys 1981, doi 10.1109/TASSP.1981.1163711."""
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))
