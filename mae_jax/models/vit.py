"""The Vision Transformer (arXiv 2010.11929) as an encoder of whole or masked inputs."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Shaped

from mae_jax.models import layers
from mae_jax.models.masking import Mask
from mae_jax.models.transformer import Transformer

Intermediates = dict[str, jax.Array]


class Encoder(nn.Module):
    """A tokenizer, positions and a trunk, with a cls token before the others.

    The parts share the scope of the encoder, so that their parameters are called `embedding`,
    `positions` and `block_0` ... here. An encoder knows the size of its inputs from each call.
    """

    tokenizer: nn.Module  # see `tokenizers`
    position_table: nn.Module  # see `positions`: `positions` is the name of a parameter
    trunk: Transformer
    final_norm: bool = True

    def setup(self):
        for part in (self.tokenizer, self.position_table, self.trunk):
            nn.share_scope(self, part)

    @nn.compact
    def __call__(
        self,
        inputs: Shaped[Array, "b *size c"],
        mask: Mask | None = None,
        drop_path_scale: Float[Array, "b depth 2"] | None = None,
    ) -> tuple[Float[Array, "b t width"], Intermediates]:
        """Encode whole inputs, or only the tokens that `mask` shows.

        Returns:
          The tokens `[b, 1 + k, width]`, cls first, after the final norm if there is one; and every
          intermediate by name: `embedding`, `block_0` ..., each before the final norm.
        """
        table = self.position_table(self.tokenizer.grid(inputs.shape[1:-1]))  # [1+n width]
        cls = self.param("cls", nn.initializers.normal(0.02), (1, self.trunk.width))
        places = table[None, 1:] if mask is None else table[1:][mask.visible]
        x = self.tokenizer(inputs, None if mask is None else mask.visible) + places
        cls = jnp.broadcast_to(cls.astype(x.dtype) + table[:1], (len(x), 1, x.shape[-1]))
        x = jnp.concatenate([cls, x], axis=1)
        blocks = self.trunk(x, drop_path_scale)
        intermediates = {"embedding": x} | {f"block_{i}": y for i, y in enumerate(blocks)}
        x = [x, *blocks][-1]
        if self.final_norm:
            x = layers.Norm(self.trunk.eps, self.trunk.compute, name="norm")(x)
        return x, intermediates
