"""Read the tensors of a `.pth` file without PyTorch, and without running anything that is in it.

A `.pth` file is a pickle, and a pickle can call any function. The unpickler of this module knows
the few names that a file of weights needs, of which most have a stand-in that does nothing, and
refuses every other name. The arrays are read-only
views of a memory map, so that only the parts of the file that are used are read.
"""

import io
import math
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

import ml_dtypes
import numpy as np

from mae_jax.weights import stand_ins, wrappers

_CODES = dict(Double="<f8", Float="<f4", Half="<f2", BFloat16=ml_dtypes.bfloat16)
_CODES |= dict(Long="<i8", Int="<i4", Short="<i2", Char="i1", Byte="u1", Bool="?")
STORAGES = {f"{name}Storage": np.dtype(code) for name, code in _CODES.items()}
ZIP = b"PK"
DEEPEST = 1000  # tuples in tuples
ARGUMENTS = ("args", "hyper_parameters", "opt")  # where files hold those of a command line
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how files of PyTorch before 1.6 begin


def read(path: Path, key: str = "") -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays of a state dict, and the plain values of the arguments of its training.

    Args:
      key: the place of the state dict, such as "model_ema" or "state.model"; by default that of
        `wrappers.choose`.

    Raises:
      ValueError: the file is damaged, holds no such state dict, or asks for more than tensors.
    """
    raw = np.memmap(path, np.uint8, "r")
    is_legacy = raw[: len(LEGACY)].tobytes() == LEGACY
    tree, storage_bytes = (_open_legacy if is_legacy else _open_zip)(path, raw)
    tree = tree if isinstance(tree, dict) else {}
    state_dicts = wrappers.state_dicts(tree, _Tensor)
    arrays = {}
    for name, tensor in state_dicts[wrappers.choose(path, state_dicts, key)].items():
        try:
            arrays[name] = _view(tensor, storage_bytes(tensor.key), len(raw))
        except Exception as error:  # the file chooses the values of all numbers
            damaged(path, f"the values of {name} are not all in it", error)
    arguments = [stand_ins.plain_values(tree[name]) for name in ARGUMENTS if name in tree]
    return arrays, next(filter(None, arguments), {})


def damaged(path: Path, reason: str, error: Exception | None = None) -> NoReturn:
    raise ValueError(f"{path} is damaged: {reason}; fetch or copy it again") from error


class _Tensor(NamedTuple):
    key: str  # of its storage, which several tensors may share
    dtype: np.dtype
    count: int  # of the values in the storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild(storage: tuple, offset: int, shape: tuple, strides: tuple, *rest: Any) -> _Tensor:
    """Return the place of a tensor, as PyTorch's `_rebuild_tensor_v2` makes the tensor."""
    if any(type(x) is not tuple for x in (storage, shape, strides)):
        raise ValueError("a shape is no tuple")
    if any(type(x) is not int for x in (offset, *shape, *strides)):
        raise ValueError("a shape is not of numbers")
    return _Tensor._make((*storage, offset, shape, strides))


class _Unpickler(pickle.Unpickler):
    """An unpickler that finds where the bytes of tensors are, and refuses all but a few names."""

    def __init__(self, file: BinaryIO, path: Path):
        super().__init__(file)
        self.path, self.dtypes = path, {}
        # A pickle may set attributes of a function, so these are made anew.
        self.globals: dict[str, Any] = stand_ins.table() | {
            "torch.Size": lambda sides=(): sides,
            "torch._utils._rebuild_tensor_v2": lambda *arguments: _rebuild(*arguments),
            "torch._utils._rebuild_parameter": lambda tensor, *rest: tensor,
            "torch._utils._rebuild_parameter_with_state": lambda tensor, *rest: tensor,
            **{f"torch.{name}": name for name in STORAGES},
        }

    def find_class(self, module: str, name: str) -> Any:
        module = "builtins" if module == "__builtin__" else module  # as Python 2 called it
        try:
            return self.globals[f"{module}.{name}"]
        except KeyError:
            raise _Refused(
                f"{self.path} asks for {module}.{name}, which a file of weights does not need: "
                "refused, and nothing of it was run. If you trust where it comes from, save its "
                "state dict alone, with torch.save({'model': model.state_dict()}, ...)"
            ) from None

    def persistent_load(self, pid: Any) -> tuple[str, np.dtype, int]:
        _, kind, key, _, count, *_ = pid
        self.dtypes[str(key)] = STORAGES[kind]
        return str(key), STORAGES[kind], int(count)


class _Refused(ValueError):
    """The error for a name that a pickle is not allowed to ask for."""


def _unpickle(file: BinaryIO, path: Path) -> tuple[Any, dict[str, np.dtype]]:
    """Return the next object of a pickle file, and the types of its storages by their keys."""
    start = file.tell()
    try:
        _check_opcodes(file, path.stat().st_size)
        file.seek(start)
        unpickler = _Unpickler(file, path)
        return unpickler.load(), unpickler.dtypes
    except _Refused:
        raise
    except Exception as error:  # damaged pickles raise nearly every type
        damaged(path, "its pickle cannot be read", error)


def _check_opcodes(file: BinaryIO, size: int) -> None:
    """Raise ValueError for a pickle that would exhaust the memory or the stack of the interpreter.

    The memo is a table as long as its largest index, which a hostile pickle chooses. The hash of
    nested tuples, as the keys of a dict need it, calls itself for each level without a limit.
    """
    depths, memo = [], {}  # how many tuples are nested in each object; -1 is a mark
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name.endswith("PUT") and int(argument or 0) > size:
            raise ValueError(f"memo index {argument}")
        if opcode.name.endswith(("PUT", "MEMOIZE")):
            memo[len(memo) if argument is None else int(argument)] = depths[-1]
        elif opcode.name.endswith("GET"):
            depths.append(memo[int(argument or 0)])
        elif opcode.name == "MARK":
            depths.append(-1)
        else:
            taken, below = [0], len(opcode.stack_before)
            if pickletools.markobject in opcode.stack_before:
                below = opcode.stack_before.index(pickletools.markobject)
                while (depth := depths.pop()) >= 0:
                    taken.append(depth)
            taken += [depths.pop() for _ in range(below)]
            depth = max(taken) + opcode.name.startswith("TUPLE")
            if depth > DEEPEST:
                raise ValueError(f"{depth} nested tuples")
            depths += [depth] * len(opcode.stack_after)


def _open_zip(path: Path, raw: np.ndarray) -> tuple[Any, Callable[[str], np.ndarray]]:
    """Open the format since PyTorch 1.6: a pickle, and each storage as an uncompressed member.

    Returns:
      The unpickled object, and a function from the key of a storage to its bytes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
                raise ValueError(f"{path} is a compressed zip file, which PyTorch does not write")
            if "data.pkl" not in members:
                raise ValueError(f"{path} is a zip file, but not one of PyTorch's weights")
            if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
                raise ValueError(f"{path} is of a big-endian machine: re-save it on another")
            state, _ = _unpickle(io.BytesIO(archive.read(members["data.pkl"])), path)
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        damaged(path, "its zip directory cannot be read", error)

    def storage_bytes(key: str) -> np.ndarray:
        info = members[f"data/{key}"]
        sizes = info.header_offset + 26  # where the sizes of a name and of an extra field are
        start = sizes + 4 + sum(struct.unpack("<HH", raw[sizes : sizes + 4].tobytes()))
        return raw[start : start + info.file_size]

    return state, storage_bytes


def _open_legacy(path: Path, raw: np.ndarray) -> tuple[Any, Callable[[str], np.ndarray]]:
    """Open the format before: several pickles, then the count and the bytes of each storage."""
    with path.open("rb") as file:
        for _ in range(3):  # a magic number, the version, the machine
            _unpickle(file, path)
        (state, dtypes), (keys, _) = _unpickle(file, path), _unpickle(file, path)
        start = file.tell()
    places = {}
    try:
        for key in keys:
            count = int.from_bytes(raw[start : start + 8].tobytes(), "little")
            places[key] = slice(start + 8, start + 8 + count * dtypes[key].itemsize)
            start = places[key].stop
    except (TypeError, KeyError) as error:
        damaged(path, "its list of storages cannot be read", error)
    return state, lambda key: raw[places[key]]


def _view(tensor: _Tensor, buffer: np.ndarray, most: int) -> np.ndarray:
    """Return a read-only view of at most `most` bytes; raise ValueError if it leaves the buffer."""
    shape, dtype, size = tensor.shape, tensor.dtype, tensor.dtype.itemsize
    if math.prod(shape) == 0:
        return np.zeros(shape, dtype)
    if math.prod(shape) * size > most:  # strides of 0 make any shape of a few bytes
        raise ValueError(f"shape {shape}")
    strides = tuple(step * size for step in tensor.strides)
    return np.ndarray(shape, dtype, buffer[: tensor.count * size], tensor.offset * size, strides)
