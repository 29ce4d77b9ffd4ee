"""The masked autoencoder of He et al. 2021 (arXiv 2111.06377), on any grid."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float, Shaped

from mae_jax.models import layers
from mae_jax.models.masking import Mask
from mae_jax.models.transformer import Transformer
from mae_jax.models.vit import Encoder, Intermediates


@struct.dataclass
class Output:
    """What a masked autoencoder says of a batch."""

    loss: Float[Array, ""]
    losses: Float[Array, "b"]  # of each sample; `loss` is their mean
    prediction: Float[Array, "b m d"]  # in the order of `mask.masked`, in the terms of the target
    mask: Mask
    intermediates: Intermediates  # encoder/embedding, encoder/block_0 ..., encoder/norm


class SelfDecoder(nn.Module):
    """The decoder of He et al. 2021: self-attention over visible tokens and mask tokens.

    Nothing in it depends on the order of the tokens. It sees `[cls; visible; mask tokens]` with
    each token's position added, which equals un-shuffling them first, and its head runs on the
    masked tokens alone.
    """

    position_table: nn.Module
    trunk: Transformer

    def setup(self):
        for part in (self.position_table, self.trunk):
            nn.share_scope(self, part)

    @nn.compact
    def __call__(
        self,
        feature_maps: Sequence[Float[Array, "b t e"]],
        mask: Mask,
        grid: Sequence[int],
        size: int,
    ) -> Float[Array, "b m size"]:
        """Predict `size` numbers for each masked token.

        Args:
          feature_maps: the encoder's tokens after the embedding and after each block, the last
            ones after the final norm. This decoder sees the last ones alone.
          grid: of the tokens.
        """
        compute = self.trunk.compute
        table = self.position_table(grid)
        masked = mask_tokens(self, self.trunk.width, mask, table)
        seen = layers.dense(self.trunk.width, compute, "embedding")(feature_maps[-1])
        cls, visible = seen[:, :1] + table[None, :1], seen[:, 1:] + table[1:][mask.visible]
        x = self.trunk(jnp.concatenate([cls, visible, masked], axis=1))[-1]
        x = layers.Norm(self.trunk.eps, compute, name="norm")(x[:, seen.shape[1] :])
        return layers.dense(size, compute, "head")(x)


def mask_tokens(decoder: nn.Module, width: int, mask: Mask, table: jax.Array) -> jax.Array:
    """Return the one learned token at the position of each masked patch, `[b m width]`."""
    token = decoder.param("mask_token", nn.initializers.normal(0.02), (1, width))
    token = jnp.broadcast_to(token.astype(table.dtype), (*mask.masked.shape, width))
    return token + table[1:][mask.masked]


class MaskedAutoencoder(nn.Module):
    """An encoder that sees the visible tokens and a lighter decoder that predicts the others.

    The target says what is predicted and how wrong it is; `models.build` makes all three from the
    flat section `model` of a config.
    """

    encoder: Encoder
    decoder: nn.Module  # SelfDecoder, or cross_decoder.CrossDecoder
    target: Any  # see `targets`

    @property
    def patch(self) -> tuple[int, ...]:
        """The sides of a patch."""
        return self.encoder.tokenizer.patch

    @property
    def width(self) -> int:
        """The width of the encoder's tokens."""
        return self.encoder.trunk.width

    @property
    def depth(self) -> int:
        """The number of the encoder's blocks."""
        return self.encoder.trunk.depth

    def grid(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the number of tokens along each axis for inputs of `size`."""
        return self.encoder.tokenizer.grid(size)

    def __call__(self, inputs: Shaped[Array, "b *size c"], mask: Mask) -> Output:
        """Predict the masked tokens of normalised `inputs` from the visible ones.

        The loss is the mean over the masked tokens of each sample, then over samples, in float32.

        Raises:
          ValueError: the mask belongs to another batch or grid.
        """
        grid = self.grid(inputs.shape[1:-1])
        if (len(mask.visible), mask.n) != (len(inputs), math.prod(grid)):
            raise ValueError(
                f"the mask is for {len(mask.visible)} samples of {mask.n} patches, but there are "
                f"{len(inputs)} samples of {math.prod(grid)}"
            )
        with jax.named_scope("encoder"):
            tokens, intermediates = self.encoder(inputs, mask)
        names = ["embedding", *(f"block_{i}" for i in range(self.depth))]
        feature_maps = [intermediates[name] for name in names[:-1]] + [tokens]
        with jax.named_scope("decoder"):
            size = self.target.size(inputs.shape[-1])
            prediction = self.decoder(feature_maps, mask, grid, size).astype(jnp.float32)
        losses = self.target.losses(prediction, inputs, mask.masked).mean(1)  # [b]
        intermediates = {f"encoder/{name}": x for name, x in intermediates.items()}
        intermediates["encoder/norm"] = tokens
        return Output(losses.mean(), losses, prediction, mask, intermediates)

    def encode(
        self, inputs: Shaped[Array, "b *size c"], mask: Mask | None = None
    ) -> tuple[Float[Array, "b t width"], Intermediates]:
        """Run the encoder alone, on whole inputs or on masked ones: see `vit.Encoder`."""
        return self.encoder(inputs, mask)
