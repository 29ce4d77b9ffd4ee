"""Masked autoencoders (He et al., arXiv 2111.06377) in JAX/Flax."""

__version__ = "0.2.0"


def __getattr__(name: str):
    if name == "load":  # only now: `import mae_jax` does not import jax
        from mae_jax.weights.load import load

        return load
    raise AttributeError(f"module 'mae_jax' has no attribute {name!r}")
