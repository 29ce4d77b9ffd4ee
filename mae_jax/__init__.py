"""Masked autoencoders (He et al., arXiv 2111.06377) in JAX/Flax."""

import importlib
from typing import Any

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """Import `mae_jax.load` and `mae_jax.embed` at their first use: `import mae_jax` is quick."""
    if name == "load":
        return importlib.import_module("mae_jax.weights.load").load
    if name == "embed":  # the module of the command, which can be called
        return importlib.import_module("mae_jax.embed")
    raise AttributeError(f"module 'mae_jax' has no attribute {name!r}")
