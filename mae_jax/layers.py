"""The Transformer block.

Dtypes, once for the whole model: parameters are float32; tokens, positions and matrix products are
in `dtype`, predictions too; softmax, normalisation statistics and the loss are computed in float32
whatever `dtype` says.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

xavier = nn.initializers.xavier_uniform()
# The reference draws q, k and v as one [d, 3d] matrix: each alone has half that xavier variance.
xavier_of_qkv = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")


def norm(dtype: Any, name: str) -> nn.LayerNorm:
    """LayerNorm with eps 1e-6 and the exact (two-pass) variance."""
    return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, dtype=dtype, name=name)


class Attention(nn.Module):
    """Multi-head self-attention, or cross-attention to `context`."""

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], context: Float[Array, "b s e"] | None = None
    ) -> Float[Array, "b n d"]:
        width = x.shape[-1]
        context = x if context is None else context

        def project(tokens, name):
            y = nn.Dense(width, dtype=self.dtype, kernel_init=xavier_of_qkv, name=name)(tokens)
            return y.reshape(*y.shape[:-1], self.heads, width // self.heads)

        query, key, value = project(x, "query"), project(context, "key"), project(context, "value")
        scale = (width // self.heads) ** -0.5
        logits = jnp.einsum("bnhd,bshd->bhns", query, key, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits * scale).astype(self.dtype)
        y = jnp.einsum("bhns,bshd->bnhd", weights, value).reshape(x.shape)
        return nn.Dense(width, dtype=self.dtype, kernel_init=xavier, name="out")(y)


class Mlp(nn.Module):
    """Two dense layers with the exact GELU between them."""

    ratio: float = 4.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        width = x.shape[-1]
        x = nn.Dense(int(width * self.ratio), dtype=self.dtype, kernel_init=xavier, name="fc1")(x)
        x = nn.gelu(x, approximate=False)
        return nn.Dense(width, dtype=self.dtype, kernel_init=xavier, name="fc2")(x)


class Block(nn.Module):
    """Pre-norm Transformer block."""

    heads: int
    mlp_ratio: float = 4.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        y = norm(self.dtype, "norm1")(x)
        x = x + Attention(self.heads, self.dtype, name="attention")(y)
        y = norm(self.dtype, "norm2")(x)
        return x + Mlp(self.mlp_ratio, self.dtype, name="mlp")(y)
