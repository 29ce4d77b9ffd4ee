"""The masked autoencoder of He et al. 2021 (arXiv 2111.06377)."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float

from mae_jax import layers, patches, positions, vit
from mae_jax.masking import Mask


@struct.dataclass
class Output:
    """What a masked autoencoder says of a batch."""

    loss: Float[Array, ""]
    losses: Float[Array, "b"]  # of each sample; `loss` is their mean
    prediction: Float[Array, "b m d"]  # in the order of `mask.hidden`
    mask: Mask
    intermediates: dict[str, jax.Array]  # encoder/embedding, encoder/block_0 ..., encoder/norm


class Decoder(nn.Module):
    """Predicts the hidden patches from the encoder's tokens.

    Nothing in it depends on the order of the tokens, so it sees `[cls; visible; mask tokens]`
    with each token's position added, which equals un-shuffling them first, and its head runs on
    the hidden tokens alone.
    """

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    eps: float = 1e-6
    learned_positions: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "b t e"], mask: Mask, grid: Sequence[int], features: int
    ) -> Float[Array, "b m features"]:
        x = nn.Dense(self.width, dtype=self.dtype, kernel_init=layers.xavier, name="embedding")(
            tokens
        )  # [b 1+k d]
        token = self.param("mask_token", nn.initializers.normal(0.02), (1, self.width))
        (b, k), m = mask.keep.shape, mask.hidden.shape[1]
        table = positions.table(self, grid, self.width, self.learned_positions, self.dtype)
        token = jnp.broadcast_to(token.astype(self.dtype), (b, m, self.width))
        places = table[1:]
        x = jnp.concatenate(
            [x[:, :1] + table[None, :1], x[:, 1:] + places[mask.keep], token + places[mask.hidden]],
            axis=1,
        )
        for i in range(self.depth):
            x = layers.Block(self.heads, self.mlp_ratio, self.eps, self.dtype, name=f"block_{i}")(x)
        x = layers.norm(self.eps, self.dtype, "norm")(x[:, 1 + k :])
        return nn.Dense(features, dtype=self.dtype, kernel_init=layers.xavier, name="head")(x)


class MaskedAutoencoder(nn.Module):
    """An encoder that sees the visible patches and a lighter decoder that predicts the others.

    `norm_pix` makes each patch's target zero-mean and unit-variance: better features, but the
    prediction must be un-normalised to be looked at (`reconstruct`).
    """

    patch: tuple[int, ...]
    width: int
    depth: int
    heads: int
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    mlp_ratio: float = 4.0
    eps: float = 1e-6
    learned_positions: bool = False
    norm_pix: bool = True
    dtype: Any = jnp.float32

    def setup(self):
        shared: dict[str, Any] = dict(
            mlp_ratio=self.mlp_ratio,
            eps=self.eps,
            learned_positions=self.learned_positions,
            dtype=self.dtype,
        )
        self.encoder = vit.Encoder(self.patch, self.width, self.depth, self.heads, **shared)
        self.decoder = Decoder(self.decoder_width, self.decoder_depth, self.decoder_heads, **shared)

    def __call__(self, images: Float[Array, "b *size c"], mask: Mask) -> Output:
        """Reconstruct the hidden patches of `images` (normalised pixels) from the visible ones.

        The loss is the mean squared error on the hidden patches alone, in float32.
        """
        grid = patches.grid_of(images.shape[1:-1], self.patch)
        (b, k), m = mask.keep.shape, mask.hidden.shape[1]
        if (b, k + m) != (len(images), math.prod(grid)):
            raise ValueError(
                f"the mask is for {b} samples of {k + m} patches, but there are {len(images)} "
                f"samples of {math.prod(grid)}"
            )
        with jax.named_scope("encoder"):
            tokens, intermediates = self.encoder(images, mask)
        target = patches.take(patches.patchify(images, self.patch), mask.hidden)  # [b m d]
        if self.norm_pix:
            target = patches.normalize(target)
        with jax.named_scope("decoder"):
            prediction = self.decoder(tokens, mask, grid, target.shape[-1]).astype(jnp.float32)
        losses = jnp.square(prediction - target).mean((1, 2))
        intermediates = {f"encoder/{name}": x for name, x in intermediates.items()}
        intermediates["encoder/norm"] = tokens
        return Output(losses.mean(), losses, prediction, mask, intermediates)

    def encode(
        self, images: Float[Array, "b *size c"], mask: Mask | None = None
    ) -> tuple[Float[Array, "b t d"], dict[str, jax.Array]]:
        """The encoder alone, on whole images or on masked ones: see `vit.Encoder`."""
        return self.encoder(images, mask)


def reconstruct(
    images: Float[Array, "b *size c"],
    prediction: Float[Array, "b m d"],
    mask: Mask,
    patch: Sequence[int],
    norm_pix: bool,
) -> Float[Array, "b *size c"]:
    """A full picture: the visible patches of `images`, and the prediction where they are hidden.

    With `norm_pix` the prediction has no brightness and no contrast of its own: it is given those
    of the true patches, as in the paper's figures. Without it nothing hidden is used.
    """
    x = patches.patchify(images, patch)
    if norm_pix:
        mean, std = patches.statistics(patches.take(x, mask.hidden))
        prediction = prediction * std + mean
    samples = jnp.arange(len(x))[:, None]
    x = x.at[samples, mask.hidden].set(prediction.astype(x.dtype))
    return patches.unpatchify(x, patch, images.shape[1:-1])
