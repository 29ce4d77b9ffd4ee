"""The decoder of CrossMAE (arXiv 2401.14391)."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from mae_jax.models import layers
from mae_jax.models.mae import mask_tokens
from mae_jax.models.masking import Mask
from mae_jax.models.transformer import Transformer


class CrossDecoder(nn.Module):
    """A decoder whose mask tokens attend to the encoder's tokens alone.

    Mask tokens do not see each other, so that any part of them can be decoded alone. Block i
    attends to a sum of all feature maps of the encoder, with learned weights `maps[:, i]`, through
    a norm of its own. The last map is taken after the encoder's final norm, so that this norm is
    trained as well.
    """

    position_table: nn.Module
    trunk: Transformer

    def setup(self):
        for part in (self.position_table, self.trunk):
            nn.share_scope(self, part)

    @nn.compact
    def __call__(
        self,
        feature_maps: Sequence[Float[Array, "b t e"]],
        mask: Mask,
        grid: Sequence[int],
        size: int,
    ) -> Float[Array, "b m size"]:
        """Predict `size` numbers for each masked token: see `mae.SelfDecoder`."""
        eps, compute, depth = self.trunk.eps, self.trunk.compute, self.trunk.depth
        x = mask_tokens(self, self.trunk.width, mask, self.position_table(grid))
        start = nn.initializers.normal(len(feature_maps) ** -0.5)
        weights = self.param("maps", start, (len(feature_maps), depth)).astype(compute.dtype)
        contexts = [
            layers.Norm(eps, compute, name=f"context_norm_{i}")(context)
            for i, context in enumerate(
                jnp.einsum("sbte,si->ibte", jnp.stack(feature_maps), weights)
            )
        ]
        x = layers.Norm(eps, compute, name="norm")(self.trunk(x, contexts=contexts)[-1])
        return layers.dense(size, compute, "head")(x)
