"""Arithmetic: what a masked autoencoder costs in FLOPs, and what devices offer.

A product of matrices [a b] x [b c] is 2abc FLOPs. Nothing else is counted (biases, norms, softmax,
GELU, the optimiser): it is bound by memory, and left out of the MFU as is usual.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.interpreters import partial_eval

from mae_jax.models import mae
from mae_jax.models.cross_decoder import CrossDecoder


def forward_flops(
    model: mae.MaskedAutoencoder, patches: int, keep: int, channels: int, decode: int | None = None
) -> dict[str, int]:
    """FLOPs of the forward pass of one picture, part by part.

    Args:
      patches, keep: n patches in a picture, of which k are visible.
      decode: how many of the others are predicted, by default all.
    """
    decode = patches - keep if decode is None else decode
    encoder, decoder, seen = model.encoder.trunk, model.decoder.trunk, 1 + keep
    values = math.prod(model.patch) * channels * getattr(model.target, "vocab_size", 1)
    if isinstance(model.decoder, CrossDecoder):
        into = "feature maps", _product(encoder.depth + 1, seen * encoder.width, decoder.depth)
        block = _block(decode, decoder.width, decoder.mlp_ratio, seen, encoder.width)
    else:
        into = "decoder embedding", _product(seen, encoder.width, decoder.width)
        block = _block(seen + decode, decoder.width, decoder.mlp_ratio)
    return {
        "patch embedding": _product(keep, values, encoder.width),
        "encoder blocks": encoder.depth * _block(seen, encoder.width, encoder.mlp_ratio),
        into[0]: into[1],
        "decoder blocks": decoder.depth * block,
        "head": _product(decode, decoder.width, model.target.size(channels)),
    }


def reference_flops(
    model: mae.MaskedAutoencoder, patches: int, keep: int, channels: int
) -> dict[str, int]:
    """The same for Hugging Face's ViTMAE and He et al.'s own code, which do two parts more often.

    They embed all patches before they drop the hidden ones, and their head runs on all tokens.
    """
    parts = forward_flops(model, patches, keep, channels)
    pixels = math.prod(model.patch) * channels
    return parts | {
        "patch embedding": _product(patches, pixels, model.width),
        "head": _product(1 + patches, model.decoder.trunk.width, pixels),
    }


def step_flops(parts: Mapping[str, int], batch_size: int) -> int:
    """FLOPs of a training step whose forward pass has these parts: 3 times forward, nearly.

    Each product has two in the backward pass, one for either factor. The patch embedding has one,
    as nobody asks for the gradient of the pixels.
    """
    return batch_size * (3 * sum(parts.values()) - parts["patch embedding"])


def program_flops(traced: jax.stages.Traced) -> int | None:
    """FLOPs of all products that a traced program does (`jax.jit(f).trace(...)`).

    A check of the arithmetic above: the backward pass, loops and recomputation are in it, and what
    nobody needs is not. None if there are kernels that nobody sees into.
    """
    closed: Any = traced.jaxpr
    needed, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return _products(needed)


def _products(jaxpr: Any) -> int | None:
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "pallas_call" and params["cost_estimate"]:
            total += params["cost_estimate"].flops
            continue
        if any(word in name for word in ("dot_product_attention", "pallas", "custom_call")):
            return None
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            summed = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += _product(summed, math.prod(equation.outvars[0].aval.shape), 1)
        inside = [_products(inner) for inner in _jaxprs(list(params.values()))]
        known = [part for part in inside if part is not None]
        if len(known) < len(inside):
            return None
        times = {"scan": params.get("length"), "shard_map": _size(params.get("mesh"))}.get(name)
        total += (times or 1) * (max(known, default=0) if name == "cond" else sum(known))
    return total


def _size(mesh: Any) -> int:
    return mesh.size if mesh is not None else 1


def _jaxprs(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, tuple | list):
            yield from _jaxprs(value)
        elif hasattr(value, "eqns"):  # a closed one has them, too
            yield value


def _product(a: int, b: int, c: int) -> int:
    return 2 * a * b * c


def _block(
    tokens: int, width: int, mlp_ratio: float, seen: int | None = None, wide: int | None = None
) -> int:
    """Of self-attention, or of cross-attention to `seen` tokens of width `wide`."""
    seen, wide = seen or tokens, wide or width
    projections = 2 * _product(tokens, width, width)  # query and out
    projections += 2 * _product(seen, wide, width)  # key and value
    attention = 2 * _product(tokens, width, seen)  # logits and the weighted sum, all heads
    mlp = 2 * _product(tokens, width, int(width * mlp_ratio))
    return projections + attention + mlp
