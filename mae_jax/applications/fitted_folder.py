"""A folder with a model and what was fitted with it, such as a detector or an index.

`model.safetensors` is a file that `mae_jax.load` reads, `arrays.safetensors` holds what was fitted,
and `KIND.json` the rest: how inputs are shown to the model, and the SHA-256 of the other files.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from etils import epath
from flax import traverse_util

import mae_jax
from mae_jax.data import image_io
from mae_jax.distributed import device_mesh
from mae_jax.evaluators.held_out import EvalTransform
from mae_jax.evaluators.loaded_model import LoadedModel
from mae_jax.output import files
from mae_jax.weights import export, load, tensor_files

MODEL, ARRAYS = "model.safetensors", "arrays.safetensors"


class Fitted(NamedTuple):
    """What was fitted, and the model that it was fitted with."""

    loaded: LoadedModel
    arrays: dict[str, np.ndarray]
    about: dict[str, Any]  # what JSON holds; its lists come back as tuples


def write(path: str, kind: str, fitted: Fitted, overwrite: bool = False) -> None:
    """Write a folder, whole or not at all.

    Raises:
      ValueError: something else lies there, or no checkpoint describes the model.
    """
    check_place(path, kind, overwrite)
    loaded, transform = fitted.loaded, fitted.loaded.transform
    if loaded.info is None:
        raise ValueError(
            f"a {kind} of a model that no checkpoint describes cannot be written: give the path of "
            "the checkpoint in place of the model"
        )
    flat = traverse_util.flatten_dict(loaded.params, sep="/")
    params = {name: np.asarray(x) for name, x in flat.items()}
    info = loaded.info._replace(size=transform.size, shapes={n: x.shape for n, x in params.items()})
    data = {name: x for name, x in dict(transform.data).items() if name not in ("train", "test")}
    Path(path).absolute().parent.mkdir(parents=True, exist_ok=True)
    with files.whole(path) as folder:
        folder.mkdir()
        export.write_mae_jax(folder / MODEL, info, params)
        arrays = {name: np.ascontiguousarray(x) for name, x in fitted.arrays.items()}
        (folder / ARRAYS).write_bytes(safetensors.numpy.save(arrays))
        digests = {name: _digest(folder / name) for name in (MODEL, ARRAYS)}
        shown = dict(data=data, mean=list(transform.mean), std=list(transform.std))
        text = dict(inputs=shown, about=fitted.about)
        text = dict(mae_jax=mae_jax.__version__, kind=kind, sha256=digests, **text)
        digests["json"] = _digest_of(text)
        files.write_json(str(folder / f"{kind}.json"), text)


def check_place(path: str, kind: str, overwrite: bool) -> None:
    """Raise ValueError if a folder of this kind cannot take its place."""
    target = Path(path)
    if target.exists() and not (is_folder(path, kind) and overwrite):
        way = "--overwrite" if is_folder(path, kind) else "another place, as it is none of these"
        raise ValueError(f"{path} exists already: give another --to, or {way}")


def is_folder(path: str, kind: str) -> bool:
    """Return whether a folder of this kind lies at a path."""
    return (Path(path) / f"{kind}.json").is_file()


def read(path: str, kind: str, threads: int = 16) -> Fitted:
    """Return what lies in a folder, with its parameters on all devices.

    Raises:
      ValueError: there is no such folder, or it is damaged.
    """
    if not is_folder(path, kind):
        raise ValueError(f"{path!r} is no {kind}, as it has no {kind}.json: give the path of one")
    image_io.configure_libraries()
    folder = Path(path)
    text = files.read_json(epath.Path(folder / f"{kind}.json"))
    try:
        digests, shown, about = text["sha256"], text["inputs"], text["about"]
        data, mean, std = shown["data"], tuple(shown["mean"]), tuple(shown["std"])
        digest = digests.pop("json")
        wrong = [] if _digest_of(text) == digest else [f"{kind}.json"]
        wrong += [name for name in (MODEL, ARRAYS) if _digest(folder / name) != digests[name]]
    except OSError as error:
        name = Path(error.filename or path).name
        raise ValueError(f"{path} is damaged: {name} cannot be read; make it again") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): make it again") from error
    if wrong:
        raise ValueError(f"{path} is damaged: {wrong[0]} is not what was written; make it again")
    try:
        arrays = safetensors.numpy.load_file(folder / ARRAYS)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged ({ARRAYS}: {error}): make it again") from error
    transform = EvalTransform(_tuples(data) | {"threads": threads}, mean, std)
    info, mesh = load.find(str(folder / MODEL)), device_mesh.make_mesh()
    params = load.parameters(info, size=transform.size, mesh=mesh)
    loaded = LoadedModel(info.model, params, transform, mesh, info)
    return Fitted(loaded, arrays, _tuples(about))


def _digest_of(values: dict[str, Any]) -> str:
    """Return the SHA-256 of values as JSON, without their own digest."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    return tensor_files.sha256_of(epath.Path(path))


def _tuples(values: Any) -> Any:
    """Return values from JSON with tuples for lists, as the sections of a config have them."""
    if isinstance(values, dict):
        return {name: _tuples(x) for name, x in values.items()}
    return tuple(map(_tuples, values)) if isinstance(values, list) else values
