"""Estimate what a training step costs a device: memory, products, bytes, seconds. Nothing is run.

If a compiler is available, it plans the memory, and the bytes and the cycles are read from the
compiled program (`hlo`). Otherwise everything is arithmetic over the sizes of arrays.

The time of a step is between two bounds. The lower bound is the longest of three times: those of
the products, of the bytes that the memory moves and of the bytes that the links carry, each at the
device's peak. The upper bound is the cycles that a TPU's compiler expects plus the time of the
links or, without these cycles, the sum of the three times.
"""

import collections
import dataclasses
import logging
import math
import os
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mae_jax import tasks
from mae_jax.config import schema
from mae_jax.data import sources, target_scale
from mae_jax.data.augment import randaugment
from mae_jax.data.target_scale import TargetScale
from mae_jax.distributed import device_mesh, partitioning
from mae_jax.models import attention, build, mae, masking
from mae_jax.planning import devices, flops, hlo, topology
from mae_jax.training import optimizer
from mae_jax.training.program import make_program

# Examples and classes of data sets, for machines on which they are not prepared.
KNOWN = {"tfds:imagenet2012": (1_281_167, 1000)}
STATE = ("params", "opt_state", "ema")

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Source:
    """A stand-in for a data set: its size, its classes or targets and the kind of its labels."""

    examples: int | None
    classes: tuple[str, ...]
    label_kind: str | None = "class"
    targets: TargetScale | None = None

    def __len__(self) -> int:
        return self.examples or 1

    @property
    def labels(self) -> np.ndarray:
        """Labels of balanced classes, as their weights do not change the step."""
        each = np.eye(len(self.classes), dtype=np.uint8)
        return each if self.label_kind == "classes" else each.argmax(-1)


class TrainingStep(NamedTuple):
    """A training step and its arguments, as shapes with shardings."""

    step: Any  # jitted
    state: Any
    batch: dict[str, jax.ShapeDtypeStruct]
    residuals: int  # bytes on a device that differentiation keeps, before anything is optimised
    flops: int | None  # of the global step


def find_source(config, examples: int | None) -> Source:
    """Return a stand-in for a config's training data; `examples` replaces their number.

    Raises:
      ValueError: the task needs the labels, and the data are not on this machine.
    """
    train, kind, targets = config.data.train, "class", None
    count, classes = KNOWN.get(train.source, (None, 0))
    names = tuple(map(str, range(classes)))
    logging.getLogger("absl").setLevel(logging.ERROR)  # tfds warns of data that are not prepared
    try:
        source = sources.open_source(train.source, train.split, config.data.modality)
        source = sources.subset(source, config.data.examples, balanced=False)
        count, names = len(source), source.classes
        kind = sources.label_kind(source)
        if config.task == "regress":
            targets = target_scale.measure(source)
    except (OSError, ImportError) as error:  # the data are not on this machine
        if config.task == "regress" or (not names and config.task == "classify"):
            raise ValueError(f"the number of outputs is unknown: {error}") from error
    total = examples or count
    if total and config.data.examples:
        total = min(total, config.data.examples)
    return Source(total, names, kind, targets)


def batch_shapes(config, sharding: Any, source: Source | None = None) -> dict[str, Any]:
    """Return the arrays of a training batch as shapes; only pre-training needs no `source`."""
    dtypes = {"image": jnp.uint8, "video": jnp.uint8, "text": jnp.int32}
    dtype = dtypes.get(config.data.modality, jnp.float32)
    if config.data.get("range", "auto") != "auto" or config.data.get("nodata") is not None:
        dtype = jnp.float32
    arrays: dict[str, Any] = {"image": ((*config.data.size, config.data.channels), dtype)}
    if config.data.get("reference_spacing"):
        has_times = config.data.get("time_band") is not None
        name, shape = ("times", config.data.size) if has_times else ("spacing", None)
        arrays[name] = (shape or (len(config.data.size),), jnp.float32)
    if source is not None and config.task != "pretrain":
        several = (len(source.classes),) if source.label_kind == "classes" else ()
        arrays["label"] = (several, jnp.int32)
        if source.targets:
            arrays["label"] = ((len(source.targets.names),), jnp.float32)
        if config.regularize.randaugment:
            arrays["color"] = ((randaugment.DRAWS, 2), jnp.float32)
    return {
        name: jax.ShapeDtypeStruct((config.batch_size, *shape), dtype, sharding=sharding)
        for name, (shape, dtype) in arrays.items()
    }


def make_task(config, source: Any) -> tasks.Task:
    """Return the task of a config; statistics that are "auto" become 0.5."""
    data, half = config.data, (0.5,) * config.data.channels
    mean, std = (half if values == "auto" else values for values in (data.mean, data.std))
    return tasks.build(config, source, mean, std, getattr(source, "targets", None))


def training_step(config, source: Source, mesh) -> TrainingStep:
    """Return the training step of a config, as `train.py` makes it."""
    task, rate = make_task(config, source), config.optimizer.base_learning_rate
    schedule = optimizer.cosine_schedule(rate, config.batch_size, steps=1000, warmup=10)
    program = make_program(config, task, mesh, schedule, jax.random.key(0))
    step, state = program.step, program.abstract
    batch = batch_shapes(config, partitioning.batched(mesh), source)
    whole = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    traced = jax.jit(step.__wrapped__).trace(whole(state), whole(batch))
    residuals = _residuals(task, whole(state), whole(batch))
    residuals = residuals // config.accumulation // device_mesh.batch_shares(mesh)
    return TrainingStep(step, state, batch, residuals, flops.program_flops(traced))


def _residuals(task, state, batch) -> int:
    """Return the bytes of arrays of samples that the backward pass takes from the forward pass."""

    def residuals(params, stats, batch):
        batch = task.augment(jax.random.key(0), batch)
        trained, frozen = optimizer.split(params, task.trainable)
        loss = lambda trained: task.loss(optimizer.merge(trained, frozen), stats, batch)
        return jax.tree.leaves(jax.vjp(loss, trained, has_aux=True)[1])

    size = len(batch["image"])
    arrays = jax.eval_shape(residuals, state.params, state.stats, batch)
    return sum(x.size * x.dtype.itemsize for x in arrays if size in x.shape)


def shard_bytes(tree: Any) -> int:
    """Return the bytes of one device's shards of all arrays of a tree."""
    shard = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    return sum(shard(x) for x in jax.tree.leaves(tree) if hasattr(x, "sharding"))


def out_of_memory(text: str) -> tuple[float, float] | None:
    """Read the bytes that a program needs, and those of the device, from a compiler's error."""
    size = r"\(?([\d.]+)([KMGT])\)?"
    if not (match := re.search(rf"{size} (?:of|exceeds available HBM) {size}", text)):
        return None
    scale = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    return float(match[1]) * scale[match[2]], float(match[3]) * scale[match[4]]


def memory_limit(place: str, mesh_devices: list[Any]) -> float | None:
    """Return the bytes of one device that a program may use, or None if unknown."""
    device = mesh_devices[0]
    offers = devices.find(device.device_kind)
    limit = offers.memory if offers else None
    if device.platform == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / len(mesh_devices)
    if place == "gpu":  # jax takes a share of the memory of this machine's GPUs
        return (device.memory_stats() or {}).get("bytes_limit", limit)
    if device.platform == "tpu":  # the compiler names its limit if a program is far too large
        sharding = jax.sharding.SingleDeviceSharding(device)
        huge = jax.ShapeDtypeStruct((2**20, 2**18), jnp.float32, sharding=sharding)
        try:
            jax.jit(jnp.negative).lower(huge).compile()
        except jax.errors.JaxRuntimeError as error:
            sizes = out_of_memory(str(error))
            return sizes[1] if sizes else limit
    return limit


def by_compiler(made: TrainingStep, limit: float | None) -> dict[str, Any]:
    """Compile a step, and return the bytes, cycles and collectives of one device."""
    begin = time.perf_counter()
    try:
        with jax.set_mesh(jax.tree.leaves(made.state)[0].sharding.mesh):
            compiled = made.step.lower(made.state, made.batch).compile()
    except jax.errors.JaxRuntimeError as error:
        sizes = out_of_memory(str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or not sizes:
            raise
        return {"memory": {"peak": sizes[0], "limit": sizes[1], "fits": False}}
    seconds = time.perf_counter() - begin
    analysis: Any = compiled.memory_analysis()
    costs: Any = compiled.cost_analysis()
    names = ("argument", "output", "alias", "temp", "generated_code")
    memory = {name: getattr(analysis, f"{name}_size_in_bytes") for name in names}
    # A donated array is an argument and an output, but takes its memory once.
    memory["peak"] = sum(memory.values()) - 2 * memory["alias"]
    program = hlo.parse(compiled.as_text())
    once, looped = (program.traffic(loops, everywhere=True) for loops in (False, True))
    collectives: dict[str, dict] = collections.defaultdict(lambda: dict(times=0, array=0, sent=0))
    for collective in program.collectives():
        row = collectives[collective.kind]
        row["times"] += collective.times
        row["array"] += collective.bytes * collective.times
        row["sent"] += round(collective.sent)
    return {
        "compile_seconds": seconds,
        "memory": memory | _within(memory["peak"], limit),
        # XLA counts a loop's body once, and arrays on the chip like arrays in memory.
        "bytes_accessed": costs["bytes accessed"] * (looped / once if once else 1.0),
        "bytes_moved": program.traffic(),
        "cycles": program.cycles(),
        "collectives": dict(collectives),
    }


def by_arithmetic(plan: dict, shares: int, limit: float | None) -> dict[str, Any]:
    """Return the same from only the sizes of arrays, as if nothing were moved twice."""
    state = sum(plan["state"].values())
    gradients = plan["state"]["params"]  # the same number of bytes
    peak = state + gradients + plan["kept"]
    metrics: dict[str, Any] = {"memory": {"peak": peak} | _within(peak, limit)}
    if plan["mesh"]["tensor"] > 1:  # the bytes of activations that blocks send are unknown
        return metrics
    # With fsdp parameters are gathered twice in bfloat16, and gradients scattered.
    reduced = plan["parameters"] * 4 if plan["mesh"]["fsdp"] > 1 else plan["state"]["params"]
    sent = round(2 * reduced * (shares - 1) / shares)
    return metrics | {
        # The state is read and written; what differentiation keeps is written and read.
        "bytes_moved": 2 * state + 2 * plan["kept"],
        "cycles": None,
        "collectives": {"of the gradients": {"times": 1, "array": None, "sent": sent}},
    }


def _within(peak: float, limit: float | None) -> dict[str, Any]:
    return {"limit": limit, "fits": limit is None or peak <= limit}


def estimate(config, place: str, examples: int | None = None) -> dict:
    """Make a plan: a dict under the names that `--json` writes, with the bytes of one device.

    Args:
      place: a topology, see `topology.devices`.
      examples: the number of training examples, by default that of the data.

    Raises:
      ValueError: there can be no plan; the message says in one sentence what to change.
    """
    if examples is not None and examples < 1:
        raise ValueError(f"--examples={examples} must be at least 1")
    mesh_devices = topology.devices(place)
    config = resolved(config, place, mesh_devices)
    mesh = device_mesh.make_mesh(**config.mesh, devices=mesh_devices)
    device_mesh.check_batch(config.batch_size, config.accumulation, mesh)
    source = find_source(config, examples)
    made = training_step(config, source, mesh)
    is_pretraining = config.task == "pretrain"
    parts = forward_flops(config) if is_pretraining else {}
    plan = settings(config, place, mesh) | {
        "parameters": sum(x.size for x in jax.tree.leaves(made.state.params)),
        "state": {name: shard_bytes(getattr(made.state, name)) for name in STATE}
        | {"batch": shard_bytes(made.batch)},
        "kept": made.residuals,
        "flops_arithmetic": flops.step_flops(parts, config.batch_size) if is_pretraining else None,
        "flops_program": made.flops,
        "examples": source.examples,
    }
    limit, shares = memory_limit(place, mesh_devices), device_mesh.batch_shares(mesh)
    if plan["compiled"]:
        how = "scanned"
        if not config.model.scan:
            blocks = config.model.depth + config.model.get("decoder_depth", 0)
            how = f"{blocks} blocks; --config.model.scan would compile fewer"
        _log.info(f"compiling for {mesh.size} x {plan['device']} ({how}): a minute or a few ...")
        plan |= by_compiler(made, limit)
    else:
        plan |= by_arithmetic(plan, shares, limit)
    if not plan["memory"]["fits"]:
        with_remat = lambda remat: schema.updated(config, {"model.remat": remat})
        residuals = lambda remat: training_step(with_remat(remat), source, mesh).residuals
        plan["advice"] = advice(config, plan, shares, residuals)
    offers = devices.find(plan["device"])
    if offers and "collectives" in plan:
        plan |= times(config, plan, offers)
    return plan


def resolved(config, place: str, mesh_devices: list[Any]) -> Any:
    """Return the config with `auto` replaced; raise ValueError if its attention does not run."""
    platform, implementation = mesh_devices[0].platform, config.model.attention
    attention.check(implementation, platform)
    if implementation == "cudnn" and place != "gpu":
        raise ValueError(
            "model.attention = 'cudnn' is planned only for the GPUs of this machine: use 'auto'"
        )
    config = schema.resolved(config, platform)
    if platform == "cpu" or implementation != "auto":
        return config
    suited = attention.suited(platform, len(mesh_devices))
    return schema.updated(config, {"model.attention": suited})


def settings(config, place: str, mesh) -> dict[str, Any]:
    """Return the first entries of a plan: the devices, the mesh and the choices of the config."""
    device = mesh.devices.flat[0]
    choices = {name: config.model[name] for name in ("dtype", "attention", "remat", "scan")}
    choices |= {"accumulation": config.accumulation, "optimizer.shard": config.optimizer.shard}
    return {
        "topology": place,
        "device": device.device_kind,
        "devices": mesh.size,
        "mesh": dict(mesh.shape),
        "batch_size": config.batch_size,
        "images_per_share": config.batch_size / device_mesh.batch_shares(mesh),
        "choices": choices,
        "compiled": not isinstance(device, topology.AbsentDevice),
    }


def network(config) -> tuple[mae.MaskedAutoencoder, masking.MaskSampler]:
    """Return the model of a config of pre-training, and its mask sampler."""
    model = build.autoencoder(config.model)
    return model, build.mask_sampler(config.mask, model, config.data.size)


def forward_flops(config) -> dict[str, int]:
    """Return the FLOPs of the forward pass of one input of pre-training, part by part."""
    model, masks = network(config)
    return flops.forward_flops(model, masks.n, masks.keep, config.data.channels, masks.decode)


def advice(config, plan: dict, shares: int, residuals: Callable[[str], int]) -> list[str]:
    """Return the flags that each make the step fit by arithmetic, or all flags as one entry.

    Args:
      residuals: returns the bytes that differentiation keeps with another `model.remat`.
    """
    memory, state = plan["memory"], plan["state"]
    moments = state["opt_state"] + state["ema"]
    activations = max(0.0, memory["peak"] - sum(state.values()))
    saved = {}
    if not config.optimizer.shard and shares > 1:
        saved["--config.optimizer.shard"] = moments * (1 - 1 / shares)
    if config.mesh.fsdp == 1 and shares > 1:
        fsdp = next(n for n in (8, 4, 2, shares) if shares % n == 0)
        saved[f"--mesh=fsdp={fsdp}"] = (moments + state["params"]) * (1 - 1 / fsdp)
    order = ("none", "products", "inputs")
    for remat in order[order.index(config.model.remat) + 1 :]:
        share = 1 - residuals(remat) / plan["kept"]
        saved[f"--config.model.remat={remat}"] = activations * share
    for parts in (2, 4, 8, 16):
        if plan["images_per_share"] % (parts * config.accumulation) == 0:
            flag = f"--config.accumulation={parts * config.accumulation}"
            saved[flag] = activations * (1 - 1 / parts)
    over = memory["peak"] - memory["limit"]
    last = {flag.rpartition("=")[0]: flag for flag in saved if "accum" not in flag}
    together = f"{' '.join(last.values())} together, or " if last else ""
    enough = [flag for flag in saved if saved[flag] > over]
    return enough or [f"{together}a smaller --config.batch_size"]


def times(config, plan: dict, offers: devices.Device) -> dict[str, Any]:
    """Return the seconds of a step, at least and at most, and the hours of the whole run."""
    products = plan["flops_program"] or plan["flops_arithmetic"] or 0
    sent = sum(row["sent"] for row in plan["collectives"].values())
    terms = {
        "products": products / plan["devices"] / offers.flops,
        "memory": plan["bytes_moved"] / offers.bandwidth,
        "links": sent / offers.links,
    }
    least, most = max(terms.values()), sum(terms.values())
    if plan["cycles"] and offers.clock:
        terms["cycles"] = plan["cycles"] / offers.clock
        most = max(most, terms["cycles"] + terms["links"])
    metrics: dict[str, Any] = {"seconds": terms, "step_seconds": [least, most]}
    metrics["images_per_second"] = [config.batch_size / x for x in (most, least)]
    if work := plan["flops_arithmetic"] or products:
        peak = plan["devices"] * offers.flops
        metrics["mfu"] = [work / x / peak for x in (most, least)]
    if plan["examples"]:
        per_epoch = max(1, plan["examples"] * config.data.repeats // config.batch_size)
        steps = max(1, round(config.epochs * per_epoch))
        metrics |= {"steps": steps, "hours": [steps * x / 3600 for x in (least, most)]}
    return metrics
