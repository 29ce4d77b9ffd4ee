"""The fitting of a detector on good examples."""

import logging
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from mae_jax.applications.anomaly import calibration, memory, score_maps, scorers
from mae_jax.applications.anomaly import detector as detectors
from mae_jax.applications.anomaly.calibration import Calibration
from mae_jax.applications.anomaly.detector import Detector
from mae_jax.applications.anomaly.settings import Settings
from mae_jax.applications.anomaly.tile_stream import TileStream
from mae_jax.data import sources
from mae_jax.data.bad_examples import Unreadable
from mae_jax.evaluators import loaded_model
from mae_jax.evaluators.loaded_model import LoadedModel
from mae_jax.models import mae

_log = logging.getLogger(__name__)
_DEFAULT = Settings()


def fit(
    model: Any,
    inputs: Any,
    params: dict | None = None,
    settings: Settings = _DEFAULT,
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
    source = inputs if hasattr(inputs, "classes") else sources.of_inputs(inputs)
    return fit_chosen(loaded, source, np.arange(len(source)), settings)


def fit_chosen(
    loaded: LoadedModel, source: sources.Source, index: Int[np.ndarray, "n"], settings: Settings
) -> Detector:
    """Return a detector of the examples of a source at `index`: see `fit`."""
    fitted, held_out = _split(index, settings)
    made: dict[str, Any] = {"memory": memory.build(loaded, source, fitted, settings)}
    if isinstance(loaded.model, mae.MaskedAutoencoder):
        config = (loaded.info and loaded.info.config) or {}
        ratio, size = config.get("mask", {}).get("ratio", 0.75), loaded.transform.size
        reconstruction = scorers.reconstruction(loaded.model, size, ratio, settings.seed)
        made = {"reconstruction": reconstruction} | made
    else:
        _log.info("the model has no decoder, so the detector has one scorer, the memory of patches")
    found = _scores(detectors.stream(loaded, made, settings.tiles), source, held_out)
    calibrated = Calibration.of([*made], found, settings.false_alarms)
    about = settings._asdict() | dict(fitted=len(fitted), calibrated=len(found))
    del about["tiles"]
    return Detector(loaded, made, calibrated, about, settings.tiles)


def _split(
    index: Int[np.ndarray, "n"], settings: Settings
) -> tuple[Int[np.ndarray, "m"], Int[np.ndarray, "n-m"]]:
    """Return the examples that build the memory, and those that calibrate the thresholds.

    Raises:
      ValueError: there are too few to use at most half of them for the calibration.
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
    held_out = min(max(needed, round(settings.held_out * count)), count - 1)
    shuffled = np.random.default_rng(settings.seed).permutation(index)
    text = "%s good examples build the memory, and %s others calibrate the thresholds (--seed=%d)"
    _log.info(text, f"{count - held_out:,}", f"{held_out:,}", settings.seed)
    return np.sort(shuffled[held_out:]), np.sort(shuffled[:held_out])


def _scores(
    stream: TileStream, source: sources.Source, index: Int[np.ndarray, "n"]
) -> list[Float[np.ndarray, "k"]]:
    """Return the scores of held-out examples by each scorer; those without any are left out."""
    found = []
    options: Any = dict(total=len(index), unit="example", desc="calibration", disable=None)
    for i, x in tqdm(detectors.maps(stream, source, index), **options):
        if isinstance(x, Unreadable):
            _log.warning("left out: %s", x)
            continue
        scores = score_maps.score(x.values)
        if np.isnan(scores).any():
            _log.warning("left out: %r has too little data for a score", source.name(i))
            continue
        found.append(scores)
    return found
