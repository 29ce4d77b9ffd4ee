"""Attention that keeps no weights for the gradient and computes them again."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mae_jax.models.attention import reference


@jax.custom_vjp
def attend(
    query: Float[Array, "b n h d"],
    key: Float[Array, "b s h d"],
    value: Float[Array, "b s h d"],
    key_mask: Bool[Array, "b s"] | None = None,
) -> Float[Array, "b n h d"]:
    return _forward(query, key, value, key_mask)[0]


def _forward(query, key, value, key_mask):
    exp_logits = _exp_logits(query, key, key_mask).astype(query.dtype)
    y = jnp.einsum("bhns,bshd->bnhd", exp_logits, value, preferred_element_type=jnp.float32)
    total = exp_logits.sum(-1, dtype=jnp.float32)
    # Dividing the result touches d numbers a token; dividing the weights would touch s of them.
    y = (y / total.swapaxes(1, 2)[..., None]).astype(query.dtype)
    return y, (query, key, value, key_mask, y)


def _backward(residuals, dy):
    query, key, value, key_mask, y = residuals
    exp_logits = _exp_logits(query, key, key_mask)
    weights = exp_logits / exp_logits.sum(-1, keepdims=True)
    # delta = sum(dy * y) per token and head, as in FlashAttention (arXiv 2205.14135); it equals
    # sum(weights * d_weights) but needs only d values a token.
    delta = (dy.astype(jnp.float32) * y).sum(-1).swapaxes(1, 2)[..., None]
    d_weights = jnp.einsum("bnhd,bshd->bhns", dy, value, preferred_element_type=jnp.float32)
    # Everything is float32 up to the products: in bfloat16 the weights would lose bits twice.
    d_logits = (weights * (d_weights - delta) * query.shape[-1] ** -0.5).astype(query.dtype)
    return (
        jnp.einsum("bhns,bshd->bnhd", d_logits, key),
        jnp.einsum("bhns,bnhd->bshd", d_logits, query),
        jnp.einsum("bhns,bnhd->bshd", weights.astype(query.dtype), dy),
        None,
    )


attend.defvjp(_forward, _backward)


def _exp_logits(query, key, key_mask):
    logits = jnp.einsum("bnhd,bshd->bhns", query, key, preferred_element_type=jnp.float32)
    logits = reference.masked(logits, key_mask) * query.shape[-1] ** -0.5
    return jnp.exp(logits - logits.max(-1, keepdims=True))
