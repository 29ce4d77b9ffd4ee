"""The decoder of CrossMAE (arXiv 2401.14391)."""

import jax.numpy as jnp
from flax import linen as nn

from mae_jax.models import layers, masking
from mae_jax.models.mae import Decoder


class CrossDecoder(Decoder):
    """A decoder whose mask tokens attend only to the encoder's tokens.

    Mask tokens do not see each other, so that any part of them can be decoded alone. Block i
    attends to a sum of all feature maps of the encoder, with learned weights `maps[:, i]`, through
    a norm of its own. The encoder of CrossMAE has no final norm.
    """

    @nn.nowrap
    def decode(self, masked, feature_maps, table, mask):
        eps, ops, depth = self.trunk.eps, self.trunk.ops, self.trunk.depth
        start = nn.initializers.normal(len(feature_maps) ** -0.5)
        weights = self.param("maps", start, (len(feature_maps), depth)).astype(ops.dtype)
        sums = jnp.einsum("sbte,si->ibte", jnp.stack(feature_maps), weights)
        contexts = [layers.Norm(eps, ops, name=f"context_norm_{i}")(x) for i, x in enumerate(sums)]
        keys = masking.keys(mask, before=sums.shape[2] - mask.visible.shape[1])
        return self.trunk(masked, contexts=contexts, key_mask=keys)[-1]
