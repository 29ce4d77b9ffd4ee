"""Pictures: random crops of encoded bytes or arrays, and central crops."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mae_jax.data.image_io import crop, decode


def train_views(
    image: bytes | np.ndarray, data: Mapping[str, Any], rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield `crop.random_crops` of a picture, uint8 [*size, c]; or raise `Unreadable`."""
    size, scale, ratio = (tuple(data[key]) for key in ("size", "crop_scale", "crop_ratio"))
    return crop.random_crops(image, data["channels"], size, scale, ratio, rng, data["repeats"])


def eval_views(
    image: bytes | np.ndarray, data: Mapping[str, Any], clips: int = 1, crops: int = 1
) -> Iterator[np.ndarray]:
    """Yield the `crop.center_crop` of a picture, uint8 [*size, c]; or raise `Unreadable`."""
    pixels = decode.decode(image, data["channels"])
    yield crop.center_crop(pixels, tuple(data["size"]), data["center_crop"])
