"""What lies beside the weights of other code: a config.json, or the arguments of a training."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from mae_jax.data.target_scale import TargetScale
from mae_jax.models import build
from mae_jax.output import files
from mae_jax.weights.parameter_names import Family, Fields

Size = tuple[int, ...]
TIMM_ARCHITECTURE = (
    r"(vit|deit3?)_(tiny|small|medium|base|large|huge|giant|gigantic)_patch\d+"
    r"(_reg\d+)?(_gap)?(_dinov2)?(_\d+)?"
)
TIMM_ARGUMENTS = {"img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads"}
TIMM_ARGUMENTS |= {"mlp_ratio", "num_classes", "global_pool", "class_token", "reg_tokens"}
TIMM_ARGUMENTS |= {"no_embed_class", "fc_norm", "qkv_bias", "init_values", "act_layer"}
TIMM_ARGUMENTS |= {"dynamic_img_size", "dynamic_img_pad", "weight_init", "drop_rate"}
TIMM_ARGUMENTS |= {f"{name}_drop_rate" for name in ("pos", "patch", "proj", "attn")}
TIMM_ARGUMENTS |= {"drop_path_rate"}


class Settings(NamedTuple):
    """What a file or a folder says of its model and of the inputs."""

    fields: Fields  # of the model
    size: Size | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    classes: list[str] | None = None
    mask_ratio: float | None = None
    depths: Mapping[str, int] = {}  # "" for the encoder or "decoder_" -> number of blocks
    targets: TargetScale | None = None  # of a regressor; of other code without its scale


def read(path: Path, family: Family, args: Mapping[str, Any], patch: Size, width: int) -> Settings:
    """Return what the config.json beside the weights says, or else the arguments in the file.

    Args:
      args: of the command line of the training, if the file holds them.
      patch, width: of the encoder, as the file's tensors say.

    Raises:
      ValueError: a value is not possible, or the model is one that ours cannot be.
    """
    folder = path if path.is_dir() else path.parent
    values = _read_json(folder / "config.json")
    if values.get("model_type") in family.model_types and values.get("hidden_size") == width:
        return _transformers(folder, values, family, len(patch))
    if path.is_dir() and "architecture" in values:
        return _timm(folder, values)
    # A single file may lie beside another model's config.json.
    return _arguments(args, patch, width)


def _read_json(file: Path) -> dict[str, Any]:
    return files.read_json(epath.Path(file)) if file.exists() else {}


class _Values:
    """Values of a JSON file, of which each must have a type that its reader expects."""

    def __init__(self, file: Path, values: Mapping[str, Any]):
        self.file, self.values = file, values

    def __call__(self, name: str, *kinds: type) -> Any:
        value = self.values.get(name)
        if value is not None and type(value) not in kinds:
            raise ValueError(f"{self.file}: {name} = {value!r} is not possible")
        return value


def _transformers(folder: Path, values: Mapping, family: Family, axes: int) -> Settings:
    """Read the config.json of transformers, and the preprocessor_config.json beside it."""
    if (activation := values.get("hidden_act", "gelu")) != "gelu":
        raise ValueError(f"{folder} has the activation {activation}: only gelu can be read")
    value = _Values(folder / "config.json", values)
    fields: Fields = {"eps": value("layer_norm_eps", float, int)}
    depths = {"": value("num_hidden_layers", int)}
    fields["heads"] = value("num_attention_heads", int)
    if (normalised := value("norm_pix_loss", bool)) is not None:
        fields["norm_pix"] = normalised
    elif "vit_mae" == values.get("model_type"):
        fields["norm_pix"] = False
    if values.get("model_type") == "vit":
        fields["pooling"] = "cls"
    if any(name.startswith("decoder_") for name in values):
        fields["decoder_heads"] = value("decoder_num_attention_heads", int)
        depths["decoder_"] = value("decoder_num_hidden_layers", int)
    side = value("image_size", int, list)
    sides = [side] * min(axes, 2) if isinstance(side, int) else side or []
    frames = value("num_frames", int)
    size = tuple(([frames] if frames and axes == 3 else []) + sides)
    images = _read_json(folder / "preprocessor_config.json")
    if not images.get("do_normalize", True) or images.get("rescale_factor", 1 / 255) != 1 / 255:
        images = {}  # the statistics are not those of values from 0 to 1
    labels = values.get("id2label") or {}
    names = [str(labels[key]) for key in sorted(labels, key=int)] if _are_numbers(labels) else []
    targets = _targets(folder, values)
    if values.get("problem_type") == "regression" and not targets:
        targets = TargetScale(tuple(names))
    if targets or all(name == f"LABEL_{i}" for i, name in enumerate(names)):
        names = None
    return Settings(
        {name: x for name, x in fields.items() if x is not None},
        size if len(size) == axes else None,
        images.get("image_mean"),
        images.get("image_std"),
        names,
        value("mask_ratio", float),
        {part: depth for part, depth in depths.items() if depth is not None},
        targets,
    )


def _targets(folder: Path, values: Mapping) -> TargetScale | None:
    """Return the targets of a regressor that this project wrote."""
    try:
        stored = values.get("target_scale")
        return TargetScale.of(stored) if stored else None
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'config.json'} has a damaged target_scale") from error


def _are_numbers(names: Any) -> bool:
    return isinstance(names, dict) and all(str(name).isdigit() for name in names)


def _timm(folder: Path, values: Mapping) -> Settings:
    """Read the config.json of timm on the Hub.

    Tensors do not tell rotary positions or another activation, so that only architectures and
    arguments are accepted that are known not to have these.
    """
    options = values.get("model_args") or {}
    data = values.get("pretrained_cfg") or values
    if (activation := options.get("act_layer", "gelu")) != "gelu":
        raise ValueError(f"{folder} has the activation {activation}: only gelu can be read")
    name, others = str(values["architecture"]), sorted({*options} - TIMM_ARGUMENTS)
    if others or not re.fullmatch(TIMM_ARCHITECTURE, name):
        what = f"model_args {', '.join(others)}" if others else f"the architecture {name}"
        raise ValueError(
            f"{folder} has {what}, which may compute something else than a plain Vision "
            "Transformer: if you know that it does not, give its model.safetensors alone"
        )
    fields: Fields = {}
    if heads := _Values(folder / "config.json", options)("num_heads", int):
        fields["heads"] = heads
    pooling = values.get("global_pool", options.get("global_pool"))
    if pooling not in (None, "", "token", "avg"):
        raise ValueError(f"{folder} has global_pool = {pooling!r}: only token and avg can be read")
    if pooling:
        fields["pooling"] = {"token": "cls", "avg": "mean"}[pooling]
    size = data.get("input_size")
    return Settings(
        fields,
        tuple(size[1:]) if isinstance(size, list) and len(size) == 3 else None,
        data.get("mean"),
        data.get("std"),
        values.get("label_names"),
        targets=_targets(folder, values),
    )


def _arguments(args: Mapping[str, Any], patch: Size, width: int) -> Settings:
    """Read the arguments of a training script of the reference's kind."""
    fields: Fields = {}
    if isinstance(args.get("norm_pix_loss"), bool):
        fields["norm_pix"] = args["norm_pix_loss"]
    if isinstance(args.get("global_pool"), bool):
        fields["pooling"] = "mean" if args["global_pool"] else "cls"
    depths = {}
    for name, variant in build.VARIANTS.items():
        if name in str(args.get("model")).split("_") and variant["width"] == width:
            fields["heads"], depths[""] = variant["heads"], variant["depth"]
    for part in ("", "decoder_"):
        if isinstance(heads := args.get(f"{part}num_heads"), int):
            fields[f"{part}heads"] = heads
    if isinstance(depth := args.get("decoder_depth"), int):
        depths["decoder_"] = depth
    side, frames = args.get("input_size"), args.get("num_frames")
    size = {2: (side, side), 3: (frames, side, side)}.get(len(patch), (None,))
    size = tuple(number for number in size if isinstance(number, int))
    ratio = args.get("mask_ratio")
    ratio = ratio if isinstance(ratio, float) and 0 < ratio < 1 else None
    size = size if len(size) == len(patch) else None
    return Settings(fields, size, mask_ratio=ratio, depths=depths)
