"""The Vision Transformer encoder, on a whole input or on its visible patches alone."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from mae_jax import layers, patches, positions
from mae_jax.masking import Mask

# Encoder widths of Dosovitskiy et al. (arXiv 2010.11929) and Touvron et al. (arXiv 2012.12877);
# H is used with patch 14, the others with patch 16.
SIZES = {
    "small": dict(width=384, depth=12, heads=6),
    "base": dict(width=768, depth=12, heads=12),
    "large": dict(width=1024, depth=24, heads=16),
    "huge": dict(width=1280, depth=32, heads=16),
}


class Encoder(nn.Module):
    """ViT with a cls token and fixed sin-cos positions.

    The size of the input and its number of channels and axes are those of the first call.
    """

    patch: tuple[int, ...]
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "b *size c"], mask: Mask | None = None
    ) -> tuple[Float[Array, "b t d"], dict[str, jax.Array]]:
        """Encode `images`, or only the patches that `mask` keeps.

        Returns:
          The normalised tokens, cls first, and every intermediate by name: `embedding`, `block_0`
          ... (each before the final norm), all `[b, 1 + k, width]`; k = n without a mask.
        """
        grid = patches.grid_of(images.shape[1:-1], self.patch)
        table = jnp.asarray(positions.sincos(grid, self.width), self.dtype)  # [n d]
        x = patches.patchify(images, self.patch)
        places = table[None]
        if mask is not None:
            x, places = patches.take(x, mask.keep), table[mask.keep]

        cls = self.param("cls", nn.initializers.normal(0.02), (1, self.width))
        embed = nn.Dense(self.width, dtype=self.dtype, kernel_init=layers.xavier, name="embedding")
        x = embed(x) + places
        cls = jnp.broadcast_to(cls.astype(self.dtype), (len(x), 1, self.width))  # its place is zero
        x = jnp.concatenate([cls, x], axis=1)

        intermediates = {"embedding": x}
        for i in range(self.depth):
            x = layers.Block(self.heads, self.mlp_ratio, self.dtype, name=f"block_{i}")(x)
            intermediates[f"block_{i}"] = x
        return layers.norm(self.dtype, "norm")(x), intermediates
