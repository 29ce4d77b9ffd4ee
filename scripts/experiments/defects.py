"""Data with synthetic anomalies and their masks: textures, and slabs of brains."""

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from mae_jax.data import array_io

Picture = UInt8[np.ndarray, "h w 3"]
Mask = Bool[np.ndarray, "h w"]
Defect = Callable[[Picture, Picture, np.random.Generator], tuple[Picture, Mask]]

HEIGHT, SIDE = 512, 96  # of a texture and of a picture, in pixels
SLAB, BOX = 24, 20  # length of a slab, and the sides of what is cut from it, in voxels
WALLPAPERS = ("Blinds", "GreenMeadow", "Wood")


def textures(wallpapers: Path) -> dict[str, Picture]:
    """Return three textures of scikit-image and three photographs of `mate-backgrounds`."""
    from skimage import data

    found = {}
    for name in ("brick", "grass", "gravel"):
        found[name] = np.repeat(getattr(data, name)()[..., None], 3, axis=-1)
    for name in WALLPAPERS:
        with Image.open(wallpapers / f"{name}.jpg") as picture:
            size = round(picture.width * HEIGHT / picture.height), HEIGHT
            found[name.lower()] = np.asarray(
                picture.convert("RGB").resize(size, Image.Resampling.BOX)
            )
    return found


def halves(texture: Picture) -> tuple[Picture, Picture]:
    """Return the left half, to learn from, and the right half, to test on."""
    middle = texture.shape[1] // 2
    return texture[:, :middle], texture[:, middle:]


def crop(picture: Picture, rng: np.random.Generator, side: int = SIDE) -> Picture:
    y, x = (int(rng.integers(n - side + 1)) for n in picture.shape[:2])
    return picture[y : y + side, x : x + side].copy()


def cut_paste(picture: Picture, other: Picture, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """Paste a rectangle of the same texture, turned by 90 degrees."""
    height, width = rng.integers(12, 33, 2)
    y, x = int(rng.integers(SIDE - height)), int(rng.integers(SIDE - width))
    mask = np.zeros((SIDE, SIDE), bool)
    mask[y : y + height, x : x + width] = True
    return np.where(mask[..., None], np.rot90(other), picture), mask


def blend(picture: Picture, other: Picture, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """Blend an ellipse of another texture in, with a soft edge; the mask is where it is half in."""
    axes, center = rng.integers(7, 18, 2).tolist(), rng.integers(18, SIDE - 18, 2).tolist()
    share = np.zeros((SIDE, SIDE), np.float32)
    cv2.ellipse(share, center, axes, float(rng.uniform(0, 180)), 0, 360, 1.0, -1)
    share = cv2.GaussianBlur(share, (0, 0), 2.0)
    weight = share[..., None] * rng.uniform(0.5, 0.9)
    mixed = np.rint((1 - weight) * picture + weight * other)
    return mixed.astype(np.uint8), share > 0.5


def scratch(picture: Picture, other: Picture, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """Draw a line of three pieces, 2 or 3 pixels wide, and 50 to 90 brighter or darker."""
    steps = rng.normal(0, 9, (4, 2)) + rng.normal(0, 9, 2)
    points = np.clip(rng.integers(20, SIDE - 20, 2) + np.cumsum(steps, 0), 2, SIDE - 3)
    line = np.zeros((SIDE, SIDE), np.uint8)
    cv2.polylines(line, [np.rint(points).astype(np.int32)], False, 1, int(rng.integers(2, 4)))
    change = rng.choice([-1, 1]) * rng.uniform(50, 90)
    changed = np.clip(picture + change * line[..., None], 0, 255)
    return np.rint(changed).astype(np.uint8), line > 0


DEFECTS: dict[str, tuple[Defect, bool]] = {  # and whether they take from another texture
    "cut_paste": (cut_paste, False),
    "blend": (blend, True),
    "scratch": (scratch, False),
}


def write_textures(wallpapers: Path, root: Path, train: int = 80, good: int = 20, bad: int = 10):
    """Write each texture to `root/NAME` as MVTec lays out its categories.

    Pictures of `train/good` are crops of the left half of a texture, and those of `test` are crops
    of its right half.

    Args:
      train, good: how many crops of the halves are left as they are.
      bad: how many get each kind of defect.
    """
    found = textures(wallpapers)
    for number, (name, texture) in enumerate(found.items()):
        left, right = halves(texture)
        rng = np.random.default_rng(number)
        save(root / name / "right.png", right)
        foreign = [halves(x)[1] for other, x in found.items() if other != name]
        for i in range(train):
            save(root / name / "train" / "good" / f"{i:03}.png", crop(left, rng))
        for i in range(good):
            save(root / name / "test" / "good" / f"{i:03}.png", crop(right, rng))
        for (kind, (defect, is_foreign)), i in itertools.product(DEFECTS.items(), range(bad)):
            other = foreign[i % len(foreign)] if is_foreign else right
            picture, mask = defect(crop(right, rng), crop(other, rng), rng)
            save(root / name / "test" / kind / f"{i:03}.png", picture)
            save(root / name / "ground_truth" / kind / f"{i:03}_mask.png", mask * np.uint8(255))


def disjoint(path: Path, side: int) -> list[Picture]:
    """Return the crops of a picture that share no pixel."""
    with Image.open(path) as opened:
        x = np.asarray(opened)
    places = np.ndindex(x.shape[0] // side, x.shape[1] // side)
    return [x[y : y + side, z : z + side] for y, z in np.array(list(places)) * side]


def save(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def slabs(scan: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return slabs of a scan from back to front: those to learn from, and those to test on.

    Every third slab of `SLAB` voxels is one to test on; the others are joined in pairs.
    """
    filled = np.flatnonzero(scan.any((0, 2)))
    low, high = filled[0], filled[-1] + 1
    starts = range(low, high - 3 * SLAB + 1, 3 * SLAB)
    train = [scan[:, start : start + 2 * SLAB] for start in starts]
    test = [scan[:, start + 2 * SLAB : start + 3 * SLAB] for start in starts]
    return train, test


def read_brain(path: Path) -> np.ndarray:
    """Return a scan without its empty borders, divided by the median of the brain."""
    opened = array_io.open_array(str(path))
    scan = np.asarray(opened.read(opened.whole), np.float32)
    filled = [np.flatnonzero(scan.any(axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    scan = scan[tuple(slice(x[0], x[-1] + 1) for x in filled)]
    return scan / np.median(scan[scan > 0])


def boxes(slab: np.ndarray, rng: np.random.Generator) -> Iterator[Float[np.ndarray, "x y z"]]:
    """Yield boxes of a slab, without end, of which at least two thirds are brain."""
    while True:
        x, z = (int(rng.integers(n - BOX + 1)) for n in (slab.shape[0], slab.shape[2]))
        box = slab[x : x + BOX, :, z : z + BOX]
        if (box > 0).mean() >= 2 / 3:
            yield box.copy()


def lesion(
    box: Float[np.ndarray, "x y z"], rng: np.random.Generator
) -> tuple[Float[np.ndarray, "x y z"], Bool[np.ndarray, "x y z"], str]:
    """Return a box with an ellipsoid that is darker or brighter, where it is, and which of these.

    Its half axes are 3 to 5 voxels, its values are times .5 to .75 or 1.25 to 1.5, and its edge is
    one voxel wide. Its middle is brain.
    """
    inner = box[6:-6, 6:-6, 6:-6] > 0
    center = 6 + rng.choice(np.argwhere(inner))
    axes = rng.uniform(3, 5, 3)
    places = np.moveaxis(np.indices(box.shape), 0, -1)
    distance = np.sqrt((((places - center) / axes) ** 2).sum(-1))
    share = 1 / (1 + np.exp((distance - 1) * axes.mean() * math.log(9) * 2))
    change = rng.choice([-1, 1]) * rng.uniform(0.25, 0.5)
    kind = "brighter" if change > 0 else "darker"
    return (box * (1 + change * share)).astype(np.float32), (share > 0.5) & (box > 0), kind
