"""The masked autoencoder of He et al. 2021 (arXiv 2111.06377), on any grid."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float, Int, Shaped

from mae_jax.models import layers, patches, positions, vit
from mae_jax.models.masking import Mask, hidden_map


@struct.dataclass
class Output:
    """What a masked autoencoder says of a batch."""

    loss: Float[Array, ""]
    losses: Float[Array, "b"]  # of each sample; `loss` is their mean
    prediction: Float[Array, "b m d"]  # in the order of `mask.hidden`; logits of categories
    mask: Mask
    intermediates: dict[str, jax.Array]  # encoder/embedding, encoder/block_0 ..., encoder/norm


class Decoder(nn.Module):
    """Predicts the hidden patches from the encoder's tokens.

    Nothing in it depends on the order of the tokens, so it sees `[cls; visible; mask tokens]`
    with each token's position added, which equals un-shuffling them first, and its head runs on
    the hidden tokens alone.

    With `cross` it is that of CrossMAE (arXiv 2401.14391): the mask tokens look at the encoder's
    tokens and not at each other, so that any part of them can be decoded alone; block i sees a sum
    of all of the encoder's feature maps, with weights `maps[:, i]`, through a norm of its own. (The
    last map is taken after the encoder's norm, which is so trained for the features, too.)
    """

    width: int
    depth: int
    heads: int
    cross: bool = False
    mlp_ratio: float = 4.0
    eps: float = 1e-6
    learned_positions: bool = False
    separable_positions: bool = False
    attention: str = "plain"
    remat: str = "none"
    scan: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, maps: Sequence[jax.Array], mask: Mask, grid: Sequence[int], features: int
    ) -> Float[Array, "b m features"]:
        """Values of each hidden patch; `maps` are the encoder's tokens, the last ones normed."""
        b, m = mask.hidden.shape
        table = positions.table(
            self, grid, self.width, self.learned_positions, self.separable_positions, self.dtype
        )
        places = table[1:]
        token = self.param("mask_token", nn.initializers.normal(0.02), (1, self.width))
        token = jnp.broadcast_to(token.astype(self.dtype), (b, m, self.width))
        x = token + places[mask.hidden]
        contexts = [None] * self.depth
        if self.cross:
            start = nn.initializers.normal(len(maps) ** -0.5)
            weights = self.param("maps", start, (len(maps), self.depth)).astype(self.dtype)
            contexts = jnp.einsum("sbte,si->ibte", jnp.stack(maps), weights)
            contexts = [
                layers.Norm(self.eps, self.dtype, name=f"context_norm_{i}")(context)
                for i, context in enumerate(contexts)
            ]
        else:
            seen = layers.dense(self.width, self.dtype, "embedding")(maps[-1])  # [b 1+k d]
            seen = [seen[:, :1] + table[None, :1], seen[:, 1:] + places[mask.keep]]
            x = jnp.concatenate([*seen, x], axis=1)
        blocks = layers.stack(
            self,
            x,
            [(None, context) for context in contexts],
            remat=self.remat,
            scan=self.scan,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            eps=self.eps,
            form=self.attention,
            dtype=self.dtype,
        )
        x = [x, *blocks][-1]
        x = layers.Norm(self.eps, self.dtype, name="norm")(x[:, x.shape[1] - m :])
        return layers.dense(features, self.dtype, "head")(x)


class MaskedAutoencoder(nn.Module):
    """An encoder that sees the visible patches and a lighter decoder that predicts the others.

    What is predicted is the pixels of each hidden patch; with `norm_pix` each patch's are made
    zero-mean and unit-variance: better features, but the prediction must be un-normalised to be
    looked at (`reconstruct`). With `categories` the input is whole numbers below it, such as bytes,
    the prediction is their logits and the loss is the cross-entropy.
    """

    patch: tuple[int, ...]
    width: int
    depth: int
    heads: int
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    decoder_cross: bool = False
    mlp_ratio: float = 4.0
    eps: float = 1e-6
    learned_positions: bool = False
    separable_positions: bool = False
    groups: patches.Groups = ()  # of channels, a token for each, see `patches.split_channels`
    categories: int = 0
    norm_pix: bool = True
    target_stride: tuple[int, ...] = ()  # predict every so many values along each axis; () = all
    attention: str = "plain"  # see `attention.attend`; these three change speed and memory alone
    remat: str = "none"  # see `layers.stack`
    scan: bool = False
    dtype: Any = jnp.float32

    def setup(self):
        shared: dict[str, Any] = dict(
            mlp_ratio=self.mlp_ratio,
            eps=self.eps,
            learned_positions=self.learned_positions,
            separable_positions=self.separable_positions,
            attention=self.attention,
            remat=self.remat,
            scan=self.scan,
            dtype=self.dtype,
        )
        self.encoder = vit.Encoder(
            self.patch,
            self.width,
            self.depth,
            self.heads,
            groups=self.groups,
            categories=self.categories,
            **shared,
        )
        self.decoder = Decoder(
            self.decoder_width,
            self.decoder_depth,
            self.decoder_heads,
            cross=self.decoder_cross,
            **shared,
        )

    def __call__(self, images: Shaped[Array, "b *size c"], mask: Mask) -> Output:
        """Reconstruct the hidden patches of `images` (normalised pixels) from the visible ones.

        The loss is the mean squared error (or cross-entropy) on the hidden patches alone, in
        float32.
        """
        grid = patches.grid_of(images.shape[1:-1], self.patch, self.groups)
        if (len(mask.keep), mask.n) != (len(images), math.prod(grid)):
            raise ValueError(
                f"the mask is for {len(mask.keep)} samples of {mask.n} patches, but there are "
                f"{len(images)} samples of {math.prod(grid)}"
            )
        with jax.named_scope("encoder"):
            tokens, intermediates = self.encoder(images, mask)
        target, weights = self.target(images, mask.hidden)  # [b m d]
        with jax.named_scope("decoder"):
            maps = [*list(intermediates.values())[:-1], tokens]
            features = target.shape[-1] * (self.categories or 1)
            prediction = self.decoder(maps, mask, grid, features).astype(jnp.float32)
        losses = patches.mean(self.errors(prediction, target), weights).mean(1)
        intermediates = {f"encoder/{name}": x for name, x in intermediates.items()}
        intermediates["encoder/norm"] = tokens
        return Output(losses.mean(), losses, prediction, mask, intermediates)

    def target(
        self, images: Shaped[Array, "b *size c"], index: Int[Array, "b m"]
    ) -> tuple[Shaped[Array, "b m d"], Float[Array, "b m d"] | float]:
        """What is to be predicted of the tokens at `index`, and which of these values count."""
        small = _small(self.patch, self.target_stride)
        x = patches.patchify(strided(images, self.target_stride), small)
        weights = 1.0
        if self.groups:
            table = patches.weights_of(self.groups, small, images.shape[-1])
            weights = jnp.asarray(table)[index // x.shape[1]]
        target = patches.take(x, index % x.shape[1])
        return patches.normalize(target, weights) if self.norm_pix else target, weights

    def errors(
        self, prediction: Float[Array, "b m e"], target: Shaped[Array, "b m d"]
    ) -> Float[Array, "b m d"]:
        """Squared error of each value, or cross-entropy where the values are categories."""
        if not self.categories:
            return jnp.square(prediction - target)
        logits = prediction.reshape(*target.shape, self.categories)
        return optax.softmax_cross_entropy_with_integer_labels(logits, target.astype(jnp.int32))

    def encode(
        self, images: Shaped[Array, "b *size c"], mask: Mask | None = None
    ) -> tuple[Float[Array, "b t d"], dict[str, jax.Array]]:
        """The encoder alone, on whole images or on masked ones: see `vit.Encoder`."""
        return self.encoder(images, mask)


def reconstruct(
    images: Shaped[Array, "b *size c"],
    prediction: Float[Array, "b m d"],
    mask: Mask,
    patch: Sequence[int],
    norm_pix: bool,
    *,
    groups: patches.Groups = (),
    categories: int = 0,
    target_stride: Sequence[int] = (),
) -> Shaped[Array, "b *size c"]:
    """A full picture: the visible patches of `images`, and the prediction where they are hidden.

    With `norm_pix` the prediction has no brightness and no contrast of its own: it is given those
    of the true patches, as in the paper's figures. Without it nothing hidden is used. The other
    arguments are those of the model; with a stride the picture is of the values that it predicts.
    What a partial mask neither shows nor predicts is zero.
    """
    images, patch = strided(images, target_stride), _small(patch, target_stride)
    x = patches.patchify(images, patch)
    weights = patches.weights_of(groups, patch, images.shape[-1])
    if categories:
        prediction = prediction.reshape(*prediction.shape[:2], -1, categories).argmax(-1)
    if norm_pix:
        of_group = jnp.asarray(weights)[mask.hidden // x.shape[1]]
        mean, std = patches.statistics(patches.take(x, mask.hidden % x.shape[1]), of_group)
        prediction = prediction * std + mean
    tokens, samples = patches.split_channels(x, weights), jnp.arange(len(x))[:, None]
    tokens = jnp.where(hidden_map(mask)[..., None] > 0, 0, tokens)
    tokens = tokens.at[samples, mask.hidden].set(prediction.astype(x.dtype))
    return patches.unpatchify(patches.join_channels(tokens, weights), patch, images.shape[1:-1])


def strided(images: Shaped[Array, "b *size c"], stride: Sequence[int]) -> Shaped[Array, "..."]:
    """Every so many values along each axis; all of them without a stride."""
    return images[:, *(slice(None, None, step) for step in stride)] if stride else images


def _small(patch: Sequence[int], stride: Sequence[int]) -> tuple[int, ...]:
    """A patch after striding."""
    if not stride:
        return tuple(patch)
    if len(stride) != len(patch) or any(p % s for p, s in zip(patch, stride, strict=True)):
        raise ValueError(f"target_stride {tuple(stride)} does not divide patch {tuple(patch)}")
    return tuple(p // s for p, s in zip(patch, stride, strict=True))
