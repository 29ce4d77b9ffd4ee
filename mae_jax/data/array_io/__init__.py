"""The formats of arrays in files: each module opens a file as an `arrays.Array`."""

import importlib
import os

from mae_jax.data.arrays import Array
from mae_jax.data.bad_examples import Unreadable

# The module of an ending. A module is imported when such a file is opened, and its reader by it.
FORMATS = {
    **dict.fromkeys(("npy", "npz"), "npy"),
    **dict.fromkeys(("tif", "tiff"), "geotiff"),
    **dict.fromkeys(("nii", "nii.gz", "mgz", "mgh", "hdr"), "nifti"),
    **dict.fromkeys(("h5", "hdf5", "he5", "nc"), "hdf5"),
    "zarr": "zarr",
    "dcm": "dicom",
}


def open_array(path: str | os.PathLike[str]) -> Array:
    """Open the file `PATH`, or an array in it, `PATH::KEY`, by its ending.

    Raises:
      Unreadable: the ending is unknown, or the file is damaged or holds no such array.
      ImportError: the reader is not installed; the message says how to install it.
    """
    place = str(path).partition("::")[0].lower()
    ends = [end for end in FORMATS if place.endswith(f".{end}")]
    if not ends:
        raise Unreadable(f"no array: files of arrays end in {', '.join(FORMATS)}")
    return importlib.import_module(f"{__name__}.{FORMATS[ends[0]]}").open_array(str(path))


def holds_array(path: str) -> bool:
    """Return whether the ending of a file is that of a format of arrays."""
    place = path.partition("::")[0].lower()
    return place.endswith(tuple(f".{end}" for end in FORMATS))
