"""Sound files, labelled by folders or by a table."""

from mae_jax.data.sources import folders
from mae_jax.data.sources.source import Examples

EXTENSIONS = ("wav", "flac", "ogg", "aiff", "aif", "mp3", "au")


def sounds(path: str, split: str) -> Examples:
    """Open the sound files under `path`, as in `folders.pictures`; an example has the path."""
    listing = folders.list_files(path, split, EXTENSIONS, f"audio:{path}", "sounds")
    return folders.from_listing(listing, str)
