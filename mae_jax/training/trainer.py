"""The trainer: step after step, and what is done when one goes wrong."""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax

from mae_jax import evaluators
from mae_jax.config import schema
from mae_jax.config.errors import UserError, user_errors
from mae_jax.data.bad_examples import Unreadable
from mae_jax.evaluators import visualize
from mae_jax.output import tables
from mae_jax.training import checkpoints, metric_writer
from mae_jax.training.batches import Batches, Prefetcher
from mae_jax.training.preemption import StopSignal
from mae_jax.training.program import Program
from mae_jax.training.progress import Progress
from mae_jax.training.run_directory import RunDirectory
from mae_jax.training.step import TrainState
from mae_jax.training.watchdog import Watchdog
from mae_jax.weights import fingerprint

_log = logging.getLogger(__name__)


class Diverged(Exception):
    """Too many bad updates in a row: the step of the last one, and its metrics."""


@dataclasses.dataclass
class Trainer:
    """Trains a state to step `total`, and keeps what a run leaves behind.

    The metrics of a step are read one step later, while the next one runs, so the devices never
    wait for the host. After too many bad updates in a row the run goes back to a checkpoint from
    before them and on with the batches behind them; after too many rewinds it ends with a report.

    Args:
      begin: makes the state at step 0.
    """

    config: Any
    total: int
    program: Program
    begin: Callable[[], TrainState]
    batches: Batches
    evaluations: Sequence[evaluators.Entry]
    run: RunDirectory
    stop: StopSignal

    def __post_init__(self):
        self.checkpoints = checkpoints.Checkpoints(self.run.checkpoints, self.config.keep)
        self.passed = 0  # batches that the run went past without training on them
        self.bad_updates = 0  # in a row
        self.rewinds, self.rewound_to = 0, None  # since the last good save
        self.last_good: dict[str, float] = {}  # metrics of the newest good step that were read
        self.compiled: Any = None
        self.watchdog = Watchdog(self.config.recovery.stall_timeout)
        self.state = self.restore() or self.begin()
        start = int(self.state.step)
        primary, size = jax.process_index() == 0, self.config.batch_size
        self.writer = metric_writer.MetricWriter(self.run.path, start, primary, self.run.is_local)
        self.progress = Progress(start, self.total, size, quiet=not primary)

    @property
    def is_finished(self) -> bool:
        return int(self.state.step) == self.total and self.run.report.exists()

    # --- the run ----------------------------------------------------------------------------------

    def fit(self) -> TrainState:
        """Train to the end.

        Raises:
          UserError: the run diverged or could not be saved, again and again; what to do.
          SystemExit: the process was asked to stop, and the state is saved.
        """
        with self.stop.exits_at_once():  # the run was stopped between a save and its evaluation
            start = int(self.state.step)
            if 0 < start < self.total and not self.writer.is_evaluated(start):
                self.evaluate(start)
        while int(self.state.step) < self.total:
            try:
                self.train_until(self.total)
            except Diverged as trouble:
                self.rewind(*trouble.args)
            except Unreadable:  # too many examples, of which another process may know nothing
                if jax.process_count() == 1:
                    with contextlib.suppress(Diverged, UserError):
                        self.save(wait=True)
                raise
        return self.state

    def train_until(self, last: int) -> None:
        """Take the steps up to `last`."""
        start, pending = int(self.state.step), None
        batches = Prefetcher(self.batches.at(start + self.passed), last - start)
        with contextlib.closing(batches):
            for step in range(start + 1, last + 1):
                first = step == start + 1  # which compiles, and waits for threads to start
                with self.progress.paused() if first else contextlib.nullcontext():
                    batch = self.next_batch(batches, pending)
                with jax.profiler.StepTraceAnnotation("train", step_num=step):
                    self.state, metrics = self.compiled(self.state, batch)
                self.report(pending)
                pending = step, metrics
                if self.must_save(step):
                    self.report(pending)
                    pending = None
                    self.save_and_evaluate(step)

    def next_batch(self, batches: Prefetcher, pending) -> dict[str, jax.Array]:
        """The next batch, for which the step is compiled; or the end, if a stop was asked for."""
        self.watchdog.reset()
        if pending and not batches.is_ready:  # count what the devices wait, not what we do
            pending[1]["loss"].block_until_ready()
        with self.progress.waiting():
            batch = batches.next(lambda: self.stop.status)
        if batch is None:
            self.report(pending)
            self.leave()
        if self.compiled is None:
            with self.stop.exits_at_once():  # nothing is trained yet
                self.compile(batch)
        return batch

    def compile(self, batch: dict[str, jax.Array]) -> None:
        """Compile the step, for these shapes and no others: nothing is ever compiled again."""
        self.compiled = self.program.step.lower(self.state, batch).compile()
        if self.config.recovery.check_determinism:
            check_determinism(self.compiled, self.state, batch)

    def must_save(self, step: int) -> bool:
        """Whether to save after this step: before each evaluation, so that it may be interrupted
        at any time; at the end; and when the process is asked to stop."""
        asked = self.stop.agreed()
        saving = step % self.config.save_every == 0 or step == self.total
        return bool(asked or saving or self.due(step))

    def due(self, step: int) -> list[evaluators.Entry]:
        """The evaluators to run after this step; after the last one, the report runs all."""
        return [
            x for x in self.evaluations if x.every and step % x.every == 0 and step < self.total
        ]

    def save_and_evaluate(self, step: int) -> None:
        with self.progress.paused():
            if self.stop.status:
                self.leave()
            self.save(wait=step == self.total)
            try:
                with self.stop.exits_at_once(lambda: self.checkpoints.is_saved(step)):
                    self.evaluate(step)
            except SystemExit:
                self.leave()

    def evaluate(self, step: int) -> None:
        """Run the evaluators that are due; record, show and draw what they find."""
        if not (due := self.due(step)):
            return
        self.watchdog.reset()
        result = evaluators.join([entry.evaluate(self.state.best) for entry in due])
        self.writer.write(step, result.metrics)
        for name, picture in result.pictures.items():
            suffix = "" if name == "reconstruction" else f"_{name}"
            self.writer.picture(f"step_{step:08}{suffix}.png", picture)
        _log.info("step %d/%d  %s", step, self.total, tables.listed(result.metrics))

    # --- metrics ----------------------------------------------------------------------------------

    def report(self, pending: tuple[int, dict] | None) -> None:
        """Read the metrics of a dispatched step, which waits for it; record and show them.

        Raises:
          Diverged: its update is bad, after too many others.
        """
        if pending is None:
            return
        step, metrics = pending
        metrics = jax.tree.map(float, jax.device_get(metrics))
        norms = metrics.pop("gradient_norms")
        self.progress.advance(step)
        if not metrics.pop("bad_update"):
            self.bad_updates, self.last_good = 0, metrics
            if step % self.config.log_every == 0 or step == self.total:
                speed = self.progress.show(step, metrics["loss"], metrics["learning_rate"])
                unreadable = {"unreadable": self.batches.bad_examples.share}
                self.writer.write(step, metrics | speed | unreadable)
            return
        self.bad_updates += 1
        text = f"loss {metrics['loss']:.4g}, gradient norm {metrics['gradient_norm']:.4g}"
        if self.config.recovery.max_skipped_updates:
            self.event(step, "skipped", f"{text}: this update is left out")
        else:
            self.event(step, "bad_update", f"{text}: this update is bad")
        if self.bad_updates > self.config.recovery.max_skipped_updates:
            raise Diverged(step, metrics | {"gradient_norms": norms})

    def event(self, step: int, kind: str, text: str, **numbers: float) -> None:
        """Record and show something out of the ordinary."""
        self.writer.write(step, numbers, event=kind, text=text)
        _log.info("step %d: %s", step, text)

    # --- checkpoints ------------------------------------------------------------------------------

    def restore(self, before: int | None = None) -> TrainState | None:
        """The newest good checkpoint (up to a step), and what the run remembers beside it."""
        with user_errors():
            found = self.checkpoints.restore_newest(self.program.abstract, before)
        if found is None:
            return None
        if before is None:
            self.passed = found[1].get("passed", 0)
            self.bad_updates = found[1].get("skipped", 0)
        return found[0]

    def save(self, wait: bool = False) -> None:
        """Save the state in the background, or `wait` until it is on disk.

        Raises:
          Diverged: the state is not finite; nothing is saved.
          UserError: too many saves failed in a row.
        """
        self.watchdog.reset()
        step, most = int(self.state.step), self.config.recovery.max_failed_saves
        memory = {"passed": self.passed, "skipped": self.bad_updates}
        memory |= {"config": schema.to_dict(self.config)}
        try:
            self.checkpoints.save(self.state, memory, wait=wait)
        except checkpoints.NotFinite as error:
            raise Diverged(step, self.last_good | {"not_finite": str(error)}) from error
        except OSError as error:
            text, failures = f"a checkpoint could not be saved ({error})", self.checkpoints.failures
            self.event(step, "save_failed", text, failed_saves=failures)
            if failures >= most:
                raise UserError(
                    f"{text}, {failures} in a row: those before are as they were; make room, "
                    "or mend that, and the same command continues from there"
                ) from error
            if wait:
                self.save(wait)
        else:
            self.rewinds = self.rewinds if self.bad_updates else 0
        self.writer.upload()

    def leave(self) -> NoReturn:
        """Save this step and exit, as was asked for."""
        self.save(wait=True)
        _log.info("stopped: step %d is saved, the same command continues", int(self.state.step))
        raise SystemExit(self.stop.status)

    def rewind(self, step: int, metrics: dict[str, Any]) -> None:
        """Go back to a checkpoint from before a bad update, and on with the batches behind it.

        Raises:
          UserError: there were too many rewinds; the report of the divergence.
        """
        self.rewinds += 1
        before = step - max(1, self.bad_updates)
        if before == self.rewound_to:  # not one good step since: go further back
            before -= 1
        if self.rewinds > self.config.recovery.max_rewinds:
            raise UserError(self.diverged(step, metrics))
        self.watchdog.reset()
        jax.tree.map(lambda x: x.delete(), self.state)  # there may be no room for two
        self.state = self.restore(before) or self.begin()
        self.rewound_to = int(self.state.step)
        self.passed += step - self.rewound_to
        self.bad_updates = 0
        self.writer.drop(self.rewound_to, keep_events=True)
        self.progress.rewind(self.rewound_to)
        self.event(step, "rewound", f"back to step {self.rewound_to}, past the batches since")

    def diverged(self, step: int, metrics: dict[str, Any]) -> str:
        """Write `diverged.json`, and say what is in it and what to try."""
        examples = self.batches.names(step - 1 + self.passed)
        path, before = self.run.path / "diverged.json", self.last_good.get("loss")
        found = {"step": step, **metrics, "loss_before": before, "examples": examples}
        with contextlib.suppress(OSError):  # the message says it in any case
            text = json.dumps(metric_writer.finite(found), indent=2)
            self.writer.text(path.name, text + "\n")
        norms = metrics.get("gradient_norms", {})
        listed = ", ".join(f"{part} {x:.3g}" for part, x in norms.items())
        self.event(step, "stopped", f"it diverged, after {self.rewinds - 1} rewinds")
        return (
            f"step {step} diverged, after {self.rewinds - 1} rewind(s): loss "
            f"{metrics.get('loss')}, the one before was {before}, learning rate "
            f"{metrics.get('learning_rate', 0):.3g}, "
            f"{metrics.get('not_finite') or f'gradient norms {listed}'}; the batch: "
            f"{', '.join(examples[:8])} ... (all of it in {path}). Nothing of it was saved. Try a "
            "lower optimizer.base_learning_rate, a longer optimizer.warmup_epochs, "
            "optimizer.clip=1.0 or model.dtype=float32, in a new work directory"
        )

    # --- the end ----------------------------------------------------------------------------------

    def write_report(self, untrained: Callable[[], dict]) -> None:
        """Write the final tables of all evaluators to `report.txt`, and the pictures.

        Args:
          untrained: makes the variables of step 0, as a baseline.
        """
        self.watchdog.reset()
        baseline = untrained() if self.evaluations else None
        result = evaluators.report(self.evaluations, self.state.best, baseline)
        if result.metrics and not self.writer.is_evaluated(self.total):
            self.writer.write(self.total, result.metrics)
        for name, picture in result.pictures.items():
            self.writer.picture(f"{name}.png", picture)
        if self.writer.primary:
            records = [json.loads(line) for line in self.writer.lines]
            names = ("loss", "test_loss")
            curves = {name: metric_writer.series(records, name) for name in names}
            self.writer.picture("loss.png", visualize.curve(curves, self.run.path.name, "loss"))
        text = result.text or "no evaluation: the config has no evaluators"
        self.writer.text(self.run.report.name, text + "\n")
        self.writer.upload()
        self.progress.close()
        _log.info("\n%s\n\nlook at the pictures in %s", text, self.run.path / "pictures")

    def close(self) -> None:
        """Wait for what is being saved, and put the screen and the process in order."""
        self.watchdog.close()
        self.progress.close()
        self.checkpoints.close()
        self.writer.close()


def check_determinism(compiled: Callable, state: TrainState, batch: dict) -> None:
    """Raise UserError if a step, computed twice, does not give the same bits."""
    first, second = (
        fingerprint.of(compiled(jax.tree.map(lambda x: x.copy(), state), batch))[0]
        for _ in range(2)
    )
    if different := [name for name, sums in first.items() if second[name] != sums]:
        raise UserError(
            f"a step computed twice gives other bits in {', '.join(different[:5])}: this run could "
            "not be repeated; on a GPU try XLA_FLAGS=--xla_gpu_deterministic_ops=true, or do "
            "without: --noconfig.recovery.check_determinism"
        )
