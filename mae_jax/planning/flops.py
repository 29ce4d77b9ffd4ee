"""Count what a masked autoencoder costs in FLOPs, by arithmetic and in a traced program.

A product of matrices [a b] x [b c] is 2abc FLOPs. Nothing else is counted (biases, norms, softmax,
GELU, the optimiser): it is bound by memory, and left out of the MFU as is usual.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.interpreters import partial_eval

from mae_jax.models import mae
from mae_jax.models.byte_values import ByteTokenizer
from mae_jax.models.cross_decoder import CrossDecoder
from mae_jax.models.transformer import Transformer


def forward_flops(
    model: mae.MaskedAutoencoder,
    patches: int,
    visible: int,
    channels: int,
    predicted: int | None = None,
) -> dict[str, int]:
    """Count the FLOPs of the forward pass of one input, part by part.

    Args:
      patches: tokens of an input, of which `visible` are seen by the encoder.
      predicted: how many of the masked patches are predicted, by default all.
    """
    predicted = patches - visible if predicted is None else predicted
    encoder, decoder, seen = model.encoder.trunk, model.decoder.trunk, model.cls_tokens + visible
    inputs = math.prod(model.patch) * channels  # of the embedding of a patch
    if isinstance(model.encoder.tokenizer, ByteTokenizer):
        inputs *= model.encoder.tokenizer.vocab_size
    parts = {
        "patch embedding": product(visible, inputs, encoder.width),
        "encoder blocks": _blocks(encoder, seen + model.encoder.registers),
    }
    if isinstance(model.decoder, CrossDecoder):
        parts["feature maps"] = product(encoder.depth + 1, seen * encoder.width, decoder.depth)
        parts["decoder blocks"] = _blocks(decoder, predicted, seen, encoder.width)
    else:
        parts["decoder embedding"] = product(seen, encoder.width, decoder.width)
        cls_tokens = model.decoder.position_table.cls_tokens
        parts["decoder blocks"] = _blocks(decoder, cls_tokens + visible + predicted)
    return parts | {"head": product(predicted, decoder.width, model.target.size(channels))}


def step_flops(parts: Mapping[str, int], batch_size: int) -> int:
    """Count the FLOPs of a training step whose forward pass has these parts.

    Each product has two products in the backward pass, one for either factor. The patch embedding
    has one, because the gradient of the input is not needed.
    """
    return batch_size * (3 * sum(parts.values()) - parts["patch embedding"])


def program_flops(traced: jax.stages.Traced) -> int | None:
    """Count the FLOPs of all products of a traced program (`jax.jit(f).trace(...)`).

    The count checks the arithmetic above. It has the backward pass, loops and recomputation, but no
    unused products. The result is None if there are kernels whose products are unknown.
    """
    closed: Any = traced.jaxpr
    needed, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    try:
        return _products(needed)
    except NotImplementedError:
        return None


def _products(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "pallas_call" and params["cost_estimate"]:
            total += params["cost_estimate"].flops
            continue
        if any(word in name for word in ("dot_product_attention", "pallas", "custom_call")):
            raise NotImplementedError(name)
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            summed = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += product(summed, math.prod(equation.outvars[0].aval.shape), 1)
        inside = [_products(inner) for inner in _jaxprs(list(params.values()))]
        if name == "scan":
            inside = [params["length"] * x for x in inside]
        elif name == "shard_map":
            inside = [params["mesh"].size * x for x in inside]
        total += max(inside) if name == "cond" else sum(inside)
    return total


def _jaxprs(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, tuple | list):
            yield from _jaxprs(value)
        elif hasattr(value, "eqns"):  # a jaxpr, closed or not
            yield value


def product(a: int, b: int, c: int) -> int:
    """Return the FLOPs of a product of matrices `[a b]` and `[b c]`."""
    return 2 * a * b * c


def _blocks(trunk: Transformer, tokens: int, seen: int | None = None, wide: int = 0) -> int:
    """Count for blocks of self-attention, or cross-attention to `seen` tokens of width `wide`."""
    seen, wide, width = seen or tokens, wide or trunk.width, trunk.width
    projections = 2 * product(tokens, width, width)  # query and out
    projections += 2 * product(seen, wide, width)  # key and value
    attention = 2 * product(tokens, width, seen)  # logits and the weighted sum, all heads
    mlp = 2 * product(tokens, width, int(width * trunk.mlp_ratio))
    return trunk.depth * (projections + attention + mlp)
