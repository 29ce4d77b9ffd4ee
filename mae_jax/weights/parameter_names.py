"""Parameters under the names of the two families of checkpoints, and under ours: both ways.

Ours are flat here, `encoder/block_3/attention/query/kernel`. `#` stands for the number of a block.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

# He et al.'s own (PyTorch). Query, key and value are one matrix there, `attn.qkv`. What a
# fine-tuned file normalises after mean pooling with is `fc_norm`; it has no `norm` then.
REFERENCE = {
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
}
# Hugging Face's ViTMAE, as the Hub and transformers 4 name it.
HUGGINGFACE = {
    "encoder/cls": "vit.embeddings.cls_token",
    "encoder/positions": "vit.embeddings.position_embeddings",
    "encoder/embedding": "vit.embeddings.patch_embeddings.projection",
    "encoder/norm": "vit.layernorm",
    "decoder/embedding": "decoder.decoder_embed",
    "decoder/mask_token": "decoder.mask_token",
    "decoder/positions": "decoder.decoder_pos_embed",
    "decoder/norm": "decoder.decoder_norm",
    "decoder/head": "decoder.decoder_pred",
}
for _ours, _reference, _huggingface in (
    ("encoder", "blocks", "vit.encoder.layer"),
    ("decoder", "decoder_blocks", "decoder.decoder_layers"),
):
    for _part, _there in {
        "norm1": "norm1",
        "attention/qkv": "attn.qkv",
        "attention/out": "attn.proj",
        "norm2": "norm2",
        "mlp/fc1": "mlp.fc1",
        "mlp/fc2": "mlp.fc2",
    }.items():
        REFERENCE[f"{_ours}/block_#/{_part}"] = f"{_reference}.#.{_there}"
    for _part, _there in {
        "norm1": "layernorm_before",
        "attention/query": "attention.attention.query",
        "attention/key": "attention.attention.key",
        "attention/value": "attention.attention.value",
        "attention/out": "attention.output.dense",
        "norm2": "layernorm_after",
        "mlp/fc1": "intermediate.dense",
        "mlp/fc2": "output.dense",
    }.items():
        HUGGINGFACE[f"{_ours}/block_#/{_part}"] = f"{_huggingface}.#.{_there}"
FAMILIES = {"reference": REFERENCE, "huggingface": HUGGINGFACE}
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


def family(state: Mapping[str, np.ndarray]) -> str:
    """`reference`, `huggingface` or, of our own names, `mae_jax`.

    Raises:
      ValueError: none of them.
    """
    if any(name.startswith(("blocks.", "patch_embed.", "decoder_blocks.")) for name in state):
        return "reference"
    if any(_hub(name).startswith("vit.e") for name in state):
        return "huggingface"
    if any(name.startswith("encoder/") for name in state):
        return "mae_jax"
    raise ValueError(
        "the names are neither those of a masked autoencoder of the reference nor of Hugging "
        f"Face's ViTMAE: {', '.join(list(state)[:3])} ..."
    )


def patch_of(state: Mapping[str, np.ndarray], kind: str) -> tuple[int, ...]:
    """The sides of a patch, from the convolution that cuts them.

    Raises:
      KeyError: there is none; with its name.
    """
    name = FAMILIES[kind]["encoder/embedding"] + ".weight"
    for other, x in state.items():
        if name == (_hub(other) if kind == "huggingface" else other) and x.ndim > 2:
            return x.shape[2:]
    raise KeyError(name)


def read(state: Mapping[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    """A state dict of `kind` under our names, in our shapes, without copies.

    Position tables are `encoder/positions` and `decoder/positions`, `[1 + n, d]`. What is no
    parameter of ours keeps its name.
    """
    table, ours = {there: ours for ours, there in FAMILIES[kind].items()}, {}
    for name, x in state.items():
        there = _hub(name) if kind == "huggingface" else name
        number = re.search(r"(?<=\.)\d+(?=\.)", there)
        number = number[0] if number else ""
        there = re.sub(r"(?<=\.)\d+(?=\.)", "#", there, count=1)
        if there in table and x.ndim == 3:  # a token or a table of positions
            ours[table[there]] = x[0]
            continue
        module, _, leaf = there.rpartition(".")
        if module not in table or leaf not in ("weight", "bias"):
            ours[name] = x
            continue
        if leaf == "weight" and x.ndim > 2:  # a convolution [d c p q]: ours is [(p q c) d]
            x = np.moveaxis(x, 1, -1).reshape(len(x), -1)
        if leaf == "weight":
            leaf, x = ("kernel", x.T) if x.ndim > 1 else ("scale", x)  # torch has the transpose
        module = table[module].replace("#", number)
        if module.endswith("qkv"):
            if x.shape[-1] % 3:
                raise ValueError(f"{name} is {list(x.shape)}: not query, key and value")
            for part, share in zip(QKV, np.split(x, 3, axis=-1), strict=True):
                ours[f"{module.removesuffix('qkv')}{part}/{leaf}"] = share
        else:
            ours[f"{module}/{leaf}"] = x
    return ours


def write(params: Mapping[str, np.ndarray], kind: str, patch: Sequence[int]) -> dict:
    """The inverse of `read`, as contiguous arrays.

    Raises:
      ValueError: that family has no such parameter.
    """
    state, params = {}, dict(params)
    if kind == "reference":
        for name in [name for name in params if "/attention/query/" in name]:
            parts = [params.pop(name.replace("query", part)) for part in QKV]
            params[name.replace("query", "qkv")] = np.concatenate(parts, axis=-1)
    for name, x in params.items():
        number = re.search(r"(?<=block_)\d+", name)
        key = re.sub(r"(?<=block_)\d+", "#", name)
        module, _, leaf = key.rpartition("/")
        table = FAMILIES[kind]
        if key in table:
            there, x = table[key], x[None]
        elif module in table:
            there = f"{table[module]}.{'bias' if leaf == 'bias' else 'weight'}"
            if module == "encoder/embedding" and leaf == "kernel":
                x = np.moveaxis(x.T.reshape(x.shape[1], *patch, -1), -1, 1)
            else:
                x = x.T
        else:
            raise ValueError(f"{name} has no name in the files of {kind}")
        state[there.replace("#", number[0]) if number else there] = np.array(x, order="C")
    return state


def _hub(name: str) -> str:
    for pattern, new in RENAMED:
        name = re.sub(pattern, new, name)
    return name
