"""Images per second from encoded pictures to 224 training crops: the loader against plain Pillow.

    python -m scripts.experiments.decode
    python -m scripts.experiments.decode --json=benchmarks/input.json

It runs on one core and counts the seconds of that core, so that other work on the machine matters
little. The baseline does by hand what torchvision does with Pillow for ImageFolder,
RandomResizedCrop (224, scale .2 to 1, bicubic), RandomHorizontalFlip, ToTensor and Normalize; the
loader leaves the last three to the device. Both take the same boxes of the same pictures, in turns,
and of each the fastest round counts. Then follow how far the crops are from Pillow's, and the whole
pipeline with more and more threads, in seconds of the wall.
"""

import argparse
import io
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
import simplejpeg
from PIL import Image

from mae_jax.data import image_io, pipeline, sources
from mae_jax.data.image_io import crop, jpeg, resize
from mae_jax.data.modalities import transforms
from mae_jax.data.prepare import shards
from mae_jax.data.sources import samples
from mae_jax.output import files, tables

SIZE, SCALE, RATIO = (224, 224), (0.2, 1.0), (3 / 4, 4 / 3)
DATA = dict(modality="image", size=SIZE, channels=3, repeats=1, crop_scale=SCALE, crop_ratio=RATIO)
MEAN = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
STD = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]
TENSOR = ("to tensor", "normalise")  # what the device does for the loader
BATCH = 64
BOXES = 4  # that are cut from each picture
PHOTOS = list(samples.PHOTOS)

image_io.configure_libraries()
Stages = Generator[str, None, np.ndarray]  # yields the name of each stage when it is done


def jpegs(count: int = 32) -> list[bytes]:
    """Return 500 x 375 pieces of the photographs that `samples` has, in quality 90."""
    rng, found = np.random.default_rng(0), []
    for i in range(count):
        photo = Image.fromarray(samples.photo(PHOTOS[i % 10]))
        x, y = rng.integers(0, 40, 2).tolist()
        found.append(encoded(photo.resize((560, 430)).crop((x, y, x + 500, y + 375))))
    return found


def mosaics(count: int = 8) -> list[bytes]:
    """Return 1600 x 1200 patchworks of 16 such pieces, as detailed as the photographs."""
    rng, found = np.random.default_rng(0), []
    for _ in range(count):
        picture = Image.new("RGB", (1600, 1200))
        for k in range(16):
            photo = Image.fromarray(samples.photo(PHOTOS[k % 10]))
            x, y = rng.integers(0, [photo.width - 399, photo.height - 299]).tolist()
            picture.paste(photo.crop((x, y, x + 400, y + 300)), (k % 4 * 400, k // 4 * 300))
        found.append(encoded(picture))
    return found


def encoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def with_pillow(data: bytes, seed: int) -> Stages:
    """Return float32 [3, 224, 224] as torchvision does, but with a box of the loader."""
    rng = np.random.default_rng(seed)
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    yield "decode"
    y, x, h, w = crop.random_box(picture.height, picture.width, SIZE, SCALE, RATIO, rng)
    part = picture.crop((x, y, x + w, y + h))
    yield "crop"
    part = part.resize((SIZE[1], SIZE[0]), Image.Resampling.BICUBIC)
    yield "resize"
    if seed % 2:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    yield "flip"
    values = np.ascontiguousarray(np.array(part).transpose(2, 0, 1)).astype(np.float32)
    values /= 255
    yield "to tensor"
    values = values - MEAN
    values /= STD
    yield "normalise"
    return values


def with_loader(data: bytes, seed: int) -> Stages:
    """Return uint8 [224, 224, 3] as training gets it."""
    example = transforms.train_transform(DATA)({"image": data}, np.random.default_rng(seed))
    yield "all"
    return example["image"]


def loader_stages(data: bytes, seed: int) -> Stages:
    """Do what `crop.random_crops` does, taken apart."""
    rng = np.random.default_rng(seed)
    header = jpeg.read_header(data)
    assert header
    box = crop.random_box(header[0], header[1], SIZE, SCALE, RATIO, rng)
    reduction = jpeg.reduction(box[2], box[3], SIZE)
    yield "header and box"
    pixels = jpeg.decode(data, header, reduction)
    assert pixels is not None
    yield "decode"
    y, x, h, w = (side // reduction for side in box)
    pixels = resize.bicubic(pixels[y : y + h, x : x + w], SIZE)
    yield "crop and resize"
    return pixels


def timed(stages: Stages, seconds: dict[str, float]) -> np.ndarray:
    """Run all stages, add the seconds of this process to `seconds`, and return the result."""
    last = time.process_time()
    while True:
        try:
            name = next(stages)
        except StopIteration as end:
            return end.value
        now = time.process_time()
        seconds[name] = seconds.get(name, 0.0) + now - last
        last = now


def milliseconds(works: dict[str, Callable], pictures: list[bytes], rounds: int) -> dict:
    """Return the milliseconds per picture of the stages of each work, round by round."""
    found = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            seconds: dict[str, float] = {}
            for k, data in enumerate(pictures * BOXES):
                timed(work(data, k), seconds)
            each = len(pictures) * BOXES / 1e3
            found[name].append({stage: s / each for stage, s in seconds.items()})
    return {name: runs[1:] for name, runs in found.items()}  # the first warms up


def compare(pictures: list[bytes], rounds: int) -> dict:
    """Compare the loader with Pillow on one kind of pictures; works and rounds take turns."""
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
    """Return the PSNR in dB of the loader's crop against the same box resized by Pillow."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    rng = np.random.default_rng(seed)
    y, x, h, w = crop.random_box(picture.height, picture.width, SIZE, SCALE, RATIO, rng)
    expected = picture.crop((x, y, x + w, y + h)).resize(SIZE, Image.Resampling.BICUBIC)
    error = np.mean((timed(with_loader(data, seed), {}).astype(float) - np.asarray(expected)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-3)))


def pipelines(pictures: list[bytes], rounds: int, batches: int = 16) -> dict[str, float]:
    """Return the images per second of the wall by number of threads: the best of the rounds."""
    best = {f"{threads} threads": 0.0 for threads in (1, 2, 4, 16)}
    with tempfile.TemporaryDirectory() as folder:
        for k in range(256):
            (Path(folder) / f"{k}.jpg").write_bytes(pictures[k % len(pictures)])
        source = sources.open_source(f"folder:{folder}", "all")
        for _ in range(rounds):
            for name in best:
                iterator: Any = pipeline.training_batches(
                    source,
                    transforms.train_transform(DATA),
                    pipeline.Order(BATCH, seed=0),
                    threads=int(name.split()[0]),
                )
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
    """Return the name of the processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def benchmark(rounds: int) -> dict:
    """Measure everything, by the names that `--json` writes."""
    load = os.getloadavg()[0]
    kinds = {"500x375": jpegs(), "1600x1200": mosaics()}
    wall = pipelines(kinds["500x375"], max(1, rounds // 3))
    for name, pictures in list(kinds.items()):
        kinds[f"{name}, prepared at 256"] = [shards.encode(data, 256, 95) for data in pictures]
    crops = {name: compare(pictures, rounds) for name, pictures in kinds.items()}
    for name in ("500x375", "1600x1200"):
        prepared, original = crops[f"{name}, prepared at 256"], crops[name]
        ratio = prepared["loader_images_per_second"] / original["pillow_images_per_second"]
        prepared["ratio_to_original"] = ratio
    libraries = dict(pillow=PIL, simplejpeg=simplejpeg, opencv=cv2, numpy=np)
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "versions": {name: module.__version__ for name, module in libraries.items()},
        "rounds": rounds,
        "crops": crops,
        "pipeline_images_per_second": wall,
        "load_average_before": load,
    }


ROWS = {  # of the report: the key, what it is called, and how it is written
    "pillow_images_per_second": ("images/s, Pillow", "{:.0f}"),
    "pillow_uint8_images_per_second": ("  without to tensor and normalise", "{:.0f}"),
    "loader_images_per_second": ("images/s, loader", "{:.0f}"),
    "ratio": ("loader / Pillow", "{:.2f}"),
    "ratio_median": ("  the same, median of the rounds", "{:.2f}"),
    "ratio_uint8": ("  without to tensor and normalise", "{:.2f}"),
    "ratio_to_original": ("  on the originals", "{:.2f}"),
    "psnr_mean": ("PSNR to Pillow, mean", "{:.1f} dB"),
    "psnr_least": ("PSNR to Pillow, least", "{:.1f} dB"),
}


def report(metrics: dict) -> str:
    """Return the metrics as aligned tables."""
    crops = metrics["crops"].values()
    rows = [["ms per picture, one core", *metrics["crops"]]]
    for who in ("pillow", "loader"):
        for stage in next(iter(crops))[f"{who}_milliseconds"]:
            values = (kind[f"{who}_milliseconds"][stage] for kind in crops)
            rows.append([f"{who}: {stage}", *(f"{value:.3f}" for value in values)])
    for key, (words, form) in ROWS.items():
        rows.append([words, *(form.format(kind[key]) if key in kind else "" for kind in crops)])
    whole = [["pipeline, 500x375", "images/s of the wall"]]
    whole += [[n, f"{r:.0f}"] for n, r in metrics["pipeline_images_per_second"].items()]
    return "\n\n".join(tables.table(table) for table in (rows, whole))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rounds", type=int, default=15, help="of each of which the fastest counts")
    add("--json", type=files.writable, metavar="FILE", help="where the metrics are written too")
    options = parser.parse_args()
    metrics = benchmark(max(1, options.rounds))
    if options.json:
        files.write_json(options.json, metrics)
    print(report(metrics))


if __name__ == "__main__":
    main()
