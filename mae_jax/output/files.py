"""Files and folders that are written whole or not at all, and JSON files."""

import argparse
import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath


def write_whole(path: epath.Path, text: str) -> None:
    """Write all of the text or none of it, whenever the process dies."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


@contextlib.contextmanager
def whole(path: str) -> Iterator[Path]:
    """Yield a path beside `path` to write to, which replaces `path` unless an error is raised.

    It becomes a file or a folder. A folder takes the place of another one in two steps: where the
    process dies between them, the old one still lies beside `path`, with the ending `.old`.
    """
    target = Path(path)
    temporary, old = (
        target.with_name(f".{target.name}.{os.getpid()}.{ending}") for ending in ("tmp", "old")
    )
    try:
        yield temporary
        if not temporary.is_dir() or not os.path.lexists(target):
            temporary.replace(target)
            return
        target.rename(old)
        try:
            temporary.rename(target)
        except OSError:
            old.rename(target)
            raise
        _remove(old)
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def read_json(path: epath.Path) -> dict[str, Any]:
    """Return the JSON object in a file; raise ValueError with the file's name if it has none."""
    try:
        values = json.loads(path.read_text())
        if isinstance(values, dict):
            return values
        problem = "it is no object"
    except ValueError as error:
        problem = f"it is not JSON: {error}"
    raise ValueError(f"{path} is damaged ({problem}): restore the file")


def write_json(path: str, value: Any) -> None:
    """Write an indented JSON file for people and their scripts."""
    with open(path, "w") as file:
        file.write(json.dumps(value, indent=2) + "\n")


def writable(path: str) -> str:
    """Return the path of a file that can be written: the type of an argument."""
    place = Path(path) if Path(path).exists() else Path(path).absolute().parent
    if Path(path).is_dir() or not os.access(place, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path!r} cannot be written: give the path of a file")
    return path
