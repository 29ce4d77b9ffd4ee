"""Masked autoencoders (He et al., arXiv 2111.06377) in JAX/Flax."""

import importlib

__version__ = "0.2.0"
_MODELS = ("layers", "mae", "masking", "patches", "positions", "vit")


def __getattr__(name: str):
    """Import `mae_jax.load` or `mae_jax.mae` etc. at its first use: `import mae_jax` is quick."""
    if name == "load":
        return importlib.import_module("mae_jax.weights.load").load
    if name in _MODELS:
        return importlib.import_module(f"mae_jax.models.{name}")
    raise AttributeError(f"module 'mae_jax' has no attribute {name!r}")
