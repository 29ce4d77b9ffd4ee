"""Mistakes of users, told in one sentence."""

import contextlib
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
