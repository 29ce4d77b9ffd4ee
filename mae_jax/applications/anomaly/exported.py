"""What an exported file of a detector computes: the scores and the maps of inputs of one tile."""

from pathlib import PurePath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

import mae_jax
from mae_jax.applications.anomaly import detector as detectors
from mae_jax.applications.anomaly import score_maps
from mae_jax.applications.anomaly.calibration import COMBINED
from mae_jax.applications.anomaly.detector import Detector
from mae_jax.exchange import raw_inputs
from mae_jax.exchange.computation import PORTABLE, Computation
from mae_jax.weights import load


def make(path: str, **options: Any) -> Computation:
    """Return the computation of a detector, in float32 and for any batch size: see `artefacts`.

    Its inputs have the size of a tile: those of other sizes are cut by who calls it.

    Args:
      options: those of `computation.make`, of which a detector takes none.

    Raises:
      ValueError: an option is given, or the inputs have no such form.
    """
    defaults = (None, "", load.POSITIONS[0])
    if given := [name for name, value in options.items() if value not in defaults]:
        option = f"--{given[0].replace('_', '-')}"
        raise ValueError(f"{option} is for models, and {path} is a detector: leave it out")
    detector = Detector.load(path)
    info, transform = detector.loaded.info, detector.loaded.transform
    assert info is not None  # of a folder
    if transform.data.get("foreground"):
        raise ValueError("a detector with data.foreground cannot be exported: use the folder")
    fields, config = info.fields | PORTABLE, {"data": dict(transform.data)}
    info = info._replace(size=transform.size, fields=fields, config=config)
    raw = raw_inputs.of(info, transform.mean, transform.std)
    params = {
        "model": jax.tree.map(np.asarray, detector.loaded.params),
        "scorers": jax.tree.map(np.asarray, dict(detector.scorers)),
    }
    (batch,) = export.symbolic_shape("b")
    inputs = {"inputs": jax.ShapeDtypeStruct((batch, *transform.size, info.channels), raw.dtype)}
    metadata = dict(
        mae_jax=mae_jax.__version__,
        checkpoint=PurePath(path).name,
        what="detect anomalies",
        size=transform.size,
        channels=info.channels,
        patch=info.fields["patch"],
        thresholds=detector.thresholds,
        false_alarms=detector.calibration.false_alarms,
        mean=raw.mean or None,
        std=raw.std or None,
    )
    names = (*detector.scorers, COMBINED)
    texts = {"inputs": str(raw)}
    limit = "score; the threshold of examples as those of the calibration is {:.6g}"
    texts |= {name: limit.format(detector.thresholds[name]) for name in names}
    texts |= {f"{name}_map": "a score for each patch" for name in names}
    return Computation(_function(detector, info.model, raw), params, inputs, texts, metadata)


def _function(detector: Detector, model: Any, raw: raw_inputs.RawInputs) -> Any:
    """Return the function of parameters and raw inputs that `Detector.scan` is for one tile."""
    combine = detector.calibration.combine

    def function(params, inputs):
        made = {name: params["scorers"][name] for name in detector.scorers}  # in their order
        maps, _ = detectors.patch_scores(model, params["model"], raw.split(inputs), None, made)
        maps = score_maps.local_mean(maps, range(1, maps.ndim - 1))
        columns = [maps[..., k] for k in range(len(made))]
        scores = jnp.stack([score_maps.score(x) for x in columns], -1)
        every = [*zip(columns, scores.T, strict=True), (combine(maps), combine(scores))]
        outputs = {}
        for name, (of_patches, score) in zip((*made, COMBINED), every, strict=True):
            outputs |= {name: score, f"{name}_map": of_patches}
        return outputs

    return function
