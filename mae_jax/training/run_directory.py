"""What belongs to the directory of a run: its config, its statistics, and one process at a time."""

import contextlib
import json
import os
from collections.abc import Iterator

import jax
from etils import epath

from mae_jax.config import schema
from mae_jax.data import statistics
from mae_jax.output import console, files
from mae_jax.training import metric_writer


def path_of(place: epath.PathLike) -> epath.Path:
    """Absolute, or as it is where it is not of this machine (`gs://...`)."""
    return epath.Path(place) if "://" in str(place) else epath.Path(os.path.abspath(place))


def refuse_lost(workdir: epath.Path, config) -> None:
    """Raise ValueError if `workdir`, which has no checkpoint, must have had some."""
    path, most = workdir / "metrics.jsonl", 0.0
    if path.exists():
        lines = path.read_bytes().decode(errors="replace").splitlines()
        steps = [metric_writer.step_of(line) for line in lines]
        most = max((step for step in steps if step < float("inf")), default=0.0)
    # without a first one a run ends earlier
    late = most > config.save_every * max(2, config.recovery.failed_saves)
    if late or (workdir / "report.txt").exists():
        raise ValueError(
            f"{workdir} was trained to step {most:.0f}, and has lost its checkpoints: put them "
            "back, or give another --workdir to begin again"
        )


def refuse_another(workdir: epath.Path, config) -> None:
    """Raise ValueError, with the fields that differ, if `workdir` belongs to another config."""
    path = workdir / "config.json"
    if not path.exists():
        if (workdir / "checkpoints").exists() and any((workdir / "checkpoints").iterdir()):
            raise ValueError(
                f"{workdir} has checkpoints and no config.json, which says of what: put that back, "
                "or give another --workdir"
            )
        return
    if "://" not in str(workdir) and not (workdir / "checkpoints").exists():
        raise ValueError(
            f"{workdir} has lost its checkpoints/: put them back, or remove config.json there, "
            "too, to begin again"
        )
    if different := schema.differences(files.read_json(path), config):
        raise ValueError(
            f"{workdir} belongs to another config ({'; '.join(different)}): give another "
            "--workdir, or the same values"
        )


@contextlib.contextmanager
def locked(workdir: epath.Path) -> Iterator[None]:
    """Inside, no other process of this machine (or of its network file system) trains there.

    The lock ends with the process, however that ends. Object stores have none.

    Raises:
      ValueError: another process has it.
    """
    if "://" in str(workdir) or jax.process_index():
        yield
        return
    import fcntl  # here, as Windows has none

    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = open(workdir / "lock", "a+")
    except OSError as error:
        raise ValueError(
            f"--workdir={workdir} cannot be written to ({error.strerror}): give another one, or "
            "mend that"
        ) from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(
                f"{workdir} is in use by another process ({file.read().strip()}): wait for it, or "
                "give another --workdir"
            ) from None
        except OSError as error:  # a file system without locks
            why = f"cannot be locked ({error}): let no other process train there"
            console.tell(f"{workdir} {why}")
        file.truncate(0)
        file.write(f"{os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        yield


def draws_balanced(workdir: epath.Path) -> bool:
    """Whether `data.examples` is balanced over classes, which it was not in runs of version 0.1."""
    path = workdir / "statistics.json"
    began = path.exists() and (workdir / "config.json").exists()
    return not began or files.read_json(path).get("balanced", False)


def statistics_of(source, config, workdir: epath.Path) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel: of the config, or measured once if "auto".

    They are kept in the work directory, with the names of the classes and the number of examples:
    schedule and order depend on it, so a run does not go on with more or fewer.
    """
    path = workdir / "statistics.json"
    if not path.exists() and (workdir / "config.json").exists():
        raise ValueError(
            f"{path} is gone, which says how the inputs were normalised: put it back, or give "
            "another --workdir"
        )
    if path.exists() and (workdir / "config.json").exists():  # without it the run never began
        kept = files.read_json(path)
        for name in ("examples", "mean", "std"):
            if name not in kept or name != "examples" and _differ(kept[name], config.data[name]):
                raise ValueError(
                    f"{path} is damaged: its {name} is {kept.get(name)}: put back what was there"
                )
        if kept["examples"] != len(source):
            raise ValueError(
                f"{config.data.train.source!r} has {len(source)} examples but had "
                f"{kept['examples']} when {workdir} began: give another --workdir"
            )
        if kept.get("classes", list(source.classes)) != list(source.classes):
            raise ValueError(
                f"{config.data.train.source!r} has other classes than when {workdir} began: give "
                "another --workdir"
            )
    else:
        kept: dict = {"examples": len(source), "classes": list(source.classes), "balanced": True}
        kept |= {name: list(config.data[name]) for name in ("mean", "std")}
        if "auto" in (config.data.mean, config.data.std):
            measured = statistics.mean_std(source, config.data)
            for name, values in zip(("mean", "std"), measured, strict=True):
                if config.data[name] == "auto":
                    kept[name] = list(values)
        if jax.process_index() == 0:
            workdir.mkdir(parents=True, exist_ok=True)
            files.write_whole(path, json.dumps(kept, indent=2) + "\n")
    return kept["mean"], kept["std"]


def _differ(kept, wanted) -> bool:
    return wanted != "auto" and list(kept) != list(wanted)
