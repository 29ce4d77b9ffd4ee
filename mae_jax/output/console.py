"""Lines for the person at the screen."""

import contextlib
import sys


def tell(text: str, error: bool = True) -> None:
    """A line on stderr, or on stdout; what cannot be written there, as on a full disk, is lost."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr if error else sys.stdout, flush=True)
