"""Checkpoints for inputs with other channels, or with patches of another size: see `adapt`."""

import math
import operator
from collections.abc import Callable, Sequence

import jax
import numpy as np

from mae_jax.weights import checkpoint_info
from mae_jax.weights.checkpoint_info import Abstract, CheckpointInfo

Matrix = np.ndarray  # [new, old]
# From an old and a new number of values: a matrix for weights of inputs, and one for predictions.
Kind = Callable[[int, int], tuple[Matrix, Matrix]]
# The axis of the values of a patch, (p q c), in the parameters that depend on them.
AXES = {"encoder/embedding/kernel": 0, "decoder/head/kernel": -1, "decoder/head/bias": -1}


def mean(old: int, new: int) -> tuple[Matrix, Matrix]:
    """Start each new channel as the mean of the old ones.

    Weights of inputs are multiplied by old / new, so that inputs whose channels are all equal have
    the tokens that they had. The weights of a single new channel are the sum, as in timm.
    """
    share = np.full((new, old), 1 / old)
    return share * (old / new), share


def repeat(old: int, new: int) -> tuple[Matrix, Matrix]:
    """Start new channel i as old channel i modulo `old`.

    Weights of inputs are multiplied by old / new, as in timm for more than one channel.
    """
    share = np.eye(old)[np.arange(new) % old]
    return share * (old / new), share


def resize(old: int, new: int) -> tuple[Matrix, Matrix]:
    """Resize one axis of a patch by the pseudo-inverse: PI-resize of FlexiViT (arXiv 2212.08013).

    With the matrix B of linear interpolation, whose filter is wider where it shrinks (as Pillow's),
    weights w of inputs become `pinv(B).T @ w`: a patch that B enlarges has the token that it had.
    Predictions are interpolated by B itself.
    """
    distance = (np.arange(new)[:, None] + 0.5) * old / new - 0.5 - np.arange(old)
    interpolation = (1 - np.abs(distance) / max(1, old / new)).clip(0)
    interpolation /= interpolation.sum(1, keepdims=True)
    return np.linalg.pinv(interpolation).T, interpolation


def keep(old: int, new: int) -> tuple[Matrix, Matrix]:
    """Keep a number of values that stays the same."""
    return np.eye(old), np.eye(new)


CHANNELS: dict[str, Kind] = {"mean": mean, "repeat": repeat}
PATCHES: dict[str, Kind] = {"resize": resize}


def adapt(
    info: CheckpointInfo,
    kinds: str | Sequence[str] = (),
    *,
    channels: int | None = None,
    patch: Sequence[int] | None = None,
) -> CheckpointInfo:
    """Return the checkpoint as one of a model for other channels and another patch.

    Only the embedding and the decoder's head change. The number of patches stays, so the `size` of
    inputs changes with the patch. The mean and the deviation of other channels are unknown.

    Args:
      kinds: a name in `CHANNELS`, a name in `PATCHES`, or one of each.
      channels, patch: of the inputs from now on; None stands for the checkpoint's own.

    Raises:
      ValueError: a kind is unknown, or missing where a number differs, or does not suit the model.
    """
    by_patch, by_channels = _chosen([kinds] if isinstance(kinds, str) else kinds)
    if (by_patch or by_channels) and not (patch or channels):
        raise ValueError(f"adapt = {kinds!r} needs channels= or patch=, of the inputs from now on")
    old = (*info.fields["patch"], info.channels)
    new = (*(patch or old[:-1]), channels or info.channels)
    if new == old:
        return info
    _check(info, new, by_patch, by_channels)
    matrices = _matrices(info, new, [*[by_patch] * (len(old) - 1), by_channels])
    changed = [name for name in matrices if name in info.shapes]
    shapes = {name: list(info.shapes[name]) for name in changed}
    for name in changed:
        shapes[name][AXES[name]] = math.prod(map(len, matrices[name]))

    def read(wanted: Abstract) -> dict[str, jax.Array]:
        arrays = info.read({name: leaf for name, leaf in wanted.items() if name not in changed})
        for name in [name for name in changed if name in wanted]:
            x = checkpoint_info.read_whole(info, name, wanted[name])
            x = _multiply(matrices[name], x, AXES[name])
            arrays[name] = checkpoint_info.place(x, wanted[name])
        return arrays

    others = dict(mean=None, std=None) if new[-1] != old[-1] else {}
    return info._replace(
        fields=info.fields | dict(patch=new[:-1]),
        shapes=info.shapes | {name: tuple(shape) for name, shape in shapes.items()},
        read=read,
        channels=new[-1],
        size=info.size and tuple(s // p * q for s, p, q in zip(info.size, old, new, strict=False)),
        config=None,
        **others,
    )


def _chosen(names: Sequence[str]) -> tuple[Kind | None, Kind | None]:
    """Return the kinds for the patch and for the channels.

    Raises:
      ValueError: a name is unknown, or there are two for the same.
    """
    names = [name for name in names if name]
    found = [[table[name] for name in names if name in table] for table in (PATCHES, CHANNELS)]
    if sum(map(len, found)) < len(names) or max(map(len, found)) > 1:
        raise ValueError(
            f"adapt = {names} must be {' or '.join(map(repr, CHANNELS))} (for other channels), "
            f"{' or '.join(map(repr, PATCHES))} (for another patch), or one of each"
        )
    by_patch, by_channels = (kinds[0] if kinds else None for kinds in found)
    return by_patch, by_channels


def _check(info: CheckpointInfo, new: tuple, by_patch: Kind | None, by_channels: Kind | None):
    """Raise ValueError if a number differs without a kind, or if no kind suits the model."""
    old, fields = (*info.fields["patch"], info.channels), info.fields
    differ, groups = [], fields.get("channel_groups")
    if new[:-1] != old[:-1] and not by_patch:
        differ.append(f"patches of {old[:-1]}, not {new[:-1]} (adapt='resize' changes them)")
    if new[-1] != old[-1] and not by_channels:
        ways = " or ".join(f"adapt={name!r}" for name in CHANNELS)
        differ.append(f"{old[-1]} channels, not {new[-1]} ({ways} changes their number)")
    if differ:
        raise ValueError(f"{info.path} has {' and '.join(differ)}")
    if len(new) != len(old):
        raise ValueError(f"{info.path} has patches of {len(old) - 1} axes, not {len(new) - 1}")
    if fields.get("vocab_size") or (groups and new[-1] != old[-1]):
        what = f"channel_groups = {groups}" if groups else "a vocabulary in the place of pixels"
        raise ValueError(f"{info.path} has {what}, which adapt= cannot change")


def _matrices(
    info: CheckpointInfo, new: tuple[int, ...], kinds: Sequence[Kind | None]
) -> dict[str, list[Matrix]]:
    """Return the matrices for the sides of a patch and for the channels, by parameter.

    Raises:
      ValueError: the decoder's head does not predict the values of a patch.
    """
    old, stride = (*info.fields["patch"], info.channels), info.fields.get("target_stride")
    stride = (*(stride or (1,) * (len(old) - 1)), 1)
    each = [kind if kind and a != b else keep for kind, a, b in zip(kinds, old, new, strict=True)]
    small = [[*map(operator.floordiv, sides, stride)] for sides in (old, new)]
    head = info.shapes.get("decoder/head/bias", (math.prod(small[0]),))
    if head != (math.prod(small[0]),):
        raise ValueError(f"{info.path} does not predict pixels, so that adapt= cannot change it")
    inputs = [kind(a, b)[0] for kind, a, b in zip(each, old, new, strict=True)]
    predictions = [kind(a, b)[1] for kind, a, b in zip(each, *small, strict=True)]
    return {name: predictions if "/head/" in name else inputs for name in AXES}


def _multiply(matrices: Sequence[Matrix], x: np.ndarray, axis: int) -> np.ndarray:
    """Apply each matrix to its axis of the values of a patch, which are axis `axis` of `x`."""
    x = np.moveaxis(x, axis, 0)
    rest = x.shape[1:]
    x = x.reshape(*(matrix.shape[1] for matrix in matrices), *rest)
    for i, matrix in enumerate(matrices):
        x = np.moveaxis(np.tensordot(matrix, x, (1, i)), 0, i)
    return np.moveaxis(x.reshape(-1, *rest), 0, axis)
