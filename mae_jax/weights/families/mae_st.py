"""MAE-ST (facebookresearch/mae_st): masked autoencoders of video."""

import math

import numpy as np

from mae_jax.weights import tensor_files
from mae_jax.weights.families import reference
from mae_jax.weights.parameter_names import Family, Fields, Known, Tensors, with_blocks


def adapt(params: Tensors, known: Known) -> tuple[Tensors, Fields]:
    """Take the target from the head, and the norm of a classifier to be after its mean."""
    fields: Fields = {"position_formula": "sincos"}
    for part in ("encoder", "decoder"):
        cls = params.pop(f"{part}/positions_cls", None)
        if cls and (space := params.get(f"{part}/positions_space")):
            whole = tensor_files.compute(lambda *rows: np.concatenate(rows), cls, space)
            params[f"{part}/positions_space"] = whole
    if "encoder/positions_space" in params:
        fields |= dict(learned_positions=True, separable_positions=True)
    if "decoder/cls" in params:
        fields["decoder"] = "own_cls"
    if "decoder/head/bias" in params:
        stride = math.prod(known.patch) * known.channels // params["decoder/head/bias"].shape[0]
        if stride > 1:
            fields |= dict(target_stride=(stride, 1, 1), target_spread=True)
    elif "head/kernel" in params:
        for leaf in ("scale", "bias"):
            if f"encoder/norm/{leaf}" in params:
                params[f"norm/{leaf}"] = params.pop(f"encoder/norm/{leaf}")
    return params, fields


_SEPARATE = {f"attention/{name}": f"attn.{name[0]}" for name in ("query", "key", "value")} | {
    name: x for name, x in reference.BLOCK.items() if name != "attention/qkv"
}
_POSITIONS = {
    f"{part}/positions_{ours}": f"{theirs}pos_embed_{name}"
    for part, theirs in {"encoder": "", "decoder": "decoder_"}.items()
    for ours, name in {"cls": "class", "space": "spatial", "time": "temporal"}.items()
}
FAMILY = Family(
    "MAE-ST",
    with_blocks(
        reference.NAMES | _POSITIONS | {"decoder/cls": "decoder_cls_token"},
        _SEPARATE,
        encoder="blocks",
        decoder="decoder_blocks",
    ),
    marks=(r"^blocks\.\d+\.attn\.q\.weight$", "^pos_embed_spatial$"),
    adapt=adapt,
)
