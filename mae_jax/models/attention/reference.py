"""Attention as the paper writes it: three operations and their automatic gradient."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def attend(
    query: Float[Array, "b n h d"], key: Float[Array, "b s h d"], value: Float[Array, "b s h d"]
) -> Float[Array, "b n h d"]:
    return jnp.einsum("bhns,bshd->bnhd", weights(query, key), value)


def weights(
    query: Float[Array, "b n h d"], key: Float[Array, "b s h d"]
) -> Float[Array, "b h n s"]:
    """Return how much each token attends to each of the others, for each head."""
    logits = jnp.einsum("bnhd,bshd->bhns", query, key, preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits * query.shape[-1] ** -0.5).astype(query.dtype)
