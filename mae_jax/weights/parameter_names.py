"""Parameters under the names of other code and under the names of this project.

Names of this project are flat, such as `encoder/block_3/attention/query/kernel`. In the
tables, `#` stands for the number of a block.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Names = dict[str, str]
QKV = ("query", "key", "value")


class Family(NamedTuple):
    """The parameter names in the checkpoints of one code base, in the style of PyTorch."""

    names: Names  # ours -> theirs; one matrix for query, key and value is our `attention/qkv`
    marks: tuple[str, ...]  # beginnings of names by which the files are recognised
    aliases: tuple[tuple[str, str], ...] = ()  # expressions for other spellings -> those of `names`
    model_type: str = ""  # in the config.json of a folder
    eps: float = 1e-6  # of the LayerNorms, unless a config.json has another

    def canonical(self, name: str) -> str:
        """Return a parameter's name in the spelling of `names`."""
        for pattern, new in self.aliases:
            name = re.sub(pattern, new, name)
        return name


def _with_blocks(names: Names, block: Names, encoder: str, decoder: str) -> Names:
    """Return `names` with the names in the blocks of the encoder and of the decoder."""
    return names | {
        f"{ours}/block_#/{part}": f"{theirs}.#.{name}"
        for ours, theirs in {"encoder": encoder, "decoder": decoder}.items()
        for part, name in block.items()
    }


_DECODER = {
    "decoder/embedding": "decoder_embed",
    "decoder/mask_token": "mask_token",
    "decoder/positions": "decoder_pos_embed",
    "decoder/norm": "decoder_norm",
    "decoder/head": "decoder_pred",
}
FAMILIES = {
    # He et al.'s own. A fine-tuned file with mean pooling has `fc_norm` in the place of `norm`.
    "reference": Family(
        _with_blocks(
            {
                "encoder/cls": "cls_token",
                "encoder/positions": "pos_embed",
                "encoder/embedding": "patch_embed.proj",
                "encoder/norm": "norm",
                "norm": "fc_norm",
                "head": "head",
                **_DECODER,
            },
            {
                **{name: name for name in ("norm1", "norm2")},
                "attention/qkv": "attn.qkv",
                "attention/out": "attn.proj",
                **{f"mlp/{name}": f"mlp.{name}" for name in ("fc1", "fc2")},
            },
            encoder="blocks",
            decoder="decoder_blocks",
        ),
        marks=("blocks.", "patch_embed.", "decoder_blocks."),
    ),
    # Hugging Face's ViTMAE, as the Hub and transformers 4 name it. Other spellings: files with
    # only an encoder have no `vit.`; transformers 5 has new names in memory, and
    # `decoder_encoder.layer` in the files that it saves.
    "huggingface": Family(
        _with_blocks(
            {
                "encoder/cls": "vit.embeddings.cls_token",
                "encoder/positions": "vit.embeddings.position_embeddings",
                "encoder/embedding": "vit.embeddings.patch_embeddings.projection",
                "encoder/norm": "vit.layernorm",
                **{ours: f"decoder.{theirs}" for ours, theirs in _DECODER.items()},
            },
            {
                "norm1": "layernorm_before",
                **{f"attention/{part}": f"attention.attention.{part}" for part in QKV},
                "attention/out": "attention.output.dense",
                "norm2": "layernorm_after",
                "mlp/fc1": "intermediate.dense",
                "mlp/fc2": "output.dense",
            },
            encoder="vit.encoder.layer",
            decoder="decoder.decoder_layers",
        ),
        marks=("vit.e",),
        aliases=(
            (r"^(?!vit\.|decoder\.)(?=(embeddings|encoder|layers|layernorm)\.)", "vit."),
            (r"^vit\.layers\.", "vit.encoder.layer."),
            (r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."),
            *((rf"\.attention\.{x[0]}_proj\.", f".attention.attention.{x}.") for x in QKV),
            (r"\.attention\.o_proj\.", ".attention.output.dense."),
            (r"\.mlp\.fc1\.", ".intermediate.dense."),
            (r"\.mlp\.fc2\.", ".output.dense."),
        ),
        model_type="vit_mae",
        eps=1e-12,
    ),
}
MODEL_TYPES = {family.model_type for family in FAMILIES.values() if family.model_type}


def checkpoint_format(names: Iterable[str]) -> str:
    """Return a key of `FAMILIES` or, for names of this project, `mae_jax`.

    Raises:
      ValueError: the names belong to none of these.
    """
    names = list(names)
    for source, family in FAMILIES.items():
        if any(family.canonical(name).startswith(family.marks) for name in names):
            return source
    if any(name.startswith("encoder/") for name in names):
        return "mae_jax"
    raise ValueError(
        "the names are neither those of a masked autoencoder of the reference nor of Hugging "
        f"Face's ViTMAE: {', '.join(names[:3])} ..."
    )


def from_format(state: Mapping[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """Return a state dict of a family under our names and in our shapes, mostly as views.

    Tables of positions are `encoder/positions` and `decoder/positions`, `[1 + n, d]`. An array
    that is no parameter of ours keeps its name.
    """
    family, params = FAMILIES[source], {}
    ours = {theirs: ours for ours, theirs in family.names.items()}
    for name, x in state.items():
        theirs, number = _without_number(family.canonical(name))
        module, _, leaf = theirs.rpartition(".")
        if theirs in ours and x.ndim == 3:  # a token or a table of positions
            params[ours[theirs]] = x[0]
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
    if not module.endswith("qkv"):
        return {f"{module}/{leaf}": x}
    if x.shape[-1] % 3:
        raise ValueError(f"{name} is {list(x.T.shape)}: not query, key and value")
    parts = zip(QKV, np.split(x, 3, axis=-1), strict=True)
    return {f"{module.removesuffix('qkv')}{part}/{leaf}": share for part, share in parts}


def to_format(params: Mapping[str, np.ndarray], target: str, patch: Sequence[int]) -> dict:
    """Invert `from_format`; the arrays are contiguous.

    Raises:
      ValueError: the family has no such parameter.
    """
    state, params, names = {}, dict(params), FAMILIES[target].names
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
            raise ValueError(f"{name} has no name in the files of {target}")
        state[theirs.replace("#", number)] = np.array(x, order="C")
    return state


def _without_number(name: str) -> tuple[str, str]:
    """Return a name such as `blocks.3.norm1.bias` with `#` for its number, and the number."""
    match = re.search(r"(?<=[._])\d+(?=[./])", name)
    if not match:
        return name, ""
    return f"{name[: match.start()]}#{name[match.end() :]}", match[0]
