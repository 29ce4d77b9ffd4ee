"""Anomalies in textures, clothes and brains, beside simpler scores, and rates of false alarms.

    apt-get download mate-backgrounds dataset-fashion-mnist mricron-data
    for package in *.deb; do dpkg -x $package unpacked; done
    pip download --no-deps nilearn && python -m zipfile -e nilearn-*.whl nilearn
    python -m scripts.experiments.anomalies textures --workdir=runs/anomalies \\
        --data=unpacked/usr/share/backgrounds/mate/nature
    python -m scripts.experiments.anomalies clothes --workdir=runs/anomalies \\
        --data=unpacked/usr/share/datasets/fashion-mnist
    python -m scripts.experiments.anomalies brains --workdir=runs/anomalies \\
        --data=nilearn/nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz \\
        --data=unpacked/usr/share/mricron/templates/ch2bet.nii.gz
    python -m scripts.experiments.anomalies alarms --workdir=runs/anomalies

`textures`: one model sees the left halves of six textures. A detector of each is fitted on crops of
its left half, and tested on crops of its right half with synthetic defects, see `defects`. The
folders have MVTec's layout.

`clothes`: for each class of Fashion-MNIST a model and a detector see 6,000 and 500 training
pictures of that class alone. They are tested on 300 test pictures of it, and on 50 of each other.

`brains`: one model sees two thirds of two brains. A detector is fitted on boxes of these, and
tested on 100 boxes of the other slabs, 24 voxels long, and on 300 with a synthetic lesion.

`alarms`: how many good examples are above a threshold, over 20 draws of those that calibrate it;
of the detectors of `textures` and `clothes` that are there.

Each writes `NAME.json` and prints its tables. A model that is trained is not trained again.
"""

import argparse
import itertools
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mae_jax.applications import anomaly
from mae_jax.applications.anomaly import calibration, evaluation, figures, layout, sheets
from mae_jax.applications.anomaly.calibration import Calibration
from mae_jax.applications.anomaly.detector import Tiles
from mae_jax.applications.anomaly.layout import GOOD, Example
from mae_jax.data import sources
from mae_jax.evaluators.evaluator import Result
from mae_jax.output import console, files, tables
from scripts.experiments import defects, runs

CONFIG = "--config=configs/anomaly_small.py"
CLASSES = "top trouser pullover dress coat sandal shirt sneaker bag boot".split()
CLOTHES = {
    "epochs": 2,
    "batch_size": 128,
    "model.width": 64,
    "model.decoder_width": 32,
    "model.decoder_depth": 1,
    "data.size": (28, 28),
    "data.channels": 1,
    "data.crop_scale": (0.6, 1.0),
    "data.repeats": 1,
    "data.center_crop": 1.0,
    "data.mean": (0.286,),  # of all classes, so that one compilation serves all
    "data.std": (0.353,),
    "optimizer.warmup_epochs": 0.3,
}
BRAIN_NAMES = ("mni152", "colin27")
BRAINS = {
    "epochs": 700,
    "model.patch": (4, 4, 4),
    "data.size": (20, 20, 20),
    "data.range": "auto",
    "data.repeats": 16,
}
SETTINGS = anomaly.Settings(false_alarms=0.05, tiles=Tiles(0.5, batch_size=64))
DRAWS = 20


def pretrain(config: str, source: str, workdir: Path, values: dict[str, Any]) -> None:
    """Train a config with other values, unless that is done."""
    changes = [f"--config.{key}={value!r}" for key, value in values.items()]
    runs.last_record([config, f"--config.data.train.source={source}", *changes], workdir)


def source_of(inputs: Sequence[Any]) -> sources.Examples:
    load = lambda i: dict(image=inputs[i], label=-1)
    return sources.Examples(len(inputs), load, (), title="input")


def textures(workdir: Path, data: Sequence[str]) -> dict[str, Result]:
    """Return the figures of each texture."""
    root, shown, run = workdir / "textures", workdir / "good", workdir / "runs" / "textures"
    if not root.exists():
        defects.write_textures(Path(data[0]), root)
        for name, split in itertools.product(sorted(os.listdir(root)), ("train", "test")):
            (shown / split).mkdir(parents=True, exist_ok=True)
            (shown / split / name).symlink_to((root / name / split / GOOD).absolute())
    pretrain(CONFIG, f"folder:{shown}", run, {})
    found = {}
    for name in sorted(os.listdir(root)):
        good = sources.open_source(f"folder:{root}/{name}/train/{GOOD}", "all", "image")
        detector = anomaly.fit(str(run), good, settings=SETTINGS)
        detector.save(str(workdir / "detectors" / name), overwrite=True)
        pages = sheets.Sheets(detector, rows=3)
        examples = layout.examples(str(root / name))
        found[name] = evaluation.evaluate(detector, examples, good, pages.add)
        pages.save(workdir / "pages" / name)
        print(f"{name}: {found[name].text}\n", flush=True)
    return found


def clothes(workdir: Path, data: Sequence[str]) -> dict[str, Result]:
    """Return the figures of each class, whose pictures are the good ones."""
    tests = [sources.open_source(f"idx:{data[0]}", "test", "image")]
    labels, found = np.asarray(sources.labels_of(tests[0])), {}
    of_class = lambda label, count: np.flatnonzero(labels == label)[:count].tolist()
    for label, name in enumerate(CLASSES):
        folder, run = workdir / "clothes" / name, workdir / "runs" / name
        if not folder.exists():
            write_class(Path(data[0]), label, folder)
        pretrain(CONFIG, f"idx:{folder}", run, CLOTHES)
        good = sources.subset(sources.open_source(f"idx:{folder}", "train", "image"), 500, False)
        detector = anomaly.fit(str(run), good, settings=SETTINGS)
        detector.save(str(workdir / "detectors" / name), overwrite=True)
        examples = []
        for other, kind in enumerate(CLASSES):
            is_good = other == label
            for i in of_class(other, 300 if is_good else 50):
                x = np.asarray(tests[0][i]["image"])
                examples.append(Example(f"{kind}/{i}", GOOD if is_good else kind, x))
        found[name] = evaluation.evaluate(detector, examples, good)
        print(f"{name}: {found[name].text}\n", flush=True)
    return found


def write_class(source: Path, label: int, to: Path) -> None:
    """Write the pictures of one class in the format of MNIST, both splits."""
    to.mkdir(parents=True, exist_ok=True)
    for split, stem in (("train", "train"), ("test", "t10k")):
        opened = sources.open_source(f"idx:{source}", split, "image")
        chosen = np.flatnonzero(np.asarray(sources.labels_of(opened)) == label)
        pictures = np.stack([opened[int(i)]["image"] for i in chosen])
        for what, x in (("images-idx3", pictures), ("labels-idx1", np.full(len(chosen), label))):
            header = bytes([0, 0, 8, x.ndim]) + np.array(x.shape, ">u4").tobytes()
            (to / f"{stem}-{what}-ubyte").write_bytes(header + x.astype(np.uint8).tobytes())


def brains(workdir: Path, data: Sequence[str]) -> dict[str, Result]:
    """Return the figures of lesions."""
    folder, run = workdir / "slabs", workdir / "runs" / "brains"
    slabs: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    for name, path in zip(BRAIN_NAMES, data, strict=True):
        for split, found in zip(slabs, defects.slabs(defects.read_brain(Path(path))), strict=True):
            (folder / split).mkdir(parents=True, exist_ok=True)
            for i, slab in enumerate(found):
                np.save(folder / split / f"{name}_{i}.npy", slab)
            slabs[split] += found
    pretrain("--config=configs/brain_small.py", f"arrays:{folder}", run, BRAINS)
    rng = np.random.default_rng(0)
    draw = lambda split, count: [
        x
        for i, slab in enumerate(slabs[split])
        for x in itertools.islice(defects.boxes(slab, rng), count // len(slabs[split]))
    ]
    good = source_of(draw("train", 200))
    detector = anomaly.fit(str(run), good, settings=SETTINGS)
    detector.save(str(workdir / "detectors" / "brains"), overwrite=True)
    examples = [Example(f"{GOOD}/{i}", GOOD, x) for i, x in enumerate(draw("test", 100))]
    for i, box in enumerate(draw("test", 300)):
        x, mask, kind = defects.lesion(box, rng)
        examples.append(Example(f"{kind}/{i}", kind, x, mask))
    pages = sheets.Sheets(detector, rows=3)
    result = evaluation.evaluate(detector, examples, good, pages.add)
    pages.save(workdir / "pages" / "brains")
    print(result.text)
    return {"brains": result}


def alarms(workdir: Path, data: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the rates of false alarms over draws of the good examples that calibrate.

    What is fitted is that of `textures` and `clothes`. Good examples that it has not seen are
    shared out at random, half to calibrate and half to count those above the threshold.
    """
    found: dict[str, dict[str, Any]] = {}
    fitted = sorted(os.listdir(workdir / "detectors"))
    for name in (x for x in fitted if x != "brains"):
        detector = anomaly.Detector.load(str(workdir / "detectors" / name))
        good = _unseen(workdir, name)
        scores = np.array([[*x.scores.values()][:-1] for _, x in detector.scan(good)])  # pyright: ignore
        for rate in (0.05, 0.01):
            if len(good) // 2 < calibration.needed(rate):
                continue
            rates = np.array([_rates(detector, scores, rate, seed) for seed in range(DRAWS)])
            count = len(good) // 2 + 1  # of the calibration, and one more
            expected = 1 - math.ceil(count * (1 - rate) - 1e-9) / count
            found[f"{name}, {rate:g}"] = dict(
                examples=len(good),
                promised=rate,
                expected=expected,
                measured=dict(zip(detector.thresholds, rates.mean(0).tolist(), strict=True)),
                standard_error=float(np.std(rates[:, -1], ddof=1) / np.sqrt(DRAWS)),
            )
    return found


def _unseen(workdir: Path, name: str) -> sources.Source:
    """Return good examples that neither the model nor the detector has seen."""
    if name in CLASSES:
        return sources.open_source(f"idx:{workdir}/clothes/{name}", "test", "image")
    return source_of(defects.disjoint(workdir / "textures" / name / "right.png", 32))


def _rates(detector: anomaly.Detector, scores: np.ndarray, rate: float, seed: int) -> np.ndarray:
    """Return the shares of half of the examples above the thresholds of the other half."""
    order = np.random.default_rng(seed).permutation(len(scores))
    held_out, test = np.split(order, [len(order) // 2])
    found = Calibration.of(tuple(detector.scorers), scores[held_out], rate)
    columns = np.column_stack([scores[test], found.combine(scores[test])])
    return (columns > np.array([*found.thresholds.values()])).mean(0)


def mean_table(found: dict[str, Result], keys: Iterable[str]) -> str:
    """Return the table of the mean of each figure over all results, for each scorer."""
    results = list(found.values())
    rows = [["mean", *(figures.NAMES[key] for key in keys)]]
    for name in results[0].details["scorers"]:
        values = [[x.details["scorers"][name][key] for key in keys] for x in results]
        rows.append([name, *("-" if x != x else f"{x:.3f}" for x in np.mean(values, 0))])
    return tables.table(rows)


def table_of(found: dict[str, Result], key: str) -> str:
    """Return the table of one figure, with a row for each result and a column for each scorer."""
    names = list(next(iter(found.values())).details["scorers"])
    rows = [[figures.NAMES[key], *names]]
    for title, x in found.items():
        values = [x.details["scorers"][name][key] for name in names]
        rows.append([title, *("-" if x != x else f"{x:.3f}" for x in values)])
    return tables.table(rows)


def alarm_table(found: dict[str, dict[str, Any]]) -> str:
    names = list(next(iter(found.values()))["measured"])
    rows = [["false alarms", "examples", "promised", "expected", *names, "standard error"]]
    for title, x in found.items():
        rates = (f"{y:.4f}" for y in (x["expected"], *x["measured"].values(), x["standard_error"]))
        rows.append([title, f"{x['examples']:,}", f"{x['promised']:g}", *rates])
    return tables.table(rows)


EXPERIMENTS: dict[str, Callable] = dict(
    textures=textures, clothes=clothes, brains=brains, alarms=alarms
)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--data", action="append", default=[], help="what the packages hold")
    options = parser.parse_args()
    console.install()
    workdir, name = Path(options.workdir), options.experiment
    workdir.mkdir(parents=True, exist_ok=True)
    found = EXPERIMENTS[name](workdir, options.data)
    if name == "alarms":
        files.write_json(str(workdir / "alarms.json"), found)
        print(alarm_table(found))
        return
    details = {title: x.details for title, x in found.items()}
    files.write_json(str(workdir / f"{name}.json"), details)
    print(mean_table(found, figures.NAMES) + "\n")
    for key in ("image_auroc", "pixel_ap"):
        print(table_of(found, key) + "\n")


if __name__ == "__main__":
    main()
