"""Masked autoencoders (He et al., arXiv 2111.06377) in JAX/Flax."""

__version__ = "0.1.0"
