"""What is counted, recorded and decided when something goes wrong, without a training."""

import json
from types import SimpleNamespace

import pytest

from mae_jax.config.errors import UserError
from mae_jax.training import metric_writer
from mae_jax.training.recovery import Diverged, Recovery
from mae_jax.training.run_directory import RunDirectory

BAD = {"loss": float("nan"), "gradient_norm": 1.0, "gradient_norms": {"net": 1.0}}


@pytest.fixture
def make(tmp_path):
    """Makes the recovery of a run in the same directory, at a step with a checkpoint."""

    def recovery(step: int = 0, metadata: dict | None = None, **limits: int) -> Recovery:
        limits = {"max_skipped_updates": 0, "max_rewinds": 2, "max_failed_saves": 2} | limits
        run = RunDirectory(tmp_path)
        writer = metric_writer.MetricWriter(run.path, step, primary=True)
        made = Recovery(
            SimpleNamespace(**limits), run, writer, lambda position: [f"example {position}"]
        )
        made.resume(step, metadata or {})
        run.config.write_text("{}")  # from now on a run has begun
        return made

    return recovery


def test_bad_updates_in_a_row_are_counted_until_there_are_too_many(make):
    recovery = make(max_skipped_updates=2)
    for step in (1, 2):
        recovery.bad_update(step, BAD)
    recovery.good_update({"loss": 1.0})
    for step in (4, 5):
        recovery.bad_update(step, BAD)
    with pytest.raises(Diverged) as diverged:
        recovery.bad_update(6, BAD)
    assert diverged.value.args == (6, BAD)
    assert recovery.rewind_target(6, BAD) == 3  # before the three


def test_a_rewind_without_a_good_update_since_goes_further_back(make):
    recovery = make(max_rewinds=9)
    for expected in (7, 6):
        with pytest.raises(Diverged):
            recovery.bad_update(8, BAD)
        assert recovery.rewind_target(8, BAD) == expected
        recovery.rewound(8, 7)
    assert recovery.passed == 2


def test_a_good_save_ends_the_count_of_rewinds(make, tmp_path):
    recovery = make(max_rewinds=1)
    for step in (3, 6):
        recovery.rewind_target(step, BAD)
        recovery.rewound(step, step - 1)
        recovery.saved()
    recovery.rewind_target(9, BAD)
    with pytest.raises(UserError, match="step 9 diverged, after 1 rewind.*example 10"):
        recovery.rewind_target(9, BAD)
    assert json.loads((tmp_path / "diverged.json").read_text())["loss"] is None


def test_the_counts_of_a_checkpoint_or_of_a_later_rewind_to_it_come_back(make):
    recovery = make(4, {"passed": 3, "skipped": 1, "rewinds": 1})
    assert recovery.metadata() == {"passed": 3, "skipped": 1, "rewinds": 1}
    assert recovery.rewind_target(6, BAD) == 5
    recovery.rewound(6, 4)
    again, other = make(4, {"passed": 3}), make(5, {"passed": 3})
    assert (again.passed, again.rewinds, again.rewound_to) == (5, 2, 4)
    assert (other.passed, other.rewinds, other.rewound_to) == (3, 0, None)


def test_the_rewind_of_an_earlier_run_in_the_directory_is_not_used(make, tmp_path):
    recovery = make()
    recovery.rewind_target(1, BAD)
    recovery.rewound(1, 0)
    (tmp_path / "config.json").unlink()  # as a user does to begin again
    assert make().passed == 0


def test_failed_saves_end_the_run_when_there_are_too_many(make, tmp_path):
    recovery = make()
    recovery.failed_save(5, OSError("no space"), failures=1)
    with pytest.raises(UserError, match=r"\(no space\), 2 in a row: .* the same command continues"):
        recovery.failed_save(6, OSError("no space"), failures=2)
    assert [r["failed_saves"] for r in metric_writer.read(tmp_path)] == [1, 2]
