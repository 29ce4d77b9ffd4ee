"""Checkpoints of a training state, by orbax: each is what was saved, or it is not used."""

import contextlib
import gc
import json
import logging
import re
import sys
import time
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from mae_jax.output import console
from mae_jax.training.step import TrainState
from mae_jax.weights import fingerprint

# orbax logs a page for each save, and a traceback for each error, which it raises later
for _name in ("absl", "asyncio"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


class NotFinite(ValueError):
    """A state that is not to be saved."""


class Checkpoints:
    """The checkpoints `directory/STEP/`, saved in the background; the last `keep` stay.

    Beside the state each holds facts, as JSON: the fingerprints of its arrays, and what a run wants
    to remember of itself.
    """

    def __init__(self, directory: epath.PathLike, keep: int):
        self.directory = epath.Path(directory)
        self.failures, self._failed = 0, False  # saves that failed in a row; whether any did
        self._late = False  # whether threads of what failed, or of a read, may still go on
        self._saving = False
        self._hooks = sys.unraisablehook, sys.excepthook
        sys.unraisablehook, sys.excepthook = self._unraisable, self._unhandled
        # What many devices have is written by each in part, but a part is cut by a program of its
        # own, which is compiled: where that is worth it.
        whole = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**22)
        kinds = ocp.type_handlers.create_type_handler_registry((jax.Array, whole))
        self.handler = ocp.PyTreeCheckpointHandler(type_handler_registry=kinds)
        self.manager = ocp.CheckpointManager(
            self.directory,
            item_handlers={
                "state": self.handler,
                "facts": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                cleanup_tmp_directories=True,
                # else, where they cannot be made, threads wait minutes for them, at the exit too
                async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            ),
        )
        # It would ask jax at steps of its own, of which `Interruption` counts others.
        self.manager.reached_preemption = lambda step: False

    def save(self, state: TrainState, facts: dict[str, Any], *, wait: bool = False) -> None:
        """Save `state` under its own step, once; `wait` until it is on disk.

        Raises:
          NotFinite: it has values that are not; nothing is written.
          OSError: this save, or the one before, which ran in the background, failed. Nothing of it
            is left.
        """
        step, failed = int(state.step), self._finish()
        if step not in self.manager.all_steps():
            sums, wrong = fingerprint.of(state)
            if wrong:
                raise NotFinite(f"step {step} is not finite: {', '.join(wrong[:5])}")
            facts = facts | {"fingerprints": sums}
            facts["checksum"] = _checksum(facts)
            everything: Any = ocp.args.Composite(
                state=ocp.args.PyTreeSave(state),  # pyright: ignore[reportCallIssue]
                facts=ocp.args.JsonSave(facts),  # pyright: ignore[reportCallIssue]
            )
            try:
                self.manager.save(step, args=everything, force=True)
                self._saving = True
            except Exception as error:  # tensorstore and orbax raise nearly every type
                failed = self._forget(error)
        if wait:
            failed = self._finish() or ("" if step in self.manager.all_steps() else failed)
        if failed:
            raise OSError(failed)

    def saved(self, step: int) -> bool:
        """Whether a save of `step` has come to its end, which is waited for; from any thread."""
        with contextlib.suppress(Exception):
            self.manager.wait_until_finished()
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
        self._failed = self._late = True
        self._remove()
        self.manager.reload()  # forget what is not on disk
        return _short(error)

    def _unraisable(self, found: Any) -> None:
        """After an error there would be a traceback for each other array that was under way."""
        told = f"{found.object} {found.exc_value}"
        if not re.search("Event loop is closed|orbax|serialize|_read_|write_fragment", told):
            self._hooks[0](found)

    def _unhandled(self, kind: Any, error: BaseException, trace: Any) -> None:
        """And those that tensorstore's own threads end with."""
        if str(error) != "Event loop is closed":
            self._hooks[1](kind, error, trace)

    def _remove(self) -> bool:
        """Remove what an unfinished save left; whether there was any."""
        if jax.process_index() or not self.directory.is_dir():
            return False
        for path in (left := list(self.directory.glob("*.orbax-checkpoint-tmp*"))):
            with contextlib.suppress(OSError):  # it is written to: see `close`
                path.rmtree(missing_ok=True)
        return bool(left)

    def newest(
        self, abstract: TrainState, say: Callable[[str], None], before: int | None = None
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint whose arrays have the fingerprints that were saved with them.

        Its arrays are as `abstract` says, placed by its shardings, and its facts. None if there is
        none at all. Those that are newer and damaged are moved to `damaged/` beside the directory,
        and named to `say`.

        Args:
          before: prefer those up to this step, and then the next one after it. Later ones than what
            is used are deleted: they come again.

        Raises:
          ValueError: there are checkpoints, and none is good; nothing is changed.
        """
        self._finish()
        steps = sorted(self.manager.all_steps(read=True), reverse=True)
        if before is not None:
            steps.sort(key=lambda step: (step > before, abs(step - before)))
        problems: dict[int, str] = {}
        for step in steps:
            try:
                found = self.restore(step, abstract)
            except ValueError as error:
                problems[step] = str(error)
                continue
            self._aside(problems, say)
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

    def _aside(self, problems: dict[int, str], say: Callable[[str], None]) -> None:
        for step, problem in problems.items():
            place = self.directory.parent / "damaged" / str(step)
            say(f"{problem}: moved to {place}, continuing from an older one")
            if jax.process_index() == 0:
                place.parent.mkdir(exist_ok=True)
                while place.exists():
                    place = place.with_name(place.name + "_")
                (self.directory / str(step)).rename(place)
        if problems:
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("damaged")
            self.manager.reload()

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state and the facts saved at `step`, its arrays placed as `abstract` says.

        Raises:
          ValueError: it cannot be read, an array on disk has another name, shape or dtype than
            `abstract` expects, or it is not what was saved; in all processes, if in one.
        """
        name, state, facts = f"checkpoint {self.directory / str(step)}", None, {}
        problem = f"{name} cannot be read by another process"
        try:
            state, facts = self._read(self.directory / str(step), abstract)
        except ValueError as error:
            problem = f"{name} {error}"
        read = np.bool_(state is not None)
        if jax.process_count() > 1:  # they compute the fingerprints together, or none does
            read = multihost_utils.process_allgather(read).all()
        if state is None or not read:
            raise ValueError(problem)
        if int(state.step) != step:
            raise ValueError(f"{name} holds step {int(state.step)}")
        (sums, _), expected = fingerprint.of(state), facts.pop("fingerprints")
        if wrong := sorted(
            x for x in sums.keys() | expected.keys() if sums.get(x) != expected.get(x)
        ):
            raise ValueError(f"{name} is not what was saved: {', '.join(wrong[:5])}")
        return state, facts

    def _read(self, place: epath.Path, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """This process's share, whatever the others do: orbax's own way waits for them."""
        try:
            facts = json.loads((place / "facts" / "metadata").read_text())
            if facts.pop("checksum") != _checksum(facts):
                raise ValueError("facts")
            tree: Any = self.handler.metadata(place / "state")
            stored = _described(getattr(tree, "tree", tree))
        except Exception as error:  # tensorstore and orbax raise nearly every type on damaged files
            self._late = True
            raise ValueError(f"cannot be read ({_short(error, 80, 0)})") from error
        if problems := list(_differences(stored, _described(abstract))):
            raise ValueError(f"does not fit this config: {'; '.join(problems[:5])}")
        restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
        wanted: Any = ocp.args.PyTreeRestore(item=abstract, restore_args=restore_args)  # pyright: ignore
        try:
            return self.handler.restore(place / "state", args=wanted), facts
        except Exception as error:
            if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
                raise
            self._late = True
            raise ValueError(f"cannot be read ({_short(error, 80, 0)})") from error

    def close(self) -> None:
        """Wait for what is being saved; say on stderr if that fails."""
        if failed := self._finish():
            console.tell(f"a checkpoint could not be saved ({failed})")
        with contextlib.suppress(OSError):  # which was told above
            self.manager.close()
        clean, until = 0, time.monotonic() + 5
        while clean < 1 + 9 * self._failed and time.monotonic() < until:
            clean = 0 if self._remove() else clean + 1  # threads still write, and make it anew
            time.sleep(0.05 * self._failed)
        if self._late:  # what waits in vain is dropped, and threads may go on: nothing is said
            gc.collect()
        else:
            sys.unraisablehook, sys.excepthook = self._hooks


def _short(error: Exception, head: int = 100, tail: int = 120) -> str:
    """The two ends of its text, which may be pages."""
    text = " ".join(str(error).split()) or type(error).__name__
    long = len(text) > head + tail + 30
    return f"{text[:head]} ... {text[len(text) - tail :]}".rstrip() if long else text


def _checksum(facts: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(facts, sort_keys=True).encode())


def _described(tree) -> dict[str, str]:
    """`name -> float32[3, 4]` of every array of a tree, whatever its containers are."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{x.dtype}{list(x.shape)}"
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def _differences(stored: dict[str, str], wanted: dict[str, str]) -> Iterable[str]:
    for name in sorted(stored.keys() | wanted.keys()):
        if stored.get(name) != wanted.get(name):
            yield f"{name} is {stored.get(name, 'missing')}, not {wanted.get(name, 'expected')}"
