"""Masked autoencoders (He et al., arXiv 2111.06377) in JAX/Flax."""

import importlib

__version__ = "0.2.0"


def __getattr__(name: str):
    """Import `mae_jax.load` at its first use: `import mae_jax` is quick."""
    if name == "load":
        return importlib.import_module("mae_jax.weights.load").load
    raise AttributeError(f"module 'mae_jax' has no attribute {name!r}")
