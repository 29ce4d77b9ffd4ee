"""The work directory of a run: its config, its statistics, and one process at a time."""

import contextlib
import json
import logging
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
    """The paths of a run, and what must not change in them while it goes on.

    Args:
      path: a local path, or one of a bucket (`gs://...`).
    """

    def __init__(self, path: epath.PathLike):
        self.is_local = "://" not in str(path)
        self.path = epath.Path(os.path.abspath(path) if self.is_local else path)
        self.config = self.path / "config.json"
        self.checkpoints = self.path / "checkpoints"
        self.report = self.path / "report.txt"
        self.rewind = self.path / "rewind.json"

    def __str__(self) -> str:
        return str(self.path)

    @property
    def has_begun(self) -> bool:
        return self.config.exists()

    def stored_config(self) -> dict[str, Any] | None:
        """What config.json holds; None if there is none. ValueError: it is damaged."""
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
        """Raise ValueError if the run, which has no checkpoint, must have had one.

        Args:
          first_save: the step by which a run has saved, or has ended.
        """
        path, last = self.path / "metrics.jsonl", 0.0
        if path.exists():
            lines = path.read_bytes().decode(errors="replace").splitlines()
            steps = [metric_writer.step_of(line) for line in lines]
            last = max((step for step in steps if step < float("inf")), default=0.0)
        if last > first_save or self.report.exists():
            raise ValueError(
                f"{self} was trained to step {last:.0f}, and has lost its checkpoints: put them "
                "back, or give another --workdir to begin again"
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Inside, no other process of this machine (or of its network file system) trains there.

        The lock ends with the process, however that ends. Object stores have none.

        Raises:
          ValueError: another process has it.
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
        with lock as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise ValueError(
                    f"{self} is in use by another process ({file.read().strip()}): wait for it, "
                    "or give another --workdir"
                ) from None
            except OSError as error:  # a file system without locks
                _log.warning(
                    "%s cannot be locked (%s): let no other process train there", self, error
                )
            file.truncate(0)
            file.write(f"{os.getpid()} on {os.uname().nodename}\n")
            file.flush()
            yield

    @property
    def draws_balanced(self) -> bool:
        """Whether `data.examples` is balanced over classes, which it was not in version 0.1."""
        path = self.path / "statistics.json"
        began = path.exists() and self.has_begun
        return not began or files.read_json(path).get("balanced", False)

    def statistics(self, source, data) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel: of the config, or measured once if "auto".

        They are kept in `statistics.json`, with the names of the classes and the number of
        examples: schedule and order depend on it, so a run does not go on with more or fewer.

        Args:
          source: the training examples.
          data: the section of a config.

        Raises:
          ValueError: the file is gone or damaged, or the source is another one.
        """
        path = self.path / "statistics.json"
        if not self.has_begun:
            kept = _measured(source, data)
            if jax.process_index() == 0:
                self.path.mkdir(parents=True, exist_ok=True)
                files.write_whole(path, json.dumps(kept, indent=2) + "\n")
            return tuple(kept["mean"]), tuple(kept["std"])
        if not path.exists():
            raise ValueError(
                f"{path} is gone, which says how the inputs were normalised: put it back, or give "
                "another --workdir"
            )
        kept = files.read_json(path)
        for name in ("examples", "mean", "std"):
            if name not in kept or name != "examples" and _differ(kept[name], data[name]):
                raise ValueError(
                    f"{path} is damaged: its {name} is {kept.get(name)}: put back what was there"
                )
        if kept["examples"] != len(source):
            raise ValueError(
                f"{data.train.source!r} has {len(source)} examples but had {kept['examples']} when "
                f"{self} began: give another --workdir"
            )
        if kept.get("classes", list(source.classes)) != list(source.classes):
            raise ValueError(
                f"{data.train.source!r} has other classes than when {self} began: give another "
                "--workdir"
            )
        return tuple(kept["mean"]), tuple(kept["std"])


def _measured(source, data) -> dict[str, Any]:
    found: dict[str, Any] = {"examples": len(source), "classes": list(source.classes)}
    found |= {"balanced": True}
    found |= {name: list(data[name]) for name in ("mean", "std")}
    if "auto" in (data.mean, data.std):
        measured = statistics.mean_std(source, data)
        for name, values in zip(("mean", "std"), measured, strict=True):
            if data[name] == "auto":
                found[name] = list(values)
    return found


def _differ(kept, wanted) -> bool:
    return wanted != "auto" and list(kept) != list(wanted)
