"""Videos: files, or folders of frames."""

import os
import re
from pathlib import Path

from mae_jax.data.modalities import video
from mae_jax.data.sources import folders

EXTENSIONS = ("mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "ogv", "gif")


def videos(path: str, split: str) -> folders.Folder:
    """Open the video files under `path`: `source[i]["image"]` is the path of a file.

    Splits and classes are those of `folders.folder`.

    Raises:
      ImportError: PyAV is not installed.
      FileNotFoundError, ValueError: as `folders.folder`.
    """
    video.import_av()
    listed = folders.list_files(path, split, EXTENSIONS, f"video:{path}", "videos")
    return folders.Folder(*listed, str)


def frames(path: str, split: str) -> folders.Folder:
    """Open the folders of frames under `path`, with the splits and classes of `folders.folder`.

    A folder below `path` that itself holds pictures is one clip, in the role of a file of
    `folders.folder`. `source[i]["image"]` is the paths of its pictures in natural order: frame2
    comes before frame10.

    Raises:
      FileNotFoundError, ValueError: as `folders.folder`.
    """
    spec, noun = f"frames:{path}", "folders of frames"
    listed = folders.list_files(path, split, folders.EXTENSIONS, spec, noun, _frame_folders)
    return folders.Folder(*listed, _frames_in_order)


def _frame_folders(root: Path, part: str, extensions: tuple[str, ...]) -> set[str]:
    """Return the folders below `root/part` that hold a picture, relative to `root`."""
    return {file.rpartition("/")[0] for file in folders.find_files(root, part, extensions)} - {part}


def _frames_in_order(folder: Path) -> tuple[str, ...]:
    """Return the paths of the pictures in `folder`, with numbers compared as numbers."""
    ends = tuple(f".{extension}" for extension in folders.EXTENSIONS)
    names = [name for name in os.listdir(folder) if name.lower().endswith(ends)]
    steps = lambda name: [int(s) if s.isdecimal() else s for s in re.split(r"(\d+)", name)]
    shown = (name for name in names if not name.startswith("."))
    return tuple(str(folder / name) for name in sorted(shown, key=lambda n: (steps(n), n)))
