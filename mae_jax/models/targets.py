"""The target: what a decoder predicts of each masked token, and how wrong a prediction is.

All targets answer the questions of `PixelTarget`, so that a model, a trainer or a picture never
asks which one it has. Others stand in `channel_groups` and `byte_values`.
"""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from mae_jax.models import patches
from mae_jax.models.masking import Mask, masked_map

Index = Int[Array, "b m"]


@dataclasses.dataclass(frozen=True)
class PixelTarget:
    """The values of each patch, under the mean squared error.

    Args:
      patch: the sides of a patch.
      norm: standardise each patch by its own mean and unbiased variance: the `norm_pix` target of
        He et al. 2021. It gives better features; predictions then carry neither brightness nor
        contrast, and `to_inputs` takes these from the true patches, as the paper's figures do.
      stride: predict every so many values along each axis, such as every second frame; () = all.
    """

    patch: tuple[int, ...]
    norm: bool = True
    stride: tuple[int, ...] = ()

    baseline_name = "mean of the visible patches"

    @property
    def loss_name(self) -> str:
        """What the loss is measured on."""
        return "normalised patches" if self.norm else "pixels"

    @property
    def small_patch(self) -> tuple[int, ...]:
        """The sides of a patch after the stride. Raises ValueError if the stride does not fit."""
        stride = self.stride or (1,) * len(self.patch)
        pairs = list(zip(self.patch, stride, strict=False))
        if len(stride) != len(self.patch) or any(p % s for p, s in pairs):
            raise ValueError(f"target_stride {self.stride} does not divide patch {self.patch}")
        return tuple(p // s for p, s in pairs)

    def size(self, channels: int) -> int:
        """Return how many numbers are predicted of a token."""
        return math.prod(self.small_patch) * channels

    def visible_part(self, inputs: Float[Array, "b *size c"]) -> Float[Array, "b *small c"]:
        """Return the part of the inputs that the target knows: all of it without a stride."""
        return inputs[:, *(slice(None, None, s) for s in self.stride)] if self.stride else inputs

    def values(self, inputs: Float[Array, "b *size c"], index: Index) -> Float[Array, "b m d"]:
        """Return the values of the tokens at `index`, as they are."""
        return patches.take(patches.patchify(self.visible_part(inputs), self.small_patch), index)

    def members(self, index: Index, inputs) -> Float[Array, "b m d"] | None:
        """Return 1 for the values of each token that count; None if all of them do."""
        return None

    def __call__(self, inputs: Float[Array, "b *size c"], index: Index) -> Float[Array, "b m d"]:
        """Return what should be predicted of the tokens at `index`."""
        x = self.values(inputs, index)
        return normalize(x, self.members(index, inputs)) if self.norm else x

    def losses(
        self, prediction: Float[Array, "b m d"], inputs: Float[Array, "b *size c"], index: Index
    ) -> Float[Array, "b m"]:
        """Return the mean squared error of each token."""
        return mean(jnp.square(prediction - self(inputs, index)), self.members(index, inputs))

    def to_inputs(
        self, prediction: Float[Array, "b m d"], inputs: Float[Array, "b *size c"], mask: Mask
    ) -> Float[Array, "b *small c"]:
        """Return whole inputs: the visible tokens as they are, predictions for the masked ones.

        Tokens that a partial mask neither shows nor predicts are zero.
        """
        if self.norm:
            true = self.values(inputs, mask.masked)
            center, scale = statistics(true, self.members(mask.masked, inputs))
            prediction = prediction * scale + center
        return self._place(prediction, inputs, mask)

    def masked_values(
        self, inputs: Float[Array, "b *size c"], mask: Mask
    ) -> Bool[Array, "b *small c"]:
        """Return True for each value that is predicted, in the shape of `to_inputs`."""
        ones = jnp.ones((*mask.masked.shape, self.size(inputs.shape[-1])))
        return self._place(ones, jnp.zeros(inputs.shape), mask) > 0

    def baseline_losses(self, inputs: Float[Array, "b *size c"], mask: Mask) -> Float[Array, "b"]:
        """Return each sample's loss if the mean of its visible tokens is the guess."""
        guess = self(inputs, mask.visible)
        members = self.members(mask.visible, inputs)
        members = jnp.ones_like(guess) if members is None else members
        count = jnp.maximum(members.sum(1, keepdims=True), 1)
        guess = (guess * members).sum(1, keepdims=True) / count
        return self.losses(guess, inputs, mask.masked).mean(1)

    def contrast(self, inputs: Float[Array, "b *size c"], n: int) -> Float[Array, "b n"]:
        """Return the standard deviation of each of `n` tokens, standardised over the sample."""
        whole, inputs = dataclasses.replace(self, stride=()), inputs.astype(jnp.float32)
        index = jnp.broadcast_to(jnp.arange(n)[None], (len(inputs), n))
        spread = statistics(whole.values(inputs, index), whole.members(index, inputs))[1][..., 0]
        center = spread.mean(1, keepdims=True)
        return (spread - center) / (spread.std(1, keepdims=True) + 1e-6)

    def _place(self, prediction, inputs, mask: Mask):
        inputs = self.visible_part(inputs)
        tokens = replace_masked(patches.patchify(inputs, self.small_patch), prediction, mask)
        return patches.unpatchify(tokens, self.small_patch, inputs.shape[1:-1])


Members = Float[Array, "b n d"] | None  # which values count, 0 or 1; None: all


def mean(x: Float[Array, "b n d"], members: Members = None) -> Float[Array, "b n"]:
    """Return the mean of the values of each token that count."""
    return x.mean(-1) if members is None else (x * members).sum(-1) / members.sum(-1)


def statistics(
    x: Float[Array, "b n d"], members: Members = None
) -> tuple[Float[Array, "b n 1"], Float[Array, "b n 1"]]:
    """Return each token's mean and `sqrt(variance + 1e-6)`, with the unbiased variance (d - 1)."""
    center = mean(x, members)[..., None]
    square = jnp.square(x - center)
    if members is None:
        total, count = square.sum(-1, keepdims=True), x.shape[-1]
    else:
        total, count = (square * members).sum(-1, keepdims=True), members.sum(-1, keepdims=True)
    return center, jnp.sqrt(total / (count - 1) + 1e-6)


def normalize(x: Float[Array, "b n d"], members: Members = None) -> Float[Array, "b n d"]:
    """Give each token zero mean and unit variance."""
    center, scale = statistics(x, members)
    return (x - center) / scale


def replace_masked(
    tokens: Shaped[Array, "b n d"], prediction: Shaped[Array, "b m d"], mask: Mask
) -> Shaped[Array, "b n d"]:
    """Put the prediction in the place of the masked tokens, zero where there is none."""
    samples = jnp.arange(len(tokens))[:, None]
    tokens = jnp.where(masked_map(mask)[..., None] > 0, 0, tokens)
    return tokens.at[samples, mask.masked].set(prediction.astype(tokens.dtype))
