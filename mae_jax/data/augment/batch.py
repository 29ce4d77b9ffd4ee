"""What is done to a batch on the device: the host sends uint8, a quarter of the bytes."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped


def flip(key: jax.Array, images: Shaped[Array, "b *size c"]) -> Shaped[Array, "b *size c"]:
    """Mirror each picture, or all frames of a clip, left to right with probability one half."""
    shape = (len(images), *(1,) * (images.ndim - 1))
    return jnp.where(jax.random.bernoulli(key, shape=shape), images[..., ::-1, :], images)


def normalize(
    images: Shaped[Array, "b *size c"], mean: Sequence[float], std: Sequence[float]
) -> Shaped[Array, "b *size c"]:
    """`(x - mean) / std` per channel: of uint8 pixels divided by 255, of floats as they are.

    Other whole numbers are categories, and stay.
    """
    if images.dtype != jnp.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
        return images
    shape = (1,) * (images.ndim - 1) + (-1,)
    x = images.astype(jnp.float32)
    x = x / 255 if images.dtype == jnp.uint8 else x
    return (x - jnp.reshape(jnp.array(mean), shape)) / jnp.reshape(jnp.array(std), shape)


def targets(labels: Int[Array, "b"], classes: int, smoothing: float) -> Float[Array, "b classes"]:
    """Each label as a distribution: `1 - smoothing` on its class, `smoothing` over all classes.

    A label outside of 0..classes-1 gets no class, silently: check labels where they are read.

    Raises:
      ValueError: a smoothing that is no share.
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"label smoothing {smoothing} is not a share: use 0 (off) to below 1")
    return (1 - smoothing) * jax.nn.one_hot(labels, classes) + smoothing / classes


def mix(
    key: jax.Array,
    images: Float[Array, "b *t h w c"],
    targets: Float[Array, "b classes"],
    mixup: float,
    cutmix: float,
    switch: float = 0.5,
) -> tuple[Float[Array, "b *t h w c"], Float[Array, "b classes"]]:
    """Mixup or CutMix: each picture with its partner's, and its target with its partner's.

    The batch is mixed in one way: sample i with sample b-1-i (the middle one of an odd batch with
    itself), by one own share from Beta(alpha, alpha). Mixup (arXiv 1710.09412) averages the
    pixels; CutMix (arXiv 1905.04899) pastes a box of the partner, of sides `sqrt(1 - share)` around
    a uniform centre, and the share is then what the box, cut at the border, really left. This is
    the batch mode of timm.

    Args:
      key: draws the way, the share and the box.
      images: pictures, clips or spectrograms of any finite values; a box lies on the last two axes
        before the channels, the same in each frame.
      targets: distributions over the classes, as of `targets`.
      mixup: alpha of Mixup, 0 for never.
      cutmix: alpha of CutMix, 0 for never.
      switch: how often it is CutMix, if it can be both.

    Raises:
      ValueError: a negative alpha; something to mix that is not float with two axes.
    """
    if mixup < 0 or cutmix < 0:
        raise ValueError(f"mixup {mixup} and cutmix {cutmix}: use 0 (off) or a positive alpha")
    if not mixup and not cutmix:
        return images, targets
    height, width = _two_axes(images)
    way, draw, place = jax.random.split(key, 3)
    cut = jax.random.bernoulli(way, switch if mixup and cutmix else float(cutmix > 0))
    alpha = jnp.where(cut, cutmix, mixup)
    share = jax.random.beta(draw, alpha, alpha)

    size = jnp.array((height, width))
    half = (jnp.sqrt(1 - share) * size).astype(jnp.int32) // 2
    centre = jax.random.randint(place, (2,), 0, size)
    outside = ~_box(centre - half, centre + half, (height, width))
    own = jnp.where(cut, outside, share)[..., None].astype(images.dtype)
    own = own.reshape((1,) * (images.ndim - 3) + own.shape)  # [1 ... h w 1]
    share = jnp.where(cut, outside.mean(), share)
    return (
        own * images + (1 - own) * images[::-1],
        share * targets + (1 - share) * targets[::-1],
    )


def erase(
    key: jax.Array, images: Float[Array, "b *t h w c"], probability: float = 0.25
) -> Float[Array, "b *t h w c"]:
    """Random erasing: a box of standard normal noise in a share `probability` of the pictures.

    Zhong et al. 2017 (arXiv 1708.04896), with noise for every value as in timm's "pixel" mode, so
    `images` are normalised. A box has an area uniform in .02 to 1/3 of the picture and an aspect
    log-uniform in .3 to 1/.3; what is longer than the picture is cut to it, since the shapes of a
    compiled program leave no second try (.5 % of the boxes in a square picture).

    Of a clip the box is the same in each frame.

    Raises:
      ValueError: not floats with two axes.
    """
    size = _two_axes(images)
    b = len(images)
    hit, area, aspect, place, noise = jax.random.split(key, 5)
    erased = jax.random.bernoulli(hit, probability, (b,))
    pixels = jax.random.uniform(area, (b,), minval=0.02, maxval=1 / 3) * math.prod(size)
    root = jnp.exp(0.5 * jax.random.uniform(aspect, (b,), minval=-1, maxval=1) * math.log(0.3))
    sides = jnp.sqrt(pixels)[:, None] * jnp.stack([root, 1 / root], axis=-1)  # [b 2]
    limit = jnp.array(size)[None]
    sides = jnp.clip(jnp.round(sides).astype(jnp.int32), 1, limit)
    low = jax.random.randint(place, (b, 2), 0, limit - sides + 1)
    boxes = jax.vmap(functools.partial(_box, size=size))(low, low + sides)  # [b h w]
    boxes = (boxes & erased[:, None, None])[..., None]
    boxes = boxes.reshape(b, *(1,) * (images.ndim - 4), *boxes.shape[1:])
    return jnp.where(boxes, jax.random.normal(noise, images.shape, images.dtype), images)


def _two_axes(images: Array) -> tuple[int, int]:
    if images.ndim < 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            "mixing and erasing need normalised float pictures [b, ..., h, w, c], not"
            f" {images.dtype} of shape {images.shape}: turn them off for other data"
        )
    return images.shape[-3], images.shape[-2]


def _box(low: Int[Array, "2"], high: Int[Array, "2"], size: tuple[int, int]) -> Bool[Array, "h w"]:
    """True from `low` to below `high`; the part outside of the picture is left out."""
    rows, columns = (
        (low[i] <= jnp.arange(n)) & (jnp.arange(n) < high[i]) for i, n in enumerate(size)
    )
    return rows[:, None] & columns[None, :]
