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
Members = Float[Array, "#b #m d"]  # 1 for the values of a token that count, else 0


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
    def losses(self, prediction: Prediction, inputs: Inputs, index: Index) -> Float[Array, "b m"]:
        """Return how wrong the prediction of each token at `index` is."""

    @abc.abstractmethod
    def to_inputs(self, prediction: Prediction, inputs: Inputs, mask: Mask) -> Inputs:
        """Return inputs (their `strided`) with predictions for the masked tokens.

        Tokens that a partial mask neither shows nor predicts are zero.
        """

    @abc.abstractmethod
    def baseline_losses(self, inputs: Inputs, mask: Mask) -> Float[Array, "b"]:
        """Return each sample's loss of a guess that only knows its visible tokens."""

    def __call__(self, inputs: Inputs, index: Index) -> Shaped[Array, "b m d"]:
        """Return what should be predicted of the tokens at `index`."""
        return self.values(inputs, index)

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

    def members(self, index: Index, inputs: Inputs) -> Members:
        """Return which values of the tokens at `index` count."""
        return jnp.ones((1, 1, math.prod(self.small_patch) * inputs.shape[-1]))

    def size(self, channels):
        size = math.prod(self.small_patch) * channels
        if self.norm and size // (channels if self.norm is by_channel else 1) < 2:
            raise ValueError("norm_pix needs patches of two values or more: use norm_pix=False")
        return size

    def __call__(self, inputs, index):
        x = self.values(inputs, index)
        if not self.norm:
            return x
        center, scale = self.norm(x, self.members(index, inputs), inputs.shape[-1])
        return (x - center) / scale

    def losses(self, prediction, inputs, index):
        return mean(jnp.square(prediction - self(inputs, index)), self.members(index, inputs))

    def to_inputs(self, prediction, inputs, mask):
        if self.norm:
            true = self.values(inputs, mask.masked)
            center, scale = self.norm(true, self.members(mask.masked, inputs), inputs.shape[-1])
            prediction = prediction * scale + center
        return self.place(prediction, inputs, mask)

    def baseline_losses(self, inputs, mask):
        guess, members = self(inputs, mask.visible), self.members(mask.visible, inputs)
        members = jnp.broadcast_to(members, guess.shape)
        count = jnp.maximum(members.sum(1, keepdims=True), 1)
        guess = (guess * members).sum(1, keepdims=True) / count
        return self.losses(guess, inputs, mask.masked).mean(1)

    def contrast(self, inputs: Inputs, n: int) -> Float[Array, "b n"]:  # pyright: ignore
        """Return the standard deviation of each of `n` tokens, standardised over the sample."""
        whole, inputs = dataclasses.replace(self, stride=()), inputs.astype(jnp.float32)
        index = jnp.broadcast_to(jnp.arange(n)[None], (inputs.shape[0], n))
        deviation = by_token(whole.values(inputs, index), whole.members(index, inputs))[1][..., 0]
        center = deviation.mean(1, keepdims=True)
        return (deviation - center) / (deviation.std(1, keepdims=True) + 1e-6)


def mean(x: Float[Array, "b n d"], members: Members) -> Float[Array, "b n"]:
    """Return the mean of the values of each token that count."""
    return (x * members).sum(-1) / members.sum(-1)


Norm = Callable[[Float[Array, "b n d"], Members, int], tuple[jax.Array, jax.Array]]


def by_token(x, members, channels=0):
    """Return each token's mean and `sqrt(variance + 1e-6)`, with the unbiased variance (d - 1)."""
    center = mean(x, members)[..., None]
    total = (jnp.square(x - center) * members).sum(-1, keepdims=True)
    return center, jnp.sqrt(total / (members.sum(-1, keepdims=True) - 1) + 1e-6)


def by_patch(x, members, channels):
    """Return `by_token` of all values of a patch, those of other channel groups included."""
    return by_token(x, jnp.ones_like(members))


def by_channel(x, members, channels):
    """Return the mean and the standard deviation of each channel of a token, as VideoMAE does.

    VideoMAE adds 1e-6 to the deviation of pixels in [0, 1]. In normalised inputs this is 1e-6
    divided by the deviation of the data, which is .226 on ImageNet.
    """
    values = x.reshape(*x.shape[:-1], -1, channels)
    center, scale = values.mean(-2), values.std(-2, ddof=1) + 1e-6 / 0.226
    return jnp.tile(center, values.shape[-2]), jnp.tile(scale, values.shape[-2])


# What `norm_pix` of a config may be, beside False.
NORMS: dict[Any, Norm] = {True: by_token, "patch": by_patch, "channel": by_channel}
