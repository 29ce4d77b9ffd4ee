"""Score examples: anomaly score --detector=DETECTOR --data=SOURCE --to=FILE.csv [...]

FILE.csv or FILE.parquet gets a row for each example, in the order of the source: its name, its
scores, whether it is above the threshold, and a note if it cannot be read. --maps=FOLDER writes a
map of each example: a heat map .png of a picture, .nii.gz of a volume and .npz of others;
--maps=FOLDER/{name}.tif writes GeoTIFFs, and other endings likewise.
"""

import argparse
import collections
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mae_jax.applications.anomaly import heat_maps
from mae_jax.applications.anomaly.calibration import COMBINED
from mae_jax.applications.anomaly.detector import Detector, Scores
from mae_jax.data import sources
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.sources import source as reading
from mae_jax.evaluators import checkpoint, example_columns, held_out
from mae_jax.output import columns, files


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("--detector", required=True, help="a folder that fit wrote")
    add("--data", required=True, help="folder:PATH, csv:PATH, ...")
    add("--to", required=True, type=files.writable, metavar="FILE.csv|.parquet")
    add("--maps", metavar="FOLDER", help="for a map of each example")
    add("--json", type=files.writable, metavar="FILE", help="for the counts and the thresholds")
    add("--scorer", default=COMBINED, help="of the threshold and the maps; default: combined")
    add("--split", help="default: all, or test where a source has no split all")
    add("--examples", type=int, default=0, help="at most; 0 = all")
    add("--overwrite", action="store_true", help="replace existing files")
    add("--batch-size", type=int, help="of tiles; default: as it was fitted")
    add("--threads", type=int, default=16)


def run(options: argparse.Namespace) -> str:
    """Write the scores of the examples of a source; return lines for the screen.

    Raises:
      ValueError, OSError, ImportError: one sentence on what does not fit.
    """
    write = columns.writer(options.to)
    if Path(options.to).exists() and not options.overwrite:
        raise ValueError(f"{options.to} exists already: give another --to, or --overwrite")
    detector = Detector.load(options.detector, options.threads)
    if options.batch_size is not None:
        detector = detector.in_batches(options.batch_size)
    if options.scorer not in detector.thresholds:
        names = ", ".join(detector.thresholds)
        raise ValueError(f"--scorer={options.scorer} is none of {names}")
    split, source, index = open_data(detector, options)
    maps = None
    if options.maps:
        maps = heat_maps.writer(options.maps, detector, options.scorer)
        places = maps.places(source, index, options.overwrite)
    rows = []
    found = detector.scan(source, index.tolist())
    for i, scores in tqdm(found, "scoring", len(index), unit="example", disable=None):
        if maps and isinstance(scores, Scores):
            maps.write(places[i], scores)
        rows.append(scores.scores if isinstance(scores, Scores) else scores)  # without the input
    table = columns_of(rows, detector, options.scorer)
    of_labels = _labels(source, index)
    with files.whole(options.to) as path:
        write(path, {"name": example_columns.names(source, index), **of_labels, **table})
    return _report(table, detector, options, split)


def open_data(
    detector: Detector, options: argparse.Namespace
) -> tuple[str, sources.Source, np.ndarray]:
    """Return the split of `--data`, its source, and the indices of the examples to score."""
    if options.examples < 0:
        raise ValueError(f"--examples={options.examples} must be at least 0 (all)")
    data = {**detector.loaded.transform.data, "train": {"source": ""}}
    split, source = checkpoint.open_split(lambda part: held_out.open_part(part, data), options)
    return split, source, sources.fixed_choice(reading.length_of(source), options.examples or None)


def columns_of(
    rows: list[dict[str, float] | Unreadable], detector: Detector, scorer: str
) -> dict[str, list[Any]]:
    """Return a column for each scorer, `above_threshold` (None without a score) and `note`."""
    table: dict[str, list[Any]] = collections.defaultdict(list)
    limits = detector.thresholds
    for row in rows:
        is_read = not isinstance(row, Unreadable)
        scores = row if is_read else dict.fromkeys(limits, np.nan)
        for name, x in scores.items():
            table[name].append(x)
        has_score = not np.isnan(scores[scorer])
        table["above_threshold"].append(scores[scorer] > limits[scorer] if has_score else None)
        missing = None if has_score else "no patch has data"
        table["note"].append(missing if is_read else str(row))
    return table


def _labels(source: sources.Source, index: np.ndarray) -> dict[str, Any]:
    """Return the column `label` if the source knows classes without reading its examples."""
    labels = sources.labels_of(source)
    if labels is None or sources.label_kind(source) == "number":
        return {}
    return example_columns.labels(source, list(labels[index]), ())


def _report(
    table: Mapping[str, list[Any]], detector: Detector, options: argparse.Namespace, split: str
) -> str:
    marks = table["above_threshold"]
    counts = dict(examples=len(marks), above=marks.count(True), without_score=marks.count(None))
    if options.json:
        about = dict(detector=options.detector, data=options.data, split=split)
        about |= dict(scorer=options.scorer, thresholds=detector.thresholds)
        files.write_json(options.json, about | counts)
    missing = counts["without_score"]
    return (
        f"{options.to}: {len(marks):,} examples of {options.data}, split {split!r}, of which "
        f"{counts['above']:,} are above the threshold of {options.scorer}, "
        f"{detector.thresholds[options.scorer]:.4g}"
        + (f"; {missing:,} without a score, whose notes say why" if missing else "")
    )
