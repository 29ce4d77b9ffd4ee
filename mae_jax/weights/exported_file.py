"""The `.safetensors` files of this project: our names, and a description of the model as JSON."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from mae_jax.models import build
from mae_jax.weights import checkpoint_info
from mae_jax.weights.checkpoint_info import Abstract, CheckpointInfo
from mae_jax.weights.tensor_files import Tensor

UNNAMED = {"dtype", "batch_norm", "head_std"}  # fields that no parameter depends on
PLACES = {"train", "test", "examples", "threads"}  # keys of `config.data`


def describe(info: CheckpointInfo) -> dict[str, str]:
    """The metadata of a file, from which `find` knows the model again."""
    names = build.FIELDS[info.kind] - UNNAMED
    about: dict[str, Any] = {
        "kind": info.kind,
        "fields": {name: x for name, x in info.fields.items() if name in names},
        **{name: getattr(info, name) for name in ("size", "classes", "mean", "std")},
    }
    config = info.config or {}  # how examples are read and masked, but not where they lie
    if data := {name: x for name, x in config.get("data", {}).items() if name not in PLACES}:
        known = {name: config[name] for name in ("mask", "loss", "evaluate") if name in config}
        evaluators = config.get("evaluators", {}).items()
        views = {n: {x: e[x] for x in ("clips", "crops")} for n, e in evaluators if "clips" in e}
        about["config"] = known | {"data": data, "evaluators": views}
    return {"format": "mae_jax", "mae_jax": json.dumps(about)}


def find(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], without: str
) -> CheckpointInfo:
    """The model in a file that `describe` describes.

    Raises:
      ValueError: the file does not describe its model, or lacks learned positions.
    """
    named = checkpoint_info.matcher(without)
    tensors = {name: x for name, x in tensors.items() if not named(name)}
    try:
        about = json.loads(metadata["mae_jax"])
        kind = about["kind"]
        fields = checkpoint_info.read_fields(about["fields"])
        build.model(kind, fields)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not say what model it holds: export it again") from error
    if fields.get("learned_positions"):
        separable = fields.get("separable_positions", False)
        tables = ["positions_time", "positions_space"] if separable else ["positions"]
        parts = {name.split("/")[0] for name in tensors} & {"encoder", "decoder"}
        wanted = {f"{part}/{table}" for part in parts for table in tables}
        if missing := sorted(n for n in wanted - tensors.keys() if not named(n)):
            raise ValueError(f"{', '.join(missing)} missing in {path}")
    kind, fields = checkpoint_info.kind_of_parts(kind, fields, tensors)

    def read(wanted: Abstract) -> dict[str, jax.Array]:
        return {name: checkpoint_info.place(tensors[name], leaf) for name, leaf in wanted.items()}

    embedding = tensors.get("encoder/embedding/kernel")
    values = math.prod(fields["patch"]) * (fields.get("vocab_size") or 1)
    return CheckpointInfo(
        str(path),
        kind,
        fields,
        {name: x.shape for name, x in tensors.items()},
        read,
        channels=embedding.shape[0] // values if embedding else 3,
        size=tuple(about["size"]) if about.get("size") else None,
        **{name: about.get(name) for name in ("classes", "mean", "std", "config")},
    )
