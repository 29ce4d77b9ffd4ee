"""Files of weights, `.pth` and `.safetensors`, as named numpy arrays: torch is not needed.

Arrays are read-only views on a memory map, so only the bytes that are used are read. A `.pth` is a
pickle, which could run any code: here it can ask for a few harmless names alone.
"""

import json
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import ml_dtypes
import numpy as np

_bfloat16 = np.dtype(ml_dtypes.bfloat16)
STORAGES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": _bfloat16,
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
SAFETENSORS = {
    **{f"F{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
    **{f"I{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
    "BF16": _bfloat16,
    "BOOL": np.dtype("?"),
}
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how files of torch before 1.6 begin
HOLDS = ("model.safetensors", "pytorch_model.bin")  # in a folder; or NAME.index.json and its parts


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The named arrays of a file, or of a folder as Hugging Face's libraries write it.

    A state dict may lie under `model` or `state_dict`; what else a `.pth` holds is ignored.

    Raises:
      ValueError: the file is no such file, or is damaged, or a pickle that asks for more.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    with path.open("rb") as f:
        start = f.read(len(LEGACY))
    if not start:
        raise ValueError(f"{path} is empty")
    if start.startswith(b"PK"):
        return _read_zip(path)
    if start == LEGACY:
        return _read_legacy(path)
    if start[8:9] == b"{":
        return _read_safetensors(path)
    raise ValueError(f"{path} is neither a .pth file of PyTorch nor a .safetensors file")


def metadata(path: str | Path) -> dict[str, str]:
    """The texts that a `.safetensors` file holds beside its arrays; of other files none."""
    path = Path(path)
    if path.is_file():
        with path.open("rb") as f:
            if f.read(9)[8:] == b"{":
                return dict(_header(path)[0].get("__metadata__", {}))
    return {}


def _read_folder(folder: Path) -> dict[str, np.ndarray]:
    for name in HOLDS:
        if (folder / name).is_file():
            return read(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            try:
                parts = sorted(set(json.loads(index.read_text())["weight_map"].values()))
                files = [folder / Path(part).name for part in parts]
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise ValueError(f"{index} is damaged") from error
            if absent := [file.name for file in files if not file.is_file()]:
                raise ValueError(f"{index} names {', '.join(absent)}, which {folder} has not")
            return {name: x for file in files for name, x in read(file).items()}
    raise ValueError(f"{folder} holds neither {' nor '.join(HOLDS)}")


# --- safetensors ----------------------------------------------------------------------------------


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header, and where the bytes of the arrays begin."""
    with path.open("rb") as f:
        start = f.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < length <= path.stat().st_size - 8:
            _damaged(path, "its header is cut off")
        try:
            return dict(json.loads(f.read(length))), 8 + length
        except (ValueError, TypeError) as error:
            _damaged(path, "its header is not JSON", error)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    header, start = _header(path)
    raw, arrays = np.memmap(path, np.uint8, "r"), {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            (begin, end), shape = entry["data_offsets"], tuple(entry["shape"])
            kind = str(entry["dtype"])
            count = math.prod(shape)
        except (KeyError, TypeError, ValueError) as error:
            _damaged(path, f"{name} is not described", error)
        if kind not in SAFETENSORS:
            raise ValueError(f"{path}: {name} has the type {kind}, which is not read here")
        if not 0 <= begin <= end <= len(raw) - start:
            _damaged(path, f"{name} lies beyond its end")
        if end - begin != count * SAFETENSORS[kind].itemsize:
            _damaged(path, f"{name} has not as many bytes as its shape says")
        arrays[name] = _view(raw[start + begin : start + end], SAFETENSORS[kind], 0, shape, None)
    return arrays


# --- torch ----------------------------------------------------------------------------------------


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    count: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Inert:
    """Stands in for a class whose instances are of no use here, such as argparse.Namespace."""


class _Unpickler(pickle.Unpickler):
    """Builds tensors that know where their bytes lie, and refuses every name but a few."""

    def __init__(self, file, path: Path):
        super().__init__(file)
        self.path = path
        # Nothing of Python's own: a pickle may also set attributes of what it asks for.
        rebuild = lambda storage, offset, shape, strides, *rest: _Tensor(
            storage, offset, tuple(shape), tuple(strides)
        )
        self.globals: dict[str, Any] = {
            "collections.OrderedDict": OrderedDict,
            "argparse.Namespace": type("Namespace", (_Inert,), {}),
            "torch.Size": lambda *sides: tuple(*sides),
            "torch.device": lambda *names: None,
            "torch._utils._rebuild_tensor_v2": rebuild,
            "torch._utils._rebuild_parameter": lambda tensor, *rest: tensor,
            **{f"torch.{name}": name for name in STORAGES},
        }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.globals[f"{module}.{name}"]
        except KeyError:
            raise ValueError(
                f"{self.path} asks for {module}.{name}, which a file of weights does not need: "
                "refused, and nothing of it was run. If you trust where it comes from, save its "
                "state dict alone, with torch.save({'model': model.state_dict()}, ...)"
            ) from None

    def persistent_load(self, pid: Any) -> _Storage:
        _, kind, key, _, count, *_ = pid
        return _Storage(str(key), STORAGES[kind], int(count))


def _unpickle(file, path: Path) -> Any:
    try:
        return _Unpickler(file, path).load()
    except ValueError as error:
        if "asks for" in str(error):
            raise
        _damaged(path, "its pickle cannot be read", error)
    except Exception as error:  # damaged pickles raise nearly every type
        _damaged(path, "its pickle cannot be read", error)


def _read_zip(path: Path) -> dict[str, np.ndarray]:
    """The format of torch since 1.6: a pickle, and each storage as an uncompressed member."""
    raw = np.memmap(path, np.uint8, "r")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
                raise ValueError(f"{path} is a compressed zip file, which PyTorch does not write")
            if "data.pkl" not in members:
                raise ValueError(f"{path} is a zip file, but not one of PyTorch's weights")
            if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
                raise ValueError(
                    f"{path} was written on a big-endian machine: re-save it on another"
                )
            with archive.open(members["data.pkl"]) as f:
                state = _unpickle(f, path)
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        _damaged(path, "its zip directory cannot be read", error)

    def storage(key: str) -> np.ndarray:
        info = members[f"data/{key}"]
        start = info.header_offset
        name, extra = struct.unpack("<HH", raw[start + 26 : start + 30].tobytes())
        start += 30 + name + extra
        return raw[start : start + info.file_size]

    return _arrays(path, state, storage)


def _read_legacy(path: Path) -> dict[str, np.ndarray]:
    """The format before: pickles one after the other, then the count and bytes of each storage."""
    raw = np.memmap(path, np.uint8, "r")
    with path.open("rb") as f:
        for _ in range(3):  # a magic number, the version, the machine
            _unpickle(f, path)
        state, keys, start = _unpickle(f, path), _unpickle(f, path), f.tell()
    starts, sizes = {}, {storage.key: storage.dtype.itemsize for storage in _storages(state)}
    for key in keys:
        count = int.from_bytes(raw[start : start + 8].tobytes(), "little")
        if key not in sizes:  # of nothing that is read; its size is unknown
            break
        starts[key] = start + 8, start + 8 + count * sizes[key]
        start = starts[key][1]
    return _arrays(path, state, lambda key: raw[slice(*starts[key])])


def _storages(state: Any):
    if isinstance(state, _Tensor):
        yield state.storage
    elif isinstance(state, dict | list) or type(state) is tuple:
        for part in state.values() if isinstance(state, dict) else state:
            yield from _storages(part)
    elif isinstance(state, _Inert):
        yield from _storages(vars(state))


def _arrays(path: Path, state: Any, storage) -> dict[str, np.ndarray]:
    """The tensors of a state dict as views on the bytes of their storages."""
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    tensors = state.items() if isinstance(state, dict) else ()
    tensors = {str(name): x for name, x in tensors if isinstance(x, _Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no state dict, neither as it is nor under 'model'")
    arrays = {}
    for name, tensor in tensors.items():
        try:
            kind = tensor.storage.dtype
            buffer = storage(tensor.storage.key)[: tensor.storage.count * kind.itemsize]
            steps = tuple(step * kind.itemsize for step in tensor.strides)
            arrays[name] = _view(buffer, kind, tensor.offset * kind.itemsize, tensor.shape, steps)
        except (KeyError, TypeError, ValueError, AttributeError, struct.error) as error:
            _damaged(path, f"the values of {name} are not all in it", error)
    return arrays


def _view(buffer, dtype, offset, shape, strides) -> np.ndarray:
    """A read-only view; numpy raises ValueError where it would reach beyond the buffer."""
    if math.prod(shape) == 0:
        return np.zeros(shape, dtype)
    return np.ndarray(shape, dtype, buffer, offset, strides)


def _damaged(path: Path, how: str, error: Exception | None = None) -> NoReturn:
    raise ValueError(f"{path} is damaged: {how}; fetch or copy it again") from error
