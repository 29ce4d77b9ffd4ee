"""Attention that takes one sample at a time, whose weights then stay in the cache of a CPU."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mae_jax.models.attention import reference

LEAST = 128 * 128  # weights of a head; with fewer the loop is slower than `reference`


def attend(
    query: Float[Array, "b n h d"],
    key: Float[Array, "b s h d"],
    value: Float[Array, "b s h d"],
    key_mask: Bool[Array, "b s"] | None = None,
) -> Float[Array, "b n h d"]:
    if query.shape[1] * key.shape[1] <= LEAST:
        return reference.attend(query, key, value, key_mask)
    return _attend(query * query.shape[-1] ** -0.5, key, value, key_mask)


@jax.custom_vjp
def _attend(query, key, value, key_mask):
    def one(sample):
        *arrays, key_mask = sample
        query, key, value = map(_swap_heads, arrays)
        return _swap_heads(_softmax(query, key, key_mask) @ value)

    return jax.lax.map(one, (query, key, value, key_mask))


def _backward(residuals, dy):
    def one(sample):
        *arrays, key_mask, dy = sample
        query, key, value, dy = map(_swap_heads, (*arrays, dy))
        weights = _softmax(
            query, key, key_mask
        )  # computing them again is faster than keeping those of all
        d_weights = jnp.einsum("hnd,hsd->hns", dy, value, preferred_element_type=jnp.float32)
        d_logits = weights * (d_weights - (d_weights * weights).sum(-1, keepdims=True))
        d_logits = d_logits.astype(query.dtype)
        transposed = lambda x: x.swapaxes(1, 2)
        gradients = d_logits @ key, transposed(d_logits) @ query, transposed(weights) @ dy
        return tuple(map(_swap_heads, gradients))

    return *jax.lax.map(one, (*residuals, dy)), None


_attend.defvjp(lambda *inputs: (_attend(*inputs), inputs), _backward)


def _softmax(query, key, key_mask):
    logits = jnp.einsum("hnd,hsd->hns", query, key, preferred_element_type=jnp.float32)
    key_mask = None if key_mask is None else key_mask[None]
    return jax.nn.softmax(reference.masked(logits[None], key_mask)[0]).astype(query.dtype)


def _swap_heads(x: Float[Array, "n h d"]) -> Float[Array, "h n d"]:
    return x.swapaxes(0, 1)  # and back
