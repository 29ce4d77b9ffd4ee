"""Examples that cannot be read: how many there are, which, and when they are too many."""

import logging
import threading
from collections.abc import Sized

from etils import epath

from mae_jax.data.unreadable import Unreadable

_log = logging.getLogger(__name__)
_SHOWN = 3  # names in a message


class Damage:
    """Counts examples that cannot be read, each once; safe to use from many threads.

    Each is a line `name<TAB>reason` of the file `log`, with what does not print escaped. What that
    file holds already is counted too, so that a run that goes on counts on.

    Args:
      source: what they are examples of.
      limit: the share of examples that may be unreadable.
      log: a local path or one of a bucket; None writes nothing.

    Raises:
      Unreadable: there are more than that, here and from `add`.
    """

    def __init__(self, source: Sized, limit: float, log: epath.PathLike | None = None):
        self.length, self.limit = len(source), limit
        self.log = None if log is None else epath.Path(log)
        there = self.log is not None and self.log.exists()
        text = self.log.read_bytes().decode(errors="replace") if self.log and there else ""
        # a last line without an end was being written when a run died
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
        """An example cannot be read.

        Raises:
          Unreadable: now there are too many.
        """
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
        except OSError as error:  # a full disk, which is no reason to stop
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
            where, forget = f"; {self.log} lists all that were met", f" and delete {self.log.name}"
        raise Unreadable(
            f"{self.count} of {self.length} examples cannot be read: {names}{more}{where}. That is "
            f"more than data.max_bad_fraction = {self.limit:g} allows: mend the files{forget}, "
            "remove them and begin in another work directory, or raise data.max_bad_fraction"
        )


def _escaped(text: str) -> str:
    """On one line, without tabs, and in UTF-8 whatever bytes a file is called."""
    return repr(text)[1:-1]
