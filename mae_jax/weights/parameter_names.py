"""Parameters under the names of He et al.'s files, of Hugging Face's, and of this project.

Names of this project are flat here, such as `encoder/block_3/attention/query/kernel`. In the
tables, `#` stands for the number of a block.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

Names = dict[str, str]


def _with_blocks(names: Names, block: Names, encoder: str, decoder: str) -> Names:
    """`names`, and those of the blocks of the encoder and of the decoder."""
    return names | {
        f"{ours}/block_#/{part}": f"{theirs}.#.{name}"
        for ours, theirs in {"encoder": encoder, "decoder": decoder}.items()
        for part, name in block.items()
    }


# He et al.'s own (PyTorch). Query, key and value are one matrix there, `attn.qkv`. A fine-tuned
# file with mean pooling has `fc_norm` in the place of `norm`.
REFERENCE = _with_blocks(
    {
        "encoder/cls": "cls_token",
        "encoder/positions": "pos_embed",
        "encoder/embedding": "patch_embed.proj",
        "encoder/norm": "norm",
        "decoder/embedding": "decoder_embed",
        "decoder/mask_token": "mask_token",
        "decoder/positions": "decoder_pos_embed",
        "decoder/norm": "decoder_norm",
        "decoder/head": "decoder_pred",
        "norm": "fc_norm",
        "head": "head",
    },
    {
        "norm1": "norm1",
        "attention/qkv": "attn.qkv",
        "attention/out": "attn.proj",
        "norm2": "norm2",
        "mlp/fc1": "mlp.fc1",
        "mlp/fc2": "mlp.fc2",
    },
    encoder="blocks",
    decoder="decoder_blocks",
)
# Hugging Face's ViTMAE, as the Hub and transformers 4 name it.
HUGGINGFACE = _with_blocks(
    {
        "encoder/cls": "vit.embeddings.cls_token",
        "encoder/positions": "vit.embeddings.position_embeddings",
        "encoder/embedding": "vit.embeddings.patch_embeddings.projection",
        "encoder/norm": "vit.layernorm",
        "decoder/embedding": "decoder.decoder_embed",
        "decoder/mask_token": "decoder.mask_token",
        "decoder/positions": "decoder.decoder_pos_embed",
        "decoder/norm": "decoder.decoder_norm",
        "decoder/head": "decoder.decoder_pred",
    },
    {
        "norm1": "layernorm_before",
        "attention/query": "attention.attention.query",
        "attention/key": "attention.attention.key",
        "attention/value": "attention.attention.value",
        "attention/out": "attention.output.dense",
        "norm2": "layernorm_after",
        "mlp/fc1": "intermediate.dense",
        "mlp/fc2": "output.dense",
    },
    encoder="vit.encoder.layer",
    decoder="decoder.decoder_layers",
)
FORMATS = {"reference": REFERENCE, "huggingface": HUGGINGFACE}
QKV = ("query", "key", "value")

# Other names of Hugging Face's: those of transformers 5 in memory, `decoder_encoder.layer` in the
# files that it saves, and no `vit.` in the files of an encoder alone.
RENAMED = (
    (r"^(?!vit\.|decoder\.)(?=(embeddings|encoder|layers|layernorm)\.)", "vit."),
    (r"^vit\.layers\.", "vit.encoder.layer."),
    (r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)


def checkpoint_format(names: Iterable[str]) -> str:
    """`reference`, `huggingface` or, for names of this project, `mae_jax`.

    Raises:
      ValueError: the names are of none of these.
    """
    names = list(names)
    if any(name.startswith(("blocks.", "patch_embed.", "decoder_blocks.")) for name in names):
        return "reference"
    if any(_hub_name(name).startswith("vit.e") for name in names):
        return "huggingface"
    if any(name.startswith("encoder/") for name in names):
        return "mae_jax"
    raise ValueError(
        "the names are neither those of a masked autoencoder of the reference nor of Hugging "
        f"Face's ViTMAE: {', '.join(names[:3])} ..."
    )


def patch_size(shapes: Mapping[str, tuple[int, ...]], source: str) -> tuple[int, ...]:
    """The sides of a patch, from the shape of the convolution that cuts patches.

    Raises:
      KeyError: with the name of that convolution, which is missing.
    """
    wanted = FORMATS[source]["encoder/embedding"] + ".weight"
    for name, shape in shapes.items():
        if wanted == (_hub_name(name) if source == "huggingface" else name) and len(shape) > 2:
            return shape[2:]
    raise KeyError(wanted)


def from_format(state: Mapping[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """A state dict of the format `source` under our names and in our shapes, mostly as views.

    Tables of positions are `encoder/positions` and `decoder/positions`, `[1 + n, d]`. An array
    that is no parameter of ours keeps its name.
    """
    ours = {}
    for name, x in state.items():
        ours |= _convert(name, x, source)
    return ours


def _convert(name: str, x: np.ndarray, source: str) -> dict[str, np.ndarray]:
    """One array of a state dict; `qkv` of the reference is three arrays of ours."""
    theirs = _hub_name(name) if source == "huggingface" else name
    number = re.search(r"(?<=\.)\d+(?=\.)", theirs)
    theirs = re.sub(r"(?<=\.)\d+(?=\.)", "#", theirs, count=1)
    module, _, leaf = theirs.rpartition(".")
    ours = {theirs: ours for ours, theirs in FORMATS[source].items()}
    if theirs in ours and x.ndim == 3:  # a token or a table of positions
        return {ours[theirs]: x[0]}
    if module not in ours or leaf not in ("weight", "bias"):
        return {name: x}
    if leaf == "weight" and x.ndim > 2:  # a convolution [d c p q]: ours is [(p q c) d]
        x = np.moveaxis(x, 1, -1).reshape(len(x), -1)
    if leaf == "weight":
        leaf, x = ("kernel", x.T) if x.ndim > 1 else ("scale", x)  # PyTorch has the transpose
    module = ours[module].replace("#", number[0] if number else "")
    if not module.endswith("qkv"):
        return {f"{module}/{leaf}": x}
    if x.shape[-1] % 3:
        raise ValueError(f"{name} is {list(x.shape)}: not query, key and value")
    parts = zip(QKV, np.split(x, 3, axis=-1), strict=True)
    return {f"{module.removesuffix('qkv')}{part}/{leaf}": share for part, share in parts}


def to_format(params: Mapping[str, np.ndarray], target: str, patch: Sequence[int]) -> dict:
    """The inverse of `from_format`, as contiguous arrays.

    Raises:
      ValueError: the format has no such parameter.
    """
    state, params, names = {}, dict(params), FORMATS[target]
    if target == "reference":
        for name in [name for name in params if "/attention/query/" in name]:
            parts = [params.pop(name.replace("query", part)) for part in QKV]
            params[name.replace("query", "qkv")] = np.concatenate(parts, axis=-1)
    for name, x in params.items():
        number = re.search(r"(?<=block_)\d+", name)
        key = re.sub(r"(?<=block_)\d+", "#", name)
        module, _, leaf = key.rpartition("/")
        if key in names:
            theirs, x = names[key], x[None]
        elif module in names:
            theirs = f"{names[module]}.{'bias' if leaf == 'bias' else 'weight'}"
            x = x.T
            if module == "encoder/embedding" and leaf == "kernel":
                x = np.moveaxis(x.reshape(len(x), *patch, -1), -1, 1)
        else:
            raise ValueError(f"{name} has no name in the files of {target}")
        state[theirs.replace("#", number[0]) if number else theirs] = np.array(x, order="C")
    return state


def _hub_name(name: str) -> str:
    for pattern, new in RENAMED:
        name = re.sub(pattern, new, name)
    return name
