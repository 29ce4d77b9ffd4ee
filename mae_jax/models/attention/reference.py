"""Attention as the paper writes it: three operations and their automatic gradient."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def attend(
    query: Float[Array, "b n h d"],
    key: Float[Array, "b s h d"],
    value: Float[Array, "b s h d"],
    key_mask: Bool[Array, "b s"] | None = None,
) -> Float[Array, "b n h d"]:
    return jnp.einsum("bhns,bshd->bnhd", weights(query, key, key_mask), value)


def weights(
    query: Float[Array, "b n h d"],
    key: Float[Array, "b s h d"],
    key_mask: Bool[Array, "b s"] | None = None,
) -> Float[Array, "b h n s"]:
    """Return how much each token attends to each of the others, for each head."""
    logits = jnp.einsum("bnhd,bshd->bhns", query, key, preferred_element_type=jnp.float32)
    logits = masked(logits, key_mask) * query.shape[-1] ** -0.5
    return jax.nn.softmax(logits).astype(query.dtype)


def masked(
    logits: Float[Array, "b h n s"], key_mask: Bool[Array, "b s"] | None
) -> Float[Array, "b h n s"]:
    """Return logits whose softmax is exactly 0 for keys outside of the mask, or even without any.

    Minus infinity would give NaN where no key is left.
    """
    if key_mask is None:
        return logits
    return jnp.where(key_mask[:, None, None], logits, jnp.finfo(logits.dtype).min)
