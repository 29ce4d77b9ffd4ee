"""Errors for users, of one sentence each."""

import contextlib
import os
import sys
from collections.abc import Iterator


class UserError(Exception):
    """A user's mistake; the text is one sentence that names the value and the way out."""


@contextlib.contextmanager
def user_errors(kinds=(ValueError, OSError, ImportError)) -> Iterator[None]:
    """Turn errors of these kinds, caused by what the user gave, into a `UserError`."""
    try:
        yield
    except kinds as error:
        raise UserError(str(error)) from error


@contextlib.contextmanager
def exits(kinds=(ValueError, OSError, ImportError)) -> Iterator[None]:
    """End the command with one sentence and status 2 on a user's mistake, and 130 on Ctrl-C."""
    try:
        with user_errors(kinds):
            yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr, flush=True)
        os._exit(130)  # `sys.exit` during a compilation would crash
