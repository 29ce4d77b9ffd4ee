"""The Vision Transformer (arXiv 2010.11929) as an encoder of whole or masked inputs."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Shaped

from mae_jax.models import layers
from mae_jax.models.masking import Mask
from mae_jax.models.positions import PositionTable
from mae_jax.models.tokenizers import PatchTokenizer
from mae_jax.models.transformer import Transformer

# The tokens after the embedding, then after each block, all before the final norm.
FeatureMaps = list[Float[Array, "b t width"]]


class Encoder(nn.Module):
    """A tokenizer, positions and a trunk, with a cls token before the others.

    The parts share the scope of the encoder, whose parameters are therefore called `embedding`,
    `positions`, `block_0` ... An encoder takes inputs of any size that its tokenizer takes.
    """

    tokenizer: PatchTokenizer
    position_table: PositionTable
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
    ) -> tuple[Float[Array, "b 1+k width"], FeatureMaps]:
        """Encode whole inputs, or only the tokens that `mask` shows.

        Returns:
          The tokens, cls first, after the final norm if there is one; and all feature maps.
        """
        table = self.position_table(self.tokenizer.grid(inputs.shape[1:-1]))  # [1+n width]
        cls = self.param("cls", nn.initializers.normal(0.02), (1, self.trunk.width))
        positions = table[None, 1:] if mask is None else table[1:][mask.visible]
        x = self.tokenizer(inputs, None if mask is None else mask.visible) + positions
        cls = jnp.broadcast_to(cls.astype(x.dtype) + table[:1], (x.shape[0], 1, x.shape[-1]))
        maps = self.trunk(jnp.concatenate([cls, x], axis=1), drop_path_scale)
        if not self.final_norm:
            return maps[-1], maps
        return layers.Norm(self.trunk.eps, self.trunk.ops, name="norm")(maps[-1]), maps


class EncoderModel(nn.Module):
    """A model that is built on an encoder, and can be used as one."""

    encoder: Encoder

    @property
    def patch(self) -> tuple[int, ...]:
        """The sides of a patch."""
        return self.encoder.tokenizer.patch

    @property
    def depth(self) -> int:
        """The number of the encoder's blocks."""
        return self.encoder.trunk.depth

    def grid(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the number of tokens along each axis, for inputs of `size`."""
        return self.encoder.tokenizer.grid(size)

    def encode(self, inputs, mask: Mask | None = None) -> tuple[jax.Array, FeatureMaps]:
        """Run only the encoder: see `Encoder`."""
        return self.encoder(inputs, mask)
