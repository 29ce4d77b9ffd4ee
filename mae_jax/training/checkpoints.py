"""Checkpoints of a training state, by orbax: each is what was saved, or it is not used."""

import contextlib
import dataclasses
import json
import logging
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from mae_jax.training.step import TrainState
from mae_jax.weights import fingerprint

_log = logging.getLogger(__name__)
_OLD_NAMES = {"usual": "loss_ema"}  # of fields of the state, in checkpoints of earlier versions


class NotFinite(ValueError):
    """A state that is not to be saved."""


class Checkpoints:
    """The checkpoints `directory/STEP/`, saved in the background; the last `keep` stay.

    Beside the state each holds metadata, as JSON: the fingerprints of its arrays, and what a run
    wants to remember of itself.
    """

    def __init__(self, directory: epath.PathLike, keep: int):
        self.directory = epath.Path(directory)
        self.failures = 0  # saves that failed in a row
        self._saving = False
        # Replicated arrays are written by each device in part, but a part is cut by a program of
        # its own, which is compiled: where that is worth it.
        arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**22)
        kinds = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
        self.handler = ocp.PyTreeCheckpointHandler(type_handler_registry=kinds)
        self.manager = _Manager(
            self.directory,
            item_handlers={"state": self.handler, "facts": ocp.JsonCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                cleanup_tmp_directories=True,
                # Otherwise threads wait minutes for directories that cannot be made.
                async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            ),
        )

    def save(self, state: TrainState, metadata: dict[str, Any], *, wait: bool = False) -> None:
        """Save `state` under its own step, once; `wait` until it is on disk.

        Raises:
          NotFinite: it has values that are not finite; nothing is written.
          OSError: this save, or the one before, which ran in the background, failed. Nothing of it
            is left.
        """
        step, failed = int(state.step), self._finish()
        if step not in self.manager.all_steps():
            sums, wrong = fingerprint.of(state)
            if wrong:
                raise NotFinite(f"step {step} is not finite: {', '.join(wrong[:5])}")
            metadata = metadata | {"fingerprints": sums}
            metadata["checksum"] = _checksum(metadata)
            items: Any = ocp.args.Composite(
                state=ocp.args.PyTreeSave(state),  # pyright: ignore[reportCallIssue]
                facts=ocp.args.JsonSave(metadata),  # pyright: ignore[reportCallIssue]
            )
            try:
                self.manager.save(step, args=items, force=True)
                self._saving = True
            except Exception as error:  # tensorstore and orbax raise nearly every type
                failed = self._forget(error)
        if wait:
            failed = self._finish() or ("" if step in self.manager.all_steps() else failed)
        if failed:
            raise OSError(failed)

    def is_saved(self, step: int) -> bool:
        """Whether `step` is on disk, once what is being saved has come to its end; any thread."""
        try:
            self.manager.wait_until_finished()
        except Exception as error:  # the next `save` of this step tries again
            self._forget(error)
        return (self.directory / str(step)).exists()

    def _finish(self) -> str:
        """Wait for what is being saved; what went wrong with it."""
        saving, self._saving = self._saving, False
        try:
            self.manager.wait_until_finished()
        except Exception as error:
            return self._forget(error)
        self.failures = 0 if saving else self.failures
        return ""

    def _forget(self, error: Exception) -> str:
        """Count a failed save and remove what it left; its reason, in short."""
        self.failures += 1
        self._saving = False
        self._remove_temporary()
        self.manager.reload()  # forget what is not on disk
        return _short(error)

    def _remove_temporary(self) -> None:
        """Remove what an unfinished save left."""
        if jax.process_index() == 0 and self.directory.is_dir():
            for path in self.directory.glob("*.orbax-checkpoint-tmp*"):
                with contextlib.suppress(OSError):  # a thread still writes to it
                    path.rmtree(missing_ok=True)

    def restore_newest(
        self, abstract: TrainState, before: int | None = None
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint whose arrays have the fingerprints that were saved with them.

        Newer ones that are damaged are moved to `damaged/` beside the directory, with a warning.

        Args:
          abstract: the shapes of the state, with their shardings.
          before: prefer those up to this step, and then the next one after it. Later ones than what
            is used are deleted: those steps come again.

        Returns:
          The state and its metadata; None if there is no checkpoint at all.

        Raises:
          ValueError: there are checkpoints, and none is good; nothing is changed.
        """
        self._finish()
        self.manager.reload()
        steps = sorted(self.manager.all_steps(), reverse=True)
        if before is not None:
            steps.sort(key=lambda step: (step > before, abs(step - before)))
        problems: dict[int, str] = {}
        for step in steps:
            try:
                found = self.restore(step, abstract)
            except ValueError as error:
                problems[step] = str(error)
                continue
            self._move_damaged(problems)
            for later in self.manager.all_steps():
                if later > step:
                    self.manager.delete(later)
            return found
        if problems:
            raise ValueError(
                f"no checkpoint in {self.directory} can be used: "
                + "; ".join(problems.values())
                + ". Mend them, or give another --workdir to start again"
            )
        return None

    def _move_damaged(self, problems: dict[int, str]) -> None:
        for step, problem in problems.items():
            target = self.directory.parent / "damaged" / str(step)
            _log.warning("%s: moved to %s, continuing from an older one", problem, target)
            if jax.process_index() == 0:
                target.parent.mkdir(exist_ok=True)
                while target.exists():
                    target = target.with_name(target.name + "_")
                (self.directory / str(step)).rename(target)
        if problems:
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("damaged")
            self.manager.reload()

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state and the metadata saved at `step`, its arrays placed as `abstract` says.

        Raises:
          ValueError: it cannot be read, an array on disk has another name, shape or dtype than
            `abstract` expects, or it is not what was saved; in all processes, if in one.
        """
        name, state, metadata = f"checkpoint {self.directory / str(step)}", None, {}
        problem = f"{name} cannot be read by another process"
        try:
            state, metadata = self._read(self.directory / str(step), abstract)
        except ValueError as error:
            problem = f"{name} {error}"
        read = np.bool_(state is not None)
        if jax.process_count() > 1:  # they compute the fingerprints together, or none does
            read = multihost_utils.process_allgather(read).all()
        if state is None or not read:
            raise ValueError(problem)
        if int(state.step) != step:
            raise ValueError(f"{name} holds step {int(state.step)}")
        sums, _ = fingerprint.of(state)
        expected: dict[str, list[int]] = metadata.pop("fingerprints")
        expected = {_OLD_NAMES.get(name, name): x for name, x in expected.items()}
        if wrong := sorted(
            x for x in sums.keys() | expected.keys() if sums.get(x) != expected.get(x)
        ):
            raise ValueError(f"{name} is not what was saved: {', '.join(wrong[:5])}")
        return state, metadata

    def _read(self, folder: epath.Path, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """This process's share, whatever the others do: orbax's own way waits for them."""
        with _unreadable():
            metadata = json.loads((folder / "facts" / "metadata").read_text())
            if metadata.pop("checksum") != _checksum(metadata):
                raise ValueError("facts")
            tree: Any = self.handler.metadata(folder / "state")
            stored = getattr(tree, "tree", tree)
            names = {new: old for old, new in _OLD_NAMES.items() if old in stored}
        fields = [field.name for field in dataclasses.fields(abstract)]
        wanted: Any = {names.get(x, x): getattr(abstract, x) for x in fields}
        if problems := list(_differences(_described(stored), _described(wanted))):
            raise ValueError(f"does not fit this config: {'; '.join(problems[:5])}")
        args: Any = ocp.args.PyTreeRestore(  # pyright: ignore[reportCallIssue]
            item=wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted)
        )
        with _unreadable():
            found = self.handler.restore(folder / "state", args=args)
        return TrainState(**{x: found[names.get(x, x)] for x in fields}), metadata

    def close(self) -> None:
        """Wait for what is being saved; warn if that fails."""
        if failed := self._finish():
            _log.warning("a checkpoint could not be saved (%s)", failed)
        with contextlib.suppress(OSError):  # of which the warning told
            self.manager.close()
        self._remove_temporary()


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Never ask jax, which counts calls: `StopSignal` asks at others."""
        return False


def ignore_late_errors() -> None:
    """Do not print what is left of a failed read or save of orbax, which was reported already.

    These are unfinished coroutines of orbax, and the event loop that closed before tensorstore was
    done. For commands: it changes the whole process.
    """
    unraisable, unhandled = sys.unraisablehook, sys.excepthook

    def on_unraisable(late: Any) -> None:
        code = getattr(late.object, "cr_code", None)  # of a coroutine
        if not _is_closed_loop(late.exc_value) and "orbax" not in getattr(code, "co_filename", ""):
            unraisable(late)

    def on_unhandled(kind: Any, error: BaseException, trace: Any) -> None:
        if not _is_closed_loop(error):
            unhandled(kind, error, trace)

    sys.unraisablehook, sys.excepthook = on_unraisable, on_unhandled


def _is_closed_loop(error: BaseException | None) -> bool:
    return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"


@contextlib.contextmanager
def _unreadable() -> Iterator[None]:
    """Inside, whatever is raised becomes one short ValueError, but for a lack of memory."""
    try:
        yield
    except Exception as error:  # tensorstore and orbax raise nearly every type on damaged files
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise
        raise ValueError(f"cannot be read ({_short(error, 80, 0)})") from error


def _short(error: Exception, head: int = 100, tail: int = 120) -> str:
    """The two ends of its text, which may be pages."""
    text = " ".join(str(error).split()) or type(error).__name__
    is_long = len(text) > head + tail + 30
    return f"{text[:head]} ... {text[len(text) - tail :]}".rstrip() if is_long else text


def _checksum(metadata: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(metadata, sort_keys=True).encode())


def _described(tree: Any) -> dict[str, str]:
    """`name -> float32[3, 4]` of every array of a tree, whatever its containers are."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{x.dtype}{list(x.shape)}"
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def _differences(stored: dict[str, str], wanted: dict[str, str]) -> Iterator[str]:
    for name in sorted(stored.keys() | wanted.keys()):
        if stored.get(name) != wanted.get(name):
            yield f"{name} is {stored.get(name, 'missing')}, not {wanted.get(name, 'expected')}"
