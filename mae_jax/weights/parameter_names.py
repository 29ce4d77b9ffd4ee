"""Parameters under the names of other code and under the names of this project.

Names of this project are flat, such as `encoder/block_3/attention/query/kernel`. In tables of
names, `#` stands for the number of a block.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mae_jax.weights import tensor_files
from mae_jax.weights.tensor_files import Tensor

Names = dict[str, str]
Fields = dict[str, Any]  # of a model, see `build.FIELDS`
Tensors = dict[str, Tensor]
QKV = ("query", "key", "value")
PACKED = {"qkv": QKV, "kv": QKV[1:]}  # matrices that hold several of ours


class Known(NamedTuple):
    """What is known of a model before its parameters are read."""

    path: Path
    patch: tuple[int, ...]
    channels: int
    args: Mapping[str, Any]  # of the command line of its training, if the file holds them
    fields: Mapping[str, Any]  # that the user gives


def unchanged(params: Tensors, known: Known) -> tuple[Tensors, Fields]:
    return params, {}


@dataclasses.dataclass(frozen=True)
class Family:
    """How one code base names the parameters of its models, and how its models differ from ours.

    Args:
      title: the name of the code base.
      names: ours -> theirs, in the style of PyTorch: of modules, which have a weight and a bias, or
        of tensors. Our `attention/qkv` is one matrix for query, key and value, and so is `kv`.
      marks: expressions of names by which the files are recognised; one of them is enough.
      adapt: a function that turns parameters with our names into exactly those that our networks
        have, and returns the fields of the model that the names alone do not tell.
      aliases: expressions for other spellings -> those of `names`.
      model_types: in the config.json of a folder.
      eps: of the LayerNorms, unless a config.json has another.
      decoder_heads: width of the decoder -> heads, of the published models.
      norm_pix: whether targets are normalised, unless something says it.
    """

    title: str
    names: Names
    marks: tuple[str, ...]
    adapt: Callable[[Tensors, Known], tuple[Tensors, Fields]] = unchanged
    aliases: tuple[tuple[str, str], ...] = ()
    model_types: tuple[str, ...] = ()
    eps: float = 1e-6
    decoder_heads: Mapping[int, int] = dataclasses.field(default_factory=lambda: {512: 16})
    norm_pix: bool = True

    def canonical(self, name: str) -> str:
        """Return a parameter's name in the spelling of `names`."""
        for pattern, new in self.aliases:
            name = re.sub(pattern, new, name)
        return name

    def recognises(self, names: Iterable[str]) -> bool:
        """Return whether a file with these names is of this family."""
        marks = re.compile("|".join(self.marks))
        return any(marks.search(name) or marks.search(self.canonical(name)) for name in names)

    def is_embedding(self, name: str) -> bool:
        """Return whether a tensor is a convolution that embeds patches."""
        module, _, leaf = _without_number(self.canonical(name))[0].rpartition(".")
        own = (self.names.get("encoder/embedding"), self.names.get("encoder/embedding_#"))
        return leaf == "weight" and module in own

    def ours(self, tensors: Mapping[str, Tensor]) -> Tensors:
        """Return tensors under our names and in our shapes, read only when they are needed."""
        params = {}
        for name, tensor in tensors.items():
            read = lambda x, name=name: from_format({name: x}, self)
            for own in read(tensor_files.stand_in(tensor.shape)):
                params[own] = tensor_files.compute(
                    lambda x, own=own, read=read: read(x)[own], tensor
                )
        return params


def with_blocks(names: Names, block: Names, encoder: str, decoder: str) -> Names:
    """Return `names` with the names in the blocks of the encoder and of the decoder."""
    return names | {
        f"{ours}/block_#/{part}": f"{theirs}.#.{name}"
        for ours, theirs in {"encoder": encoder, "decoder": decoder}.items()
        for part, name in block.items()
    }


def from_format(state: Mapping[str, np.ndarray], family: Family) -> dict[str, np.ndarray]:
    """Return a state dict of a family under our names and in our shapes, mostly as views.

    Tables of positions are `encoder/positions` and `decoder/positions`. An array that is no
    parameter of ours keeps its name.
    """
    params = {}
    ours = {theirs: ours for ours, theirs in family.names.items()}
    for name, x in state.items():
        theirs, number = _without_number(family.canonical(name))
        module, _, leaf = theirs.rpartition(".")
        is_table = x.ndim == 3 and len(x) == 1
        if theirs in ours and leaf not in ("weight", "bias") and (is_table or x.ndim == 1):
            params[ours[theirs].replace("#", number)] = x[0] if x.ndim == 3 else x
        elif module in ours and leaf in ("weight", "bias"):
            if leaf == "weight" and x.ndim > 2:  # a convolution [d c p q]: ours is [(p q c) d]
                x = np.moveaxis(x, 1, -1).reshape(len(x), -1)
            if leaf == "weight":
                leaf = "kernel" if x.ndim > 1 else "scale"
            params |= _unpack(ours[module].replace("#", number), leaf, x.T, name)
        else:
            params[name] = x
    return params


def _unpack(module: str, leaf: str, x: np.ndarray, name: str) -> dict[str, np.ndarray]:
    """Return the parameter `leaf` of a module, or its parts for query, key and value."""
    attention, _, last = module.rpartition("/")
    if last not in PACKED:
        return {f"{module}/{leaf}": x}
    parts = PACKED[last]
    if x.shape[-1] % len(parts):
        raise ValueError(
            f"{name} is {list(x.T.shape)}: not {', '.join(parts[:-1])} and {parts[-1]}"
        )
    shares = np.split(x, len(parts), axis=-1)
    return {f"{attention}/{part}/{leaf}": y for part, y in zip(parts, shares, strict=True)}


def to_format(params: Mapping[str, np.ndarray], family: Family, patch: Sequence[int]) -> dict:
    """Invert `from_format`; the arrays are contiguous.

    Raises:
      ValueError: the family has no such parameter.
    """
    state, params, names = {}, dict(params), family.names
    if "encoder/block_#/attention/qkv" in names:
        for name in [name for name in params if "/attention/query/" in name]:
            parts = [params.pop(name.replace("query", part)) for part in QKV]
            params[name.replace("query", "qkv")] = np.concatenate(parts, axis=-1)
    for name, x in params.items():
        key, number = _without_number(name)
        module, _, leaf = key.rpartition("/")
        if key in names:
            theirs, x = names[key], x[None]
        elif module in names:
            theirs, x = f"{names[module]}.{'bias' if leaf == 'bias' else 'weight'}", x.T
            if module == "encoder/embedding" and leaf == "kernel":
                x = np.moveaxis(x.reshape(len(x), *patch, -1), -1, 1)
        else:
            raise ValueError(f"{name} has no name in the files of {family.title}")
        state[theirs.replace("#", number)] = np.array(x, order="C")
    return state


def _without_number(name: str) -> tuple[str, str]:
    """Return a name such as `blocks.3.norm1.bias` with `#` for its number, and the number."""
    match = re.search(r"(?<=[._])\d+(?=[./])", name)
    if not match:
        return name, ""
    return f"{name[: match.start()]}#{name[match.end() :]}", match[0]
