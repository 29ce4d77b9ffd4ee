"""What is done to a batch on the device: the host sends uint8, a quarter of the bytes."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8


def flip(key: jax.Array, images: UInt8[Array, "b *size c"]) -> UInt8[Array, "b *size c"]:
    """Mirror each picture left to right with probability one half."""
    shape = (len(images), *(1,) * (images.ndim - 1))
    return jnp.where(jax.random.bernoulli(key, shape=shape), images[..., ::-1, :], images)


def normalize(
    images: UInt8[Array, "b *size c"], mean: Sequence[float], std: Sequence[float]
) -> Float[Array, "b *size c"]:
    """Pixels to `(x / 255 - mean) / std`, per channel."""
    shape = (1,) * (images.ndim - 1) + (-1,)
    x = images.astype(jnp.float32) / 255
    return (x - jnp.reshape(jnp.array(mean), shape)) / jnp.reshape(jnp.array(std), shape)


def to_uint8(
    x: Float[Array, "b *size c"], mean: Sequence[float], std: Sequence[float]
) -> UInt8[Array, "b *size c"]:
    """The inverse of `normalize`, rounded and cut to what a pixel can hold."""
    shape = (1,) * (x.ndim - 1) + (-1,)
    x = x * jnp.reshape(jnp.array(std), shape) + jnp.reshape(jnp.array(mean), shape)
    return jnp.clip(jnp.round(x * 255), 0, 255).astype(jnp.uint8)
