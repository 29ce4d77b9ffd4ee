"""Attention of short sequences as a kernel for TPUs: the logits of a sample never leave the chip.

Masked autoencoders look at 50 or 197 tokens, with heads of 64 or 32 values. XLA writes the weights
of all heads and samples to memory and turns [n h d] into [h n d] and back, several times; here a
sample comes in as the products leave it, [n h·d], and goes out so. A TPU's registers and its matrix
unit are 128 values wide: of a head the columns around it that make whole registers are taken, and
those of its neighbours set to 0, which costs a product nothing that padding would not.

The backward pass computes the weights again, transposed ([s n]), so that only one of its five
products turns a matrix.
"""

import functools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

_LANES, _ROWS = 128, 8  # of a register
_FAST = 12 * 2**20  # bytes; a kernel has 16 MiB of the fast memory


def fits(tokens: int, seen: int, width: int, bytes_each: int) -> bool:
    """Whether what the backward pass holds of a sample fits a TPU's fast memory."""
    arrays = 2 * 7 * max(tokens, seen) * width * bytes_each  # two samples: one is on its way
    return arrays + 8 * 4 * tokens * seen <= _FAST


def forward(
    query: Float[Array, "b n w"],
    key: Float[Array, "b s w"],
    value: Float[Array, "b s w"],
    size: int,
    interpret: bool = False,
) -> Float[Array, "b n w"]:
    """`softmax(query @ key / sqrt(size)) @ value` for each head, of `size` columns.

    Args:
      interpret: compute the same with ordinary operations, on any device.
    """
    call = _call(_forward, query, key, size, products=2, results=(query,), interpret=interpret)
    return call(query, key, value)[0]


def backward(
    query: Float[Array, "b n w"],
    key: Float[Array, "b s w"],
    value: Float[Array, "b s w"],
    gradient: Float[Array, "b n w"],
    size: int,
    interpret: bool = False,
) -> tuple[Float[Array, "b n w"], Float[Array, "b s w"], Float[Array, "b s w"]]:
    """The gradients of query, key and value, of that of `forward`'s result."""
    results = (query, key, value)
    call = _call(_backward, query, key, size, products=5, results=results, interpret=interpret)
    return call(query, key, value, gradient)


def _call(kernel: Callable, query, key, size, products, results, interpret) -> Callable:
    """The kernel, one sample after the other."""
    (b, n, width), s = query.shape, key.shape[1]
    one = lambda tokens: pl.BlockSpec((1, tokens, width), lambda i: (i, 0, 0))
    taken = (n, s, s) if len(results) == 1 else (n, s, s, n)
    moved = b * width * (sum(taken) + sum(x.shape[1] for x in results)) * query.dtype.itemsize
    return pl.pallas_call(
        functools.partial(kernel, size=size),
        grid=(b,),
        in_specs=[one(tokens) for tokens in taken],
        out_specs=[one(x.shape[1]) for x in results],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results],
        interpret=interpret,
        name=f"attention{kernel.__name__}",
        cost_estimate=pl.CostEstimate(
            flops=products * 2 * b * n * s * width,
            transcendentals=b * n * s * width // size,
            bytes_accessed=moved,
        ),
        metadata={"cycles": str(b * width // size * _cycles(n, s, products))},
    )


def _cycles(n: int, s: int, products: int) -> int:
    """Of a head of a sample: the bundles of the compiler's schedules for a v5e, on a line through
    those of 50 and of 197 tokens (75 and 283 forward, 217 and 820 backward)."""
    registers = math.ceil(n / _ROWS) * math.ceil(s / _LANES)
    return round(35 + 5 * registers if products == 2 else 110 + 14.2 * registers)


def _forward(query, key, value, result, *, size: int):
    for columns, mine in _heads(query.shape[-1], size):
        q, k, v = (x[0, :, columns] for x in (query, key, value))
        logits = _product(jnp.where(mine, q, 0), k, (1, 1))  # [n s]
        raised = jnp.exp((logits - logits.max(1, keepdims=True)) * size**-0.5)
        y = _product(raised.astype(q.dtype), v, (1, 0)) * (1 / raised.sum(1, keepdims=True))
        result[0, :, columns] = jnp.where(mine, y.astype(q.dtype), result[0, :, columns])


def _backward(query, key, value, gradient, to_query, to_key, to_value, *, size: int):
    for columns, mine in _heads(query.shape[-1], size):
        q, k, v, g = (x[0, :, columns] for x in (query, key, value, gradient))
        logits = _product(k, jnp.where(mine, q, 0), (1, 1))  # [s n]
        raised = jnp.exp((logits - logits.max(0, keepdims=True)) * size**-0.5)
        weights = raised * (1 / raised.sum(0, keepdims=True))
        to_weights = _product(v, jnp.where(mine, g, 0), (1, 1))
        to_logits = weights * (to_weights - (weights * to_weights).sum(0, keepdims=True))
        to_logits, weights = to_logits.astype(q.dtype), weights.astype(q.dtype)
        for into, x in (
            (to_query, _product(to_logits, k, (0, 0)) * size**-0.5),
            (to_key, _product(to_logits, q, (1, 0)) * size**-0.5),
            (to_value, _product(weights, g, (1, 0))),
        ):
            into[0, :, columns] = jnp.where(mine, x.astype(q.dtype), into[0, :, columns])


def _heads(width: int, size: int) -> Iterator[tuple[slice, Array]]:
    """For each head the columns of the registers that it lies in, and which of them are its own."""
    for first in range(0, width, size):
        begin = first // _LANES * _LANES
        end = min(width, pl.cdiv(first + size, _LANES) * _LANES)
        column = begin + jax.lax.broadcasted_iota(jnp.int32, (1, end - begin), 1)
        yield slice(begin, end), (column >= first) & (column < first + size)


def _product(a: Array, b: Array, summed: tuple[int, int]) -> Array:
    numbers = (((summed[0],), (summed[1],)), ((), ()))
    return jax.lax.dot_general(a, b, numbers, preferred_element_type=jnp.float32)
