"""Write a model to a file of this project or of other code: see `export`."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from flax import traverse_util

from mae_jax.models import build
from mae_jax.weights import exported_file, families, foreign_formats, load, tensor_files
from mae_jax.weights.checkpoint_info import CheckpointInfo

SUFFIXES = {".pth": "reference", ".safetensors": "mae_jax", "": "huggingface"}
FORMATS = ("mae_jax", *foreign_formats.FORMATS)
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
      target_format: one of `FORMATS`; by default that of the suffix of `target`.
      source, size, options: as in `load.load`.

    Returns:
      Lines that say what was read and written, with the SHA-256 of the parameters' file.

    Raises:
      ValueError: the model cannot be read or written; the message says why in one sentence.
    """
    target = Path(target)
    target_format = target_format or SUFFIXES.get("" if target.is_dir() else target.suffix, "")
    if not target_format:
        raise ValueError(
            f"{target} is neither NAME.pth, NAME.safetensors nor a folder: say which --format"
        )
    if not overwrite and (target.is_file() or (target.is_dir() and any(target.iterdir()))):
        raise ValueError(f"{target} exists already: give another --to, or --overwrite")
    foreign = foreign_formats.FORMATS.get(target_format)
    if target.exists() and target.is_dir() != bool(foreign and foreign.is_folder):
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
    if foreign:
        arrays = foreign_formats.foreign_arrays(info, arrays, foreign)
    write = foreign.write if foreign else write_mae_jax
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        stage = Path(folder) / target.name
        write(stage, info, arrays)
        if target.is_dir():  # other files stay, but no files of another model
            for name in HUB_FILES:
                (target / name).unlink(missing_ok=True)
            for file in stage.iterdir():
                file.replace(target / file.name)
        else:
            stage.replace(target)
    return _report(info, target, target_format, params)


def _report(info: CheckpointInfo, target: Path, target_format: str, params: dict) -> str:
    fields = info.fields
    file = target / "model.safetensors" if target.is_dir() else target
    size = f", size {info.size}" if info.size else ""
    note, eps = "", families.FAMILIES["reference"].eps
    if target_format in ("reference", "timm") and fields["eps"] != eps:
        note = f"; the LayerNorms of {target_format} add {eps}, this model's {fields['eps']}"
    if info.targets and target_format == "reference":
        note += f"; the file does not say that it predicts {', '.join(info.targets.names)}"
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
    foreign_formats.save(path, arrays, exported_file.describe(info))
