"""Fingerprints of arrays: two sums over their bits, which do not depend on the sharding."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, UInt32


def of(tree: Any) -> tuple[dict[str, list[int]], list[str]]:
    """Return the fingerprint of each array of a tree by its name, and the names of non-finite ones.

    A fingerprint is two sums, modulo 2**32, of a hash of the bits of each value and of its place.
    The hash is one to one, so a single changed value is always seen, and of other damage one in
    2**64 goes unseen. Integers add up to the same in any order, so the mesh does not matter.
    """
    results = {}
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(x, jax.Array) and x.is_fully_replicated:
            x = x.addressable_data(0)  # one of the copies
        result = _fingerprint(x)
        if jax.default_backend() == "cpu":
            jax.block_until_ready(result)  # many sums over many devices at a time block its threads
        results[jax.tree_util.keystr(path, simple=True, separator="/")] = result
    results = jax.device_get(results)
    sums = {name: x.tolist() for name, (x, _) in results.items()}
    return sums, [name for name, (_, finite) in results.items() if not finite]


@jax.jit
def _fingerprint(x: Array) -> tuple[UInt32[Array, "2"], Bool[Array, ""]]:
    if x.dtype == jnp.bool:
        x = x.astype(jnp.uint8)
    words = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    bits = jax.lax.bitcast_convert_type(x, words).astype(jnp.uint32)
    place, stride = jnp.zeros(bits.shape, jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    first = _hash(place)
    second = _hash(first + jnp.uint32(1))
    sums = [_hash(bits ^ hashed).sum(dtype=jnp.uint32) for hashed in (first, second)]
    return jnp.stack(sums), jnp.isfinite(x).all()


def _hash(x: Array) -> Array:
    """Apply the finalizer of MurmurHash3 (public domain)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
