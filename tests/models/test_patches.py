import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_jax.models import patches
from mae_jax.models.targets import PixelTarget, by_token

SHAPES = [
    ((12,), (3,), 2),
    ((8, 12), (4, 4), 3),
    ((6, 8), (2, 4), 1),
    ((4, 6, 8), (2, 3, 4), 2),
]


@pytest.mark.parametrize("size, patch, channels", SHAPES)
def test_round_trip(key, size, patch, channels):
    x = jax.random.normal(key, (2, *size, channels))
    y = patches.patchify(x, patch)
    assert y.shape == (2, np.prod(size) // np.prod(patch), np.prod(patch) * channels)
    np.testing.assert_array_equal(patches.unpatchify(y, patch, size), x)


def test_patches_are_row_major_and_flattened_row_column_channel(key):
    x = jax.random.normal(key, (1, 4, 6, 3))
    y = patches.patchify(x, (2, 3))
    for row in range(2):
        for column in range(2):
            cut = x[0, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3]
            np.testing.assert_array_equal(y[0, 2 * row + column], cut.reshape(-1))


def test_norm_pix_uses_the_unbiased_variance(key):
    x = jax.random.normal(key, (2, 5, 12)) * 3 + 1
    index = jnp.tile(jnp.arange(5), (2, 1))
    normalized = lambda x: PixelTarget((x.shape[2],), norm=by_token)(
        x.reshape(2, -1, 1), index[:, : x.shape[1]]
    )
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(
        np.var(x, axis=-1, ddof=1, keepdims=True) + 1e-6
    )
    np.testing.assert_allclose(normalized(x), expected, rtol=1e-5, atol=1e-6)
    assert jnp.isfinite(normalized(jnp.ones((2, 2, 8)))).all()  # flat patches


def test_size_that_the_patch_does_not_divide():
    with pytest.raises(ValueError, match=r"\(224, 200\) is not a multiple of patch \(16, 16\)"):
        patches.grid_of((224, 200), (16, 16))
    with pytest.raises(ValueError, match=r"use \(224, 192\) or \(224, 208\)"):
        patches.grid_of((224, 200), (16, 16))
    with pytest.raises(ValueError, match="use \\(16, 16\\)$"):
        patches.grid_of((8, 8), (16, 16))
    with pytest.raises(ValueError, match="different numbers of axes"):
        patches.grid_of((8, 8, 8), (4, 4))
