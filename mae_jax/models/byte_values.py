"""Whole numbers below a vocabulary size, such as the bytes of a text: a tokenizer and a target."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Shaped

from mae_jax.models import layers, patches
from mae_jax.models.masking import Mask
from mae_jax.models.targets import replace_masked

Index = Int[Array, "b m"]


class ByteTokenizer(nn.Module):
    """One token for each patch of whole numbers below `vocab_size`, such as bytes.

    The embedding is a table of the vocabulary for each place in a patch; its initial scale makes a
    token about as large as its position.
    """

    patch: tuple[int, ...]
    vocab_size: int
    width: int
    compute: layers.Compute = layers.Compute()

    def grid(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the number of tokens along each axis."""
        return patches.grid_of(size, self.patch)

    @nn.compact
    def __call__(
        self, inputs: Shaped[Array, "b *size c"], index: Index | None = None
    ) -> Float[Array, "b k width"]:
        x = patches.patchify(inputs, self.patch)
        x = x if index is None else patches.take(x, index)
        start = nn.initializers.normal(x.shape[-1] ** -0.5)
        x = jax.nn.one_hot(x.astype(jnp.int32), self.vocab_size, dtype=self.compute.dtype)
        x = x.reshape(*x.shape[:2], -1)
        return layers.dense(self.width, self.compute, "embedding", start)(x)


@dataclasses.dataclass(frozen=True)
class ByteTarget:
    """The whole numbers below `vocab_size` of each patch, under the cross-entropy.

    A prediction holds the logits of every number for every place in the patch.
    """

    patch: tuple[int, ...]
    vocab_size: int

    loss_name = "cross-entropy in nats"
    baseline_name = "shares among the visible bytes"

    def size(self, channels: int) -> int:
        """Return how many numbers are predicted of a token."""
        return math.prod(self.patch) * channels * self.vocab_size

    def visible_part(self, inputs: Shaped[Array, "b *size c"]) -> Shaped[Array, "b *size c"]:
        """Return the part of the inputs that the target knows, which is all of it."""
        return inputs

    def __call__(self, inputs: Shaped[Array, "b *size c"], index: Index) -> Int[Array, "b m d"]:
        """Return the true numbers of the tokens at `index`."""
        return patches.take(patches.patchify(inputs, self.patch), index).astype(jnp.int32)

    def losses(
        self, prediction: Float[Array, "b m e"], inputs: Shaped[Array, "b *size c"], index: Index
    ) -> Float[Array, "b m"]:
        """Return the mean cross-entropy of each token, in nats."""
        target = self(inputs, index)
        logits = prediction.reshape(*target.shape, self.vocab_size)
        return optax.softmax_cross_entropy_with_integer_labels(logits, target).mean(-1)

    def to_inputs(
        self, prediction: Float[Array, "b m e"], inputs: Shaped[Array, "b *size c"], mask: Mask
    ) -> Shaped[Array, "b *size c"]:
        """Return whole inputs, with the likeliest numbers where the tokens are masked."""
        best = prediction.reshape(*prediction.shape[:2], -1, self.vocab_size).argmax(-1)
        return self._place(best, inputs, mask)

    def masked_values(
        self, inputs: Shaped[Array, "b *size c"], mask: Mask
    ) -> Bool[Array, "b *size c"]:
        """Return True for each number that is predicted."""
        ones = jnp.ones((*mask.masked.shape, math.prod(self.patch) * inputs.shape[-1]))
        return self._place(ones, jnp.zeros(inputs.shape), mask) > 0

    def baseline_losses(self, inputs: Shaped[Array, "b *size c"], mask: Mask) -> Float[Array, "b"]:
        """Return each sample's loss of a guess without a network.

        The guess is the share of each number among the visible ones, each counted once more.
        """
        seen = jax.nn.one_hot(self(inputs, mask.visible), self.vocab_size)  # [b k d vocab]
        shares = (seen.sum((1, 2)) + 1) / (seen.sum((1, 2, 3))[:, None] + self.vocab_size)
        places = self(inputs, mask.masked).shape
        guess = jnp.broadcast_to(jnp.log(shares)[:, None, None], (*places, self.vocab_size))
        return self.losses(guess.reshape(*places[:2], -1), inputs, mask.masked).mean(1)

    def _place(self, values, inputs, mask: Mask):
        tokens = replace_masked(patches.patchify(inputs, self.patch), values, mask)
        return patches.unpatchify(tokens, self.patch, inputs.shape[1:-1])
