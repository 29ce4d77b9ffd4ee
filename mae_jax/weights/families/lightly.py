"""lightly (lightly-ai/lightly): its MAE on timm's Vision Transformer."""

from mae_jax.weights.families import reference
from mae_jax.weights.parameter_names import Family, Fields, Known, Tensors


def adapt(params: Tensors, known: Known) -> tuple[Tensors, Fields]:
    """Leave out what its MAE does not use: a mask token of the encoder, and timm's head."""
    unused = ["backbone.mask_token"]
    if "decoder/mask_token" in params:
        unused += ["head/kernel", "head/bias"]
    return {name: x for name, x in params.items() if name not in unused}, {}


FAMILY = Family(
    "lightly",
    reference.FAMILY.names,
    marks=(r"^backbone\.vit\.(blocks|patch_embed)\.",),
    adapt=adapt,
    aliases=(
        (r"^backbone\.vit\.", ""),
        (r"^decoder\.(?=decoder_|mask_token)", ""),
        (r"^decoder\.", "decoder_"),  # where embedding and head are parts of the user's module
        (r"^prediction_head\.", "decoder_pred."),
        *reference.FAMILY.aliases,
    ),
)
