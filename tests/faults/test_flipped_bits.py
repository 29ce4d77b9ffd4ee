"""Sixty flipped bits of the newest of two checkpoints, spread over its files: none is silent."""

import contextlib
import random
import re
import shutil

import jax
import numpy as np
import pytest

from mae_jax.config import command_line
from mae_jax.models import rules
from mae_jax.train import train
from mae_jax.training import checkpoints

pytestmark = [
    pytest.mark.faults("flipped bit"),
    pytest.mark.usefixtures("soon"),
    # what orbax leaves behind when a read fails, see tests/training/test_checkpoints.py
    pytest.mark.filterwarnings(
        "ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning"
    ),
]
FLIPS = 60
OLDER, NEWEST = 60, 90


class Captured(Exception):
    pass


def restore(folder, abstract):
    """What training goes on from: the step and the bits of all arrays."""
    with contextlib.closing(checkpoints.Checkpoints(folder, 9)) as manager:
        state, _ = manager.restore_newest(abstract)
    named = jax.tree_util.tree_leaves_with_path(jax.device_get(state))
    return int(state.step), {str(path): np.asarray(x).tobytes() for path, x in named}


@pytest.fixture(scope="module")
def halfway(pretraining, tmp_path_factory):
    """The checkpoints of a run that died halfway."""
    return pretraining.halfway(tmp_path_factory.mktemp("flips") / "run")


@pytest.fixture(scope="module")
def abstract(pretraining, halfway):
    """The arrays that training wants to restore, with their places: asked of training itself."""

    def capture(self, abstract, *_):
        raise Captured(abstract)

    arguments = [*pretraining.arguments, f"--workdir={halfway.parent}"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Captured) as captured:
        patch.setattr(checkpoints.Checkpoints, "restore_newest", capture)
        train(*command_line.parse(arguments, rules.RULES))
    return captured.value.args[0]


@pytest.fixture(scope="module")
def bits(halfway, abstract):
    """The bits of the newest checkpoint and of the older one."""
    step, newest = restore(halfway, abstract)
    assert step == NEWEST
    shutil.move(halfway / str(NEWEST), halfway.parent / "aside")
    step, older = restore(halfway, abstract)
    assert step == OLDER
    shutil.move(halfway.parent / "aside", halfway / str(NEWEST))
    return newest, older


@pytest.fixture(scope="module")
def flips(halfway):
    """Sixty of `file, byte, bit`: each file, and then as their sizes are."""
    root, draw = halfway / str(NEWEST), random.Random(0)
    files = sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())
    sizes = [(root / file).stat().st_size for file in files]
    chosen = [file for file, size in zip(files, sizes, strict=True) if size][:FLIPS]
    chosen += draw.choices(files, sizes, k=FLIPS - len(chosen))
    places = [draw.randrange((root / file).stat().st_size) for file in chosen]
    return [(file, place, draw.randrange(8)) for file, place in zip(chosen, places, strict=True)]


@pytest.mark.parametrize("number", range(FLIPS))
def test_flipped_bit(number, halfway, abstract, bits, flips, tmp_path, happened, caplog):
    (file, place, bit), (newest, older) = flips[number], bits
    folder = tmp_path / "run" / "checkpoints"
    shutil.copytree(halfway, folder)
    damaged = folder / str(NEWEST) / file
    data = bytearray(damaged.read_bytes())
    data[place] ^= 1 << bit
    damaged.write_bytes(data)
    step, found = restore(folder, abstract)
    if step == NEWEST:
        assert found == newest, "silent: other bits are restored without a word"
        text = "carried nothing: the same bits are restored"
    else:
        assert step == OLDER and found == older, f"step {step} with other bits"
        assert f"checkpoints/{NEWEST}" in caplog.text, f"silent: step {step}, said {caplog.text}"
        text = f"named, step {step} is used"
    name = re.sub(r"[0-9a-f]{28,}", lambda m: m[0][:6] + "...", str(file))
    happened(f"{text} (bit {bit} of byte {place} of {name})")
