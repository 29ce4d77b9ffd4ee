"""Evaluate a detector: anomaly evaluate --detector=DETECTOR --data=ROOT [...]

ROOT has MVTec's layout: ROOT/test/good, ROOT/test/KIND and ROOT/ground_truth/KIND/NAME_mask.png. A
table shows image AUROC, pixel AUROC, pixel AP and PRO (up to 30 % false positives) of each scorer,
of their rank average and combination, and of scores that need no network; and the good examples
above each threshold, beside the share that was promised.
"""

import argparse
from pathlib import Path

from mae_jax.applications.anomaly import evaluation, layout, sheets
from mae_jax.applications.anomaly.detector import Detector
from mae_jax.data import sources
from mae_jax.output import files


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("--detector", required=True, help="a folder that fit wrote")
    add("--data", required=True, metavar="ROOT", help="the folder above test and ground_truth")
    add("--good", help="what baselines learn from; default: folder:ROOT/train/good, if it exists")
    add("--json", type=files.writable, metavar="FILE", help="for all figures, by kind too")
    add("--pictures-to", metavar="FOLDER", help="for a picture of each kind with its maps")
    add("--threads", type=int, default=16)


def run(options: argparse.Namespace) -> str:
    """Return the table, and write files.

    Raises:
      ValueError, OSError: one sentence on what does not fit.
    """
    examples = layout.examples(options.data)
    detector = Detector.load(options.detector, options.threads)
    drawn = sheets.Sheets(detector) if options.pictures_to else None
    found = evaluation.evaluate(detector, examples, _good(detector, options), drawn and drawn.add)
    if options.json:
        about = dict(detector=options.detector, data=options.data)
        files.write_json(options.json, about | found.metrics | found.details)
    if drawn:
        drawn.save(Path(options.pictures_to))
    return f"{options.detector} on {options.data}: {found.text}"


def _good(detector: Detector, options: argparse.Namespace) -> sources.Source | None:
    """Return the source that baselines learn from, or None if there is none."""
    folder = Path(options.data) / "train" / layout.GOOD
    spec = options.good or (f"folder:{folder}" if folder.is_dir() else None)
    if spec is None:
        return None
    modality = detector.loaded.transform.data["modality"]
    try:
        return sources.open_source(spec, "all", modality)
    except ValueError:  # of sources that know no split all, such as idx
        return sources.open_source(spec, "train", modality)
