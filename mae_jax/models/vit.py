"""The Vision Transformer: an encoder of whole or masked inputs, and a classifier on top of it."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Shaped

from mae_jax.models import layers, patches, positions
from mae_jax.models.masking import Mask

# Encoder widths of Dosovitskiy et al. (arXiv 2010.11929) and Touvron et al. (arXiv 2012.12877);
# H is used with patch 14, the others with patch 16.
SIZES = {
    "small": dict(width=384, depth=12, heads=6),
    "base": dict(width=768, depth=12, heads=12),
    "large": dict(width=1024, depth=24, heads=16),
    "huge": dict(width=1280, depth=32, heads=16),
}


class Encoder(nn.Module):
    """ViT with a cls token and fixed sin-cos positions, or learned ones that start as these.

    The size of the input and its number of channels and axes are those of the first call. With
    `groups` of channels a patch is a token for each group, and the grid has one more axis, the
    first. With `categories` the values of the input are whole numbers below it, such as bytes.
    """

    patch: tuple[int, ...]
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    eps: float = 1e-6
    learned_positions: bool = False
    separable_positions: bool = False  # see `positions.table`
    groups: patches.Groups = ()
    categories: int = 0
    final_norm: bool = True
    attention: str = "plain"  # see `attention.attend`; these three change speed and memory alone
    remat: str = "none"  # see `layers.stack`
    scan: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        images: Shaped[Array, "b *size c"],
        mask: Mask | None = None,
        paths: Float[Array, "b depth 2"] | None = None,
    ) -> tuple[Float[Array, "b t d"], dict[str, jax.Array]]:
        """Encode `images`, or only the patches that `mask` keeps; `paths` see `layers.drop_path`.

        Returns:
          The tokens after the final norm, if there is one, cls first; and every intermediate by
          name: `embedding`, `block_0` ... (each before the final norm), all `[b, 1 + k, width]`;
          k = n without a mask.
        """
        grid = patches.grid_of(images.shape[1:-1], self.patch, self.groups)
        table = positions.table(
            self, grid, self.width, self.learned_positions, self.separable_positions, self.dtype
        )
        weights = patches.weights_of(self.groups, self.patch, images.shape[-1])
        x = patches.split_channels(patches.patchify(images, self.patch), weights)
        places = table[None, 1:]
        if mask is not None:
            x, places = patches.take(x, mask.keep), table[1:][mask.keep]
        start = layers.xavier
        if self.categories:  # then the embedding is a table of categories for each place in a patch
            start = nn.initializers.normal(x.shape[-1] ** -0.5)  # tokens as large as positions
            x = jax.nn.one_hot(x.astype(jnp.int32), self.categories, dtype=self.dtype)
            x = x.reshape(*x.shape[:2], -1)

        cls = self.param("cls", nn.initializers.normal(0.02), (1, self.width))
        embed = layers.dense(self.width, self.dtype, "embedding", start)
        x = embed(x) + places
        cls = jnp.broadcast_to(cls.astype(self.dtype) + table[:1], (len(x), 1, self.width))
        x = jnp.concatenate([cls, x], axis=1)

        blocks = layers.stack(
            self,
            x,
            [(None if paths is None else paths[:, i],) for i in range(self.depth)],
            remat=self.remat,
            scan=self.scan,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            eps=self.eps,
            form=self.attention,
            dtype=self.dtype,
        )
        intermediates = {"embedding": x} | {f"block_{i}": y for i, y in enumerate(blocks)}
        x = [x, *blocks][-1]
        if self.final_norm:
            x = layers.Norm(self.eps, self.dtype, name="norm")(x)
        return x, intermediates


class Classifier(nn.Module):
    """An encoder, a pooled feature and a linear head, as the reference fine-tunes and probes.

    `pooling = "mean"` averages the patch tokens of the last block and normalises the result
    (`norm`; the encoder has no final norm then), `"cls"` takes the cls token after the final norm.
    `batch_norm` standardises the feature by running statistics, without parameters of its own, for
    linear probes. With `classes = 0` there is no head: the result is the feature.
    """

    patch: tuple[int, ...]
    width: int
    depth: int
    heads: int
    classes: int = 0
    pooling: str = "mean"
    batch_norm: bool = False
    head_std: float = 2e-5  # of the initial head
    mlp_ratio: float = 4.0
    eps: float = 1e-6
    learned_positions: bool = False
    separable_positions: bool = False
    groups: patches.Groups = ()
    categories: int = 0
    attention: str = "plain"
    remat: str = "none"
    scan: bool = False
    dtype: Any = jnp.float32

    def setup(self):
        self.encoder = Encoder(
            patch=self.patch,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            eps=self.eps,
            learned_positions=self.learned_positions,
            separable_positions=self.separable_positions,
            groups=self.groups,
            categories=self.categories,
            final_norm=self.pooling == "cls",
            attention=self.attention,
            remat=self.remat,
            scan=self.scan,
            dtype=self.dtype,
        )
        if self.pooling == "mean":
            self.norm = layers.Norm(self.eps, self.dtype)
        if self.batch_norm:
            self.feature_norm = nn.BatchNorm(
                epsilon=1e-6, use_bias=False, use_scale=False, momentum=0.9, dtype=jnp.float32
            )
        if self.classes:
            self.head = nn.Dense(
                self.classes, kernel_init=nn.initializers.normal(self.head_std), dtype=jnp.float32
            )

    def __call__(
        self,
        images: Float[Array, "b *size c"],
        paths: Float[Array, "b depth 2"] | None = None,
        train: bool = False,
    ) -> Float[Array, "b classes"]:
        """Logits of each class, float32. `train`: standardise by the batch, update the statistics
        (collection `batch_stats`)."""
        tokens, _ = self.encoder(images, paths=paths)
        x = self.norm(tokens[:, 1:].mean(1)) if self.pooling == "mean" else tokens[:, 0]
        x = x.astype(jnp.float32)
        if self.batch_norm:
            x = self.feature_norm(x, use_running_average=not train)
        return self.head(x) if self.classes else x

    def encode(
        self, images: Float[Array, "b *size c"], mask: Mask | None = None
    ) -> tuple[Float[Array, "b t d"], dict[str, jax.Array]]:
        """The encoder alone: see `Encoder`."""
        return self.encoder(images, mask)
