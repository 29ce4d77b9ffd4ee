"""RandAugment on the host: draws all of it, and moves the pixels; `colour` does the rest."""

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np

cv2.setNumThreads(1)  # who reads pictures has threads of his own

Rows = tuple[float, float, float, float, float, float]
DRAWS = 2  # operations for a picture
_LEVELS = 10  # a magnitude of 10 is the strongest


def randaugment(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    operations: int = DRAWS,
    magnitude: float = 9.0,
    std: float = 0.5,
    probability: float = 0.5,
    fill: int | Sequence[int] = 128,
) -> tuple[np.ndarray, np.ndarray]:
    """`image` uint8 [h, w, 1 or 3] after the drawn shifts and turns, and the drawn colours.

    RandAugment (Cubuk et al. 2019, arXiv 1909.13719) in the variant that fine-tunes masked
    autoencoders, "rand-m9-mstd0.5-inc1" of timm: every operation changes the picture more at a
    higher magnitude, has a magnitude of its own and may be skipped. The same generator state gives
    the same picture, and moves on by the same number of draws whatever is applied.

    Colours are changed on the devices, so after all shifts and turns: reading pixels from anywhere
    is what a TPU does badly, and the host does well. In one picture of 18 a colour was drawn before
    a shift, and then it changes what comes in from outside, too.

    Args:
      image: what to change; it is left as it was.
      rng: draws all.
      operations: how many are drawn, with replacement, and applied one after the other.
      magnitude: the mean strength, on a scale from 0 to 10.
      std: of the strength, which is normal and cut to [0, 10].
      probability: that a drawn operation is applied.
      fill: what comes in from outside of the picture, 0 to 255, one number or one per channel: the
        mean colour of the data.

    Returns:
      The picture, and float32 [operations, 2] for `colour.apply`: of each the number of the colour
      operation, in the order of `COLOURS`, or -1 for none, and what it takes.

    Raises:
      ValueError: not a uint8 picture of 1 or 3 channels, or a fill of other channels.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ValueError(
            f"RandAugment needs uint8 pictures of 1 or 3 channels, not {image.dtype} of shape"
            f" {image.shape}: turn it off for other data"
        )
    height, width, channels = image.shape
    border = (fill,) * channels if isinstance(fill, int) else tuple(fill)
    if len(border) != channels:
        raise ValueError(
            f"fill {border} has {len(border)} numbers for {channels} channel(s): give one for each"
        )
    names = [*COLOURS, *MOVES]
    chosen = rng.integers(len(names), size=operations)
    applied = rng.random(operations) < probability
    amounts = np.clip(rng.normal(magnitude, std, operations), 0, _LEVELS) / _LEVELS
    signs = rng.choice((-1, 1), operations)

    colours = np.full((operations, 2), (-1, 0), np.float32)
    for i in np.flatnonzero(applied):
        name, amount = names[chosen[i]], float(signs[i] * amounts[i])
        if name in COLOURS:
            colours[i] = chosen[i], COLOURS[name](amount)
        else:
            image = moved(image, MOVES[name](amount, height, width), border)
    return image, colours


def moved(image: np.ndarray, rows: Rows, fill: Sequence[int]) -> np.ndarray:
    """What is at (x, y) comes from where the two rows of a matrix send (x, y, 1), as in Pillow."""
    matrix = np.array(rows, np.float64).reshape(2, 3)
    # the middle of the first pixel is at (1/2, 1/2), and to OpenCV at (0, 0)
    matrix[:, 2] += (matrix[:, :2].sum(1) - 1) / 2
    return cv2.warpAffine(
        np.ascontiguousarray(image),
        matrix,
        image.shape[1::-1],
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=tuple(fill),
    ).reshape(image.shape)


def _turned(amount: float, height: int, width: int) -> Rows:
    angle, x, y = math.radians(30 * amount), width / 2, height / 2
    cos, sin = math.cos(angle), math.sin(angle)
    return (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)


def _factor(amount: float) -> float:
    return 1 + 0.9 * amount


# Of amounts in [-1, 1]; the sign is a direction where there are two, and else without meaning.
MOVES: dict[str, Callable[[float, int, int], Rows]] = {
    "rotate": _turned,
    "shear_x": lambda amount, height, width: (1, 0.3 * amount, 0, 0, 1, 0),
    "shear_y": lambda amount, height, width: (1, 0, 0, 0.3 * amount, 1, 0),
    "translate_x": lambda amount, height, width: (1, 0, 0.45 * amount * width, 0, 1, 0),
    "translate_y": lambda amount, height, width: (1, 0, 0, 0, 1, 0.45 * amount * height),
}
COLOURS: dict[str, Callable[[float], float]] = {  # to what the operation takes
    "auto_contrast": lambda amount: 0,
    "equalize": lambda amount: 0,
    "invert": lambda amount: 0,
    "posterize": lambda amount: max(1, 4 - int(abs(amount) * 4)),  # bits; none would be black
    "solarize": lambda amount: 256 - int(abs(amount) * 256),  # the least value that is inverted
    "solarize_add": lambda amount: int(abs(amount) * 110),  # to the darker half of the values
    "color": _factor,
    "contrast": _factor,
    "brightness": _factor,
    "sharpness": _factor,
}
