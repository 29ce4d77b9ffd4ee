"""The `.safetensors` files of this project: our names, and a description of the model as JSON."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mae_jax.models import build
from mae_jax.weights import checkpoint_info
from mae_jax.weights.checkpoint_info import CheckpointInfo
from mae_jax.weights.tensor_files import Tensor

UNNAMED = {"dtype", "batch_norm", "head_std"}  # fields that no parameter depends on
PLACES = {"train", "test", "examples", "threads"}  # keys of `config.data`
KNOWN = ("classes", "mean", "std")  # of a `CheckpointInfo`, as JSON has them


def describe(info: CheckpointInfo) -> dict[str, str]:
    """The metadata of a file, from which `find` knows the model again."""
    names = build.FIELDS[info.kind] - UNNAMED
    about: dict[str, Any] = {
        "kind": info.kind,
        "fields": {name: x for name, x in info.fields.items() if name in names},
        **{name: getattr(info, name) for name in ("size", *KNOWN)},
    }
    config = info.config or {}  # how examples are read and masked, but not where they are
    if data := {name: x for name, x in config.get("data", {}).items() if name not in PLACES}:
        known = {name: config[name] for name in ("mask", "loss", "evaluate") if name in config}
        evaluators = config.get("evaluators", {}).items()
        views = {n: {x: e[x] for x in ("clips", "crops")} for n, e in evaluators if "clips" in e}
        about["config"] = known | {"data": data, "evaluators": views}
    return {"format": "mae_jax", "mae_jax": json.dumps(about)}


def find(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> CheckpointInfo:
    """The model in a file that `describe` describes.

    Raises:
      ValueError: the file does not describe its model.
    """
    try:
        about = json.loads(metadata["mae_jax"])
        fields = checkpoint_info.read_fields(about["fields"])
        build.model(about["kind"], fields)
        size = tuple(about["size"]) if about.get("size") else None
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not say what model it holds: export it again") from error
    embedding = tensors.get("encoder/embedding/kernel")
    values = math.prod(fields["patch"]) * (fields.get("vocab_size") or 1)
    return CheckpointInfo(
        str(path),
        about["kind"],
        fields,
        {name: x.shape for name, x in tensors.items()},
        lambda wanted: {n: checkpoint_info.place(tensors[n], leaf) for n, leaf in wanted.items()},
        embedding.shape[0] // values if embedding else 3,
        size,
        config=about.get("config"),
        **{name: about.get(name) for name in KNOWN},
    )
