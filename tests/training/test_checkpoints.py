"""What comes back from a checkpoint is what was saved, or it is named and an older one is used."""

import contextlib
import json
import logging
import shutil
import sys
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from orbax.checkpoint._src import asyncio_utils

from mae_jax.training import checkpoints
from mae_jax.training.checkpoints import Checkpoints, NotFinite
from mae_jax.training.step import TrainState

# what orbax leaves behind when a read or a save fails: reads of other arrays, never awaited
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning"
)


def state(step: int) -> TrainState:
    return TrainState(
        jnp.int32(step),
        {"encoder": {"kernel": step + jnp.arange(60000.0).reshape(300, 200)}},
        {"mu": jnp.full((300, 200), 0.5 * step)},
        ema={"encoder": {"kernel": jnp.full((3,), 0.25 * step)}},
        stats={"mean": jnp.full((4,), 0.125 * step)},
        loss_ema=jnp.float32(step),
    )


def abstract() -> TrainState:
    placed = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    return jax.tree.map(placed, state(0))


@pytest.fixture
def kept(tmp_path):
    """A directory with steps 4 and 8, and what is said while it is read."""
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints", 3)) as checkpoints:
        for step in (4, 8):
            checkpoints.save(state(step), {"passed": step})
    return tmp_path / "checkpoints"


def newest(directory, **options):
    said, handler = [], logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("mae_jax")
    logger.addHandler(handler)
    with contextlib.closing(Checkpoints(directory, 3)) as checkpoints:
        found = checkpoints.restore_newest(abstract(), **options)
    logger.removeHandler(handler)
    return found, said


def equal(a: TrainState, b: TrainState) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def test_what_was_saved_comes_back(kept):
    (found, facts), said = newest(kept)
    assert equal(found, state(8)) and facts == {"passed": 8} and not said
    (found, facts), _ = newest(kept, up_to=7)
    assert equal(found, state(4)) and facts == {"passed": 4}
    assert [path.name for path in kept.iterdir()] == ["4"]


def test_before_the_first_one_the_first_one_is_used(kept):
    (found, _), said = newest(kept, up_to=3)
    assert equal(found, state(4)) and not said
    assert [path.name for path in kept.iterdir()] == ["4"]


def test_what_is_newer_stays_until_something_older_is_used(kept):
    truncate(kept / "4")
    (found, _), said = newest(kept, up_to=5)
    assert equal(found, state(8)) and "checkpoints/4" in said[0]


@pytest.mark.parametrize("old, new", [(b'"passed": 8', b'"passed": 9'), (b"passed", b"pasSed")])
def test_facts_that_changed_are_damage(kept, old, new):
    path = kept / "8" / "facts" / "metadata"
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))
    (found, facts), said = newest(kept)
    assert (
        equal(found, state(4))
        and facts == {"passed": 4}
        and "cannot be read (its metadata are damaged)" in said[0]
    )


def test_flipped_bits_are_never_silent(kept, tmp_path):
    """Anywhere in the newest checkpoint: what is used is bit for bit something that was saved."""
    files = sorted(path for path in (kept / "8").rglob("*") if path.is_file())
    rng, named = np.random.default_rng(0), 0
    for i in range(12):
        copy = tmp_path / str(i) / "checkpoints"
        shutil.copytree(kept, copy)
        path = copy / files[i % len(files)].relative_to(kept)
        raw = bytearray(path.read_bytes())
        if not raw:
            continue
        place = rng.integers(len(raw))
        raw[place] ^= 1 << rng.integers(8)
        path.write_bytes(raw)
        (found, facts), said = newest(copy)
        assert equal(found, state(4 if said else 8)), (path.name, place)
        assert facts == {"passed": 4 if said else 8}
        if said:
            named += 1
            assert "checkpoints/8" in said[0] and (copy.parent / "damaged" / "8").is_dir()
    assert named


def truncate(step):
    for path in step.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        lambda step: shutil.rmtree(step / "state"),
        lambda step: shutil.rmtree(step / "facts"),
        lambda step: (shutil.rmtree(step), step.mkdir()),
        lambda step: step.rename(step.with_name("12")),
        lambda step: (shutil.rmtree(step), shutil.copytree(step.with_name("4"), step)),
    ],
    ids=["truncated", "no state", "no facts", "empty", "another number", "another step's"],
)
def test_damage_is_named_and_the_older_one_used(kept, damage):
    damage(kept / "8")
    (found, _), said = newest(kept)
    assert equal(found, state(4)) and len(said) == 1 and "continuing from an older one" in said[0]
    assert sorted(path.name for path in kept.iterdir()) == ["4"]
    with contextlib.closing(Checkpoints(kept, 3)) as checkpoints:
        checkpoints.save(state(8), {})  # its number is free again
    assert equal(newest(kept)[0][0], state(8))


def test_an_array_of_another_run_is_named(kept):
    """Well-formed, of the right shapes, and not what was saved."""
    for step in (4, 8):
        shutil.rmtree(kept / str(step))
    with contextlib.closing(Checkpoints(kept, 3)) as checkpoints:
        checkpoints.save(state(4), {})
        other = state(8).replace(opt_state={"mu": jnp.full((300, 200), 7.0)})
        checkpoints.save(other, {})
        checkpoints.manager.wait_until_finished()
        shutil.copytree(kept / "8" / "facts", kept / "facts")
    shutil.rmtree(kept / "8")
    with contextlib.closing(Checkpoints(kept, 3)) as checkpoints:
        checkpoints.save(state(8), {})
    shutil.rmtree(kept / "8" / "facts")
    (kept / "facts").rename(kept / "8" / "facts")
    (found, _), said = newest(kept)
    assert equal(found, state(4)) and "is not what was saved: opt_state/mu" in said[0]


def test_when_none_is_good_nothing_is_changed(kept):
    for step in ("4", "8"):
        truncate(kept / step)
    before = sorted(kept.rglob("*"))
    with pytest.raises(ValueError, match=r"no checkpoint .* can be used: .*8 .*4 .*another --work"):
        newest(kept)
    assert sorted(kept.rglob("*")) == before


def test_without_any_there_is_none(tmp_path):
    (tmp_path / "checkpoints" / "stray").mkdir(parents=True)
    (tmp_path / "checkpoints" / "notes.txt").write_text("mine")
    assert newest(tmp_path / "checkpoints") == (None, [])


def test_what_is_not_finite_is_not_saved(kept):
    with contextlib.closing(Checkpoints(kept, 3)) as checkpoints:
        bad = state(9).replace(params={"encoder": {"kernel": jnp.full((300, 200), jnp.nan)}})
        with pytest.raises(NotFinite, match="step 9 is not finite: params/encoder/kern"):
            checkpoints.save(bad, {})
    assert equal(newest(kept)[0][0], state(8))


def test_failed_saves_are_errors_and_leave_nothing(kept):
    """The temporary directory cannot be made: its place is taken by a file."""
    with contextlib.closing(Checkpoints(kept, 3)) as checkpoints:
        kept.rename(kept.with_name("elsewhere"))
        kept.write_text("a file")
        for count in (1, 2):
            with pytest.raises(OSError):
                checkpoints.save(state(12), {}, wait=True)
            assert checkpoints.failures == count
        kept.unlink()
        kept.with_name("elsewhere").rename(kept)
        checkpoints.save(state(16), {}, wait=True)
        assert checkpoints.failures == 0
    assert sorted(path.name for path in kept.iterdir()) == ["16", "4", "8"]
    assert equal(newest(kept)[0][0], state(16))


class Failing:
    """An orbax manager of which the save in the background fails once."""

    def __init__(self, manager):
        self.manager, self.fails = manager, True

    def __getattr__(self, name):
        return getattr(self.manager, name)

    def wait_until_finished(self):
        self.manager.wait_until_finished()
        if self.fails:
            self.fails = False
            shutil.rmtree(self.manager.directory / "12")
            raise RuntimeError("no space left")


def test_a_save_that_fails_in_the_background_is_not_announced_as_saved(kept):
    """`is_saved` is asked during an evaluation, and the save after it must try again."""
    with contextlib.closing(Checkpoints(kept, 3)) as checkpoints:
        checkpoints.save(state(12), {})
        checkpoints.manager = Failing(checkpoints.manager)
        assert not checkpoints.is_saved(12) and checkpoints.failures == 1
        checkpoints.save(state(12), {}, wait=True)
        assert checkpoints.is_saved(12) and checkpoints.failures == 0
    assert equal(newest(kept)[0][0], state(12))


@struct.dataclass
class OldState:
    """The state of version 0.1."""

    step: Any
    params: Any
    opt_state: Any
    ema: Any = None
    stats: Any = None
    usual: Any = None


def test_checkpoints_of_version_0_1_are_read(tmp_path):
    """Where the average of the loss had another name."""
    new = state(4)
    fields = {name: getattr(new, name) for name in ("step", "params", "opt_state", "ema", "stats")}
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints", 3)) as checkpoints:
        checkpoints.save(OldState(**fields, usual=new.loss_ema), {"passed": 2})
    text = (tmp_path / "checkpoints" / "4" / "facts" / "metadata").read_text()
    assert "usual" in json.loads(text)["fingerprints"]
    (found, metadata), said = newest(tmp_path / "checkpoints")
    assert equal(found, new) and metadata == {"passed": 2} and not said


async def serialize():
    """A coroutine of a user, with a name that orbax uses too."""


def test_only_late_errors_of_orbax_are_ignored(monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", lambda late: shown.append(late.exc_value))
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: shown.append(error))
    checkpoints.ignore_late_errors()
    of_orbax, of_user = asyncio_utils.cancellable(None), serialize()
    closed, other = RuntimeError("Event loop is closed"), ValueError("cannot serialize orbax_read_")
    for owner, error in [(of_orbax, other), (None, closed), (of_user, other), (None, other)]:
        sys.unraisablehook(SimpleNamespace(object=owner, exc_value=error))
    of_orbax.close()
    of_user.close()
    for error in (closed, other):
        sys.excepthook(type(error), error, None)
    assert shown == [other, other, other]
