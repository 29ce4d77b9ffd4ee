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


def restore(
    checkpoints: ocp.CheckpointManager, abstract: TrainState, placement: TrainState, step: int
) -> TrainState:
    """The state saved at `step`: arrays as `abstract` says, each placed as `placement` says.

    Raises:
      ValueError: an array on disk has another name, shape or dtype than `abstract` expects.
    """
    metadata: Any = checkpoints.item_metadata(step)
    problems = list(_differences(_described(metadata["state"].tree), _described(abstract)))
    if problems:
        raise ValueError(f"checkpoint {step} does not fit this config: {'; '.join(problems[:5])}")
    wanted = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, placement
    )
    restore_args = ocp.checkpoint_utils.construct_restore_args(wanted)
    args: Any = ocp.args.PyTreeRestore(item=wanted, restore_args=restore_args)  # pyright: ignore
    return checkpoints.restore(step, args=ocp.args.Composite(state=args))["state"]


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
