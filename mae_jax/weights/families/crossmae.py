"""CrossMAE (TonyLianLong/CrossMAE), with weighted feature maps."""

import logging

import numpy as np

from mae_jax.weights import tensor_files
from mae_jax.weights.families import reference
from mae_jax.weights.parameter_names import Family, Fields, Known, Tensors, with_blocks
from mae_jax.weights.tensor_files import Tensor

_log = logging.getLogger(__name__)


def adapt(params: Tensors, known: Known) -> tuple[Tensors, Fields]:
    """Give maps that are not used a weight of zero, so that all maps have one."""
    if "decoder/mask_token" not in params:
        return params | _new_norm(params, known), {}
    if any(".self_attn." in name for name in params):
        raise ValueError(
            f"{known.path} is of a CrossMAE with self_attn, whose mask tokens also see each other: "
            "give without='decoder/.*|decoder_blocks.*' for its encoder"
        )
    if not (weights := params.pop("decoder/maps/kernel", None)):
        raise ValueError(
            f"{known.path} is of a CrossMAE without weight_fm, whose decoder sees the last feature "
            "map alone: give without='decoder/.*' for its encoder"
        )
    blocks = [name.split("/")[1] for name in params if name.startswith("encoder/block_")]
    depth, used = len(set(blocks)), known.args.get("use_fm", [-1])
    used = list(range(depth)) if used == [-1] else used
    rows = [0] * bool(known.args.get("use_input", True)) + [1 + i % depth for i in used]
    if len(rows) != weights.shape[0]:
        raise ValueError(
            f"{known.path} has weights for {weights.shape[0]} feature maps, and does not say which "
            f"of the {1 + depth} these are: give without='decoder/.*' for its encoder"
        )

    def every_map(x):
        whole = np.zeros((1 + depth, x.shape[1]), np.float32)
        whole[rows] = x
        return whole

    params = params | {"decoder/maps": tensor_files.compute(every_map, weights)}
    return params, dict(decoder="cross", final_norm=False)


def _new_norm(params: Tensors, known: Known) -> Tensors:
    """Return a norm behind the pooling, which the encoder has only once it is fine-tuned."""
    _log.info("%s has no final norm: its pooled feature gets a new one", known.path)
    width = params["encoder/embedding/bias"].shape[-1]
    values = {"norm/scale": np.ones(width), "norm/bias": np.zeros(width)}
    return {name: Tensor(x.shape, x) for name, x in values.items()}


_DECODER = {
    "decoder/context_norm_#": "dec_norms.#",
    "decoder/maps": "wfm.linear",
    **{
        f"decoder/block_#/{ours}": f"decoder_blocks.#.{theirs}"
        for ours, theirs in {
            "attention/query": "cross_attn.q",
            "attention/kv": "cross_attn.kv",
            "attention/out": "cross_attn.proj",
        }.items()
    },
}
FAMILY = Family(
    "CrossMAE",
    with_blocks(reference.NAMES, reference.BLOCK, encoder="blocks", decoder="decoder_blocks")
    | _DECODER,
    marks=(r"^decoder_blocks\.\d+\.cross_attn\.",),
    adapt=adapt,
)
