"""The `.safetensors` files of this project: our names, and a description of the model as JSON."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mae_jax.data.target_scale import TargetScale
from mae_jax.models import build
from mae_jax.weights import checkpoint_info
from mae_jax.weights.checkpoint_info import CheckpointInfo
from mae_jax.weights.tensor_files import Tensor

UNNAMED = {"dtype", "batch_norm", "head_std"}  # fields that no parameter depends on
# Keys of the sections of data and of evaluators that say where examples are, and how many.
PLACES = {"train", "test", "source", "split", "examples", "threads", "every", "batch_size"}
STATISTICS = ("classes", "mean", "std")  # fields of a `CheckpointInfo` that are the same in JSON


def describe(info: CheckpointInfo) -> dict[str, str]:
    """Return the metadata of a file, from which `find` recognises the model."""
    names = build.FIELDS[info.kind] - UNNAMED
    description: dict[str, Any] = {
        "kind": info.kind,
        "fields": {name: value for name, value in info.fields.items() if name in names},
        **{name: getattr(info, name) for name in ("size", *STATISTICS)},
    }
    if info.targets:
        description["targets"] = info.targets._asdict()
    config = info.config or {}  # how examples are read and masked, but not where they are
    if data := {key: value for key, value in config.get("data", {}).items() if key not in PLACES}:
        names = ("seed", "mask", "loss", "evaluate")
        kept = {name: config[name] for name in names if name in config}
        evaluators = {
            name: {key: value for key, value in entry.items() if key not in PLACES}
            for name, entry in config.get("evaluators", {}).items()
        }
        description["config"] = kept | {"data": data, "evaluators": evaluators}
    return {"mae_jax": json.dumps(description)}  # one key, as safetensors shuffles several


def find(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> CheckpointInfo:
    """Return the model in a file with the metadata of `describe`.

    Raises:
      ValueError: the file does not describe its model.
    """
    try:
        description = json.loads(metadata["mae_jax"])
        fields = checkpoint_info.read_fields(description["fields"])
        build.model(description["kind"], fields)
        size = tuple(description["size"]) if description.get("size") else None
        targets = description.get("targets")
        targets = TargetScale.of(targets) if targets else None
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not say what model it holds: export it again") from error
    embedding = tensors.get("encoder/embedding/kernel")
    values = math.prod(fields["patch"]) * (fields.get("vocab_size") or 1)
    return CheckpointInfo(
        str(path),
        description["kind"],
        fields,
        {name: x.shape for name, x in tensors.items()},
        lambda wanted: {n: checkpoint_info.place(tensors[n], leaf) for n, leaf in wanted.items()},
        embedding.shape[0] // values if embedding else 3,
        size,
        config=description.get("config"),
        targets=targets,
        **{name: description.get(name) for name in STATISTICS},
    )
