"""A run from its config to its report."""

import contextlib
import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from mae_jax import evaluators, tasks
from mae_jax.config import changes, nested, schema
from mae_jax.config.errors import user_errors
from mae_jax.data import description, image_io, sources
from mae_jax.data.bad_examples import Unreadable
from mae_jax.distributed import device_mesh
from mae_jax.models import attention, rules
from mae_jax.training import optimizer, preemption, report
from mae_jax.training.batches import Batches
from mae_jax.training.program import Program, make_program
from mae_jax.training.run_directory import RunDirectory
from mae_jax.training.step import TrainState, start_from
from mae_jax.training.trainer import Trainer
from mae_jax.weights import adapt_inputs, load

_log = logging.getLogger(__name__)
# The fields in which a checkpoint to start from must agree with the config.
SAME = {"patch", "width", "depth", "heads", "decoder_width", "decoder_depth", "decoder_heads"}
SAME |= {"channel_groups", "vocab_size", "decoder", "cls_tokens", "register_tokens"}
SAME |= {"position_formula", "final_norm"}
WAYS = {
    "data.channels": " (init.adapt='mean' or 'repeat' changes them)",
    "model.patch": " (init.adapt='resize' changes it)",
}


def train(
    config,
    workdir: epath.PathLike,
    *,
    extend: float | None = None,
    relocate: Mapping[str, str] | None = None,
    source: sources.Source | Mapping[str, sources.Source] | None = None,
    own_process: bool = False,
) -> TrainState:
    """Train as `config` says, writing to `workdir`; continue if that holds a checkpoint.

    Args:
      extend: the number of all epochs, more than a run that has begun has. Its state and the order
        of its data stay, and its learning rate moves to the schedule of the longer run. A run that
        has as many already goes on, so the same call may be repeated.
      relocate: new places of data and of `init.checkpoint`, by their places when the run began.
      source: the examples, or those of each split, such as {"train": ..., "test": ...}. They take
        the place of `data.train.source`, which config.json stores as "argument", and of the source
        "same" of evaluators. To continue such a run, give the same examples again; their
        number, classes, names and labels are compared.
      own_process: the process does nothing else, so a signal may end it at any time.

    Returns:
      The last state.

    Raises:
      UserError: one sentence about a mistake that the user can mend.
      SystemExit: after SIGTERM (status 42) or Ctrl-C (130), when the state is saved.
    """
    if source is not None:
        config = nested.plain(config)
        nested.put(config, "data.train.source", sources.ARGUMENT)
    config = schema.validate(config, rules.RULES)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(preemption.handled(own_process))
        stack.enter_context(user_errors(Unreadable))
        with stop.exits_at_once():  # nothing is trained yet
            run = RunDirectory(workdir)
            with user_errors():
                if (extend is not None or relocate) and not run.has_begun:
                    raise ValueError(f"{run} holds no run to extend or relocate: check --workdir")
                stack.enter_context(run.locked())
                config = open_run(config, run, extend, relocate or {})
                given = {} if source is None else sources.given(source, config.data.train.split)
            trainer, untrained = make_trainer(config, run, stop, given)
            stack.callback(trainer.close)
            trainer.resume()
            with user_errors(OSError):
                run.write_config(config)  # no problem was found: the directory is this run's
                run.write_changes()
        if trainer.is_finished:
            _log.info("%s is finished:\n\n%s", run, run.report.read_text())
            return trainer.state
        _log.info(_banner(trainer))
        state = trainer.fit()
        with stop.exits_at_once(), user_errors(OSError):  # all is saved
            report.write(trainer, untrained)
    return state


def open_run(
    config, run: RunDirectory, extend: float | None, relocate: Mapping[str, str]
) -> schema.Config:
    """Open a work directory that is new or belongs to a run of this config, in all processes.

    In the config that is returned, `model.dtype` is not "auto": it is the precision with which the
    run began, or that of this backend. The config has the changes of the run, earlier and new ones.
    """
    run.changes = changes.read(run.path)
    newest = 0 if extend is None else run.newest_step()
    request = f"{extend} {sorted(relocate.items())} {run.changes} {newest}"
    _refuse_other_processes(f"{run} {schema.to_json(config)} {request}")
    config = schema.resolved(config, jax.default_backend(), run.stored_config())
    config = schema.validate(run.changes.applied(config), rules.RULES)  # the precision may exclude
    run.check_config(config)  # an attention
    for before, now in relocate.items():
        run.changes = run.changes.relocate(config, before, now)
    if extend is not None:
        run.changes = run.changes.extend(config, extend, newest)
    return schema.validate(run.changes.applied(config), rules.RULES)


def make_trainer(
    config,
    run: RunDirectory,
    stop: preemption.StopSignal,
    given: Mapping[str, sources.Source] | None = None,
) -> tuple[Trainer, Callable[[], dict]]:
    """Make the trainer of a config, and a function for the variables of an untrained model.

    `given` are sources by split, see `sources.open_source`.
    """
    image_io.configure_libraries()
    init_key, step_key, _ = jax.random.split(jax.random.key(config.seed), 3)
    with user_errors():  # the devices, the data and the evaluators must exist and fit
        mesh, source = _open_devices_and_data(config, run, given)
        data = run.measured(source, config.data)
        _log.info(description.describe(source, data))
        measured = config.model_copy(update={"data": data})  # `config` stays as it is stored
        targets = run.target_scale(source) if config.task == "regress" else None
        task = tasks.build(measured, source, data.mean, data.std, targets)
        mask_key = evaluators.key_of(config.seed)
        extra = {"mask": config.get("mask"), "loss": config.get("loss"), "classes": source.classes}
        extra |= {"targets": targets, "given": given}
        about = (data.mean, data.std, mesh, mask_key)
        context = evaluators.Context(task.model, data, *about, **extra)
        entries = evaluators.build(config.evaluators, context)
        evaluators.warn_of_overlap(source, config.evaluators, context)
        schedule, total = make_schedule(config, len(source), task.rate, run.changes.extended)
        program = make_program(config, task, mesh, schedule, step_key)
        host = jax.process_index()
        bad_examples = run.path / f"unreadable{f'.{host}' if host else ''}.txt"
        batches = Batches(config, source, task.transform, mesh, bad_examples)
        batches.check()

    def begin() -> TrainState:
        first_save = config.save_every * max(2, config.recovery.max_failed_saves)
        with user_errors():
            run.check_unlost(first_save)
        return _first_state(config, program, task.trainable, init_key)

    trainer = Trainer(config, total, program, begin, batches, entries, run, stop)
    return trainer, lambda: program.init_variables(init_key)


def make_schedule(
    config, examples: int, rate: float, extended: Sequence[changes.Extension] = ()
) -> tuple[optax.Schedule, int]:
    """Return the learning rate of each step, `rate` times the config's, and the number of steps.

    An epoch is as many full batches as the data hold. An int32 must count the steps (ValueError).
    From the step of each extension on, the learning rate moves to the cosine of the longer run. It
    takes the steps of the warm-up for this, or a tenth of those that remain if these are fewer.
    """
    options = config.optimizer
    steps_per_epoch = max(1, examples * config.data.repeats // config.batch_size)
    warmup = round(options.warmup_epochs * steps_per_epoch)

    def cosine(epochs: float) -> tuple[optax.Schedule, int]:
        total = max(1, round(min(epochs * steps_per_epoch, 2**31)))
        if total == 2**31:
            raise ValueError(f"epochs = {epochs} are more than 2,147,483,647 steps: use fewer")
        schedule = optimizer.cosine_schedule(
            options.base_learning_rate * rate,
            config.batch_size,
            total,
            min(warmup, total - 1),
            options.get("final_learning_rate", 0.0),
        )
        return schedule, total

    schedule, total = cosine(extended[0].before if extended else config.epochs)
    for change in extended:
        before, (longer, total) = schedule, cosine(change.now)
        rise = max(1, min(warmup, (total - change.step) // 10))
        schedule, end = optimizer.extended(before, longer, change.step, rise), change.step + rise
        text = (
            "extended from %g to %g epochs: the learning rate was %.3g at step %d, is on the "
            "cosine of the longer run from step %d (%.3g) on, and ends at %.3g"
        )
        first, risen, last = map(jnp.float32, map(schedule, (change.step, end, total)))
        _log.info(text, change.before, change.now, first, change.step, end, risen, last)
    return schedule, total


def _refuse_other_processes(command: str) -> None:
    """Raise ValueError, in all processes, if they were not all started by the same command."""
    if jax.process_count() > 1:
        sums = multihost_utils.process_allgather(np.uint32(zlib.crc32(command.encode())))
        if (sums != sums[0]).any():
            raise ValueError(
                "the processes have different configs or work directories: start all of them with "
                "the same command"
            )


def _open_devices_and_data(config, run: RunDirectory, given) -> tuple[Mesh, sources.Source]:
    """Open the devices and the training data of a config; raise ValueError with all problems."""
    problems = []

    def attempt(make: Callable, *arguments, **options) -> Any:
        try:
            return make(*arguments, **options)
        except FileNotFoundError as error:
            way_out = "; if the data moved, give --relocate=OLD=NEW" if run.has_begun else ""
            problems.append(f"{error}{way_out}")
        except (ValueError, OSError, ImportError) as error:
            problems.append(str(error))

    data = config.data
    mesh = attempt(device_mesh.make_mesh, **config.mesh)
    if mesh:
        attempt(device_mesh.check_batch, config.batch_size, config.accumulation, mesh)
    attempt(attention.check, config.model.attention, jax.default_backend())
    train = data.train
    source = attempt(sources.open_source, train.source, train.split, data.modality, given)
    if source is not None:
        source = sources.labelled(source) if config.task == "classify" else source
        source = attempt(sources.subset, source, data.examples, run.draws_balanced)
    if problems:
        raise ValueError("; ".join(problems))
    return mesh, source  # pyright: ignore[reportReturnType]


def _first_state(config, program: Program, trainable: str, key: jax.Array) -> TrainState:
    """Make the state at step 0, with the parameters of `init.checkpoint` if there is one."""
    with user_errors():
        loaded = _load_parameters(config, program.abstract.params)
    state = program.init(key)
    return start_from(state, optimizer.merge(loaded, state.params), trainable) if loaded else state


def _load_parameters(config, abstract: dict) -> dict:
    """Return the parameters of `init.checkpoint`, with the shardings of `abstract`."""
    if not config.init.checkpoint:
        return {}
    choice = {name: config.init[name] for name in ("without", "key", "prefix", "positions")}
    checkpoint = load.find(config.init.checkpoint, **choice)
    if config.init.adapt:
        inputs = dict(channels=config.data.channels, patch=config.model.patch)
        checkpoint = adapt_inputs.adapt(checkpoint, config.init.adapt, **inputs)
    # Shapes tell neither the number of heads, nor (8, 32) patches from (16, 16) ones.
    stored = {f"model.{name}": x for name, x in checkpoint.fields.items() if name in SAME}
    if checkpoint.fields.get("separable_positions"):  # no other table can start from these
        stored |= {f"model.{name}_positions": True for name in ("learned", "separable")}
    stored["data.channels"] = checkpoint.channels
    configured = nested.flatten(config)
    if different := [
        f"{name}: {value} in the checkpoint, {configured[name]} in the config" + WAYS.get(name, "")
        for name, value in stored.items()
        if value is not None and name in configured and value != configured[name]
    ]:
        raise ValueError(
            f"init.checkpoint = {checkpoint.path} is another model: {'; '.join(different)}"
        )
    size = tuple(config.data.size)
    if not config.model.learned_positions and checkpoint.size not in (None, size):
        _log.warning(
            "positions are computed for inputs of %s, while those of %s are for %s: with "
            "model.learned_positions=True they would start as the latter, interpolated",
            size,
            checkpoint.path,
            checkpoint.size,
        )
    return load.fit(checkpoint, abstract, size=size)


def _banner(trainer: Trainer) -> str:
    """Return the sizes of the model, the devices and the batch, and the number of steps."""
    size = lambda tree: f"{sum(x.size for x in jax.tree.leaves(tree)) / 1e6:.1f} M"
    start, total = int(trainer.state.step), trainer.total
    mesh, trainable = trainer.batches.mesh, trainer.config.get("trainable", ".*")
    trained, frozen = optimizer.split(trainer.state.params, trainable)
    parameters = f"{size(trained)} parameters"
    if frozen:
        parameters += f" (and {size(frozen)} frozen)"
    devices = f"{mesh.size} {mesh.devices.flat[0].device_kind} device(s)"
    action = f"continuing from step {start} of {total}" if start else f"{total} steps"
    return f"{parameters} on {devices}, batch {trainer.config.batch_size}, {action}"
