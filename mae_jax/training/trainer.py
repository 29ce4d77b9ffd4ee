"""The training loop: batches, steps, metrics, checkpoints and evaluations."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jax
import jaxlib

import mae_jax
from mae_jax import evaluators
from mae_jax.config import schema
from mae_jax.config.errors import UserError, user_errors
from mae_jax.data.bad_examples import Unreadable
from mae_jax.output import tables
from mae_jax.training import checkpoints
from mae_jax.training.batches import Batches, Prefetcher
from mae_jax.training.metric_writer import MetricWriter
from mae_jax.training.preemption import StopSignal
from mae_jax.training.program import Program
from mae_jax.training.progress import Progress
from mae_jax.training.recovery import Diverged, Recovery
from mae_jax.training.run_directory import RunDirectory
from mae_jax.training.step import TrainState
from mae_jax.training.watchdog import Watchdog
from mae_jax.weights import fingerprint

_log = logging.getLogger(__name__)
VERSIONS = {"mae_jax": mae_jax.__version__, "jax": jax.__version__, "jaxlib": jaxlib.__version__}
LONGEST_PAUSE = 60.0  # seconds between two attempts to save


@dataclasses.dataclass
class Trainer:
    """The training of a run to step `total`, from the newest checkpoint in its work directory.

    The metrics of a step are read one step later, while the next one runs, so the devices never
    wait for the host. After too many bad updates in a row the trainer restores a checkpoint from
    before them and trains on the batches after them.

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
        self.compiled: Any = None
        self.pending: tuple[int, dict] | None = None  # a step whose metrics are on the devices
        self.checkpoints = checkpoints.Checkpoints(self.run.checkpoints, self.config.keep)
        self.watchdog = Watchdog(self.config.recovery.stall_timeout)
        is_quiet = jax.process_index() > 0
        self.progress = Progress(0, self.total, self.config.batch_size, quiet=is_quiet)

    def resume(self) -> None:
        """Restore the newest checkpoint, or make the state at step 0, and continue its records."""
        self.state, metadata = self.restore()
        start = int(self.state.step)
        self.check_epochs(metadata.get("config", self.config))
        primary = jax.process_index() == 0
        self.writer = MetricWriter(self.run.path, start, primary, self.run.is_local)
        self.progress.rewind(start)
        limits, names = self.config.recovery, self.batches.names
        self.recovery = Recovery(limits, self.run, self.writer, names)
        with user_errors():
            self.recovery.resume(start, metadata)
        before = metadata.get("versions", VERSIONS)
        if before != VERSIONS:
            listed = lambda versions: ", ".join(map(" ".join, versions.items()))
            text = "%s was saved by %s and continues with %s: last bits of results may change"
            _log.warning(text, self.run, listed(before), listed(VERSIONS))

    def check_epochs(self, saved: Mapping[str, Any]) -> None:
        """Raise UserError if the run of the restored checkpoint had more epochs."""
        epochs = self.run.changes.applied(saved)["epochs"]
        if epochs > self.config.epochs:
            raise UserError(
                f"{self.run} was trained for {epochs:g} epochs in all, and its config.json and "
                f"changes.json say {self.config.epochs:g}: put back the changes.json, or the "
                "config.json, that it had"
            )

    @property
    def is_finished(self) -> bool:
        return int(self.state.step) == self.total and self.run.report.exists()

    def fit(self) -> TrainState:
        """Train to the end.

        Raises:
          UserError: the run diverged or could not be saved, again and again, with advice.
          SystemExit: the process was asked to stop, and the state is saved.
        """
        self.evaluate_if_missed()
        while int(self.state.step) < self.total:
            try:
                self.train_to_the_end()
            except Diverged as diverged:
                self.rewind(*diverged.args)
            except Unreadable:
                self.save_before_ending()
                raise
        return self.state

    def train_to_the_end(self) -> None:
        """Take all remaining steps; raise Diverged after too many bad updates in a row."""
        start, last = int(self.state.step), self.total
        batches = Prefetcher(self.batches.at(start + self.recovery.passed), last - start)
        with contextlib.closing(batches):
            for step in range(start + 1, last + 1):
                first = step == start + 1  # the first step compiles, and waits for threads
                with self.progress.paused() if first else contextlib.nullcontext():
                    batch = self.next_batch(batches)
                self.take_step(step, batch)
                stop = self.stop.agreed()  # the same in all processes
                if stop or self.saves_at(step) or self.due(step):
                    self.read_metrics()
                    self.save_and_evaluate(step)

    def next_batch(self, batches: Prefetcher) -> dict[str, jax.Array]:
        """Return the next batch, or leave on a request to stop; compile the step for the first."""
        self.watchdog.reset()
        if self.pending and not batches.is_ready:  # count how long the devices wait, not the host
            self.pending[1]["loss"].block_until_ready()
        with self.progress.waiting():
            batch = batches.next(lambda: self.stop.status)
        if batch is None:
            self.read_metrics()
            self.leave()
        if self.compiled is None:
            with self.stop.exits_at_once():  # nothing is trained yet
                self.compile(batch)
        return batch

    def compile(self, batch: dict[str, jax.Array]) -> None:
        """Compile the step for the shapes of this batch: nothing is ever compiled again."""
        self.compiled = self.program.step.lower(self.state, batch).compile()
        if self.config.recovery.check_determinism:
            check_determinism(self.compiled, self.state, batch)

    def take_step(self, step: int, batch: dict[str, jax.Array]) -> None:
        """Dispatch a step, and read the last step's metrics while the devices compute this one."""
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            self.state, metrics = self.compiled(self.state, batch)
        self.read_metrics()
        self.pending = step, metrics

    def read_metrics(self) -> None:
        """Record the metrics of the pending step; raise Diverged after too many bad updates."""
        if self.pending is None:
            return
        (step, metrics), self.pending = self.pending, None
        metrics = jax.tree.map(float, jax.device_get(metrics))
        self.progress.advance(step)
        if metrics.pop("bad_update"):
            self.recovery.bad_update(step, metrics)
            return
        del metrics["gradient_norms"]
        self.recovery.good_update(metrics)
        if step % self.config.log_every == 0 or step == self.total:
            speed = self.progress.show(step, metrics["loss"], metrics["learning_rate"])
            unreadable = {"unreadable": self.batches.bad_examples.share}
            self.writer.write(step, metrics | speed | unreadable)

    # --- evaluations ------------------------------------------------------------------------------

    def saves_at(self, step: int) -> bool:
        """Return whether a checkpoint is due after this step."""
        return step % self.config.save_every == 0 or step == self.total

    def due(self, step: int) -> list[evaluators.Entry]:
        """Return the evaluators to run after this step; after the last step the report runs all."""
        is_due = lambda every: every and step % every == 0 and step < self.total
        return [entry for entry in self.evaluations if is_due(entry.every)]

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
        """Run the evaluators that are due; record, show and draw their results."""
        if not (due := self.due(step)):
            return
        result = evaluators.join([x.evaluate(self.state.best) for x in self.watched(due)])
        self.writer.write(step, result.metrics)
        for name, picture in result.pictures.items():
            suffix = "" if name == "reconstruction" else f"_{name}"
            self.writer.picture(f"step_{step:08}{suffix}.png", picture)
        _log.info("step %d/%d  %s", step, self.total, tables.listed(result.metrics))

    def watched(self, entries: Sequence[evaluators.Entry]) -> Iterator[evaluators.Entry]:
        """Yield the entries; each of them may take as long as a step before the watchdog speaks."""
        for entry in entries:
            self.watchdog.reset()
            yield entry

    def evaluate_if_missed(self) -> None:
        """Evaluate the restored state if the run was stopped after its save."""
        start = int(self.state.step)
        with self.stop.exits_at_once(), self.progress.paused():
            if start and not self.writer.is_evaluated(start):
                self.evaluate(start)

    # --- checkpoints ------------------------------------------------------------------------------

    def restore(self, up_to: int | None = None) -> tuple[TrainState, dict[str, Any]]:
        """Return the newest good checkpoint (up to a step) and its metadata, or make a state."""
        with user_errors():
            restored = self.checkpoints.restore_newest(self.program.abstract, up_to)
        return restored or (self.begin(), {})

    def save(self, wait: bool = False) -> None:
        """Save the state in the background, or with `wait` try until the state is on disk.

        Raises:
          Diverged: the state is not finite; nothing is saved.
          UserError: too many saves failed in a row.
        """
        pause = 1.0
        while not self.try_to_save(wait) and wait:
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        self.writer.upload()

    def try_to_save(self, wait: bool) -> bool:
        """Try once to save the state; return whether that worked."""
        self.watchdog.reset()
        step = int(self.state.step)
        metadata: dict[str, Any] = self.recovery.metadata()
        try:
            metadata |= {"config": schema.to_dict(self.config), "versions": VERSIONS}
            self.checkpoints.save(self.state, metadata, wait=wait)
        except checkpoints.NotFinite as error:
            metrics = self.recovery.last_good | {"not_finite": str(error)}
            raise Diverged(step, metrics) from error
        except OSError as error:
            self.recovery.failed_save(step, error, self.checkpoints.failures)
            return False
        self.recovery.saved()
        return True

    def save_before_ending(self) -> None:
        """Save if possible, in a single process: others may not know that the run ends."""
        if jax.process_count() == 1:
            with contextlib.suppress(Diverged, UserError):
                self.save(wait=True)

    def leave(self) -> NoReturn:
        """Save this step and exit with the status of the request to stop."""
        self.save(wait=True)
        _log.info("stopped: step %d is saved, the same command continues", int(self.state.step))
        raise SystemExit(self.stop.status)

    def rewind(self, step: int, metrics: dict[str, Any]) -> None:
        """Go back to before the bad updates; raise UserError after too many rewinds."""
        target = self.recovery.rewind_target(step, metrics)
        self.watchdog.reset()
        self.pending = None
        jax.tree.map(lambda x: x.delete(), self.state)  # memory may not hold two states
        self.state, _ = self.restore(target)
        target = int(self.state.step)
        self.recovery.rewound(step, target)
        self.progress.rewind(target)

    def close(self) -> None:
        """Wait for the save in the background, and end the watchdog and the progress bar."""
        self.watchdog.close()
        self.progress.close()
        self.checkpoints.close()


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
            "without the check: --noconfig.recovery.check_determinism"
        )
