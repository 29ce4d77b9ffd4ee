"""Runs that are stopped or killed, and then continued by the same command."""

import re
import shutil
import signal
import time

import pytest
import runs
from runs import INT, KILL, TERM

pytestmark = pytest.mark.faults("fault")


def at(step):
    return lambda run: run.at(step)


def before_compiling(run):
    runs.until((run.workdir / "statistics.json").exists, "the data are open")


def while_compiling(run):
    run.wait(r"\d+ steps$")


MOMENTS = {
    "SIGTERM at step 84": (at(84), [TERM]),
    "SIGTERM while modules are imported": (runs.Process.listening, [TERM]),
    "SIGTERM during start-up, before compiling": (before_compiling, [TERM]),
    "SIGTERM while the first step compiles": (while_compiling, [TERM]),
    "SIGTERM twice": (at(70), [TERM, TERM]),
    "Ctrl-C": (at(70), [INT]),
    "Ctrl-C twice": (at(70), [INT, INT]),  # stops at once, without a save that was not begun
    "SIGKILL at step 88": (at(88), [KILL]),
    "SIGKILL at step 40": (at(40), [KILL]),
    "SIGKILL at step 7, before a save": (at(7), [KILL]),
}


def stop(command, run, moment, signals):
    """Send signals to a run, and expect that the same command continues it."""
    moment(run)
    for number in signals:
        run.send(number)
        time.sleep(0.02)
    if signals == [KILL]:
        assert run.ended() == -KILL
        return command.recovered(run.workdir)
    if signals == [INT, INT]:
        run.ends(130)
        text, lost = command.recovered(run.workdir)
        return text.replace("killed", "status 130"), lost
    return command.went_on(run, {TERM: 42, INT: 130}[signals[0]])


@runs.cases("moment, signals", MOMENTS)
def test_stopped(pretraining, workdir, happened, moment, signals):
    happened(*stop(pretraining, pretraining.run(workdir), moment, signals))


STARTED = {
    "SIGTERM while fine-tuning": ("finetune_vit_base", TERM),
    "SIGKILL while fine-tuning": ("finetune_vit_base", KILL),
    "SIGTERM while probing": ("linear_probe_vit_base", TERM),
    "SIGKILL while probing": ("linear_probe_vit_base", KILL),
}


@runs.cases("config, number", STARTED)
def test_started_from_a_checkpoint(from_a_checkpoint, workdir, happened, config, number):
    command = from_a_checkpoint(config)
    happened(*stop(command, command.run(workdir), at(29), [number]))


def test_sigterm_while_starting_again(pretraining, workdir, happened):
    """SIGTERM during the start of a resumed run"""
    pretraining.halfway(workdir)
    run = pretraining.run(workdir)
    run.listening()
    time.sleep(1)
    run.send(TERM)
    run.ends(42)
    start = pretraining.finish(workdir)
    assert start >= 90
    pretraining.same(workdir)
    happened(f"status 42; went on from step {start} to the same bits", 0)


@runs.cases("number", {f"{n.name} during an evaluation": n for n in (TERM, KILL)})
def test_stopped_in_an_evaluation(pretraining, workdir, happened, number):
    for attempt in range(4):
        run = pretraining.run(workdir / str(attempt))
        run.at(60)
        time.sleep(0.1)
        run.send(number)
        during = not re.search(r"step 60/120 +test_loss", run.text)
        began = time.monotonic()
        run.ends(42 if number == TERM else -KILL)
        seconds = time.monotonic() - began
        text, lost = pretraining.recovered(run.workdir)
        if number == TERM:
            assert lost <= 2
            text = text.replace("killed", f"status 42 after {seconds:.1f} s")
        if during:
            return happened(text, lost)
    pytest.skip("evaluations are over before a signal comes")


@runs.cases("number", {f"{n.name} during a save": n for n in (TERM, KILL)})
def test_stopped_in_a_save(pretraining, workdir, happened, number):
    for attempt in range(5):
        run = pretraining.run(workdir / str(attempt))
        step = 60 + 30 * (attempt % 2)
        run.saved(step - 30)
        begun = lambda run=run, step=step: any(
            name.startswith(str(step)) for name in runs.unfinished(run.workdir)
        )
        runs.until(begun, f"the save of step {step} begins")
        time.sleep(0.02 * attempt)
        run.send(number)
        if number == TERM:
            return happened(*pretraining.went_on(run, 42))
        run.ended()
        if runs.unfinished(run.workdir):
            return happened(*pretraining.recovered(run.workdir))
    pytest.skip("saves are over before a signal comes")


@runs.cases("number", {f"{n.name} during the report": n for n in (TERM, KILL)})
def test_stopped_in_the_report(pretraining, workdir, happened, number):
    run = pretraining.run(workdir)
    run.at(120)
    run.saved(120)
    time.sleep(0.05)
    during = not (workdir / "report.txt").exists()
    run.send(number)
    status = run.ended()
    if not during:
        pytest.skip("the report is over before a signal comes")
    assert status == (42 if number == TERM else -KILL), run.last
    pretraining.went_back(workdir, 120)
    reports = [(place / "report.txt").read_text() for place in (workdir, pretraining.undisturbed)]
    assert reports[0] == reports[1]
    happened(f"status {status}; the same command wrote the same report", 0)


def test_sigkill_three_times(pretraining, workdir, happened):
    """SIGKILL three times"""
    starts = []
    for step in (40, 70, 100):
        run = pretraining.run(workdir)
        starts.append(run.start)
        run.at(step)
        run.send(KILL)
        run.ended()
    text, lost = pretraining.recovered(workdir)
    assert starts == sorted(starts)
    happened(f"starts at {starts}; then {text.removeprefix('killed; ')}", lost)


def test_frozen(pretraining, workdir, happened):
    """SIGSTOP for four seconds"""
    run = pretraining.run(workdir)
    run.at(50)
    run.send(signal.SIGSTOP)
    time.sleep(4)
    run.send(signal.SIGCONT)
    run.ends(0)
    pretraining.same(workdir)
    happened("went on to the same bits", 0)


def test_finished_already(pretraining, workdir, happened):
    """the command of a finished run"""
    shutil.copytree(pretraining.undisturbed, workdir)
    before = runs.digest(workdir)
    pretraining.run(workdir).ends(0, "is finished")
    after = runs.digest(workdir)
    assert not [name for name in before if after.get(name) != before[name] and name != "lock"]
    happened("status 0, says so, changes nothing", 0)


@pytest.fixture(scope="session")
def on_eight(wide, shared):
    """The work directory of a run on eight devices that was asked to stop at step 20."""
    place = shared / "on_eight"
    with runs.locked(shared / "on_eight.lock"):
        if not runs.committed(place):
            run = wide.run(place, devices=8)
            run.at(20)
            run.send(TERM)
            run.ends(42)
    return place


DEVICES = {
    "8 devices, then 4": (4, []),
    "8 devices, then 2": (2, []),
    "8 devices, then 1": (1, []),
    "8 devices: data, then fsdp": (8, ["--config.mesh.fsdp=8"]),
}


@runs.cases("devices, change", DEVICES)
def test_other_devices(wide, on_eight, workdir, happened, devices, change):
    shutil.copytree(on_eight, workdir)
    start = wide.finish(workdir, *change, devices=devices)
    lost = runs.reached(on_eight) - start
    assert lost <= 2
    happened(f"went on from step {start}; {wide.close(workdir)}", lost)
