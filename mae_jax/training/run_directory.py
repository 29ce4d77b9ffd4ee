"""The work directory of a run: its config, its statistics, and one process at a time."""

import contextlib
import json
import logging
import math
import os
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from mae_jax.config import schema
from mae_jax.data import statistics
from mae_jax.output import files
from mae_jax.training import metric_writer

_log = logging.getLogger(__name__)


class RunDirectory:
    """The paths of a run, on a local disk or in a bucket, and what must not change in them."""

    def __init__(self, path: epath.PathLike):
        self.is_local = "://" not in str(path)
        self.path = epath.Path(os.path.abspath(path) if self.is_local else path)
        self.config = self.path / "config.json"
        self.measured = self.path / "statistics.json"
        self.checkpoints = self.path / "checkpoints"
        self.rewind = self.path / "rewind.json"
        self.report = self.path / "report.txt"

    def __str__(self) -> str:
        return str(self.path)

    @property
    def has_begun(self) -> bool:
        return self.config.exists()

    def stored_config(self) -> dict[str, Any] | None:
        """The content of config.json; None if there is none. ValueError: it is damaged."""
        return files.read_json(self.config) if self.has_begun else None

    def write_config(self, config) -> None:
        """Make this the directory of a run, unless it is one."""
        if jax.process_index() == 0 and not self.has_begun:
            self.rewind.unlink(missing_ok=True)  # of a run whose config was removed
            files.write_whole(self.config, schema.to_json(config))

    def stored_rewind(self) -> dict[str, Any]:
        """The newest rewind: its target `step`, and the counts of a `Recovery` after it."""
        return files.read_json(self.rewind) if self.has_begun and self.rewind.exists() else {}

    def store_rewind(self, rewind: dict[str, Any]) -> None:
        if jax.process_index() == 0:
            files.write_whole(self.rewind, json.dumps(rewind) + "\n")

    def check_config(self, config) -> None:
        """Raise ValueError, with the keys that differ, if the run has another config."""
        if not self.has_begun:
            if self.checkpoints.exists() and any(self.checkpoints.iterdir()):
                raise ValueError(
                    f"{self} has checkpoints and no config.json, which says of what: put that "
                    "back, or give another --workdir"
                )
            return
        if self.is_local and not self.checkpoints.exists():
            raise ValueError(
                f"{self} has lost its checkpoints/: put them back, or remove config.json there, "
                "too, to begin again"
            )
        if different := schema.differences(self.stored_config() or {}, config):
            raise ValueError(
                f"{self} belongs to another config ({'; '.join(different)}): give another "
                "--workdir, or the same values"
            )

    def check_unlost(self, first_save: int) -> None:
        """Raise ValueError if a run without checkpoints was trained beyond its `first_save`."""
        path = self.path / "metrics.jsonl"
        text = path.read_bytes().decode(errors="replace") if path.exists() else ""
        steps = [metric_writer.parsed(line)["step"] for line in text.splitlines()]
        last = max((step for step in steps if step < math.inf), default=0.0)
        if last > first_save or self.report.exists():
            raise ValueError(
                f"{self} was trained to step {last:.0f}, and has lost its checkpoints: put them "
                "back, or give another --workdir to begin again"
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Inside, no other process of this machine (or of its network file system) trains there.

        The lock ends with the process, however that ends. Object stores have none. ValueError:
        another process has it.
        """
        if not self.is_local or jax.process_index():
            yield
            return
        import fcntl  # here, as Windows has none

        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / "lock", "a+")
        except OSError as error:
            raise ValueError(
                f"--workdir={self} cannot be written to ({error.strerror}): give another one, or "
                "mend that"
            ) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise ValueError(
                    f"{self} is in use by another process ({lock.read().strip()}): wait for it, "
                    "or give another --workdir"
                ) from None
            except OSError as error:  # a file system without locks
                _log.warning(
                    "%s cannot be locked (%s): let no other process train there", self, error
                )
            lock.truncate(0)
            lock.write(f"{os.getpid()} on {os.uname().nodename}\n")
            lock.flush()
            yield

    @property
    def draws_balanced(self) -> bool:
        """Whether `data.examples` is balanced over classes, which it was not in version 0.1."""
        began = self.has_begun and self.measured.exists()
        return not began or files.read_json(self.measured).get("balanced", False)

    def statistics(self, source, data) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel: of the config, or measured once if "auto".

        They are kept in `statistics.json`, with the names of the classes and the number of training
        examples: schedule and order depend on it, so a run does not go on with more or fewer.

        Raises:
          ValueError: the file is gone or damaged, or the source is another one.
        """
        if not self.has_begun:
            kept = {"examples": len(source), "classes": list(source.classes), "balanced": True}
            measured = statistics.mean_std(source, data) if "auto" in (data.mean, data.std) else ()
            kept |= dict(zip(("mean", "std"), measured, strict=False))
            kept |= {x: list(data[x]) for x in ("mean", "std") if data[x] != "auto"}
            if jax.process_index() == 0:
                self.path.mkdir(parents=True, exist_ok=True)
                files.write_whole(self.measured, json.dumps(kept, indent=2) + "\n")
            return tuple(kept["mean"]), tuple(kept["std"])
        if not self.measured.exists():
            raise ValueError(
                f"{self.measured} is gone, which says how the inputs were normalised: put it back, "
                "or give another --workdir"
            )
        kept = files.read_json(self.measured)
        for name in ("examples", "mean", "std"):
            value, wanted = kept.get(name), data[name] if name != "examples" else "auto"
            if value is None or wanted != "auto" and list(value) != list(wanted):
                raise ValueError(
                    f"{self.measured} is damaged: its {name} is {value}: restore the file"
                )
        other = f"when {self} began: give another --workdir"
        if kept["examples"] != len(source):
            raise ValueError(
                f"{data.train.source!r} has {len(source)} examples but had {kept['examples']} "
                f"{other}"
            )
        if kept.get("classes", list(source.classes)) != list(source.classes):
            raise ValueError(f"{data.train.source!r} has other classes than {other}")
        return tuple(kept["mean"]), tuple(kept["std"])
