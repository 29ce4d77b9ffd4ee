"""A model with its parameters, and how inputs are shown to it."""

import argparse
from collections.abc import Mapping
from typing import Any, NamedTuple

from jax.sharding import Mesh

from mae_jax.config import schema, sections
from mae_jax.data import image_io
from mae_jax.distributed import device_mesh
from mae_jax.evaluators import checkpoint
from mae_jax.evaluators.held_out import EvalTransform
from mae_jax.weights import load
from mae_jax.weights.checkpoint_info import CheckpointInfo

_MODALITIES = {1: "signal", 2: "image", 3: "volume"}  # by the number of sides
_OPTIONS = ("size", "mean", "std", "center_crop", "threads")


class LoadedModel(NamedTuple):
    """A model that is ready to use."""

    model: Any
    params: dict
    transform: EvalTransform
    mesh: Mesh
    info: CheckpointInfo | None = None  # None of a model that no checkpoint describes

    @property
    def variables(self) -> dict:
        return {"params": self.params}


def of(model: Any, params: dict | None = None, **data: Any) -> LoadedModel:
    """Return a checkpoint, or a model with its parameters, ready to use on all devices.

    Args:
      model: a checkpoint, of which `load` reads the model, its parameters and how inputs are shown
        to it; or a model with its `params`.
      data: keys of the section `data` of a config, in place of those of the checkpoint: `size`,
        `mean`, `std`, `range`, `nodata`, `bands` and so on. With `params`, `size`, `mean` and `std`
        are needed, and `modality` is "signal", "image" or "volume" by the number of sides.

    Raises:
      ValueError: how inputs are shown is unknown, or does not fit the model.
    """
    image_io.configure_libraries()
    if params is not None:
        return LoadedModel(model, params, _transform(model, data), device_mesh.make_mesh())
    parser = argparse.ArgumentParser()
    checkpoint.add_model_options(parser)
    options = parser.parse_args([f"--checkpoint={model}"])
    vars(options).update({name: x for name, x in data.items() if name in _OPTIONS})
    options.data_field = [(name, x) for name, x in data.items() if name not in _OPTIONS]
    return of_options(options)


def of_options(options: argparse.Namespace) -> LoadedModel:
    """Return the checkpoint that the options of a command choose: see `checkpoint.find`.

    Raises:
      ValueError: there is no such checkpoint, or an option is out of its range or does not fit.
    """
    info, context = checkpoint.find(options)
    params = load.parameters(info, size=context.transform.size, mesh=context.mesh)
    return LoadedModel(context.model, params, context.transform, context.mesh, info)


def _transform(model: Any, data: Mapping[str, Any]) -> EvalTransform:
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
    section = schema.section(sections.MODALITIES[modality], needed | dict(data))
    model.grid(section.size)
    return EvalTransform(section, section.mean, section.std)
