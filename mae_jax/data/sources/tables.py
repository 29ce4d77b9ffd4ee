"""Tables with a row for each example: its labels, its split, its group and its fold."""

import csv
import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mae_jax.data import notices
from mae_jax.data.sources import labels, splits
from mae_jax.data.sources.source import Examples

_log = logging.getLogger(__name__)
BESIDE = "labels.csv"
NAMES = ("path", "file")
KINDS = ("label", "labels", "target")  # of labels: the first that a table has is read
SPLITS = ("split", "group", "fold")
_KNOWN = "label, labels, target, target:NAME, split, group and fold"
_RULE = (
    "write 'file,label' (one class each), 'file,labels' (any number, a;b;c) or 'file,target' "
    f"(a number); the columns are path or file, and any of {_KNOWN}"
)


@dataclasses.dataclass(frozen=True)
class Table:
    """The columns of a table.

    Args:
      title: names the table in messages.
      names: of the examples, all different.
      columns: values by the name of a known column, None where a field is empty: of `label` the
        name or number of a class, of `labels` several of these, of `target` and `target:NAME` a
        number, and of `split`, `group` and `fold` a text.
      classes: the names of the classes whose numbers the columns `label` and `labels` hold.
    """

    title: str
    names: Sequence[str]
    columns: Mapping[str, Sequence[Any]]
    classes: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name in ("split", "group"):
            for row, value in enumerate(self.columns.get(name, ())):
                if value is None:
                    raise ValueError(
                        f"{self.title} has no {name} for {self.names[row]!r}: fill in the column "
                        f"{name}, or remove it"
                    )
        if groups := self.columns.get("group"):
            for name in {"split", "fold"} & self.columns.keys():
                splits.check_groups(groups, self.columns[name], self.title)

    def of(self, rows: Sequence[int]) -> "Table":
        """Return the table of some rows."""
        take = lambda values: tuple(values[row] for row in rows)
        columns = {name: take(values) for name, values in self.columns.items()}
        return dataclasses.replace(self, names=take(self.names), columns=columns)

    def decides(self, split: str) -> bool:
        """Return whether a column says which examples are in a split."""
        return "split" in self.columns or splits.is_folds(split)

    def rows(self, split: str) -> list[int]:
        """Return the numbers of the rows of a split.

        The column `split` names it, and the column `fold` those of `fold:2` and `not_fold:2`.
        Without `split` a tenth of the groups, or of the examples by their names, is held out.

        Raises:
          ValueError: there is no such split.
        """
        if splits.is_folds(split):
            if "fold" not in self.columns:
                raise ValueError(f"{self.title} has no column fold for split {split!r}: add it")
            return splits.of_folds(self.columns["fold"], split, self.title)
        if "split" in self.columns:
            return splits.of_names(self.columns["split"], split, self.title)
        return splits.held_out(self.columns.get("group", self.names), split, self.title)

    def read_labels(self, choice: str = "") -> labels.Labels | None:
        """Return the labels of all rows, or None if the table has no column of labels.

        Args:
          choice: `label`, `labels`, `target` (with all of `target:NAME`) or one `target:NAME`; ""
            takes the first of these that the table has.

        Raises:
          ValueError: the table has no such column, or a column holds no labels.
        """
        targets = [name for name in self.columns if name.partition(":")[0] == "target"]
        found = [kind for kind in KINDS if kind in self.columns or kind == "target" and targets]
        if choice and choice not in (*found, *targets):
            raise ValueError(
                f"{self.title} has no labels in a column {choice!r}: it has "
                f"{', '.join(dict.fromkeys([*found, *targets])) or 'none'}"
            )
        if not found:
            return None
        if len(found) > 1 and not choice:
            others = " or ".join(found[1:])
            notices.once(
                _log.warning,
                f"{self.title}: labels are read from {found[0]}, as {others} is not named after ::",
            )
        chosen = choice or found[0]
        columns = targets if chosen == "target" else [chosen]
        self._tell_empty(columns)
        try:
            if chosen == "label":
                return labels.one_class(self.columns[chosen], self.classes.get(chosen, ()))
            if chosen == "labels":
                return labels.several_classes(self.columns[chosen], self.classes.get(chosen, ()))
            short = [name.removeprefix("target:") for name in columns]
            values = (self.columns[name] for name in columns)
            return labels.numbers(dict(zip(short, values, strict=True)))
        except ValueError as error:
            raise ValueError(f"{self.title}: {error}") from error

    def _tell_empty(self, columns: Sequence[str]) -> None:
        for name in columns:
            values = self.columns[name]
            unknown = {"label": (None, -1), "labels": (None, [])}.get(name, (None,))
            empty = sum(x in unknown or x != x for x in values)  # NaN is not equal to itself
            if empty == len(values):
                raise ValueError(
                    f"{self.title} has an empty column {name}: fill it in, or remove it"
                )
            if empty and name != "labels":  # an example may be of no class
                notices.once(
                    _log.warning,
                    f"{self.title}: {empty:,} of {len(values):,} examples have no {name}",
                )


def examples(
    table: Table, split: str, column: str, load: Callable[[int], Any], spec: str
) -> Examples:
    """Return the source of the rows of a split, whose images are `load(row)`.

    Args:
      column: of the labels, see `Table.read_labels`.
      spec: names the source in messages.

    Raises:
      ValueError: there is no such split or column, or the split is empty.
    """
    rows, found = table.rows(split), table.read_labels(column)
    if not rows:
        raise ValueError(
            f"data {spec!r} has no examples of split {split!r}: name another split, or check the "
            "columns split, group and fold"
        )
    names = tuple(table.names[row] for row in rows)
    of_rows = (found or labels.none(len(table.names))).of(rows)
    return labels.labelled(functools.partial(_load_row, load, rows), of_rows, names)


def _load_row(load: Callable[[int], Any], rows: Sequence[int], i: int) -> Any:
    return load(rows[i])


def split_place(place: str) -> tuple[Path, str]:
    """Return the path and the column of a place `PATH` or `PATH::COLUMN`."""
    path, _, column = place.partition("::")
    return Path(path).expanduser(), column


def read_csv(path: Path) -> Table:
    """Read a table with a first line of names of columns, of which `path` or `file` is one.

    Several labels are separated by ";". Other columns are named in the log and not read.

    Raises:
      ValueError: the file has another form; the message says what to write.
      OSError: the file does not exist.
    """
    title = repr(str(path))
    # Excel writes a byte-order mark; file names need not be UTF-8.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        reader = csv.reader(lines, skipinitialspace=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            key = _check_header(header, title)
            rows: dict[str, list[str]] = {}
            for row in filter(None, reader):
                if len(row) != len(header):
                    raise ValueError(
                        f"{title} has {len(row)} columns instead of {len(header)} in line "
                        f"{reader.line_num}: put names with a comma in double quotes"
                    )
                if not (name := row[key].strip()):
                    raise ValueError(f"{title} names no file in line {reader.line_num}: add it")
                name = PurePosixPath(name).as_posix()  # without a leading ./
                if name in rows:
                    raise ValueError(f"{title} names {name!r} twice: join its lines")
                rows[name] = [field.strip() for field in row]
        except csv.Error as error:
            raise ValueError(f"{title} is no table in line {reader.line_num}: {error}") from error
    if not rows:
        raise ValueError(f"{title} names no files: add a line for each")
    values = dict(zip(header, zip(*rows.values(), strict=True), strict=True))
    known = {name: _parsed(name, values[name], title) for name in header if is_known(name)}
    return Table(title, tuple(rows), known)


def beside(root: Path) -> Table | None:
    """Return the table `labels.csv` in a folder, if there is one."""
    path = root / BESIDE
    return read_csv(path) if path.is_file() else None


def is_label(name: str) -> bool:
    """Return whether a column of this name has labels."""
    return name in KINDS or name.startswith("target:")


def is_known(name: str) -> bool:
    """Return whether a column of this name has labels, or splits, groups or folds."""
    return name in SPLITS or is_label(name)


def _check_header(header: list[str], title: str) -> int:
    """Return the number of the column with the names of files."""
    keys = [name for name in header if name in NAMES]
    twice = next((name for name in header if header.count(name) > 1), None)
    if len(keys) != 1 or twice is not None:
        raise ValueError(f"{title} starts with {','.join(header)!r}: {_RULE}")
    if unknown := [repr(name) for name in header if name not in NAMES and not is_known(name)]:
        notices.once(
            _log.warning,
            f"{title}: the columns {', '.join(unknown)} are not read, which are none of {_KNOWN}",
        )
    return header.index(keys[0])


def _parsed(name: str, fields: Sequence[str], title: str) -> Sequence[Any]:
    if name == "labels":
        return [[x for part in field.split(";") if (x := part.strip())] for field in fields]
    if name.partition(":")[0] != "target":
        return [field or None for field in fields]
    numbers = []
    for field in fields:
        try:
            numbers.append(float(field) if field else math.nan)
        except ValueError:
            raise ValueError(
                f"{title} has {name} {field!r}, which is no number: correct it, or leave it empty "
                "if it is unknown"
            ) from None
    return numbers
