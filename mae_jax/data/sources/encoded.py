"""Contents of files that lie in other files, as the modalities take them."""

import numpy as np

from mae_jax.data.array_io import npy


def value(content: bytes) -> bytes | np.ndarray:
    """Return the array in the content of a `.npy` file, and any other content as it is.

    Raises:
      Unreadable: the `.npy` file is damaged, or holds Python objects.
    """
    return npy.parse(content) if content.startswith(npy.MAGIC) else content
