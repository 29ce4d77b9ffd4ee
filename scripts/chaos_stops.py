"""Runs that are stopped, on one process and on two; for chaos.py."""

import os
import random
import re
import shutil
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from chaos_runs import (
    END,
    INT,
    KILL,
    LIMIT,
    NEWEST,
    PLAIN,
    STOP,
    TERM,
    WIDE,
    Case,
    Impossible,
    Kind,
    Process,
    at,
    begin,
    check,
    close,
    committed,
    digest,
    exists,
    expect,
    finish,
    interrupted,
    killed,
    once,
    reached,
    recovered,
    same,
    started_from,
    undisturbed,
    unfinished,
)
from chaos_saves import halfway


def while_importing(place):
    def act(run):
        time.sleep(0.7)  # Python is there, jax is being imported
        run.send(signal.SIGTERM)

    return interrupted(PLAIN, place, act, most=0)


def while_starting(place):
    def act(run):
        exists(place / "statistics.json")  # the data are open, nothing is compiled
        run.send(signal.SIGTERM)

    return interrupted(PLAIN, place, act, most=0)


def while_compiling(place):
    def act(run):
        run.wait(r"\d+ steps$")
        run.send(signal.SIGTERM)

    return interrupted(PLAIN, place, act)


def while_starting_again(place):
    halfway(place)
    run = PLAIN.start(place)
    time.sleep(1.5)
    run.send(signal.SIGTERM)
    expect(run, 42)
    start = finish(PLAIN, place)
    check(start >= NEWEST, f"went on from step {start}, but {NEWEST} was saved")
    same(place, PLAIN)
    return f"status 42; went on from step {start} to the same bits", 0


def in_evaluation(number: int, status: int):
    def act(place):
        for attempt in range(4):
            run = PLAIN.start(place / str(attempt))
            run.wait(r"^step 60/120  loss")
            time.sleep(0.1)
            run.send(number)
            hit = not re.search("step 60/120  test_loss", run.text)
            if number == signal.SIGKILL:
                run.end()
                result = recovered(PLAIN, place / str(attempt))
            else:
                began = time.monotonic()
                expect(run, status)
                seconds = time.monotonic() - began
                start = finish(PLAIN, place / str(attempt))
                check(start >= 60, f"went on from step {start}")
                same(place / str(attempt), PLAIN)
                result = f"status {status} after {seconds:.1f} s; to the same bits", 0
            if hit:
                return result
        raise Impossible("evaluations are over before a signal comes")

    return act


def twice(place):
    def act(run):
        at(70, signal.SIGTERM)(run)
        time.sleep(0.02)
        run.send(signal.SIGTERM)

    return interrupted(PLAIN, place, act)


def ctrl_c_twice(place):
    """The second one stops at once, without a save that was not begun."""
    run = PLAIN.start(place)
    at(70, signal.SIGINT)(run)
    time.sleep(0.02)
    run.send(signal.SIGINT)
    expect(run, 130)
    happened, lost = recovered(PLAIN, place)
    return happened.replace("killed", "status 130"), lost


def in_report(number: int, status: int):
    def act(place):
        run = PLAIN.start(place)
        run.wait(r"^step 120/120  loss")
        exists(place / "checkpoints" / str(END))
        time.sleep(0.05)
        hit = not (place / "report.txt").exists()
        run.send(number)
        found = run.end()
        if not hit:
            raise Impossible("the report is over before a signal comes")
        check(found == status, f"status {found} instead of {status}: {run.last}")
        start = finish(PLAIN, place)
        check(start == END, f"went on from step {start}")
        check((place / "report.txt").exists(), "no report")
        reports = [(p / "report.txt").read_text() for p in (place, undisturbed(PLAIN))]
        check(reports[0] == reports[1], "another report")
        same(place, PLAIN)
        return f"status {found}; the same command wrote the same report", 0

    return act


def in_a_save(number: int):
    def act(place):
        for attempt in range(5):
            workdir = place / str(attempt)
            run = PLAIN.start(workdir)
            step = 60 + 30 * (attempt % 2)
            exists(workdir / "checkpoints" / str(step - 30))
            until = time.monotonic() + LIMIT
            while not any(name.startswith(str(step)) for name in unfinished(workdir)):
                check(time.monotonic() < until, "no save begins")
                time.sleep(0.0005)
            time.sleep(0.02 * attempt)
            run.send(number)
            if number == signal.SIGTERM:
                expect(run, 42)
                so_far, start = reached(workdir), finish(PLAIN, workdir)
                check(so_far - start <= 2, f"{so_far - start} steps lost")
                same(workdir, PLAIN)
                return f"status 42; went on from step {start} to the same bits", so_far - start
            run.end()
            if unfinished(workdir):
                return recovered(PLAIN, workdir)
        raise Impossible("saves are over before a signal comes")

    return act


def three_times(place):
    """A machine that dies again and again: each time a little further."""
    starts = []
    for step in (40, 70, 100):
        run = PLAIN.start(place)
        starts.append(begin(run))
        at(step, signal.SIGKILL)(run)
        run.end()
    happened, lost = recovered(PLAIN, place)
    check(starts == sorted(starts), f"went on from {starts}")
    return f"starts at {starts}; then {happened.removeprefix('killed; ')}", lost


def frozen(place):
    run = PLAIN.start(place)
    at(50, signal.SIGSTOP)(run)
    time.sleep(4)
    run.send(signal.SIGCONT)
    expect(run, 0)
    same(place, PLAIN)
    return "went on to the same bits", 0


def finished_already(place):
    shutil.copytree(undisturbed(PLAIN), place)
    before = digest(place)
    run = PLAIN.start(place)
    expect(run, 0, "is finished")
    after = digest(place)
    changed = [name for name in before if after.get(name) != before[name] and name != "lock"]
    check(not changed, f"{changed} changed")
    return "status 0, says so, changes nothing", 0


def started(which: int, number: int):
    """Fine-tuning or probing."""

    def act(place):
        kind = started_from()[which]
        if number == signal.SIGKILL:
            return killed(kind, place, at(29))
        return interrupted(kind, place, at(29, number))

    return act


# --- other devices, other processes ---


@once
def on_eight(place: Path) -> None:
    """A run on eight devices, preempted."""
    run = WIDE.start(place, devices=8)
    at(20, signal.SIGTERM)(run)
    expect(run, 42)


def elsewhere(devices: int, *more: str):
    def act(place):
        shutil.copytree(on_eight(), place)
        start = finish(WIDE, place, *more, devices=devices)
        lost = reached(on_eight()) - start
        check(lost <= 2, f"{lost} steps lost")
        most = close(place, WIDE)
        return f"went on from step {start}; losses differ by {most:.0e} at most", lost

    return act


def pair(kind: Kind, place: Path, *more: str) -> list[Process]:
    """The same command as two processes with two devices each, over loopback."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    variables = {
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
    }
    return [
        kind.start(place, *more, devices=2, variables=variables | {"JAX_PROCESS_ID": str(i)})
        for i in range(2)
    ]


def end_all(processes: Sequence[Process]) -> None:
    for process in processes:
        if process.process.poll() is None:
            process.kill()


def one_of_two_terminated(which: int):
    def act(place):
        for step in (20, 40)[: 2 - which]:  # also after a resume and a save
            processes = pair(WIDE, place)
            try:
                processes[0].wait(rf"^step {step}/")
                processes[which].send(signal.SIGTERM)
                statuses = [process.end(90) for process in processes]
            finally:
                end_all(processes)
            check(statuses == [42, 42], f"statuses {statuses}: {processes[0].last}")
        so_far = reached(place)
        if which:
            start, what = finish(WIDE, place, devices=4), "one process with four devices"
        else:
            again = pair(WIDE, place)
            statuses = [process.end() for process in again]
            check(statuses == [0, 0], f"statuses {statuses}: {again[0].last}")
            start, what = begin(again[0]), "two processes"
        most = close(place, WIDE)
        check(so_far - start <= 2, f"{so_far - start} steps lost")
        text = f"both 42 with step {start} saved; {what} went on, losses differ by {most:.0e}"
        return text, max(0, so_far - start)

    return act


def one_of_two(which: int, number: int, heartbeat: int = 0, margin: float = 20):
    """One is killed or frozen: the other ends soon, and both can be started again."""

    def act(place):
        more = [f"--config.recovery.heartbeat={heartbeat}"] if heartbeat else []
        processes = pair(WIDE, place, *more)
        other = processes[1 - which]
        try:
            processes[0].wait(r"^step 40/")
            began = time.monotonic()
            processes[which].send(number)
            status = other.end(heartbeat + margin)
            seconds = time.monotonic() - began
        finally:
            end_all(processes)
        check(status != 0, "the other ended with status 0")
        so_far, good = reached(place), max(committed(place), default=0)
        start = finish(WIDE, place, devices=4)
        check(start >= good, f"went on from step {start}, but {good} was saved")
        check(so_far - start <= 2 * WIDE.save, f"{so_far - start} steps lost")
        most = close(place, WIDE)
        text = f"the other ended with status {status} after {seconds:.0f} s; one process went on"
        return f"{text} from step {start}, losses differ by {most:.0e}", max(0, so_far - start)

    return act


def damaged_for_one(place):
    """What only the second process reads of the newest checkpoint is damaged."""
    fsdp = "--config.mesh.fsdp=4"
    statuses = [process.end() for process in pair(WIDE, place, fsdp)]
    check(statuses == [0, 0], f"statuses {statuses} of the run before")
    newest = place / "checkpoints" / str(WIDE.steps)
    files = [x for x in (newest / "state" / "ocdbt.process_1").rglob("*") if x.is_file()]
    check(files, "the second process wrote nothing")
    for file in files:
        os.truncate(file, file.stat().st_size // 2)
    (place / "report.txt").unlink()
    again = pair(WIDE, place, fsdp)
    try:
        statuses = [process.end() for process in again]
    finally:
        end_all(again)
    check(statuses == [0, 0], f"statuses {statuses}: {again[0].last} {again[1].last}")
    check(any(str(newest) in process.text for process in again), "it is not named")
    start = begin(again[0])
    check(start == WIDE.steps - WIDE.save, f"went on from step {start}")
    return f"named; both went on from step {start}", WIDE.save


def from_one_to_two(place):
    run = WIDE.start(place)
    at(20, signal.SIGTERM)(run)
    expect(run, 42)
    so_far = reached(place)
    processes = pair(WIDE, place)
    try:
        statuses = [process.end() for process in processes]
    finally:
        end_all(processes)
    check(statuses == [0, 0], f"statuses {statuses}: {processes[0].last}")
    start, most = begin(processes[0]), close(place, WIDE)
    return f"went on from step {start}; losses differ by {most:.0e} at most", max(0, so_far - start)


def cases(seed: int) -> list[Case]:
    draw = random.Random(seed)
    step = lambda: draw.randrange(35, 115)
    term, kill, early = step(), [step(), step()], draw.randrange(3, 18)
    one = [
        (f"SIGTERM at step {term}", lambda p: interrupted(PLAIN, p, at(term, TERM))),
        ("SIGTERM while modules are imported", while_importing),
        ("SIGTERM during start-up, before compiling", while_starting),
        ("SIGTERM while the first step compiles", while_compiling),
        ("SIGTERM during the start of a resumed run", while_starting_again),
        ("SIGTERM during an evaluation", in_evaluation(TERM, 42)),
        ("SIGTERM during a save", in_a_save(TERM)),
        ("SIGTERM during the report", in_report(TERM, 42)),
        ("SIGTERM twice", twice),
        ("Ctrl-C", lambda p: interrupted(PLAIN, p, at(70, INT), status=130)),
        ("Ctrl-C twice", ctrl_c_twice),
        *((f"SIGKILL at step {k}", lambda p, k=k: killed(PLAIN, p, at(k))) for k in kill),
        (f"SIGKILL at step {early}, before a save", lambda p: killed(PLAIN, p, at(early))),
        ("SIGKILL during a save", in_a_save(KILL)),
        ("SIGKILL during an evaluation", in_evaluation(KILL, -KILL)),
        ("SIGKILL during the report", in_report(KILL, -KILL)),
        ("SIGKILL three times", three_times),
        ("SIGSTOP for four seconds", frozen),
        ("the command of a finished run", finished_already),
        ("SIGTERM while fine-tuning", started(0, TERM)),
        ("SIGKILL while fine-tuning", started(0, KILL)),
        ("SIGTERM while probing", started(1, TERM)),
        ("SIGKILL while probing", started(1, KILL)),
        ("8 devices, then 4", elsewhere(4)),
        ("8 devices, then 2", elsewhere(2)),
        ("8 devices, then 1", elsewhere(1)),
        ("8 devices: data, then fsdp", elsewhere(8, "--config.mesh.fsdp=8")),
    ]
    two = [
        ("2 processes: SIGTERM to the first", one_of_two_terminated(0)),
        ("2 processes: SIGTERM to the second", one_of_two_terminated(1)),
        ("2 processes: SIGKILL of the first", one_of_two(0, KILL)),
        ("2 processes: SIGKILL of the second", one_of_two(1, KILL)),
        ("2 processes: SIGSTOP of the second", one_of_two(1, STOP, heartbeat=10)),
        ("2 processes: what one of them reads is damaged", damaged_for_one),
        ("1 process, then 2", from_one_to_two),
    ]
    return [Case(*case) for case in one] + [Case(*case, alone=True) for case in two]
