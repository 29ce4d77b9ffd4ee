"""Files of other code, the families of `parameter_names`: what model they hold."""

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
    """The model whose parameters `tensors` are, under the names of the family `source`.

    Args:
      left_out: whether a parameter is to be ignored, by our name.
      size: of the inputs, where the caller knows it.

    Raises:
      ValueError: parameters are missing, or contradict the config.json beside the file.
    """
    tensors = _fold_linear_probe(tensors)
    origin: dict[str, str] = {}  # our name -> the name in the file
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in tensors.items():
        stand_in = np.broadcast_to(np.float32(0), tensor.shape)  # nothing is read for a shape
        for ours, x in parameter_names.from_format({name: stand_in}, source).items():
            if not left_out(ours):
                origin[ours], shapes[ours] = name, x.shape

    def values(name: str) -> np.ndarray:
        theirs = origin[name]
        return parameter_names.from_format({theirs: tensors[theirs].read()}, source)[name]

    family = parameter_names.FAMILIES[source]
    embedding = origin.get("encoder/embedding/kernel")
    if embedding is None or not (patch := tensors[embedding].shape[2:]):
        raise ValueError(f"{family.names['encoder/embedding']}.weight is missing in {path}")
    try:
        kind, fields = _infer_model(shapes, patch, family.eps)
    except KeyError as error:
        raise ValueError(f"{error.args[0]} is missing in {path}") from None
    of_inputs = _read_settings(path, family.model_type, kind, fields) if family.model_type else {}
    parts = ["encoder", "decoder"] if kind == "MaskedAutoencoder" else ["encoder"]
    tables = [name for part in parts if not left_out(name := f"{part}/positions")]
    stored = {name: values(name) for name in tables if name in shapes}
    fields["learned_positions"] = len(stored) < len(tables)  # whether the missing one was fixed?
    if stored:
        sizes = of_inputs.get("size"), size
        grid, fixed = _recognise_positions(path, list(stored.values()), patch, *sizes)
        of_inputs["size"] = [side * p for side, p in zip(grid, patch, strict=True)]
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
        tuple(of_inputs.get("size") or ()) or None,
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
    shapes: Mapping[str, tuple[int, ...]], patch: tuple[int, ...], eps: float
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
    """Put what Hugging Face's config.json says into `fields`, and return what it says of inputs."""
    folder = path if path.is_dir() else path.parent
    read_json = lambda file: files.read_json(epath.Path(file)) if file.exists() else {}
    settings = read_json(folder / "config.json")
    if settings.get("model_type") != model_type:  # of another model beside a single file
        settings = {}
    if settings.get("hidden_act", "gelu") != "gelu":
        raise ValueError(
            f"{path} has the activation {settings['hidden_act']}: only gelu can be read"
        )

    def setting(name: str, default: Any, kinds: tuple[type, ...] = (int,)) -> Any:
        value = settings.get(name, default)
        if value is not None and type(value) not in kinds:
            raise ValueError(f"{folder / 'config.json'}: {name} = {value!r} cannot be")
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
