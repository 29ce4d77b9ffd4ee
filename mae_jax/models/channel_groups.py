"""Channel groups: a token for each group of channels of a patch, as SatMAE groups bands.

Source: Cong et al. (arXiv 2207.08051).
"""

import dataclasses
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from mae_jax.models import layers, patches
from mae_jax.models.targets import PixelTarget, replace_masked

Groups = Sequence[Sequence[int]]  # the channels of each group, such as ((0, 1, 2), (3, 4))


class ChannelGroupTokenizer(nn.Module):
    """One token for each channel group of a patch.

    The groups are the first axis of the grid. A token holds the values of its own group and zeros
    for the other channels, so one matrix acts as a separate matrix for each group.
    """

    patch: tuple[int, ...]
    channel_groups: Groups
    width: int
    compute: layers.Compute = layers.Compute()

    def grid(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the number of groups, then the number of patches along each axis."""
        return (len(self.channel_groups), *patches.grid_of(size, self.patch))

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "b *size c"], index: Int[Array, "b k"] | None = None
    ) -> Float[Array, "b k width"]:
        members = group_members(self.channel_groups, self.patch, inputs.shape[-1])
        x = split_groups(patches.patchify(inputs, self.patch), members)
        x = x if index is None else patches.take(x, index)
        return layers.dense(self.width, self.compute, "embedding")(x)


@dataclasses.dataclass(frozen=True)
class ChannelGroupTarget(PixelTarget):
    """`PixelTarget` for the tokens of `ChannelGroupTokenizer`: each predicts its own channels."""

    channel_groups: Groups = ()

    def _table(self, inputs) -> Float[np.ndarray, "g d"]:
        return group_members(self.channel_groups, self.small_patch, inputs.shape[-1])

    def _patches(self, inputs) -> Float[Array, "b n d"]:
        return patches.patchify(self.visible_part(inputs), self.small_patch)

    def values(self, inputs, index):
        """Return all channels of the patches at `index`, those of other groups included."""
        x = self._patches(inputs)
        return patches.take(x, index % x.shape[1])

    def members(self, index, inputs):
        """Return 1 for the values of each token's own group, else 0."""
        n = math.prod(patches.grid_of(inputs.shape[1:-1], self.patch))
        return jnp.asarray(self._table(inputs))[index // n]

    def _place(self, prediction, inputs, mask):
        members, size = self._table(inputs), self.visible_part(inputs).shape[1:-1]
        tokens = split_groups(self._patches(inputs), members)
        tokens = join_groups(replace_masked(tokens, prediction, mask), members)
        return patches.unpatchify(tokens, self.small_patch, size)


def group_members(
    channel_groups: Groups, patch: Sequence[int], channels: int
) -> Float[np.ndarray, "g d"]:
    """Return 1 where a value of a flattened patch belongs to the group, else 0.

    Raises:
      ValueError: a channel is in no group or in several, or does not exist.
    """
    groups = [list(group) for group in channel_groups]
    if sorted(sum(groups, [])) != list(range(channels)):
        raise ValueError(
            f"channel groups {groups} must hold each of the {channels} channels 0 to "
            f"{channels - 1} once"
        )
    members = np.zeros((len(groups), channels), np.float32)
    for row, group in zip(members, groups, strict=True):
        row[group] = 1
    return np.tile(members, math.prod(patch))


def split_groups(
    x: Float[Array, "b n d"], members: Float[np.ndarray, "g d"]
) -> Float[Array, "b g*n d"]:
    """Copy each patch once for each group, with zeros in place of the other groups' values."""
    b, n, d = x.shape
    return (x[:, None] * members[None, :, None].astype(x.dtype)).reshape(b, -1, d)


def join_groups(
    x: Float[Array, "b g*n d"], members: Float[np.ndarray, "g d"]
) -> Float[Array, "b n d"]:
    """Invert `split_groups`; of each token only the values of its own group count."""
    b, _, d = x.shape
    x = x.reshape(b, len(members), -1, d)
    return (x * members[None, :, None].astype(x.dtype)).sum(1)
