"""The tokenizer: how an input becomes tokens, `[b *size c] -> [b n width]`.

Other tokenizers are in `channel_groups` and `byte_values`. The parameters of every tokenizer are
called `embedding`.
"""

from collections.abc import Sequence

from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Shaped

from mae_jax.models import layers, patches
from mae_jax.models.operations import Operations


class PatchTokenizer(nn.Module):
    """One token for each patch: a linear map of its values (ViT, arXiv 2010.11929)."""

    patch: tuple[int, ...]
    width: int
    ops: Operations = Operations()

    def grid(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the number of tokens along each axis, for inputs of `size`."""
        return patches.grid_of(size, self.patch)

    @nn.nowrap
    def values(self, inputs: Shaped[Array, "b *size c"]) -> Shaped[Array, "b n d"]:
        """Return the values that each token holds."""
        return patches.patchify(inputs, self.patch)

    @nn.nowrap
    def present(self, weight: Shaped[Array, "b *size c"]) -> Bool[Array, "b n"]:
        """Return which tokens hold any value whose weight is above 0."""
        return (self.values(weight) > 0).any(-1)

    @nn.nowrap
    def embed(self, x: Shaped[Array, "b k d"]) -> Float[Array, "b k width"]:
        """Return the tokens of such values."""
        return layers.dense(self.width, self.ops, "embedding")(x)

    @nn.compact
    def __call__(
        self, inputs: Shaped[Array, "b *size c"], index: Int[Array, "b k"] | None = None
    ) -> Float[Array, "b k width"]:
        """Embed only the tokens at `index`, by default all: what is masked is never computed."""
        x = self.values(inputs)
        return self.embed(x if index is None else patches.take(x, index))
