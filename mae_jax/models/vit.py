"""The Vision Transformer (arXiv 2010.11929) as an encoder of whole or masked inputs."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Shaped

from mae_jax.models import layers, masking
from mae_jax.models.masking import Mask
from mae_jax.models.positions import Coordinates, PositionTable
from mae_jax.models.tokenizers import PatchTokenizer
from mae_jax.models.transformer import Transformer

# The tokens after the embedding, then after each block, all before the final norm.
FeatureMaps = list[Float[Array, "b t width"]]


class Encoder(nn.Module):
    """A tokenizer, positions and a trunk, with class tokens before the others.

    The parts share the scope of the encoder, whose parameters are therefore called `embedding`,
    `positions`, `block_0` ... An encoder takes inputs of any size that its tokenizer takes.
    """

    tokenizer: PatchTokenizer
    position_table: PositionTable
    trunk: Transformer
    registers: int = 0  # tokens that only the blocks see (arXiv 2309.16588)
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
        coordinates: Coordinates = None,
    ) -> tuple[Float[Array, "b cls+k width"], FeatureMaps]:
        """Encode whole inputs, or only the tokens that `mask` shows.

        The tokens at places of `mask.visible` that are not shown mean nothing, and no other token
        attends to them. `masking.whole` is the mask of whole inputs in which patches lack data.

        Returns:
          The class tokens and then the others, after the final norm if there is one; and all
          feature maps.
        """
        table = self.position_table(self.tokenizer.grid(inputs.shape[1:-1]), coordinates)
        positions = table.patches if mask is None else table.at(mask.visible)
        x = self.tokenizer(inputs, None if mask is None else mask.visible) + positions
        tokens = [x]
        if len(table.cls):
            cls = self._token("cls", len(table.cls)).astype(x.dtype) + table.cls
            tokens = [jnp.broadcast_to(cls, (x.shape[0], *cls.shape)), x]
        if self.registers:
            registers = self._token("registers", self.registers).astype(x.dtype)
            tokens.append(jnp.broadcast_to(registers, (x.shape[0], *registers.shape)))
        keys = masking.keys(mask, len(table.cls), self.registers)
        maps = self.trunk(jnp.concatenate(tokens, axis=1), drop_path_scale, key_mask=keys)
        if self.registers:
            maps = [x[:, : -self.registers] for x in maps]
        if not self.final_norm:
            return maps[-1], maps
        return layers.Norm(self.trunk.eps, self.trunk.ops, name="norm")(maps[-1]), maps

    @nn.nowrap
    def _token(self, name: str, count: int) -> Float[Array, "count width"]:
        """Return the parameter of tokens that are the same for all inputs."""
        return self.param(name, nn.initializers.normal(0.02), (count, self.trunk.width))


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

    @property
    def cls_tokens(self) -> int:
        """The number of class tokens, which come before the tokens of the patches."""
        return self.encoder.position_table.cls_tokens

    def grid(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the number of tokens along each axis, for inputs of `size`."""
        return self.encoder.tokenizer.grid(size)

    def present(self, weight: Shaped[Array, "b *size c"]) -> Bool[Array, "b n"]:
        """Return which tokens hold any value whose weight is above 0 (or True)."""
        return self.encoder.tokenizer.present(weight)

    def encode(
        self, inputs, mask: Mask | None = None, coordinates: Coordinates = None
    ) -> tuple[jax.Array, FeatureMaps]:
        """Run only the encoder: see `Encoder`."""
        return self.encoder(inputs, mask, coordinates=coordinates)
