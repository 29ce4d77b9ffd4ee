"""The Transformer block, and the stack of them.

Dtypes, once for the whole model: parameters are float32; tokens, positions and matrix products are
in `dtype`, predictions too; softmax, normalisation statistics and the loss are computed in float32
whatever `dtype` says.

The forms of attention, recomputing and scanning change the speed and the memory, and the result not
beyond rounding.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from mae_jax.distributed import partitioning
from mae_jax.models import attention

xavier = nn.initializers.xavier_uniform()
# The reference draws q, k and v as one [d, 3d] matrix: each alone has half that xavier variance.
xavier_of_qkv = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")


class Norm(nn.Module):
    """LayerNorm with the exact (two-pass) variance; kept for the gradient are its input, the mean
    and the scale, and not the half a dozen arrays that automatic differentiation keeps."""

    eps: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        along = (1,) * (x.ndim - 1) + x.shape[-1:]
        return _normed(x.astype(self.dtype), scale.reshape(along), bias.reshape(along), self.eps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normed(x, scale, bias, eps):
    return _normed_forward(x, scale, bias, eps)[0]


def _normed_forward(x, scale, bias, eps):
    exact = x.astype(jnp.float32)
    mean = exact.mean(-1, keepdims=True)
    rate = jax.lax.rsqrt(jnp.square(exact - mean).mean(-1, keepdims=True) + eps)
    y = (exact - mean) * rate * scale + bias
    return y.astype(x.dtype), (x, mean, rate, scale)


def _normed_backward(eps, kept, gradient):
    x, mean, rate, scale = kept
    whitened = (x.astype(jnp.float32) - mean) * rate
    gradient = gradient.astype(jnp.float32)
    down = gradient * scale
    along = (down * whitened).mean(-1, keepdims=True)
    dx = (down - down.mean(-1, keepdims=True) - whitened * along) * rate
    samples = tuple(range(x.ndim - 1))
    total = lambda values: values.sum(samples, keepdims=True)
    return dx.astype(x.dtype), total(gradient * whitened), total(gradient)


_normed.defvjp(_normed_forward, _normed_backward)


@jax.custom_vjp
def product(x: Float[Array, "*b d"], kernel: Float[Array, "d e"]) -> Float[Array, "*b e"]:
    """`x @ kernel`, whose gradient for the kernel is one product of two whole matrices.

    As automatic differentiation writes it, XLA computes the transposed product on a CPU and, for
    that, writes its factors transposed, value by value: a third of a step's time.
    """
    return x @ kernel


def _product_backward(kept, gradient):
    x, kernel = kept
    gradient = gradient.reshape(-1, gradient.shape[-1])
    gradient = jax.lax.platform_dependent(  # on a CPU XLA would fuse what comes before with both
        gradient, cpu=jax.lax.optimization_barrier, default=lambda x: x
    )
    rows = x.reshape(-1, x.shape[-1])
    dx = jax.lax.dot_general(gradient, kernel, (((1,), (1,)), ((), ())))
    return dx.reshape(x.shape), jax.lax.dot_general(rows, gradient, (((0,), (0,)), ((), ())))


product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _product_backward)


def dense(width: int, dtype: Any, name: str, init=xavier) -> nn.Dense:
    """A dense layer with a bias."""
    multiply = lambda x, kernel, *_, **__: product(x, kernel)
    return nn.Dense(width, dtype=dtype, kernel_init=init, name=name, dot_general=multiply)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact GELU, in float32: in less `1 + erf` would leave nothing of small values.

    By `erf`, which costs half of the `erfc` that `jax.nn.gelu` takes for values far below zero.
    """
    exact = x.astype(jnp.float32)
    return (0.5 * exact * (1 + jax.lax.erf(exact * 0.5**0.5))).astype(x.dtype)


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
    form: str = "plain"  # see `attention.attend`
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], context: Float[Array, "b s e"] | None = None
    ) -> Float[Array, "b n d"]:
        width = x.shape[-1]
        context = x if context is None else context

        def project(tokens, name):
            y = dense(width, self.dtype, name, xavier_of_qkv)(tokens)
            return y.reshape(*y.shape[:-1], self.heads, width // self.heads)

        query, key, value = project(x, "query"), project(context, "key"), project(context, "value")
        if self.is_mutable_collection("attention"):
            self.sow("attention", "weights", attention.weights(query, key))  # [b h n s]
        y = attention.attend(query, key, value, self.form)
        return dense(width, self.dtype, "out")(y.reshape(x.shape))


class Mlp(nn.Module):
    """Two dense layers with the exact GELU between them."""

    ratio: float = 4.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        width = x.shape[-1]
        x = gelu(dense(int(width * self.ratio), self.dtype, "fc1")(x))
        return dense(width, self.dtype, "fc2")(x)


class Block(nn.Module):
    """Pre-norm Transformer block, of self-attention or of cross-attention to `context`.

    `paths` are factors of its two branches, see `drop_path`.
    """

    heads: int
    mlp_ratio: float = 4.0
    eps: float = 1e-6
    form: str = "plain"
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
        y = Norm(self.eps, self.dtype, name="norm1")(x)
        attend = Attention(self.heads, self.form, self.dtype, name="attention")
        x = x + scaled(attend(y, context), 0)
        y = Norm(self.eps, self.dtype, name="norm2")(x)
        return x + scaled(Mlp(self.mlp_ratio, self.dtype, name="mlp")(y), 1)


# What a block keeps for its gradient, the rest being computed again: products with parameters, or
# nothing but its input.
KEPT = {
    "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "inputs": jax.checkpoint_policies.nothing_saveable,
}


def stack(
    parent: nn.Module,
    x: Float[Array, "b n d"],
    each: Sequence[tuple],
    *,
    remat: str = "none",
    scan: bool = False,
    **fields,
) -> list[Float[Array, "b n d"]]:
    """Blocks one after another, the parts `block_0`, `block_1` ... of `parent`; their results.

    Args:
      each: for each block the arguments behind x.
      remat: what a block keeps for its gradient, of `KEPT`; "none" of it is computed again.
      scan: compile one block, and loop over the parameters of all, which the step stacks for that:
        a shorter compilation for slower steps. The names of the parameters stay the same.
      fields: of `Block`.
    """
    lifted: Any = Block
    if remat != "none":
        lifted = nn.remat(Block, policy=KEPT[remat], prevent_cse=not scan)
    results = []
    if (
        not each
        or not scan
        or parent.is_initializing()
        or parent.is_mutable_collection("attention")
    ):
        for i, given in enumerate(each):
            x = lifted(**fields, name=f"block_{i}")(x, *given)
            results.append(x)
        return results
    params = parent.variables["params"]
    small = lambda a: a.astype(fields["dtype"]) if a.ndim > 1 else a  # as the products use them
    params = [jax.tree.map(small, params[f"block_{i}"]) for i in range(len(each))]
    params, given = (
        jax.tree.map(lambda *a: jnp.stack(a), *parts) for parts in (params, list(map(tuple, each)))
    )
    block = lifted(**fields, parent=None)

    def body(x, of_block):
        x = partitioning.spread(block.apply({"params": of_block[0]}, x, *of_block[1]))
        return x, x

    last, results = jax.lax.scan(body, x, (params, given))
    return [*results[:-1], last]
