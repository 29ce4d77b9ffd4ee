"""RandAugment on the host: a few random operations of Pillow on one picture."""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

Fill = int | tuple[int, ...]
_LEVELS = 10  # a magnitude of 10 is the strongest


def randaugment(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    operations: int = 2,
    magnitude: float = 9.0,
    std: float = 0.5,
    probability: float = 0.5,
    fill: int | Sequence[int] = 128,
) -> np.ndarray:
    """`image` uint8 [h, w, 1 or 3] after `operations` random draws from `OPERATIONS`.

    RandAugment (Cubuk et al. 2019, arXiv 1909.13719) in the variant that fine-tunes masked
    autoencoders, "rand-m9-mstd0.5-inc1" of timm: every operation changes the picture more at a
    higher magnitude, has a magnitude of its own and may be skipped. The same generator state gives
    the same picture, and moves on by the same number of draws whatever is applied.

    Args:
      image: what to change; it is left as it was.
      rng: draws all.
      operations: how many are drawn, with replacement, and applied one after the other.
      magnitude: the mean strength, on a scale from 0 to 10.
      std: of the strength, which is normal and cut to [0, 10].
      probability: that a drawn operation is applied.
      fill: what comes in from outside of the picture, 0 to 255, one number or one per channel: the
        mean colour of the data.

    Raises:
      ValueError: not a uint8 picture of 1 or 3 channels, or a fill of other channels.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ValueError(
            f"RandAugment needs uint8 pictures of 1 or 3 channels, not {image.dtype} of shape"
            f" {image.shape}: turn it off for other data"
        )
    channels = image.shape[-1]
    colour = (fill,) * channels if isinstance(fill, int) else tuple(fill)
    if len(colour) != channels:
        raise ValueError(
            f"fill {colour} has {len(colour)} numbers for {channels} channel(s): give one for each"
        )
    chosen = rng.integers(len(OPERATIONS), size=operations)
    applied = rng.random(operations) < probability
    amounts = np.clip(rng.normal(magnitude, std, operations), 0, _LEVELS) / _LEVELS
    signs = rng.choice((-1, 1), operations)

    table = list(OPERATIONS.values())
    picture = Image.fromarray(np.ascontiguousarray(image[..., 0] if channels == 1 else image))
    for i in np.flatnonzero(applied):
        amount = float(signs[i] * amounts[i])
        picture = table[chosen[i]](picture, amount, colour[0] if channels == 1 else colour)
    return np.asarray(picture).reshape(image.shape)


def _posterize(picture: Image.Image, amount: float, fill: Fill) -> Image.Image:
    # level 10 would leave no bit, a black picture, which Pillow 13 refuses
    return ImageOps.posterize(picture, max(1, 4 - int(abs(amount) * 4)))


def _solarize(picture: Image.Image, amount: float, fill: Fill) -> Image.Image:
    return ImageOps.solarize(picture, 256 - int(abs(amount) * 256))


def _solarize_add(picture: Image.Image, amount: float, fill: Fill) -> Image.Image:
    add = int(abs(amount) * 110)
    table = [min(255, x + add) if x < 128 else x for x in range(256)]
    return picture.point(table * len(picture.getbands()))


def _enhance(kind: Callable) -> Callable[[Image.Image, float, Fill], Image.Image]:
    return lambda picture, amount, fill: kind(picture).enhance(1 + 0.9 * amount)


def _affine(picture: Image.Image, rows: tuple[float, ...], fill: Fill) -> Image.Image:
    """Pixel (x, y) comes from where the two rows of the matrix send (x, y, 1)."""
    return picture.transform(
        picture.size,
        Image.Transform.AFFINE,
        rows,
        resample=Image.Resampling.BICUBIC,
        fillcolor=fill,
    )


# Each takes (picture "L" or "RGB", amount in [-1, 1], fill) and gives a picture of the same size.
# The sign is a direction where there are two, and without meaning elsewhere.
OPERATIONS: dict[str, Callable[[Image.Image, float, Fill], Image.Image]] = {
    "auto_contrast": lambda picture, amount, fill: ImageOps.autocontrast(picture),
    "equalize": lambda picture, amount, fill: ImageOps.equalize(picture),
    "invert": lambda picture, amount, fill: ImageOps.invert(picture),
    "rotate": lambda picture, amount, fill: picture.rotate(
        30 * amount, resample=Image.Resampling.BICUBIC, fillcolor=fill
    ),
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": _enhance(ImageEnhance.Color),  # leaves gray as it is
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": lambda picture, amount, fill: _affine(picture, (1, 0.3 * amount, 0, 0, 1, 0), fill),
    "shear_y": lambda picture, amount, fill: _affine(picture, (1, 0, 0, 0.3 * amount, 1, 0), fill),
    "translate_x": lambda picture, amount, fill: _affine(
        picture, (1, 0, 0.45 * amount * picture.width, 0, 1, 0), fill
    ),
    "translate_y": lambda picture, amount, fill: _affine(
        picture, (1, 0, 0, 0, 1, 0.45 * amount * picture.height), fill
    ),
}
