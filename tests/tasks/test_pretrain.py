"""Pre-training: what is drawn for each example, and what is normalised."""

import jax
import jax.numpy as jnp
import numpy as np

from mae_jax import tasks
from mae_jax.config import command_line, schema
from mae_jax.data.augment import batch as augment

KEY = jax.random.key(7)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)

SMALL = dict(modality="image", size=(32, 32), channels=3, repeats=1, center_crop=0.875, threads=2)


def config(**changes) -> schema.Config:
    return schema.updated(command_line.load("configs/quickstart.py:debug"), changes)


def test_flips_and_masks_are_drawn_per_sample():
    augmented = tasks.build(config(), None, MEAN, STD).augment
    image = np.tile(np.arange(32, dtype=np.uint8)[None, None, :, None], (64, 32, 1, 3))
    batch = augmented(jax.random.key(0), {"image": jnp.asarray(image)})
    flipped = np.asarray(batch["image"][:, 0, 0, 0] == 31)
    assert 16 < flipped.sum() < 48
    np.testing.assert_array_equal(batch["image"][flipped][:, :, ::-1], image[flipped])
    np.testing.assert_array_equal(batch["image"][~flipped], image[~flipped])
    assert len(np.unique(batch["scores"], axis=0)) == 64


def test_what_is_normalised():
    x = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8))
    y = augment.normalize(x, MEAN, STD)
    np.testing.assert_allclose(y[..., 1], (np.asarray(x)[..., 1] / 255 - 0.5) / 0.25, atol=1e-5)
    z = augment.normalize(x.astype(jnp.float32), MEAN, STD)  # floats are taken as they are
    np.testing.assert_allclose(z[..., 1], (np.asarray(x)[..., 1] - 0.5) / 0.25, atol=1e-4)
    categories = x.astype(jnp.int32)
    np.testing.assert_array_equal(augment.normalize(categories, MEAN, STD), categories)
