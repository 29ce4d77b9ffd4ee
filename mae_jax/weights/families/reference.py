"""He et al.'s own code (facebookresearch/mae), and code with its names: timm, AudioMAE, SatMAE."""

from mae_jax.weights.parameter_names import Family, with_blocks

NAMES = {
    "encoder/cls": "cls_token",
    "encoder/registers": "reg_token",
    "encoder/positions": "pos_embed",
    "encoder/embedding": "patch_embed.proj",
    "encoder/norm": "norm",
    "norm": "fc_norm",  # of a fine-tuned file with mean pooling, in the place of `norm`
    "head": "head",
    "decoder/embedding": "decoder_embed",
    "decoder/mask_token": "mask_token",
    "decoder/positions": "decoder_pos_embed",
    "decoder/norm": "decoder_norm",
    "decoder/head": "decoder_pred",
}
BLOCK = {
    **{name: name for name in ("norm1", "norm2")},
    "attention/qkv": "attn.qkv",
    "attention/out": "attn.proj",
    **{f"mlp/{name}": f"mlp.{name}" for name in ("fc1", "fc2")},
    # of VideoMAE, BEiT and timm, which `folding` removes
    "attention/q_bias": "attn.q_bias",
    "attention/v_bias": "attn.v_bias",
    "scale1": "gamma_1",
    "scale2": "gamma_2",
}
FAMILY = Family(
    "the reference MAE or timm",
    with_blocks(NAMES, BLOCK, encoder="blocks", decoder="decoder_blocks"),
    marks=(r"^blocks\.", r"^patch_embed\.", r"^decoder_blocks\."),
    aliases=((r"\.ls([12])\.gamma$", r".gamma_\1"),),  # timm
)
