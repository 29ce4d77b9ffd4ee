"""Parameters of other code that our networks do not have, folded exactly into those they have."""

import numpy as np

from mae_jax.weights import checkpoint_info, tensor_files
from mae_jax.weights.parameter_names import QKV, Tensors

BRANCHES = {"scale1": "attention/out", "scale2": "mlp/fc2"}  # LayerScale and what it multiplies


def fold(params: Tensors) -> Tensors:
    """Fold the scales of branches, and give queries, keys and values the biases they lack."""
    return _fold_biases(_fold_scales(params))


def _fold_scales(params: Tensors) -> Tensors:
    params = dict(params)
    multiply = lambda *factors: np.multiply(*factors, dtype=np.float32)
    for name in [name for name in params if name.rpartition("/")[2] in BRANCHES]:
        block, _, branch = name.rpartition("/")
        scale = params.pop(name)
        for leaf in ("kernel", "bias"):
            if (scaled := f"{block}/{BRANCHES[branch]}/{leaf}") in params:
                params[scaled] = tensor_files.compute(multiply, params[scaled], scale)
    return params


def _fold_biases(params: Tensors) -> Tensors:
    """Add biases of 0 to the queries, keys and values of a part of which a file has none.

    Beside `q_bias` and `v_bias` of a part only the keys have none: if a block lacks one of these,
    it stays missing.
    """
    params = dict(params)
    for part in ("encoder/", "decoder/"):
        ends = tuple(f"/attention/{name}/kernel" for name in QKV)
        kernels = [name for name in params if name.startswith(part) and name.endswith(ends)]
        biases = {name: f"{name.removesuffix('kernel')}bias" for name in kernels}
        if any(bias in params for bias in biases.values()):
            continue
        ends = ("/q_bias", "/v_bias")
        has_own = any(name.startswith(part) and name.endswith(ends) for name in params)
        for kernel, bias in biases.items():
            attention, name, _ = bias.rsplit("/", 2)
            if own := params.get(f"{attention}/{name[0]}_bias"):
                params[bias] = own
            elif name == "key" or not has_own:
                params[bias] = tensor_files.compute(lambda x: np.zeros(x.shape[-1]), params[kernel])
    return {name: x for name, x in params.items() if not name.endswith(("/q_bias", "/v_bias"))}


def fold_linear_probe(tensors: Tensors) -> Tensors:
    """Fold the BatchNorm `head.0` of a linear probe of the reference into its head."""
    parts = ("head.1.weight", "head.1.bias", "head.0.running_mean", "head.0.running_var")
    if any(name not in tensors for name in parts):
        return tensors
    weight, bias, mean, var = (np.float32(tensors[name].read()) for name in parts)
    kernel, bias = checkpoint_info.fold_batch_norm(weight.T, bias, mean, var)
    others = {name: x for name, x in tensors.items() if not name.startswith("head.")}
    head = {"head.weight": kernel.T, "head.bias": bias}
    return others | {name: tensor_files.Tensor(x.shape, x) for name, x in head.items()}
