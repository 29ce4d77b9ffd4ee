"""Search of similar inputs by the features of a pre-trained model."""

from mae_jax.applications.retrieval.index import Index, Neighbours

__all__ = ["Index", "Neighbours"]
