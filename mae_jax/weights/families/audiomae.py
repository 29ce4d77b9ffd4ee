"""AudioMAE (facebookresearch/AudioMAE) with a Swin decoder, of which the encoder is read.

With `decoder_mode=0` its files are like those of the reference.
"""

import logging

from mae_jax.weights.families import reference
from mae_jax.weights.parameter_names import Family, Fields, Known, Tensors

_log = logging.getLogger(__name__)


def adapt(params: Tensors, known: Known) -> tuple[Tensors, Fields]:
    """Leave the decoder out, and say so."""
    decoder = ("decoder/", "decoder_")
    _log.warning(
        "%s has a decoder of Swin Transformer blocks, which this project does not have: only its "
        "encoder is read",
        known.path,
    )
    return {name: x for name, x in params.items() if not name.startswith(decoder)}, {}


FAMILY = Family(
    "AudioMAE with a Swin decoder",
    reference.FAMILY.names,
    marks=(r"^decoder_blocks\.\d+\.attn\.(tau|meta_mlp)",),
    adapt=adapt,
)
