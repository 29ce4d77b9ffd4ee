"""Folders of photographs, split by photographer, from packages of Debian and Ubuntu.

    apt-get download lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 mate-backgrounds scratch \\
        opencv-doc
    for package in *.deb; do dpkg -x $package unpacked; done
    python -m scripts.experiments.photographs --packages=unpacked --to=photographs

The folder `train` has the wallpapers and the backgrounds of Scratch, the folder `test` photographs
of other photographers from opencv-doc, scikit-image and scikit-learn. Each is reduced by a whole
number, so that a crop of 64 pixels has content: to 360 pixels or a little more along its shorter
side, or 192 in `test`, where only the middle 192x192 pixels are kept.
"""

import argparse
from pathlib import Path

import skimage
import sklearn
from PIL import Image

TRAIN = (  # below usr/share
    "backgrounds/*_by_*.jpg",
    "backgrounds/mate/nature/*.jpg",
    "scratch/Media/Backgrounds/*/*.jpg",
)
DRAWN = frozenset(  # of these, what is no photograph, or painted over
    """
    Fossa_by_Jasper_Roks Infinite-Sea_by_Aury88 Painting-Colors_by__herobrine7gamer
    analogpattern_by_Peter_Nerlich umang_by_Abhishek_Mudgal basketball-court1-a basketball-court1-b
    chalkboard forest graffiti party-room room1 room2 room3 school2 spotlight-stage woods-and-bench
    """.split()
)
TEST = {
    "opencv": """
    alphamat/input_images/plant.jpg data/aero1.jpg data/aloeL.jpg data/baboon.jpg data/building.jpg
    data/butterfly.jpg data/chicky_512.png data/fruits.jpg data/home.jpg data/leuvenA.jpg
    data/orange.jpg data/squirrel_cls.jpg text/scenetext01.jpg text/scenetext04.jpg
    text/scenetext06.jpg
    """.split(),
    "skimage": "astronaut.png chelsea.png coffee.png rocket.jpg".split(),
    "sklearn": "china.jpg flower.jpg".split(),
}


def reduced(path: Path, side: int) -> Image.Image:
    """Return a photograph, reduced by a whole number while its shorter side has so many pixels."""
    whole = Image.open(path).convert("RGB")
    return whole.reduce(max(1, min(whole.size) // side))


def middle(picture: Image.Image, side: int) -> Image.Image:
    """Return the square in the middle of a picture."""
    x, y = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((x, y, x + side, y + side))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--packages", required=True, help="the folder of the unpacked packages")
    parser.add_argument("--to", required=True)
    options = parser.parse_args()
    share, to = Path(options.packages) / "usr" / "share", Path(options.to)
    for split in ("train", "test"):
        (to / split).mkdir(parents=True, exist_ok=True)
    for path in (path for pattern in TRAIN for path in sorted(share.glob(pattern))):
        if path.stem not in DRAWN:
            place = to / "train" / f"{path.stem}.jpg"
            reduced(path, 360).save(place, quality=95, subsampling=0)
    folders = {
        "opencv": share / "doc" / "opencv-doc" / "examples",
        "skimage": Path(skimage.__file__).parent / "data",
        "sklearn": Path(sklearn.__file__).parent / "datasets" / "images",
    }
    for path in (folders[name] / file for name, names in TEST.items() for file in names):
        middle(reduced(path, 192), 192).save(to / "test" / f"{path.stem}.png")
    counts = [len(list((to / split).iterdir())) for split in ("train", "test")]
    print(f"wrote {counts[0]} photographs to train on and {counts[1]} held-out ones into {to}")


if __name__ == "__main__":
    main()
