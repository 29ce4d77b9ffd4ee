"""The target: what a decoder predicts of each masked token, and how wrong a prediction is.

Models, trainers and pictures use only the methods of `Target` and never ask which target they have.
The targets for channel groups and bytes are in `channel_groups` and `byte_values`.
"""

import abc
import dataclasses
import math
import operator
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from mae_jax.models import patches
from mae_jax.models.masking import Mask, masked_map

Inputs = Shaped[Array, "b *size c"]
Index = Int[Array, "b m"]
Prediction = Float[Array, "b m d"]
Members = Float[Array, "#b #m d"]  # how much the values of a token count: 0 for another's
# How much each value of the inputs counts in a loss: 0 if it is missing; None counts all alike.
# Missing values of the inputs are finite numbers, such as 0, which change no result.
Weight = Shaped[Array, "b *size c"] | None


def every(side: int, step: int) -> slice:
    """Select every `step`-th of `side` values: 0, 2, ..., 14 of 16."""
    return slice(None, None, step)


def spread(side: int, step: int) -> np.ndarray:
    """Select as many as `every` from the first to the last: 0, 2, ..., 12, 15 of 16 (MAE-ST)."""
    return np.linspace(0, side - 1, side // step).astype(int)


@dataclasses.dataclass(frozen=True)
class Target(abc.ABC):
    """The values to predict for each patch, and the loss of a prediction.

    Args:
      patch: the sides of a patch.
      stride: predict every so many values along each axis, such as every second frame; () = all. It
        divides the patch.
      select: which of the values along an axis these are, `every` or `spread`.
    """

    patch: tuple[int, ...]
    stride: tuple[int, ...] = ()
    select: Callable[[int, int], Any] = every

    loss_name: ClassVar[str]  # what the loss is measured on
    baseline_name: ClassVar[str]  # the guess of `baseline_losses`
    # How much each of n tokens matters, of inputs [b *size c] and n, for masks by importance.
    contrast: ClassVar[Callable[..., Float[Array, "b n"]] | None] = None

    def __post_init__(self):
        stride = self.stride or self.patch
        if len(stride) != len(self.patch) or any(map(operator.mod, self.patch, stride)):
            raise ValueError(f"target_stride = {self.stride} does not divide patch = {self.patch}")

    @abc.abstractmethod
    def size(self, channels: int) -> int:
        """Return how many numbers are predicted of a token."""

    @abc.abstractmethod
    def losses(
        self, prediction: Prediction, inputs: Inputs, index: Index, weight: Weight = None
    ) -> Float[Array, "b m"]:
        """Return how wrong the prediction of each token at `index` is.

        With `weight` that is the weighted mean over its values, and 0 if none has a weight.
        """

    @abc.abstractmethod
    def to_inputs(
        self, prediction: Prediction, inputs: Inputs, mask: Mask, weight: Weight = None
    ) -> Inputs:
        """Return inputs (their `strided`) with predictions for the masked tokens.

        Tokens that the mask neither shows nor predicts are zero.
        """

    @abc.abstractmethod
    def baseline_losses(
        self, inputs: Inputs, mask: Mask, weight: Weight = None
    ) -> Float[Array, "b"]:
        """Return each sample's loss of a guess that only knows its visible tokens."""

    def __call__(
        self, inputs: Inputs, index: Index, weight: Weight = None
    ) -> Shaped[Array, "b m d"]:
        """Return what should be predicted of the tokens at `index`."""
        return self.values(inputs, index)

    def shares(self, inputs: Inputs, mask: Mask, weight: Weight = None) -> Float[Array, "b m"]:
        """Return how much each token of `mask.masked` counts: its mean weight, or 0.

        That is 0 if the mask does not predict the token.
        """
        shape = mask.masked.shape
        return jnp.ones(shape) if mask.predicted is None else mask.predicted.astype(jnp.float32)

    def predicts(self, inputs: Inputs, mask: Mask, weight: Weight = None) -> Bool[Array, "b"]:
        """Return which samples predict anything: only these have a loss."""
        return (self.shares(inputs, mask, weight) > 0).any(1)

    def sample_losses(
        self, prediction: Prediction, inputs: Inputs, mask: Mask, weight: Weight = None
    ) -> Float[Array, "b"]:
        """Return each sample's loss: the mean over its predicted tokens by their `shares`.

        It is 0 for a sample that predicts nothing.
        """
        losses = self.losses(prediction, inputs, mask.masked, weight)
        if weight is None and mask.predicted is None:
            return losses.mean(1)
        shares = self.shares(inputs, mask, weight)
        # Where nothing is missing, the bits are those without weights.
        return jnp.where((shares == 1).all(1), losses.mean(1), mean(losses, shares))

    @property
    def small_patch(self) -> tuple[int, ...]:
        """The sides of a patch after the stride."""
        return tuple(map(operator.floordiv, self.patch, self.stride or (1,) * len(self.patch)))

    def strided(self, inputs: Inputs) -> Inputs:
        """Return the part of the inputs that the target knows: all of it without a stride."""
        for axis, step in enumerate(self.stride, 1):
            if step > 1:
                inputs = inputs[*[slice(None)] * axis, self.select(inputs.shape[axis], step)]
        return inputs

    def tokens(self, inputs: Inputs) -> Shaped[Array, "b n d"]:
        """Return the values of all tokens."""
        return patches.patchify(self.strided(inputs), self.small_patch)

    def values(self, inputs: Inputs, index: Index) -> Shaped[Array, "b m d"]:
        """Return the values of the tokens at `index`."""
        return patches.take(self.tokens(inputs), index)

    def from_tokens(self, tokens: Shaped[Array, "b n d"], inputs: Inputs) -> Inputs:
        """Invert `tokens`, for inputs of the same shape."""
        return patches.unpatchify(tokens, self.small_patch, self.strided(inputs).shape[1:-1])

    def place(self, values: Shaped[Array, "b m d"], inputs: Inputs, mask: Mask) -> Inputs:
        """Return the known part of the inputs with `values` for the masked tokens."""
        tokens = jnp.where(masked_map(mask)[..., None] > 0, 0, self.tokens(inputs))
        samples = jnp.arange(tokens.shape[0])[:, None]
        if mask.predicted is not None:
            values = jnp.where(mask.predicted[..., None], values, 0)
        tokens = tokens.at[samples, mask.masked].set(values.astype(tokens.dtype))
        return self.from_tokens(tokens, inputs)

    def masked_values(self, inputs: Inputs, mask: Mask) -> Bool[Array, "b *size c"]:
        """Return True for each value that is predicted, in the shape of `to_inputs`."""
        ones = jnp.ones_like(self.values(inputs, mask.masked))
        return self.place(ones, jnp.zeros_like(inputs), mask) > 0


@dataclasses.dataclass(frozen=True)
class PixelTarget(Target):
    """The values of each patch, under the mean squared error.

    Args:
      norm: one of `NORMS`, which standardises each patch by its own mean and variance: the
        `norm_pix` target of He et al. 2021. It gives better features; predictions then carry
        neither brightness nor contrast, and `to_inputs` takes these from the true patches, as the
        paper's figures do. None predicts the values as they are.
    """

    norm: "Norm | None" = None

    baseline_name = "mean of the visible patches"

    @property
    def loss_name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "normalised patches" if self.norm else "pixels"

    def members(self, index: Index, inputs: Inputs, weight: Weight = None) -> Members:
        """Return how much each value of the tokens at `index` counts."""
        members = jnp.ones((1, 1, math.prod(self.small_patch) * inputs.shape[-1]))
        return members if weight is None else self.values(weight.astype(jnp.float32), index)

    def size(self, channels):
        size = math.prod(self.small_patch) * channels
        if self.norm and size // (channels if self.norm is by_channel else 1) < 2:
            raise ValueError("norm_pix needs patches of two values or more: use norm_pix=False")
        return size

    def moments(self, inputs: Inputs, index: Index, weight: Weight) -> tuple[jax.Array, jax.Array]:
        """Return the mean and the deviation by which `norm` standardises tokens, of what exists."""
        assert self.norm
        x, members = self.values(inputs, index), self.members(index, inputs)
        exists = jnp.ones_like(x)
        if weight is not None:
            exists = (self.values(weight, index) > 0).astype(jnp.float32)
        return self.norm(x, members * exists, exists, inputs.shape[-1])

    def __call__(self, inputs, index, weight=None):
        x = self.values(inputs, index)
        if not self.norm:
            return x
        center, scale = self.moments(inputs, index, weight)
        return (x - center) / scale

    def losses(self, prediction, inputs, index, weight=None):
        errors = jnp.square(prediction - self(inputs, index, weight))
        whole = self.members(index, inputs)
        losses = (errors * whole).sum(-1) / whole.sum(-1)
        if weight is None:
            return losses
        members = self.members(index, inputs, weight)
        return jnp.where((members == whole).all(-1), losses, mean(errors, members))

    def shares(self, inputs, mask, weight=None):
        shares = super().shares(inputs, mask)
        if weight is None:
            return shares
        members = (self.members(mask.masked, inputs, weight), self.members(mask.masked, inputs))
        total, count = (x.sum(-1) for x in members)
        return shares * total / count

    def to_inputs(self, prediction, inputs, mask, weight=None):
        if self.norm:
            center, scale = self.moments(inputs, mask.masked, weight)
            prediction = prediction * scale + center
        return self.place(prediction, inputs, mask)

    def baseline_losses(self, inputs, mask, weight=None):
        guess, members = (
            self(inputs, mask.visible, weight),
            self.members(mask.visible, inputs, weight),
        )
        members = jnp.broadcast_to(members, guess.shape)
        if mask.shown is not None:
            members = members * mask.shown[..., None]
        guess = mean(guess, members, axis=1)[:, None]
        return self.sample_losses(guess, inputs, mask, weight)

    def contrast(  # pyright: ignore
        self, inputs: Inputs, n: int, weight: Weight = None
    ) -> Float[Array, "b n"]:
        """Return the standard deviation of each of `n` tokens, standardised over the sample.

        It is finite and means nothing for tokens of which no value has a weight.
        """
        whole, inputs = dataclasses.replace(self, stride=()), inputs.astype(jnp.float32)
        index = jnp.broadcast_to(jnp.arange(n)[None], (inputs.shape[0], n))
        members = whole.members(index, inputs, None if weight is None else weight > 0)
        deviation = by_token(whole.values(inputs, index), members)[1][..., 0]
        present = jnp.ones((1, n)) if weight is None else members.max(-1)
        center = mean(deviation, present)[:, None]
        spread = jnp.sqrt(mean(jnp.square(deviation - center), present))[:, None]
        return (deviation - center) / (spread + 1e-6)


def mean(x: jax.Array, weights: jax.Array, axis: int = -1) -> jax.Array:
    """Return the mean along an axis by weights, whose shape broadcasts; 0 without any weight."""
    products = x * weights
    # One divisor for all would become a factor, which is rounded: no weights and weights of 1 are
    # to give the same bits, operation by operation.
    total = jnp.broadcast_to(weights, products.shape).sum(axis)
    return products.sum(axis) / jnp.where(total > 0, total, 1)


# Of tokens x [b n d], 1 for those of their values that exist, else 0 [#b #n d], the same including
# the values of other channel groups, and the number of channels.
Norm = Callable[[Float[Array, "b n d"], Members, Members, int], tuple[jax.Array, jax.Array]]


def by_token(x, members, exists=None, channels=0):
    """Return each token's mean and `sqrt(variance + 1e-6)`, with the unbiased variance (d - 1)."""
    center, variance = moments_along(-1, x, members)
    return center, jnp.sqrt(variance + 1e-6)


def by_patch(x, members, exists, channels):
    """Return `by_token` of all values of a patch, those of other channel groups included."""
    return by_token(x, exists)


def by_channel(x, members, exists, channels):
    """Return the mean and the standard deviation of each channel of a token, as VideoMAE does.

    VideoMAE adds 1e-6 to the deviation of pixels in [0, 1]. In normalised inputs this is 1e-6
    divided by the deviation of the data, which is .226 on ImageNet.
    """
    split = lambda x: x.reshape(*x.shape[:-1], -1, channels)
    center, variance = moments_along(-2, split(x), split(exists))
    tile = lambda y: jnp.tile(y[..., 0, :], x.shape[-1] // channels)
    return tile(center), tile(jnp.sqrt(variance) + 1e-6 / 0.226)


def moments_along(axis, x, members):
    """Return the mean and the unbiased variance along an axis, which is kept, of what exists."""
    center = jnp.expand_dims(mean(x, members, axis), axis)
    total = (jnp.square(x - center) * members).sum(axis, keepdims=True)
    return center, total / jnp.maximum(members.sum(axis, keepdims=True) - 1, 1)


# What `norm_pix` of a config may be, beside False.
NORMS: dict[Any, Norm] = {True: by_token, "patch": by_patch, "channel": by_channel}
