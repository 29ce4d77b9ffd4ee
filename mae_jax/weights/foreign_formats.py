"""The formats of other code that a model can be written in."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from mae_jax.models import build
from mae_jax.weights import checkpoint_info, families, parameter_names
from mae_jax.weights.checkpoint_info import CheckpointInfo

Arrays = dict[str, np.ndarray]
# What a field may be in the models that other code has; a format may allow more or less.
USUAL: dict[str, tuple] = {
    "channel_groups": ((),),
    "vocab_size": (0,),
    "target_stride": ((),),
    "separable_positions": (False,),
    "cls_tokens": (1,),
    "register_tokens": (0,),
    "decoder": ("self",),
    "final_norm": (True,),
    "norm_pix": (True, False),
    "pooling": ("cls", "mean"),
}
NAMES_OF_SIZES = {
    (192, 12, 3): "tiny",
    **{(v["width"], v["depth"], v["heads"]): name for name, v in build.VARIANTS.items()},
}


class Format(NamedTuple):
    """A format, of which `write` gets a path, the model and its arrays under foreign names."""

    title: str
    family: str  # of the parameters' names
    write: Callable[[Path, CheckpointInfo, Arrays], None]
    is_folder: bool = True
    limits: Mapping[str, tuple] = USUAL
    kinds: tuple[str, ...] = ("Classifier", "MaskedAutoencoder")
    square: bool = False


def foreign_arrays(info: CheckpointInfo, arrays: Arrays, target: Format) -> Arrays:
    """Return parameters under foreign names, with the tables of positions even if they are fixed.

    Raises:
      ValueError: the format has no such model, or the size of the tables is unknown.
    """
    if other := _differing(info, target):
        ways = [n for n, x in FORMATS.items() if x is not target and not _differing(info, x)]
        ways = ["a .safetensors file", *(f"--format={name}" for name in ways)]
        raise ValueError(
            f"{info.path} is a model with {', '.join(other)}, which {target.title} does not have: "
            f"write {' or '.join(ways)}"
        )
    if info.kind not in target.kinds:
        raise ValueError(
            f"{target.title} has no decoder: drop that of {info.path} with --without='decoder/.*'"
        )
    patch, size = info.fields["patch"], info.size
    if target.is_folder and (len(patch) != 2 or len({*patch}) > 1):
        raise ValueError(f"{target.title} knows square patches alone, not {patch}")
    if target.square and size and len({*size}) > 1:
        raise ValueError(
            f"{target.title} knows square inputs alone, not inputs of {size}: give --size=H,W with "
            "both the same"
        )
    if not size:
        raise ValueError(
            f"{info.path} does not say of which size its inputs are, and the table of positions "
            "to write depends on it: give --size=H,W"
        )
    arrays = checkpoint_info.fixed_positions(info, size) | arrays
    return parameter_names.to_format(arrays, families.FAMILIES[target.family], patch)


def _differing(info: CheckpointInfo, target: Format) -> list[str]:
    """Return the fields of a model that a format cannot express."""
    fields = {name: info.fields[name] for name in target.limits if name in info.fields}
    other = [f"{name} = {x}" for name, x in fields.items() if x not in target.limits[name]]
    if info.fields.get("norm_eps") not in (None, info.fields["eps"]):
        other.append(f"norm_eps = {info.fields['norm_eps']}")
    return other


def write_reference(path: Path, info: CheckpointInfo, arrays: Arrays) -> None:
    """Write `{"model": state_dict}`, as the reference's own scripts read it.

    Beside it are `args`, as in its full checkpoints, with what the tensors do not tell.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            "a .pth file can be read without PyTorch, but is written by it: pip install torch, or "
            "write a .safetensors file"
        ) from error
    with path.open("wb") as file:  # given a path, PyTorch raises errors other than OSError
        state = {name: torch.from_numpy(x) for name, x in arrays.items()}
        torch.save({"model": state, "args": _reference_arguments(info)}, file)


def _reference_arguments(info: CheckpointInfo) -> dict[str, Any]:
    fields, size = info.fields, info.size or ()
    args: dict[str, Any] = {"num_heads": fields["heads"]}
    if info.kind == "MaskedAutoencoder":
        args |= dict(decoder_num_heads=fields["decoder_heads"], norm_pix_loss=fields["norm_pix"])
    if len(size) == 2 and size[0] == size[1]:
        args["input_size"] = size[0]
    return args


def write_huggingface(path: Path, info: CheckpointInfo, arrays: Arrays) -> None:
    """Write a ViTMAE: `model.safetensors`, config.json and, if known, how inputs are prepared."""
    is_autoencoder = info.kind == "MaskedAutoencoder"
    if not is_autoencoder:  # the files of a ViTMAEModel
        arrays = {name.removeprefix("vit."): x for name, x in arrays.items()}
    mask = (info.config or {}).get("mask") or {}
    architecture = "ViTMAEForPreTraining" if is_autoencoder else "ViTMAEModel"
    settings = _transformers_config(info, "vit_mae", architecture)
    settings["mask_ratio"] = mask.get("ratio", 0.75)
    if is_autoencoder:
        settings |= _transformers_sizes(info.fields, "decoder_")
        settings["norm_pix_loss"] = info.fields["norm_pix"]
    _write_folder(path, arrays, settings)
    _write_preprocessor(path, info)


def write_vit(path: Path, info: CheckpointInfo, arrays: Arrays) -> None:
    """Write transformers' `ViTForImageClassification`, or a `ViTModel` if there is no head."""
    classes = info.fields["classes"]
    if not classes:
        arrays = {name.removeprefix("vit."): x for name, x in arrays.items()}
    architecture = "ViTForImageClassification" if classes else "ViTModel"
    settings = _transformers_config(info, "vit", architecture)
    if classes:
        names = info.classes or [f"LABEL_{i}" for i in range(classes)]
        if info.targets:
            names = info.targets.names
            settings |= {"problem_type": "regression", "target_scale": info.targets._asdict()}
        settings["id2label"] = {str(i): name for i, name in enumerate(names)}
        settings["label2id"] = {name: i for i, name in enumerate(names)}
    _write_folder(path, arrays, settings)
    _write_preprocessor(path, info)


def write_timm(path: Path, info: CheckpointInfo, arrays: Arrays) -> None:
    """Write the folder of a `VisionTransformer`.

    `timm.create_model("local-dir:...", pretrained=True)` reads it.
    """
    fields, size, (patch, _) = info.fields, list(info.size or ()), info.fields["patch"]
    prefix = fields["cls_tokens"] + fields["register_tokens"]
    rows, table = fields["cls_tokens"], arrays["pos_embed"]
    if prefix > rows:  # timm has a row for each register as well
        zeros = np.zeros((1, prefix - rows, table.shape[-1]), table.dtype)
        arrays["pos_embed"] = np.concatenate([table[:, :rows], zeros, table[:, rows:]], axis=1)
    known = NAMES_OF_SIZES.get((fields["width"], fields["depth"], fields["heads"]), "base")
    pooling = "token" if fields["pooling"] == "cls" else "avg"
    options = {
        "img_size": size,
        "patch_size": patch,
        "in_chans": info.channels,
        "embed_dim": fields["width"],
        "depth": fields["depth"],
        "num_heads": fields["heads"],
        "mlp_ratio": fields["mlp_ratio"],
        "num_classes": fields["classes"],
        "global_pool": pooling,
        "class_token": bool(fields["cls_tokens"]),
        "reg_tokens": fields["register_tokens"],
        "fc_norm": fields["pooling"] == "mean",
    }
    data: dict[str, Any] = {"input_size": [info.channels, *size], "num_classes": fields["classes"]}
    if info.mean and info.std:
        data |= {"mean": list(info.mean), "std": list(info.std)}
    data |= {"first_conv": "patch_embed.proj", "classifier": "head"}
    settings = {
        "architecture": f"vit_{known}_patch16_224",
        "num_classes": fields["classes"],
        "num_features": fields["width"],
        "global_pool": pooling,
        "model_args": options,
        "pretrained_cfg": data,
    }
    if info.targets:
        settings["target_scale"] = info.targets._asdict()
    if info.classes:
        settings["label_names"] = list(info.classes)
    _write_folder(path, arrays, settings)


def _transformers_config(info: CheckpointInfo, kind: str, architecture: str) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": kind,
        "image_size": info.size[0] if info.size else None,
        "patch_size": info.fields["patch"][0],
        "num_channels": info.channels,
        "hidden_act": "gelu",
        "qkv_bias": True,
        "layer_norm_eps": info.fields["eps"],
        "attention_probs_dropout_prob": 0.0,
        "hidden_dropout_prob": 0.0,
        **_transformers_sizes(info.fields, ""),
    }


def _transformers_sizes(fields: Mapping[str, Any], part: str) -> dict[str, Any]:
    width = fields[f"{part}width"]
    return {
        f"{part}hidden_size": width,
        f"{part}num_hidden_layers": fields[f"{part}depth"],
        f"{part}num_attention_heads": fields[f"{part}heads"],
        f"{part}intermediate_size": int(width * fields[f"{part}mlp_ratio"]),
    }


def _write_folder(path: Path, arrays: Arrays, settings: dict[str, Any]) -> None:
    path.mkdir()
    save(path / "model.safetensors", arrays, {"format": "pt"})
    _write_json(path / "config.json", settings)


def _write_preprocessor(path: Path, info: CheckpointInfo) -> None:
    if info.mean and info.std and info.size:
        preprocessing = {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": dict(zip(("height", "width"), info.size, strict=True)),
            "resample": 3,  # bicubic
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(info.mean),
            "image_std": list(info.std),
        }
        _write_json(path / "preprocessor_config.json", preprocessing)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")


def save(path: Path, arrays: Arrays, metadata: dict[str, str]) -> None:
    """Write a `.safetensors` file."""
    arrays = {name: np.ascontiguousarray(x) for name, x in arrays.items()}
    path.write_bytes(safetensors.numpy.save(arrays, metadata))  # with the usual permissions


_TIMM = USUAL | dict(cls_tokens=(0, 1), pooling=("cls", "mean", "norm_mean"))
_TIMM = {name: values for name, values in _TIMM.items() if name != "register_tokens"}
_ENCODER = USUAL | dict(pooling=("cls",))
FORMATS = {
    "reference": Format("the reference", "reference", write_reference, is_folder=False),
    "huggingface": Format(
        "Hugging Face's ViTMAE",
        "huggingface",
        write_huggingface,
        limits=_ENCODER | dict(classes=(0,)),
        square=True,
    ),
    "vit": Format(
        "Hugging Face's ViT",
        "huggingface",
        write_vit,
        limits=_ENCODER,
        kinds=("Classifier",),
        square=True,
    ),
    "timm": Format("timm", "reference", write_timm, limits=_TIMM, kinds=("Classifier",)),
}
