"""Tables of positions in files of other code: of which grid, and learned or fixed."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from mae_jax.models import patches, positions
from mae_jax.weights import tensor_files
from mae_jax.weights.parameter_names import Fields, Known, Tensors
from mae_jax.weights.tensor_files import Tensor


def place(
    known: Known,
    params: Tensors,
    wanted: Sequence[str],
    fields: Fields,
    *sizes: Sequence[int] | None,
) -> tuple[Tensors, Fields, tuple[int, ...] | None]:
    """Return parameters and fields with learned or fixed positions, and the grid of the tables.

    Stored tables are dropped if all of them equal the fixed ones. Tables of 16 bits are kept, as
    their rounding cannot be told from training.

    Args:
      wanted: the names of the tables that the model has.
      sizes: the sizes of inputs that the file and the caller know. A square grid is tried after
        the first size.
    """
    if fields.get("separable_positions"):
        return params, fields, _separable_grid(params, known.patch, sizes)
    stored = [name for name in wanted if name in params]
    # A missing table may be a learned one.
    fields = {"learned_positions": len(stored) < len(wanted)} | fields
    if not stored:
        return params, fields, None
    params, tables, grid = dict(params), {}, None
    for name in stored:
        width = fields["decoder_width" if name.startswith("decoder") else "width"]
        if (channels := params[name].shape[-1]) != width:
            raise ValueError(
                f"{known.path} has positions of {channels} channels for tokens of {width}: the "
                "others may be time stamps, as in the temporal models of SatMAE, which this "
                "project does not have"
            )
        table = params[name].read()
        grid, rows = _grid_of(known, len(table), fields, *sizes)
        sizes = (tuple(side * p for side, p in zip(grid, known.patch, strict=True)),)
        tables[name] = _with_cls_rows(params, table, rows, fields)
    formula = None if fields["learned_positions"] else _formula(tables, fields, grid or ())
    if formula:
        fields["position_formula"] = formula
        return {n: x for n, x in params.items() if n not in tables}, fields, grid
    fields["learned_positions"] = True
    return params | {n: Tensor(x.shape, x) for n, x in tables.items()}, fields, grid


def _grid_of(
    known: Known, length: int, fields: Fields, *sizes: Sequence[int] | None
) -> tuple[tuple[int, ...], int]:
    """Return the grid of a table of `length` rows, and how many of these are not of patches.

    Class tokens and registers may have no rows. Without a size, a table without rows of the class
    tokens is not looked for, unless there are registers: 25 rows can be 1 and 4 x 6.
    """
    axes, groups = len(known.patch), len(fields.get("channel_groups") or [0])
    cls, registers = fields["cls_tokens"], fields["register_tokens"]
    for others in dict.fromkeys((cls + registers, cls, 0)):
        n = (length - others) // groups
        grids = [patches.grid_of(size, known.patch) for size in sizes if size]
        if registers or others == cls:
            square = (round(max(n, 0) ** (1 / axes)),) * axes
            grids.insert(1 if sizes[0] else 0, square)
        for grid in grids:
            if math.prod(grid) * groups == length - others:
                return grid, others
    raise ValueError(
        f"{known.path} has {length - cls - registers} positions, which are no square grid: give "
        f"size=, that of its inputs (it has {cls} class token(s) and {registers} register(s))"
    )


def _with_cls_rows(params: Tensors, table: np.ndarray, rows: int, fields: Fields) -> np.ndarray:
    """Return a table whose first rows are those of the class tokens.

    Rows of register tokens are added to these tokens, and class tokens without rows get zeros.
    """
    count = fields["cls_tokens"]
    if rows > count:
        added = table[count:rows]
        params["encoder/registers"] = tensor_files.compute(
            lambda x: np.add(x, added, dtype=np.float32), params["encoder/registers"]
        )
        return np.concatenate([table[:count], table[rows:]])
    zeros = np.zeros((count - rows, table.shape[1]), table.dtype)
    return np.concatenate([zeros, table])


def _formula(tables: Mapping[str, np.ndarray], fields: Fields, grid: tuple[int, ...]) -> str | None:
    """Return the formula of `positions.FORMULAS` that all tables equal, if there is one."""
    for name, formula in positions.FORMULAS.items():
        fixed = lambda x, formula=formula: positions.Fixed(
            x.shape[1], fields["cls_tokens"], formula
        )
        # Not all code computes in float64.
        if all(
            x.dtype.itemsize > 2 and np.abs(x - fixed(x).start(grid)["positions"]).max() < 1e-5
            for x in tables.values()
        ):
            return name
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
