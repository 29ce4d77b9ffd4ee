"""Denoising of held-out photographs, beside non-local means and total variation.

    python -m scripts.experiments.denoise --checkpoint=runs/denoise_photos --to=runs/denoise \\
        --data=photographs/test --tune=photographs/train

Gaussian noise is added to the middle of each picture, which is rounded and clipped to bytes. Both
baselines get the true sigma, and their strength is the best one, by PSNR, on other pictures; the
model estimates sigma. The folder gets a table as JSON and a picture.
"""

import argparse
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import metrics, restoration

from mae_jax.applications.restore.denoising import Denoiser, Options
from mae_jax.config import command_line
from mae_jax.evaluators import loaded_model, visualize
from mae_jax.output import files, tables

STRENGTHS = {  # of a baseline, in units of sigma
    "non-local means": (0.4, 0.6, 0.8, 1.0, 1.2),
    "total variation": (0.6, 0.8, 1.0, 1.2, 1.5),
}


def pictures(folder: str, count: int, side: int) -> dict[str, np.ndarray]:
    """Return the middles of the pictures of a folder, evenly spread over it."""
    paths = sorted(path for path in Path(folder).iterdir() if path.is_file())
    chosen = np.unique(np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int))
    found = {}
    for path in (paths[i] for i in chosen):
        x = np.asarray(Image.open(path).convert("RGB"))
        y0, x0 = ((n - side) // 2 for n in x.shape[:2])
        found[path.stem] = x[y0 : y0 + side, x0 : x0 + side]
    return found


def add_noise(x: np.ndarray, sigma: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, sigma, x.shape)
    return np.rint(x + noise).clip(0, 255).astype(np.uint8)


def baseline(name: str, strength: float, noisy: np.ndarray, sigma: float) -> np.ndarray:
    """Return what scikit-image makes of a picture, with the true sigma."""
    x, level = noisy / 255, sigma / 255
    if name == "total variation":
        return 255 * restoration.denoise_tv_chambolle(x, weight=strength * level, channel_axis=-1)
    return 255 * restoration.denoise_nl_means(
        x, h=strength * level, sigma=level, patch_size=5, patch_distance=6, channel_axis=-1
    )


def psnr(clean: np.ndarray, x: np.ndarray) -> float:
    return float(metrics.peak_signal_noise_ratio(clean, x.clip(0, 255), data_range=255))


def ssim(clean: np.ndarray, x: np.ndarray) -> float:
    x = x.astype(np.float64).clip(0, 255)
    return float(metrics.structural_similarity(clean * 1.0, x, data_range=255, channel_axis=-1))


def tuned(name: str, examples: Sequence[np.ndarray], sigma: float) -> Callable:
    """Return a baseline with the strength that is best on examples."""
    noisy = [add_noise(x, sigma, i) for i, x in enumerate(examples)]
    pairs = list(zip(examples, noisy, strict=True))
    score = lambda s: sum(psnr(x, baseline(name, s, y, sigma)) for x, y in pairs)
    return functools.partial(baseline, name, max(STRENGTHS[name], key=score), sigma=sigma)


def methods(options: argparse.Namespace, sigma: float) -> dict[str, Callable]:
    """Return functions of a noisy picture by their names."""
    examples = list(pictures(options.tune, 6, options.side).values())
    found: dict[str, Callable] = {"noisy": lambda x: x}
    found |= {name: tuned(name, examples, sigma) for name in STRENGTHS}
    for steps in options.steps:
        found[f"model, {steps} steps"] = denoiser(options, steps)
    found["model, prediction alone"] = denoiser(options, 0, combine=False)
    return found


@functools.cache
def load(checkpoint: str) -> loaded_model.LoadedModel:
    return loaded_model.of(checkpoint)


def denoiser(options: argparse.Namespace, steps: int, **more) -> Callable:
    chosen = Options(steps, overlap=options.overlap, **more)
    model = Denoiser(load(options.checkpoint), chosen)
    return lambda x: model(x).values


def measure(method: Callable, clean: Sequence[np.ndarray], sigma: float) -> tuple[dict, list]:
    """Return the mean quality and the seconds of CPU of a picture, and the results."""
    noisy = [add_noise(x, sigma, i) for i, x in enumerate(clean)]
    began = time.process_time()
    found = [method(x) for x in noisy]
    seconds = (time.process_time() - began) / len(clean)
    mean = lambda f: float(np.mean([f(x, y) for x, y in zip(clean, found, strict=True)]))
    return dict(psnr=mean(psnr), ssim=mean(ssim), cpu_seconds=seconds), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add, numbers = parser.add_argument, command_line.numbers
    add("--checkpoint", required=True)
    add("--data", required=True, metavar="FOLDER", help="of held-out photographs")
    add("--tune", required=True, metavar="FOLDER", help="of others, for the baselines")
    add("--to", required=True, metavar="FOLDER")
    add("--sigmas", type=numbers(float), default=(15.0, 25.0, 50.0))
    add("--steps", type=numbers(int), default=(0, 50))
    add("--count", type=int, default=21, help="of pictures")
    add("--side", type=int, default=192)
    add("--overlap", type=float, default=0.75)
    options = parser.parse_args()
    clean = list(pictures(options.data, options.count, options.side).values())
    folder, rows = Path(options.to), []
    folder.mkdir(parents=True, exist_ok=True)
    for sigma in options.sigmas:
        shown = {"clean": np.stack(clean[:4])}
        for name, method in methods(options, sigma).items():
            metrics, found = measure(method, clean, sigma)
            rows.append(dict(sigma=sigma, method=name) | metrics)
            print(rows[-1], flush=True)
            shown[name] = np.rint(np.stack(found[:4]).clip(0, 255)).astype(np.uint8)
            files.write_json(str(folder / "denoise.json"), dict(vars(options), rows=rows))
        visualize.sheet(shown).save(folder / f"sigma_{sigma:g}.jpg", quality=90)
    cells = [[f"{row[k]:.4g}" if k != "method" else row[k] for k in row] for row in rows]
    print(tables.table([list(rows[0]), *cells]))


if __name__ == "__main__":
    main()
