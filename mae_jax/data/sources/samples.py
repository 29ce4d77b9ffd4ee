"""Pictures that installed packages ship, so that they need no download."""

import functools
from importlib import resources

import numpy as np
from PIL import Image

from mae_jax.data.sources import records
from mae_jax.data.sources.source import Example, Examples

PHOTOS = {  # class: (installed package, file in it)
    "astronaut": ("skimage", "data/astronaut.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "coffee": ("skimage", "data/coffee.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "galaxies": ("skimage", "data/hubble_deep_field.jpg"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "retina": ("skimage", "data/retina.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "tissue": ("skimage", "data/ihc.png"),
}
_MAX_SHORTER_SIDE = 400  # so that a window of a large photo shows some structure
_WINDOW = 96
_WINDOWS = {"train": 200, "test": 40}  # per photo
_TRAIN_SHARE = 0.7  # of a photo's width


@functools.cache
def photo(name: str) -> np.ndarray:
    """Return one of `PHOTOS` as uint8 [h, w, 3], with a shorter side of at most 400."""
    package, file = PHOTOS[name]
    with (resources.files(package) / file).open("rb") as stream, Image.open(stream) as picture:
        shrink = min(1, _MAX_SHORTER_SIDE / min(picture.size))
        size = [round(side * shrink) for side in picture.size]
        return np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BICUBIC))


def photo_part(name: str, split: str) -> np.ndarray:
    """Return the columns of a photo that belong to the split: the left 70 %, or the rest."""
    pixels = photo(name)
    cut = int(pixels.shape[1] * _TRAIN_SHARE)
    return pixels[:, :cut] if split == "train" else pixels[:, cut:]


def photos(split: str) -> Examples:
    """Open windows uint8 [96, 96, 3] of ten color photographs in scikit-image and scikit-learn.

    The left 70 % of each photo is for training and the rest for testing, so the splits share no
    pixel. The photo is the label: picture i shows photo i % 10.
    """
    windows = []  # a list for each photo, of (name, row, column)
    for index, name in enumerate(PHOTOS):
        height, width, _ = photo(name).shape
        cut = int(width * _TRAIN_SHARE)
        low, high = (0, cut) if split == "train" else (cut, width)
        rng = np.random.default_rng([split == "train", index])
        y = rng.integers(0, height - _WINDOW, _WINDOWS[split], endpoint=True)
        x = rng.integers(low, high - _WINDOW, _WINDOWS[split], endpoint=True)
        windows.append([(name, *corner) for corner in zip(y.tolist(), x.tolist(), strict=True)])
    examples = [window for nth in zip(*windows, strict=True) for window in nth]
    names = [f"photos {split}[{i}] ({n} at {x}, {y})" for i, (n, y, x) in enumerate(examples)]
    load = functools.partial(_window, examples)
    return Examples(len(examples), load, tuple(PHOTOS), names=names)


def _window(examples: list[tuple[str, int, int]], i: int) -> Example:
    name, y, x = examples[i]
    return {"image": photo(name)[y : y + _WINDOW, x : x + _WINDOW], "label": i % len(PHOTOS)}


def digits(split: str) -> Examples:
    """Open the 1797 digits of scikit-learn, uint8 [8, 8]; every fifth of a class is for testing."""
    from sklearn.datasets import load_digits

    scans, labels = map(np.asarray, load_digits(return_X_y=True))
    scans = np.rint(scans * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    turn = np.zeros(len(labels), int)  # the number of earlier examples of the same digit
    for label in range(10):
        turn[labels == label] = np.arange((labels == label).sum())
    chosen = (turn % 5 == 4) == (split == "test")
    return records.from_arrays(
        scans[chosen], labels[chosen], tuple("0123456789"), f"digits {split}"
    )
