"""Attention of short sequences as a kernel for TPUs: the logits of a sample never leave the chip.

XLA writes the weights of all heads and samples to memory and transposes [n h d] into [h n d] and
back several times. A sample enters the kernel as the products leave it, [n h*d]. For each head the
kernel loads the aligned blocks of 128 lanes that contain the head and zeroes the lanes of other
heads. The backward pass computes the weights again, transposed ([s n]), so that only one of its
five products transposes a matrix.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float

from mae_jax.distributed import partitioning
from mae_jax.models.attention import recompute, reference

_LANES, _ROWS = 128, 8  # of a register
_FAST = 12 * 2**20  # bytes; a kernel has 16 MiB of fast memory


def attend(
    query: Float[Array, "b n h d"],
    key: Float[Array, "b s h d"],
    value: Float[Array, "b s h d"],
    key_mask: Bool[Array, "b s"] | None = None,
) -> Float[Array, "b n h d"]:
    """Use the kernel, or `recompute` if a sample does not fit or the sharding is unknown.

    With a mask it is `recompute`, too. Where the program is not compiled for a TPU, the kernel's
    operations run as ordinary ones.
    """
    _, n, heads, size = query.shape
    split = partitioning.on_each(heads)
    fitting = fits(n, key.shape[1], heads * size, query.dtype.itemsize)
    if split is None or key_mask is not None or not fitting:
        return recompute.attend(query, key, value, key_mask)
    return _attend(split, query, key, value)


def _attend(split: Callable, *inputs: jax.Array) -> jax.Array:
    y: Any = _flat(split, inputs[0].shape[-1], *(x.reshape(*x.shape[:2], -1) for x in inputs))
    return y.reshape(inputs[0].shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _flat(split, size, *inputs):
    return split(functools.partial(_run, _forward, 2, size))(*inputs)[0]


_flat.defvjp(
    lambda split, size, *inputs: (_flat(split, size, *inputs), inputs),
    lambda split, size, inputs, dy: tuple(
        split(functools.partial(_run, _backward, 5, size))(*inputs, dy)
    ),
)


@functools.cache
def agrees_with_reference() -> bool:
    """Compare result and gradients with `reference` on the default device, on one small batch.

    Takes milliseconds, once in a process. A kernel that fails to compile does not agree.
    """
    keys = jax.random.split(jax.random.key(0), 4)
    query, key, value, dy = (jax.random.normal(k, (2, 50, 4, 64), jnp.bfloat16) for k in keys)

    def results(attend):
        y, backward = jax.vjp(attend, query, key, value)
        return jax.device_get((y, *backward(dy)))

    try:
        ours = results(jax.jit(functools.partial(_attend, lambda f: f)))
    except jax.errors.JaxRuntimeError:
        return False
    near = lambda a, b: np.abs(np.float32(a) - np.float32(b)).max() < 0.05
    return all(map(near, ours, results(jax.jit(reference.attend))))


def fits(tokens: int, seen: int, width: int, bytes_each: int) -> bool:
    """Return whether the backward pass of a sample fits the fast memory of a TPU."""
    arrays = 2 * 7 * max(tokens, seen) * width * bytes_each  # of two samples: one is on its way
    return arrays + 8 * 4 * tokens * seen <= _FAST


def _run(kernel: Callable, products: int, size: int, *inputs: jax.Array) -> Any:
    """Run a kernel of so many products on one sample after the other, for heads of `size` columns.

    The inputs are query, key, value and maybe the gradient of the result, [b n w] or [b s w].
    """
    (b, n, width), s = inputs[0].shape, inputs[1].shape[1]
    results = inputs[:1] if kernel is _forward else inputs[:3]
    one = lambda x: pl.BlockSpec((1, *x.shape[1:]), lambda i: (i, 0, 0))

    def call(interpret: bool) -> Callable:
        return pl.pallas_call(
            functools.partial(kernel, size=size),
            grid=(b,),
            in_specs=[one(x) for x in inputs],
            out_specs=[one(x) for x in results],
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results],
            interpret=interpret,
            name=f"attention{kernel.__name__}",
            cost_estimate=pl.CostEstimate(
                flops=products * 2 * b * n * s * width,
                transcendentals=b * n * s * width // size,
                bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*inputs, *results)),
            ),
            metadata={"cycles": str(b * width // size * _cycles(n, s, products))},
        )

    return jax.lax.platform_dependent(*inputs, tpu=call(False), default=call(True))


def _cycles(n: int, s: int, products: int) -> int:
    """Estimate the cycles of one head of one sample on a v5e.

    The estimate is a line through the bundles that the compiler schedules for 50 and for 197 tokens
    (75 and 283 forward, 217 and 820 backward).
    """
    registers = math.ceil(n / _ROWS) * math.ceil(s / _LANES)
    return round(35 + 5 * registers if products == 2 else 110 + 14.2 * registers)


def _forward(query, key, value, result, *, size: int):
    for columns, mine in _heads(query.shape[-1], size):
        q, k, v = (x[0, :, columns] for x in (query, key, value))
        logits = _product(jnp.where(mine, q, 0), k, (1, 1))  # [n s]
        exp_logits = jnp.exp((logits - logits.max(1, keepdims=True)) * size**-0.5)
        y = _product(exp_logits.astype(q.dtype), v, (1, 0)) * (1 / exp_logits.sum(1, keepdims=True))
        result[0, :, columns] = jnp.where(mine, y.astype(q.dtype), result[0, :, columns])


def _backward(query, key, value, gradient, d_query, d_key, d_value, *, size: int):
    for columns, mine in _heads(query.shape[-1], size):
        q, k, v, g = (x[0, :, columns] for x in (query, key, value, gradient))
        logits = _product(k, jnp.where(mine, q, 0), (1, 1))  # [s n]
        exp_logits = jnp.exp((logits - logits.max(0, keepdims=True)) * size**-0.5)
        weights = exp_logits * (1 / exp_logits.sum(0, keepdims=True))
        d_weights = _product(v, jnp.where(mine, g, 0), (1, 1))
        d_logits = weights * (d_weights - (weights * d_weights).sum(0, keepdims=True))
        d_logits, weights = d_logits.astype(q.dtype), weights.astype(q.dtype)
        for into, x in (
            (d_query, _product(d_logits, k, (0, 0)) * size**-0.5),
            (d_key, _product(d_logits, q, (1, 0)) * size**-0.5),
            (d_value, _product(weights, g, (1, 0))),
        ):
            into[0, :, columns] = jnp.where(mine, x.astype(q.dtype), into[0, :, columns])


def _heads(width: int, size: int) -> Iterator[tuple[slice, Array]]:
    """Yield, for each head, the columns of its registers and which of these are its own."""
    for first in range(0, width, size):
        begin = first // _LANES * _LANES
        end = min(width, pl.cdiv(first + size, _LANES) * _LANES)
        column = begin + jax.lax.broadcasted_iota(jnp.int32, (1, end - begin), 1)
        yield slice(begin, end), (column >= first) & (column < first + size)


def _product(a: Array, b: Array, summed: tuple[int, int]) -> Array:
    numbers = (((summed[0],), (summed[1],)), ((), ()))
    return jax.lax.dot_general(a, b, numbers, preferred_element_type=jnp.float32)
