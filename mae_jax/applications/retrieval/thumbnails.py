"""Small pictures of inputs, which an index keeps, as the inputs themselves may move."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image, ImageDraw

from mae_jax.evaluators import visualize
from mae_jax.evaluators.held_out import EvalTransform

SLICES = 4  # of a clip or a volume


def maker(
    transform: EvalTransform, side: int
) -> Callable[[Float[Array, "b *size c"]], UInt8[Array, "b *small c"]]:
    """Return a function of normalised inputs on the device, for `drawn`.

    The last two axes are scaled down to at most `side` values, and of other axes up to `SLICES`
    places are kept. Pictures and clips keep their colors; other values are stretched.

    Raises:
      ValueError: inputs of this modality have no pictures.
    """
    modality = transform.data["modality"]
    if modality == "text":
        raise ValueError("texts have no thumbnails: take thumbnails=0")
    has_colors = modality in ("image", "video")

    def make(inputs):
        x = inputs.astype(jnp.float32)
        for axis in range(1, x.ndim - 3):
            chosen = np.linspace(0, x.shape[axis] - 1, min(SLICES, x.shape[axis])).round()
            x = jnp.take(x, chosen.astype(int), axis=axis)
        first = max(1, x.ndim - 3)
        sides = x.shape[first:-1]
        scale = min(1, side / max(sides))
        small = tuple(max(1, round(scale * n)) for n in sides)
        x = jax.image.resize(x, (*x.shape[:first], *small, x.shape[-1]), "linear")
        if has_colors:
            of_channel = lambda values: jnp.array(values).reshape(*[1] * (x.ndim - 1), -1)
            x = x * of_channel(transform.std) + of_channel(transform.mean)
        else:
            axes = tuple(range(1, x.ndim - 1))
            low, high = (f(x, axis=axes, keepdims=True) for f in (jnp.min, jnp.max))
            x = (x - low) / jnp.maximum(high - low, 1e-6)
        return jnp.rint(255 * x.clip(0, 1)).astype(jnp.uint8)

    return make


def drawn(
    small: UInt8[np.ndarray, "b *small c"], transform: EvalTransform
) -> UInt8[np.ndarray, "b h w c"]:
    """Return pictures in gray or color: slices side by side, and signals as curves."""
    if small.ndim == 3:
        return np.stack([_curves(x) for x in small]) if len(small) else small[:, None]
    return visualize.flat(small, transform.data["modality"] == "audio", SLICES)


def _curves(signal: UInt8[np.ndarray, "n c"]) -> UInt8[np.ndarray, "n n 1"]:
    """Draw at most four channels over each other, on a square."""
    n, channels = signal.shape
    page = Image.new("L", (n, n), 255)
    draw = ImageDraw.Draw(page)
    for shade, values in enumerate(signal.T[:4]):
        heights = (n - 1) * (1 - values / 255)
        draw.line([*enumerate(heights.tolist())], fill=50 * shade)
    return np.asarray(page)[..., None]
