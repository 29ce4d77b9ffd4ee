"""Fit a detector: anomaly fit --checkpoint=C --data=SOURCE --to=DETECTOR [...]

SOURCE holds good examples alone. A share of them builds no memory and calibrates the thresholds: of
good examples like them, at most the share --false-alarms is above the threshold.
"""

import argparse
import logging
from collections.abc import Mapping
from typing import Any

from mae_jax.applications import fitted_folder
from mae_jax.applications.anomaly import detector, fitting
from mae_jax.applications.anomaly.settings import Settings, Tiles
from mae_jax.data import sources
from mae_jax.evaluators import checkpoint
from mae_jax.evaluators.loaded_model import LoadedModel
from mae_jax.weights import load

_log = logging.getLogger(__name__)
_DEFAULT = Settings()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    checkpoint.add_options(parser)
    parser.set_defaults(batch_size=_DEFAULT.tiles.batch_size)
    add = parser.add_argument
    add("--to", required=True, metavar="DETECTOR", help="the folder of the detector")
    add("--overwrite", action="store_true", help="replace an existing detector")
    add("--split", help="default: all, or train where a source has no split all")
    promise = "share of good examples that may be above a threshold"
    add("--false-alarms", type=float, default=_DEFAULT.false_alarms, metavar="SHARE", help=promise)
    held_out = "of the examples, which calibrate; more if --false-alarms needs them"
    add("--held-out", type=float, default=_DEFAULT.held_out, metavar="SHARE", help=held_out)
    add("--memory", type=int, default=_DEFAULT.memory, help="features of patches that it holds")
    add("--max-memory", type=float, default=_DEFAULT.max_memory, metavar="GB", help="to build it")
    add("--block", type=int, help="of the features; default: about two thirds up")
    add("--overlap", type=float, default=_DEFAULT.tiles.overlap, help="of neighbouring tiles")
    add("--seed", type=int, default=_DEFAULT.seed, help="of the choices and the masks")


def run(options: argparse.Namespace) -> str:
    """Fit a detector and write it; return lines for the screen.

    Raises:
      ValueError, OSError: one sentence on what does not fit.
    """
    fitted_folder.check_place(options.to, detector.KIND, options.overwrite)
    own = {name: getattr(options, name) for name in _DEFAULT._fields if name != "tiles"}
    settings = Settings(**own, tiles=Tiles(options.overlap, options.batch_size))
    info, context = checkpoint.find(options)
    split, source = checkpoint.open_split(context.open, options, otherwise="train")
    _tell_of_training(options.data, split, info.config or {})
    index = sources.fixed_choice(len(source), options.examples or None)
    params = load.parameters(info, size=context.transform.size, mesh=context.mesh)
    loaded = LoadedModel(context.model, params, context.transform, context.mesh, info)
    found = fitting.fit_chosen(loaded, source, index, settings)
    found.save(options.to, options.overwrite)
    limits = ", ".join(f"{name} {x:.4g}" for name, x in found.thresholds.items())
    return (
        f"{options.to}: {len(index):,} good examples of {options.data}, split {split!r}; the "
        f"thresholds for {options.false_alarms:g} false alarms are {limits}"
    )


def _tell_of_training(data: str, split: str, config: Mapping[str, Any]) -> None:
    """Warn if the model was trained on the examples that calibrate the thresholds."""
    part = config.get("data", {}).get("train", {})
    trained_on = part.get("source", "")
    is_within = data == trained_on or data.startswith(f"{trained_on.rstrip('/')}/")
    if trained_on and is_within and split in ("all", part.get("split", "train")):
        _log.warning(
            "the model was trained on %s: good examples that it has not seen may have higher "
            "scores than those that calibrate the thresholds, and so more false alarms; fit on "
            "others, or measure the rate by evaluate",
            trained_on,
        )
