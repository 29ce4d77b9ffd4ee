"""Data for retrieval: drawings in folders, windows of photographs, and vectors for the speed.

    apt-get download openclipart-png lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 \\
        mate-backgrounds scratch
    for package in *.deb; do dpkg -x $package unpacked; done
    python -m scripts.experiments.retrieval drawings --packages=unpacked --to=runs/drawings
    python -m scripts.experiments.retrieval photographs --packages=unpacked --to=runs/windows
    python -m scripts.experiments.retrieval speed --vectors=1000000 --width=128

The first two write folders for the commands in docs/retrieval.md. The last one compares exact
search with approximate search on generated vectors.
"""

import argparse
import collections
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float
from PIL import Image

from mae_jax.applications.retrieval import search_speed
from mae_jax.evaluators import neighbours

SIDE = 128  # of the squares that drawings are shrunk to
LEFT_OUT = ("geometry", "shapes", "special", "unsorted")  # patterns, and those of no kind
CLASS = (10, 100)  # drawings in a class, at least and at most
MOST_PIXELS = 2**24  # of a drawing that is read
PHOTOGRAPHS = (  # a few of them are paintings
    "backgrounds/*_by_*.jpg",
    "backgrounds/mate/nature/*.jpg",
    "scratch/Media/Backgrounds/*/*.jpg",
)
WINDOW, SHORTER = 192, 800  # sides of a window, and of a photograph that is cut into windows
LEAST_DEVIATION = 10  # of the gray values of a window; others show nothing but sky
CLUSTERS, SPREAD = 1000, 0.5  # of generated vectors around unit vectors


def read_drawing(path: Path) -> Image.Image | None:
    """Return a drawing on a white square of `SIDE`, or None for one that is too large."""
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                return None
            drawing = picture.convert("RGBA")
    except Image.DecompressionBombError:
        return None
    drawing.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    page = Image.new("RGBA", (SIDE, SIDE), "white")
    page.alpha_composite(drawing, ((SIDE - drawing.width) // 2, (SIDE - drawing.height) // 2))
    return page.convert("RGB")


def write_drawings(packages: Path, to: Path) -> str:
    """Write the drawings of openclipart to TO/train/CLASS and TO/test/CLASS, and say how many.

    The class is the folder. Each of several equal drawings is left out but for the first, and a
    quarter of each class, drawn at random, is for testing.
    """
    folder = packages / "usr/share/openclipart/png"
    kinds: dict[str, list[Image.Image]] = collections.defaultdict(list)
    seen, large = set(), 0
    for path in sorted(folder.rglob("*.png")):
        place = path.relative_to(folder).parent
        if place.parts and place.parts[0] not in LEFT_OUT:
            drawing = read_drawing(path)
            digest = drawing and hashlib.sha256(drawing.tobytes()).digest()
            large += drawing is None
            if drawing and digest not in seen:
                kinds["-".join(place.parts)].append(drawing)
            seen.add(digest)
    kinds = {name: drawings for name, drawings in kinds.items() if len(drawings) >= CLASS[0]}
    rng, counts = np.random.default_rng(0), collections.Counter()
    for name, drawings in kinds.items():
        chosen = rng.permutation(len(drawings))[: CLASS[1]].tolist()
        for n, i in enumerate(chosen):
            split = "test" if n < len(chosen) // 4 else "train"
            target = to / split / name / f"{i:04d}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            drawings[i].save(target)
            counts[split] += 1
    return f"{len(kinds)} classes, {dict(counts)} drawings, {large} too large"


def windows(path: Path) -> Iterator[Image.Image]:
    """Yield the windows of a photograph, which share no pixel and show something."""
    with Image.open(path) as picture:
        photograph = picture.convert("RGB")
    shrink = min(1, SHORTER / min(photograph.size))
    size = [round(side * shrink) for side in photograph.size]
    photograph = photograph.resize(size, Image.Resampling.LANCZOS)
    for top in range(0, photograph.height - WINDOW + 1, WINDOW):
        for left in range(0, photograph.width - WINDOW + 1, WINDOW):
            window = photograph.crop((left, top, left + WINDOW, top + WINDOW))
            if np.asarray(window.convert("L")).std() >= LEAST_DEVIATION:
                yield window


def write_photographs(packages: Path, to: Path) -> str:
    """Write windows of the photographs of three packages, and say how many."""
    files = sorted(x for pattern in PHOTOGRAPHS for x in packages.glob(f"usr/share/{pattern}"))
    count = 0
    for path in files:
        for i, window in enumerate(windows(path)):
            (to / path.stem).mkdir(parents=True, exist_ok=True)
            window.save(to / path.stem / f"{i:03d}.png")
            count += 1
    return f"{count} windows of {len(files)} photographs"


def generated(
    count: int, width: int, seed: int, dtype: str = "float32"
) -> Float[np.ndarray, "n d"]:
    """Return vectors of length 1 in clusters, which are the same for all seeds."""
    centers = np.random.default_rng(0).normal(size=(CLUSTERS, width)).astype(np.float32)
    rng, found = np.random.default_rng([1, seed]), np.empty((count, width), dtype)
    for start in range(0, count, 2**16):
        part = found[start : start + 2**16]
        chosen = centers[rng.integers(CLUSTERS, size=len(part))]
        x = chosen + SPREAD * rng.standard_normal(part.shape, np.float32)
        part[:] = x / np.linalg.norm(x, axis=1, keepdims=True)
    return found


def compare_speed(options: argparse.Namespace) -> None:
    """Print how fast exact search is, and then what approximate search does in comparison."""
    vectors = generated(options.vectors, options.width, 0, options.dtype)
    queries = generated(search_speed.MOST, options.width, 1)
    gallery = neighbours.Gallery(vectors)
    print(f"{jax.device_count()} device(s), {gallery.shape} vectors of {vectors.dtype}", flush=True)
    for at_once in (1, 10, len(queries)):
        part = queries[:at_once]
        gallery.search(part, search_speed.K)
        start = time.perf_counter()
        gallery.search(part, search_speed.K)
        seconds = time.perf_counter() - start
        rate = f"{at_once / seconds:,.1f} queries a second"
        print(f"exact, {at_once:,} at once: {1000 * seconds:,.0f} ms, {rate}", flush=True)
    if not options.exact:
        print(search_speed.compare(vectors, queries, gallery).text)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("drawings", "photographs"):
        add = commands.add_parser(name).add_argument
        add("--packages", type=Path, required=True, help="where they are unpacked")
        add("--to", type=Path, required=True)
    add = commands.add_parser("speed").add_argument
    add("--vectors", type=int, default=1_000_000)
    add("--width", type=int, default=128)
    add("--dtype", choices=["float32", "float16"], default="float32")
    add("--exact", action="store_true", help="no approximate search, whose graph takes long")
    options = parser.parse_args()
    if options.command == "speed":
        compare_speed(options)
    else:
        write = dict(drawings=write_drawings, photographs=write_photographs)[options.command]
        print(write(options.packages, options.to))


if __name__ == "__main__":
    main()
