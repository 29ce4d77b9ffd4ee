"""The error of an example that cannot be read."""


class Unreadable(ValueError):
    """A picture that cannot be read."""
