"""Hugging Face's transformers: ViTMAE, ViT and Pixio, and VideoMAE.

The names are those of the Hub and of transformers 4. Other spellings: files with only an encoder
have no `vit.`; transformers 5 has new names in memory, and `decoder_encoder.layer` in the files of
ViTMAE that it saves.
"""

import logging

from mae_jax.weights.families import reference, videomae
from mae_jax.weights.parameter_names import QKV, Family, Fields, Known, Tensors, with_blocks

_log = logging.getLogger(__name__)
_DECODER = {x: theirs for x, theirs in reference.NAMES.items() if x.startswith("decoder/")}
_NAMES = {
    "encoder/cls": "vit.embeddings.cls_token",
    "encoder/positions": "vit.embeddings.position_embeddings",
    "encoder/embedding": "vit.embeddings.patch_embeddings.projection",
    "encoder/norm": "vit.layernorm",
    "norm": "fc_norm",
    "head": "classifier",
    **{ours: f"decoder.{theirs}" for ours, theirs in _DECODER.items()},
}
_BLOCK = {
    "norm1": "layernorm_before",
    **{f"attention/{part}": f"attention.attention.{part}" for part in QKV},
    "attention/q_bias": "attention.attention.q_bias",
    "attention/v_bias": "attention.attention.v_bias",
    "attention/out": "attention.output.dense",
    "norm2": "layernorm_after",
    "scale1": "layer_scale1.lambda1",  # DINOv2, which `folding` removes
    "scale2": "layer_scale2.lambda1",
    "mlp/fc1": "intermediate.dense",
    "mlp/fc2": "output.dense",
}
_ALIASES = (
    (r"^(pixio|videomae)\.", "vit."),
    (r"^(?!vit\.|decoder\.)(?=(embeddings|encoder|layers|layernorm|pooler)\.)", "vit."),
    (r"^vit\.layers\.", "vit.encoder.layer."),
    (r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."),
    *((rf"\.attention\.{x[0]}_proj\.", f".attention.attention.{x}.") for x in QKV),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"(\.layer\.\d+)\.norm1\.", r"\1.layernorm_before."),  # Pixio
    (r"(\.layer\.\d+)\.norm2\.", r"\1.layernorm_after."),
)


def without_pooler(params: Tensors, known: Known) -> tuple[Tensors, Fields]:
    """Leave out the pooler of a `ViTModel`, a layer that nothing in a checkpoint has trained."""
    pooler = [name for name in params if name.removeprefix("vit.").startswith("pooler.")]
    if pooler:
        _log.info("%s: its pooler is left out", known.path)
    return {name: x for name, x in params.items() if name not in pooler}, {}


def adapt_video(params: Tensors, known: Known) -> tuple[Tensors, Fields]:
    """As VideoMAE's own files, but the final norm may be missing, and that of a head has an eps."""
    params, fields = videomae.adapt(params, known)
    if "decoder/mask_token" in params:
        fields["final_norm"] = "encoder/norm/scale" in params
    elif "norm/scale" in params:
        fields["norm_eps"] = 1e-5  # torch's default
    return params, fields


FAMILY = Family(
    "Hugging Face",
    with_blocks(_NAMES, _BLOCK, encoder="vit.encoder.layer", decoder="decoder.decoder_layers"),
    marks=(r"^vit\.(embeddings|encoder\.layer)\.",),
    adapt=without_pooler,
    aliases=_ALIASES,
    model_types=("vit_mae", "vit", "pixio"),
    eps=1e-12,
    norm_pix=False,  # in the config.json of every published ViTMAE
)
VIDEO = Family(
    "Hugging Face's VideoMAE",
    FAMILY.names,
    marks=(r"^vit\.encoder\.layer\.\d+\.attention\.attention\.q_bias$", r"^videomae\."),
    adapt=adapt_video,
    aliases=(
        (r"^encoder_to_decoder\.", "decoder.decoder_embed."),
        (r"^decoder\.(norm|head)\.", r"decoder.decoder_\1."),
        (r"^decoder\.decoder_head\.", "decoder.decoder_pred."),
        (r"^mask_token$", "decoder.mask_token"),
        *_ALIASES,
    ),
    model_types=("videomae",),
    eps=1e-12,
    decoder_heads=videomae.FAMILY.decoder_heads,
)
