"""Training that goes wrong: updates that overflow, a spike of the loss, an absurd learning rate."""

import re

import grain
import numpy as np
import pytest
import runs
from runs import committed, events, finite

pytestmark = pytest.mark.faults("fault")
EXAMPLES = 400  # fifty steps of eight
SKIPPED = "--config.recovery.max_skipped_updates"
HUGE = 1e38  # finite, its square is not
# what the report of a run that diverged names
REPORT = (r"step \d+", r"(?i)learning.rate", r"(?i)gradient", r"encoder", r"(?i)batch|examples")


@pytest.fixture
def on_noise(tmp_path):
    """Make a command that trains on arrays of noise, one of those of step s times `scale(s)`."""

    def make(scale, *changes) -> runs.Command:
        folder = tmp_path / "arrays" / "train"
        folder.mkdir(parents=True)
        # the order of the run: a function of the seed and of the number of examples
        order = grain.MapDataset.range(EXAMPLES).seed(0).shuffle().repeat()
        rng = np.random.default_rng(0)
        for position in range(EXAMPLES):
            x = rng.normal(size=(40, 40, 1)).clip(-3, 3).astype(np.float32)
            if position % 8 == 3:
                x *= np.float32(scale(position // 8))
            np.save(folder / f"{order[position]:04}.npy", x)
        data = "examples=0 channels=1 mean=(0.0,) std=(1.0,)".split()
        data = [f"--config.data.{change}" for change in data]
        source = f"--config.data.train.source=arrays:{folder.parent}"
        model = ("--config.model.channel_groups=()", "--noconfig.model.norm_pix")
        changes = (source, *data, *model, *runs.NO_EVALUATORS, *changes)
        return runs.Command(
            tmp_path, "undisturbed", "multispectral_small", changes, 50, 10, steps_per_epoch=50
        )

    return make


def counted(found):
    """`7 skipped, 1 rewound`, of events."""
    return ", ".join(f"{found.count(name)} {name}" for name in dict.fromkeys(found))


OVERFLOW = {
    "a batch that overflows": (0, "rewound"),
    "a batch that overflows, where five updates may be skipped": (5, "skipped"),
}


@runs.cases("skipped, event", OVERFLOW)
def test_one_bad_batch(on_noise, workdir, happened, skipped, event):
    bad = on_noise(lambda step: HUGE if step == 23 else 1, f"{SKIPPED}={skipped}")
    assert event in events(bad.undisturbed)
    finite(bad.undisturbed, bad.steps)
    run = bad.run(workdir)
    run.at(27)
    run.send(runs.KILL)
    run.ended()
    done = runs.reached(workdir)
    start = bad.finish(workdir)
    bad.same(workdir)
    assert events(workdir) == events(bad.undisturbed)
    happened(f"the update is {event} and recorded; the same after SIGKILL", done - start)


def test_many_bad_batches(on_noise, workdir, happened):
    """five batches in a row that overflow"""
    bad = on_noise(lambda step: HUGE if 24 <= step < 29 else 1, f"{SKIPPED}=3")
    bad.run(workdir).ends(0)
    found = events(workdir)
    assert "skipped" in found and "rewound" in found
    finite(workdir, committed(workdir)[-1])
    happened(f"status 0; {counted(found)}")


def test_every_batch(on_noise, workdir, happened):
    """every batch overflows"""
    run = on_noise(lambda step: HUGE if step >= 24 else 1).run(workdir)
    run.ends(2, *REPORT)
    assert re.search(r"\d{4}\.npy", run.text)
    found = events(workdir)
    assert "rewound" in found and "stopped" in found
    step = committed(workdir)[-1]
    finite(workdir, step)
    happened(f"status 2 with a report; {counted(found)}; step {step} is the last saved")


def test_absurd_learning_rate(pretraining, workdir, happened):
    """a learning rate of 1e30"""
    run = pretraining.run(workdir, "--config.optimizer.base_learning_rate=1e30")
    run.ends(2, *REPORT, r"synthetic train\[\d+\]")
    saved = committed(workdir)
    for step in saved:
        finite(workdir, step)
    text = f"status 2 with a report; {counted(events(workdir))}"
    happened(f"{text}; saved steps {saved} are finite")


def test_spike(on_noise, workdir, happened):
    """a spike of the loss"""
    changes = ("--config.recovery.max_loss_ratio=10", f"{SKIPPED}=5")
    run = on_noise(lambda step: 1e4 if step == 33 else 1, *changes).run(workdir)
    run.ends(0)
    found = events(workdir)
    assert "skipped" in found
    later = [r["loss"] for r in runs.records(workdir) if r.get("loss") and r["step"] > 40]
    assert max(later) < 10
    happened(f"the update is left out and recorded: {counted(found)}")
