"""Pictures that need no download: those that installed packages ship, and generated ones."""

import functools
import io
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mae_jax.data.sources.records import Arrays

_PHOTOS = {  # file inside the installed package -> class
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
_PHOTO_SIDE = 400  # longest allowed short side: the big photos show structure inside a window
_WINDOW = 96
_WINDOWS = {"train": 200, "test": 40}  # per photo
_TRAIN_SHARE = 0.7  # of a photo's width


@functools.cache
def _photo(package: str, file: str) -> np.ndarray:
    with (resources.files(package) / file).open("rb") as opened, Image.open(opened) as photo:
        shrink = min(1, _PHOTO_SIDE / min(photo.size))
        size = [round(side * shrink) for side in photo.size]
        return np.asarray(photo.convert("RGB").resize(size, Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class Photos:
    """Fixed windows of ten real photographs; `corners` [n, 2] are their (row, column)."""

    split: str
    corners: np.ndarray
    classes: tuple[str, ...] = tuple(_PHOTOS)

    def __len__(self) -> int:
        return len(self.corners)

    def __getitem__(self, i: int) -> dict[str, Any]:
        label = range(len(self))[i] % len(self.classes)
        y, x = self.corners[i]
        photo = _photo(*_PHOTOS[self.classes[label]])
        return {"image": photo[y : y + _WINDOW, x : x + _WINDOW], "label": label}

    def name(self, i: int) -> str:
        y, x = self.corners[i]
        return f"photos {self.split}[{i}] ({self.classes[i % len(self.classes)]} at {x}, {y})"


def photos(split: str) -> Photos:
    """Windows uint8 [96, 96, 3] of the ten colour photographs in scikit-image and scikit-learn.

    The left 70 % of each photo is the training part, the rest the test part, so the splits share no
    pixel; the photo is the label. Picture i is of photo i % 10: 2000 for training, 400 to test.
    """
    corners = []
    for index, place in enumerate(_PHOTOS.values()):
        height, width, _ = _photo(*place).shape
        cut = int(width * _TRAIN_SHARE)
        low, high = (0, cut) if split == "train" else (cut, width)
        rng = np.random.default_rng([split == "train", index])
        y = rng.integers(0, height - _WINDOW, _WINDOWS[split], endpoint=True)
        x = rng.integers(low, high - _WINDOW, _WINDOWS[split], endpoint=True)
        corners.append(np.stack([y, x], axis=-1))
    return Photos(split, np.stack(corners, axis=1).reshape(-1, 2))


def digits(split: str) -> Arrays:
    """The 1797 handwritten digits of scikit-learn, uint8 [8, 8]: every fifth of a kind to test."""
    from sklearn.datasets import load_digits

    scans, labels = load_digits(return_X_y=True)
    scans = np.rint(scans * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    turn = np.zeros(len(labels), int)  # how many of the same digit came before
    for label in range(10):
        turn[labels == label] = np.arange((labels == label).sum())
    chosen = (turn % 5 == 4) == (split == "test")
    return Arrays(scans[chosen], labels[chosen], tuple("0123456789"), f"digits {split}")


_SYNTHETIC = {"train": 64, "test": 32}


@dataclass(frozen=True)
class Synthetic:
    """Drawn shapes, each a function of (split, i) alone."""

    split: str
    classes: tuple[str, ...] = ("disc", "ring", "square", "triangle")

    def __len__(self) -> int:
        return _SYNTHETIC[self.split]

    def __getitem__(self, i: int) -> dict[str, Any]:
        i = range(len(self))[i]
        rng = np.random.default_rng([self.split == "train", i])
        ends = rng.integers(0, 256, (2, 1, 1, 3))
        across = np.linspace(0, 1, 80)[:, None]
        shade = ends[0] * across + ends[1] * (1 - across)  # [1 80 3]
        picture = Image.fromarray(np.repeat(shade, 64, 0).astype(np.uint8))
        color = tuple(int(c) for c in (ends.mean((0, 1, 2)) + 128) % 256)
        radius = int(rng.integers(10, 24))
        x, y = rng.integers(radius, [80 - radius, 64 - radius]).tolist()
        box = (x - radius, y - radius, x + radius, y + radius)
        draw, label = ImageDraw.Draw(picture), i % len(self.classes)
        match self.classes[label]:
            case "disc":
                draw.ellipse(box, fill=color)
            case "ring":
                draw.ellipse(box, outline=color, width=radius // 3)
            case "square":
                draw.rectangle(box, fill=color)
            case "triangle":
                draw.regular_polygon((x, y, radius), 3, fill=color)
        encoded = io.BytesIO()
        picture.save(encoded, "JPEG", quality=90)
        return {"image": encoded.getvalue(), "label": label}

    def name(self, i: int) -> str:
        return f"synthetic {self.split}[{i}]"
