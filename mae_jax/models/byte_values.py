"""Whole numbers below a vocabulary size, such as the bytes of a text: a tokenizer and a target."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from mae_jax.models import layers
from mae_jax.models.targets import Target
from mae_jax.models.tokenizers import PatchTokenizer


class ByteTokenizer(PatchTokenizer):
    """One token for each patch of whole numbers: the sum of one embedding for each of its places.

    The embeddings are rows of a matrix, which one-hot vectors multiply. A lookup would have a
    scatter as its gradient, which adds up in no fixed order on a GPU: runs would not repeat. The
    initial scale makes a token about as large as its position.
    """

    vocab_size: int = 256

    @nn.nowrap
    def embed(self, x):
        start = nn.initializers.normal(x.shape[-1] ** -0.5)
        x = jax.nn.one_hot(x.astype(jnp.int32), self.vocab_size, dtype=self.ops.dtype)
        return layers.dense(self.width, self.ops, "embedding", start)(x.reshape(*x.shape[:2], -1))


@dataclasses.dataclass(frozen=True)
class ByteTarget(Target):
    """The whole numbers of each patch, under the cross-entropy.

    A prediction holds the logits of every number for every place in the patch. The guess of
    `baseline_losses` is the share of each number among the visible ones, each counted once more.
    Whole numbers have no weights: every one exists.
    """

    vocab_size: int = 256

    loss_name = "cross-entropy in nats"
    baseline_name = "shares among the visible bytes"

    def size(self, channels):
        return math.prod(self.small_patch) * channels * self.vocab_size

    def __call__(self, inputs, index, weight=None):
        if weight is not None:
            raise ValueError("whole numbers have no weights: use weight=None with vocab_size")
        return super().__call__(inputs, index).astype(jnp.int32)

    def losses(self, prediction, inputs, index, weight=None):
        numbers = self(inputs, index, weight)
        logits = prediction.reshape(*numbers.shape, self.vocab_size)
        return optax.softmax_cross_entropy_with_integer_labels(logits, numbers).mean(-1)

    def to_inputs(self, prediction, inputs, mask, weight=None):
        logits = prediction.reshape(*prediction.shape[:2], -1, self.vocab_size)
        return self.place(logits.argmax(-1), inputs, mask)

    def baseline_losses(self, inputs, mask, weight=None):
        seen = jax.nn.one_hot(self(inputs, mask.visible, weight), self.vocab_size)  # [b k d vocab]
        seen = seen if mask.shown is None else seen * mask.shown[..., None, None]
        shares = (seen.sum((1, 2)) + 1) / (seen.sum((1, 2, 3))[:, None] + self.vocab_size)
        places = self(inputs, mask.masked).shape
        guess = jnp.broadcast_to(jnp.log(shares)[:, None, None], (*places, self.vocab_size))
        return self.sample_losses(guess.reshape(*places[:2], -1), inputs, mask, weight)
