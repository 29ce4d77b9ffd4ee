"""Tiny models with random parameters, and files of them."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mae_jax import convert
from mae_jax.models import build
from mae_jax.weights import checkpoint_info, load

TINY = dict(patch=(4, 4), width=24, depth=2, heads=3)
DECODER = dict(decoder_width=16, decoder_depth=2, decoder_heads=2)
MODELS = {
    "autoencoder": build.autoencoder(TINY | DECODER | dict(norm_pix=False, mlp_ratio=3.0)),
    "learned": build.autoencoder(TINY | DECODER | dict(learned_positions=True)),
    "classifier": build.classifier(TINY | dict(learned_positions=True), 5),
    "encoder": build.classifier(TINY | dict(pooling="cls"), 0),
}


def random_params(model, size=(16, 16), channels=3) -> dict:
    """Every parameter random, nested."""
    generator = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(generator.normal(size=leaf.shape), leaf.dtype)
    return jax.tree.map(draw, load.abstract(model, size, channels))


def flatten(params) -> dict[str, np.ndarray]:
    return {n: np.asarray(x) for n, x in traverse_util.flatten_dict(params, sep="/").items()}


def export(path, model, params, size=(16, 16), channels=3, **known):
    """A file of ours."""
    about = checkpoint_info.Found("memory", "", {}, {}, lambda wanted: {}, channels, size, **known)
    convert.write_mae_jax(path, about, model, flatten(params))
    return path


def equal(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)
