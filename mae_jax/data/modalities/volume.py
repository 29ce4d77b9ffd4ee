"""Arrays of numbers [*sides, c] in `.npy` and `.npz` files: volumes, many-channel pictures."""

import os
import threading
import zipfile
from collections.abc import Sequence

import numpy as np

from mae_jax.data.sources import folders
from mae_jax.data.sources.folders import Folder
from mae_jax.data.unreadable import Unreadable

EXTENSIONS = ("npy", "npz")
# numpy parses headers by `ast`, whose recursion counter threads share in Python 3.11: now and then
# a good file would fail with a SystemError.
_HEADERS = threading.Lock()
_MOST = 2**30  # bytes of an array in an .npz file
_KEYS = ("image", "volume", "arr_0")  # of the array to take from an .npz file with several


def files(path: str, split: str) -> Folder:
    """The `.npy` and `.npz` files under `path`; splits, classes and errors as `folders.folder`."""
    return Folder(*folders.listed(path, split, EXTENSIONS, f"arrays:{path}", "arrays"), str)


def decode(array: str | os.PathLike | np.ndarray, axes: int, channels: int) -> np.ndarray:
    """A file or an array [*sides, channels], or [*sides] if channels is 1, to [*sides, channels].

    There are `axes` sides. The dtype stays: a `.npy` file is only mapped into memory, so that a
    crop, which converts, reads no more than its part. An `.npz` file is read as a whole: its only
    array, or else the first of "image", "volume" and "arr_0", of at most 1 GiB, because a small one
    may unpack to anything. Nothing is unpickled.

    Raises:
      Unreadable: not a file of the two kinds, a damaged one, or not such an array of real numbers.
      OSError: no such file.
    """
    if not isinstance(array, np.ndarray):
        array = _load(array)
    shape = array.shape
    if array.dtype.kind not in "biuf":
        raise Unreadable(f"an array of {array.dtype} holds no real numbers: save it as float32")
    if 0 in shape:
        raise Unreadable(f"an array of shape {shape} is empty: remove it")
    if len(shape) not in (axes, axes + 1):
        raise Unreadable(
            f"an array of shape {shape} has {len(shape)} axes, not {axes} and one for channels: "
            "save it like that, or choose a size of another length"
        )
    if len(shape) == axes:
        if channels != 1:
            raise Unreadable(
                f"an array of shape {shape} has no axis for {channels} channels: "
                "set data.channels=1"
            )
        return array[..., None]
    if shape[-1] != channels:
        raise Unreadable(
            f"an array of shape {shape} has {shape[-1]} channels, not {channels}: "
            f"set data.channels={shape[-1]}"
        )
    return array


def train(
    array: np.ndarray,
    rng: np.random.Generator,
    *,
    size: Sequence[int],
    scale: tuple[float, float] = (1.0, 1.0),
) -> np.ndarray:
    """A random part of `array` [*sides, c], resized to [*size, c]: uint8 if it was, else float32.

    The part's sides are those of `size` times one factor, log-uniform in `scale`: (1, 1) takes it
    as it is, 2 shows twice as much at half the resolution. Resizing is linear, and antialiased
    where it shrinks. An array smaller than the part is continued on both sides by its edge values.

    Raises:
      Unreadable: NaN or infinite values in the part.
    """
    factor = np.exp(rng.uniform(*np.log(scale)))
    sides = [max(1, round(side * factor)) for side in size]
    room = [max(0, have - side) for have, side in zip(array.shape[:-1], sides, strict=True)]
    return _resize(_crop(array, rng.integers(0, room, endpoint=True), sides), size)


def test(array: np.ndarray, *, size: Sequence[int]) -> np.ndarray:
    """The middle of `array` [*sides, c] as it is: [*size, c]; else as `train`."""
    room = [max(0, have - side) for have, side in zip(array.shape[:-1], size, strict=True)]
    return _crop(array, np.array(room) // 2, size)


test.__test__ = False  # pytest would collect it in every module that imports it


def _load(path: str | os.PathLike) -> np.ndarray:
    with open(path, "rb") as file:
        magic = file.read(6)
    if magic != b"\x93NUMPY" and not zipfile.is_zipfile(path):
        raise Unreadable("not a .npy or .npz file, or a truncated one: write it with numpy.save")
    try:
        with _HEADERS:
            loaded = np.load(path, mmap_mode="r", allow_pickle=False)
            return loaded if isinstance(loaded, np.ndarray) else _only(loaded)
    except Unreadable:
        raise
    except Exception as error:  # numpy, zipfile and zlib raise many types on damaged files
        reason = str(error).partition("\n")[0].rstrip(".")
        raise Unreadable(f"damaged, or no numbers ({reason}): save it again") from error


def _only(archive: np.lib.npyio.NpzFile) -> np.ndarray:
    with archive:
        keys = archive.files if len(archive) == 1 else [k for k in _KEYS if k in archive]
        members = archive.zip.infolist() if archive.zip else []
        sizes = {member.filename: member.file_size for member in members}
        if keys and (size := sizes.get(f"{keys[0]}.npy", 0)) > _MOST:
            raise Unreadable(f"the array unpacks to {size} bytes: above 1 GiB, save it as .npy")
        # an archive gives back the bytes of a member that is no array
        if keys and isinstance(array := archive[keys[0]], np.ndarray):
            return array
        held = ", ".join(map(repr, archive)) or "nothing"
        raise Unreadable(f"the .npz file holds {held}: save one array, or call it 'image'")


def _crop(array: np.ndarray, starts: np.ndarray, sides: Sequence[int]) -> np.ndarray:
    """A copy of `sides` from `starts` on, as uint8 or float32, filled up by its edges."""
    cut = tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit float32 becomes infinite
        part = np.array(array[cut], np.uint8 if array.dtype == np.uint8 else np.float32)
    if not np.isfinite(part).all():
        raise Unreadable("the array has values that are not finite (NaN, infinite): replace them")
    short = [side - have for side, have in zip(sides, part.shape[:-1], strict=True)]
    if any(short):
        part = np.pad(part, [*((gap // 2, gap - gap // 2) for gap in short), (0, 0)], "edge")
    return part


def _resize(part: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Weights of a triangle, as wide as two samples of the coarser side: Pillow's BILINEAR."""
    if part.shape[:-1] == tuple(size):
        return part
    dtype = part.dtype
    for axis, (have, side) in enumerate(zip(part.shape[:-1], size, strict=True)):
        step = have / side
        distance = np.arange(have) - ((np.arange(side) + 0.5) * step - 0.5)[:, None]
        weights = np.maximum(0, 1 - np.abs(distance) / max(1, step))  # [side have]
        weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
        part = np.moveaxis(np.tensordot(weights, part, (1, axis)), 0, axis)
    return np.ascontiguousarray(np.rint(part) if dtype == np.uint8 else part, dtype)
