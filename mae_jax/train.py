"""Train: python -m mae_jax.train --config=configs/NAME.py --workdir=DIR [--config.key=value ...]"""

import collections
import contextlib
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import jax
from etils import epath
from jax.experimental import multihost_utils

from mae_jax import attention, checkpoint, metrics, optimizer, pictures, pretrained, sharding
from mae_jax import config as configs
from mae_jax.data import images, inputs, pipeline, sources
from mae_jax.step import TrainState, make_init, make_step, start_from
from mae_jax.tasks import classify, pretrain

TASKS = {"pretrain": pretrain.build, "classify": classify.build}
# what a checkpoint to start from must have in common with the config
SAME = {"patch", "width", "depth", "heads", "decoder_width", "decoder_depth", "decoder_heads"}
SAME |= {"groups", "categories", "decoder_cross"}
AHEAD = 2  # batches on the devices beside the one that is trained on
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
    remote = "://" in str(workdir)
    workdir = epath.Path(workdir) if remote else epath.Path(os.path.abspath(workdir))
    primary = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(contextlib.ExitStack())
        interrupted = signals.enter_context(interruption())
        stack.enter_context(configs.mistakes(images.Unreadable))
        init_key, step_key, test_key = jax.random.split(jax.random.key(config.seed), 3)
        with configs.mistakes():  # what the config names must be there and fit
            refuse_another(workdir, config)
            mesh = sharding.make_mesh(**config.mesh)
            sharding.check_batch(config.batch_size, config.accumulation, mesh)
            form, here = config.model.attention, jax.default_backend()
            if attention.OF.get(form, here) != here:
                raise ValueError(
                    f"model.attention = {form!r} needs a {attention.OF[form]}: use 'auto'"
                )
            part = config.data.train
            source = sources.open(part.source, part.split, config.data.modality)
            source = sources.part(source, config.data.examples)
            mean, std = statistics_of(source, config, workdir)
            task = TASKS[config.task](config, source, mean, std, mesh, test_key)

        # The schedule, in steps; an epoch is as many full batches as the data holds.
        steps_per_epoch = max(1, len(source) * config.data.repeats // config.batch_size)
        total = max(1, round(config.epochs * steps_per_epoch))
        options = config.optimizer
        warmup = min(round(options.warmup_epochs * steps_per_epoch), total - 1)
        schedule = optimizer.cosine_schedule(
            options.base_learning_rate * task.rate,
            config.batch_size,
            total,
            warmup,
            options.get("final_learning_rate", 0.0),
        )
        tx = task.optimizer(schedule)
        cut: dict[str, Any] = dict(ema=options.ema, trainable=task.trainable)
        with configs.mistakes():
            init, train_step, abstract = sharding.jit_training(
                make_init(task.init, tx, **cut),
                make_step(
                    task.augment, task.loss, tx, schedule, step_key, config.accumulation, **cut
                ),
                mesh,
                options.shard,
            )
        checkpoints = stack.enter_context(
            contextlib.closing(checkpoint.manager(workdir / "checkpoints", config.keep))
        )
        if (latest := checkpoints.latest_step()) is None:
            state = init(init_key)
            if config.init.checkpoint:
                with configs.mistakes():
                    params = pretrained_parameters(config, state.params)
                state = start_from(state, params, task.trainable)
        else:
            with configs.mistakes():
                state = checkpoint.restore(checkpoints, abstract, latest)
        start = int(state.step)
        batches = pipeline.training_batches(
            source,
            task.transform,
            batch_size=config.batch_size,
            seed=config.seed,
            start=start,
            host=jax.process_index(),
            hosts=jax.process_count(),
            threads=config.data.threads,
            repeats=config.data.repeats,
        )
        if primary and not (workdir / "config.json").exists():
            # everything is in order: from here on this is the run's own directory
            metrics.write_whole(workdir / "config.json", configs.to_json(config))
        writer = stack.enter_context(contextlib.closing(metrics.Writer(workdir, start, primary)))
        progress = stack.enter_context(
            contextlib.closing(metrics.Progress(start, total, config.batch_size, not primary))
        )
        if start == total and (workdir / "report.txt").exists():
            progress.say(f"{workdir} is finished:\n\n" + (workdir / "report.txt").read_text())
            return state
        progress.say(banner(config, mesh, state, task.trainable, start, total))

        last = None  # the newest loss that was read

        def settle(step: int, figures) -> None:
            """Read the figures of a dispatched step, which waits for it; stop if it diverged."""
            nonlocal last
            figures = {name: float(x) for name, x in figures.items()}
            if not all(map(math.isfinite, figures.values())):
                raise configs.Mistake(
                    f"step {step} diverged: {metrics.listed(figures)}; the loss before was {last}. "
                    "Nothing of it was saved. Try a lower optimizer.base_learning_rate, a longer "
                    "optimizer.warmup_epochs, optimizer.clip=1.0 or model.dtype=float32, in a new "
                    "work directory"
                )
            last = figures["loss"]
            progress.advance(step)
            if step % config.log_every == 0 or step == total:
                speed = progress.show(step, figures["loss"], figures["learning_rate"])
                writer.write(step, figures | speed)

        def evaluate(step: int) -> None:
            figures = task.evaluate(state.best)
            writer.write(step, figures)
            writer.picture(f"step_{step:08}.png", task.draw(state.best))
            progress.say(f"step {step}/{total}  {metrics.listed(figures)}")

        every = config.evaluate.every or total
        if 0 < start < total and start % every == 0 and not writer.evaluated(start):
            evaluate(start)  # the run was stopped between a save and this

        reader = ThreadPoolExecutor(1)  # takes batches to the devices before they are needed
        stack.callback(reader.shutdown, wait=False, cancel_futures=True)
        read = lambda: reader.submit(lambda: sharding.place(next(batches), mesh))
        ahead = collections.deque(read() for _ in range(min(AHEAD, total - start)))

        unread = None  # the figures of the step before, read while the next one runs
        for step in range(start, total):
            compiling = step == start  # not counted as training time
            with progress.paused() if compiling else contextlib.nullcontext():
                if step + AHEAD < total:
                    ahead.append(read())
                if unread and not ahead[0].done():  # count what the devices wait, not what we do
                    unread[1]["loss"].block_until_ready()
                with progress.waiting():
                    batch = ahead.popleft().result()
                with jax.profiler.StepTraceAnnotation("train", step_num=step):
                    state, figures = train_step(state, batch)
            if unread:
                settle(*unread)
            done, unread = step + 1, (step + 1, figures)
            status = interrupted(done)
            saving = status or done % config.save_every == 0 or done == total
            evaluating = done % every == 0 and done < total
            if saving or evaluating:
                settle(*unread)  # what is not finite is not saved
                unread = None
            with progress.paused():
                if saving:
                    checkpoint.save(checkpoints, state, wait=bool(status) or done == total)
                if status:
                    progress.say(f"stopped: step {done} is saved, the same command continues")
                    raise SystemExit(status)
                if evaluating:
                    evaluate(done)

        signals.close()  # all is saved: from here on a signal may end the process at once
        shardings = jax.tree.map(lambda x: x.sharding, abstract.params)
        untrained = jax.jit(lambda key: task.init(key)["params"], out_shardings=shardings)
        text, figures = task.report(state.best, lambda: {"params": untrained(init_key)})
        if figures and not writer.evaluated(total):
            writer.write(total, figures)
        writer.picture("reconstruction.png", task.draw(state.best))
        if primary:
            records = metrics.read(workdir)
            curves = {name: metrics.series(records, name) for name in ("loss", "test_loss")}
            writer.picture("loss.png", pictures.curve(curves, workdir.name, "loss"))
        writer.text("report.txt", text + "\n")
        progress.close()
        progress.say(f"\n{text}\n\nlook at the pictures in {workdir / 'pictures'}".lstrip("\n"))
        return state


def pretrained_parameters(config, params: dict) -> dict:
    """Those of `init.checkpoint`, placed as `params`, which stay where it has none."""
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params
    )
    found = pretrained.find(config.init.checkpoint, without=config.init.without)
    # Shapes do not tell the heads, nor (8, 32) patches from (16, 16) ones.
    there = {f"model.{name}": x for name, x in found.fields.items() if name in SAME}
    if found.fields.get("separable_positions"):  # which no other table can start from
        there |= {f"model.{name}_positions": True for name in ("learned", "separable")}
    there["data.channels"] = found.channels
    here = configs.flatten(config)
    if different := [
        f"{name}: {x} there, {here[name]} here"
        for name, x in there.items()
        if x is not None and name in here and x != here[name]
    ]:
        raise ValueError(f"init.checkpoint = {found.path} is another model: {'; '.join(different)}")
    loaded = pretrained.fit(found, wanted, without=config.init.without, size=config.data.size)
    return optimizer.merge(loaded, params)


def refuse_another(workdir: epath.Path, config) -> None:
    """Raise ValueError, with the fields that differ, if `workdir` belongs to another config."""
    path = workdir / "config.json"
    if not path.exists():
        return
    if different := configs.differences(metrics.read_json(path), config):
        raise ValueError(
            f"{workdir} belongs to another config ({'; '.join(different)}): give another "
            "--workdir, or the same values"
        )


def statistics_of(source, config, workdir: epath.Path) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel: of the config, or measured once if "auto".

    They are kept in the work directory, with the names of the classes and the number of examples:
    schedule and order depend on it, so a run does not go on with more or fewer.
    """
    path = workdir / "statistics.json"
    if path.exists() and (workdir / "config.json").exists():  # without it the run never began
        kept = metrics.read_json(path)
        if kept["examples"] != len(source):
            raise ValueError(
                f"{config.data.train.source!r} has {len(source)} examples but had "
                f"{kept['examples']} when {workdir} began: give another --workdir"
            )
        if kept.get("classes", list(source.classes)) != list(source.classes):
            raise ValueError(
                f"{config.data.train.source!r} has other classes than when {workdir} began: give "
                "another --workdir"
            )
    else:
        kept: dict = {"examples": len(source), "classes": list(source.classes)}
        kept |= {name: list(config.data[name]) for name in ("mean", "std")}
        if "auto" in (config.data.mean, config.data.std):
            measured = inputs.mean_std(source, config.data)
            for name, values in zip(("mean", "std"), measured, strict=True):
                if config.data[name] == "auto":
                    kept[name] = list(values)
        if jax.process_index() == 0:
            workdir.mkdir(parents=True, exist_ok=True)
            metrics.write_whole(path, json.dumps(kept, indent=2) + "\n")
    return kept["mean"], kept["std"]


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
        text = b"\nstopping after this step; Ctrl-C again stops at once, without saving\n"
        os.write(sys.stderr.fileno(), text)

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


def banner(config, mesh, state: TrainState, trainable: str, start: int, total: int) -> str:
    """What is about to run."""
    size = lambda tree: f"{sum(x.size for x in jax.tree.leaves(tree)) / 1e6:.1f} M"
    trained, frozen = optimizer.split(state.params, trainable)
    what = f"{size(trained)} parameters" + (f" (and {size(frozen)} frozen)" if frozen else "")
    devices = f"{mesh.size} {mesh.devices.flat[0].device_kind} device(s)"
    action = f"continuing from step {start} of {total}" if start else f"{total} steps"
    return f"{what} on {devices}, batch {config.batch_size}, {action}"


def main() -> None:
    """The command line; a user's mistake ends in one sentence and exit status 2."""
    if {"-h", "--help", "--helpshort"} & set(sys.argv):
        print(f"{__doc__}\n\nThe configs in configs/ name every key and say what it does.")
        return
    try:
        config, workdir = configs.parse(sys.argv[1:])
        with configs.mistakes():
            sharding.start_processes()
        train(config, workdir)
    except configs.Mistake as mistake:
        print(f"error: {mistake}", file=sys.stderr, flush=True)
        leave(2)
    except KeyboardInterrupt:
        print("stopped: the same command continues from the last checkpoint", file=sys.stderr)
        leave(130)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(
            "error: the devices have too little memory: try a higher accumulation or mesh.fsdp, "
            "optimizer.shard, model.remat=inputs, or "
            f"a smaller batch_size ({str(error).splitlines()[0]})",
            file=sys.stderr,
            flush=True,
        )
        leave(2)


def leave(status: int) -> NoReturn:
    """Exit; among several processes without waiting for the others, which wait for this one."""
    if jax.process_count() > 1:
        if jax.process_index() == 0:
            time.sleep(3)  # it holds the connection: let the others say why they end
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    main()
