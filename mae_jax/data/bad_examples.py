"""Examples that cannot be read: which they are, how many, and when there are too many."""

import logging
import threading
from collections.abc import Sized

from etils import epath

_log = logging.getLogger(__name__)
_SHOWN = 3  # names in a message


class Unreadable(ValueError):
    """An example that cannot be read."""


class BadExamples:
    """Counts each unreadable example once; safe to use from many threads.

    Each example becomes one line `name<TAB>reason` of the file `log`, with unprintable characters
    escaped. Examples that the file already lists are counted, so that a resumed run goes on
    counting.

    Args:
      source: the collection that the examples belong to.
      limit: the largest fraction of unreadable examples that is allowed.
      log: a local path or a path in a bucket; None writes no file.

    Raises:
      Unreadable: more examples than that cannot be read. `add` raises it as well.
    """

    def __init__(self, source: Sized, limit: float, log: epath.PathLike | None = None):
        self.length, self.limit = len(source), limit
        self.log = None if log is None else epath.Path(log)
        exists = self.log is not None and self.log.exists()
        text = self.log.read_bytes().decode(errors="replace") if self.log and exists else ""
        # A last line without an end was being written when an earlier process died.
        lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        self._lines = {line.partition("\t")[0]: line for line in lines}
        self._rewrite = text != "".join(lines)
        self._lock = threading.Lock()
        self._check()

    @property
    def count(self) -> int:
        return len(self._lines)

    @property
    def share(self) -> float:
        return self.count / self.length

    def add(self, name: str, reason: str) -> None:
        """Count the unreadable example `name`; raise `Unreadable` if there are now too many."""
        key, reason = _escaped(name), _escaped(" ".join(reason.split()))
        with self._lock:
            if key not in self._lines:
                self._lines[key] = f"{key}\t{reason}\n"
                self._write(key)
            self._check()

    def _write(self, key: str) -> None:
        if self.log is None:
            return
        try:
            if self._rewrite or "://" in str(self.log):  # object stores cannot append
                self.log.write_text("".join(self._lines.values()))
            else:
                with self.log.open("a") as f:
                    f.write(self._lines[key])
            self._rewrite = False
        except OSError as error:  # a full disk is no reason to stop training
            self._rewrite = True
            _log.warning("cannot write %s: %s", self.log, error)

    def _check(self) -> None:
        if self.share <= self.limit:
            return
        shown = [line.rstrip("\n").split("\t") for line in list(self._lines.values())[:_SHOWN]]
        names = ", ".join(f"'{name}' ({''.join(reason)})" for name, *reason in shown)
        more = ", ..." if self.count > _SHOWN else ""
        where, forget = "", ""
        if self.log is not None:
            where, forget = f"; {self.log} lists all of them", f" and delete {self.log.name}"
        raise Unreadable(
            f"{self.count} of {self.length} examples cannot be read: {names}{more}{where}. That is "
            f"more than data.max_bad_fraction = {self.limit:g} allows: repair the files{forget}, "
            "remove them and start in another work directory, or raise data.max_bad_fraction"
        )


def _escaped(text: str) -> str:
    """Return `text` on one line, without tabs, and encodable as UTF-8."""
    return repr(text)[1:-1]
