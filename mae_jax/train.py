"""Train: python -m mae_jax.train --config=configs/NAME.py --workdir=DIR [--config.key=value ...]"""

# ruff: noqa: E402
if __name__ == "__main__":  # asked to stop while modules are imported: nothing is lost
    import os
    import signal

    signal.signal(signal.SIGTERM, lambda *_: os._exit(42))
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import contextlib
import functools
import os
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np
import optax
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from mae_jax import tasks
from mae_jax.config import command_line, nested, schema
from mae_jax.config.errors import UserError, user_errors
from mae_jax.data import bad_examples, image_io, pipeline, sources
from mae_jax.distributed import device_mesh, partitioning, processes
from mae_jax.evaluators import visualize
from mae_jax.models import attention, rules
from mae_jax.output import console, files, tables
from mae_jax.training import checkpoints as checkpoint
from mae_jax.training import (
    evaluation,
    lifeline,
    loop,
    metric_writer,
    optimizer,
    preemption,
    run_directory,
)
from mae_jax.training import progress as progresss
from mae_jax.training.program import make_program
from mae_jax.training.step import TrainState, start_from
from mae_jax.weights import load

# what a checkpoint to start from must have in common with the config
SAME = {"patch", "width", "depth", "heads", "decoder_width", "decoder_depth", "decoder_heads"}
SAME |= {"groups", "categories", "decoder_cross"}


def train(config, workdir: epath.PathLike, *, own_process: bool = False) -> TrainState:
    """Train as `config` says, writing to `workdir`; continue if that holds a checkpoint.

    Args:
      own_process: this process does nothing else, so a signal may end it where it stands.

    Returns:
      The last state.

    Raises:
      UserError: in one sentence, something that the user can mend.
      SystemExit: after SIGTERM (status 42) or Ctrl-C (130), when the state is saved.
    """
    config = schema.validate(config, rules.RULES)
    image_io.configure_libraries()
    workdir = run_directory.path_of(workdir)
    primary = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(lifeline.held())
        stop = stack.enter_context(preemption.handled(own_process))
        starting = stack.enter_context(contextlib.ExitStack())
        starting.enter_context(stop.at_once())  # nothing is trained yet
        stack.enter_context(user_errors(bad_examples.Unreadable))
        init_key, step_key, test_key = jax.random.split(jax.random.key(config.seed), 3)
        with user_errors():  # what the config names must be there and fit
            refuse_other_processes(f"{workdir} {schema.to_json(config)}")
            run_directory.refuse_another(workdir, config)
            mesh, source = opened(config, run_directory.draws_balanced(workdir))
            stack.enter_context(run_directory.locked(workdir))
            mean, std = run_directory.statistics_of(source, config, workdir)
            task = tasks.build(config, source, mean, std)
            figures_of, draw, report = evaluation.build(
                config, task, source, mean, std, mesh, test_key
            )
            schedule, total = schedule_of(config, len(source), task.rate)
        with user_errors():
            init, train_step, abstract = make_program(config, task, mesh, schedule, step_key)
        checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", config.keep)
        stack.callback(checkpoints.close)

        def begin() -> TrainState:
            with user_errors():
                run_directory.refuse_lost(workdir, config)
            if not config.init.checkpoint:
                return init(init_key)
            with user_errors():
                loaded = pretrained_parameters(config, abstract.params)
            state = init(init_key)
            return start_from(state, optimizer.merge(loaded, state.params), task.trainable)

        def restored(before: int | None = None):
            with user_errors():
                found = checkpoints.newest(abstract, console.tell, before)
            if found:
                found[1].pop("config", None)
            return found

        host, hosts = jax.process_index(), jax.process_count()
        log_of_host = f"unreadable{f'.{host}' * bool(host)}.txt"
        unreadable = bad_examples.BadExamples(
            source, config.data.max_bad_fraction, workdir / log_of_host
        )
        order: dict[str, Any] = dict(
            batch_size=config.batch_size, seed=config.seed, repeats=config.data.repeats
        )
        read = functools.partial(
            pipeline.training_batches, source, task.transform, bad_examples=unreadable
        )
        one = order | dict(batch_size=config.data.repeats)
        next(read(threads=0, **one))  # before minutes of compiling: can any be read?
        state, facts = restored() or (begin(), {})
        start = int(state.step)

        def batches(position: int) -> Iterator[dict[str, jax.Array]]:
            share: dict[str, Any] = dict(host=host, hosts=hosts, threads=config.data.threads)
            found = read(start=position, **share, **order)
            return (partitioning.place(batch, mesh) for batch in found)

        if primary and not (workdir / "config.json").exists():
            # everything is in order: from here on this is the run's own directory
            with user_errors(OSError):
                files.write_whole(workdir / "config.json", schema.to_json(config))
        with user_errors(OSError):
            writer = metric_writer.Writer(workdir, start, primary)
        progress = stack.enter_context(
            contextlib.closing(progresss.Progress(start, total, config.batch_size, not primary))
        )
        if start == total and (workdir / "report.txt").exists():
            progress.say(f"{workdir} is finished:\n\n" + (workdir / "report.txt").read_text())
            return state
        progress.say(banner(config, mesh, state, task.trainable, start, total))
        watch = stack.enter_context(
            contextlib.closing(preemption.Watch(config.recovery.stall, console.tell))
        )

        def evaluate(state: TrainState, step: int) -> None:
            figures = figures_of(state.best)
            writer.write(step, figures)
            writer.picture(f"step_{step:08}.png", draw(state.best))
            progress.say(f"step {step}/{total}  {tables.listed(figures)}")

        if 0 < start < total and not writer.evaluated(start):
            if start % (config.evaluate.every or total) == 0:
                evaluate(state, start)  # the run was stopped between a save and this
        starting.close()
        stack.push(end_alone)
        state = loop.run(
            config,
            state,
            loop.FACTS | facts,
            total,
            train_step=train_step,
            batches=batches,
            names=lambda position: pipeline.names(source, step=position, **order),
            begin=begin,
            restored=restored,
            evaluate=evaluate,
            unreadable=lambda: unreadable.share,
            checkpoints=checkpoints,
            writer=writer,
            progress=progress,
            stop=stop,
            watch=watch,
        )
        with stop.at_once(), user_errors(OSError):  # all is saved
            watch.does("making the report")
            shardings = jax.tree.map(lambda x: x.sharding, abstract.params)
            untrained = jax.jit(lambda key: task.init(key)["params"], out_shardings=shardings)
            text, figures = report(state.best, {"params": untrained(init_key)})
            if figures and not writer.evaluated(total):
                writer.write(total, figures)
            writer.picture("reconstruction.png", draw(state.best))
            if primary:
                records = metric_writer.read(workdir)
                curves = {
                    name: metric_writer.series(records, name) for name in ("loss", "test_loss")
                }
                writer.picture("loss.png", visualize.curve(curves, workdir.name, "loss"))
            writer.text("report.txt", text + "\n")
            progress.close()
            progress.say(f"\n{text}\n\nlook at the pictures in {workdir / 'pictures'}".lstrip("\n"))
        return state


def opened(config, balanced: bool) -> tuple[Mesh, sources.Source]:
    """The devices and the training data of a config; `balanced` as in `sources.subset`.

    Raises:
      ValueError: all that they are not.
    """
    problems = []

    def tried(make: Callable, *arguments, **named) -> Any:
        try:
            return make(*arguments, **named)
        except (ValueError, OSError, ImportError) as error:
            problems.append(str(error))

    part, data = config.data.train, config.data
    mesh = tried(device_mesh.make_mesh, **config.mesh)
    if mesh:
        tried(device_mesh.check_batch, config.batch_size, config.accumulation, mesh)
    tried(attention.check, config.model.attention, jax.default_backend())
    source = tried(sources.open_source, part.source, part.split, data.modality)
    if source is not None:
        source = tried(sources.subset, source, data.examples, balanced)
    if problems:
        raise ValueError("; ".join(problems))
    return mesh, source  # pyright: ignore[reportReturnType]


def refuse_other_processes(command: str) -> None:
    """Raise ValueError, in all processes, if they were not all started by the same command."""
    if jax.process_count() > 1:
        sums = multihost_utils.process_allgather(np.uint32(zlib.crc32(command.encode())))
        if (sums != sums[0]).any():
            raise ValueError(
                "the processes have different configs or work directories: start all of them with "
                "the same command"
            )


def schedule_of(config, examples: int, rate: float) -> tuple[optax.Schedule, int]:
    """The learning rate of each step, `rate` times the config's, and how many steps there are.

    An epoch is as many full batches as the data hold. ValueError: more than an int32 can count.
    """
    options = config.optimizer
    steps_per_epoch = max(1, examples * config.data.repeats // config.batch_size)
    total = max(1, round(min(config.epochs * steps_per_epoch, 2**31)))
    if total == 2**31:
        raise ValueError(f"epochs = {config.epochs} are more than 2,147,483,647 steps: use fewer")
    schedule = optimizer.cosine_schedule(
        options.base_learning_rate * rate,
        config.batch_size,
        total,
        min(round(options.warmup_epochs * steps_per_epoch), total - 1),
        options.get("final_learning_rate", 0.0),
    )
    return schedule, total


def end_alone(kind, error, trace) -> None:
    """Where the connection to another process broke, end at once: all that is left waits for it."""
    broken = isinstance(error, jax.errors.JaxRuntimeError)
    if jax.process_count() > 1 and broken and "RESOURCE_EXHAUSTED" not in str(error):
        lifeline.end(f"another process is gone ({str(error).splitlines()[0]})")


def pretrained_parameters(config, wanted: dict) -> dict:
    """Those of `wanted` that are in `init.checkpoint`, placed as these are to be."""
    found = load.find(config.init.checkpoint, without=config.init.without)
    # Shapes do not tell the heads, nor (8, 32) patches from (16, 16) ones.
    there = {f"model.{name}": x for name, x in found.fields.items() if name in SAME}
    if found.fields.get("separable_positions"):  # which no other table can start from
        there |= {f"model.{name}_positions": True for name in ("learned", "separable")}
    there["data.channels"] = found.channels
    here = nested.flatten(config)
    if different := [
        f"{name}: {x} there, {here[name]} here"
        for name, x in there.items()
        if x is not None and name in here and x != here[name]
    ]:
        raise ValueError(f"init.checkpoint = {found.path} is another model: {'; '.join(different)}")
    return load.fit(found, wanted, without=config.init.without, size=config.data.size)


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
        config, workdir = command_line.parse(sys.argv[1:], rules.RULES)
        with user_errors():
            recovery: Any = config.recovery
            processes.start_processes(recovery.heartbeat)
        train(config, workdir, own_process=True)
    except UserError as mistake:
        console.tell(f"error: {mistake}")
        leave(2)
    except SystemExit as asked:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is leaving already
        end_soon(int(asked.code or 0))
        raise
    except KeyboardInterrupt:
        console.tell("stopped: the same command continues from the last checkpoint")
        leave(130)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        console.tell(
            "error: the devices have too little memory: try a higher accumulation or mesh.fsdp, "
            "optimizer.shard, model.remat=inputs, or "
            f"a smaller batch_size ({str(error).splitlines()[0]})"
        )
        leave(2)
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):  # a full disk, or nobody reads
                with contextlib.suppress(OSError, ValueError, AttributeError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def end_soon(status: int) -> None:
    """Exit in any case: a thread that reads what never comes would keep the process for ever."""
    last = threading.Timer(5, os._exit, [status])
    last.daemon = True
    last.start()


def leave(status: int) -> NoReturn:
    """Exit; among several processes without waiting for the others, which wait for this one."""
    end_soon(status)
    if jax.process_count() > 1:
        if jax.process_index() == 0:
            time.sleep(3)  # it holds the connection: let the others say why they end
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    main()
