"""The tokenizer: how an input becomes tokens, `[b *size c] -> [b n width]`.

A tokenizer says on which grid its tokens lie. Given `index`, it embeds the tokens at these places
alone, so that an encoder never computes what it does not see. Its layer is called `embedding`.
Others stand in `channel_groups` and `byte_values`.
"""

from collections.abc import Sequence

from flax import linen as nn
from jaxtyping import Array, Float, Int

from mae_jax.models import layers, patches


class PatchTokenizer(nn.Module):
    """One token for each patch: a linear map of its values (ViT, arXiv 2010.11929)."""

    patch: tuple[int, ...]
    width: int
    compute: layers.Compute = layers.Compute()

    def grid(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the number of tokens along each axis."""
        return patches.grid_of(size, self.patch)

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "b *size c"], index: Int[Array, "b k"] | None = None
    ) -> Float[Array, "b k width"]:
        x = patches.patchify(inputs, self.patch)
        x = x if index is None else patches.take(x, index)
        return layers.dense(self.width, self.compute, "embedding")(x)
