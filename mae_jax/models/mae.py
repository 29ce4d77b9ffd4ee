"""The masked autoencoder of He et al. 2021 (arXiv 2111.06377), on any grid."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float, Shaped

from mae_jax.models import layers, masking
from mae_jax.models.masking import Mask
from mae_jax.models.positions import Coordinates, Positions, PositionTable
from mae_jax.models.targets import Target, Weight, mean
from mae_jax.models.transformer import Transformer
from mae_jax.models.vit import EncoderModel, FeatureMaps


@struct.dataclass
class Output:
    """The result of a masked autoencoder for a batch."""

    loss: Float[Array, ""]  # the mean over the samples that predict anything
    losses: Float[Array, "b"]  # of each sample; 0 if it predicts nothing
    prediction: Float[Array, "b m d"]  # in the order of `mask.masked`, in the terms of the target
    mask: Mask
    # encoder/embedding, encoder/block_0 ..., encoder/norm (what the decoder gets)
    intermediates: dict[str, jax.Array]


class Decoder(nn.Module):
    """What decoders have in common: a mask token at each masked position, blocks and a head."""

    position_table: PositionTable
    trunk: Transformer

    def setup(self):
        for part in (self.position_table, self.trunk):
            nn.share_scope(self, part)

    @nn.compact
    def __call__(
        self,
        feature_maps: FeatureMaps,
        mask: Mask,
        grid: Sequence[int],
        size: int,
        coordinates: Coordinates = None,
    ) -> Float[Array, "b m size"]:
        """Predict `size` numbers for each masked token of a grid.

        Args:
          feature_maps: the encoder's, of which the last one is after the final norm, if there is
            one.
        """
        width, trunk = self.trunk.width, self.trunk
        table = self.position_table(grid, coordinates)
        token = self.param("mask_token", nn.initializers.normal(0.02), (1, width))
        token = jnp.broadcast_to(token.astype(trunk.ops.dtype), (*mask.masked.shape, width))
        x = self.decode(token + table.at(mask.masked), feature_maps, table, mask)
        x = layers.Norm(trunk.eps, trunk.ops, name="norm")(x)
        return layers.dense(size, trunk.ops, "head")(x)

    @nn.nowrap
    def decode(
        self,
        masked: Float[Array, "b m width"],
        feature_maps: FeatureMaps,
        table: Positions,
        mask: Mask,
    ) -> Float[Array, "b m width"]:
        """Run the blocks on the mask tokens `masked` and on what these may see."""
        raise NotImplementedError


class SelfDecoder(Decoder):
    """The decoder of He et al. 2021: self-attention over visible tokens and mask tokens.

    Nothing in it depends on the order of the tokens. It sees `[cls; visible; mask tokens]` with
    each token's position added, which equals un-shuffling them first, and its head runs only
    on the masked tokens.
    """

    @nn.nowrap
    def decode(self, masked, feature_maps, table, mask):
        x = layers.dense(self.trunk.width, self.trunk.ops, "embedding")(feature_maps[-1])
        before = x.shape[1] - mask.visible.shape[1]  # the encoder's class tokens
        cls, visible = self.cls(x[:, :before]), x[:, before:] + table.at(mask.visible)
        keys = masking.keys(mask, before=cls.shape[1])
        if keys is not None:
            predicted: Any = mask.predicted
            keys = jnp.concatenate([keys, predicted], axis=1)
        x = jnp.concatenate([cls + table.cls[None], visible, masked], axis=1)
        x = self.trunk(x, key_mask=keys)[-1]
        return x[:, -masked.shape[1] :]

    @nn.nowrap
    def cls(self, tokens: Float[Array, "b k width"]) -> Float[Array, "b k width"]:
        """Return the class tokens that the blocks see, given those of the encoder."""
        return tokens


class OwnClsDecoder(SelfDecoder):
    """`SelfDecoder` with one class token of its own in place of the encoder's, as MAE-ST has."""

    @nn.nowrap
    def cls(self, tokens):
        start, shape = nn.initializers.normal(0.02), (1, self.trunk.width)
        cls = self.param("cls", start, shape).astype(tokens.dtype)
        return jnp.broadcast_to(cls, (tokens.shape[0], *shape))


class MaskedAutoencoder(EncoderModel):
    """An encoder that sees the visible tokens and a lighter decoder that predicts the others."""

    decoder: Decoder
    target: Target

    def __call__(
        self,
        inputs: Shaped[Array, "b *size c"],
        mask: Mask,
        weight: Weight = None,
        coordinates: Coordinates = None,
    ) -> Output:
        """Predict the masked tokens of normalised `inputs` from the visible ones.

        The loss is the mean over the masked tokens of each sample, then over samples, in float32.

        Args:
          weight: how much each value counts in the loss. A value with the weight 0 is missing: no
            result depends on it, whatever it is, even NaN. The mask must then be made with
            `present(weight)`.
          coordinates: of the patches along each axis, where fixed positions are not their indices.

        Raises:
          ValueError: the mask belongs to another batch or grid, or whole numbers have weights.
        """
        grid = self.grid(inputs.shape[1:-1])
        samples, n = inputs.shape[0], math.prod(grid)  # `len` knows no symbolic batch size
        if (mask.visible.shape[0], mask.n) != (samples, n):
            raise ValueError(
                f"the mask is for {mask.visible.shape[0]} samples of {mask.n} patches, but there "
                f"are {samples} samples of {n}"
            )
        if weight is not None:
            inputs = jnp.where(weight > 0, inputs, 0)
        with jax.named_scope("encoder"):
            tokens, maps = self.encoder(inputs, mask, coordinates=coordinates)
        with jax.named_scope("decoder"):
            size = self.target.size(inputs.shape[-1])
            prediction = self.decoder([*maps[:-1], tokens], mask, grid, size, coordinates)
        prediction = prediction.astype(jnp.float32)
        losses = self.target.sample_losses(prediction, inputs, mask, weight)
        loss = losses.mean()
        if weight is not None or mask.predicted is not None:
            counted = self.target.predicts(inputs, mask, weight)
            loss = jnp.where(counted.all(), loss, mean(losses, counted))
        names = ["embedding", *(f"block_{i}" for i in range(len(maps) - 1))]
        intermediates = {f"encoder/{n}": x for n, x in zip(names, maps, strict=True)}
        intermediates["encoder/norm"] = tokens
        return Output(loss, losses, prediction, mask, intermediates)
