"""The training loop: step after step, and what is done when one goes wrong.

An update that is not finite is left out by the step itself. After too many in a row the run goes
back to a checkpoint from before and on with the batches behind; after too many of these it ends.
"""

import collections
import contextlib
import json
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any, NoReturn

import jax

from mae_jax.config import schema
from mae_jax.config.errors import UserError
from mae_jax.data.bad_examples import Unreadable
from mae_jax.training import checkpoints as checkpoint
from mae_jax.training import metric_writer, preemption
from mae_jax.training import progress as progresss
from mae_jax.training.step import TrainState
from mae_jax.weights import fingerprint

AHEAD = 2  # batches on the devices beside the one that is trained on

# What a run remembers beside its state: batches that it went past without training on them, and
# updates left out in a row.
FACTS = {"passed": 0, "skipped": 0}


class Diverged(Exception):
    """Too many updates in a row were left out; of the last one the step and its figures."""


def run(
    config,
    state: TrainState,
    facts: dict[str, Any],
    total: int,
    *,
    train_step: Any,
    batches: Callable[[int], Iterator[dict[str, jax.Array]]],
    names: Callable[[int], list[str]],
    begin: Callable[[], TrainState],
    restored: Callable[[int], tuple[TrainState, dict[str, Any]] | None],
    evaluate: Callable[[TrainState, int], None],
    unreadable: Callable[[], float],
    checkpoints: checkpoint.Checkpoints,
    writer: metric_writer.Writer,
    progress: progresss.Progress,
    stop: preemption.Interruption,
    watch: preemption.Watch,
) -> TrainState:
    """Train `state` up to step `total`.

    Args:
      facts: `FACTS`, or those of the checkpoint.
      train_step: jitted, `state, batch -> state, figures`; see `make_step`.
      batches: on the devices, from a position in the order of the data on.
      names: of the examples of the batch at a position.
      begin: makes a state at step 0.
      restored: the newest good checkpoint, of at most this step.
      evaluate: a state at a step.
      unreadable: the share of the examples so far.

    Raises:
      UserError: it diverged or could not be saved, again and again; what to do.
      SystemExit: it was asked to stop, and is saved.
    """
    recovery, every = config.recovery, config.evaluate.every or total
    compiled: Any = None
    last: dict[str, float] = {}  # the figures of the newest good step that were read
    rewinds, rewound_to = 0, None  # since the last good save

    def event(step: int, kind: str, text: str, **numbers: float) -> None:
        writer.write(step, numbers, event=kind, text=text)
        progress.say(f"step {step}: {text}")

    def settle(step: int, figures) -> None:
        """Read the figures of a dispatched step, which waits for it."""
        nonlocal last
        parts = figures.pop("gradient_norms")
        figures = {name: float(x) for name, x in figures.items()}
        progress.advance(step)
        if not figures.pop("bad_update"):
            facts["skipped"], last = 0, figures
            if step % config.log_every == 0 or step == total:
                speed = progress.show(step, figures["loss"], figures["learning_rate"])
                writer.write(step, figures | speed | {"unreadable": unreadable()})
            return
        facts["skipped"] += 1
        what = f"loss {figures['loss']:.4g}, gradient norm {figures['gradient_norm']:.4g}"
        event(step, "skipped", f"{what}: this update is left out")
        if facts["skipped"] > recovery.skips:
            raise Diverged(
                step, figures | {"gradient_norms": {n: float(x) for n, x in parts.items()}}
            )

    def save(step: int, wait: bool) -> None:
        nonlocal rewinds
        watch.does(f"saving step {step}")
        try:
            checkpoints.save(state, facts | {"config": schema.to_dict(config)}, wait=wait)
        except checkpoint.NotFinite as error:
            raise Diverged(step, last | {"not_finite": str(error)}) from error
        except OSError as error:
            text, failures = f"a checkpoint could not be saved ({error})", checkpoints.failures
            event(step, "save_failed", text, failed_saves=failures)
            if failures >= recovery.failed_saves:
                raise UserError(
                    f"{text}, {failures} in a row: those before are as they were; make room, "
                    "or mend that, and the same command continues from there"
                ) from error
            if wait:
                save(step, wait)
        else:
            rewinds = rewinds if facts["skipped"] else 0

    def steps(batches: Iterator, reader: futures.ThreadPoolExecutor) -> None:
        """Those that are left."""
        nonlocal state, compiled
        start = int(state.step)
        read = lambda: reader.submit(next, batches)
        ahead = collections.deque(read() for _ in range(min(AHEAD, total - start)))
        unread = None  # the figures of the step before, read while the next one runs
        for step in range(start, total):
            with progress.paused() if step == start else contextlib.nullcontext():
                if step + AHEAD < total:
                    ahead.append(read())
                if unread and not ahead[0].done():  # count what the devices wait, not what we do
                    watch.does(f"waiting for the devices, step {step}")
                    unread[1]["loss"].block_until_ready()
                watch.does(f"waiting for data, step {step + 1}")
                with progress.waiting():
                    while not stop.status and not ahead[0].done():
                        futures.wait([ahead[0]], timeout=1)  # which may be for ever
                    if stop.status and not ahead[0].done():
                        leave(step, unread)
                    batch = ahead.popleft().result()
                watch.does(f"training, step {step + 1}")
                if compiled is None:
                    watch.does("compiling")
                    with stop.at_once():  # nothing is trained yet
                        # for these shapes and no others: nothing is ever compiled again
                        compiled = train_step.lower(state, batch).compile()
                        if recovery.canary:
                            refuse_other_bits(compiled, state, batch)
                with jax.profiler.StepTraceAnnotation("train", step_num=step):
                    state, figures = compiled(state, batch)
            if unread:
                settle(*unread)
            done, unread = step + 1, (step + 1, figures)
            status = stop.agreed()
            evaluating = done % every == 0 and done < total
            # before an evaluation, too: it may be stopped where it stands, and so lasts no longer
            saving = status or evaluating or done % config.save_every == 0 or done == total
            if saving:
                watch.does(f"waiting for the devices, step {done}")
                settle(*unread)
                unread = None
            with progress.paused():
                if status:
                    leave(done)
                if saving:
                    save(done, wait=done == total)
                if evaluating:
                    watch.does(f"evaluating at step {done}")
                    try:
                        with stop.at_once(lambda done=done: checkpoints.saved(done)):
                            evaluate(state, done)
                    except SystemExit:
                        leave(done)

    def leave(step: int, unread: tuple | None = None) -> NoReturn:
        """End as asked, with this step saved."""
        if unread:
            settle(*unread)
        save(step, wait=True)
        progress.say(f"stopped: step {step} is saved, the same command continues")
        raise SystemExit(stop.status)

    def rewind(step: int, figures: dict[str, Any]) -> None:
        """Back to a checkpoint from before the trouble, and on with the batches behind it."""
        nonlocal state, rewinds, rewound_to
        rewinds += 1
        before = step - max(1, facts["skipped"])
        if before == rewound_to:  # not one good step since: go further back
            before -= 1
        if rewinds > recovery.rewinds:
            raise UserError(report(step, figures))
        watch.does("going back to a checkpoint")
        jax.tree.map(lambda x: x.delete(), state)  # there may be no room for two
        found = restored(before)
        state = found[0] if found else begin()
        rewound_to = int(state.step)
        facts["passed"] += step - rewound_to
        facts["skipped"] = 0
        writer.drop(rewound_to, keep_events=True)
        progress.again(rewound_to)
        event(step, "rewound", f"back to step {rewound_to}, past the batches since")

    def report(step: int, figures: dict[str, Any]) -> str:
        examples = names(step - 1 + facts["passed"])
        path = writer.workdir / "diverged.json"
        before = last.get("loss")
        found = {"step": step, **figures, "loss_before": before, "examples": examples}
        with contextlib.suppress(OSError):  # it is said in any case
            writer.text(path.name, json.dumps(metric_writer.finite(found), indent=2) + "\n")
        norms = figures.get("gradient_norms", {})
        listed = ", ".join(f"{part} {x:.3g}" for part, x in norms.items())
        event(step, "stopped", f"it diverged, after {rewinds - 1} rewinds")
        return (
            f"step {step} diverged, after {rewinds - 1} rewind(s): loss {figures.get('loss')}, the "
            f"one before was {before}, learning rate {figures.get('learning_rate', 0):.3g}, "
            f"{figures.get('not_finite') or f'gradient norms {listed}'}; the batch: "
            f"{', '.join(examples[:8])} ... (all of it in {path}). Nothing of it was saved. Try a "
            "lower optimizer.base_learning_rate, a longer optimizer.warmup_epochs, "
            "optimizer.clip=1.0 or model.dtype=float32, in a new work directory"
        )

    while int(state.step) < total:
        reader = futures.ThreadPoolExecutor(1)  # takes batches to the devices ahead of time
        try:
            steps(batches(int(state.step) + facts["passed"]), reader)
        except Diverged as trouble:
            rewind(*trouble.args)
        except Unreadable:  # too many, of which another process may know nothing
            if jax.process_count() == 1:
                with contextlib.suppress(Diverged, UserError):
                    save(int(state.step), wait=True)
            raise
        finally:
            reader.shutdown(wait=False, cancel_futures=True)
    return state


def refuse_other_bits(compiled: Callable, state: TrainState, batch: dict) -> None:
    """Raise UserError if a step, computed twice, does not give the same bits."""
    results = []
    for _ in range(2):
        after, figures = compiled(jax.tree.map(lambda x: x.copy(), state), batch)
        results.append(fingerprint.of((after, figures))[0])
    first, second = results
    if different := [name for name, sums in first.items() if second[name] != sums]:
        raise UserError(
            f"a step computed twice gives other bits in {', '.join(different[:5])}: this run could "
            "not be repeated; on a GPU try XLA_FLAGS=--xla_gpu_deterministic_ops=true, or do "
            "without: --noconfig.recovery.canary"
        )
