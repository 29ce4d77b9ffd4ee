"""The count and the names of examples that cannot be read, and the limit of their number."""

import logging
import threading
from collections.abc import Sized

from etils import epath

_log = logging.getLogger(__name__)
_SHOWN = 3  # names in a message
_LONGEST = 200  # characters of the message of a reader


class Unreadable(ValueError):
    """The error of an example that cannot be read."""


def reason(error: BaseException) -> str:
    """Return the first line of an error of a reader, shortened, without a stop at its end.

    Readers may put a whole damaged file into a message.
    """
    text = str(error).strip().partition("\n")[0][:_LONGEST].strip("'\" .")
    return text if text.isprintable() and text else type(error).__name__


class BadExamples:
    """A counter of unreadable examples, which counts each once; safe to use from many threads.

    Each example becomes one line `name<TAB>reason` of the file `log`, with unprintable characters
    escaped. Examples that the file already lists count as well when a run is resumed.

    Args:
      source: the collection that the examples belong to.
      limit: the largest fraction of unreadable examples that is allowed.
      log: a local path or a path in a bucket; None writes no file.

    Raises:
      Unreadable: more examples than `limit` allows cannot be read. `add` raises it as well.
    """

    def __init__(self, source: Sized, limit: float, log: epath.PathLike | None = None):
        self.length, self.limit = len(source), limit
        self.log = None if log is None else epath.Path(log)
        text = ""
        if self.log is not None and self.log.exists():
            text = self.log.read_bytes().decode(errors="replace")
        # An earlier process that died while it wrote leaves a last line without an end.
        listed, _, torn = text.rpartition("\n")
        lines = (line.partition("\t") for line in listed.splitlines())
        self._reasons = {name: reason for name, _, reason in lines}
        self._must_rewrite = bool(torn)
        self._lock = threading.Lock()
        self._check()

    @property
    def count(self) -> int:
        return len(self._reasons)

    @property
    def share(self) -> float:
        return self.count / self.length

    def add(self, name: str, reason: str) -> None:
        """Count the unreadable example `name`; raise `Unreadable` if there are now too many."""
        name, reason = _escaped(name), _escaped(" ".join(reason.split()))
        with self._lock:
            if name not in self._reasons:
                self._reasons[name] = reason
                if self.log is not None:
                    self._write(self.log, name)
            self._check()

    def _write(self, log: epath.Path, name: str) -> None:
        rewrite = self._must_rewrite or "://" in str(log)  # object stores cannot append
        names = self._reasons if rewrite else [name]
        text = "".join(f"{name}\t{self._reasons[name]}\n" for name in names)
        try:
            if rewrite:
                log.write_text(text)
            else:
                with log.open("a") as file:
                    file.write(text)
            self._must_rewrite = False
        except OSError as error:  # a full disk is no reason to stop training
            self._must_rewrite = True
            _log.warning("cannot write %s: %s", log, error)

    def _check(self) -> None:
        if self.share <= self.limit:
            return
        shown = list(self._reasons.items())[:_SHOWN]
        names = ", ".join(f"'{name}' ({reason})" for name, reason in shown)
        dots = ", ..." if self.count > _SHOWN else ""
        hint = f"; {self.log} lists all of them" if self.log else ""
        reset = f" and delete {self.log.name}" if self.log else ""
        raise Unreadable(
            f"{self.count} of {self.length} examples cannot be read: {names}{dots}{hint}. That is "
            f"more than data.max_bad_fraction = {self.limit:g} allows: repair the files{reset}, "
            "remove them and start in another work directory, or raise data.max_bad_fraction"
        )


def _escaped(text: str) -> str:
    """Return `text` on one line, without tabs, and encodable as UTF-8."""
    return repr(text)[1:-1]
