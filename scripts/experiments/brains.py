"""Lobes of the brain from frozen features, and the reconstruction of an unseen species.

    apt-get download mricron-data && dpkg -x mricron-data_*.deb unpacked
    pip download --no-deps nilearn && python -m zipfile -e nilearn-*.whl nilearn
    python -m scripts.experiments.brains --workdir=runs/brains \\
        --brains=unpacked/usr/share/mricron/templates \\
        --mni=nilearn/nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz

A masked autoencoder is pre-trained on crops of MNI152 and of Colin27, two T1 scans without the
skull. The label of a crop is the lobe of its middle in the atlas AAL. Logistic regressions on
frozen features are tested on slabs of Colin27, 20 mm long from back to front, of which no training
crop shows a voxel; on its right half, after training on its left half; and on Colin27, after
training on MNI152 at other places. The brain of a
macaque, INIA19, is reconstructed. Other arguments, such as `--config.epochs=100`, go to the run. It
writes `brains.json` and `brains.png`.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from PIL import Image, ImageDraw, ImageFont

import mae_jax
from mae_jax.data import array_io, arrays, sources
from mae_jax.data.augment.missing import Inputs
from mae_jax.evaluators import checkpoint, features, linear_probe, reconstruction
from mae_jax.models import build, masking
from mae_jax.output import files, tables
from scripts.experiments import runs

SIDE, SLAB = 24, 20  # of a crop in voxels, of a slab in mm
LOBES = {  # by the thousands of the numbers that AAL gives its 116 regions
    2: "frontal",
    3: "insula and limbic",
    4: "insula and limbic",
    5: "occipital",
    6: "parietal",
    7: "deep nuclei",
    8: "temporal",
    9: "cerebellum",
}
NAMES = list(dict.fromkeys(LOBES.values()))


class Places(NamedTuple):
    """Middles of crops."""

    world: Float[np.ndarray, "n 3"]  # in mm
    lobes: Int[np.ndarray, "n"]  # indices of `NAMES`


def draw_places(atlas: Path, count: int, seed: int) -> Places:
    """Draw as many places in each lobe of the atlas AAL, `atlas`.nii.gz and `atlas`.nii.txt."""
    opened = array_io.open_array(f"{atlas}.nii.gz")
    regions = opened.read(opened.whole)
    rows = (line.split() for line in Path(f"{atlas}.nii.txt").read_text().splitlines() if line)
    lobe_of = np.full(regions.max() + 1, -1)
    for number, _, code in rows:
        lobe_of[int(number)] = NAMES.index(LOBES[int(code) // 1000])
    lobes, rng = lobe_of[regions], np.random.default_rng(seed)
    voxels = [np.argwhere(lobes == lobe) for lobe in range(len(NAMES))]
    chosen = np.concatenate([rng.choice(x, count, replace=False) for x in voxels])
    return Places(to_world(opened, chosen), np.repeat(np.arange(len(NAMES)), count))


def to_world(opened: arrays.Array, voxels: np.ndarray) -> Float[np.ndarray, "n 3"]:
    assert opened.frame
    return voxels @ opened.frame.affine[:3, :3].T + opened.frame.affine[:3, 3]


def cut(path: str, world: Float[np.ndarray, "n 3"]) -> list[np.ndarray]:
    """Return the crops of a scan around places, continued by 0 beyond its ends."""
    opened = array_io.open_array(path)
    assert opened.frame
    affine = np.linalg.inv(opened.frame.affine)
    starts = np.rint(world @ affine[:3, :3].T + affine[:3, 3]).astype(int)
    padded = np.pad(opened.read(opened.whole), SIDE // 2)
    crops = [padded[tuple(slice(a, a + SIDE) for a in start)] for start in starts.tolist()]
    return [np.ascontiguousarray(crop) for crop in crops]


def write_scans(paths: dict[str, str], folder: Path) -> None:
    """Write scans to NAME.nii.gz, without the empty space around the brain."""
    import nibabel

    folder.mkdir(parents=True, exist_ok=True)
    for name, path in paths.items():
        scan: Any = nibabel.load(path)
        filled = np.argwhere(np.asarray(scan.dataobj) > 0)
        box = zip(filled.min(0).tolist(), (filled.max(0) + 1).tolist(), strict=True)
        nibabel.save(scan.slicer[tuple(slice(*ends) for ends in box)], folder / f"{name}.nii.gz")


def crops_of(path: str, count: int, seed: int) -> list[np.ndarray]:
    """Return crops around voxels of the brain, drawn at random."""
    opened = array_io.open_array(path)
    brain = np.argwhere(opened.read(opened.whole) > 0)
    chosen = np.random.default_rng(seed).choice(brain, count, replace=False)
    return cut(path, to_world(opened, chosen))


class Encoder:
    """The features of crops by the model of a work directory, trained or not, and its losses."""

    def __init__(self, run: Path):
        parser = argparse.ArgumentParser()
        checkpoint.add_options(parser)
        self.info, self.context = checkpoint.find(
            parser.parse_args([f"--checkpoint={run}", "--data=argument"])
        )
        self.params = mae_jax.load(run)[1]
        config = self.info.config
        assert config
        keys = ("modality", "size", "range", "nodata")
        self.data = {key: config["data"][key] for key in keys}
        self.data |= dict(mean=self.info.mean, std=self.info.std)

    def untrained(self, seed: int) -> dict:
        model, size = self.context.model, self.context.transform.size
        sampler = build.mask_sampler(self.context.mask or {}, model, size)
        mask = masking.from_scores(jnp.zeros((1, sampler.n)), sampler.keep)
        return model.init(jax.random.key(seed), np.zeros((1, *size, 1)), mask)["params"]

    def features(self, crops: list[np.ndarray], params: dict) -> Float[np.ndarray, "n d"]:
        found: Any = mae_jax.embed(crops, self.context.model, params, **self.data)
        return found

    def reconstruct(self, crops: list[np.ndarray]) -> tuple[dict[str, float], Image.Image]:
        """Return the loss of masked patches, of their guess, R2 of both, and a picture."""
        source = sources.Examples(len(crops), lambda i: dict(image=crops[i], label=-1), ())
        context = dataclasses.replace(self.context, given={"test": source})
        section = dict(source="argument", split="test", examples=0, batch_size=64, pictures=1)
        evaluator = reconstruction.Reconstruction(section, context)
        variables = {"params": self.params}
        loss, guess, _ = evaluator.losses(variables)
        batches = [self.context.transform.split(x["image"]) for x in evaluator.batches()]
        variance = float(np.concatenate([_existing(x) for x in batches]).var())
        found = dict(loss=loss, guess=guess, r2=1 - loss / variance, r2_guess=1 - guess / variance)
        return found, evaluator.draw(variables)["reconstruction"]


def _existing(inputs: Inputs) -> np.ndarray:
    values = np.asarray(inputs.values)
    return values.ravel() if inputs.present is None else values[np.asarray(inputs.present)]


def plain_features(crops: list[np.ndarray]) -> dict[str, Float[np.ndarray, "n d"]]:
    """Return features that need no network: a histogram, and the means of 3 x 3 x 3 voxels."""
    x = np.stack(crops).astype(np.float32)
    bins = np.linspace(0, 256, 33)
    counts = np.stack([np.histogram(crop, bins)[0] for crop in x]).astype(np.float32)
    small = x.reshape(len(x), *(SIDE // 3, 3) * 3).mean((2, 4, 6))
    return {"histogram of 32 bins": counts, "voxels, at a third": small.reshape(len(x), -1)}


def by_slabs(x: Float[np.ndarray, "n d"], places: Places) -> float:
    """Return the accuracy over all slabs; no crop that trains shares a voxel with the slab's."""
    y, right = places.world[:, 1], 0.0
    for low in np.arange(y.min(), y.max() + 1, SLAB):
        test = (low <= y) & (y < low + SLAB)
        train = (y < low - SIDE) | (y >= low + SLAB + SIDE)
        right += test.sum() * accuracy(x[train], places.lobes[train], x[test], places.lobes[test])
    return float(right / len(y))


def by_hemispheres(x: Float[np.ndarray, "n d"], places: Places) -> float:
    """Return the accuracy on the right, after training on crops of the left alone."""
    left, right = (sign * places.world[:, 0] >= SIDE // 2 for sign in (-1, 1))
    return accuracy(x[left], places.lobes[left], x[right], places.lobes[right])


def accuracy(*data: np.ndarray) -> float:
    """Return the accuracy of a logistic regression: train, its labels, test, its labels."""
    train, labels, test, test_labels = data
    train, test = features.standardize(train, test)
    return linear_probe.logistic_regression(train, labels, test, test_labels, 1000)[0]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--brains", required=True, help="the folder of mricron-data")
    add("--mni", required=True, help="the T1 scan of nilearn")
    add("--workdir", required=True)
    add("--config", default="configs/brain_small.py")
    add("--places", type=int, default=200, help="of each lobe")
    options, others = parser.parse_known_args()  # others are --config.key=value
    workdir, brains = Path(options.workdir), Path(options.brains)
    scans = dict(mni152=options.mni, colin27=str(brains / "ch2bet.nii.gz"))
    write_scans(scans, workdir / "scans" / "train")
    scans |= dict(macaque=str(brains / "inia19-t1-brain.nii.gz"))
    write_scans(dict(macaque=scans["macaque"]), workdir / "scans" / "test")
    source = f"--config.data.train.source=nifti:{workdir}/scans"
    runs.last_record([f"--config={options.config}", source, *others], workdir / "run")
    encoder = Encoder(workdir / "run")

    colin, mni = (draw_places(brains / "aal", options.places, seed) for seed in (0, 1))
    test, train = cut(scans["colin27"], colin.world), cut(scans["mni152"], mni.world)
    columns, train_columns = plain_features(test), plain_features(train)
    for name, params in (("untrained", encoder.untrained(0)), ("pre-trained", encoder.params)):
        columns[f"{name} encoder"] = encoder.features(test, params)
        train_columns[f"{name} encoder"] = encoder.features(train, params)
    rows = {"chance": [1 / len(NAMES)] * 3}
    for name, x in columns.items():
        of_subject = accuracy(train_columns[name], mni.lobes, x, colin.lobes)
        rows[name] = [by_slabs(x, colin), by_hemispheres(x, colin), of_subject]
    losses: dict[str, dict[str, float]] = {}
    pictures: dict[str, Image.Image] = {}
    for name, path in scans.items():
        losses[name], pictures[name] = encoder.reconstruct(crops_of(path, 300, seed=2))
    files.write_json(str(workdir / "brains.json"), dict(accuracy=rows, reconstruction=losses))
    stacked(pictures).save(workdir / "brains.png")
    table = [["accuracy", "slabs", "left to right", "MNI152 to Colin27"]]
    table += [[name, *(f"{x:.3f}" for x in row)] for name, row in rows.items()]
    print("\n" + tables.table(table) + "\n")
    titles = dict(
        guess="loss of the mean of visible patches", loss="loss", r2_guess="R2 of the mean", r2="R2"
    )
    table = [["masked patches", *titles.values()]]
    table += [[name, *(f"{found[key]:.3f}" for key in titles)] for name, found in losses.items()]
    print(tables.table(table))


def stacked(pictures: dict[str, Image.Image], top: int = 22) -> Image.Image:
    """Draw pictures below their titles, one below the other."""
    width = max(x.width for x in pictures.values())
    page = Image.new("L", (width, sum(x.height + top for x in pictures.values())), "white")
    draw, font, y = ImageDraw.Draw(page), ImageFont.load_default(14), 0
    for title, x in pictures.items():
        draw.text((4, y + 2), title, fill="black", font=font)
        page.paste(x, (0, y + top))
        y += top + x.height
    return page


if __name__ == "__main__":
    main()
