"""What stands in for the objects that lie beside the weights in a pickle, such as paths.

None of these does anything, whatever a pickle calls it with. None copies what it is given, since a
pickle of a few bytes can give one large object again and again.
"""

from collections import OrderedDict
from typing import Any

import numpy as np

INERT = {  # module: names
    "argparse": "Namespace",
    "builtins": "bool bytearray bytes complex dict float frozenset int list long object range set "
    "slice str tuple xrange",
    "collections": "deque",
    "datetime": "date datetime time timedelta timezone",
    "numpy": "bool bool_ float16 float32 float64 int32 int64 ndarray uint8",
    "numpy.core.multiarray": "_reconstruct",
    "numpy._core.multiarray": "_reconstruct",
    "numpy.core.numeric": "_frombuffer",
    "numpy._core.numeric": "_frombuffer",
    "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "pathlib._local": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "torch": "bfloat16 bool complex64 complex128 device float16 float32 float64 int8 int16 int32 "
    "int64 uint8",
    "torchvision.transforms.functional": "InterpolationMode",
    "types": "SimpleNamespace",
}
DICTIONARIES = {
    "collections": "Counter OrderedDict defaultdict",
    "lightning.fabric.utilities.data": "AttributeDict",
    "lightning.pytorch.utilities.parsing": "AttributeDict",
    "lightning_fabric.utilities.data": "AttributeDict",
    "pytorch_lightning.utilities.parsing": "AttributeDict",
}
NUMBERS = ("b1", "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
PLAIN = (str, int, float, bool, type(None))
LONGEST = 64  # of the lists among the values of arguments


class Inert:
    """An object that a pickle may make of anything, and of which only the state is kept."""

    state: Any = None

    def __init__(self, *arguments: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    extend = add = append


class Dictionary(OrderedDict):
    """A dict of any kind, with the items that a pickle sets."""

    def __init__(self, items: Any = ()):
        super().__init__()
        if type(items) is list:  # of pairs, as Python 2 writes an OrderedDict: moved, not copied
            self.update(items)
            items.clear()

    def __setstate__(self, state: Any) -> None:
        pass


class DType(Inert):
    """The type of a numpy scalar, of which the state says the byte order."""

    code: Any = None

    def __init__(self, code: Any = None, *flags: Any):
        self.code = code


def table() -> dict[str, Any]:
    """Return the stand-ins by the names of what they stand in for.

    A pickle may set attributes of functions, but not of classes with `__setstate__`. So the
    functions are made anew.
    """
    stand_ins: dict[str, Any] = {
        f"{module}.{name}": base
        for base, modules in ((Inert, INERT), (Dictionary, DICTIONARIES))
        for module, names in modules.items()
        for name in names.split()
    }
    stand_ins["numpy.dtype"] = DType
    stand_ins["_codecs.encode"] = lambda *arguments: _encode(*arguments)
    for core in ("core", "_core"):
        stand_ins[f"numpy.{core}.multiarray.scalar"] = lambda *arguments: _scalar(*arguments)
    return stand_ins


def _encode(text: Any, encoding: Any = "latin1") -> bytes | Inert:
    """Return the bytes of a scalar, which protocol 2 writes as text, but no longer ones."""
    return text.encode("latin1") if type(text) is str and len(text) <= 8 else Inert()


def _scalar(dtype: Any, data: Any = b"") -> int | float | bool | Inert:
    """Return a numpy scalar as a number, if it is one."""
    code, order = getattr(dtype, "code", None), getattr(dtype, "state", None)
    if code not in NUMBERS or type(data) is not bytes or type(order) is not tuple:
        return Inert()
    return np.frombuffer(data, (">" if order[1] == ">" else "<") + code)[0].item()


def plain_values(arguments: Any) -> dict[str, Any]:
    """Return the strings, numbers, None and short lists of these or of lists of these."""
    values = arguments.state if isinstance(arguments, Inert) else arguments
    return {
        name: value
        for name, value in (values.items() if isinstance(values, dict) else ())
        if type(name) is str and (type(value) in PLAIN or _is_short_list(value))
    }


def _is_short_list(value: Any, deepest: int = 2) -> bool:
    if type(value) not in (list, tuple) or len(value) > LONGEST or not deepest:
        return False
    return all(type(item) in PLAIN or _is_short_list(item, deepest - 1) for item in value)
