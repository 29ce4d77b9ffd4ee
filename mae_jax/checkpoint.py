"""Checkpoints of a training state, by orbax."""

import logging
from collections.abc import Iterable
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from mae_jax.step import TrainState

logging.getLogger("absl").setLevel(logging.WARNING)  # orbax logs a page for each save


def manager(directory: epath.PathLike, keep: int) -> ocp.CheckpointManager:
    """The checkpoints `directory/STEP/`, saved in the background; the last `keep` are kept."""
    return ocp.CheckpointManager(
        epath.Path(directory),
        item_handlers={"state": ocp.PyTreeCheckpointHandler()},
        options=ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True),
    )


def save(checkpoints: ocp.CheckpointManager, state: TrainState, *, wait: bool = False) -> None:
    """Save `state` under its own step, once; `wait` until it is on disk."""
    step = int(state.step)
    if step not in checkpoints.all_steps():
        checkpoints.save(step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(state)))  # pyright: ignore[reportCallIssue]
    if wait:
        checkpoints.wait_until_finished()


def restore(checkpoints: ocp.CheckpointManager, abstract: TrainState, step: int) -> TrainState:
    """The state saved at `step`, its arrays as `abstract` says, placed by its shardings.

    Raises:
      ValueError: it cannot be read, or an array on disk has another name, shape or dtype than
        `abstract` expects.
    """
    try:
        metadata: Any = checkpoints.item_metadata(step)
        stored = _described(metadata["state"].tree)
    except Exception as error:  # tensorstore and orbax raise nearly every type on damaged files
        raise ValueError(_damaged(checkpoints, step)) from error
    if problems := list(_differences(stored, _described(abstract))):
        raise ValueError(f"checkpoint {step} does not fit this config: {'; '.join(problems[:5])}")
    restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
    args: Any = ocp.args.PyTreeRestore(item=abstract, restore_args=restore_args)  # pyright: ignore
    try:
        return checkpoints.restore(step, args=ocp.args.Composite(state=args))["state"]
    except Exception as error:
        raise ValueError(_damaged(checkpoints, step)) from error


def _damaged(checkpoints: ocp.CheckpointManager, step: int) -> str:
    older = [other for other in checkpoints.all_steps() if other < step]
    return (
        f"checkpoint {checkpoints.directory / str(step)} cannot be read: delete that folder to "
        + (f"continue from step {max(older)}" if older else "start again")
    )


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
