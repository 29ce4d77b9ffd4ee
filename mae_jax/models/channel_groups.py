"""Channel groups: a token for each group of channels of a patch, as SatMAE groups bands.

Source: Cong et al. (arXiv 2207.08051).
"""

import dataclasses
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from mae_jax.models import patches
from mae_jax.models.targets import PixelTarget
from mae_jax.models.tokenizers import PatchTokenizer

Groups = Sequence[Sequence[int]]  # the channels of each group, such as ((0, 1, 2), (3, 4))


class ChannelGroupTokenizer(PatchTokenizer):
    """One token for each channel group of a patch; the groups are the first axis of the grid.

    A token holds the values of its own group and zeros for the other channels, so one matrix acts
    as a separate matrix for each group.
    """

    channel_groups: Groups = ()

    def grid(self, size):
        return (len(self.channel_groups), *patches.grid_of(size, self.patch))

    @nn.nowrap
    def values(self, inputs):
        members = group_members(self.channel_groups, self.patch, inputs.shape[-1])
        return split_groups(patches.patchify(inputs, self.patch), members)


@dataclasses.dataclass(frozen=True)
class ChannelGroupTarget(PixelTarget):
    """`PixelTarget` for the tokens of `ChannelGroupTokenizer`: each predicts its own channels."""

    channel_groups: Groups = ()

    def size(self, channels):
        smallest = group_members(self.channel_groups, self.small_patch, channels).sum(1).min()
        if self.norm and smallest < 2:
            raise ValueError("norm_pix needs groups of two values or more: use norm_pix=False")
        return super().size(channels)

    def tokens(self, inputs):
        return split_groups(super().tokens(inputs), self._table(inputs))

    def values(self, inputs, index):
        """Return all channels of the patches at `index`, those of other groups included."""
        x = super().tokens(inputs)
        return patches.take(x, index % x.shape[1])

    def from_tokens(self, tokens, inputs):
        members = self._table(inputs)
        x = tokens.reshape(tokens.shape[0], len(members), -1, members.shape[1])
        x = (x * members[None, :, None].astype(x.dtype)).sum(1)  # each value from its own group
        return super().from_tokens(x, inputs)

    def members(self, index, inputs, weight=None):
        n = math.prod(patches.grid_of(inputs.shape[1:-1], self.patch))
        members = jnp.asarray(self._table(inputs))[index // n]
        return members if weight is None else members * super().members(index, inputs, weight)

    def _table(self, inputs) -> Float[np.ndarray, "g d"]:
        return group_members(self.channel_groups, self.small_patch, inputs.shape[-1])


def group_members(
    channel_groups: Groups, patch: Sequence[int], channels: int
) -> Float[np.ndarray, "g d"]:
    """Return 1 where a value of a flattened patch belongs to the group, else 0.

    Raises:
      ValueError: a channel is in no group or in several, or does not exist.
    """
    if sorted(sum(map(list, channel_groups), [])) != list(range(channels)):
        raise ValueError(
            f"channel_groups = {channel_groups} must hold each of the {channels} channels 0 to "
            f"{channels - 1} once"
        )
    members = np.zeros((len(channel_groups), channels), np.float32)
    for row, group in zip(members, channel_groups, strict=True):
        row[list(group)] = 1
    return np.tile(members, math.prod(patch))


def split_groups(x: Float[Array, "b n d"], members: np.ndarray) -> Float[Array, "b g*n d"]:
    """Copy each patch once for each group, with zeros in place of the other groups' values."""
    b, _, d = x.shape
    return (x[:, None] * members[None, :, None].astype(x.dtype)).reshape(b, -1, d)
