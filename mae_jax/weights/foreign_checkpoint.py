"""The models in files of other code, the families of `parameter_names`."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from mae_jax.models import build, patches, positions
from mae_jax.output import files
from mae_jax.weights import checkpoint_info, parameter_names
from mae_jax.weights.checkpoint_info import CheckpointInfo
from mae_jax.weights.tensor_files import Tensor

HEADS = {variant["width"]: variant["heads"] for variant in build.VARIANTS.values()}
DECODER_HEADS = {512: 16}


def find(
    path: Path,
    tensors: Mapping[str, Tensor],
    source: str,
    left_out: Callable[[str], Any],
    size: Sequence[int] | None,
) -> CheckpointInfo:
    """Return the model with the parameters `tensors`, which have names of the family `source`.

    Args:
      left_out: says whether a parameter with our name is to be ignored.
      size: the size of the inputs, if the caller knows it.

    Raises:
      ValueError: parameters are missing, or contradict the config.json beside the file.
    """
    tensors = _fold_linear_probe(tensors)
    origin: dict[str, str] = {}  # our name -> the name in the file
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in tensors.items():
        stand_in = np.broadcast_to(np.float32(0), tensor.shape)  # a shape needs no values
        for ours, x in parameter_names.from_format({name: stand_in}, source).items():
            if not left_out(ours):
                origin[ours], shapes[ours] = name, x.shape

    def values(name: str) -> np.ndarray:
        theirs = origin[name]
        return parameter_names.from_format({theirs: tensors[theirs].read()}, source)[name]

    family = parameter_names.FAMILIES[source]
    embedding = origin.get("encoder/embedding/kernel")
    if not (patch := tensors[embedding].shape[2:] if embedding else ()):
        raise ValueError(f"{family.names['encoder/embedding']}.weight is missing in {path}")
    try:
        kind, fields = _infer_model(shapes, patch, family.eps)
    except KeyError as error:
        raise ValueError(f"{error.args[0]} is missing in {path}") from None
    inputs = _read_settings(path, family.model_type, kind, fields) if family.model_type else {}
    tables = ["encoder/positions", "decoder/positions"][: 2 if kind == "MaskedAutoencoder" else 1]
    tables = [name for name in tables if not left_out(name)]
    stored = {name: values(name) for name in tables if name in shapes}
    fields["learned_positions"] = len(stored) < len(tables)  # a missing table may be a learned one
    if stored:
        sizes = inputs.get("size"), size
        grid, fixed = _recognise_positions(path, [*stored.values()], patch, *sizes)
        inputs["size"] = [side * p for side, p in zip(grid, patch, strict=True)]
        fields["learned_positions"] |= not fixed
    if not fields["learned_positions"]:
        shapes = {name: x for name, x in shapes.items() if name not in stored}
    return CheckpointInfo(
        str(path),
        kind,
        fields,
        shapes,
        lambda wanted: {n: checkpoint_info.place(values(n), leaf) for n, leaf in wanted.items()},
        shapes["encoder/embedding/kernel"][0] // math.prod(patch),
        tuple(inputs.get("size") or ()) or None,
        mean=inputs.get("mean"),
        std=inputs.get("std"),
    )


def _fold_linear_probe(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fold the BatchNorm `head.0` of a linear probe of the reference into its head."""
    parts = ("head.1.weight", "head.1.bias", "head.0.running_mean", "head.0.running_var")
    if any(name not in tensors for name in parts):
        return dict(tensors)
    weight, bias, mean, var = (np.float32(tensors[name].read()) for name in parts)
    kernel, bias = checkpoint_info.fold_batch_norm(weight.T, bias, mean, var)
    others = {name: x for name, x in tensors.items() if not name.startswith("head.")}
    head = {"head.weight": kernel.T, "head.bias": bias}
    return others | {name: Tensor(x.shape, x) for name, x in head.items()}


def _infer_model(
    shapes: Mapping[str, tuple[int, ...]], patch: tuple[int, ...], eps: float
) -> tuple[str, dict[str, Any]]:
    """Return the kind and the fields of a model; heads are known only for the published widths.

    Raises:
      KeyError: a parameter is missing, which the error names.
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
    if int(width * ratio) != hidden:
        ratio = math.nextafter(ratio, math.inf)
    fields: dict[str, Any] = dict(patch=patch, width=width, depth=depth("encoder"))
    fields |= dict(heads=HEADS.get(width), mlp_ratio=ratio, eps=eps)
    if any(name.startswith("decoder/") for name in shapes):
        width = shapes["decoder/embedding/kernel"][-1]
        decoder = dict(width=width, depth=depth("decoder"), heads=DECODER_HEADS.get(width))
        return "MaskedAutoencoder", fields | {f"decoder_{n}": x for n, x in decoder.items()}
    pooling = "cls" if "encoder/norm/scale" in shapes else "mean"
    return "Classifier", fields | dict(classes=shapes.get("head/kernel", (0,))[-1], pooling=pooling)


def _read_settings(path: Path, model_type: str, kind: str, fields: dict[str, Any]) -> dict:
    """Update `fields` by Hugging Face's config.json, and return size, mean and std of inputs."""
    folder = path if path.is_dir() else path.parent
    read_json = lambda file: files.read_json(epath.Path(file)) if file.exists() else {}
    settings = read_json(folder / "config.json")
    if settings.get("model_type") != model_type:  # a single file may lie beside another model's
        settings = {}
    if settings.get("hidden_act", "gelu") != "gelu":
        raise ValueError(
            f"{path} has the activation {settings['hidden_act']}: only gelu can be read"
        )

    def setting(name: str, default: Any, kinds: tuple[type, ...] = (int,)) -> Any:
        value = settings.get(name, default)
        if value is not None and type(value) not in kinds:
            raise ValueError(f"{folder / 'config.json'}: {name} = {value!r} is not possible")
        return value

    fields["eps"] = setting("layer_norm_eps", fields["eps"], (float, int))
    if kind == "MaskedAutoencoder":
        fields["norm_pix"] = setting("norm_pix_loss", False, (bool,))
    for part in ["", "decoder_"] if kind == "MaskedAutoencoder" else [""]:
        heads, depth = f"{part}num_attention_heads", f"{part}num_hidden_layers"
        fields[f"{part}heads"] = setting(heads, fields[f"{part}heads"])
        if (blocks := fields[f"{part}depth"]) != setting(depth, blocks):
            raise ValueError(
                f"{path} has {blocks} blocks where its config.json says {depth} = "
                f"{settings[depth]}: some are missing"
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
    path: Path, tables: Sequence[np.ndarray], patch: tuple[int, ...], *sizes: Sequence[int] | None
) -> tuple[tuple[int, ...], bool]:
    """Return the grid of stored tables of positions, and whether all of the tables are sin-cos.

    Args:
      sizes: the sizes of inputs that the file and the caller know. A square grid is tried after
        the first size.
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
    """Return whether a table equals the fixed one, to the precision of its dtype."""
    fixed = positions.Fixed(table.shape[1]).start(grid)["positions"]
    tolerance = 1e-5 if table.dtype.itemsize > 2 else 1e-2  # not all code computes in float64
    return table.shape == fixed.shape and bool(
        np.abs(table.astype(np.float32) - fixed).max() < tolerance
    )
