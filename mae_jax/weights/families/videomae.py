"""VideoMAE (MCG-NJU/VideoMAE) and MAE-pytorch (pengzhiliang), which have no class token."""

from typing import Any

import numpy as np

from mae_jax.weights import tensor_files
from mae_jax.weights.families import reference
from mae_jax.weights.parameter_names import Family, Fields, Known, Tensors

# What both normalise inputs with, and un-normalise their targets with.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def adapt(params: Tensors, known: Known) -> tuple[Tensors, Fields]:
    """Give the decoder's embedding its missing bias, and take the target from the arguments.

    Without `normlize_target` their decoder predicts pixels in [0, 1]. The head is changed so that
    it predicts normalised pixels, as ours do.
    """
    if "encoder/cls" in params:
        raise ValueError(
            f"{known.path} has q_bias and a class token: it may be a BEiT, which this project does "
            "not have, but is no VideoMAE"
        )
    fields: Fields = {"cls_tokens": 0, "position_formula": "interleaved"}
    if "encoder/positions" not in params:
        fields["learned_positions"] = False
    if "decoder/embedding/kernel" in params and "decoder/embedding/bias" not in params:
        kernel = params["decoder/embedding/kernel"]
        params["decoder/embedding/bias"] = tensor_files.compute(
            lambda x: np.zeros_like(x[0], subok=False), kernel
        )
    if "decoder/mask_token" in params:
        normalised: Any = known.args.get("normlize_target", True)
        normalised = known.fields.get("norm_pix", normalised)
        fields["norm_pix"] = "channel" if normalised is True else normalised
        if not normalised and known.channels == len(MEAN):
            _predict_normalised_pixels(params)
    elif "encoder/norm/scale" in params and "head/kernel" in params:
        if "pooling" not in known.fields:
            raise ValueError(
                f"{known.path} classifies by its first patch (use_mean_pooling=False), which this "
                "project does not: give without='head/.*' for the encoder alone"
            )
    return params, fields


def _predict_normalised_pixels(params: Tensors) -> None:
    """Change the head of pixels x so that it predicts (x - mean) / std, channels last."""
    mean, std = (np.asarray(values, np.float32) for values in (MEAN, STD))

    def rescaled(x, shift):
        colours = np.asarray(x, np.float32).reshape(*x.shape[:-1], -1, 3)
        return ((colours - shift) / std).reshape(x.shape)

    for leaf, shift in {"kernel": np.zeros_like(mean), "bias": mean}.items():
        name = f"decoder/head/{leaf}"
        change = lambda x, shift=shift: rescaled(x, shift)
        params[name] = tensor_files.compute(change, params[name])


FAMILY = Family(
    "VideoMAE or MAE-pytorch",
    reference.FAMILY.names,
    marks=(r"^(encoder\.)?blocks\.\d+\.attn\.q_bias$", r"^encoder_to_decoder\."),
    adapt=adapt,
    aliases=(
        (r"^encoder_to_decoder\.", "decoder_embed."),
        (r"^decoder\.blocks\.", "decoder_blocks."),
        (r"^decoder\.norm\.", "decoder_norm."),
        (r"^decoder\.head\.", "decoder_pred."),
        (r"^encoder\.", ""),
    ),
    decoder_heads={192: 3, 384: 6, 512: 8, 640: 8},
)
