"""The features of inputs in Python: `mae_jax.embed`."""

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from mae_jax.config import schema, sections
from mae_jax.data import image_io
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.sources.source import Examples
from mae_jax.distributed import device_mesh
from mae_jax.evaluators import checkpoint, example_columns
from mae_jax.evaluators.dense import DenseExtractor, FeatureMap
from mae_jax.evaluators.features import Extractor, Feature
from mae_jax.evaluators.held_out import EvalTransform
from mae_jax.weights import load

_LAST = Feature()
_MODALITIES = {1: "signal", 2: "image", 3: "volume"}  # by the number of sides


def embed(
    path: Any,
    model: Any,
    params: dict | None = None,
    *,
    dense: bool = False,
    feature: Feature = _LAST,
    overlap: float = 0.5,
    batch_size: int = 256,
    **data: Any,
) -> Float[np.ndarray, "*n d"] | FeatureMap | list[FeatureMap]:
    """Return the features of an input, or of a list of inputs, as `python -m mae_jax.embed` does.

    Args:
      path: an input: the path of a file or what else the modality of the model reads, such as an
        array [*sides, c]; or a list of inputs, for which the encoder is compiled once.
      model: a checkpoint, of which `load` reads the model, its parameters and how inputs are shown
        to it; or a model with its `params`.
      dense: return a vector for each patch of an input of any size, see `dense.DenseExtractor`.
        Otherwise the tokens of one view of `size` are pooled, as an evaluation does.
      feature: the block, the pooling and whether the final norm is applied.
      overlap: of the tiles of dense features.
      batch_size: the largest number of inputs or of tiles that are encoded at once.
      data: keys of the section `data` of a config, in place of those of the checkpoint: `size`,
        `mean`, `std`, `range`, `nodata`, `bands` and so on. With `params`, `size`, `mean` and `std`
        are needed, and `modality` is "signal", "image" or "volume" by the number of sides.

    Raises:
      ValueError: how inputs are shown is unknown, or does not fit the model.
      Unreadable: an input cannot be read, or does not fit.
    """
    image_io.configure_libraries()
    mesh = device_mesh.make_mesh()
    if params is None:
        model, params, transform = _of_checkpoint(str(model), data, mesh)
    else:
        transform = _of_model(model, data)
    variables, several = {"params": params}, isinstance(path, list | tuple)
    inputs = list(path) if several else [path]
    if dense:
        extractor = DenseExtractor(model, feature, transform, mesh, overlap, batch_size)
        maps = [extractor(variables, value) for value in inputs]
        return maps if several else maps[0]
    names = [x if isinstance(x, str) else f"input {i}" for i, x in enumerate(inputs)]
    source = Examples(len(inputs), lambda i: dict(image=inputs[i], label=-1), (), names=names)
    extract = Extractor(model, [feature], transform, mesh)
    table = extract(variables, source, 0, min(batch_size, len(inputs)))
    if missing := {*range(len(inputs))} - {*table.index.tolist()}:
        raise Unreadable(example_columns.reason(source, min(missing), transform))
    found = table.features[feature]
    return found if several else found[0]


def _of_checkpoint(
    path: str, data: Mapping[str, Any], mesh: Mesh
) -> tuple[Any, dict, EvalTransform]:
    """Return the model of a checkpoint, its parameters, and how inputs are shown to it."""
    parser = argparse.ArgumentParser()
    checkpoint.add_options(parser)
    options = parser.parse_args([f"--checkpoint={path}", "--data="])
    own = ("size", "mean", "std", "center_crop", "threads")
    vars(options).update({name: x for name, x in data.items() if name in own})
    options.data_field = [(name, x) for name, x in data.items() if name not in own]
    info, context = checkpoint.find(options)
    params = load.parameters(info, size=context.transform.size, mesh=mesh)
    return context.model, params, context.transform


def _of_model(model: Any, data: dict[str, Any]) -> EvalTransform:
    """Return how inputs are shown to a model that does not say it."""
    if missing := [name for name in ("size", "mean", "std") if name not in data]:
        raise ValueError(
            f"a model does not say {', '.join(missing)} of its inputs: give them as arguments, or "
            "the path of the checkpoint in place of the model"
        )
    modality = data.get("modality") or _MODALITIES.get(len(model.patch))
    if modality not in sections.MODALITIES:
        raise ValueError(f"modality = {modality!r} is none of {', '.join(sections.MODALITIES)}")
    needed = dict(train=dict(source=""), modality=modality, channels=len(data["mean"]))
    section = schema.section(sections.MODALITIES[modality], needed | data)
    model.grid(section.size)
    return EvalTransform(section, section.mean, section.std)
