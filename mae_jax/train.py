"""Train: python -m mae_jax.train --config=configs/NAME.py --workdir=DIR [--config.key=value ...]"""

import contextlib
import json
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import jax
from etils import epath
from jax.experimental import multihost_utils

from mae_jax import checkpoint, metrics, optimizer, pictures, sharding
from mae_jax import config as configs
from mae_jax.data import pipeline, sources
from mae_jax.step import FIGURES, TrainState, make_init, make_step
from mae_jax.tasks import pretrain

PREEMPTED = 42  # exit status after SIGTERM: all is saved, the same command continues


def train(config, workdir: epath.PathLike) -> TrainState:
    """Train as `config` says, writing to `workdir`; continue if that holds a checkpoint.

    Returns:
      The last state.

    Raises:
      configs.Mistake: in one sentence, something that the user can mend.
      SystemExit: after SIGTERM (status 42) or Ctrl-C (130), when the state is saved.
    """
    configs.check(config)
    workdir, primary = epath.Path(workdir), jax.process_index() == 0
    with configs.mistakes(), contextlib.ExitStack() as stack:
        interrupted = stack.enter_context(interruption())
        refuse_another(workdir, config)
        mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
        check_batches(config, mesh.size)
        source = sources.open(config.data.train.source, config.data.train.split)
        mean, std = pixel_statistics(config, source, workdir)
        task = pretrain.build(config, mean, std, mesh)

        # The schedule, in steps; an epoch is as many full batches as the data holds.
        steps_per_epoch = max(1, len(source) // config.batch_size)
        total = max(1, round(config.epochs * steps_per_epoch))
        options = dict(config.optimizer)
        ema, rate = options.pop("ema"), options.pop("base_learning_rate")
        warmup = round(options.pop("warmup_epochs") * steps_per_epoch)
        schedule = optimizer.cosine_schedule(rate, config.batch_size, total, warmup)
        tx = optimizer.adamw(schedule, **options)

        # The state: no device ever holds more than its share.
        init_key, step_key = jax.random.split(jax.random.key(config.seed))

        init = make_init(task.init, tx, ema)
        abstract = jax.eval_shape(init, init_key)
        placement = sharding.of_state(abstract, mesh)
        checkpoints = stack.enter_context(
            contextlib.closing(checkpoint.manager(workdir / "checkpoints", config.keep))
        )
        latest = checkpoints.latest_step()
        if latest is None:
            state = jax.jit(init, out_shardings=placement)(init_key)
        else:
            state = checkpoint.restore(checkpoints, abstract, placement, latest)
        start = int(state.step)

        step_options = dict(accumulation=config.accumulation, ema=ema)
        train_step = jax.jit(
            make_step(task.augment, task.loss, tx, schedule, step_key, **step_options),
            donate_argnums=0,
            in_shardings=(placement, sharding.batched(mesh)),
            out_shardings=(placement, sharding.replicated(mesh)),
        )
        batches = pipeline.training_batches(
            source,
            pipeline.train_transform(
                tuple(config.data.size),
                config.data.channels,
                tuple(config.data.crop_scale),
                tuple(config.data.crop_ratio),
            ),
            batch_size=config.batch_size,
            seed=config.seed,
            start=start,
            host=jax.process_index(),
            hosts=jax.process_count(),
            threads=config.data.threads,
        )
        if primary:  # everything is in order: from here on this is the run's own directory
            (workdir / "config.json").write_text(configs.to_json(config))
        writer = stack.enter_context(contextlib.closing(metrics.Writer(workdir, start, primary)))
        progress = stack.enter_context(
            contextlib.closing(metrics.Progress(start, total, config.batch_size, not primary))
        )
        if start == total and (workdir / "report.txt").exists():
            progress.say(f"{workdir} is finished:\n\n" + (workdir / "report.txt").read_text())
            return state
        progress.say(banner(config, mesh, state, start, total))

        last = None  # the newest loss that was read

        def settle(step: int, figures) -> None:
            """Read the figures of a dispatched step, which waits for it; stop if it diverged."""
            nonlocal last
            loss, norm, rate = (float(figures[k]) for k in FIGURES)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise configs.Mistake(
                    f"step {step} diverged: loss {loss}, gradient norm {norm}, learning rate "
                    f"{rate:.2e}; the loss before was {last}. Nothing of it was saved. Try a lower "
                    "optimizer.base_learning_rate, a longer optimizer.warmup_epochs, "
                    "optimizer.clip=1.0 or model.dtype=float32, in a new work directory"
                )
            last = loss
            progress.advance(step)
            if step % config.log_every == 0 or step == total:
                speed = progress.show(step, loss, rate)
                record = dict(zip(FIGURES, (loss, norm, rate), strict=True))
                writer.write(step, record | {"images_per_second": speed})

        unread = None  # the figures of the step before, read while the next one runs
        for step in range(start, total):
            compiling = step == start  # not counted as training time
            with progress.paused() if compiling else contextlib.nullcontext():
                batch = sharding.place(next(batches), mesh)
                with jax.profiler.StepTraceAnnotation("train", step_num=step):
                    state, figures = train_step(state, batch)
            if unread:
                settle(*unread)
            done, unread = step + 1, (step + 1, figures)
            status = interrupted(done)
            save = status or done % config.save_every == 0 or done == total
            evaluate = config.evaluate.every and done % config.evaluate.every == 0 and done < total
            if save or evaluate:
                settle(*unread)  # what is not finite is not saved
                unread = None
            with progress.paused():
                if save:
                    checkpoint.save(checkpoints, state, wait=bool(status) or done == total)
                if status:
                    progress.say(f"stopped: step {done} is saved, the same command continues")
                    raise SystemExit(status)
                if evaluate:
                    evaluated = task.evaluate(state.best)
                    writer.write(done, evaluated)
                    writer.picture(f"step_{done:08}.png", task.draw(state.best))
                    progress.say(f"step {done}/{total}  {metrics.listed(evaluated)}")

        untrained = jax.jit(task.init, out_shardings=placement.params)(init_key)
        text, evaluated = task.report(state.best, untrained)
        writer.write(total, evaluated)
        writer.picture("reconstruction.png", task.draw(state.best))
        if primary:
            records = metrics.read(workdir)
            curves = {name: metrics.series(records, name) for name in ("loss", "test_loss")}
            writer.picture("loss.png", pictures.curve(curves, workdir.name))
        writer.text("report.txt", text + "\n")
        progress.close()
        progress.say(f"\n{text}\n\nlook at {workdir / 'pictures' / 'reconstruction.png'}")
        return state


def refuse_another(workdir: epath.Path, config) -> None:
    """Raise ValueError, with the fields that differ, if `workdir` belongs to another config."""
    path = workdir / "config.json"
    stored = json.loads(path.read_text()) if path.exists() else configs.to_dict(config)
    if different := configs.differences(stored, config):
        raise ValueError(
            f"{workdir} belongs to another config ({'; '.join(different)}): give another "
            "--workdir, or the same values"
        )
    workdir.mkdir(parents=True, exist_ok=True)


def check_batches(config, devices: int) -> None:
    """Every device must get the same number of samples."""
    for name, batch in (
        ("batch_size / accumulation", config.batch_size // config.accumulation),
        ("evaluate.batch_size", config.evaluate.batch_size),
    ):
        if batch % devices:
            raise ValueError(f"{name} = {batch} is not a multiple of the {devices} devices here")


def pixel_statistics(config, source, workdir: epath.Path) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel: of the config, or measured once if "auto"."""
    measured = {}
    if "auto" in (config.data.mean, config.data.std):
        path = workdir / "statistics.json"
        if path.exists():
            measured = json.loads(path.read_text())
        else:
            mean, std = pipeline.mean_std(source, config.data.channels)
            measured = {"mean": list(mean), "std": list(std)}
            if jax.process_index() == 0:  # whole or not at all: other processes may be looking
                path.with_suffix(".tmp").write_text(json.dumps(measured) + "\n")
                path.with_suffix(".tmp").rename(path)
    pick = lambda name: measured[name] if config.data[name] == "auto" else config.data[name]
    return list(pick("mean")), list(pick("std"))


@contextlib.contextmanager
def interruption() -> Iterator[Callable[[int], int]]:
    """A function of the step that says whether to stop: 0, or the exit status to stop with.

    SIGTERM and the first Ctrl-C ask for a stop after the current step. Several processes agree
    on the step through jax's own handler of SIGTERM.
    """
    asked = []
    statuses = {signal.SIGTERM: PREEMPTED, signal.SIGINT: 130}
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        statuses = {}  # jax's own, or none: only the main thread may handle signals

    def handle(number, frame):
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(statuses[number])

    before = {number: signal.signal(number, handle) for number in statuses}
    try:
        if jax.process_count() > 1:
            agreed = multihost_utils.reached_preemption_sync_point
            yield lambda step: PREEMPTED if agreed(step) else 0
        else:
            yield lambda step: asked[0] if asked else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def banner(config, mesh, state: TrainState, start: int, total: int) -> str:
    """What is about to run."""
    count = sum(x.size for x in jax.tree.leaves(state.params))
    devices = f"{mesh.size} {mesh.devices.flat[0].device_kind} device(s)"
    action = f"continuing from step {start} of {total}" if start else f"{total} steps"
    return f"{count / 1e6:.1f} M parameters on {devices}, batch {config.batch_size}, {action}"


def main() -> None:
    """The command line; a user's mistake ends in one sentence and exit status 2."""
    if {"-h", "--help", "--helpshort"} & set(sys.argv):
        print(f"{__doc__}\n\nThe configs in configs/ name every key and say what it does.")
        return
    try:
        config, workdir = configs.parse(sys.argv[1:])
        sharding.start_processes()
        train(config, workdir)
    except configs.Mistake as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
