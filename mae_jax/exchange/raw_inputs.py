"""Raw inputs, as a user of an exported file has them, and the normalised inputs of a network."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Shaped

from mae_jax.data.augment import batch as augment
from mae_jax.data.augment import missing
from mae_jax.weights.checkpoint_info import CheckpointInfo

BYTES = ("image", "video")  # the modalities whose values are uint8


class RawInputs(NamedTuple):
    """The dtype of raw inputs, and how they are normalised: inside, if mean and std are known."""

    dtype: type
    mean: tuple[float, ...]  # per channel, of uint8 / 255 or of the floats; () = unknown
    std: tuple[float, ...]
    terms: str = ""  # what users do to numbers before the file gets them
    gaps: bool = False  # NaN is a missing value, as in the training

    def __str__(self) -> str:
        if self.dtype is jnp.int32:
            return "whole numbers below the vocabulary size"
        if not self.mean:
            return "normalised values, because mean and std are unknown (give --mean and --std)"
        scaled = "x / 255" if self.dtype is jnp.uint8 else "x"
        gaps = ", and NaN is a missing value" if self.gaps else ""
        raw = f"x = {self.terms}" if self.terms else "raw values x"
        return f"{raw}; the file computes ({scaled} - mean) / std itself{gaps}"

    def normalize(self, x: Shaped[Array, "b *size c"]) -> Shaped[Array, "b *size c"]:
        """Return raw inputs as the network takes them."""
        return augment.normalize(x, self.mean, self.std) if self.mean else x

    def split(self, x: Shaped[Array, "b *size c"]) -> missing.Inputs:
        """Return raw inputs as the network takes them, apart from what is missing of them."""
        if not self.gaps:
            return missing.Inputs(self.normalize(x), None, None)
        one = (1.0,) * x.shape[-1]
        mean, std = self.mean or (0.0,) * len(one), self.std or one
        return missing.split(x, mean, std, {"nodata": "nan"})

    def restore(self, x: Shaped[Array, "b *size c"]) -> Shaped[Array, "b *size c"]:
        """Invert `normalize`, but for rounding and clipping to uint8: floats stay floats."""
        if not self.mean:
            return x
        scale = 255 if self.dtype is jnp.uint8 else 1
        row = lambda values: scale * jnp.array(values).reshape((1,) * (x.ndim - 1) + (-1,))
        return x * row(self.std) + row(self.mean)


def of(
    info: CheckpointInfo, mean: Sequence[float] | None, std: Sequence[float] | None
) -> RawInputs:
    """Return the raw inputs of a checkpoint; `mean` and `std` replace those that it knows.

    Raises:
      ValueError: only one of both is known, or one has not a number for each channel.
    """
    if info.fields.get("vocab_size"):
        return RawInputs(jnp.int32, (), ())
    given = {"mean": tuple(mean or info.mean or ()), "std": tuple(std or info.std or ())}
    for name, values in given.items():
        if len(values) != info.channels and any(given.values()):
            raise ValueError(
                f"{name} = {values} has {len(values)} values, and the model has {info.channels} "
                f"channel(s): give --{name} with one number for each"
            )
    if not all(x > 0 for x in given["std"]):
        raise ValueError(f"std = {given['std']} must be above 0: give another --std")
    data = (info.config or {}).get("data", {})
    if data.get("reference_spacing"):
        raise ValueError(
            f"the positions of {info.path} depend on the spacing of an input "
            "(data.reference_spacing), which exported files do not take: use mae_jax.embed"
        )
    scale, terms = data.get("range", "auto"), ""
    if scale == "dtype":
        terms = "whole numbers taken to 0 to 1 by the limits of their type"
    elif data.get("clip"):
        terms = f"(number - {scale[0]:g}) / {scale[1] - scale[0]:g}, cut to 0 to 1"
    elif not isinstance(scale, str) and given["mean"]:
        low, high = scale  # the raw numbers, of which `low` became 0 and `high` 1
        extent = high - low
        given["mean"] = tuple(low + extent * x for x in given["mean"])
        given["std"] = tuple(extent * x for x in given["std"])
    default = "image" if len(info.fields["patch"]) == 2 else ""  # files of other projects
    is_bytes = data.get("modality", default) in BYTES and given["mean"]
    gaps = data.get("nodata") is not None
    is_bytes = is_bytes and scale == "auto" and not gaps
    return RawInputs(jnp.uint8 if is_bytes else jnp.float32, **given, terms=terms, gaps=gaps)
