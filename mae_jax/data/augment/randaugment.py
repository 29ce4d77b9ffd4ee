"""The host's half of RandAugment: it draws the operations and moves the pixels.

The device changes the colors, see `randaugment_color`. Libraries have no exact Pillow operations
for a device, and Pillow on the host took 1.5 ms for a picture instead of 0.4 ms.
"""

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np

Rows = tuple[float, float, float, float, float, float]
DRAWS = 2  # operations for one picture
_MAX_MAGNITUDE = 10


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
    """Draw operations for `image` uint8 [h, w, 1 or 3], and apply those that move pixels.

    This is RandAugment (Cubuk et al. 2019, arXiv 1909.13719) in the variant that fine-tunes masked
    autoencoders, "rand-m9-mstd0.5-inc1" of timm: every operation changes the picture more at a
    higher magnitude, has its own magnitude and may be skipped. The same generator state gives the
    same picture, and advances by the same number of draws whatever is applied.

    Colors are changed on the device, after all moves, because a TPU gathers pixels slowly and the
    host does not. In one picture of 18 a color operation was drawn before a move; it then also
    changes the fill.

    Args:
      operations: the number of operations, drawn with replacement and applied in turn.
      magnitude, std: the strength is normal, and clipped to [0, 10].
      probability: the probability that a drawn operation is applied.
      fill: the value outside of the picture, 0 to 255, one number or one per channel: the mean
        color of the data.

    Returns:
      The moved picture, and float32 [operations, 2] for `randaugment_color.apply`: the index of
      each color operation in `COLORS`, or -1 for none, and its argument.

    Raises:
      ValueError: the picture is not uint8 with 1 or 3 channels, or the fill has other channels.
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
    names = [*COLORS, *MOVES]
    chosen = rng.integers(len(names), size=operations)
    applied = rng.random(operations) < probability
    amounts = np.clip(rng.normal(magnitude, std, operations), 0, _MAX_MAGNITUDE) / _MAX_MAGNITUDE
    signs = rng.choice((-1, 1), operations)

    colors = np.full((operations, 2), (-1, 0), np.float32)
    for i in np.flatnonzero(applied):
        name, amount = names[chosen[i]], float(signs[i] * amounts[i])
        if name in COLORS:
            colors[i] = chosen[i], COLORS[name](amount)
        else:
            image = moved(image, MOVES[name](amount, height, width), border)
    return image, colors


def moved(image: np.ndarray, rows: Rows, fill: Sequence[int]) -> np.ndarray:
    """Fill each (x, y) from where the two rows of a matrix send (x, y, 1), as Pillow does."""
    matrix = np.array(rows, np.float64).reshape(2, 3)
    # The middle of the first pixel is at (1/2, 1/2), but at (0, 0) for OpenCV.
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


# Functions of an amount in [-1, 1]. Its sign is ignored if an operation has only one direction.
MOVES: dict[str, Callable[[float, int, int], Rows]] = {
    "rotate": _turned,
    "shear_x": lambda amount, height, width: (1, 0.3 * amount, 0, 0, 1, 0),
    "shear_y": lambda amount, height, width: (1, 0, 0, 0.3 * amount, 1, 0),
    "translate_x": lambda amount, height, width: (1, 0, 0.45 * amount * width, 0, 1, 0),
    "translate_y": lambda amount, height, width: (1, 0, 0, 0, 1, 0.45 * amount * height),
}
COLORS: dict[str, Callable[[float], float]] = {  # to the argument of the operation
    "auto_contrast": lambda amount: 0,
    "equalize": lambda amount: 0,
    "invert": lambda amount: 0,
    "posterize": lambda amount: max(1, 4 - int(abs(amount) * 4)),  # bits, at least one
    "solarize": lambda amount: 256 - int(abs(amount) * 256),  # the least value that is inverted
    "solarize_add": lambda amount: int(abs(amount) * 110),  # to the darker half of the values
    **dict.fromkeys(
        ("color", "contrast", "brightness", "sharpness"), lambda amount: 1 + 0.9 * amount
    ),
}
