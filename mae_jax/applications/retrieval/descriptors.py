"""Descriptors of pictures that need no network: the baselines of retrieval."""

import numpy as np
import scipy.fft
from jaxtyping import Float

_LOW = 8  # frequencies along each axis that a hash keeps
LUMA = (0.299, 0.587, 0.114)


def thumbnails(pixels: Float[np.ndarray, "n *size c"]) -> Float[np.ndarray, "n d"]:
    """Return small pictures as vectors, whose cosine is their correlation."""
    flat = pixels.reshape(len(pixels), -1).astype(np.float32)
    return flat - flat.mean(1, keepdims=True)


def perceptual_hashes(pixels: Float[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n 64"]:
    """Return pHashes (Zauner 2010): 64 bits of a small picture in gray or color, usually 32 x 32.

    A bit says whether one of its 8 x 8 lowest frequencies, by a discrete cosine transform, is above
    their median. It is 1/8 or -1/8, so that the cosine of two hashes is 1 - distance / 32, where
    the distance is Hamming's.
    """
    weights = LUMA if pixels.shape[-1] == 3 else (1.0,)
    gray = pixels.astype(np.float64) @ np.array(weights)
    frequencies = np.asarray(scipy.fft.dctn(gray, axes=(1, 2)))
    low = frequencies[:, :_LOW, :_LOW].reshape(len(pixels), -1)
    return np.where(low > np.median(low, axis=1, keepdims=True), 0.125, -0.125).astype(np.float32)
