"""The layers of a Transformer block.

Dtypes, once for the whole model: parameters are float32; tokens, positions and matrix products are
in `Operations.dtype`; softmax, normalisation statistics and the loss are computed in float32.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from mae_jax.models.attention import reference
from mae_jax.models.operations import Operations

xavier = nn.initializers.xavier_uniform()
# The reference draws q, k and v as one [d, 3d] matrix: each alone has half that xavier variance.
xavier_of_qkv = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")


class Norm(nn.Module):
    """LayerNorm."""

    eps: float
    ops: Operations = Operations()

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        row = (1,) * (x.ndim - 1) + x.shape[-1:]
        x = x.astype(self.ops.dtype)
        return self.ops.layer_norm(x, scale.reshape(row), bias.reshape(row), self.eps)


def dense(width: int, ops: Operations, name: str, init=xavier) -> nn.Dense:
    """Return a dense layer with a bias."""
    multiply = lambda x, kernel, *_, **__: ops.product(x, kernel)
    return nn.Dense(width, dtype=ops.dtype, kernel_init=init, name=name, dot_general=multiply)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Compute the exact GELU, in float32: in bfloat16 `1 + erf` would round small values to 0.

    `erf` takes half of the time of `erfc`, which `jax.nn.gelu` uses to be exact far below zero.
    """
    exact = x.astype(jnp.float32)
    return (0.5 * exact * (1 + jax.lax.erf(exact * 0.5**0.5))).astype(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention, or cross-attention to `context`."""

    heads: int
    ops: Operations = Operations()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        context: Float[Array, "b s e"] | None = None,
        key_mask: Bool[Array, "b s"] | None = None,
    ) -> Float[Array, "b n d"]:
        """Attend to all tokens, or to those where `key_mask` is True."""
        width = x.shape[-1]
        context = x if context is None else context

        def project(tokens, name):
            y = dense(width, self.ops, name, xavier_of_qkv)(tokens)
            return y.reshape(*y.shape[:-1], self.heads, width // self.heads)

        query, key, value = project(x, "query"), project(context, "key"), project(context, "value")
        if self.is_mutable_collection("attention"):
            self.sow("attention", "weights", reference.weights(query, key, key_mask))  # [b h n s]
        y = self.ops.attend(query, key, value, key_mask).reshape(x.shape)
        return dense(width, self.ops, "out")(y)


class Mlp(nn.Module):
    """Two dense layers with the exact GELU between them."""

    ratio: float = 4.0
    ops: Operations = Operations()

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        width = x.shape[-1]
        x = gelu(dense(int(width * self.ratio), self.ops, "fc1")(x))
        return dense(width, self.ops, "fc2")(x)


class Block(nn.Module):
    """Pre-norm Transformer block of self-attention, or of cross-attention to `context`."""

    heads: int
    mlp_ratio: float = 4.0
    eps: float = 1e-6
    ops: Operations = Operations()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        drop_path_scale: Float[Array, "b 2"] | None = None,
        context: Float[Array, "b s e"] | None = None,
        key_mask: Bool[Array, "b s"] | None = None,
    ) -> Float[Array, "b n d"]:
        def scaled(y, branch):
            if drop_path_scale is None:
                return y
            return y * drop_path_scale[:, branch, None, None].astype(y.dtype)

        y = Norm(self.eps, self.ops, name="norm1")(x)
        attention = Attention(self.heads, self.ops, name="attention")
        x = x + scaled(attention(y, context, key_mask), 0)
        y = Norm(self.eps, self.ops, name="norm2")(x)
        return x + scaled(Mlp(self.mlp_ratio, self.ops, name="mlp")(y), 1)
