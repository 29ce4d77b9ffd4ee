"""Flipped bits of a checkpoint; for chaos_inputs.py."""

import contextlib
import functools
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from chaos_reading import Case, Failed, check

FLIPS = 60


class Captured(Exception):
    pass


def expected_state(arguments: list[str], workdir: Path) -> Any:
    """The arrays that training wants to restore, with their places: asked of training itself."""
    from mae_jax.config import command_line
    from mae_jax.train import train
    from mae_jax.training import checkpoints as checkpoint

    def capture(self, abstract, *_):
        raise Captured(abstract)

    kind: Any = checkpoint.Checkpoints
    original, kind.newest = kind.newest, capture
    try:
        train(*command_line.parse([*arguments, f"--workdir={workdir}"]))
    except Captured as captured:
        return captured.args[0]
    finally:
        kind.newest = original
    raise Failed("training restores nothing")


def restored(checkpoints: Path, abstract: Any) -> tuple[int, dict[str, bytes], list[str]]:
    """What training goes on from: the step, the bits of all arrays, and what was said."""
    import jax

    from mae_jax.training import checkpoints as checkpoint

    said: list[str] = []
    with contextlib.closing(checkpoint.Checkpoints(checkpoints, 9)) as manager:
        found = manager.newest(abstract, said.append)
    if not found:
        raise Failed("nothing restored")
    state, _ = found
    named = jax.tree_util.tree_leaves_with_path(jax.device_get(state))
    return int(state.step), {str(p): np.asarray(x).tobytes() for p, x in named}, said


def flips(arguments: list[str], checkpoints: Path) -> Iterator[Case]:
    """Sixty flipped bits of the newest of two checkpoints, spread over its files."""
    steps = sorted(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit())
    older, newest = steps[-2:]
    abstract = expected_state(arguments, checkpoints.parent)
    true = restored(checkpoints, abstract)
    shutil.move(checkpoints / str(newest), checkpoints.parent / "aside")
    before = restored(checkpoints, abstract)
    shutil.move(checkpoints.parent / "aside", checkpoints / str(newest))
    check((true[0], before[0]) == (newest, older), "the undamaged ones are not restored")

    root = checkpoints / str(newest)
    files = sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())
    sizes = [(root / file).stat().st_size for file in files]
    draw = random.Random(0)
    chosen = [file for file, size in zip(files, sizes, strict=True) if size][:FLIPS]
    chosen += draw.choices(files, sizes, k=FLIPS - len(chosen))

    def flip(file: Path, at: int, bit: int, place: Path) -> str:
        work = place / "run" / "checkpoints"
        shutil.copytree(checkpoints, work)
        data = bytearray((work / str(newest) / file).read_bytes())
        data[at] ^= 1 << bit
        (work / str(newest) / file).write_bytes(data)
        step, bits, said = restored(work, abstract)
        if step == newest:
            check(bits == true[1], "silent: other bits are restored without a word")
            return "carried nothing: the same bits are restored"
        check(step == older and bits == before[1], f"step {step} with other bits")
        check(any(str(newest) in text for text in said), f"silent: step {older}, said {said}")
        return f"named, step {step} is used: {said[0].partition(':')[0][-60:]}"

    for number, file in enumerate(chosen):
        at, bit = draw.randrange((root / file).stat().st_size), draw.randrange(8)
        name = re.sub(r"[0-9a-f]{28,}", lambda m: m[0][:6] + "...", str(file))
        act = functools.partial(flip, file, at, bit)
        yield Case(f"{number + 1}: bit {bit} of byte {at} of {name}", act)
