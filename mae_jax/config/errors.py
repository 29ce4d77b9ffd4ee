"""Mistakes of users, told in one sentence."""

import contextlib
import os
import sys
from collections.abc import Iterator


class UserError(Exception):
    """A user's mistake: its text is one clear sentence that names the value and the way out."""


@contextlib.contextmanager
def user_errors(kinds=(ValueError, OSError, ImportError)) -> Iterator[None]:
    """Inside, errors of these kinds come from what the user gave: they become a `UserError`."""
    try:
        yield
    except kinds as error:
        raise UserError(str(error)) from error


@contextlib.contextmanager
def exits(kinds=(ValueError, OSError, ImportError)) -> Iterator[None]:
    """Inside, a user's mistake ends the command with one sentence and status 2, Ctrl-C with 130."""
    try:
        with user_errors(kinds):
            yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr, flush=True)
        os._exit(130)  # a compilation that goes on would crash
