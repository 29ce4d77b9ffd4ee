"""From the flat section `model` of a config to the objects of a network, and nowhere else."""

from collections.abc import Mapping
from typing import Any

import jax

from mae_jax.models import (
    attention,
    byte_values,
    channel_groups,
    mae,
    positions,
    targets,
    tokenizers,
    vit,
)
from mae_jax.models.cross_decoder import CrossDecoder
from mae_jax.models.heads.classification import Classifier
from mae_jax.models.layers import Compute
from mae_jax.models.masking import MaskSampler, make_mask_sampler
from mae_jax.models.transformer import Transformer

# The encoders of Dosovitskiy et al. (arXiv 2010.11929) and Touvron et al. (arXiv 2012.12877).
# "huge" is used with patch 14, the others with patch 16.
VARIANTS = {
    "small": dict(width=384, depth=12, heads=6),
    "base": dict(width=768, depth=12, heads=12),
    "large": dict(width=1024, depth=24, heads=16),
    "huge": dict(width=1280, depth=32, heads=16),
}

# The names that describe a network, with their defaults; those without one must be given.
_ENCODER: dict[str, Any] = dict(patch=..., width=..., depth=..., heads=..., mlp_ratio=4.0, eps=1e-6)
_ENCODER |= dict(learned_positions=False, separable_positions=False)
_ENCODER |= dict(channel_groups=(), vocab_size=0, dtype="float32")
DEFAULTS: dict[str, dict[str, Any]] = {
    "MaskedAutoencoder": _ENCODER
    | dict(decoder_width=512, decoder_depth=8, decoder_heads=16, decoder_cross=False)
    | dict(norm_pix=True, target_stride=()),
    "Classifier": _ENCODER | dict(classes=0, pooling="mean", batch_norm=False, head_std=2e-5),
}
FIELDS = {kind: frozenset(names) for kind, names in DEFAULTS.items()}
OLD_NAMES = {"groups": "channel_groups", "categories": "vocab_size"}  # in older files
SPEED = frozenset({"attention", "remat", "scan"})  # of the machine, not of the network


def model(kind: str, fields: Mapping[str, Any], *, custom_gradients: bool = False) -> Any:
    """Build a `MaskedAutoencoder` or a `Classifier` from flat fields.

    Args:
      kind: a key of `FIELDS`.
      fields: by name; those that are missing have their defaults. `attention = "auto"` means the
        implementation suited to the devices that are here, `dtype = "auto"` bfloat16 on
        accelerators and float32 on CPUs.
      custom_gradients: see `layers.Compute`: faster training, but no forward mode.

    Raises:
      ValueError: unknown fields, or fields that exclude each other.
    """
    build = {"MaskedAutoencoder": autoencoder, "Classifier": classifier}[kind]
    return build(fields, custom_gradients=custom_gradients)


def autoencoder(
    fields: Mapping[str, Any], *, custom_gradients: bool = False
) -> mae.MaskedAutoencoder:
    """Build a masked autoencoder: see `model`."""
    f = _completed("MaskedAutoencoder", fields)
    compute = _compute(f, custom_gradients)
    width, depth, heads = (f[f"decoder_{name}"] for name in ("width", "depth", "heads"))
    trunk = Transformer(width, depth, heads, f["mlp_ratio"], f["eps"], compute)
    decoder = CrossDecoder if f["decoder_cross"] else mae.SelfDecoder
    return mae.MaskedAutoencoder(
        encoder=_encoder(f, compute),
        decoder=decoder(_positions(f, trunk.width, compute), trunk),
        target=_target(f),
    )


def classifier(
    fields: Mapping[str, Any], classes: int | None = None, *, custom_gradients: bool = False
) -> Classifier:
    """Build a classifier of `classes`, by default those of the fields: see `model`."""
    f = _completed("Classifier", fields)
    f["classes"] = f["classes"] if classes is None else classes
    return Classifier(
        encoder=_encoder(f, _compute(f, custom_gradients), final_norm=f["pooling"] == "cls"),
        classes=f["classes"],
        pooling=f["pooling"],
        batch_norm=f["batch_norm"],
        head_std=f["head_std"],
    )


def mask_sampler(mask: Mapping[str, Any], model: mae.MaskedAutoencoder, size) -> MaskSampler:
    """Return how the section `mask` of a config masks inputs of `size`.

    Raises:
      ValueError: see `masking.make_mask_sampler`.
    """
    grid = model.grid(size)
    return make_mask_sampler(
        mask.get("name", "random"),
        mask["ratio"],
        grid,
        side=mask.get("side", 2),
        decode=mask.get("decode", 1.0),
        group_axis=len(grid) > len(model.patch),
        contrast=getattr(model.target, "contrast", None),
    )


def _completed(kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    known = DEFAULTS[kind] | dict(attention="reference", remat="none", scan=False)
    if unknown := sorted(fields.keys() - known.keys()):
        raise ValueError(f"{', '.join(unknown)} is no field of a {kind}")
    found = known | {name: _tuples(value) for name, value in fields.items()}
    if missing := [name for name, value in found.items() if value is ...]:
        raise ValueError(f"a {kind} needs {', '.join(missing)}")
    if found["separable_positions"] and not found["learned_positions"]:
        raise ValueError("separable_positions needs learned_positions")
    if found["channel_groups"] and found["vocab_size"]:
        raise ValueError("channel_groups are for pixels, vocab_size for whole numbers: give one")
    if found["vocab_size"] and found.get("target_stride"):
        raise ValueError("target_stride is for pixels, vocab_size for whole numbers: give one")
    return found


def _compute(f: dict[str, Any], custom_gradients: bool) -> Compute:
    dtype, implementation = f["dtype"], f["attention"]
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if implementation == "auto":
        implementation = attention.suited()
    return Compute(dtype, implementation, f["remat"], f["scan"], custom_gradients)


def _encoder(f: dict[str, Any], compute: Compute, final_norm: bool = True) -> vit.Encoder:
    common = dict(patch=f["patch"], width=f["width"], compute=compute)
    if f["channel_groups"]:
        tokenizer = channel_groups.ChannelGroupTokenizer(
            channel_groups=f["channel_groups"], **common
        )
    elif f["vocab_size"]:
        tokenizer = byte_values.ByteTokenizer(vocab_size=f["vocab_size"], **common)
    else:
        tokenizer = tokenizers.PatchTokenizer(**common)
    trunk = Transformer(f["width"], f["depth"], f["heads"], f["mlp_ratio"], f["eps"], compute)
    return vit.Encoder(tokenizer, _positions(f, f["width"], compute), trunk, final_norm)


def _positions(f: dict[str, Any], width: int, compute: Compute):
    kind = positions.Learned if f["learned_positions"] else positions.SinCos
    kind = positions.Separable if f["separable_positions"] else kind
    return kind(width, compute.dtype)


def _target(f: dict[str, Any]):
    patch = f["patch"]
    if f["vocab_size"]:
        return byte_values.ByteTarget(patch, f["vocab_size"])
    if f["channel_groups"]:
        return channel_groups.ChannelGroupTarget(
            patch, f["norm_pix"], f["target_stride"], f["channel_groups"]
        )
    return targets.PixelTarget(patch, f["norm_pix"], f["target_stride"])


def _tuples(x: Any) -> Any:
    return tuple(map(_tuples, x)) if isinstance(x, list | tuple) else x
