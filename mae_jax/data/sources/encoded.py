"""Contents of files that lie in other files, as the modalities take them."""

import io
import threading

import numpy as np

from mae_jax.data.bad_examples import Unreadable

# numpy parses headers by `ast`, whose recursion counter threads share in Python 3.11: without a
# lock a good file sometimes fails with a SystemError.
_HEADERS = threading.Lock()


def value(content: bytes) -> bytes | np.ndarray:
    """Return the array in the content of a `.npy` file, and any other content as it is.

    Raises:
      Unreadable: the `.npy` file is damaged, or holds Python objects.
    """
    if not content.startswith(b"\x93NUMPY"):
        return content
    try:
        with _HEADERS:
            return np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # numpy raises many types on damaged files
        reason = str(error).partition("\n")[0].rstrip(".")
        raise Unreadable(f"damaged, or no numbers ({reason}): save it again") from error
