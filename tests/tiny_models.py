"""Tiny models with random parameters, and files of them."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util

from mae_jax.models import build
from mae_jax.weights import checkpoint_info, families, load, parameter_names
from mae_jax.weights import export as exports
from mae_jax.weights.checkpoint_info import CheckpointInfo

TINY = dict(patch=(4, 4), width=24, depth=2, heads=3)
DECODER = dict(decoder_width=16, decoder_depth=2, decoder_heads=2)
MODELS = {  # name: kind, fields
    "autoencoder": ("MaskedAutoencoder", TINY | DECODER | dict(norm_pix=False, mlp_ratio=3.0)),
    "learned": ("MaskedAutoencoder", TINY | DECODER | dict(learned_positions=True)),
    "classifier": ("Classifier", TINY | dict(classes=5, learned_positions=True)),
    "encoder": ("Classifier", TINY | dict(classes=0, pooling="cls")),
}


def model(name: str):
    """The model of that name, as `load` returns it."""
    kind, fields = MODELS[name]
    return build.model(kind, fields | {"attention": "auto"})


def random_params(model, size=(16, 16), channels=3) -> dict:
    """Every parameter random, nested."""
    generator = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(generator.normal(size=leaf.shape), leaf.dtype)
    return jax.tree.map(draw, load.abstract(model, size, channels))


def flatten(params) -> dict[str, np.ndarray]:
    return {n: np.asarray(x) for n, x in traverse_util.flatten_dict(params, sep="/").items()}


def info(kind: str, fields, size=(16, 16), **known) -> CheckpointInfo:
    """What is known of a model that is not stored."""
    fields = build.completed(kind, fields)
    return CheckpointInfo("memory", kind, fields, {}, lambda wanted: {}, 3, size, **known)


def export(path, kind: str, fields, params=None, **known) -> Path:
    """A file of this project with a model, by default with random parameters."""
    params = random_params(build.model(kind, fields)) if params is None else params
    exports.write_mae_jax(path, info(kind, fields, **known), flatten(params))
    return path


def equal(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def reference_state(name: str, params, size=(16, 16)) -> dict[str, np.ndarray]:
    """The state dict of the reference, with its tables of positions."""
    tables = checkpoint_info.fixed_positions(info(*MODELS[name]), size)
    return parameter_names.to_format(
        tables | flatten(params), families.FAMILIES["reference"], TINY["patch"]
    )


def save(path, state) -> Path:
    """A state dict as a .safetensors file, which needs no PyTorch."""
    safetensors.numpy.save_file({n: np.ascontiguousarray(x) for n, x in state.items()}, path)
    return path
