"""Sound files, labelled by folders or by a table."""

import csv
import functools
from pathlib import Path, PurePosixPath

import numpy as np

from mae_jax.data.sources import folders
from mae_jax.data.sources.source import Example, Examples

EXTENSIONS = ("wav", "flac", "ogg", "aiff", "aif", "mp3", "au")


def sounds(path: str, split: str) -> Examples:
    """Open the sound files under `path`: `source[i]["image"]` is the path of a file.

    Splits and classes are those of `folders.pictures`, unless there is a `labels.csv` in `path`. It
    names files relative to `path` with their classes; other sounds are left out. Its first line
    decides: after `file,label` each sound has one class, or none (-1) if the field is empty, and
    "label" is an int; after `file,labels` it has any number of classes, as in `dog;rain`, and
    "label" is uint8 [classes] with a 1 for each.

    Raises:
      FileNotFoundError: the folder, its sounds, or sounds that `labels.csv` names are missing.
      ValueError: the split is unknown or has no sounds, or `labels.csv` has another form.
    """
    spec, table = f"audio:{path}", Path(path).expanduser() / "labels.csv"
    list_split = lambda split: folders.list_files(path, split, EXTENSIONS, spec, "sounds")
    root, files, labels, classes = list_split(split)
    if table.is_file():
        rows, multilabel = _read_labels(table)
        if missing := sorted(rows.keys() - set(list_split("all")[1])):
            rest = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise FileNotFoundError(
                f"data {spec!r}: labels.csv names {missing[0]!r}{rest}, but there is no such sound "
                "file: correct the name or drop its line"
            )
        files = tuple(file for file in files if file in rows)
        if not files:
            raise ValueError(
                f"data {spec!r}: labels.csv names no sounds of split {split!r}: use 'all'"
            )
        classes = tuple(sorted({name for names in rows.values() for name in names}))
        if multilabel:
            load = functools.partial(_read_multilabel, root, files, rows, classes)
            return Examples(len(files), load, classes, names=files)
        labels = tuple(classes.index(rows[file][0]) if rows[file] else -1 for file in files)
    return folders.from_listing((root, files, labels, classes), str)


def _read_multilabel(
    root: Path, files: tuple[str, ...], rows: dict, classes: tuple[str, ...], i: int
) -> Example:
    label = np.array([name in rows[files[i]] for name in classes], np.uint8)
    return {"image": str(root / files[i]), "label": label}


def _read_labels(path: Path) -> tuple[dict[str, list[str]], bool]:
    """Return the classes of each file in a `labels.csv`, and whether a file may have several."""
    # Excel writes a byte-order mark; file names need not be UTF-8.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        reader = csv.reader(lines, skipinitialspace=True)
        header = [name.strip() for name in next(reader, [])]
        if header not in (["file", "label"], ["file", "labels"]):
            raise ValueError(
                f"{str(path)!r} starts with {','.join(header)!r}: "
                "write 'file,label' (one class each) or 'file,labels' (any number, a;b;c)"
            )
        multilabel, rows = header[1] == "labels", {}
        for row in filter(None, reader):
            if len(row) != 2:
                raise ValueError(
                    f"{str(path)!r} has {len(row)} columns instead of 2 in line "
                    f"{reader.line_num}: put names with a comma in double quotes"
                )
            file = PurePosixPath(row[0].strip()).as_posix()  # without a leading ./
            if file in rows:
                raise ValueError(f"{str(path)!r} names {file!r} twice: join its lines")
            names = row[1].split(";") if multilabel else row[1:]
            rows[file] = [name.strip() for name in names if name.strip()]
    return rows, multilabel
