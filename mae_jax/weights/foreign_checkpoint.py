"""Files of He et al.'s reference and of Hugging Face's ViTMAE: what model they hold."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from mae_jax.models import build, patches, positions
from mae_jax.output import files
from mae_jax.weights import checkpoint_info, parameter_names
from mae_jax.weights.checkpoint_info import Abstract, CheckpointInfo
from mae_jax.weights.tensor_files import Tensor

HEADS = {variant["width"]: variant["heads"] for variant in build.VARIANTS.values()}
DECODER_HEADS = {512: 16}
REFERENCE_EPS = 1e-6  # of its LayerNorms; its files do not say so
WIDTHS = {"encoder": "width", "decoder": "decoder_width"}


def find(
    path: Path, tensors: Mapping[str, Tensor], without: str, size: Sequence[int] | None
) -> CheckpointInfo:
    """The model whose parameters `tensors` are, under names of the reference or of Hugging Face.

    Args:
      size: of the inputs, where the caller knows it.

    Raises:
      ValueError: parameters are missing, or contradict the config.json beside the file.
    """
    source = parameter_names.checkpoint_format(tensors)
    named = checkpoint_info.matcher(without)
    tensors = _fold_linear_probe(tensors)
    origin: dict[str, str] = {}  # our name -> the name there
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in tensors.items():
        stand_in = np.broadcast_to(np.float32(0), tensor.shape)  # nothing is read for a shape
        for ours, x in parameter_names.from_format({name: stand_in}, source).items():
            if not named(ours):
                origin[ours], shapes[ours] = name, x.shape

    def values(name: str) -> np.ndarray:
        there = origin[name]
        return parameter_names.from_format({there: tensors[there].read()}, source)[name]

    def read(wanted: Abstract) -> dict[str, jax.Array]:
        return {name: checkpoint_info.place(values(name), leaf) for name, leaf in wanted.items()}

    try:
        patch = parameter_names.patch_size({n: x.shape for n, x in tensors.items()}, source)
        kind, fields = _infer_model(shapes, patch)
    except KeyError as error:
        raise ValueError(f"{error.args[0]} is missing in {path}") from None
    of_inputs = _read_settings(path, kind, fields) if source == "huggingface" else {}
    tables = {part: f"{part}/positions" for part, width in WIDTHS.items() if fields.get(width)}
    if missing := [name for name in tables.values() if name not in shapes and not named(name)]:
        raise ValueError(f"{', '.join(missing)} missing in {path}: give without= to do without")
    known_size = of_inputs.get("size")
    if stored := {name: values(name) for name in tables.values() if name in shapes}:
        grid, fixed = _recognise_positions(path, [*stored.values()], patch, known_size, size)
        known_size = [side * p for side, p in zip(grid, patch, strict=True)]
        fields["learned_positions"] = not fixed
        shapes = {name: x for name, x in shapes.items() if not (fixed and name in stored)}
    kind, fields = checkpoint_info.kind_of_parts(kind, fields, shapes)
    return CheckpointInfo(
        str(path),
        kind,
        fields,
        shapes,
        read,
        channels=shapes["encoder/embedding/kernel"][0] // math.prod(patch),
        size=tuple(known_size) if known_size else None,
        mean=of_inputs.get("mean"),
        std=of_inputs.get("std"),
    )


def _fold_linear_probe(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A linear probe of the reference has a BatchNorm as `head.0`: fold it into the head."""
    parts = ("head.1.weight", "head.1.bias", "head.0.running_mean", "head.0.running_var")
    if any(name not in tensors for name in parts):
        return dict(tensors)
    weight, bias, mean, var = (np.float32(tensors[name].read()) for name in parts)
    kernel, bias = checkpoint_info.fold_batch_norm(weight.T, bias, mean, var)
    others = {name: x for name, x in tensors.items() if not name.startswith("head.")}
    head = {"head.weight": kernel.T, "head.bias": bias}
    return others | {name: Tensor(x.shape, x) for name, x in head.items()}


def _infer_model(
    shapes: Mapping[str, tuple[int, ...]], patch: tuple[int, ...]
) -> tuple[str, dict[str, Any]]:
    """The kind and the fields of a model; heads are known for the published widths alone.

    Raises:
      KeyError: with the name of a parameter that is missing.
    """

    def depth(part: str) -> int:
        numbers = {name.split("/")[1] for name in shapes if name.startswith(f"{part}/block_")}
        for i in range(len(numbers)):
            if f"block_{i}" not in numbers:
                raise KeyError(f"{part}/block_{i}")
        return len(numbers)

    width = shapes["encoder/embedding/kernel"][-1]
    hidden = shapes["encoder/block_0/mlp/fc1/kernel"][-1]
    ratio = hidden / width
    fields = dict(
        patch=patch,
        width=width,
        depth=depth("encoder"),
        heads=HEADS.get(width),
        mlp_ratio=ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf),
        eps=REFERENCE_EPS,
    )
    if any(name.startswith("decoder/") for name in shapes):
        width = shapes["decoder/embedding/kernel"][-1]
        return "MaskedAutoencoder", fields | dict(
            decoder_width=width,
            decoder_depth=depth("decoder"),
            decoder_heads=DECODER_HEADS.get(width),
        )
    return "Classifier", fields | dict(
        classes=shapes["head/kernel"][-1] if "head/kernel" in shapes else 0,
        pooling="cls" if "encoder/norm/scale" in shapes else "mean",
    )


def _read_settings(path: Path, kind: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Put what Hugging Face's config.json says into `fields`, and return what it says of inputs."""
    folder = path if path.is_dir() else path.parent
    read_json = lambda file: files.read_json(epath.Path(file)) if file.exists() else {}
    settings = read_json(folder / "config.json")
    if settings.get("model_type") != "vit_mae":  # of another model beside a single file
        settings = {}
    if settings.get("hidden_act", "gelu") != "gelu":
        raise ValueError(f"{path} is a model with {settings['hidden_act']}, and here is only gelu")

    def setting(name: str, default: Any, kinds: tuple[type, ...] = (int,)) -> Any:
        value = settings.get(name, default)
        if value is not None and type(value) not in kinds:
            raise ValueError(f"{folder / 'config.json'}: {name} = {value!r} cannot be")
        return value

    fields["eps"] = setting("layer_norm_eps", 1e-12, (float, int))  # its own default
    fields["heads"] = setting("num_attention_heads", fields["heads"])
    depths = {"depth": "num_hidden_layers"}
    if kind == "MaskedAutoencoder":
        fields["norm_pix"] = setting("norm_pix_loss", False, (bool,))
        fields["decoder_heads"] = setting("decoder_num_attention_heads", fields["decoder_heads"])
        depths["decoder_depth"] = "decoder_num_hidden_layers"
    for ours, theirs in depths.items():
        if fields[ours] != setting(theirs, fields[ours]):
            raise ValueError(
                f"{path} has {fields[ours]} blocks where its config.json says {theirs} = "
                f"{settings[theirs]}: some are missing"
            )
    size, axes = setting("image_size", None, (int, list)), len(fields["patch"])
    size = [size] * axes if isinstance(size, int) else size
    images = read_json(folder / "preprocessor_config.json") if settings else {}
    return {
        "size": size if size and len(size) == axes else None,
        "mean": images.get("image_mean"),
        "std": images.get("image_std"),
    }


def _recognise_positions(
    path: Path,
    tables: Sequence[np.ndarray],
    patch: tuple[int, ...],
    *sizes: Sequence[int] | None,
) -> tuple[tuple[int, ...], bool]:
    """The grid that stored tables of positions belong to, and whether all of them are sin-cos.

    Args:
      sizes: of the inputs, as the file and the caller know them. A square grid is tried after
        the first.
    """
    n = len(tables[0]) - 1
    square = (round(n ** (1 / len(patch))),) * len(patch)
    grids = [patches.grid_of(size, patch) for size in sizes if size]
    grids.insert(1 if sizes[0] else 0, square)
    grids = [grid for grid in grids if math.prod(grid) == n]
    if not grids:
        raise ValueError(
            f"{path} has {n} positions, which are no square grid: give size=, that of its inputs"
        )
    for grid in grids:
        if all(_is_sincos(table, grid) for table in tables):
            return grid, True
    return grids[0], False


def _is_sincos(table: np.ndarray, grid: Sequence[int]) -> bool:
    """Whether a table is the fixed one, to its own precision."""
    fixed = positions.initial_tables(grid, table.shape[1])["positions"]
    tolerance = 1e-5 if table.dtype.itemsize > 2 else 1e-2  # some compute it in less than float64
    return table.shape == fixed.shape and bool(
        np.abs(table.astype(np.float32) - fixed).max() < tolerance
    )
