"""A stack of Transformer blocks."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from mae_jax.distributed import partitioning
from mae_jax.models.layers import Block
from mae_jax.models.operations import Operations

# What each block keeps for its gradient; the rest is computed again.
REMAT = {
    "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "inputs": jax.checkpoint_policies.nothing_saveable,
}


class Transformer(nn.Module):
    """Blocks one after another, called `block_0`, `block_1` ...

    Args:
      remat: "none", or what a block keeps for its gradient (`REMAT`).
      scan: compile one block and loop over the stacked parameters of all: a shorter compilation for
        slower steps. The names of the parameters are the same.
    """

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    eps: float = 1e-6
    ops: Operations = Operations()
    remat: str = "none"
    scan: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n width"],
        drop_path_scale: Float[Array, "b depth 2"] | None = None,
        contexts: Sequence[Float[Array, "b s e"]] | None = None,
        key_mask: Bool[Array, "b s"] | None = None,
    ) -> list[Float[Array, "b n width"]]:
        """Return `x` and the output of every block.

        For cross-attention, `contexts` is what each block attends to. Every block attends only to
        the tokens where `key_mask` is True, by default to all.
        """
        lifted: Any = Block
        if self.remat != "none":
            lifted = nn.remat(Block, policy=REMAT[self.remat], prevent_cse=not self.scan)
        make = lambda **where: lifted(self.heads, self.mlp_ratio, self.eps, self.ops, **where)
        plain = self.is_initializing() or self.is_mutable_collection("attention")
        if self.scan and self.depth and not plain:
            return self._scanned(make(parent=None), x, drop_path_scale, contexts, key_mask)
        outputs = [x]
        for i in range(self.depth):
            scale = None if drop_path_scale is None else drop_path_scale[:, i]
            context = None if contexts is None else contexts[i]
            x = make(name=f"block_{i}")(x, scale, context, key_mask)
            outputs.append(x)
        return outputs

    def _scanned(self, block, x, drop_path_scale, contexts, key_mask) -> list[jax.Array]:
        cast = lambda p: p.astype(self.ops.dtype) if p.ndim > 1 else p  # as products use them
        params = self.variables["params"]
        params = [jax.tree.map(cast, params[f"block_{i}"]) for i in range(self.depth)]
        stacked = (
            jax.tree.map(lambda *parts: jnp.stack(parts), *params),
            None if drop_path_scale is None else drop_path_scale.swapaxes(0, 1),
            None if contexts is None else jnp.stack(contexts),
        )

        def body(x, of_block):
            params, scale, context = of_block
            x = block.apply({"params": params}, x, scale, context, key_mask)
            x = partitioning.spread(x)
            return x, x

        last, outputs = jax.lax.scan(body, x, stacked)
        return [x, *outputs[:-1], last]
