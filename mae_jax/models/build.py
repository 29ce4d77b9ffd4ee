"""From the flat section `model` of a config to the objects of a network, and nowhere else."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax

from mae_jax.config import schema, sections
from mae_jax.models import attention, byte_values, channel_groups, mae, operations, vit
from mae_jax.models.cross_decoder import CrossDecoder
from mae_jax.models.heads.classification import Classifier
from mae_jax.models.masking import MaskSampler, make_mask_sampler
from mae_jax.models.operations import Operations
from mae_jax.models.positions import FORMULAS, Fixed, Learned, PositionTable, Separable
from mae_jax.models.targets import NORMS, PixelTarget, Target, every, spread
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
# Fields that a config does not have and in which files of other projects differ. Without
# decoder_mlp_ratio it is mlp_ratio, and without target_groups these are channel_groups.
_OF_FILES = dict(mlp_ratio=4.0, eps=1e-6, decoder_mlp_ratio=None, target_groups=())
DECODERS = {"self": mae.SelfDecoder, "own_cls": mae.OwnClsDecoder, "cross": CrossDecoder}
# What a missing field of a file or of Python code means where a config has another default.
_MISSING = dict(learned_positions=False, dtype="float32", attention="reference")
SPEED = frozenset({"attention", "remat", "scan"})  # of the machine, not of the network
# The names that describe a network.
FIELDS = {kind: {*section.model_fields, *_OF_FILES} - SPEED for kind, section in SECTIONS.items()}
FIELDS["Classifier"] |= {"classes", "norm_eps"}


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
    decoder = DECODERS[f["decoder"]](position_table(f, "decoder_"), _trunk(f, "decoder_", ops))
    return mae.MaskedAutoencoder(_encoder(f, ops, f["final_norm"]), decoder, target(f))


def classifier(
    fields: Mapping[str, Any], classes: int | None = None, *, custom_gradients: bool = False
) -> Classifier:
    """Build a classifier of `classes`, by default those of the fields: see `model`."""
    f = completed("Classifier", fields)
    encoder = _encoder(f, _operations(f, custom_gradients), f["pooling"] != "mean")
    count: int = f.get("classes", 0) if classes is None else classes
    norm_eps: float = f.get("norm_eps") or f["eps"]
    return Classifier(encoder, count, f["pooling"], f["batch_norm"], f["head_std"], norm_eps)


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
    f = with_defaults(kind, fields)
    if found := [*contradictions(f)]:
        raise ValueError("; ".join(found))
    return f


def with_defaults(kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a network, with defaults for those that are left out, unchecked."""
    section = SECTIONS[kind].model_fields
    f = {name: field.default for name, field in section.items()} | _OF_FILES | _MISSING
    f |= {name: _tuples(value) for name, value in fields.items()}
    if "decoder_width" in f:
        f["decoder_mlp_ratio"] = f["decoder_mlp_ratio"] or f["mlp_ratio"]
    return f


def check_values(fields: Mapping[str, Any]) -> None:
    """Raise ValueError for names and values that no field of a network can have."""
    needed = dict(patch=(1,), width=1, depth=1, heads=1)
    for name, value in fields.items():
        if name not in set().union(*FIELDS.values()):
            raise ValueError(f"{name} is no field of a model")
        for section in SECTIONS.values():
            if name in section.model_fields:
                schema.section(section, needed | {name: value})
                break
        else:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if name != "target_groups" and not (is_number and value >= 0):
                raise ValueError(f"{name} = {value!r} must be a number of at least 0")


def contradictions(f: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each field that another one excludes."""
    for part in ("", "decoder_") if "decoder_width" in f else ("",):
        width, heads = f[f"{part}width"], f[f"{part}heads"]
        if heads is not None and (heads < 1 or width % heads):  # a file may not say it
            divisors = [n for n in range(1, width + 1) if width % n == 0]
            near = sorted(sorted(divisors, key=lambda n: abs(n - heads))[:2])
            way = " or ".join(map(str, near))
            yield f"{part}heads = {heads} does not divide {part}width = {width}: use {way}"
    if f["separable_positions"] and not f["learned_positions"]:
        yield "separable_positions needs learned_positions: use learned_positions=True"
    if f["separable_positions"] and f["position_formula"] != "sincos":
        yield "separable_positions start as sincos: use position_formula='sincos'"
    if f.get("pooling") == "cls" and not f["cls_tokens"]:
        yield "pooling = 'cls' needs a class token: use 'mean' or 'norm_mean' with cls_tokens=0"
    if f.get("target_spread") and not f["target_stride"]:
        yield "target_spread needs a target_stride, such as (2, 1, 1)"
    for name in ("channel_groups", "norm_pix"):
        if f["vocab_size"] and f.get(name):
            yield f"{name} needs pixels: use {name}={type(f[name])()} with vocab_size"


def target(f: Mapping[str, Any]) -> Target:
    """Build the target of an autoencoder from all of its fields."""
    _, kind, options = _kinds(f)
    if not f["vocab_size"]:
        options["norm"] = NORMS[f["norm_pix"]] if f["norm_pix"] else None
    if f["channel_groups"] and f.get("target_groups"):
        options["channel_groups"] = f["target_groups"]
    return kind(f["patch"], f["target_stride"], spread if f["target_spread"] else every, **options)


def position_table(f: Mapping[str, Any], part: str = "") -> PositionTable:
    """Build the positions of the encoder, or of the part "decoder_", from all of its fields."""
    kind = Learned if f["learned_positions"] else Fixed
    kind = Separable if f["separable_positions"] else kind
    own = part and DECODERS[f["decoder"]] is mae.OwnClsDecoder
    return kind(
        f[f"{part}width"],
        1 if own else f["cls_tokens"],
        FORMULAS[f["position_formula"]],
        _dtype(f),
    )


def _operations(f: dict[str, Any], custom_gradients: bool) -> Operations:
    dtype, name = _dtype(f), f["attention"]
    name = attention.suited() if name == "auto" else name
    if name not in attention.IMPLEMENTATIONS:
        known = ", ".join(attention.IMPLEMENTATIONS)
        raise ValueError(f"attention {name!r} is none of {known}")
    if not custom_gradients:
        name = name if name in attention.FORWARD_MODE else "reference"
        return Operations(dtype, attend=attention.IMPLEMENTATIONS[name])
    by_hand = (operations.product_by_hand, operations.layer_norm_by_hand)
    return Operations(dtype, *by_hand, attention.IMPLEMENTATIONS[name])


def _dtype(f: Mapping[str, Any]) -> Any:
    automatic = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return automatic if f["dtype"] == "auto" else f["dtype"]


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
    return vit.Encoder(tokenizer, position_table(f), trunk, f["register_tokens"], final_norm)


def _trunk(f: dict[str, Any], part: str, ops: Operations) -> Transformer:
    sizes = {name: f[f"{part}{name}"] for name in ("width", "depth", "heads", "mlp_ratio")}
    common = {name: f[name] for name in ("eps", "remat", "scan")}
    return Transformer(**sizes, **common, ops=ops)


def _tuples(x: Any) -> Any:
    return tuple(map(_tuples, x)) if isinstance(x, list | tuple) else x
