"""From the flat section `model` of a config to the objects of a network, and nowhere else."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax

from mae_jax.config import sections
from mae_jax.models import attention, byte_values, channel_groups, mae, operations, vit
from mae_jax.models.cross_decoder import CrossDecoder
from mae_jax.models.heads.classification import Classifier
from mae_jax.models.masking import MaskSampler, make_mask_sampler
from mae_jax.models.operations import Operations
from mae_jax.models.positions import Learned, PositionTable, Separable, SinCos
from mae_jax.models.targets import PixelTarget, Target
from mae_jax.models.tokenizers import PatchTokenizer
from mae_jax.models.transformer import Transformer

# The encoders of Dosovitskiy et al. (arXiv 2010.11929) and Touvron et al. (arXiv 2012.12877).
# "huge" is used with patch 14, the others with patch 16.
VARIANTS = {
    "small": dict(width=384, depth=12, heads=6),
    "base": dict(width=768, depth=12, heads=12),
    "large": dict(width=1024, depth=24, heads=16),
    "huge": dict(width=1280, depth=32, heads=16),
}
SECTIONS = {"MaskedAutoencoder": sections.AutoencoderModel, "Classifier": sections.ClassifierModel}
# Fields that a config does not have and in which files of other projects differ.
_PAPER = dict(mlp_ratio=4.0, eps=1e-6)
# What a missing field of a file or of Python code means where a config has another default.
_MISSING = dict(learned_positions=False, dtype="float32", attention="reference")
SPEED = frozenset({"attention", "remat", "scan"})  # of the machine, not of the network
# The names that describe a network.
FIELDS = {kind: {*section.model_fields, *_PAPER} - SPEED for kind, section in SECTIONS.items()}
FIELDS["Classifier"] |= {"classes"}


def model(kind: str, fields: Mapping[str, Any], *, custom_gradients: bool = False) -> Any:
    """Build a `MaskedAutoencoder` or a `Classifier` from flat fields.

    Args:
      kind: a key of `FIELDS`.
      fields: by name, see `completed`. `attention = "auto"` means the implementation suited to the
        devices that are here, `dtype = "auto"` bfloat16 on accelerators and float32 on CPUs.
      custom_gradients: use gradients written by hand: faster training, but no forward mode. Without
        them attention is "reference" in place of an implementation that has no forward mode.

    Raises:
      ValueError: unknown or missing fields, or fields that exclude each other.
    """
    build = {"MaskedAutoencoder": autoencoder, "Classifier": classifier}[kind]
    return build(fields, custom_gradients=custom_gradients)


def autoencoder(
    fields: Mapping[str, Any], *, custom_gradients: bool = False
) -> mae.MaskedAutoencoder:
    """Build a masked autoencoder: see `model`."""
    f = completed("MaskedAutoencoder", fields)
    ops = _operations(f, custom_gradients)
    trunk = _trunk(f, "decoder_", ops)
    decoder = CrossDecoder if f["decoder_cross"] else mae.SelfDecoder
    return mae.MaskedAutoencoder(
        _encoder(f, ops), decoder(_positions(f, trunk.width, ops), trunk), target(f)
    )


def classifier(
    fields: Mapping[str, Any], classes: int | None = None, *, custom_gradients: bool = False
) -> Classifier:
    """Build a classifier of `classes`, by default those of the fields: see `model`."""
    f = completed("Classifier", fields)
    encoder = _encoder(f, _operations(f, custom_gradients), f["pooling"] == "cls")
    count: int = f.get("classes", 0) if classes is None else classes
    return Classifier(encoder, count, f["pooling"], f["batch_norm"], f["head_std"])


def mask_sampler(mask: Mapping[str, Any], model: mae.MaskedAutoencoder, size) -> MaskSampler:
    """Return how the section `mask` of a config masks inputs of `size`.

    Raises:
      ValueError: see `masking.make_mask_sampler`.
    """
    grid = model.grid(size)
    options: dict[str, Any] = {"name": "random"} | dict(mask)
    return make_mask_sampler(
        **options,
        grid=grid,
        group_axis=len(grid) > len(model.patch),
        contrast=model.target.contrast,
    )


def completed(kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return all fields of a network, of which a file or Python code may leave some out.

    Raises:
      ValueError: unknown fields, missing ones that have no default, or contradictions.
    """
    section = SECTIONS[kind].model_fields
    if unknown := sorted(fields.keys() - FIELDS[kind] - SPEED):
        raise ValueError(f"{', '.join(unknown)} is no field of a {kind}")
    if missing := [x for x, field in section.items() if field.is_required() and x not in fields]:
        raise ValueError(f"a {kind} needs {', '.join(missing)}")
    f = {name: field.default for name, field in section.items()} | _PAPER | _MISSING
    f |= {name: _tuples(value) for name, value in fields.items()}
    if found := [*contradictions(f)]:
        raise ValueError("; ".join(found))
    return f


def contradictions(f: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each field that another one excludes."""
    for part in ("", "decoder_") if "decoder_width" in f else ("",):
        width, heads = f[f"{part}width"], f[f"{part}heads"]
        if heads < 1 or width % heads:
            divisors = [n for n in range(1, width + 1) if width % n == 0]
            near = sorted(sorted(divisors, key=lambda n: abs(n - heads))[:2])
            way = " or ".join(map(str, near))
            yield f"{part}heads = {heads} does not divide {part}width = {width}: use {way}"
    if f["separable_positions"] and not f["learned_positions"]:
        yield "separable_positions needs learned_positions: use learned_positions=True"
    for name in ("channel_groups", "norm_pix"):
        if f["vocab_size"] and f.get(name):
            yield f"{name} needs pixels: use {name}={type(f[name])()} with vocab_size"


def target(f: Mapping[str, Any]) -> Target:
    """Build the target of an autoencoder from all of its fields."""
    _, kind, options = _kinds(f)
    options |= {} if f["vocab_size"] else {"norm": f["norm_pix"]}
    return kind(f["patch"], f["target_stride"], **options)


def _operations(f: dict[str, Any], custom_gradients: bool) -> Operations:
    dtype, name = f["dtype"], f["attention"]
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    name = attention.suited() if name == "auto" else name
    if name not in attention.IMPLEMENTATIONS:
        known = ", ".join(attention.IMPLEMENTATIONS)
        raise ValueError(f"attention {name!r} is none of {known}")
    if not custom_gradients:
        name = name if name in attention.FORWARD_MODE else "reference"
        return Operations(dtype, attend=attention.IMPLEMENTATIONS[name])
    by_hand = (operations.product_by_hand, operations.layer_norm_by_hand)
    return Operations(dtype, *by_hand, attention.IMPLEMENTATIONS[name])


def _kinds(f: Mapping[str, Any]) -> tuple[type, type, dict[str, Any]]:
    """Return the tokenizer, the target, and what both take beside the patch."""
    if f["channel_groups"]:
        kinds = channel_groups.ChannelGroupTokenizer, channel_groups.ChannelGroupTarget
        return *kinds, dict(channel_groups=f["channel_groups"])
    if f["vocab_size"]:
        kinds = byte_values.ByteTokenizer, byte_values.ByteTarget
        return *kinds, dict(vocab_size=f["vocab_size"])
    return PatchTokenizer, PixelTarget, {}


def _encoder(f: dict[str, Any], ops: Operations, final_norm: bool = True) -> vit.Encoder:
    kind, _, options = _kinds(f)
    tokenizer = kind(patch=f["patch"], width=f["width"], ops=ops, **options)
    trunk = _trunk(f, "", ops)
    return vit.Encoder(tokenizer, _positions(f, trunk.width, ops), trunk, final_norm)


def _trunk(f: dict[str, Any], part: str, ops: Operations) -> Transformer:
    sizes = {name: f[f"{part}{name}"] for name in ("width", "depth", "heads")}
    common = {name: f[name] for name in ("mlp_ratio", "eps", "remat", "scan")}
    return Transformer(**sizes, **common, ops=ops)


def _positions(f: dict[str, Any], width: int, ops: Operations) -> PositionTable:
    kind = Learned if f["learned_positions"] else SinCos
    return (Separable if f["separable_positions"] else kind)(width, ops.dtype)


def _tuples(x: Any) -> Any:
    return tuple(map(_tuples, x)) if isinstance(x, list | tuple) else x
