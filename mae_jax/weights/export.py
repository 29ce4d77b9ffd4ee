"""Write a model to a file of this project, of the reference, or of Hugging Face: see `export`."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from etils import epath
from flax import traverse_util

from mae_jax.models import build
from mae_jax.weights import (
    checkpoint_info,
    exported_file,
    families,
    load,
    parameter_names,
    tensor_files,
)
from mae_jax.weights.checkpoint_info import CheckpointInfo

FORMATS = {".pth": "reference", ".safetensors": "mae_jax", "": "huggingface"}
# Fields of models that the other formats do not have.
OURS_ALONE = ("channel_groups", "vocab_size", "target_stride", "separable_positions")
HUB_FILES = ("config.json", "model.safetensors", "preprocessor_config.json")


def export(
    source: str,
    target: str | Path,
    *,
    target_format: str = "",
    overwrite: bool = False,
    size: Sequence[int] | None = None,
    **options: Any,
) -> str:
    """Write the model at `source` to `target`, whole or not at all.

    Args:
      target_format: "reference", "huggingface" or "mae_jax"; by default the format is that of the
        suffix of `target`.
      source, size, options: as in `load.load`; the options are `without`, `key`, `prefix`
        and fields of the model.

    Returns:
      Lines that say what was read and written, with the SHA-256 of the parameters' file.

    Raises:
      ValueError: the model cannot be read or written; the message says why in one sentence.
    """
    target = Path(target)
    target_format = target_format or FORMATS.get("" if target.is_dir() else target.suffix, "")
    if not target_format:
        raise ValueError(
            f"{target} is neither NAME.pth, NAME.safetensors nor a folder: say which --format"
        )
    if not overwrite and (target.is_file() or (target.is_dir() and any(target.iterdir()))):
        raise ValueError(f"{target} exists already: give another --to, or --overwrite")
    if target.exists() and target.is_dir() != (target_format == "huggingface"):
        what = "a folder" if target.is_dir() else "a file"
        raise ValueError(
            f"{target} is {what}, which is not what {target_format} needs: give another --to"
        )
    info = load.find(source, size=size, **options)
    params = load.parameters(info._replace(without=""), size=size)  # whole parts or none
    fields = build.completed(info.kind, info.fields)
    info = info._replace(size=tuple(size or info.size or ()) or None, fields=fields)
    flat = traverse_util.flatten_dict(params, sep="/")
    arrays = {name: np.asarray(x) for name, x in flat.items()}
    if target_format != "mae_jax":
        arrays = _foreign_arrays(info, arrays, target_format)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        stage = Path(folder) / target.name
        WRITERS[target_format](stage, info, arrays)
        if target.is_dir():  # other files stay, but no files of another model
            for name in HUB_FILES:
                (target / name).unlink(missing_ok=True)
            for file in stage.iterdir():
                file.replace(target / file.name)
        else:
            stage.replace(target)
    return _report(info, target, target_format, params)


def _foreign_arrays(info: CheckpointInfo, arrays: dict, target_format: str) -> dict:
    """Return parameters under foreign names, with the tables of positions even if they are fixed.

    Raises:
      ValueError: the format has no such model, or the size of the tables is unknown.
    """
    if unsupported := [name for name in OURS_ALONE if info.fields.get(name)]:
        raise ValueError(
            f"{info.path} is a model with {', '.join(unsupported)}, which {target_format} does not "
            "have: export it to .safetensors"
        )
    if target_format == "huggingface":
        _check_huggingface(info)
    if not info.size:
        raise ValueError(
            f"{info.path} does not say of which size its inputs are, and the table of positions "
            "to write depends on it: give --size=H,W"
        )
    arrays = checkpoint_info.fixed_positions(info, info.size) | arrays
    return parameter_names.to_format(arrays, families.FAMILIES[target_format], info.fields["patch"])


def _check_huggingface(info: CheckpointInfo) -> None:
    """Raise ValueError if Hugging Face's ViTMAE cannot express the model."""
    patch, size, fields = info.fields["patch"], info.size, info.fields
    if info.kind == "Classifier" and (fields["classes"] or fields["pooling"] != "cls"):
        raise ValueError(
            "Hugging Face's ViTMAE has no classifier: write a .pth or a .safetensors file, or drop "
            "the head with --without='(norm|head)/.*' if it pools the cls token"
        )
    if len(patch) != 2 or len(set(patch)) > 1 or (size and len(set(size)) > 1):
        raise ValueError(
            f"Hugging Face's ViTMAE knows square patches and inputs alone, not patches of {patch} "
            f"and inputs of {size}: give --size=H,W with both the same"
        )


def _report(info: CheckpointInfo, target: Path, target_format: str, params: dict) -> str:
    fields = info.fields
    file = target / "model.safetensors" if target.is_dir() else target
    size = f", size {info.size}" if info.size else ""
    note, eps = "", families.FAMILIES["reference"].eps
    if target_format == "reference" and fields["eps"] != eps:
        note = f"; the reference's LayerNorms add {eps}, this model's {fields['eps']}"
    arrays: Any = traverse_util.flatten_dict(params)
    count = sum(x.size for x in arrays.values())
    return (
        f"read {info.path}: {info.kind}, patch {fields['patch']}, width {fields['width']}, "
        f"depth {fields['depth']}{size}\n"
        f"wrote {target} ({target_format}): {count / 1e6:.1f} M parameters in {len(arrays)} "
        f"arrays{note}\n"
        f"SHA-256 {tensor_files.sha256_of(epath.Path(file))} of {file.name}"
    )


def write_mae_jax(path: Path, info: CheckpointInfo, arrays: dict[str, np.ndarray]) -> None:
    """Write our names, and the description of the model as JSON in the metadata."""
    _save(path, arrays, exported_file.describe(info))


def write_reference(path: Path, info: CheckpointInfo, arrays: dict[str, np.ndarray]) -> None:
    """Write `{"model": state_dict}`, as the reference's own scripts read it."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            "a .pth file can be read without PyTorch, but is written by it: pip install torch, or "
            "write a .safetensors file"
        ) from error
    with path.open("wb") as file:  # given a path, PyTorch raises errors other than OSError
        torch.save({"model": {name: torch.from_numpy(x) for name, x in arrays.items()}}, file)


def write_huggingface(path: Path, info: CheckpointInfo, arrays: dict[str, np.ndarray]) -> None:
    """Write `model.safetensors`, `config.json` and, if known, `preprocessor_config.json`."""
    if info.kind == "Classifier":  # the files of a ViTMAEModel
        arrays = {name.removeprefix("vit."): x for name, x in arrays.items()}
    path.mkdir()
    _save(path / "model.safetensors", arrays, {"format": "pt"})
    write_json = lambda name, text: (path / name).write_text(json.dumps(text, indent=2) + "\n")
    write_json("config.json", _huggingface_config(info))
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
        write_json("preprocessor_config.json", preprocessing)


def _huggingface_config(info: CheckpointInfo) -> dict[str, Any]:
    fields, size = info.fields, tuple(info.size or ())
    mask = (info.config or {}).get("mask") or {}
    is_autoencoder = info.kind == "MaskedAutoencoder"
    settings: dict[str, Any] = {
        "architectures": ["ViTMAEForPreTraining" if is_autoencoder else "ViTMAEModel"],
        "model_type": "vit_mae",
        "image_size": size[0],
        "patch_size": fields["patch"][0],
        "num_channels": info.channels,
        "hidden_act": "gelu",
        "qkv_bias": True,
        "layer_norm_eps": fields["eps"],
        "attention_probs_dropout_prob": 0.0,
        "hidden_dropout_prob": 0.0,
        "mask_ratio": mask.get("ratio", 0.75),
    }
    for part in ("", "decoder_") if is_autoencoder else ("",):
        width = fields[f"{part}width"]
        settings |= {
            f"{part}hidden_size": width,
            f"{part}num_hidden_layers": fields[f"{part}depth"],
            f"{part}num_attention_heads": fields[f"{part}heads"],
            f"{part}intermediate_size": int(width * fields["mlp_ratio"]),
        }
    if is_autoencoder:
        settings["norm_pix_loss"] = fields["norm_pix"]
    return settings


def _save(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    arrays = {name: np.ascontiguousarray(x) for name, x in arrays.items()}
    path.write_bytes(safetensors.numpy.save(arrays, metadata))  # with the usual permissions


WRITERS = {
    "reference": write_reference,
    "huggingface": write_huggingface,
    "mae_jax": write_mae_jax,
}
