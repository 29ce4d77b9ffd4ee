"""Augmentation and normalisation of a batch on the device; the host sends uint8 to save bytes."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped


def flip(key: jax.Array, inputs: Shaped[Array, "b *size c"]) -> Shaped[Array, "b *size c"]:
    """Mirror each picture, or all frames of a clip, left to right with probability one half."""
    shape = (len(inputs), *(1,) * (inputs.ndim - 1))
    return jnp.where(jax.random.bernoulli(key, shape=shape), inputs[..., ::-1, :], inputs)


def add_noise(
    key: jax.Array, inputs: Shaped[Array, "b *size c"], most: float
) -> Float[Array, "b *size c"]:
    """Add Gaussian noise to each input, of its own standard deviation, uniform from 0 to `most`.

    Bytes are divided by 255 first, and values may then lie beyond 0 and 1.
    """
    level_key, noise_key = jax.random.split(key)
    channels = inputs.shape[-1]
    x = normalize(inputs, (0.0,) * channels, (1.0,) * channels)
    level = jax.random.uniform(level_key, (len(x), *(1,) * (x.ndim - 1)), maxval=most)
    return x + level * jax.random.normal(noise_key, x.shape)


def normalize(
    inputs: Shaped[Array, "b *size c"], mean: Sequence[float], std: Sequence[float]
) -> Shaped[Array, "b *size c"]:
    """Return `(x - mean) / std` per channel, where x is uint8 pixels divided by 255, or floats.

    Other integers are categories, and are returned unchanged.
    """
    if inputs.dtype != jnp.uint8 and not jnp.issubdtype(inputs.dtype, jnp.floating):
        return inputs
    shape = (1,) * (inputs.ndim - 1) + (-1,)
    x = inputs.astype(jnp.float32)
    x = x / 255 if inputs.dtype == jnp.uint8 else x
    return (x - jnp.reshape(jnp.array(mean), shape)) / jnp.reshape(jnp.array(std), shape)


def targets(labels: Int[Array, "b"], classes: int, smoothing: float) -> Float[Array, "b classes"]:
    """Return each label as a distribution: `1 - smoothing` on its class, the rest over all classes.

    A label outside of 0..classes-1 silently gets no class: check labels where they are read.

    Raises:
      ValueError: the smoothing is not in [0, 1).
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"label smoothing {smoothing} is not a share: use 0 (off) to below 1")
    return (1 - smoothing) * jax.nn.one_hot(labels, classes) + smoothing / classes


def mix(
    key: jax.Array,
    inputs: Float[Array, "b *t h w c"],
    targets: Float[Array, "b classes"],
    mixup: float,
    cutmix: float,
    switch: float = 0.5,
) -> tuple[Float[Array, "b *t h w c"], Float[Array, "b classes"]]:
    """Mix each input and its target with those of its partner, by Mixup or CutMix.

    The whole batch is mixed in the same way, like timm's batch mode: sample i with sample b-1-i
    (the middle one of an odd batch with itself), by one share from Beta(alpha, alpha). Mixup
    (arXiv 1710.09412) averages the values. CutMix (arXiv 1905.04899) pastes a box of the partner,
    with sides `sqrt(1 - share)` around a uniform centre; the share then becomes the part that the
    box, cut at the border, leaves.

    Args:
      inputs: pictures, clips or spectrograms of any finite values; a box lies on the last two axes
        before the channels, the same in each frame.
      targets: distributions over the classes, as returned by `targets`.
      mixup, cutmix: the alpha of each, 0 to turn it off.
      switch: the probability of CutMix if both are on.

    Raises:
      ValueError: an alpha is negative, or the inputs are not floats with two axes.
    """
    if mixup < 0 or cutmix < 0:
        raise ValueError(f"mixup {mixup} and cutmix {cutmix}: use 0 (off) or a positive alpha")
    if not mixup and not cutmix:
        return inputs, targets
    height, width = _two_axes(inputs)
    choice, draw, position = jax.random.split(key, 3)
    cut = jax.random.bernoulli(choice, switch if mixup and cutmix else float(cutmix > 0))
    alpha = jnp.where(cut, cutmix, mixup)
    share = jax.random.beta(draw, alpha, alpha)
    size = jnp.array((height, width))
    half = (jnp.sqrt(1 - share) * size).astype(jnp.int32) // 2
    centre = jax.random.randint(position, (2,), 0, size)
    outside = ~_box(centre - half, centre + half, (height, width))
    own = jnp.where(cut, outside, share)[..., None].astype(inputs.dtype)
    own = own.reshape((1,) * (inputs.ndim - 3) + own.shape)  # [1 ... h w 1]
    share = jnp.where(cut, outside.mean(), share)
    return (
        own * inputs + (1 - own) * inputs[::-1],
        share * targets + (1 - share) * targets[::-1],
    )


def erase(
    key: jax.Array, inputs: Float[Array, "b *t h w c"], probability: float = 0.25
) -> Float[Array, "b *t h w c"]:
    """Put a box of standard normal noise into a share `probability` of the inputs (random erasing).

    Zhong et al. 2017 (arXiv 1708.04896), with noise for every value as in timm's "pixel" mode, so
    `inputs` must be normalised. A box has an area uniform in .02 to 1/3 of the picture and an
    aspect log-uniform in .3 to 1/.3. A side longer than the picture is cut, because a compiled
    program cannot draw again (.5 % of the boxes in a square picture). The box is the same in each
    frame of a clip.

    Raises:
      ValueError: the inputs are not floats with two axes.
    """
    size = _two_axes(inputs)
    b = len(inputs)
    hit, area, aspect, position, noise = jax.random.split(key, 5)
    erased = jax.random.bernoulli(hit, probability, (b,))
    pixels = jax.random.uniform(area, (b,), minval=0.02, maxval=1 / 3) * math.prod(size)
    root = jnp.exp(0.5 * jax.random.uniform(aspect, (b,), minval=-1, maxval=1) * math.log(0.3))
    sides = jnp.sqrt(pixels)[:, None] * jnp.stack([root, 1 / root], axis=-1)  # [b 2]
    limit = jnp.array(size)[None]
    sides = jnp.clip(jnp.round(sides).astype(jnp.int32), 1, limit)
    low = jax.random.randint(position, (b, 2), 0, limit - sides + 1)
    boxes = jax.vmap(functools.partial(_box, size=size))(low, low + sides)  # [b h w]
    boxes = (boxes & erased[:, None, None])[..., None]
    boxes = boxes.reshape(b, *(1,) * (inputs.ndim - 4), *boxes.shape[1:])
    return jnp.where(boxes, jax.random.normal(noise, inputs.shape, inputs.dtype), inputs)


def _two_axes(inputs: Array) -> tuple[int, int]:
    if inputs.ndim < 4 or not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise ValueError(
            "mixing and erasing need normalised float pictures [b, ..., h, w, c], not"
            f" {inputs.dtype} of shape {inputs.shape}: turn them off for other data"
        )
    return inputs.shape[-3], inputs.shape[-2]


def _box(low: Int[Array, "2"], high: Int[Array, "2"], size: tuple[int, int]) -> Bool[Array, "h w"]:
    """Return a mask that is True from `low` to below `high`, cut at the border of the picture."""
    rows, columns = (
        (low[i] <= jnp.arange(n)) & (jnp.arange(n) < high[i]) for i, n in enumerate(size)
    )
    return rows[:, None] & columns[None, :]
