"""Which of the arrays in a file is read: `FILE::KEY`."""

from collections.abc import Iterable

from mae_jax.data.bad_examples import Unreadable

LABELS = ("label", "labels")  # the last part of the key of an array of labels
_SHOWN = 8  # keys in a message


def split(path: str) -> tuple[str, str]:
    """Return the file of `FILE::KEY` and the key, which is "" if the path has none."""
    place, _, key = path.partition("::")
    return place, key.strip("/")


def only(keys: Iterable[str]) -> str:
    """Return the only key that is not one of labels.

    Raises:
      Unreadable: there is none, or there are several.
    """
    found = sorted(key for key in keys if key.rpartition("/")[2] not in LABELS)
    if len(found) == 1:
        return found[0]
    raise Unreadable(f"the file holds {shown(found)}: name one array, as in FILE::KEY")


def shown(keys: Iterable[str]) -> str:
    """Return the first keys, for a message."""
    keys = sorted(keys)
    dots = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(map(repr, keys[:_SHOWN])) + dots or "no array of numbers"
