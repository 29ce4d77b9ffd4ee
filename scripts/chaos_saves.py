"""Checkpoints that are damaged, and saves that fail; for chaos.py."""

import os
import random
import re
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chaos_runs import (
    END,
    NEWEST,
    OLDER,
    PLAIN,
    Case,
    Impossible,
    Process,
    begin,
    check,
    committed,
    digest,
    exists,
    expect,
    finish,
    reached,
    records,
    same,
    undisturbed,
    unfinished,
)


def halfway(place: Path) -> Path:
    """A run that died some steps after a checkpoint, with an older one beside it."""
    shutil.copytree(undisturbed(PLAIN), place)
    shutil.rmtree(place / "checkpoints" / str(END))
    (place / "report.txt").unlink()
    return place / "checkpoints"


def largest(place: Path) -> Path:
    return max((p for p in place.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def damaged(hurt: Callable[[Path], Any], start: int = OLDER, named: str | None = None):
    """Something is wrong with the newest of two checkpoints, or beside it."""

    def act(place):
        hurt(halfway(place))
        run = PLAIN.start(place)
        expect(run, 0)
        found = begin(run)
        check(found == start, f"went on from step {found}, not {start}")
        if named:
            before = run.text.partition("\nstep ")[0]
            lines = [line for line in before.splitlines() if re.search(named, line)]
            check(lines, f"does not name it: {before[-300:]!r}")
        same(place, PLAIN)
        what = "named, " if named else ""
        return f"{what}went on from step {found} to the same bits", NEWEST - found

    return act


def truncated(checkpoints: Path) -> None:
    file = largest(checkpoints / str(NEWEST))
    os.truncate(file, file.stat().st_size // 2)


def flipped(seed: int):
    def hurt(checkpoints: Path) -> None:
        draw, file = random.Random(seed), largest(checkpoints / str(NEWEST))
        data = bytearray(file.read_bytes())
        data[draw.randrange(len(data) // 4, len(data))] ^= 1 << draw.randrange(8)
        file.write_bytes(data)

    return hurt


def emptied(checkpoints: Path) -> None:
    for file in (checkpoints / str(NEWEST)).rglob("*"):
        if file.is_file():
            file.write_bytes(b"")


def stray_step(checkpoints: Path) -> None:
    (checkpoints / "100").mkdir()


def half_written(checkpoints: Path) -> None:
    place = checkpoints / "100.orbax-checkpoint-tmp-1234"
    shutil.copytree(checkpoints / str(NEWEST), place)
    largest(place).unlink()


def wrong_name(checkpoints: Path) -> None:
    """An old checkpoint under the number of a new one."""
    shutil.rmtree(checkpoints / str(NEWEST))
    shutil.copytree(checkpoints / str(OLDER), checkpoints / str(NEWEST))


def all_bad(place):
    checkpoints = halfway(place)
    for step in committed(place):
        file = largest(checkpoints / str(step))
        os.truncate(file, file.stat().st_size // 2)
    before = digest(place)
    run = PLAIN.start(place)
    expect(run, 2)
    check(str(NEWEST) in run.text and str(OLDER) in run.text, f"does not name them: {run.last}")
    gone = [name for name in before if name not in digest(place)]
    check(not gone, f"deleted {gone[:3]}")
    return "status 2, names them, deletes nothing, does not start afresh", None


def another_config(place):
    halfway(place)
    before = digest(place)
    run = PLAIN.start(place, "--config.optimizer.clip=1.0", "--config.seed=7")
    expect(run, 2, r"optimizer\.clip", r"seed")
    check(digest(place) == before, "changed the work directory")
    return "status 2, names both fields, changes nothing", None


def damaged_config(place):
    halfway(place)
    (place / "config.json").write_text("{")
    run = PLAIN.start(place)
    expect(run, 2, r"config\.json")
    return "status 2, names the file", None


def torn_records(checkpoints: Path) -> None:
    with (checkpoints.parent / "metrics.jsonl").open("a") as f:
        f.write('{"step": 91, "lo')


def second_process(place):
    run = PLAIN.start(place)
    run.wait(r"^step 30/")
    second = PLAIN.start(place)
    expect(second, 2)
    check(run.process.poll() is None, "the first was over: nothing was tried")
    expect(run, 0)
    same(place, PLAIN)
    return "status 2, in one sentence; the first is not disturbed", 0


# --- saves that fail ---


def largest_file(run: Process, size: int) -> None:
    """No file of the process may grow beyond `size` bytes; -1: as large as it likes."""
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def saved_once(run: Process, place: Path) -> None:
    run.wait(r"^step 35/")
    exists(place / "checkpoints" / "30")


def failing(place: Path, run: Process, spoil: Callable[[], Any], mend: Callable[[], Any]):
    """Saves fail for a while: the run goes on."""
    saved_once(run, place)
    spoil()
    try:
        run.wait(r"^step 95/")
        good = committed(place)
    finally:
        mend()
    expect(run, 0)
    check(good == [30], f"saves did not fail, or one is gone: {good}")
    counted = max((r.get("failed_saves") or 0 for r in records(place)), default=0)
    check(counted >= 1, "failed saves are not counted in metrics.jsonl")
    same(place, PLAIN)
    return f"{counted:.0f} failed saves counted; later saves good, same bits", 0


def file_limit(place):
    run = PLAIN.start(place)
    limits = (lambda: largest_file(run, 200_000), lambda: largest_file(run, -1))
    return failing(place, run, *limits)


def read_only(place):
    run = PLAIN.start(place, privileged=False)
    mode = (place / "checkpoints").chmod
    return failing(place, run, lambda: mode(0o555), lambda: mode(0o755))


def replaced_by_a_file(place):
    run, checkpoints, aside = PLAIN.start(place), place / "checkpoints", place / "aside"

    def spoil():
        checkpoints.rename(aside)
        checkpoints.write_text("")

    def mend():
        if checkpoints.is_file():
            checkpoints.unlink()
        else:  # the run made it anew
            shutil.rmtree(checkpoints)
        aside.rename(checkpoints)

    saved_once(run, place)
    spoil()
    run.wait(r"^step 95/")
    mend()
    expect(run, 0)
    counted = max((r.get("failed_saves") or 0 for r in records(place)), default=0)
    check(counted >= 1, "failed saves are not counted in metrics.jsonl")
    same(place, PLAIN)
    return f"{counted:.0f} failed saves counted; later saves good, same bits", 0


class Disk:
    """A small file system of its own, in memory."""

    def __init__(self, place: Path, megabytes: int):
        place.mkdir(parents=True)
        self.place, self.ballast = place, place / "ballast"
        options = ["-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(place)]
        done = subprocess.run(["mount", *options], capture_output=True, check=False)
        if done.returncode:
            raise Impossible("mounting is not permitted")

    def fill(self) -> None:
        with open(self.ballast, "wb", buffering=0) as f:
            try:
                while True:
                    f.write(bytes(4096))
            except OSError:
                pass

    def free(self) -> None:
        self.ballast.unlink(missing_ok=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        subprocess.run(["umount", "-l", str(self.place)], check=False)


def full_disk(place):
    """Of the checkpoints alone."""
    with Disk(place / "disk", 40) as disk:
        workdir = place / "run"
        workdir.mkdir()
        (disk.place / "checkpoints").mkdir()
        (workdir / "checkpoints").symlink_to(disk.place / "checkpoints")
        return failing(workdir, PLAIN.start(workdir), disk.fill, disk.free)


def full_disk_for_all(place):
    """Of the whole work directory: records cannot be written either."""
    with Disk(place / "disk", 40) as disk:
        workdir = disk.place / "run"
        run = PLAIN.start(workdir)
        saved_once(run, workdir)
        disk.fill()
        status = run.end()
        check(status == 2, f"status {status} instead of 2: {run.last}")
        check("Traceback (most recent" not in run.text, f"shows a traceback: {run.last}")
        so_far, good = reached(workdir), committed(workdir)
        check(good == [30], f"the last good checkpoint is not there: {good}")
        check(not unfinished(workdir), f"temporary directories stay: {unfinished(workdir)}")
        disk.free()
        start = finish(PLAIN, workdir)
        check(start == 30, f"went on from step {start}")
        same(workdir, PLAIN)
        return "status 2; went on from step 30 to the same bits", max(0, so_far - start)


def failing_for_ever(place):
    run = PLAIN.start(place, "--config.save_every=10")
    saved_once(run, place)
    before = digest(place / "checkpoints" / "30")
    largest_file(run, 200_000)
    expect(run, 2, r"sav")
    so_far = reached(place)
    check(digest(place / "checkpoints" / "30") == before, "the last good checkpoint changed")
    check(not unfinished(place), f"temporary directories stay: {unfinished(place)}")
    check(so_far < END, f"ended at step {so_far}")
    start = finish(PLAIN, place)
    check(start == 30, f"went on from step {start}")
    same(place, PLAIN)
    return f"status 2 at step {so_far}; went on from step {start} to the same bits", so_far - start


def last_save_fails(place):
    run = PLAIN.start(place)
    run.wait(r"^step 95/")
    exists(place / "checkpoints" / str(NEWEST))
    largest_file(run, 200_000)
    expect(run, 2, r"sav")
    start = finish(PLAIN, place)
    check(start == NEWEST, f"went on from step {start}")
    same(place, PLAIN)
    return f"status 2; went on from step {start} to the same bits", END - start


def terminated_without_a_save(place):
    """SIGTERM where nothing can be saved: not the status that says that it was."""
    run = PLAIN.start(place)
    saved_once(run, place)
    largest_file(run, 200_000)
    run.send(signal.SIGTERM)
    expect(run, 2, r"sav")
    so_far, start = reached(place), finish(PLAIN, place)
    check(start == 30, f"went on from step {start}")
    same(place, PLAIN)
    return f"status 2; went on from step {start} to the same bits", so_far - start


def read_only_from_the_start(place):
    place.mkdir()
    place.chmod(0o555)
    run = PLAIN.start(place / "run", privileged=False)
    expect(run, 2)
    place.chmod(0o755)
    return f"status 2: {run.last[:100]}", None


def a_file_in_the_way(place):
    place.write_text("")
    run = PLAIN.start(place)
    expect(run, 2)
    check(place.read_text() == "" and place.is_file(), "the file changed")
    return f"status 2: {run.last[:100]}", None


def cases() -> list[Case]:
    found = [
        ("a truncated file in the newest checkpoint", damaged(truncated, named="90")),
        ("empty files in the newest checkpoint", damaged(emptied, named="90")),
        (
            "a deleted file of the newest checkpoint",
            damaged(lambda c: largest(c / "90").unlink(), named="90"),
        ),
        (
            "no _METADATA in the newest checkpoint",
            damaged(lambda c: (c / "90" / "state" / "_METADATA").unlink(), named="90"),
        ),
        ("a bit of the newest checkpoint", damaged(flipped(1), named="90")),
        ("another bit of the newest checkpoint", damaged(flipped(2), named="90")),
        ("an old checkpoint named as a new one", damaged(wrong_name)),
        (
            "a stray file among the checkpoints",
            damaged(lambda c: (c / "x").write_text("x"), NEWEST),
        ),
        ("an empty step directory", damaged(stray_step, NEWEST, "100")),
        (
            "a directory whose name is no step",
            damaged(lambda c: shutil.copytree(c / "90", c / "best"), NEWEST),
        ),
        ("a half-written checkpoint", damaged(half_written, NEWEST)),
        ("a torn line in metrics.jsonl", damaged(torn_records, NEWEST)),
        ("all checkpoints damaged", all_bad),
        ("the work directory of another config", another_config),
        ("a damaged config.json", damaged_config),
        ("a second process in the work directory", second_process),
        ("saves fail: files may not grow", file_limit),
        ("saves fail: a read-only directory", read_only),
        ("saves fail: a file instead of the directory", replaced_by_a_file),
        ("saves fail: a full disk", full_disk),
        ("a full disk for all of the work directory", full_disk_for_all),
        ("saves fail for ever", failing_for_ever),
        ("the last save fails", last_save_fails),
        ("SIGTERM where nothing can be saved", terminated_without_a_save),
        ("a work directory that cannot be made", read_only_from_the_start),
        ("a file in place of the work directory", a_file_in_the_way),
    ]
    return [Case(*case) for case in found]
