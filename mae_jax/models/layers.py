"""The layers of a Transformer block.

Dtypes, once for the whole model: parameters are float32; tokens, positions and matrix products are
in `Compute.dtype`; softmax, normalisation statistics and the loss are computed in float32.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from mae_jax.models import attention, gradients

xavier = nn.initializers.xavier_uniform()
# The reference draws q, k and v as one [d, 3d] matrix: each alone has half that xavier variance.
xavier_of_qkv = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")


@dataclasses.dataclass(frozen=True)
class Compute:
    """How a network is computed. All but `dtype` change speed and memory only, up to rounding."""

    dtype: Any = jnp.float32
    attention: str = "reference"  # one of `attention.IMPLEMENTATIONS`
    remat: str = "none"  # what blocks recompute for their gradients: see `transformer.REMAT`
    scan: bool = False  # compile one block for all: see `transformer.Transformer`
    custom_gradients: bool = False  # reverse-mode rules of our own, without a forward mode


class Norm(nn.Module):
    """LayerNorm with the exact (two-pass) variance."""

    eps: float
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        row = (1,) * (x.ndim - 1) + x.shape[-1:]
        x, scale, bias = x.astype(self.compute.dtype), scale.reshape(row), bias.reshape(row)
        if self.compute.custom_gradients:
            return gradients.layer_norm(x, scale, bias, self.eps)
        exact = x.astype(jnp.float32)
        centered = exact - exact.mean(-1, keepdims=True)
        variance = jnp.square(centered).mean(-1, keepdims=True)
        return (centered * jax.lax.rsqrt(variance + self.eps) * scale + bias).astype(x.dtype)


def dense(width: int, compute: Compute, name: str, init=xavier) -> nn.Dense:
    """Return a dense layer with a bias."""
    product = gradients.product if compute.custom_gradients else jnp.matmul
    multiply = lambda x, kernel, *_, **__: product(x, kernel)
    return nn.Dense(width, dtype=compute.dtype, kernel_init=init, name=name, dot_general=multiply)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Compute the exact GELU, in float32: in bfloat16 `1 + erf` would round small values to 0.

    `erf` costs half of the `erfc` that `jax.nn.gelu` takes for values far below zero.
    """
    exact = x.astype(jnp.float32)
    return (0.5 * exact * (1 + jax.lax.erf(exact * 0.5**0.5))).astype(x.dtype)


def drop_path(key: jax.Array, batch: int, depth: int, rate: float) -> Float[Array, "b depth 2"]:
    """Draw the scales of both branches of every block: 0 where a sample skips the branch.

    Block i skips a branch with probability `rate * i / (depth - 1)`; the other scales make up for
    it, so that the mean is 1. Stochastic depth, Huang et al. (arXiv 1603.09382).
    """
    keep = 1 - jnp.linspace(0, rate, depth)[None, :, None]
    return jax.random.bernoulli(key, keep, (batch, depth, 2)) / keep


class Attention(nn.Module):
    """Multi-head self-attention, or cross-attention to `context`."""

    heads: int
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], context: Float[Array, "b s e"] | None = None
    ) -> Float[Array, "b n d"]:
        width = x.shape[-1]
        context = x if context is None else context

        def project(tokens, name):
            y = dense(width, self.compute, name, xavier_of_qkv)(tokens)
            return y.reshape(*y.shape[:-1], self.heads, width // self.heads)

        query, key, value = project(x, "query"), project(context, "key"), project(context, "value")
        if self.is_mutable_collection("attention"):
            self.sow("attention", "weights", attention.weights(query, key))  # [b h n s]
        y = attention.attend(
            query, key, value, self.compute.attention, self.compute.custom_gradients
        )
        return dense(width, self.compute, "out")(y.reshape(x.shape))


class Mlp(nn.Module):
    """Two dense layers with the exact GELU between them."""

    ratio: float = 4.0
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        width = x.shape[-1]
        x = gelu(dense(int(width * self.ratio), self.compute, "fc1")(x))
        return dense(width, self.compute, "fc2")(x)


class Block(nn.Module):
    """Pre-norm Transformer block of self-attention, or of cross-attention to `context`."""

    heads: int
    mlp_ratio: float = 4.0
    eps: float = 1e-6
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        drop_path_scale: Float[Array, "b 2"] | None = None,
        context: Float[Array, "b s e"] | None = None,
    ) -> Float[Array, "b n d"]:
        def scaled(y, branch):
            if drop_path_scale is None:
                return y
            return y * drop_path_scale[:, branch, None, None].astype(y.dtype)

        y = Norm(self.eps, self.compute, name="norm1")(x)
        x = x + scaled(Attention(self.heads, self.compute, name="attention")(y, context), 0)
        y = Norm(self.eps, self.compute, name="norm2")(x)
        return x + scaled(Mlp(self.mlp_ratio, self.compute, name="mlp")(y), 1)
