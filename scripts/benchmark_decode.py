"""Images per second from encoded pictures to 224 training crops: the loader against plain Pillow.

    python scripts/benchmark_decode.py
    python scripts/benchmark_decode.py --json=benchmarks/input.json

One core, in seconds of its own time, so that other work on the machine counts little. The baseline
does by hand what torchvision does with Pillow for ImageFolder, RandomResizedCrop (224, scale .2 to
1, bicubic), RandomHorizontalFlip, ToTensor and Normalize; the loader leaves the last three to the
device. Both take the same boxes of the same pictures, in turns, and of each the fastest round
counts. Then how far the crops are from Pillow's, and the whole pipeline with threads and with
processes, in seconds of the wall.
"""

import argparse
import io
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
import simplejpeg
from PIL import Image

from mae_jax.data import image_io, pipeline, sources
from mae_jax.data.image_io import crop as crops
from mae_jax.data.image_io import jpeg, resize
from mae_jax.data.modalities import transforms
from mae_jax.data.prepare import shards
from mae_jax.data.sources import samples
from mae_jax.output import tables

image_io.configure_libraries()  # here, so that the processes that load data do it as well
SIZE, SCALE, RATIO = (224, 224), (0.2, 1.0), (3 / 4, 4 / 3)
DATA = dict(modality="image", size=SIZE, channels=3, repeats=1, crop_scale=SCALE, crop_ratio=RATIO)
MEAN = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
STD = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]
TENSOR = ("to tensor", "normalise")  # what the device does for the loader
BATCH = 64
BOXES = 4  # that are cut from each picture


def jpegs(count: int = 32) -> list[bytes]:
    """500 x 375 pieces of the photographs that scikit-image and scikit-learn ship, quality 90."""
    rng, found = np.random.default_rng(0), []
    for i in range(count):
        photo = Image.fromarray(samples.photo(list(samples.PHOTOS)[i % 10]))
        x, y = rng.integers(0, 40, 2).tolist()
        found.append(encoded(photo.resize((560, 430)).crop((x, y, x + 500, y + 375))))
    return found


def mosaics(count: int = 8) -> list[bytes]:
    """1600 x 1200 patchworks of 16 such pieces of 400 x 300, as detailed as the photographs."""
    rng, found = np.random.default_rng(0), []
    for _ in range(count):
        picture = Image.new("RGB", (1600, 1200))
        for k in range(16):
            photo = Image.fromarray(samples.photo(list(samples.PHOTOS)[k % 10]))
            x, y = rng.integers(0, [photo.width - 399, photo.height - 299]).tolist()
            picture.paste(photo.crop((x, y, x + 400, y + 300)), (k % 4 * 400, k // 4 * 300))
        found.append(encoded(picture))
    return found


def encoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


class Stages:
    """Seconds of this process between the ends of named stages, added up."""

    def __init__(self):
        self.seconds, self.last = {}, time.process_time()

    def begin(self) -> None:
        self.last = time.process_time()

    def end(self, name: str) -> None:
        now = time.process_time()
        self.seconds[name] = self.seconds.get(name, 0) + now - self.last
        self.last = now


def with_pillow(data: bytes, seed: int, stages: Stages) -> np.ndarray:
    """float32 [3, 224, 224] as by torchvision, except that the box is one of the loader's."""
    rng = np.random.default_rng(seed)
    stages.begin()
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    stages.end("decode")
    y, x, h, w = crops.random_box(picture.height, picture.width, SIZE, SCALE, RATIO, rng)
    part = picture.crop((x, y, x + w, y + h))
    stages.end("crop")
    part = part.resize((SIZE[1], SIZE[0]), Image.Resampling.BICUBIC)
    stages.end("resize")
    if seed % 2:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    stages.end("flip")
    values = np.ascontiguousarray(np.array(part).transpose(2, 0, 1)).astype(np.float32)
    values /= 255
    stages.end("to tensor")
    values = values - MEAN
    values /= STD
    stages.end("normalise")
    return values


def with_loader(data: bytes, seed: int, stages: Stages) -> np.ndarray:
    """uint8 [224, 224, 3] as training gets it."""
    transform, rng = transforms.train_transform(DATA), np.random.default_rng(seed)
    stages.begin()
    example = transform({"image": data, "label": 0}, rng)
    stages.end("all")
    return example["image"]


def loader_stages(data: bytes, seed: int, stages: Stages) -> None:
    """What `crop.random_crops` does, taken apart."""
    rng = np.random.default_rng(seed)
    stages.begin()
    header = jpeg.read_header(data)
    assert header
    box = crops.random_box(header[0], header[1], SIZE, SCALE, RATIO, rng)
    reduction = jpeg.reduction(box[2], box[3], SIZE)
    stages.end("header and box")
    pixels = jpeg.decode(data, header, reduction)
    assert pixels is not None
    stages.end("decode")
    y, x, h, w = (side // reduction for side in box)
    resize.bicubic(pixels[y : y + h, x : x + w], SIZE)
    stages.end("crop and resize")


def milliseconds(works: dict[str, Callable], pictures: list[bytes], rounds: int) -> dict:
    """Of each work per picture, a list of the rounds with its stages; the works take turns."""
    found = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            stages = Stages()
            for k, data in enumerate(pictures * BOXES):
                work(data, k, stages)
            each = len(pictures) * BOXES / 1e3
            found[name].append({stage: s / each for stage, s in stages.seconds.items()})
    return {name: runs[1:] for name, runs in found.items()}  # the first warms up


def compare(pictures: list[bytes], rounds: int) -> dict:
    """The figures of one kind of pictures."""
    works = {"pillow": with_pillow, "loader": with_loader, "loader_stages": loader_stages}
    runs, whole = milliseconds(works, pictures, rounds), lambda run: sum(run.values())
    fastest = {name: min(found, key=whole) for name, found in runs.items()}
    pillow, loader = whole(fastest["pillow"]), whole(fastest["loader"])
    to_uint8 = pillow - sum(fastest["pillow"][stage] for stage in TENSOR)
    ratios = [whole(a) / whole(b) for a, b in zip(runs["pillow"], runs["loader"], strict=True)]
    distances = [distance(data, seed) for seed in range(BOXES) for data in pictures]
    return {
        "kilobytes": statistics.mean(map(len, pictures)) / 1e3,
        "pillow_milliseconds": fastest["pillow"],
        "loader_milliseconds": fastest["loader_stages"],
        "pillow_images_per_second": 1e3 / pillow,
        "pillow_uint8_images_per_second": 1e3 / to_uint8,
        "loader_images_per_second": 1e3 / loader,
        "ratio": pillow / loader,
        "ratio_median": statistics.median(ratios),
        "ratio_uint8": to_uint8 / loader,
        "psnr_mean": statistics.mean(distances),
        "psnr_least": min(distances),
    }


def distance(data: bytes, seed: int) -> float:
    """PSNR in dB between the loader's crop and that box of the whole picture, resized by Pillow."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    rng = np.random.default_rng(seed)
    y, x, h, w = crops.random_box(picture.height, picture.width, SIZE, SCALE, RATIO, rng)
    expected = picture.crop((x, y, x + w, y + h)).resize(SIZE, Image.Resampling.BICUBIC)
    crop = with_loader(data, seed, Stages())
    error = np.mean((crop.astype(float) - np.asarray(expected)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-3)))


def aliasing(shrink: float, side: int = 512) -> dict[str, float]:
    """What is left of rings that are too fine for the smaller picture: root mean square, of 255.

    A zone plate's frequency along either axis grows to half a cycle per pixel at the edge. After
    shrinking, all above 1.25 times the new limit should be gray.
    """
    y, x = np.mgrid[:side, :side] - side // 2
    rings = np.rint(127.5 + 127.5 * np.cos(np.pi * (x**2 + y**2) / side)).astype(np.uint8)
    plate, new = np.repeat(rings[..., None], 3, -1), round(side / shrink)
    y, x = np.mgrid[:new, :new] - new // 2
    lost = np.maximum(abs(x), abs(y)) > 1.25 * new / shrink / 2
    pillow = Image.fromarray(plate).resize((new, new), Image.Resampling.BICUBIC)
    found = {
        "pillow": np.asarray(pillow),
        "loader": resize.bicubic(plate, (new, new)),
        "opencv_area": cv2.resize(plate, (new, new), interpolation=cv2.INTER_AREA),
        "opencv_cubic": cv2.resize(plate, (new, new), interpolation=cv2.INTER_CUBIC),
    }
    return {name: float(np.std(p[lost].astype(float) - 127.5)) for name, p in found.items()}


class Load:
    """What `pipeline.training_batches` does for one example, for other processes."""

    def __init__(self, source: sources.Source):
        self.source, self.transform = source, transforms.train_transform(DATA)

    def __call__(self, i: int) -> dict:
        return self.transform(self.source[i % len(self.source)], np.random.default_rng(i))


def with_processes(source: sources.Source, workers: int) -> Any:
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # the workers want to hand them on
    examples = grain.MapDataset.range(10**9).map(Load(source))
    batches = examples.to_iter_dataset(grain.ReadOptions(num_threads=1)).batch(BATCH)
    return iter(batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers)))


def with_threads(source: sources.Source, threads: int) -> Any:
    return pipeline.training_batches(
        source, transforms.train_transform(DATA), batch_size=BATCH, seed=0, threads=threads
    )


def pipelines(pictures: list[bytes], rounds: int, batches: int = 16) -> dict[str, float]:
    """Images per second of the wall, by what decodes: the best of the rounds, which take turns."""
    kinds = {f"{n} threads": (with_threads, n) for n in (1, 2, 4, 16)}
    kinds |= {f"{n} processes": (with_processes, n) for n in (1, 2)}
    best = dict.fromkeys(kinds, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        for k in range(256):
            (Path(folder) / f"{k}.jpg").write_bytes(pictures[k % len(pictures)])
        source = sources.open_source(f"folder:{folder}", "all")
        for _ in range(rounds):
            for name, (start, count) in kinds.items():
                iterator = start(source, count)
                for _ in range(4):  # what was read ahead
                    next(iterator)
                begin = time.perf_counter()
                for _ in range(batches):
                    next(iterator)
                rate = batches * BATCH / (time.perf_counter() - begin)
                best[name] = max(best[name], rate)
                iterator.close()
    return best


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def benchmark(rounds: int) -> dict:
    """All figures, by the names that `--json` writes."""
    medium, large = jpegs(), mosaics()
    load = os.getloadavg()[0]
    wall = pipelines(medium, max(1, rounds // 3))
    prepare = lambda pictures: [shards.encode(data, 256, 95) for data in pictures]
    kinds = {"500x375": medium, "1600x1200": large}
    kinds |= {f"{name}, prepared at 256": prepare(kinds[name]) for name in list(kinds)}
    crops = {name: compare(pictures, rounds) for name, pictures in kinds.items()}
    for name in ("500x375", "1600x1200"):
        prepared, original = crops[f"{name}, prepared at 256"], crops[name]
        prepared["ratio_to_original"] = (
            prepared["loader_images_per_second"] / original["pillow_images_per_second"]
        )
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "versions": {
            "pillow": PIL.__version__,
            "simplejpeg": simplejpeg.__version__,
            "opencv": cv2.__version__,
            "numpy": np.__version__,
        },
        "rounds": rounds,
        "crops": crops,
        "aliasing": {str(shrink): aliasing(shrink) for shrink in (1.4, 1.8, 2.3, 2.8)},
        "pipeline_images_per_second": wall,
        "load_average_before": load,
    }


def report(figures: dict) -> str:
    """The figures as aligned tables."""
    names, crops = list(figures["crops"]), figures["crops"].values()
    rows = [["ms per picture, one core", *names]]
    for who in ("pillow", "loader"):
        for stage in next(iter(crops))[f"{who}_milliseconds"]:
            values = (kind[f"{who}_milliseconds"][stage] for kind in crops)
            rows.append([f"{who}: {stage}", *(f"{value:.3f}" for value in values)])
    for key, words in {
        "pillow_images_per_second": "images/s, Pillow",
        "pillow_uint8_images_per_second": "images/s, Pillow without to tensor and normalise",
        "loader_images_per_second": "images/s, loader",
    }.items():
        rows.append([words, *(f"{kind[key]:.0f}" for kind in crops)])
    for key, words in {
        "ratio": "loader / Pillow",
        "ratio_median": "  the same, median of the rounds",
        "ratio_uint8": "loader / Pillow without to tensor and normalise",
        "ratio_to_original": "loader / Pillow on the originals",
    }.items():
        rows.append([words, *(f"{kind[key]:.2f}" if key in kind else "" for kind in crops)])
    rows.append(["PSNR to Pillow, mean", *(f"{kind['psnr_mean']:.1f} dB" for kind in crops)])
    rows.append(["PSNR to Pillow, least", *(f"{kind['psnr_least']:.1f} dB" for kind in crops)])
    aliased = figures["aliasing"]
    columns = next(iter(aliased.values()))
    fine = [["aliased rings, rms of 255, shrunk by", *aliased]]
    for name in columns:
        fine.append([name.replace("_", " "), *(f"{aliased[s][name]:.1f}" for s in aliased)])
    whole = [["pipeline, 500x375", "images/s of the wall"]]
    whole += [[n, f"{r:.0f}"] for n, r in figures["pipeline_images_per_second"].items()]
    return "\n\n".join(tables.table(table) for table in (rows, fine, whole))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rounds", type=int, default=15, help="of each of which the fastest counts"
    )
    parser.add_argument("--json", metavar="FILE", help="where the figures are written too")
    arguments = parser.parse_args()
    figures = benchmark(max(1, arguments.rounds))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=2) + "\n")
    print(report(figures))


if __name__ == "__main__":
    main()
