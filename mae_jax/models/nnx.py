"""Networks of this package as modules of flax NNX."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn
from flax import nnx
from flax.nnx import bridge


def to_nnx(model: nn.Module, params: Mapping[str, Any]) -> bridge.ToNNX:
    """Return an NNX module that computes what `model.apply({"params": params}, ...)` computes.

    A call of the module is the `__call__` of the model, and the other methods keep their names:
    `module(images)` of a classifier, `module(images, mask)` of an autoencoder, and
    `module.encode(images)` of both. The parameters are `nnx.Param`s of the same arrays under the
    same names, such as `module.encoder["block_0"]["mlp"]["fc1"]["kernel"]`. No input is needed, as
    the parameters are there, so `lazy_init` must not be called: it would replace them.

    Args:
      model: a model that `mae_jax.load` or `models.build` returns, or a part such as
        `model.encoder`.
      params: its parameters, nested; `nnx.to_pure_dict(nnx.state(module, nnx.Param))` gives them
        back, after a training with their new values.
    """
    module = bridge.ToNNX(model)
    for name, part in params.items():
        setattr(module, name, nnx.data(jax.tree.map(nnx.Param, part)))
    return module
