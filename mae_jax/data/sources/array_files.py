"""Arrays of numbers in `.npy` and `.npz` files: volumes and pictures with many channels."""

from mae_jax.data.sources import folders

EXTENSIONS = ("npy", "npz")


def arrays(path: str, split: str) -> folders.Folder:
    """Open the `.npy` and `.npz` files under `path`: `source[i]["image"]` is the path of a file.

    Splits, classes and errors are those of `folders.folder`.
    """
    listed = folders.list_files(path, split, EXTENSIONS, f"arrays:{path}", "arrays")
    return folders.Folder(*listed, str)
