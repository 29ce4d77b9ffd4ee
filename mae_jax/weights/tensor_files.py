"""Files of named arrays: `.safetensors`, PyTorch's `.pth`, and Hugging Face's folders of these."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
from etils import epath

from mae_jax.weights import torch_pickle

READABLE = {"BOOL", "BF16", "F16", "F32", "F64", "I8", "I16", "I32", "I64", "U8", "U16", "U32"}
IN_FOLDER = ("model.safetensors", "pytorch_model.bin")  # or NAME.index.json and its parts
INDEX = ".index.json"


class Tensor(NamedTuple):
    """An array in a file, of which an index of slices reads only the part that it names."""

    shape: tuple[int, ...]
    values: Any  # any object that a tuple of slices can index

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        return self.values[index]

    def read(self) -> np.ndarray:
        return self[(slice(None),) * len(self.shape)]


class _Computed:
    """The values of a tensor that is computed from others when it is read."""

    def __init__(self, function: Callable[..., np.ndarray], sources: tuple[Tensor, ...]):
        self.function, self.sources = function, sources

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        return self.function(*(tensor.read() for tensor in self.sources))[index]


def compute(function: Callable[..., np.ndarray], *sources: Tensor) -> Tensor:
    """Return `function` of the arrays of `sources`, which is computed only when it is read."""
    shape = function(*(stand_in(tensor.shape) for tensor in sources)).shape
    return Tensor(shape, _Computed(function, sources))


def stand_in(shape: tuple[int, ...]) -> np.ndarray:
    """Return an array of zeros that takes no memory."""
    return np.broadcast_to(np.float32(0), shape)


class TensorFile(NamedTuple):
    """What a file or a folder holds."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]  # of a `.safetensors` file
    args: dict[str, Any]  # plain values of the arguments of training, in a `.pth` file


def open_tensors(path: Path, key: str = "") -> TensorFile:
    """Return the named arrays of a file or a folder, and what lies beside them.

    Args:
      key: of the state dict in a `.pth` file that holds several, see `wrappers.choose`.

    Raises:
      ValueError: the file is damaged, of another kind, or not to be trusted, or has no such key.
    """
    if path.is_dir():
        parts = [open_tensors(file, key) for file in _files_of(path)]
        tensors = {name: x for part in parts for name, x in part.tensors.items()}
        return TensorFile(tensors, {}, parts[0].args)
    with path.open("rb") as file:
        start = file.read(len(torch_pickle.LEGACY))
    if not start:
        raise ValueError(f"{path} is empty")
    if start.startswith((torch_pickle.ZIP, torch_pickle.LEGACY)):
        arrays, args = torch_pickle.read(path, key)
        return TensorFile({name: Tensor(x.shape, x) for name, x in arrays.items()}, {}, args)
    if start.startswith(b"version https"):
        raise ValueError(f"{path} is a pointer of Git LFS, not the file: run git lfs pull")
    if start[8:9] != b"{":
        raise ValueError(f"{path} is neither a .pth file of PyTorch nor a .safetensors file")
    if key:
        raise ValueError(f"{path} is a .safetensors file, which has no keys: leave key= out")
    try:
        file = safetensors.safe_open(path, "np")
    except safetensors.SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        torch_pickle.damaged(path, f"its header cannot be used ({reason})", error)
    slices = {name: file.get_slice(name) for name in file.keys()}
    for name, values in slices.items():
        if (dtype := values.get_dtype()) not in READABLE:
            raise ValueError(f"{path}: {name} has the type {dtype}, which is not one of weights")
    tensors = {name: Tensor(tuple(values.get_shape()), values) for name, values in slices.items()}
    return TensorFile(tensors, file.metadata() or {}, {})


def sha256_of(path: epath.Path) -> str:
    """Return the SHA-256, in hexadecimal, of a file or of the only file of weights of a folder."""
    if path.is_dir():
        weights = _files_of(Path(path))
        if len(weights) > 1:
            raise ValueError(f"{path} has several files of weights: sha256= is of a single file")
        path = epath.Path(weights[0])
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]


def _files_of(folder: Path) -> list[Path]:
    """Return the files of the first name in `IN_FOLDER` that the folder has."""
    for name in IN_FOLDER:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}{INDEX}"
        if index.is_file():
            files = [folder / part for part in parts(index)]
            if absent := [file.name for file in files if not file.is_file()]:
                raise ValueError(f"{index} names {', '.join(absent)}, which {folder} does not have")
            return files
    raise ValueError(f"{folder} holds neither {' nor '.join(IN_FOLDER)}")


def parts(index: Path) -> list[str]:
    """Return the names of the files that an index names, which lie beside it."""
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
        return sorted({Path(name).name for name in names})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{index} is damaged") from error
