import numpy as np
import pytest

from mae_jax.applications.retrieval import descriptors


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).random((6, 32, 32, 3)).astype(np.float32)


def test_cosine_of_thumbnails_is_their_correlation(pictures):
    x = descriptors.thumbnails(pictures)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(x @ x.T, np.corrcoef(pictures.reshape(6, -1)), atol=1e-5)


@pytest.mark.parametrize("side", [28, 32])
def test_perceptual_hash_by_its_definition(pictures, side):
    """The cosine transform is written out; a bit is set above the median of 64 coefficients."""
    small = pictures[:, :side, :side]
    k, n = np.mgrid[:8, :side]
    cosines = np.cos(np.pi * k * (2 * n + 1) / (2 * side))
    gray = small @ np.array([0.299, 0.587, 0.114])
    for hashed, picture in zip(descriptors.perceptual_hashes(small), gray, strict=True):
        low = (cosines @ picture @ cosines.T).ravel()
        np.testing.assert_array_equal(hashed * 8, np.where(low > np.median(low), 1, -1))


def test_cosine_of_hashes_counts_equal_bits(pictures):
    x = descriptors.perceptual_hashes(pictures)
    different = (x[:, None] != x[None]).sum(-1)
    np.testing.assert_array_equal(x @ x.T, 1 - different / 32)
    np.testing.assert_array_equal(np.linalg.norm(x, axis=1), 1)
    bright = descriptors.perceptual_hashes(0.5 * pictures + 0.2)
    np.testing.assert_array_equal(bright, x)


def test_gray_is_the_luma(pictures):
    gray = (pictures @ np.float32(descriptors.LUMA))[..., None]
    same = descriptors.perceptual_hashes(gray) == descriptors.perceptual_hashes(pictures)
    assert same.mean() > 0.999
