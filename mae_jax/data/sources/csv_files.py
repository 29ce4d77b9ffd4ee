"""Files that a table names, of any modality."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mae_jax.data.sources import folders, tables
from mae_jax.data.sources.source import Examples


def named_files(place: str, split: str, modality: str) -> Examples:
    """Open the files of a table `FILE`, see `tables.read_csv`, whose names are relative to it.

    `FILE::COLUMN` chooses one of several columns of labels. An example has what the folders of the
    modality give of a file: of a picture its bytes, of a text its bytes, of a folder of frames the
    paths of the frames, and else the path, which may be `PATH::KEY`.

    Raises:
      FileNotFoundError: the table, or files that it names for this split, do not exist.
      ValueError: the table has another form, or no such split.
    """
    path, column = tables.split_place(place)
    if not path.is_file():
        raise FileNotFoundError(f"data 'csv:{place}': there is no file {str(path)!r}")
    table = tables.read_csv(path)
    names = [table.names[row] for row in table.rows(split)]
    exists = lambda name: (path.parent / name.partition("::")[0]).exists()
    if missing := [name for name in names if not exists(name)]:
        rest = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FileNotFoundError(
            f"data 'csv:{place}' names {missing[0]!r}{rest}, but there is no such file in "
            f"{str(path.parent)!r}: correct the name or drop its line"
        )
    load = functools.partial(_load, path.parent, table.names, modality)
    return tables.examples(table, split, column, load, f"csv:{place}")


def _load(root: Path, names: Sequence[str], modality: str, row: int) -> Any:
    path = root / names[row]
    if modality == "video" and path.is_dir():
        return folders.frames_in_order(path)
    if modality == "text" or modality == "image" and folders.is_picture(path):
        return path.read_bytes()
    return str(path)
