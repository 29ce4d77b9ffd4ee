"""The work directory of a run: its config, its statistics, and one process at a time."""

import contextlib
import json
import logging
import math
import os
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from mae_jax.config import changes, schema
from mae_jax.data import statistics, target_scale
from mae_jax.data.sources import identity
from mae_jax.data.target_scale import TargetScale
from mae_jax.output import files
from mae_jax.training import metric_writer

_log = logging.getLogger(__name__)
WAYS = {  # to change a key of a run that has begun
    "epochs": " (--extend=EPOCHS trains for more)",
    "data.train.source": " (--relocate=OLD=NEW says that the data moved)",
    "init.checkpoint": " (--relocate=OLD=NEW says that the file moved)",
}


class RunDirectory:
    """The files of a run, on a local disk or in a bucket, and the checks that they fit the run."""

    def __init__(self, path: epath.PathLike):
        self.is_local = "://" not in str(path)
        self.path = epath.Path(os.path.abspath(path) if self.is_local else path)
        self.config = self.path / "config.json"
        self.changes = changes.Changes()  # since the run began
        self.measured_file = self.path / "statistics.json"
        self.checkpoints = self.path / "checkpoints"
        self.rewind = self.path / "rewind.json"
        self.report = self.path / "report.txt"

    def __str__(self) -> str:
        return str(self.path)

    @property
    def has_begun(self) -> bool:
        return self.config.exists()

    def stored_config(self) -> dict[str, Any] | None:
        """Return the content of config.json, or None if it is missing; ValueError if damaged."""
        return files.read_json(self.config) if self.has_begun else None

    def write_config(self, config) -> None:
        """Write config.json, unless the run has begun."""
        if jax.process_index() == 0 and not self.has_begun:
            self.rewind.unlink(missing_ok=True)  # left by a run whose config was removed
            files.write_whole(self.config, schema.to_json(config))

    def newest_step(self) -> int:
        """Return the step of the newest checkpoint, good or not, or 0."""
        folder = self.checkpoints
        return max(ocp.utils.checkpoint_steps(folder) if folder.exists() else [], default=0)

    def write_changes(self) -> None:
        """Write `changes.json` if it differs; the report of fewer epochs gets another name.

        A run that is killed between the two has changed nothing, and makes its report again.
        """
        if jax.process_index() or self.changes == (stored := changes.read(self.path)):
            return
        if new := self.changes.extended[len(stored.extended) :]:
            if self.report.exists():
                self.report.replace(self.report.with_name(f"report_{new[0].step:08}.txt"))
        files.write_whole(self.path / changes.FILE, self.changes.model_dump_json(indent=2) + "\n")

    def stored_rewind(self) -> dict[str, Any]:
        """Return the newest rewind: its target `step`, and the counts of a `Recovery` after it."""
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
        stored = self.changes.applied(self.stored_config() or {})
        if different := schema.differences(stored, config):
            listed = "; ".join(text + WAYS.get(text.partition(":")[0], "") for text in different)
            raise ValueError(
                f"{self} belongs to another config ({listed}): give another "
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
        """Lock the directory against other processes of this machine or its network file system.

        The lock ends with the process, however the process ends. Object stores have no locks. Raise
        ValueError if another process has the lock.
        """
        if not self.is_local or jax.process_index():
            yield
            return
        import fcntl  # not at the top: Windows has no fcntl

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
        began = self.has_begun and self.measured_file.exists()
        return not began or files.read_json(self.measured_file).get("balanced", False)

    def measured(self, source, data) -> Any:
        """Return the section `data` of the run with its range, means and deviations as numbers.

        `statistics.json` keeps these, with the names of the classes and the number of training
        examples, which must not change: the schedule and the order depend on the number.

        Raises:
          ValueError: the file is gone or damaged, or the source is another one.
        """
        keys = [name for name in ("range", "mean", "std") if name in data]
        if not self.has_begun:
            stored: dict[str, Any] = {"examples": len(source), "classes": list(source.classes)}
            stored |= {"balanced": True, "checksum": identity.checksum(source)}
            found = {name: data[name] for name in keys}
            if "range" in found:
                found["range"] = statistics.resolve_range(source, data)
            if "auto" in (data.mean, data.std) or found.get("range") == "data":
                measured = statistics.measure(source, data, scale=found.get("range"))
                given = {n: x for n, x in found.items() if n != "range" and x != "auto"}
                found = {name: measured[name] for name in keys} | given
            stored |= {n: x if isinstance(x, str) else list(x) for n, x in found.items()}
            if jax.process_index() == 0:
                self.path.mkdir(parents=True, exist_ok=True)
                files.write_whole(self.measured_file, json.dumps(stored, indent=2) + "\n")
            return _with(data, stored, keys)
        if not self.measured_file.exists():
            raise ValueError(
                f"{self.measured_file} is gone, which says how the inputs were normalised: put it "
                "back, or give another --workdir"
            )
        stored = files.read_json(self.measured_file)
        if "range" in keys:
            stored.setdefault("range", "auto")  # of runs of earlier versions
        for name in ("examples", *keys):
            value = stored.get(name)
            free = name == "examples" or data[name] in ("auto", "data")
            if value is None or not (free or value in (data[name], list(data[name]))):
                raise ValueError(
                    f"{self.measured_file} is damaged: its {name} is {value}: restore the file"
                )
        ending = f"when {self} began: give another --workdir"
        if stored["examples"] != len(source):
            raise ValueError(
                f"{data.train.source!r} has {len(source)} examples but had {stored['examples']} "
                f"{ending}"
            )
        if stored.get("classes", list(source.classes)) != list(source.classes):
            raise ValueError(f"{data.train.source!r} has other classes than {ending}")
        if "checksum" not in stored and self.changes.relocated:
            text = "%s, of an earlier version, has no checksum: only the %d examples were counted"
            _log.warning(text, self.measured_file, len(source))
        elif stored.get("checksum", checksum := identity.checksum(source)) != checksum:
            raise ValueError(
                f"the names or labels of the examples of {data.train.source!r} are not those "
                f"{ending}"
            )
        return _with(data, stored, keys)

    def target_scale(self, source) -> TargetScale:
        """Return the scale of the targets of a source, measured once: see `statistics`.

        Raises:
          ValueError: `statistics.json` has other targets or none, or a target has no scale.
        """
        if not self.has_begun:
            scale = target_scale.measure(source)
            if jax.process_index() == 0:
                stored = files.read_json(self.measured_file) | {"targets": scale._asdict()}
                files.write_whole(self.measured_file, json.dumps(stored, indent=2) + "\n")
            return scale
        try:
            scale = TargetScale.of(files.read_json(self.measured_file)["targets"])
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{self.measured_file} is damaged: its targets have no scale: restore the file"
            ) from error
        if target_scale.names_of(source, len(scale.names)) != scale.names:
            raise ValueError(f"the source has other targets than {scale.names} when {self} began")
        return scale


def _with(data: Any, stored: dict[str, Any], keys: list[str]) -> Any:
    """Return a section with other values of its keys."""
    values = {name: stored[name] for name in keys}
    tuples = {name: x if isinstance(x, str) else tuple(x) for name, x in values.items()}
    return data.model_copy(update=tuples)
