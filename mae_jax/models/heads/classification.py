"""A classifier on an encoder, as the reference fine-tunes and probes."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Shaped

from mae_jax.models import layers
from mae_jax.models.masking import Mask
from mae_jax.models.vit import Encoder, Intermediates


class Classifier(nn.Module):
    """An encoder, a pooled feature and a linear head.

    `pooling = "mean"` averages the patch tokens of the last block and normalises the result
    (`norm`; the encoder then has no final norm); `"cls"` takes the cls token after the final norm.
    `batch_norm` standardises the feature by running statistics, without parameters of its own, for
    linear probes. With `classes = 0` there is no head, and the result is the feature.
    """

    encoder: Encoder
    classes: int = 0
    pooling: str = "mean"
    batch_norm: bool = False
    head_std: float = 2e-5  # of the initial head

    @property
    def patch(self) -> tuple[int, ...]:
        """The sides of a patch."""
        return self.encoder.tokenizer.patch

    @property
    def width(self) -> int:
        """The width of a token."""
        return self.encoder.trunk.width

    @property
    def depth(self) -> int:
        """The number of blocks."""
        return self.encoder.trunk.depth

    def grid(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the number of tokens along each axis for inputs of `size`."""
        return self.encoder.tokenizer.grid(size)

    def setup(self):
        trunk = self.encoder.trunk
        if self.pooling == "mean":
            self.norm = layers.Norm(trunk.eps, trunk.compute)
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
    ) -> Float[Array, "b classes"]:
        """Return the logits of each class, float32.

        With `train`, `batch_norm` standardises by the batch and updates its statistics (the
        collection `batch_stats`).
        """
        tokens, _ = self.encoder(inputs, drop_path_scale=drop_path_scale)
        x = self.norm(tokens[:, 1:].mean(1)) if self.pooling == "mean" else tokens[:, 0]
        x = x.astype(jnp.float32)
        if self.batch_norm:
            x = self.feature_norm(x, use_running_average=not train)
        return self.head(x) if self.classes else x

    def encode(
        self, inputs: Shaped[Array, "b *size c"], mask: Mask | None = None
    ) -> tuple[Float[Array, "b t width"], Intermediates]:
        """Run the encoder alone: see `Encoder`."""
        return self.encoder(inputs, mask)
