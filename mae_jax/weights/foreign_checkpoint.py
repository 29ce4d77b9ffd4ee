"""The models in files of other code, which are of one of the `families`."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mae_jax.models import build, patches, positions
from mae_jax.weights import checkpoint_info, folding, model_settings, tensor_files
from mae_jax.weights.checkpoint_info import CheckpointInfo
from mae_jax.weights.parameter_names import Family, Fields, Known, Tensors
from mae_jax.weights.tensor_files import Tensor

HEADS = {variant["width"]: variant["heads"] for variant in build.VARIANTS.values()} | {192: 3}
_log = logging.getLogger(__name__)


def find(
    path: Path,
    file: tensor_files.TensorFile,
    family: Family,
    left_out: Callable[[str], Any],
    size: Sequence[int] | None,
    given: Mapping[str, Any],
) -> CheckpointInfo:
    """Return the model in a file with names of `family`.

    Args:
      left_out: says whether a parameter with our name is to be ignored.
      size: the size of the inputs, if the caller knows it.
      given: fields of the model that the caller knows.

    Raises:
      ValueError: parameters are missing or contradict what lies beside the file, or the model is
        one that ours cannot be.
    """
    tensors = folding.fold_linear_probe(file.tensors)
    shapes = [x.shape for n, x in tensors.items() if n.endswith(".weight") and len(x.shape) > 2]
    if not shapes:
        raise ValueError(f"{family.names['encoder/embedding']}.weight is missing in {path}")
    patch, channels = shapes[0][2:], sum(shape[1] for shape in shapes)
    settings = model_settings.read(path, family, file.args, patch)
    known = Known(path, patch, channels, file.args, {**settings.fields, **given})
    params, adapted = family.adapt(family.ours(tensors), known)
    params = {name: x for name, x in folding.fold(params).items() if not left_out(name)}
    try:
        kind, inferred = _infer_model(params, patch, family)
    except KeyError as error:
        raise ValueError(f"{error.args[0]} is missing in {path}") from None
    _check(path, kind, inferred, settings, adapted, given)
    fields = inferred | {n: x for n, x in settings.fields.items() if x is not None} | adapted
    fields = {name: x for name, x in fields.items() if name in build.FIELDS[kind]}
    params, fields, grid = _place_positions(known, params, kind, fields, settings.size, size)
    inputs = settings.size
    if grid:
        inputs = tuple(side * p for side, p in zip(grid, patch, strict=True))
    ratio = settings.mask_ratio if kind == "MaskedAutoencoder" else None
    place = checkpoint_info.place
    return CheckpointInfo(
        str(path),
        kind,
        fields,
        {name: tensor.shape for name, tensor in params.items()},
        lambda wanted: {n: place(params[n].read(), leaf) for n, leaf in wanted.items()},
        channels,
        inputs,
        settings.classes if len(settings.classes or ()) == fields.get("classes") else None,
        settings.mean,
        settings.std,
        None if ratio is None else {"mask": {"ratio": ratio}},
    )


def _infer_model(params: Tensors, patch: tuple[int, ...], family: Family) -> tuple[str, Fields]:
    """Return the kind and the fields of a model; heads are known only for the published widths.

    Raises:
      KeyError: a parameter is missing, which the error names.
    """

    def trunk(part: str, width: int) -> Fields:
        numbers = {name.split("/")[1] for name in params if name.startswith(f"{part}/block_")}
        for i in range(len(numbers)):
            if f"block_{i}" not in numbers:
                raise KeyError(f"{part}/block_{i}")
        fields: Fields = dict(width=width, depth=len(numbers))
        if numbers or part == "encoder":
            hidden = params[f"{part}/block_0/mlp/fc1/kernel"].shape[-1]
            ratio = hidden / width
            exact = ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)
            fields["mlp_ratio"] = exact
        return fields

    count = lambda name: params[name].shape[0] if name in params else 0
    width = params["encoder/embedding/kernel"].shape[-1]
    fields: Fields = dict(patch=patch, eps=family.eps) | trunk("encoder", width)
    fields |= dict(heads=HEADS.get(width), cls_tokens=count("encoder/cls"))
    fields["register_tokens"] = count("encoder/registers")
    if any(name.startswith("decoder/") for name in params):
        width = params["decoder/mask_token"].shape[-1]
        decoder = trunk("decoder", width) | dict(heads=family.decoder_heads.get(width))
        return "MaskedAutoencoder", fields | {f"decoder_{n}": x for n, x in decoder.items()}
    pooling = "mean"
    if "encoder/norm/scale" in params:
        pooling = "cls" if fields["cls_tokens"] else "norm_mean"
    classes = params["head/kernel"].shape[-1] if "head/kernel" in params else 0
    return "Classifier", fields | dict(classes=classes, pooling=pooling)


def _check(
    path: Path,
    kind: str,
    inferred: Fields,
    settings: model_settings.Settings,
    adapted: Fields,
    given: Mapping[str, Any],
) -> None:
    """Refuse blocks that are missing, and say what is assumed where nothing says it.

    The pooling of a classifier follows from its norms; where they are before the pooling, its mean
    and its class token have the same parameters.
    """
    for part, depth in settings.depths.items():
        blocks = inferred.get(f"{part}depth", depth)
        if blocks != depth:
            raise ValueError(
                f"{path} has {blocks} blocks where its config.json says {part}num_hidden_layers = "
                f"{depth}: some are missing"
            )
    pooling = settings.fields.pop("pooling", None)
    said = {**settings.fields, **adapted, **given}
    if kind == "MaskedAutoencoder" and "norm_pix" not in said:
        _log.warning(
            "%s does not say whether its decoder predicts normalised patches: norm_pix = True is "
            "assumed",
            path,
        )
    if kind == "Classifier" and inferred["classes"] and inferred["pooling"] == "cls":
        if pooling == "mean":
            settings.fields["pooling"] = "norm_mean"
        elif pooling is None and "pooling" not in given:
            _log.warning(
                "%s does not say how it pools its tokens: pooling = 'cls' is assumed; give "
                "'norm_mean' if it is the mean of the patch tokens after the norm",
                path,
            )


def _place_positions(
    known: Known,
    params: Tensors,
    kind: str,
    fields: Fields,
    *sizes: Sequence[int] | None,
) -> tuple[Tensors, Fields, tuple[int, ...] | None]:
    """Return parameters and fields with learned or fixed positions, and the grid of the tables.

    Stored tables are dropped if all of them equal the fixed ones. Tables of 16 bits are kept, as
    their rounding cannot be told from training.

    Args:
      sizes: the sizes of inputs that the file and the caller know. A square grid is tried after
        the first size.
    """
    parts = {"encoder": ""} | ({"decoder": "decoder_"} if kind == "MaskedAutoencoder" else {})
    names = [f"{part}/positions" for part in parts]
    stored = [name for name in names if name in params]
    if fields.get("separable_positions"):
        return params, fields, _separable_grid(params, known.patch, sizes)
    if not stored:
        # A missing table may be a learned one.
        return params, {"learned_positions": True} | fields, None
    params, fields = dict(params), dict(fields)
    fields["learned_positions"] = fields.get("learned_positions", False) or len(stored) < len(names)
    grid = None
    tables = {}
    for name in stored:
        part = parts[name.split("/")[0]]
        if (channels := params[name].shape[-1]) != (width := fields[f"{part}width"]):
            raise ValueError(
                f"{known.path} has positions of {channels} channels for tokens of {width}: the rest "
                "may be time stamps, as in the temporal models of SatMAE, which this project does "
                "not have"
            )
        table, groups = params[name].read(), len(fields.get("channel_groups") or [0])
        grid, rows = _grid_of(known, len(table), groups, fields, grid, *sizes)
        tables[name] = _with_cls_rows(params, table, rows, fields)
    fixed = None if fields["learned_positions"] else _formula(tables, fields, parts, grid)
    if fixed:
        fields["position_formula"] = fixed
        return {n: x for n, x in params.items() if n not in tables}, fields, grid
    fields["learned_positions"] = True
    return params | {n: Tensor(x.shape, x) for n, x in tables.items()}, fields, grid


def _grid_of(
    known: Known,
    length: int,
    groups: int,
    fields: Fields,
    found: tuple[int, ...] | None,
    *sizes: Sequence[int] | None,
) -> tuple[tuple[int, ...], int]:
    """Return the grid of a table of `length` rows, and how many of these are not of patches."""
    axes = len(known.patch)
    registers = fields["register_tokens"]
    for other in dict.fromkeys((fields["cls_tokens"] + registers, fields["cls_tokens"], 0)):
        n = (length - other) // groups
        grids = [patches.grid_of(size, known.patch) for size in sizes if size]
        grids.insert(1 if sizes and sizes[0] else 0, (round(max(n, 0) ** (1 / axes)),) * axes)
        grids = [found] if found else grids
        for grid in grids:
            if math.prod(grid) * groups == length - other:
                return grid, other
    raise ValueError(
        f"{known.path} has a table of {length} positions, with {fields['cls_tokens']} class "
        f"token(s) and {registers} register(s), which is no square grid: give size=, that of its "
        "inputs"
    )


def _with_cls_rows(params: Tensors, table: np.ndarray, rows: int, fields: Fields) -> np.ndarray:
    """Return a table whose first rows are those of the class tokens.

    Rows of register tokens are added to these tokens, and class tokens without rows get zeros.
    """
    count = fields["cls_tokens"]
    if rows > count:
        added = table[count:rows]
        params["encoder/registers"] = tensor_files.compute(
            lambda x: np.float32(x) + np.float32(added), params["encoder/registers"]
        )
        return np.concatenate([table[:count], table[rows:]])
    zeros = np.zeros((count - rows, table.shape[1]), table.dtype)
    return np.concatenate([zeros, table])


def _formula(
    tables: Mapping[str, np.ndarray],
    fields: Fields,
    parts: Mapping[str, str],
    grid: tuple[int, ...] | None,
) -> str | None:
    """Return the formula of `positions.FORMULAS` that all tables equal, if there is one."""
    for formula in positions.FORMULAS:
        f = fields | dict(position_formula=formula, learned_positions=False)
        equal = []
        for name, table in tables.items():
            part = parts[name.split("/")[0]]
            fixed = positions.Fixed(
                f[f"{part}width"], f["cls_tokens"], positions.FORMULAS[formula]
            ).start(grid or ())["positions"]
            # Not all code computes in float64.
            equal.append(table.dtype.itemsize > 2 and np.abs(table - fixed).max() < 1e-5)
        if all(equal):
            return formula
    return None


def _separable_grid(
    params: Tensors, patch: tuple[int, ...], sizes: Sequence[Sequence[int] | None]
) -> tuple[int, ...] | None:
    """Return the grid of tables of time and space."""
    time = params["encoder/positions_time"].shape[0]
    for size in filter(None, sizes):
        grid = patches.grid_of(size, patch)
        if len(grid) == len(patch) and grid[0] == time:
            return grid
    cls = params["encoder/cls"].shape[0] if "encoder/cls" in params else 0
    space = params["encoder/positions_space"].shape[0] - cls
    side = math.isqrt(space)
    return (time, side, side) if side * side == space and len(patch) == 3 else None
