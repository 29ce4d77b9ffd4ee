"""The fitting of a detector on good examples."""

import logging
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from mae_jax.applications.anomaly import calibration, coreset, scorers
from mae_jax.applications.anomaly import detector as detectors
from mae_jax.applications.anomaly.calibration import Calibration
from mae_jax.applications.anomaly.detector import Detector, Tiles
from mae_jax.applications.anomaly.tile_stream import Failed, TileStream
from mae_jax.data import sources
from mae_jax.data.bad_examples import Unreadable
from mae_jax.evaluators import loaded_model
from mae_jax.evaluators.features import Feature
from mae_jax.evaluators.loaded_model import LoadedModel
from mae_jax.models import mae
from mae_jax.output import tables

_log = logging.getLogger(__name__)
_SAMPLED = 10  # patches of the sample for each one of the memory


class Settings(NamedTuple):
    """How a detector is fitted."""

    false_alarms: float = 0.01  # the share of good examples that may be above a threshold
    held_out: float = 0.25  # the share of good examples that calibrate, and build no memory
    memory: int = 2048  # features of patches that it holds
    max_memory: float = 4.0  # GB that it may take while it is built
    block: int | None = None  # of the features; by default about two thirds up
    seed: int = 0
    tiles: Tiles = Tiles()


def fit(
    model: Any,
    inputs: Any,
    params: dict | None = None,
    settings: Settings = Settings(),  # noqa: B008 (it is a tuple)
    **data: Any,
) -> Detector:
    """Return a detector of what differs from good examples.

    Args:
      model, params, data: a checkpoint, or a model with its parameters, and keys of the section
        `data` of a config: see `loaded_model.of`. `model` may also be a `LoadedModel`.
      inputs: good examples alone: a source, or a list of paths or of what else the modality of the
        model reads, such as arrays [*sides, c] of any size.

    Raises:
      ValueError: there are too few examples for the rate of false alarms, the memory would be too
        large, or a setting does not fit the model.
    """
    loaded = model if isinstance(model, LoadedModel) else loaded_model.of(model, params, **data)
    source = _source(inputs) if isinstance(inputs, list | tuple) else inputs
    return fit_chosen(loaded, source, np.arange(len(source)), settings)


def fit_chosen(
    loaded: LoadedModel, source: sources.Source, index: Int[np.ndarray, "n"], settings: Settings
) -> Detector:
    """Return a detector of the examples of a source at `index`: see `fit`."""
    fitted, held_out = _split(index, settings)
    memory = _memory(loaded, source, fitted, settings)
    made: dict[str, Any] = {}
    if isinstance(loaded.model, mae.MaskedAutoencoder):
        ratio = ((loaded.info and loaded.info.config) or {}).get("mask", {}).get("ratio", 0.75)
        size = loaded.transform.size
        made["reconstruction"] = scorers.reconstruction(loaded.model, size, ratio, settings.seed)
    else:
        _log.info("the model has no decoder, so the detector has one scorer, the memory of patches")
    made["memory"] = memory
    found = _scores(detectors.stream(loaded, made, settings.tiles), source, held_out)
    calibrated = Calibration.of(made, found, settings.false_alarms)
    _ = calibrated.thresholds  # raises a ValueError if too few examples had scores
    about = settings._asdict() | dict(fitted=len(fitted), calibrated=len(found))
    del about["tiles"]
    return Detector(loaded, made, calibrated, about, settings.tiles)


def _source(inputs: Any) -> sources.Source:
    names = [x if isinstance(x, str) else f"input {i}" for i, x in enumerate(inputs)]
    load = lambda i: dict(image=inputs[i], label=-1)
    return sources.Examples(len(inputs), load, (), names=names)


def _split(index: np.ndarray, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Return the examples that build the memory, and those that calibrate the thresholds.

    At most half of the examples calibrate: the share `held_out`, or what the rate needs.
    """
    if not 0 < settings.held_out < 1:
        raise ValueError(f"--held-out={settings.held_out} must be between 0 and 1, such as .25")
    needed, count = calibration.needed(settings.false_alarms), len(index)
    if count < 2 * needed:
        raise ValueError(
            f"--false-alarms={settings.false_alarms:g} needs {2 * needed:,} good examples, of "
            f"which {needed:,} calibrate the threshold, and there are {count:,}: give more, or a "
            "higher rate"
        )
    held_out = max(needed, round(settings.held_out * count))
    shuffled = np.random.default_rng(settings.seed).permutation(index)
    _log.info(
        "%s good examples build the memory, and %s others calibrate the thresholds (--seed=%d)",
        f"{count - held_out:,}",
        f"{held_out:,}",
        settings.seed,
    )
    return np.sort(shuffled[held_out:]), np.sort(shuffled[:held_out])


def _memory(
    loaded: LoadedModel, source: sources.Source, index: np.ndarray, settings: Settings
) -> scorers.PatchMemory:
    model, depth = loaded.model, loaded.model.depth
    block = scorers.default_block(depth) if settings.block is None else settings.block
    if not -depth <= block < depth:
        raise ValueError(f"--block={block} is none of {depth} blocks, from 0 on")
    feature = Feature(block % depth, "patches", False)
    grid = model.grid(loaded.transform.size)
    groups = grid[0] if len(grid) > len(model.patch) else 1
    width = groups * model.encoder.trunk.width
    _check_memory(width, settings)

    of_tiles = lambda *x: scorers.features(*x[:-1], feature)
    cut = detectors.tiled_inputs(loaded, settings.tiles._replace(overlap=0.0))
    run = TileStream(cut, detectors.jitted(loaded, of_tiles, ()))
    reservoir = coreset.Reservoir(_SAMPLED * settings.memory, width, settings.seed)
    for x in _readable(run(source, index), source, len(index), "features"):
        rows = x.inside.reshape(-1, width)
        reservoir.add(rows[~np.isnan(rows).any(-1)])
    if not reservoir.seen:
        raise ValueError("no good example has a patch with data: see the warnings")
    mean, std = reservoir.moments()
    sample = reservoir.sample
    sample -= mean
    sample /= std
    chosen = coreset.greedy(sample, settings.memory, settings.seed)
    text = "the memory holds %s of %s patches"
    _log.info(text, f"{len(chosen):,}", f"{reservoir.seen:,}")
    return scorers.PatchMemory(sample[chosen], mean, std, feature)


def _check_memory(width: int, settings: Settings) -> None:
    """Say how much memory the memory of patches takes; raise ValueError if that is too much."""
    if settings.memory < 1:
        raise ValueError(f"--memory={settings.memory} must be at least 1")
    held = 4 * width * settings.memory
    built = held * _SAMPLED
    text = (
        f"{settings.memory:,} features of {width:,} numbers take {tables.amount(held)}, and "
        f"{tables.amount(built)} while the memory is built"
    )
    if built > settings.max_memory * 1e9:
        most = int(settings.max_memory * 1e9 / (4 * width * _SAMPLED))
        raise ValueError(
            f"{text}, above --max-memory={settings.max_memory:g} GB: give --memory={most} or less, "
            "or a higher --max-memory"
        )
    _log.info("%s", text)


def _scores(run: TileStream, source: sources.Source, index: np.ndarray) -> list[np.ndarray]:
    """Return the scores of held-out examples by each scorer."""
    found = []
    for _, _, x in _bar(detectors.maps(run, source, index), len(index), "calibration"):
        if isinstance(x, Unreadable):
            _log.warning("left out: %s", x)
            continue
        scores = detectors.score_maps.score(np.moveaxis(x, -1, 0))
        if np.isnan(scores).any():
            _log.warning("left out: a good example without any data")
            continue
        found.append(scores)
    return found


def _readable(items: Iterable[Any], source: sources.Source, count: int, what: str) -> Iterator[Any]:
    """Yield tiles, and tell of inputs that failed."""
    interval = 0.1 if sys.stderr.isatty() else 10
    with tqdm(total=count, unit=" examples", desc=what, mininterval=interval) as bar:
        last = -1
        for x in items:
            i = x.index if isinstance(x, Failed) else x.of.index
            bar.update(i != last)
            last = i
            if isinstance(x, Failed):
                _log.warning("left out: %s", x.error)
            else:
                yield x


def _bar(items: Iterable[Any], count: int, what: str) -> Iterator[Any]:
    interval = 0.1 if sys.stderr.isatty() else 10  # seconds; a log file needs few lines
    yield from tqdm(items, what, count, unit=" examples", mininterval=interval)
