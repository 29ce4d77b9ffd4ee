"""What the cases share: the undisturbed runs, a lock, and the tables of docs/reliability.md.

A case calls `happened(text, steps_lost)`. `pytest -m faults tests/faults --faults-report=FILE`
writes these texts as tables, one row a case.
"""

import ctypes
import datetime
import fcntl
import re
import signal
import struct
import tempfile
from pathlib import Path

import pytest

pytest.register_assert_rewrite("runs", "reading")

from runs import NO_PROBES, STARTED, Command, locked  # noqa: E402

TABLES = ("fault", "bad input", "bad config", "flipped bit")
HEAD = """# Table of failures

    python -m pytest -m faults tests/faults -n 2 --dist worksteal --faults-report={}

Each row injects one fault into real training processes, or into what they read. The test then
expects that the same command continues the run, or that it ends with one sentence about what is
wrong. "The same bits" means that all arrays of the last checkpoint and all losses are identical to
those of a run without the fault. A step of these tests takes milliseconds, so that a save may take
longer than the thirty steps to the next one. A process that is killed meanwhile loses the steps
since the save before.
"""


def pytest_addoption(parser):
    parser.addoption("--faults-report", metavar="FILE", help="write what happened as tables")


def pytest_configure(config):
    path = config.getoption("--faults-report", None)
    if path and not hasattr(config, "workerinput"):  # pytest-xdist's workers send their rows
        config.pluginmanager.register(Report(path))


def pytest_collection_modifyitems(items):
    """Give each case its row: the table, the place in it, and the id or the docstring as title."""
    for place, item in enumerate(items):
        if marker := item.get_closest_marker("faults"):
            title = item.callspec.id if hasattr(item, "callspec") else item.function.__doc__
            item.user_properties.append(("row", (marker.args[0], place, title)))


class Report:
    """Collect the rows of all cases, and write the tables."""

    def __init__(self, path):
        self.path, self.rows = path, []

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.when == "setup" and not report.passed:
            found = dict(report.user_properties)
            error = getattr(report.longrepr, "reprcrash", None)
            problem = error.message if error else str(report.longrepr)
            text, lost = found.get("happened", (problem, ""))
            self.rows.append((*found["row"], report.outcome, text, lost))

    def pytest_sessionfinish(self):
        totals, tables = [f"{datetime.date.today()}  "], []
        for table in TABLES:
            if not (rows := sorted(row for row in self.rows if row[0] == table)):
                continue
            passed = sum(outcome == "passed" for *_, outcome, _, _ in rows)
            totals.append(f"{table}: {passed} of {len(rows)} passed  ")
            tables += ["", f"| {table} | what happens | steps lost |", "|---|---|---|"]
            for _, _, title, outcome, text, lost in rows:
                tables.append(f"| {title} | {outcome}: {shortened(text)} | {lost} |")
        Path(self.path).write_text("\n".join([HEAD.format(self.path), *totals, *tables]) + "\n")


def shortened(text):
    """A text as a cell of a table: one short line, without temporary directories."""
    text = re.sub(re.escape(tempfile.gettempdir()) + r"/[^\s']*", "...", " ".join(text.split()))
    text = text.replace("|", "/")
    return text if len(text) < 140 else f"{text[:136]} ..."


@pytest.fixture
def happened(request):
    """Record what happened, and how many steps were lost, for the row of this case."""
    add = request.node.user_properties.append
    return lambda text, lost="": add(("happened", (text, lost)))


@pytest.fixture(scope="session")
def shared(tmp_path_factory, worker_id):
    """A directory that all workers of this session share."""
    base = tmp_path_factory.getbasetemp()
    place = (base if worker_id == "master" else base.parent) / "shared"
    place.mkdir(exist_ok=True)
    return place


@pytest.fixture(autouse=True)
def turn(request, shared):
    """Run a case whose time counts, `faults(table, alone=True)`, while no worker runs another."""
    alone = request.node.get_closest_marker("faults").kwargs.get("alone")
    with locked(shared / "turn.lock", fcntl.LOCK_EX if alone else fcntl.LOCK_SH):
        yield
        while STARTED:  # what a case that failed has left behind
            STARTED.pop().kill()


@pytest.fixture(scope="session", autouse=True)
def unprivileged():
    """Let root need permissions too, here and in all processes that the cases start."""
    libc, mine = ctypes.CDLL(None), 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    for capability in (1, 2):
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP: for what is started
    header, sets = struct.pack("Ii", 0x20080522, 0), ctypes.create_string_buffer(24)
    libc.capget(header, sets)
    effective, *others = struct.unpack("6I", sets.raw)
    libc.capset(header, struct.pack("6I", effective & ~mine, *others))


@pytest.fixture
def soon():
    """Fail a case inside this process that takes longer than a minute."""

    def late(number, frame):
        pytest.fail("the case is not done after a minute")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def workdir(tmp_path):
    return tmp_path / "run"


@pytest.fixture(scope="session")
def pretraining(shared):
    """120 steps, saved at 30, 60, 90 and 120, evaluated at 60 and 120."""
    changes = ("--config.evaluators.reconstruction.every=60", *NO_PROBES)
    return Command(shared, "pretraining", "vit_base", changes, 120, 30)


@pytest.fixture(scope="session")
def wide(shared):
    """48 steps, saved every 12, of a network wide enough that fsdp cuts its parameters."""
    changes = ("--config.model.width=192", "--config.evaluators.reconstruction.every=0", *NO_PROBES)
    return Command(shared, "wide", "vit_base", changes, 48, 12)


@pytest.fixture(scope="session")
def from_a_checkpoint(shared, pretraining):
    """Make a command that starts from the undisturbed pre-training."""
    init = f"--config.init.checkpoint={pretraining.undisturbed}"
    changes = (init, "--config.evaluators.classification.every=24")
    return lambda config: Command(shared, config, config, changes, 48, 12)
