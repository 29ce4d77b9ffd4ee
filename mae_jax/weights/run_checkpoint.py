"""The checkpoints of a work directory: their best parameters, verified as they are read."""

import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util

from mae_jax.config import changes, schema
from mae_jax.data.target_scale import TargetScale
from mae_jax.models import build
from mae_jax.output import files
from mae_jax.weights import checkpoint_info, fingerprint
from mae_jax.weights.checkpoint_info import Abstract, CheckpointInfo

KINDS = {"pretrain": "MaskedAutoencoder", "classify": "Classifier", "regress": "Classifier"}


def find(path: epath.Path, step: int | None = None) -> CheckpointInfo:
    """Return the model of a work directory, with moving averages for the parameters that have one.

    Args:
      step: the step of the checkpoint; by default the newest.

    Raises:
      ValueError: there is no such checkpoint, the checkpoint is damaged, or its config is not that
        of the directory.
    """
    read_json = lambda name: files.read_json(path / name) if (path / name).exists() else {}
    stored, statistics = read_json("config.json"), read_json("statistics.json")
    if stored.get("task") not in KINDS:
        raise ValueError(f"{path} is no work directory: its config.json does not say which task")
    folder = path / "checkpoints"
    steps = ocp.utils.checkpoint_steps(folder) if folder.exists() else []
    if not steps:
        raise ValueError(f"{path} holds no checkpoint yet")
    step = max(steps) if step is None else step
    if step not in steps:
        raise ValueError(f"{path} has no step {step}: it has {', '.join(map(str, sorted(steps)))}")
    others = sorted({*steps} - {step})
    saved = _open_state(folder / str(step), others)
    targets = None
    if stored["task"] == "regress":
        try:
            targets = TargetScale.of(statistics["targets"])
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{path / 'statistics.json'} is damaged or gone, which says the names and the unit "
                "of the targets: restore the file"
            ) from error
        saved = saved._replace(scale=targets)
    changed = changes.read(path)
    config = schema.completed(changed.applied(stored), str(path / "config.json"))
    different = []
    if saved.config is not None and saved.config != stored:
        different = schema.differences(changed.applied(saved.config), config)
    if different:
        raise ValueError(
            f"{path / 'config.json'} is not that of checkpoint {step} ({'; '.join(different)}): "
            "restore the file"
        )
    kind, fields = KINDS[config["task"]], checkpoint_info.read_fields(config["model"])
    fields = {name: value for name, value in fields.items() if name in build.FIELDS[kind]}
    if kind == "Classifier":  # its BatchNorm and the scale of targets are folded into its head
        classes = saved.arrays["params/head/bias"].shape[0]
        fields |= dict(classes=classes, batch_norm=False)
    if "range" in statistics:  # measured, so that other data are seen alike
        config["data"]["range"] = statistics["range"]
    data = {key: value for key, value in config["data"].items() if value != "auto"}
    return CheckpointInfo(
        f"{path}:{step}",
        kind,
        fields,
        {name: saved.arrays[best].shape for name, best in saved.best().items()},
        saved.read,
        data["channels"],
        tuple(data["size"]),
        statistics.get("classes") or None,
        statistics.get("mean") or data.get("mean"),
        statistics.get("std") or data.get("std"),
        config,
        targets=targets,
    )


def _open_state(folder: epath.Path, others: list[int]) -> "_SavedState":
    """Return the saved training state in `folder` before its arrays are read."""
    state = folder / "state"
    if "://" not in str(state):
        state = epath.Path(os.path.abspath(state))  # orbax refuses relative paths
    way_out = f"use another step of {others}" if others else "there is no other"
    damaged = f"checkpoint {folder} cannot be read: {way_out}"
    try:
        tree: Any = ocp.PyTreeCheckpointHandler().metadata(state)
        tree = getattr(tree, "tree", tree)
        parts = {part: tree.get(part) or {} for part in ("params", "ema", "stats")}
        flat: Any = traverse_util.flatten_dict(parts, sep="/")
        arrays = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in flat.items()}
    except Exception as error:  # tensorstore and orbax raise nearly every type on damaged files
        raise ValueError(damaged) from error
    file = folder / "facts" / "metadata"
    metadata = files.read_json(file) if file.exists() else {}
    if "fingerprints" not in metadata:
        raise ValueError(f"{damaged} (it has no fingerprints: deleted, or an older version)")
    return _SavedState(state, arrays, metadata["fingerprints"], metadata.get("config"), damaged)


class _SavedState(NamedTuple):
    """The arrays of a training state on disk, each of which has a fingerprint."""

    path: epath.Path
    arrays: Abstract  # `params/...`, `ema/...` (the moving average) and `stats/...` (BatchNorm)
    fingerprints: dict[str, list[int]]
    config: dict[str, Any] | None  # of the run at this step
    damaged: str  # the message if arrays cannot be read
    scale: TargetScale | None = None  # of a regressor's targets

    def best(self) -> dict[str, str]:
        """Return the name of the best array of each parameter: its moving average if it has one."""
        names = [n for part in ("params/", "ema/") for n in self.arrays if n.startswith(part)]
        return {name.partition("/")[2]: name for name in names}

    def read(self, wanted: Abstract) -> dict[str, jax.Array]:
        """Return parameters by our names, placed as `wanted` says, the head with what it holds.

        Folded into the head are a BatchNorm before it, and the scale of the targets behind it.
        """
        best, moments = self.best(), [name for name in self.arrays if name.startswith("stats/")]
        requests = {best[name]: leaf for name, leaf in wanted.items()}
        with_head = {"head/kernel", "head/bias"} <= wanted.keys()
        if with_head and moments:
            place = wanted["head/bias"].sharding  # whole on every device, like the moments
            requests |= {name: self.arrays[name].update(sharding=place) for name in moments}
        arrays = self._restore(requests) if requests else {}
        params = {name: arrays[best[name]] for name in wanted}
        if with_head and (moments or self.scale):
            parts: Any = [params["head/kernel"], params["head/bias"]]
            parts += [arrays[f"stats/feature_norm/{name}"] for name in ("mean", "var") if moments]
            if all(x.is_fully_addressable for x in parts):  # the same bits on any mesh
                parts = [*map(np.asarray, parts)]
            head = checkpoint_info.fold_batch_norm(*parts) if moments else parts
            if self.scale:
                kernel, bias = head
                units = (np.array(x, np.float32) for x in (self.scale.mean, self.scale.std))
                head = checkpoint_info.fold_scale(kernel, bias, *units)
            for name, x in zip(("head/kernel", "head/bias"), head, strict=True):
                params[name] = jax.device_put(x, params[name].sharding)
        return params

    def _restore(self, requests: Abstract) -> dict[str, Any]:
        """Return arrays by their names on disk; verify those whose dtype does not change."""
        default = jnp.zeros(()).sharding  # that of the default device
        item = {name: x.update(sharding=x.sharding or default) for name, x in requests.items()}
        item = traverse_util.unflatten_dict(item, sep="/")
        args = ocp.checkpoint_utils.construct_restore_args(item)
        request: Any = ocp.args.PyTreeRestore(  # pyright: ignore[reportCallIssue]
            item, restore_args=args, partial_restore=True
        )
        try:
            restored = ocp.PyTreeCheckpointHandler().restore(self.path, args=request)
        except Exception as error:
            raise ValueError(self.damaged) from error
        arrays: Any = traverse_util.flatten_dict(restored, sep="/")
        same = {name: x for name, x in arrays.items() if self.arrays[name].dtype == x.dtype}
        sums, _ = fingerprint.of(same)
        if wrong := [name for name in sums if sums[name] != self.fingerprints.get(name)]:
            raise ValueError(f"{self.damaged} ({', '.join(wrong[:3])} is not what was saved)")
        return arrays
