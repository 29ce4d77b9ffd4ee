"""Inpainting and denoising of held-out photographs, beside methods that learn nothing.

    python -m scripts.experiments.restore inpainting --checkpoint=runs/restore_photos \\
        --data=photographs/test --to=runs/inpainting
    python -m scripts.experiments.restore denoising --checkpoint=runs/denoise_photos \\
        --data=photographs/test --to=runs/denoising --tune=photographs/train [--steps=N]

Holes are filled in the four quarters, 64x64, of the middle of each photograph; noise is taken from
the middle itself, 128x128. Figures are means over the photographs: PSNR and SSIM, of results
rounded to bytes, over all and inside the holes. What the network gains on the baseline of the field
is given with its standard error over the photographs. Baselines of denoising know the true sigma,
and have the strength that is best on training photographs. It writes `scores.json` and `sheet.jpg`.
"""

import argparse
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image
from skimage import metrics, restoration
from tqdm import tqdm

from mae_jax.applications import restore
from mae_jax.applications.restore.denoising import Options
from mae_jax.evaluators import loaded_model, visualize
from mae_jax.models import masking
from mae_jax.output import files, tables

SIDE, TILE = 128, 64
Picture = UInt8[np.ndarray, "h w 3"]
Hole = Bool[np.ndarray, "h w"]
Method = Callable[..., Picture]
Scores = dict[str, dict[str, list[float]]]  # by method and figure, of each photograph


class Case(NamedTuple):
    """A picture to restore."""

    photograph: int  # which one it is of
    true: Picture
    given: Picture
    known: Any  # what a method is told: the hole, or the strength of the noise
    hole: Hole | None = None


def blocks(side: int, share: float, seed: int) -> Hole:
    """Return holes of `side` x `side` pixels on a grid, which cover a share of a tile."""
    n = TILE // side
    chosen = np.random.default_rng(seed).permutation(n * n) < round(share * n * n)
    return chosen.reshape(n, n).repeat(side, 0).repeat(side, 1)


def center(seed: int) -> Hole:
    """Return a hole in the middle, half as high and as wide as a tile."""
    del seed
    inside = np.abs(np.arange(TILE) - (TILE - 1) / 2) < TILE / 4
    return inside[:, None] & inside


def strokes(share: float, seed: int) -> Hole:
    """Return free-form strokes of pixels, which cover a share of a tile."""
    scores = masking.stroke(jax.random.key(seed), 1, (TILE, TILE))
    return np.array(scores >= np.quantile(scores, 1 - share)).reshape(TILE, TILE)


HOLES: dict[str, Callable[[int], Hole]] = {
    **{f"4x4, {x}": functools.partial(blocks, 4, x) for x in (0.25, 0.5, 0.75)},
    **{f"16x16, {x}": functools.partial(blocks, 16, x) for x in (0.25, 0.5, 0.75)},
    "center half": center,
    "strokes, 0.25": functools.partial(strokes, 0.25),
}
SIGMAS = (15, 25, 50)
SHOWN = {  # holes, and the photograph and the quarter in which they are drawn
    "4x4, 0.75": ("chelsea", 0),
    "16x16, 0.5": ("astronaut", 1),
    "center half": ("coffee", 1),
    "strokes, 0.25": ("rocket", 3),
}
OURS, BIHARMONIC, NON_LOCAL_MEANS = "masked autoencoder", "biharmonic", "non-local means"


def as_bytes(x: np.ndarray) -> Picture:
    return np.rint(255 * x.clip(0, 1)).astype(np.uint8)


def fill_mean(x: Picture, hole: Hole) -> Picture:
    """Fill a hole with the mean of the given pixels."""
    return np.where(hole[..., None], np.rint(x[~hole].mean(0)), x).astype(np.uint8)


def fill_biharmonic(x: Picture, hole: Hole) -> Picture:
    """Fill a hole by the biharmonic equation."""
    return as_bytes(restoration.inpaint_biharmonic(x / 255, hole, channel_axis=-1))


def fill_telea(x: Picture, hole: Hole) -> Picture:
    """Fill a hole by the fast marching method of Telea (2004)."""
    return cv2.inpaint(x, hole.astype(np.uint8), 3, cv2.INPAINT_TELEA)


def non_local_means(x: Picture, sigma: float, strength: float) -> Picture:
    """Denoise by non-local means, with the true sigma."""
    options = dict(patch_size=5, patch_distance=6, fast_mode=True, channel_axis=-1)
    h, sigma = strength * sigma / 255, sigma / 255
    return as_bytes(restoration.denoise_nl_means(x / 255, h=h, sigma=sigma, **options))


def total_variation(x: Picture, sigma: float, strength: float) -> Picture:
    """Denoise by total variation, with a weight in units of the true sigma."""
    weight = strength * sigma / 255
    return as_bytes(restoration.denoise_tv_chambolle(x / 255, weight, channel_axis=-1))


def denoiser(loaded: loaded_model.LoadedModel, steps: int = 0) -> Method:
    """Return how a model denoises: it estimates sigma, and is not told the true one."""
    denoise = restore.Denoiser(loaded, Options(steps))
    return lambda x, sigma: denoise(x).values


FILL: dict[str, Method] = {BIHARMONIC: fill_biharmonic, "Telea": fill_telea, "mean": fill_mean}
DENOISE: dict[str, tuple[Method, tuple[float, ...]]] = {  # with the strengths to choose from
    NON_LOCAL_MEANS: (non_local_means, (0.4, 0.6, 0.8, 1.0, 1.2)),
    "total variation": (total_variation, (0.4, 0.6, 0.8, 1.0, 1.2, 1.5)),
}


def figures(true: Picture, found: Picture, hole: Hole | None = None) -> dict[str, float]:
    """Return PSNR and SSIM over all, and inside a hole."""
    error = np.square(true.astype(np.float64) - found)
    psnr = lambda error: float(10 * np.log10(255**2 / max(error.mean(), 1 / 12)))  # of rounding
    ssim, local, *_ = metrics.structural_similarity(true, found, channel_axis=-1, full=True)
    result = dict(psnr=psnr(error), ssim=float(ssim))
    if hole is not None:
        result |= dict(hole_psnr=psnr(error[hole]), hole_ssim=float(local[hole].mean()))
    return result


def middle(photograph: Picture, side: int) -> Picture:
    """Return the middle of a photograph."""
    y, x = ((length - side) // 2 for length in photograph.shape[:2])
    return photograph[y : y + side, x : x + side]


def compare(methods: Mapping[str, Method], cases: Sequence[Case]) -> Scores:
    """Return the mean figures over the cases of each photograph, by method and figure."""
    scores: Scores = {}
    for name, method in methods.items():
        for _, group in itertools.groupby(cases, lambda case: case.photograph):
            found = [figures(x.true, method(x.given, x.known), x.hole) for x in group]
            for key in found[0]:
                mean = float(np.mean([x[key] for x in found]))
                scores.setdefault(name, {}).setdefault(key, []).append(mean)
    return scores


def with_holes(photographs: Sequence[Picture], name: str) -> list[Case]:
    """Return four cases of each photograph, whose holes are black."""
    cases = []
    for i, photograph in enumerate(photographs):
        for j, (y, x) in enumerate(itertools.product((0, TILE), repeat=2)):
            true, hole = (
                middle(photograph, SIDE)[y : y + TILE, x : x + TILE],
                HOLES[name](4 * i + j),
            )
            given = np.where(hole[..., None], 0, true).astype(np.uint8)
            cases.append(Case(i, true, given, hole, hole))
    return cases


def with_noise(photographs: Sequence[Picture], sigma: float) -> list[Case]:
    """Return a case of each photograph with Gaussian noise, clipped to bytes."""
    cases = []
    for i, photograph in enumerate(photographs):
        true = middle(photograph, SIDE)
        noise = sigma * np.random.default_rng(i).standard_normal(true.shape)
        cases.append(Case(i, true, as_bytes((true + noise) / 255), sigma))
    return cases


def tuned(photographs: Sequence[Picture], sigma: float) -> dict[str, Method]:
    """Return the methods that learn nothing, each with the strength of the best PSNR."""
    cases, found = with_noise(photographs, sigma), {}
    for name, (method, strengths) in DENOISE.items():
        choices = {str(x): functools.partial(method, strength=x) for x in strengths}
        scores = compare(choices, cases)
        best = max(choices, key=lambda x: np.mean(scores[x]["psnr"]))
        found[name] = choices[best]
        print(f"sigma {sigma}, {name}: strength {best}", flush=True)
    return found


def report(scores: Mapping[str, Scores], key: str, against: str) -> str:
    """Return a table of a figure: methods by cases, and what the first method gains on another."""
    names = list(next(iter(scores.values())))
    digits = 3 if "ssim" in key else 2
    rows = [[key.replace("_", " "), *scores]]
    for name in names:
        rows.append([name, *(f"{np.mean(x[name][key]):.{digits}f}" for x in scores.values())])
    row = [f"{names[0]} - {against}"]
    for x in scores.values():
        gain = np.subtract(x[names[0]][key], x[against][key])
        error = gain.std(ddof=1) / np.sqrt(len(gain))
        row.append(f"{gain.mean():+.{digits}f} +- {error:.{digits}f}")
    return tables.table([*rows, row]) + "\n"


def sheet(methods: Mapping[str, Method], cases: Sequence[Case]) -> Image.Image:
    """Draw cases and what methods return, each case in a row."""
    columns = {"original": [x.true for x in cases], "given": [x.given for x in cases]}
    for name, method in methods.items():
        columns[name] = [method(x.given, x.known) for x in cases]
    return visualize.sheet({name: np.stack(x) for name, x in columns.items()})


def inpainting(options: argparse.Namespace) -> tuple[dict[str, Scores], Image.Image]:
    """Return the figures of each form of holes, and a picture."""
    photographs = opened(options.data)
    methods = {OURS: restore.Inpainter(loaded_model.of(options.checkpoint)), **FILL}
    cases = {name: with_holes([*photographs.values()], name) for name in HOLES}
    scores = {name: compare(methods, x) for name, x in tqdm(cases.items())}
    for key in ("hole_psnr", "hole_ssim", "psnr", "ssim"):
        print(report(scores, key, BIHARMONIC), flush=True)
    names = list(photographs)
    shown = [cases[name][4 * names.index(stem) + j] for name, (stem, j) in SHOWN.items()]
    return scores, sheet(methods, shown)


def denoising(options: argparse.Namespace) -> tuple[dict[str, Scores], Image.Image]:
    """Return the figures of each strength of noise, and a picture."""
    photographs, tune = opened(options.data), [*opened(options.tune).values()][::8]
    loaded = loaded_model.of(options.checkpoint)
    ours = {OURS: denoiser(loaded)}
    if options.steps:
        ours = {f"{OURS}, {options.steps} steps": denoiser(loaded, options.steps), **ours}
    scores, pictures = {}, {}
    for sigma in tqdm(SIGMAS):
        methods = {**ours, **tuned(tune, sigma), "noisy": lambda x, sigma: x}
        cases = with_noise([*photographs.values()], sigma)
        scores[f"sigma {sigma}"] = compare(methods, cases)
        shown = [x for x in cases if [*photographs][x.photograph] in ("chelsea", "coffee")]
        pictures[sigma] = sheet(methods, shown)
    for key in ("psnr", "ssim"):
        print(report(scores, key, NON_LOCAL_MEANS), flush=True)
    return scores, pictures[25]


def opened(folder: str) -> dict[str, Picture]:
    """Return the pictures of a folder by name."""
    paths = sorted(Path(folder).iterdir())
    return {path.stem: np.asarray(Image.open(path).convert("RGB")) for path in paths}


WHAT = dict(inpainting=inpainting, denoising=denoising)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("what", choices=list(WHAT))
    add("--checkpoint", required=True)
    add("--data", required=True, help="the folder of held-out photographs")
    add("--to", required=True, help="the folder of the results")
    add("--tune", help="denoising: a folder of other photographs, to choose strengths")
    add("--steps", type=int, default=0, help="denoising: of adaptation to each, a row more")
    options = parser.parse_args()
    if (options.what == "denoising") != bool(options.tune):
        parser.error("--tune is needed by denoising alone")
    scores, picture = WHAT[options.what](options)
    to = Path(options.to)
    to.mkdir(parents=True, exist_ok=True)
    files.write_json(str(to / "scores.json"), scores)
    picture.save(to / "sheet.jpg", quality=85)


if __name__ == "__main__":
    main()
