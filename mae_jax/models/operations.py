"""The operations that layers compute with, differentiated by jax or by hand.

Gradients written by hand are the same with less memory and time. `jax.custom_vjp` has no forward
mode, so models use them only when asked to, as training does.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mae_jax.models.attention import reference


def layer_norm(
    x: Float[Array, "*b d"], scale: Float[Array, "... d"], bias: Float[Array, "... d"], eps: float
) -> Float[Array, "*b d"]:
    """Normalise over the last axis, in float32; the result has the dtype of `x`."""
    return _layer_norm_forward(x, scale, bias, eps)[0]


@dataclasses.dataclass(frozen=True)
class Operations:
    """What a network computes with. All but `dtype` change only speed, memory and rounding."""

    dtype: Any = jnp.float32
    product: Callable[..., jax.Array] = jnp.matmul
    layer_norm: Callable[..., jax.Array] = layer_norm
    attend: Callable[..., jax.Array] = reference.attend  # one of `attention.IMPLEMENTATIONS`


def _layer_norm_forward(x, scale, bias, eps):
    exact = x.astype(jnp.float32)
    mean = exact.mean(-1, keepdims=True)
    rate = jax.lax.rsqrt(jnp.square(exact - mean).mean(-1, keepdims=True) + eps)
    y = (exact - mean) * rate * scale + bias
    return y.astype(x.dtype), (x, mean, rate, scale)


def _layer_norm_backward(eps, residuals, dy):
    x, mean, rate, scale = residuals
    normalized = (x.astype(jnp.float32) - mean) * rate
    dy = dy.astype(jnp.float32)
    dy_scaled = dy * scale
    projection = (dy_scaled * normalized).mean(-1, keepdims=True)
    dx = (dy_scaled - dy_scaled.mean(-1, keepdims=True) - normalized * projection) * rate
    samples = tuple(range(x.ndim - 1))
    total = lambda values: values.sum(samples, keepdims=True)
    return dx.astype(x.dtype), total(dy * normalized), total(dy)


# It keeps its input, the mean and the inverse deviation, where jax keeps half a dozen arrays.
layer_norm_by_hand = jax.custom_vjp(layer_norm, nondiff_argnums=(3,))
layer_norm_by_hand.defvjp(_layer_norm_forward, _layer_norm_backward)


@jax.custom_vjp
def product_by_hand(x: Float[Array, "*b d"], kernel: Float[Array, "d e"]) -> Float[Array, "*b e"]:
    """Return `x @ kernel`, whose gradient for the kernel is one product of two whole matrices.

    As automatic differentiation writes that product, XLA computes its transpose on a CPU and first
    writes the factors transposed, value by value: a third of a step's time.
    """
    return x @ kernel


def _product_backward(residuals, dy):
    x, kernel = residuals
    dy = dy.reshape(-1, dy.shape[-1])
    # On a CPU, XLA would fuse whatever computes dy into both products and compute it twice.
    dy = jax.lax.platform_dependent(dy, cpu=jax.lax.optimization_barrier, default=lambda x: x)
    rows = x.reshape(-1, x.shape[-1])
    dx = jax.lax.dot_general(dy, kernel, (((1,), (1,)), ((), ())))
    return dx.reshape(x.shape), jax.lax.dot_general(rows, dy, (((0,), (0,)), ((), ())))


product_by_hand.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _product_backward)
