"""A classifier or a regressor on an encoder, as the reference fine-tunes and probes."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Shaped

from mae_jax.models import layers, masking
from mae_jax.models.positions import Coordinates
from mae_jax.models.vit import EncoderModel


class Classifier(EncoderModel):
    """An encoder, a pooled feature and a linear head.

    `pooling = "mean"` averages the patch tokens of the last block and normalises the result
    (`norm`; the encoder then has no final norm); `"norm_mean"` averages the patch tokens after the
    final norm; `"cls"` takes the class token after the final norm, or the mean of several.
    `batch_norm` standardises the feature by running statistics, without parameters of its own, for
    linear probes. With `classes = 0` there is no head, and the result is the feature.

    A regressor is a classifier of as many classes as there are numbers to predict. Their scale,
    `target_mean` and `target_std`, turns the head's outputs into numbers in their own units.
    """

    classes: int = 0
    pooling: str = "mean"
    batch_norm: bool = False
    head_std: float = 2e-5  # of the initial head
    norm_eps: float = 1e-6  # of the norm after the pooling
    target_mean: tuple[float, ...] = ()  # of each output; () leaves the outputs as they are
    target_std: tuple[float, ...] = ()

    def setup(self):
        trunk = self.encoder.trunk
        if self.pooling == "mean":
            self.norm = layers.Norm(self.norm_eps, trunk.ops)
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
        inputs: Shaped[Array, "b *size c"],
        drop_path_scale: Float[Array, "b depth 2"] | None = None,
        train: bool = False,
        present: Bool[Array, "b *size c"] | None = None,
        coordinates: Coordinates = None,
    ) -> Float[Array, "b classes"]:
        """Return the logits of each class, or the predicted numbers, float32.

        With `train`, `batch_norm` standardises by the batch and updates its statistics (the
        collection `batch_stats`). No result depends on values where `present` is False, whatever
        they are; patches without any other are not seen.
        """
        mask = None
        if present is not None:
            inputs = jnp.where(present, inputs, 0)
            mask = masking.whole(self.present(present))
        tokens, _ = self.encoder(inputs, mask, drop_path_scale, coordinates)
        x = self.pool(tokens, mask)
        x = (self.norm(x) if self.pooling == "mean" else x).astype(jnp.float32)
        if self.batch_norm:
            x = self.feature_norm(x, use_running_average=not train)
        x = self.head(x) if self.classes else x
        if self.target_std:
            x = x * jnp.array(self.target_std)[None] + jnp.array(self.target_mean)[None]
        return x

    @nn.nowrap
    def pool(
        self, tokens: Float[Array, "b cls+n width"], mask: masking.Mask | None = None
    ) -> Float[Array, "b width"]:
        """Return one vector of the tokens of each input, of the patches that `mask` shows."""
        count = self.cls_tokens
        if self.pooling == "cls":
            return tokens[:, :count].mean(1)
        return mean_of_patches(tokens[:, count:], mask)


def mean_of_patches(
    tokens: Float[Array, "b n width"], mask: masking.Mask | None
) -> Float[Array, "b width"]:
    """Return the mean of the tokens that a mask of `masking.whole` shows, by default of all.

    An input without any data has the mean of all its tokens, which is the same for all such inputs.
    """
    if mask is None or mask.shown is None:
        return tokens.mean(1)
    shown = (mask.shown | ~mask.shown.any(1, keepdims=True))[..., None]
    exact = jnp.where(shown, tokens.astype(jnp.float32), 0)  # as `mean` sums, for the same bits
    return (exact.mean(1) * (tokens.shape[1] / shown.sum(1))).astype(tokens.dtype)


def drop_path(key: jax.Array, batch: int, depth: int, rate: float) -> Float[Array, "b depth 2"]:
    """Draw the scales of both branches of every block: 0 where a sample skips the branch.

    Block i skips a branch with probability `rate * i / (depth - 1)`; the other scales make up for
    it, so that the mean is 1. Stochastic depth, Huang et al. (arXiv 1603.09382).
    """
    keep = 1 - jnp.linspace(0, rate, depth)[None, :, None]
    return jax.random.bernoulli(key, keep, (batch, depth, 2)) / keep
