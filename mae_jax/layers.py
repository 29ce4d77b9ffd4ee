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


def norm(eps: float, dtype: Any, name: str | None) -> nn.LayerNorm:
    """LayerNorm with the exact (two-pass) variance."""
    return nn.LayerNorm(epsilon=eps, use_fast_variance=False, dtype=dtype, name=name)


def drop_path(key: jax.Array, batch: int, depth: int, rate: float) -> Float[Array, "b depth 2"]:
    """Factors of both branches of every block: 0 where a sample leaves one out.

    Block i leaves a branch out with probability `rate * i / (depth - 1)`; what stays is scaled up
    so that the mean is 1. Stochastic depth, Huang et al. (arXiv 1603.09382).
    """
    keep = 1 - jnp.linspace(0, rate, depth)[None, :, None]
    return jax.random.bernoulli(key, keep, (batch, depth, 2)) / keep


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
        self.sow("attention", "weights", weights)  # [b h n s], kept only if asked for
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
    """Pre-norm Transformer block, of self-attention or of cross-attention to `context`.

    `paths` are factors of its two branches, see `drop_path`.
    """

    heads: int
    mlp_ratio: float = 4.0
    eps: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        paths: Float[Array, "b 2"] | None = None,
        context: Float[Array, "b s e"] | None = None,
    ) -> Float[Array, "b n d"]:
        scaled = lambda y, branch: (
            y if paths is None else y * paths[:, branch, None, None].astype(y.dtype)
        )
        y = norm(self.eps, self.dtype, "norm1")(x)
        x = x + scaled(Attention(self.heads, self.dtype, name="attention")(y, context), 0)
        y = norm(self.eps, self.dtype, "norm2")(x)
        return x + scaled(Mlp(self.mlp_ratio, self.dtype, name="mlp")(y), 1)
