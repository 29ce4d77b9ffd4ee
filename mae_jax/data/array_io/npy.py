"""numpy's files: `.npy`, which is mapped into memory, and `.npz`, `FILE::KEY`."""

import contextlib
import functools
import io
import threading
import zipfile
from collections.abc import Iterator

import numpy as np

from mae_jax.data import arrays
from mae_jax.data.array_io import keys
from mae_jax.data.bad_examples import Unreadable, reason

MAGIC = b"\x93NUMPY"  # the first bytes of a .npy file
# numpy parses headers by `ast`, whose recursion counter threads share in Python 3.11: without a
# lock a good file sometimes fails with a SystemError.
_HEADERS = threading.Lock()
_MAX_UNPACKED = 2**30  # bytes of an array in an .npz file
_KEYS = ("image", "volume", "arr_0")  # the array to take from an .npz file with several arrays


def open_array(path: str) -> arrays.Array:
    """Open a `.npy` file, of which only parts are read, or an array of an `.npz` file.

    An array of an `.npz` file is read whole, up to 1 GiB. Without a key it is the only array beside
    "label" and "labels", or else the first of "image", "volume" and "arr_0". Nothing is unpickled.

    Raises:
      Unreadable: the file is of another kind or damaged, or holds no such array of real numbers.
      OSError: the file does not exist.
    """
    place, key = keys.split(path)
    loaded = _load(place, key)
    arrays.check(loaded.shape, loaded.dtype)
    if not isinstance(loaded, np.memmap):
        return arrays.of(loaded)
    if key:
        raise Unreadable(f"a .npy file has no key {key!r}: give the file alone")
    order = "C" if loaded.flags.c_contiguous else "F"
    read = functools.partial(_read, place, loaded.dtype, loaded.offset, loaded.shape, order)
    return arrays.Array(loaded.shape, loaded.dtype, read)


def parse(content: bytes) -> np.ndarray:
    """Return the array in the content of a `.npy` file.

    Raises:
      Unreadable: the file is damaged, or holds Python objects.
    """
    with _parsing():
        return np.load(io.BytesIO(content), allow_pickle=False)


def list_keys(place: str) -> tuple[str, ...]:
    """Return the keys of an `.npz` file; a `.npy` file has none."""
    if not zipfile.is_zipfile(place):
        return ()
    with zipfile.ZipFile(place) as archive:
        return tuple(n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy"))


def _read(place, dtype, offset, shape, order, part: arrays.Part) -> np.ndarray:
    try:
        return np.memmap(place, dtype, "r", offset, shape, order)[part]
    except ValueError as error:
        raise Unreadable(f"the file has become shorter ({error})") from error


def _load(place: str, key: str) -> np.ndarray:
    with open(place, "rb") as file:
        magic = file.read(6)
    if magic != MAGIC and not zipfile.is_zipfile(place):
        raise Unreadable("not a .npy or .npz file, or a truncated one: write it with numpy.save")
    with _parsing():
        loaded = np.load(place, mmap_mode="r", allow_pickle=False)
        return loaded if isinstance(loaded, np.ndarray) else _from_archive(loaded, key)


@contextlib.contextmanager
def _parsing() -> Iterator[None]:
    """Let one thread parse at a time, and raise `Unreadable` on damaged files."""
    try:
        with _HEADERS:
            yield
    except Unreadable:
        raise
    except Exception as error:  # numpy, zipfile and zlib raise many types
        raise Unreadable(f"damaged, or no numbers ({reason(error)}): save it again") from error


def _from_archive(archive: np.lib.npyio.NpzFile, key: str) -> np.ndarray:
    with archive:
        found = [k for k in archive if k not in keys.LABELS] if len(archive) > 1 else [*archive]
        chosen = found if len(found) == 1 else [k for k in _KEYS if k in archive]
        if key:
            chosen = [key] if key in archive else []
        members = archive.zip.infolist() if archive.zip else []
        sizes = {member.filename: member.file_size for member in members}
        if chosen and (size := sizes.get(f"{chosen[0]}.npy", 0)) > _MAX_UNPACKED:
            raise Unreadable(f"the array unpacks to {size} bytes: above 1 GiB, save it as .npy")
        # For a member that is no array, an archive returns its bytes.
        if chosen and isinstance(array := archive[chosen[0]], np.ndarray):
            return array
        held = ", ".join(map(repr, archive)) or "nothing"
        raise Unreadable(
            f"the .npz file holds {held}, not {key!r}: give the key of an array"
            if key
            else f"the .npz file holds {held}: save one array, or call it 'image'"
        )
