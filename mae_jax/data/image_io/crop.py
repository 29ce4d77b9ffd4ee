"""Crops of pictures, resized."""

import math
from collections.abc import Iterator

import numpy as np

from mae_jax.data.image_io import decode, jpeg, resize


def random_crops(
    image: bytes | np.ndarray,
    channels: int,
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
    count: int = 1,
) -> Iterator[np.ndarray]:
    """Yield `count` times `random_resized_crop` of one picture, which is decoded once.

    The boxes of a JPEG are drawn before it is decoded. If all of them are large enough, it is
    decoded at 1/2, 1/4 or 1/8 of its size.

    Raises:
      Unreadable: as `decode.decode`.
    """
    draw = lambda height, width: [
        random_box(height, width, size, scale, ratio, rng) for _ in range(count)
    ]
    pixels, boxes, reduction = None, None, 1
    if isinstance(image, bytes) and channels in decode.MODES:
        if header := jpeg.read_header(image):
            boxes = draw(header[0], header[1])
            reduction = min(jpeg.reduction(h, w, size) for _, _, h, w in boxes)
            pixels = jpeg.decode(image, header, reduction)
    if pixels is None:
        pixels, reduction = decode.decode(image, channels), 1
    for box in boxes or draw(*pixels.shape[:2]):
        y, x, h, w = (side // reduction for side in box)
        yield decode.convert_channels(resize.bicubic(pixels[y : y + h, x : x + w], size), channels)


def random_resized_crop(
    image: np.ndarray,
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> np.ndarray:
    """Resize a `random_box` of `image` [h, w, c] to uint8 [*size, c] by antialiased bicubic."""
    y, x, h, w = random_box(image.shape[0], image.shape[1], size, scale, ratio, rng)
    return resize.bicubic(image[y : y + h, x : x + w], size)


def random_box(
    height: int,
    width: int,
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """Draw a box y, x, h, w in a picture [height, width].

    The area of the box, as a share of the picture, is uniform in `scale`. Its aspect, relative to
    the aspect of `size`, is log-uniform in `ratio`. After ten boxes that do not fit, the box is the
    largest central one of such an aspect. For a square `size` this is torchvision's
    RandomResizedCrop; He et al. 2021 pre-train with scale (.2, 1) and ratio (3/4, 4/3). The sides
    of a box that is 2, 4 or 8 times as large as `size` are rounded down to multiples of that
    number, which are whole pixels of a JPEG decoded at 1/2, 1/4 or 1/8.
    """
    aspect = size[1] / size[0]
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        shape = aspect * math.exp(rng.uniform(*np.log(ratio)))
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            offset = lambda free: int(rng.integers(free + 1))
            break
    else:
        shape = np.clip(width / height, aspect * ratio[0], aspect * ratio[1])
        w = max(1, min(width, round(height * shape)))
        h = max(1, min(height, round(width / shape)))
        offset = lambda free: free // 2
    step = jpeg.reduction(h, w, size)
    h, w = h // step * step, w // step * step
    return offset((height - h) // step) * step, offset((width - w) // step) * step, h, w


def center_crop(
    image: np.ndarray,
    size: tuple[int, int],
    share: float,
    position: tuple[float, float] = (0.5, 0.5),
) -> np.ndarray:
    """Resize the middle of `image` [h, w, c] to uint8 [*size, c] by antialiased bicubic.

    `share` is the kept part, per axis, of the largest crop that has the aspect of `size`: .875 is
    the usual "resize to 256, cut 224", and 1 keeps as much as the aspect allows. `position` moves
    the crop: (0, 0) is the upper left corner, and (1, 1) the lower right.
    """
    height, width = image.shape[:2]
    h, w = _center_sides(height, width, size, share)
    y, x = (height - h) * position[0], (width - w) * position[1]
    box = (max(0, x), max(0, y), min(width, x + w), min(height, y + h))
    return resize.pillow_bicubic(image, size, box)


def center_box(
    height: int, width: int, size: tuple[int, int], share: float
) -> tuple[int, int, int, int]:
    """Return the box y, x, h, w of `center_crop`, in whole pixels."""
    h, w = (max(1, round(side)) for side in _center_sides(height, width, size, share))
    h, w = min(h, height), min(w, width)
    return (height - h) // 2, (width - w) // 2, h, w


def _center_sides(
    height: int, width: int, size: tuple[int, int], share: float
) -> tuple[float, float]:
    unit = share * min(height / size[0], width / size[1])
    return size[0] * unit, size[1] * unit
