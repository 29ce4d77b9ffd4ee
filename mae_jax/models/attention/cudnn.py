"""Attention by NVIDIA's kernel, for float16 and bfloat16 on GPUs."""

import jax
from jaxtyping import Array, Bool, Float


def attend(
    query: Float[Array, "b n h d"],
    key: Float[Array, "b s h d"],
    value: Float[Array, "b s h d"],
    key_mask: Bool[Array, "b s"] | None = None,
) -> Float[Array, "b n h d"]:
    """Use the kernel, or XLA for a mask of odd lengths, of which the kernel has no gradient."""
    if key_mask is None:
        return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")
    is_odd = query.shape[1] % 2 or key.shape[1] % 2
    implementation = "xla" if is_odd else "cudnn"
    mask = key_mask[:, None, None]
    return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation=implementation)
