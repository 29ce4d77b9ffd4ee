"""Arrays of numbers [*sides, c]: volumes and pictures with many channels."""

import os
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.image_io import resize

# numpy parses headers by `ast`, whose recursion counter threads share in Python 3.11: without a
# lock a good file sometimes fails with a SystemError.
_HEADERS = threading.Lock()
_MAX_UNPACKED = 2**30  # bytes of an array in an .npz file
Array = str | os.PathLike | np.ndarray  # the path of a file, or an array in memory
_KEYS = ("image", "volume", "arr_0")  # the array to take from an .npz file with several arrays


def decode(array: Array, axes: int, channels: int) -> np.ndarray:
    """Return an array [*sides, channels] with `axes` sides, which may be read from a file.

    The axis of channels may be missing if there is one channel. The dtype is kept, and a `.npy`
    file is only mapped into memory, so that a crop reads only its own part. Of an `.npz` file the
    only array is read, or else the first of "image", "volume" and "arr_0", of up to 1 GiB. Nothing
    is unpickled.

    Raises:
      Unreadable: the file is of another kind or damaged, or holds no such array of real numbers.
      OSError: the file does not exist.
    """
    if not isinstance(array, np.ndarray):
        array = _load(array)
    if array.dtype.kind not in "biuf":
        raise Unreadable(f"an array of {array.dtype} holds no real numbers: save it as float32")
    shape = array.shape
    if 0 in shape:
        why = "is empty: remove it"
    elif array.ndim not in (axes, axes + 1):
        why = (
            f"has {array.ndim} axes, not {axes} and one for channels: save it like that, or choose "
            "a size of another length"
        )
    elif array.ndim == axes:
        if channels == 1:
            return array[..., None]
        why = f"has no axis for {channels} channels: set data.channels=1"
    elif shape[-1] == channels:
        return array
    else:
        why = f"has {shape[-1]} channels, not {channels}: set data.channels={shape[-1]}"
    raise Unreadable(f"an array of shape {shape} {why}")


def train_views(
    array: Array, data: Mapping[str, Any], rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield random parts of an array, resized to [*size, c]: uint8 if it was, else float32.

    The sides of a part are those of `data.size` times one factor, which is log-uniform in
    `data.zoom`: (1, 1) keeps the resolution, and 2 shows twice as much at half the resolution.
    Resizing is linear, and antialiased where it shrinks. An array smaller than the part is
    continued on both sides by its edge values.

    Raises:
      Unreadable: as `decode`, or the part has values that are not finite.
    """
    size = data["size"]
    array = decode(array, len(size), data["channels"])
    for _ in range(data["repeats"]):
        factor = np.exp(rng.uniform(*np.log(data["zoom"])))
        sides = [max(1, round(side * factor)) for side in size]
        starts = rng.integers(0, free(array, sides), endpoint=True)
        yield resize.linear(crop(array, starts, sides), size)


def eval_views(
    array: Array, data: Mapping[str, Any], clips: int = 1, crops: int = 1
) -> Iterator[np.ndarray]:
    """Yield the middle of an array without resizing, [*size, c]; otherwise as `train_views`."""
    size = data["size"]
    array = decode(array, len(size), data["channels"])
    yield crop(array, np.array(free(array, size)) // 2, size)


def free(array: np.ndarray, sides: Sequence[int]) -> list[int]:
    return [max(0, n - side) for n, side in zip(array.shape[:-1], sides, strict=True)]


def _load(path: str | os.PathLike) -> np.ndarray:
    with open(path, "rb") as file:
        magic = file.read(6)
    if magic != b"\x93NUMPY" and not zipfile.is_zipfile(path):
        raise Unreadable("not a .npy or .npz file, or a truncated one: write it with numpy.save")
    try:
        with _HEADERS:
            loaded = np.load(path, mmap_mode="r", allow_pickle=False)
            return loaded if isinstance(loaded, np.ndarray) else _from_archive(loaded)
    except Unreadable:
        raise
    except Exception as error:  # numpy, zipfile and zlib raise many types on damaged files
        reason = str(error).partition("\n")[0].rstrip(".")
        raise Unreadable(f"damaged, or no numbers ({reason}): save it again") from error


def _from_archive(archive: np.lib.npyio.NpzFile) -> np.ndarray:
    with archive:
        keys = archive.files if len(archive) == 1 else [k for k in _KEYS if k in archive]
        members = archive.zip.infolist() if archive.zip else []
        sizes = {member.filename: member.file_size for member in members}
        if keys and (size := sizes.get(f"{keys[0]}.npy", 0)) > _MAX_UNPACKED:
            raise Unreadable(f"the array unpacks to {size} bytes: above 1 GiB, save it as .npy")
        # For a member that is no array, an archive returns its bytes.
        if keys and isinstance(array := archive[keys[0]], np.ndarray):
            return array
        held = ", ".join(map(repr, archive)) or "nothing"
        raise Unreadable(f"the .npz file holds {held}: save one array, or call it 'image'")


def crop(array: np.ndarray, starts: np.ndarray, sides: Sequence[int]) -> np.ndarray:
    """Copy `sides` from `starts` on, as uint8 or float32, continued by the edge values."""
    cut = tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))
    with np.errstate(over="ignore", invalid="ignore"):  # values beyond float32 become infinite
        part = np.array(array[cut], np.uint8 if array.dtype == np.uint8 else np.float32)
    if not np.isfinite(part).all():
        raise Unreadable("the array has values that are not finite (NaN, infinite): replace them")
    gaps = [side - n for side, n in zip(sides, part.shape[:-1], strict=True)]
    if any(gaps):
        part = np.pad(part, [*((gap // 2, gap - gap // 2) for gap in gaps), (0, 0)], "edge")
    return part
