"""Changes of a run after its beginning: more epochs, and data that moved.

`changes.json` of a work directory lists them, while `config.json` stays as the run began. Each
change replaces one value by another, so the config that a command gives may have either value.
"""

import re
from collections.abc import Iterator, Mapping

from etils import epath
from pydantic import ValidationError

from mae_jax.config import nested
from mae_jax.config.sections import Section

FILE = "changes.json"
PLACES = r"(.*\.)?source|init\.checkpoint"  # the keys whose values name places of files


class Extension(Section):
    """Epochs in all, `now` in place of those `before`, since a step."""

    step: int
    before: float
    now: float


class Relocation(Section):
    """The place of files, `now` in place of the one `before`: a folder, a file or a source."""

    before: str
    now: str

    def moved(self, value: str) -> str:
        """Return the value of a key, such as `folder:PATH`, with its place replaced."""
        inside = lambda place, value: re.fullmatch(rf"(\w+:)?{re.escape(place)}([/:].*)?", value)
        found = inside(self.before, value)
        if not found or inside(self.before, self.now) and inside(self.now, value):
            return value  # the latter is a folder in the old one, and holds the value already
        return (found[1] or "") + self.now + (found[2] or "")


class Changes(Section):
    """All changes of a run, in their order."""

    extended: tuple[Extension, ...] = ()
    relocated: tuple[Relocation, ...] = ()

    def applied(self, config: Mapping) -> dict:
        """Return the nested values of a config with these changes, which it may have already."""
        values = nested.plain(config)
        for change in self.extended:
            if values.get("epochs") == change.before:
                values["epochs"] = change.now
        for name, value in _places(values):
            for change in self.relocated:
                value = change.moved(value)
            nested.put(values, name, value)
        return values

    def extend(self, config: Mapping, epochs: float, step: int) -> "Changes":
        """Return the changes with `epochs` in all since `step`, unless the run has as many.

        Args:
          config: with the changes until now.

        Raises:
          ValueError: the run has more epochs.
        """
        before = float(config["epochs"])
        if epochs == before:
            return self
        if epochs < before:
            raise ValueError(
                f"--extend={epochs:g} is the number of all epochs, of which the run has "
                f"{before:g} already: give more"
            )
        change = Extension(step=step, before=before, now=float(epochs))
        return Changes(extended=(*self.extended, change), relocated=self.relocated)

    def relocate(self, config: Mapping, before: str, now: str) -> "Changes":
        """Return the changes with one place in place of another, unless they have it.

        Args:
          config: with the changes until now.

        Raises:
          ValueError: nothing of the run is at `before`.
        """
        change, places = Relocation(before=before, now=now), dict(_places(config))
        if all(change.moved(value) == value for value in places.values()):
            if change in self.relocated:
                return self
            listed = ", ".join(sorted({repr(x) for x in places.values() if x not in ("", "same")}))
            raise ValueError(
                f"--relocate={before}={now}: the run reads nothing from {before!r}, but {listed}"
            )
        return Changes(extended=self.extended, relocated=(*self.relocated, change))


def read(folder: epath.Path) -> Changes:
    """Return the changes of the run in a work directory; raise ValueError if they are damaged."""
    path = folder / FILE
    if not path.exists():
        return Changes()
    try:
        return Changes.model_validate_json(path.read_text())
    except (ValidationError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: restore the file") from error


def _places(config: Mapping) -> Iterator[tuple[str, str]]:
    for name, value in nested.flatten(config).items():
        if re.fullmatch(PLACES, name) and isinstance(value, str):
            yield name, value
