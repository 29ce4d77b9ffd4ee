"""The best parameters of a work directory, before any of them is read."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util

from mae_jax.config import schema
from mae_jax.models import build
from mae_jax.weights import checkpoint_info, fingerprint


def in_work_directory(
    path: epath.Path, step: int | None = None, without: str = ""
) -> checkpoint_info.Found:
    """The best parameters of a checkpoint: the moving average of those that have one."""
    import orbax.checkpoint as ocp  # here: files need none of these

    config = checkpoint_info.read_json(path / "config.json")
    if config.get("task") not in ("pretrain", "classify"):
        raise ValueError(f"{path} is no work directory: its config.json does not say which task")
    config = schema.completed(config)
    folder = path / "checkpoints"
    steps = sorted(ocp.utils.checkpoint_steps(folder)) if folder.exists() else []
    if not steps:
        raise ValueError(f"{path} holds no checkpoint yet")
    step = steps[-1] if step is None else step
    if step not in steps:
        raise ValueError(f"{path} has no step {step}: it has {', '.join(map(str, steps))}")
    state, handler = folder / str(step) / "state", ocp.PyTreeCheckpointHandler()
    if "://" not in str(state):
        state = epath.Path(os.path.abspath(state))  # orbax refuses relative paths
    others = [other for other in steps if other != step]
    way = f"use another step of {others}" if others else "there is no other"
    damaged = f"checkpoint {folder / str(step)} cannot be read: {way}"
    try:
        tree: Any = handler.metadata(state)
        tree = getattr(tree, "tree", tree)
        on_disk: checkpoint_info.Abstract = {
            f"{part}/{name}": jax.ShapeDtypeStruct(x.shape, x.dtype)
            for part in ("params", "ema", "stats")
            for name, x in _flat(tree.get(part)).items()
        }
    except Exception as error:  # tensorstore and orbax raise nearly every type on damaged files
        raise ValueError(damaged) from error
    facts = checkpoint_info.read_json(folder / str(step) / "facts" / "metadata")
    expected = facts.get("fingerprints")
    if expected is None:
        raise ValueError(f"{damaged} (it has no fingerprints: deleted, or an older version)")
    if different := schema.differences(facts.get("config", config), config):
        raise ValueError(
            f"{path / 'config.json'} is not that of checkpoint {step} ({'; '.join(different)}): "
            "put back what was there"
        )
    statistics = checkpoint_info.read_json(path / "statistics.json")
    place_of = {  # the average comes last, and so wins
        name.partition("/")[2]: name for name in on_disk if not name.startswith("stats/")
    }
    named = checkpoint_info.matcher(without)
    params = {n: on_disk[at] for n, at in place_of.items() if not named(n)}

    fields = {build.OLD_NAMES.get(name, name): x for name, x in config["model"].items()}
    fields = {name: checkpoint_info.tuples(x) for name, x in fields.items()}
    kind = "Classifier" if config["task"] == "classify" else "MaskedAutoencoder"
    fields = {name: x for name, x in fields.items() if name in build.FIELDS[kind]}
    if kind == "Classifier":
        fields |= dict(classes=on_disk["params/head/bias"].shape[0], batch_norm=False)
    kind, fields = checkpoint_info.reduced(kind, fields, params)

    def restore(wanted: checkpoint_info.Abstract) -> dict[str, Any]:
        args = {
            name: ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
            if leaf.sharding is None
            else ocp.ArrayRestoreArgs(
                sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype
            )
            for name, leaf in wanted.items()
        }
        nested = lambda flat: traverse_util.unflatten_dict(flat, sep="/")
        request: Any = ocp.args.PyTreeRestore(  # pyright: ignore[reportCallIssue]
            item=nested(wanted), restore_args=nested(args), partial_restore=True
        )
        try:
            return traverse_util.flatten_dict(handler.restore(state, args=request), sep="/")
        except Exception as error:
            raise ValueError(damaged) from error

    def read(wanted: checkpoint_info.Abstract) -> dict[str, jax.Array]:
        where = {place_of[name]: leaf for name, leaf in wanted.items()}
        moments = [name for name in on_disk if name.startswith("stats/")]
        folded = moments and any(name.startswith("head/") for name in wanted)
        if folded:
            bias = wanted["head/bias"]  # on every device, as these
            leaf = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=bias.sharding)
            where |= {name: leaf(on_disk[name]) for name in moments}
        arrays = restore(where) if where else {}
        same = {n: x for n, x in arrays.items() if on_disk[n].dtype == x.dtype}  # none is cut here
        sums, _ = fingerprint.of(same)
        if wrong := [name for name in sums if sums[name] != expected.get(name)]:
            raise ValueError(f"{damaged} ({', '.join(wrong[:3])} is not what was saved)")
        read = {name: arrays[place_of[name]] for name in wanted}
        if folded:
            mean, var = (arrays[f"stats/feature_norm/{name}"] for name in ("mean", "var"))
            head = checkpoint_info.fold(read["head/kernel"], read["head/bias"], mean, var)
            read |= dict(zip(("head/kernel", "head/bias"), head, strict=True))
        return {name: _put(x, wanted[name].sharding) for name, x in read.items()}

    data = {name: x for name, x in config["data"].items() if x != "auto"}
    return checkpoint_info.Found(
        f"{path}:{step}",
        kind,
        fields,
        params,
        read,
        data["channels"],
        tuple(data["size"]),
        statistics.get("classes") or None,
        statistics.get("mean") or data.get("mean"),
        statistics.get("std") or data.get("std"),
        config,
        step,
    )


def _put(x: Any, place: Any) -> jax.Array:
    return jnp.asarray(x) if place is None else jax.device_put(x, place)


def _flat(tree: Any) -> dict[str, Any]:
    return traverse_util.flatten_dict(tree, sep="/") if isinstance(tree, dict) else {}
