"""The trainer, with a program of one number that each batch is added to."""

import json
import shutil
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mae_jax import evaluators
from mae_jax.config import command_line, schema
from mae_jax.config.errors import UserError
from mae_jax.training import metric_writer, report
from mae_jax.training import trainer as trainer_module
from mae_jax.training.preemption import StopSignal
from mae_jax.training.program import Program
from mae_jax.training.run_directory import RunDirectory
from mae_jax.training.step import TrainState
from mae_jax.training.trainer import Trainer, check_determinism

TOTAL = 12


def begin() -> TrainState:
    return TrainState(jnp.int32(0), {"w": jnp.zeros(())}, {}, loss_ema=jnp.float32(0))


def program(guard: bool = False) -> Program:
    @jax.jit
    def step(state, batch):
        good = jnp.isfinite(batch["x"])
        w = jnp.where(good | (not guard), state.params["w"] + batch["x"], state.params["w"])
        metrics = {"loss": batch["x"], "gradient_norm": batch["x"], "learning_rate": jnp.ones(())}
        metrics |= {"bad_update": 1.0 - good, "gradient_norms": {"net": batch["x"]}}
        return state.replace(step=state.step + 1, params={"w": w}), metrics

    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), begin()
    )
    return Program(lambda key: {}, lambda variables: begin(), step, abstract)


class Batches:
    """The batch at position i is the number 2**i, or NaN at the bad positions."""

    class bad_examples:
        share = 0.0

    def __init__(self, *bad: int):
        self.bad = bad

    def at(self, position: int):
        while True:
            yield {"x": jnp.float32(np.nan if position in self.bad else 2.0**position)}
            position += 1

    def names(self, position: int) -> list[str]:
        return [f"example {position}"]


class Evaluator:
    """Evaluates to the number itself, and does something else beside that."""

    def __init__(self, then=lambda: None):
        self.then, self.asked = then, []

    def evaluate(self, variables):
        self.asked.append(float(variables["params"]["w"]))
        self.then()
        return evaluators.Result({"knn": self.asked[-1]})

    def report(self, variables, untrained=None):
        metrics = self.evaluate(variables).metrics | {"knn_untrained": untrained["w"]}
        pictures = {name: Image.new("RGB", (2, 2)) for name in ("reconstruction", "other")}
        return evaluators.Result(metrics, "the table", pictures=pictures)


@pytest.fixture
def make(tmp_path):
    """Makes a trainer on the same work directory, with changes of the config."""
    made = []

    def trainer(batches=None, evaluator=None, stop=None, **changes) -> Trainer:
        config = schema.validate(command_line.load("configs/vit_base.py:debug"))
        changes = {"log_every": 1, "save_every": 2, **changes}
        config = schema.updated(config, changes)
        guard = config.recovery.max_skipped_updates > 0
        entries = [evaluators.Entry("knn", 4, evaluator)] if evaluator else []
        parts = (program(guard), begin, batches or Batches(), entries)
        made.append(Trainer(config, TOTAL, *parts, RunDirectory(tmp_path), stop or StopSignal()))
        made[-1].resume()
        return made[-1]

    yield trainer
    for one in made:
        one.close()


def losses(path) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in metric_writer.read(path) if "loss" in r}


def events(path) -> list[tuple[int, str]]:
    return [(r["step"], r["event"]) for r in metric_writer.read(path) if "event" in r]


def test_each_step_trains_on_its_batch_and_is_recorded(make, tmp_path):
    state = make().fit()
    assert int(state.step) == TOTAL and float(state.params["w"]) == 2**TOTAL - 1
    assert losses(tmp_path) == {step: 2.0 ** (step - 1) for step in range(1, TOTAL + 1)}
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"10", "12"}
    assert make().is_finished is False  # without its report


def test_bad_updates_are_left_out_and_the_run_goes_on(make, tmp_path):
    state = make(Batches(2, 3, 7), **{"recovery.max_skipped_updates": 2}).fit()
    assert float(state.params["w"]) == 2**TOTAL - 1 - 4 - 8 - 128
    assert events(tmp_path) == [(3, "skipped"), (4, "skipped"), (8, "skipped")]


@pytest.mark.parametrize("skips", [0, 1])
def test_after_too_many_the_run_goes_back_and_past_the_batches(make, tmp_path, skips):
    """To the checkpoint before the first bad update; none of the batches since is seen again."""
    bad = range(4, 5 + skips)
    state = make(Batches(*bad), **{"recovery.max_skipped_updates": skips}).fit()
    assert int(state.step) == TOTAL
    passed = sum(2**i for i in bad)
    assert float(state.params["w"]) == 2 ** (TOTAL + len(bad)) - 1 - passed
    kind = "skipped" if skips else "bad_update"
    assert events(tmp_path) == [*((i + 1, kind) for i in bad), (max(bad) + 1, "rewound")]
    assert sorted(losses(tmp_path)) == list(range(1, TOTAL + 1))


def test_what_it_went_past_is_remembered_when_it_resumes(make, tmp_path):
    straight = make(Batches(4)).fit()
    shutil.rmtree(tmp_path / "checkpoints" / "12")
    resumed = make(Batches(4))
    assert int(resumed.state.step) == 10 and resumed.recovery.passed == 1
    assert float(resumed.fit().params["w"]) == float(straight.params["w"])


@pytest.mark.parametrize("bad", [1, 5], ids=["before the first save", "after a save"])
def test_a_rewind_is_remembered_when_the_run_is_killed_before_its_next_save(make, tmp_path, bad):
    killed = make(Batches(bad), save_every=4)
    killed.run.write_config(killed.config)
    take_step = killed.take_step

    def take_step_or_die(step, batch):
        if killed.recovery.rewinds and step == bad + 2:
            raise KeyboardInterrupt
        take_step(step, batch)

    killed.take_step = take_step_or_die
    with pytest.raises(KeyboardInterrupt):
        killed.fit()
    killed.close()
    resumed = make(Batches(bad), save_every=4)
    assert int(resumed.state.step) == resumed.recovery.rewound_to == bad // 4 * 4
    assert (resumed.recovery.passed, resumed.recovery.rewinds) == (bad % 4 + 1, 1)
    resumed.fit()
    assert events(tmp_path) == [(bad + 1, "bad_update"), (bad + 1, "rewound")]
    assert list(losses(tmp_path)) == list(range(1, TOTAL + 1))


def test_after_too_many_rewinds_it_stops_with_a_report(make, tmp_path):
    with pytest.raises(UserError, match=r"step 5 diverged, after 1 rewind.*example 9 ") as stopped:
        make(Batches(4, 9), **{"recovery.max_rewinds": 1}, save_every=10).fit()
    for words in ("loss nan", "learning rate 1,", "gradient norms net nan", "Try a lower"):
        assert words in str(stopped.value)
    report = json.loads((tmp_path / "diverged.json").read_text())
    assert report["step"] == 5 and report["examples"] == ["example 9"]
    assert [kind for _, kind in events(tmp_path)][-2:] == ["bad_update", "stopped"]


@pytest.mark.parametrize("at", [4, 6])
def test_it_saves_and_exits_when_it_is_asked_to_stop(make, tmp_path, at):
    """At the next step, whatever that is; the same trainer goes on to the same end."""
    stop = StopSignal()
    trainer = make(stop=stop, save_every=100)
    take_step = trainer.take_step

    def take_step_and_stop(step, batch):
        take_step(step, batch)
        if step == at:
            stop.handle(signal.SIGTERM)

    trainer.take_step = take_step_and_stop
    with pytest.raises(SystemExit) as stopped:
        trainer.fit()
    assert stopped.value.code == 42 and max(losses(tmp_path)) == at
    resumed = make()
    assert int(resumed.state.step) == at
    assert float(resumed.fit().params["w"]) == 2**TOTAL - 1
    assert list(losses(tmp_path)) == list(range(1, TOTAL + 1))


def test_where_no_batch_comes_a_stop_still_saves(make, tmp_path):
    class Stop(StopSignal):
        def agreed(self):  # the signal comes after this was asked
            return 0

    stop, batches, comes = Stop(), Batches(), threading.Event()

    def hanging(position):
        yield from ({"x": jnp.float32(1)} for _ in range(3))
        stop.handle(signal.SIGTERM)
        comes.wait()

    batches.at = hanging
    trainer = make(batches, stop=stop, save_every=100)
    with pytest.raises(SystemExit):
        trainer.fit()
    comes.set()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]


def test_evaluations_are_recorded_and_may_be_interrupted(make, tmp_path):
    stop = StopSignal()
    first = Evaluator(lambda: stop.handle(signal.SIGTERM))
    with pytest.raises(SystemExit):
        make(evaluator=first, stop=stop).fit()
    assert first.asked == [15.0]
    assert "4" in {path.name for path in (tmp_path / "checkpoints").iterdir()}
    second = Evaluator()
    make(evaluator=second).fit()
    assert second.asked == [15.0, 255.0]  # at 4 once more; after the last step the report asks
    found = [(r["step"], r["knn"]) for r in metric_writer.read(tmp_path) if "knn" in r]
    assert found == [(4, 15.0), (8, 255.0)]


def test_the_report_holds_the_tables(make, tmp_path):
    trainer = make(evaluator=Evaluator())
    trainer.fit()
    report.write(trainer, lambda: {"w": 0.5})
    assert (tmp_path / "report.txt").read_text() == "the table\n" and trainer.is_finished
    assert {"reconstruction.png", "other.png"} < {x.name for x in (tmp_path / "pictures").iterdir()}
    records = metric_writer.read(tmp_path)
    assert records[-1] == {"step": TOTAL, "knn": 4095.0, "knn_untrained": 0.5}
    assert metric_writer.series(records, "knn") == ([4, 8, 12], [15.0, 255.0, 4095.0])


class Full:
    """Checkpoints on a full disk."""

    failures = 0

    def save(self, *arguments, **options):
        self.failures += 1
        raise OSError("no space")

    def close(self):
        pass


def test_failed_saves_are_recorded_and_too_many_end_the_run(make, tmp_path):
    trainer = make()
    trainer.checkpoints.close()
    trainer.checkpoints = Full()
    with pytest.raises(UserError, match=r"could not be saved \(no space\), 3 in a row"):
        trainer.fit()
    assert events(tmp_path) == [(2, "save_failed"), (4, "save_failed"), (6, "save_failed")]


def test_a_save_that_is_waited_for_is_tried_again_after_growing_pauses(make, monkeypatch):
    pauses, most = [], 2000
    monkeypatch.setattr(trainer_module.time, "sleep", pauses.append)
    trainer = make(**{"recovery.max_failed_saves": most})
    trainer.checkpoints.close()
    trainer.checkpoints = Full()
    with pytest.raises(UserError, match=f"{most} in a row"):
        trainer.save(wait=True)
    assert pauses[:3] == [1, 2, 4] and set(pauses[6:]) == {60} and len(pauses) == most - 1


def test_a_step_that_gives_other_bits_is_refused():
    calls = iter(range(9))

    def step(state, batch):
        return state, {"loss": jnp.float32(next(calls))}

    with pytest.raises(UserError, match="other bits in 1/loss: this run could"):
        check_determinism(step, begin(), {})
    check_determinism(program().step, begin(), {"x": jnp.float32(1)})


def test_other_versions_are_told(make, monkeypatch, caplog):
    make().fit()
    make()
    assert "continues with" not in caplog.text
    monkeypatch.setitem(trainer_module.VERSIONS, "jax", "9.9.9")
    make()
    assert f"jax {jax.__version__}, jaxlib" in caplog.text and "jax 9.9.9" in caplog.text
