"""Tables of positions in files of other code: of which grid, and learned or fixed."""

import logging
import math
from collections.abc import Sequence

import numpy as np

from mae_jax.models import patches, positions
from mae_jax.weights import tensor_files
from mae_jax.weights.parameter_names import Fields, Known, Tensors
from mae_jax.weights.tensor_files import Tensor

_log = logging.getLogger(__name__)
Grid = tuple[int, ...]


def place(
    known: Known,
    params: Tensors,
    wanted: Sequence[str],
    fields: Fields,
    stored_size: Sequence[int] | None,
    given_size: Sequence[int] | None,
) -> tuple[Tensors, Fields, Grid | None]:
    """Return parameters and fields with learned or fixed positions, and the grid of the tables.

    Stored tables are dropped if all of them equal the fixed ones. Tables of 16 bits are kept, as
    their rounding cannot be told from training.

    Args:
      wanted: the names of the tables that the model has.
      stored_size, given_size: the sizes of inputs that the file and the caller know.
    """
    sizes = [size for size in (stored_size, given_size) if size]
    if fields.get("separable_positions"):
        return params, fields, _separable_grid(params, known.patch, sizes)
    stored = {name: params[name] for name in wanted if name in params}
    # A missing table may be a learned one.
    fields = {"learned_positions": len(stored) < len(wanted)} | fields
    if not stored:
        return params, fields, None
    for name, table in stored.items():
        width = fields["decoder_width" if name.startswith("decoder") else "width"]
        if (channels := table.shape[-1]) != width:
            raise ValueError(
                f"{known.path} has positions of {channels} channels for tokens of {width}: the "
                "others may be time stamps, as in the temporal models of SatMAE, which this "
                "project does not have"
            )
    arrays = {name: table.read() for name, table in stored.items()}
    grids = _grids(known, len(next(iter(arrays.values()))), fields, stored_size, given_size)
    if not fields["learned_positions"]:
        for grid in grids:
            rows = {name: _rows(x, grid, fields) for name, x in arrays.items()}
            if formula := _formula([x for _, x in rows.values()], fields, grid):
                fields["position_formula"] = formula
                return {n: x for n, x in params.items() if n not in stored}, fields, grid
    grid, *others = grids
    if others:
        _log.warning(
            "%s has a table of positions for a grid of %s or %s: the first is taken%s",
            known.path,
            grid,
            others[0],
            "" if given_size else "; size= says which",
        )
    fields["learned_positions"] = True
    params = dict(params)
    for name, x in arrays.items():
        of_registers, table = _rows(x, grid, fields)
        params[name] = Tensor(table.shape, table)
        if len(of_registers):
            add = lambda x, rows=of_registers: np.add(x, rows, dtype=np.float32)
            params["encoder/registers"] = tensor_files.compute(add, params["encoder/registers"])
    return params, fields, grid


def _grids(
    known: Known,
    length: int,
    fields: Fields,
    stored_size: Sequence[int] | None,
    given_size: Sequence[int] | None,
) -> list[Grid]:
    """Return the possible grids of a table of `length` rows, the likeliest one first.

    Class tokens and registers may have no rows. Without a size, a table without rows of the class
    tokens is not looked for, unless there are registers: 25 rows can be 1 and 4 x 6.
    """
    axes, groups = len(known.patch), len(fields.get("channel_groups") or [0])
    cls, registers = fields["cls_tokens"], fields["register_tokens"]
    own: list[Grid] = []
    if stored_size and not any(side % p for side, p in zip(stored_size, known.patch, strict=True)):
        own.append(patches.grid_of(stored_size, known.patch))
    found = [*own, *([patches.grid_of(given_size, known.patch)] if given_size else [])]
    counts = [length - others for others in dict.fromkeys((cls + registers, cls, 0))]
    for count in counts if registers else [length - cls]:
        square = (round(max(count // groups, 0) ** (1 / axes)),) * axes
        found += [square] if math.prod(square) * groups == count else []
    grids = [grid for grid in dict.fromkeys(found) if math.prod(grid) * groups in counts]
    if own and own[0] in grids:
        return own
    if not grids:
        raise ValueError(
            f"{known.path} has {length - cls - registers} positions, which are no square grid: "
            f"give size=, that of its inputs (it has {cls} class token(s) and {registers} "
            "register(s))"
        )
    return grids


def _rows(table: np.ndarray, grid: Grid, fields: Fields) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of registers, and the rows of class tokens and patches.

    Class tokens without rows get zeros.
    """
    groups, count = len(fields.get("channel_groups") or [0]), fields["cls_tokens"]
    others = len(table) - math.prod(grid) * groups
    if others >= count:
        return table[count:others], np.concatenate([table[:count], table[others:]])
    zeros = np.zeros((count - others, table.shape[1]), table.dtype)
    return table[:0], np.concatenate([zeros, table])


def _formula(tables: Sequence[np.ndarray], fields: Fields, grid: Grid) -> str | None:
    """Return the formula of `positions.FORMULAS` that all tables equal, if there is one."""
    for name, formula in positions.FORMULAS.items():
        fixed = lambda x, formula=formula: positions.Fixed(
            x.shape[1], fields["cls_tokens"], formula
        )
        # Not all code computes in float64.
        if all(
            x.dtype.itemsize > 2 and np.abs(x - fixed(x).start(grid)["positions"]).max() < 1e-5
            for x in tables
        ):
            return name
    return None


def _separable_grid(
    params: Tensors, patch: tuple[int, ...], sizes: Sequence[Sequence[int]]
) -> tuple[int, ...] | None:
    """Return the grid of tables of time and space."""
    time = params["encoder/positions_time"].shape[0]
    for size in sizes:
        grid = patches.grid_of(size, patch)
        if len(grid) == len(patch) and grid[0] == time:
            return grid
    cls = params["encoder/cls"].shape[0] if "encoder/cls" in params else 0
    space = params["encoder/positions_space"].shape[0] - cls
    side = math.isqrt(space)
    return (time, side, side) if side * side == space and len(patch) == 3 else None
