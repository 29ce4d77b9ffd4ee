"""A picture of pictures before and after restoration."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from mae_jax.data.image_io import resize
from mae_jax.evaluators import visualize

_LONGEST = 768  # side of a picture beside others


def limits(given: Shaped[np.ndarray, "..."]) -> tuple[float, float]:
    """Return which numbers are drawn black and white: the least and the greatest, unless bytes."""
    return (0, 255) if given.dtype == np.uint8 else (np.nanmin(given), np.nanmax(given))


def draw(
    pictures: Mapping[str, Shaped[np.ndarray, "*sides c"]], limits: tuple[float, float]
) -> Image.Image:
    """Draw pictures under their titles; volumes as some slices. Large pictures are shrunk."""
    (low, high), shown = limits, {}
    for title, x in pictures.items():
        x = np.nan_to_num((x.astype(np.float64) - low) / max(high - low, 1e-12), nan=1.0)
        flat = visualize.flat(np.rint(255 * x.clip(0, 1))[None].astype(np.uint8))[0]
        scale = min(1, _LONGEST / max(flat.shape[:2]))
        size = tuple(max(1, round(scale * side)) for side in flat.shape[:2])
        shown[title] = resize.bicubic(flat, (size[0], size[1]))[None]
    return visualize.sheet(shown)
