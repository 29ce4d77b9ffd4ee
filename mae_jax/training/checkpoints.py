"""Checkpoints of a training state by orbax: arrays are restored bit for bit, or refused."""

import contextlib
import dataclasses
import json
import logging
import sys
import time
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
_OLD_NAMES = {"usual": "loss_ema"}  # a field's name in an earlier version -> its name now


class NotFinite(ValueError):
    """A state that is not saved, because some of its values are not finite."""


class Checkpoints:
    """The checkpoints `directory/STEP/`, saved in the background; the last `keep` stay.

    Each checkpoint holds a state and its metadata as JSON: the fingerprints of the arrays, and the
    values that the trainer adds.
    """

    def __init__(self, directory: epath.PathLike, keep: int):
        self.directory = epath.Path(directory)
        self.failures = 0  # saves that failed in a row
        self._saving = False
        # If each device writes a part of a replicated array, a program must be compiled that cuts
        # this array: that pays only for large arrays.
        arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**22)
        registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
        self.handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
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
        """Save `state` under its own step, once; `wait` until the checkpoint is on disk.

        Raises:
          NotFinite: some values are not finite; nothing is written.
          OSError: this save, or the one before in the background, failed and left nothing behind.
        """
        step, failure = int(state.step), self._finish()
        if step not in self.manager.all_steps():
            sums, not_finite = fingerprint.of(state)
            if not_finite:
                raise NotFinite(f"step {step} is not finite: {', '.join(not_finite[:5])}")
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
                failure = self._forget(error)
        if wait:
            failure = self._finish() or ("" if step in self.manager.all_steps() else failure)
        if failure:
            raise OSError(failure)

    def is_saved(self, step: int) -> bool:
        """Return whether `step` is on disk, after the save in the background; for any thread."""
        self._finish()  # after a failure the next `save` of this step tries again
        return (self.directory / str(step)).exists()

    def _finish(self) -> str:
        """Wait for the save in the background; return the reason of its failure, or ""."""
        saving, self._saving = self._saving, False
        try:
            self.manager.wait_until_finished()
        except Exception as error:
            return self._forget(error)
        self.failures = 0 if saving else self.failures
        return ""

    def _forget(self, error: Exception) -> str:
        """Count a failed save, remove its files, and return its reason in short."""
        self.failures += 1
        self._saving = False
        self._remove_temporary()
        self.manager.reload()  # forget the steps that are not on disk
        return _short(error)

    def _remove_temporary(self) -> bool:
        """Remove unfinished saves; return whether all are gone."""
        if jax.process_index() or not self.directory.is_dir():
            return True
        for path in self.directory.glob("*.orbax-checkpoint-tmp*"):
            with contextlib.suppress(OSError):  # a thread still writes to the directory
                path.rmtree(missing_ok=True)
        return not any(self.directory.glob("*.orbax-checkpoint-tmp*"))

    def restore_newest(
        self, abstract: TrainState, up_to: int | None = None
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """Return the newest checkpoint whose arrays have the fingerprints saved with them.

        Damaged checkpoints that would come first are moved to `damaged/` beside the directory, with
        a warning. Checkpoints of later steps are deleted, as those steps are trained again.

        Args:
          abstract: the shapes of the state, with their shardings.
          up_to: prefer the newest checkpoint up to this step, then the first one after the step.

        Returns:
          The state and its metadata; None if there is no checkpoint at all.

        Raises:
          ValueError: there are checkpoints, and none is good; nothing is changed.
        """
        self._finish()
        self.manager.reload()
        steps = sorted(self.manager.all_steps(), reverse=True)
        if up_to is not None:
            steps.sort(key=lambda step: (step > up_to, abs(step - up_to)))
        problems: dict[int, str] = {}
        for step in steps:
            try:
                restored = self.restore(step, abstract)
            except ValueError as error:
                problems[step] = str(error)
                continue
            self._move_damaged(problems)
            for later in self.manager.all_steps():
                if later > step:
                    self.manager.delete(later)
            return restored
        if problems:
            raise ValueError(
                f"no checkpoint in {self.directory} can be used: {'; '.join(problems.values())}. "
                "Mend them, or give another --workdir to start again"
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
        """Return the state saved at `step`, with the shardings of `abstract`, and its metadata.

        Raises:
          ValueError: the checkpoint cannot be read, does not fit `abstract`, or its arrays are not
            those that were saved; all processes raise it if one does.
        """
        name, state, metadata = f"checkpoint {self.directory / str(step)}", None, {}
        problem = f"{name} cannot be read by another process"
        try:
            state, metadata = self._read(self.directory / str(step), abstract)
        except ValueError as error:
            problem = f"{name} {error}"
        is_read = _agree(state is not None)  # all processes compute the fingerprints, or none does
        if state is None or not is_read:
            raise ValueError(problem)
        sums, _ = fingerprint.of(state)
        saved: dict[str, Any] = metadata.pop("fingerprints")
        saved = {_OLD_NAMES.get(array, array): pair for array, pair in saved.items()}
        damaged = _different(sums, saved)
        if not _agree(not damaged):
            arrays = ", ".join(damaged[:5]) or "arrays of another process"
            raise ValueError(f"{name} is not what was saved: {arrays}")
        if int(state.step) != step:  # in all processes, as the arrays are those that were saved
            raise ValueError(f"{name} holds step {int(state.step)}")
        return state, metadata

    def _read(self, folder: epath.Path, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Read this process's shards; `restore` of the manager would wait for the others."""
        with _unreadable():
            metadata = json.loads((folder / "facts" / "metadata").read_text())
            if metadata.pop("checksum") != _checksum(metadata):
                raise ValueError("its metadata are damaged")
            tree: Any = self.handler.metadata(folder / "state")
            tree = getattr(tree, "tree", tree)
            old = {new: old for old, new in _OLD_NAMES.items() if old in tree}
        fields = [field.name for field in dataclasses.fields(abstract)]
        item: Any = {old.get(name, name): getattr(abstract, name) for name in fields}
        stored, expected = _describe(tree), _describe(item)
        if different := _different(stored, expected):
            sentences = (
                f"{name} is {stored.get(name, 'missing')}, not {expected.get(name, 'expected')}"
                for name in different[:5]
            )
            raise ValueError(f"does not fit this config: {'; '.join(sentences)}")
        args: Any = ocp.args.PyTreeRestore(  # pyright: ignore[reportCallIssue]
            item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item)
        )
        with _unreadable():
            restored = self.handler.restore(folder / "state", args=args)
        return TrainState(**{name: restored[old.get(name, name)] for name in fields}), metadata

    def close(self) -> None:
        """Wait for the save in the background; warn if it failed."""
        if failure := self._finish():
            _log.warning("a checkpoint could not be saved (%s)", failure)
        with contextlib.suppress(OSError):  # the warning has named the failure
            self.manager.close()
        for _ in range(20):  # threads of a failed save may still write for a while
            if self._remove_temporary():
                break
            time.sleep(0.1)


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Do not ask jax, which counts the calls: `StopSignal` asks at other steps."""
        return False


def ignore_late_errors() -> None:
    """Do not print late errors of a failed read or save of orbax, which was reported already.

    They come from unfinished coroutines of orbax, and from an event loop that closed before
    tensorstore was done. This is for commands, because it changes the whole process.
    """
    unraisable, unhandled = sys.unraisablehook, sys.excepthook

    def on_unraisable(late: Any) -> None:
        code = getattr(late.object, "cr_code", None)  # the code of a coroutine
        if not _is_closed_loop(late.exc_value) and "orbax" not in getattr(code, "co_filename", ""):
            unraisable(late)

    def on_unhandled(kind: Any, error: BaseException, trace: Any) -> None:
        if not _is_closed_loop(error):
            unhandled(kind, error, trace)

    sys.unraisablehook, sys.excepthook = on_unraisable, on_unhandled


def _agree(is_good: bool) -> bool:
    """Return whether all processes say so."""
    if jax.process_count() == 1:
        return is_good
    return bool(multihost_utils.process_allgather(np.bool_(is_good)).all())


def _is_closed_loop(error: BaseException | None) -> bool:
    return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"


@contextlib.contextmanager
def _unreadable() -> Iterator[None]:
    """Turn every error except a lack of memory into one short ValueError."""
    try:
        yield
    except Exception as error:  # tensorstore and orbax raise nearly every type on damaged files
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise
        raise ValueError(f"cannot be read ({_short(error)})") from error


def _short(error: Exception) -> str:
    """Return the two ends of the text of an error, which may be pages long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 250 else f"{text[:100]} ... {text[-120:]}"


def _checksum(metadata: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(metadata, sort_keys=True).encode())


def _describe(tree: Any) -> dict[str, str]:
    """Return `name -> float32[3, 4]` of every array of a tree, whatever its containers are."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{x.dtype}{list(x.shape)}"
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def _different(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Return the keys that only one of the dicts has, or that have different values."""
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
