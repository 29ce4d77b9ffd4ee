"""What a training step costs a device: memory, products, bytes, seconds; nothing is run."""

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
from mae_jax.data import sources
from mae_jax.data.augment import randaugment
from mae_jax.distributed import device_mesh, partitioning
from mae_jax.models import attention
from mae_jax.planning import devices as devicess
from mae_jax.planning import flops, hlo, topology
from mae_jax.tasks import pretrain
from mae_jax.training import optimizer
from mae_jax.training.program import make_program

KNOWN = {"tfds:imagenet2012": (1_281_167, 1000)}  # examples and classes, where it is not prepared


@dataclasses.dataclass(frozen=True)
class Source:
    """As much of a data set as the plan of a run asks for."""

    examples: int | None
    classes: tuple[str, ...]
    several: bool  # labels for an example

    def __len__(self) -> int:
        return self.examples or 1

    def __getitem__(self, i: int) -> dict:
        return {"label": np.zeros(len(self.classes)) if self.several else 0}


class Program(NamedTuple):
    """A training step and what goes into it, as shapes with their places on a mesh."""

    step: Callable
    state: Any
    batch: dict[str, jax.ShapeDtypeStruct]
    kept: int  # bytes on a device that differentiation keeps, before anything is optimised
    products: int | None  # FLOPs of the global step


def source_of(config, examples: int | None) -> Source:
    """The number of examples and the classes of a config's data, without reading much of it."""
    train = config.data.train
    known, classes = KNOWN.get(train.source, (None, 0))
    labels, several = tuple(map(str, range(classes))), False
    logging.getLogger("absl").setLevel(logging.ERROR)  # tfds's, of what is not prepared
    try:
        found = sources.open_source(train.source, train.split, config.data.modality)
        found = sources.subset(found, config.data.examples, balanced=False)
        known, labels, several = len(found), found.classes, sources.is_multilabel(found)
    except (OSError, ImportError) as error:  # they are not here
        if not labels and config.task == "classify":
            raise ValueError(f"the number of classes is unknown: {error}") from error
    total = examples or known
    if total and config.data.examples:
        total = min(total, config.data.examples)
    return Source(total, labels, several)


def program(config, source: Source, mesh) -> Program:
    """The training step of a config, as `train.py` makes it."""
    numbers = [
        (0.5,) * config.data.channels if config.data[name] == "auto" else config.data[name]
        for name in ("mean", "std")
    ]
    task = tasks.build(config, source, *numbers)
    options = config.optimizer
    schedule = optimizer.cosine_schedule(options.base_learning_rate, config.batch_size, 1000, 10)
    planned = make_program(config, task, mesh, schedule, jax.random.key(0))
    dtype = {"image": jnp.uint8, "video": jnp.uint8, "text": jnp.int32}.get(config.data.modality)
    batch: dict[str, Any] = {
        "image": ((*config.data.size, config.data.channels), dtype or jnp.float32)
    }
    if config.task == "classify":
        batch["label"] = ((len(source.classes),) * source.several, jnp.int32)
        if config.regularize.randaugment:
            batch["color"] = ((randaugment.DRAWS, 2), jnp.float32)
    batch = {
        name: jax.ShapeDtypeStruct((config.batch_size, *shape), dtype)
        for name, (shape, dtype) in batch.items()
    }
    whole = planned.abstract
    products = flops.program_flops(planned.step.trace(whole, batch))
    kept = _kept(task, whole, batch) // config.accumulation // device_mesh.batch_shares(mesh)
    place = partitioning.batched(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for name, x in batch.items()
    }
    return Program(planned.step, planned.abstract, batch, kept, products)


def _kept(task, state, batch) -> int:
    """Bytes of all arrays of samples that the backward pass takes from the forward pass."""

    def residuals(params, stats, batch):
        batch = task.augment(jax.random.key(0), batch)
        trained, frozen = optimizer.split(params, task.trainable)
        loss = lambda trained: task.loss(optimizer.merge(trained, frozen), stats, batch)
        _, backward, _ = jax.vjp(loss, trained, has_aux=True)
        return jax.tree.leaves(backward)

    size = len(batch["image"])
    found = jax.eval_shape(residuals, state.params, state.stats, batch)
    return sum(x.size * x.dtype.itemsize for x in found if size in x.shape)


def share(tree: Any) -> int:
    """Bytes of a device's part of all arrays of a tree."""
    part = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    return sum(part(x) for x in jax.tree.leaves(tree) if hasattr(x, "sharding"))


def refusal(text: str) -> tuple[float, float] | None:
    """Bytes that a program needs and that there are, of a compiler's error."""
    size = r"\(?([\d.]+)([KMGT])\)?"
    said = re.search(rf"Used {size} of {size}", text)
    said = said or re.search(rf"{size} exceeds available HBM {size}", text)
    if not said:
        return None
    scale = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    return float(said[1]) * scale[said[2]], float(said[3]) * scale[said[4]]


def limit(device) -> float | None:
    """Bytes of a TPU that a program may use: the compiler says so of one that is far too large."""
    place = jax.sharding.SingleDeviceSharding(device)
    huge = jax.ShapeDtypeStruct((2**20, 2**18), jnp.float32, sharding=place)
    try:
        jax.jit(jnp.negative).lower(huge).compile()
    except jax.errors.JaxRuntimeError as error:
        said = refusal(str(error))
        return said and said[1]
    return None


def compiled(made: Program, memory: float | None) -> dict[str, Any]:
    """What the compiler says of a step: bytes, cycles and collectives of one device."""
    begin = time.perf_counter()
    try:
        with jax.set_mesh(jax.tree.leaves(made.state)[0].sharding.mesh):
            result = made.step.lower(made.state, made.batch).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        if not (said := refusal(str(error))):
            raise
        return {"memory": {"peak": said[0], "limit": said[1], "fits": False}}
    seconds = time.perf_counter() - begin
    analysis: Any = result.memory_analysis()
    costs: Any = result.cost_analysis()
    held = {
        name: getattr(analysis, f"{name}_size_in_bytes")
        for name in ("argument", "output", "alias", "temp", "generated_code")
    }
    # What is donated is an argument and an output, and is there once.
    held["peak"] = sum(held.values()) - 2 * held["alias"]
    held |= {"limit": memory, "fits": memory is None or held["peak"] <= memory}
    text = hlo.parse(result.as_text())
    inside = {kind: text.traffic(loops=kind, everywhere=True) for kind in (False, True)}
    sent: dict[str, dict] = collections.defaultdict(lambda: dict(times=0, array=0, sent=0))
    for x in text.collectives():
        row = sent[x.kind]
        row["times"] += x.times
        row["array"] += x.bytes * x.times
        row["sent"] += round(x.sent)
    looping = inside[True] / inside[False] if inside[False] else 1.0
    return {
        "compile_seconds": seconds,
        "memory": held,
        # its figure counts a loop's body once, and what stays on the chip like what does not
        "bytes_accessed": costs["bytes accessed"] * looping,
        "bytes_moved": text.traffic(),
        "cycles": text.cycles(),
        "collectives": dict(sent),
    }


def figures(config, place: str, examples: int | None, say: Callable[[str], None]) -> dict[str, Any]:
    """All of a plan, by the names that `--json` writes; bytes are those of one device.

    Args:
      config: which is changed: what it leaves open is set.
      place: a topology, see `topology.devices`.
      examples: in the training data, None to look.
      say: is told what takes long.

    Raises:
      ValueError: in one sentence, something that the user can mend.
    """
    devices = topology.devices(place)
    kind, platform = devices[0].device_kind, devices[0].platform
    attention.check(config.model.attention, platform)
    if config.model.attention == "cudnn" and place != "gpu":
        raise ValueError("model.attention = 'cudnn' is planned only for a GPU here: use 'auto'")
    if platform != "cpu":  # the modules would ask what runs here
        config = schema.resolved(config, platform)
        if config.model.attention == "auto":
            suited = attention.suited(platform, len(devices))
            config = schema.updated(config, {"model.attention": suited})
    mesh = device_mesh.make_mesh(**config.mesh, devices=devices)
    shares = device_mesh.batch_shares(mesh)
    device_mesh.check_batch(config.batch_size, config.accumulation, mesh)
    source = source_of(config, examples)
    made = program(config, source, mesh)
    offers = devicess.device(kind)
    memory = offers and offers.memory
    if platform == "cpu":
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / len(devices)
    if platform == "tpu":
        memory = limit(devices[0]) or memory
    if place == "gpu":  # those here, of which jax takes a share
        memory = (devices[0].memory_stats() or {}).get("bytes_limit", memory)
    state = {name: share(getattr(made.state, name)) for name in ("params", "opt_state", "ema")}
    found: dict[str, Any] = {
        "topology": place,
        "device": kind,
        "devices": len(devices),
        "mesh": dict(mesh.shape),
        "batch_size": config.batch_size,
        "images_per_share": config.batch_size / shares,
        "choices": {name: config.model[name] for name in ("dtype", "attention", "remat", "scan")}
        | {"accumulation": config.accumulation, "optimizer.shard": config.optimizer.shard},
        "parameters": sum(x.size for x in jax.tree.leaves(made.state.params)),
        "state": state | {"batch": share(made.batch)},
        "kept": made.kept,
        "flops_arithmetic": None,
        "flops_program": made.products,
        "compiled": not isinstance(devices[0], topology.Absent),
        "examples": source.examples,
    }
    if config.task == "pretrain":
        model, hide = pretrain.model_of(config), pretrain.hiding_of(config)
        parts = flops.forward_flops(model, hide.n, hide.keep, config.data.channels, hide.decode)
        found["flops_arithmetic"] = flops.step_flops(parts, config.batch_size)
    if found["compiled"]:
        blocks = config.model.depth + config.model.get("decoder_depth", 0)
        how = f"{blocks} blocks; --config.model.scan would compile fewer"
        how = "scanned" if config.model.scan else how
        say(f"compiling for {len(devices)} x {kind} ({how}): a minute or a few ...")
        found |= compiled(made, memory)
    else:
        found |= by_arithmetic(found, shares, memory)
    if not found["memory"]["fits"]:

        def kept(remat: str) -> int:
            return program(schema.updated(config, {"model.remat": remat}), source, mesh).kept

        found["advice"] = advice(config, found, shares, kept)
    if offers and "collectives" in found:
        found |= times(config, found, offers)
    return found


def by_arithmetic(figures: dict, shares: int, memory: float | None) -> dict[str, Any]:
    """What can be said without a compiler; the sizes of arrays, and nothing that is moved twice."""
    state = sum(figures["state"].values())
    peak = state + figures["state"]["params"] + figures["kept"]  # and the gradients
    sent = 2 * (shares - 1) / shares * figures["state"]["params"]
    if figures["mesh"]["fsdp"] > 1:  # gathered twice, in bfloat16, and scattered
        sent = 2 * figures["parameters"] * 4 * (shares - 1) / shares
    fits = {"peak": peak, "limit": memory, "fits": memory is None or peak <= memory}
    if figures["mesh"]["tensor"] > 1:  # it sends activations in each block: no time without these
        return {"memory": fits}
    return {
        "memory": fits,
        # the state is read and written, what is kept is written and read
        "bytes_moved": 2 * state + 2 * figures["kept"],
        "cycles": None,
        "collectives": {"of the gradients": {"times": 1, "array": None, "sent": round(sent)}},
    }


def advice(config, figures: dict, shares: int, kept: Callable[[str], int]) -> list[str]:
    """What would make it fit, by arithmetic: each alone suffices, the cheapest first.

    Args:
      kept: what differentiation keeps with another `model.remat`.
    """
    memory, state = figures["memory"], figures["state"]
    over = memory["peak"] - memory["limit"]
    moments = state["opt_state"] + state["ema"]
    activations = max(0.0, memory["peak"] - sum(state.values()))
    options = []
    if not config.optimizer.shard and shares > 1:
        options.append(("--config.optimizer.shard", moments * (1 - 1 / shares)))
    if config.mesh.fsdp == 1 and shares > 1:
        cut = next(n for n in (8, 4, 2, shares) if shares % n == 0)
        options.append((f"--mesh=fsdp={cut}", (moments + state["params"]) * (1 - 1 / cut)))
    order = ("none", "products", "inputs")
    for remat in order[order.index(config.model.remat) + 1 :]:
        saved = activations * (1 - kept(remat) / figures["kept"])
        options.append((f"--config.model.remat={remat}", saved))
    for parts in (2, 4, 8, 16):
        if figures["images_per_share"] % (parts * config.accumulation) == 0:
            flag = f"--config.accumulation={parts * config.accumulation}"
            options.append((flag, activations * (1 - 1 / parts)))
    enough = [flag for flag, saved in options if saved > over]
    last = {flag.rpartition("=")[0]: flag for flag, _ in options if "accum" not in flag}
    together = f"{' '.join(last.values())} together, or " if last else ""
    return enough or [f"{together}a smaller --config.batch_size"]


def times(config, figures: dict, offers: devicess.Device) -> dict[str, Any]:
    """Seconds of a step, at least and at most, and what they make of the whole run."""
    products = figures["flops_program"] or figures["flops_arithmetic"]
    sent = sum(row["sent"] for row in figures["collectives"].values())
    terms = {
        "products": products / figures["devices"] / offers.flops if products else 0.0,
        "memory": figures["bytes_moved"] / offers.bandwidth,
        "links": sent / offers.links,
    }
    least, most = max(terms.values()), sum(terms.values())
    if figures["cycles"] and offers.clock:
        terms["cycles"] = figures["cycles"] / offers.clock
        most = max(most, terms["cycles"] + terms["links"])
    work = figures["flops_arithmetic"] or products
    found: dict[str, Any] = {"seconds": terms, "step_seconds": [least, most]}
    found["images_per_second"] = [config.batch_size / x for x in (most, least)]
    if work:
        best = figures["devices"] * offers.flops
        found["mfu"] = [work / x / best for x in (most, least)]
    if figures["examples"]:
        an_epoch = max(1, figures["examples"] * config.data.repeats // config.batch_size)
        steps = max(1, round(config.epochs * an_epoch))
        found |= {"steps": steps, "hours": [steps * x / 3600 for x in (least, most)]}
    return found
