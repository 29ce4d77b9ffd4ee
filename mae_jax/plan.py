"""Plan a run: does it fit, what limits a step, how long will it take? Nothing is trained.

    python -m mae_jax.plan --config=configs/vit_huge.py --topology=v5e:16x16 --config.model.scan
    python -m mae_jax.plan --config=configs/vit_base.py --topology=v6e:4x4 --mesh=data=4,fsdp=4
    python -m mae_jax.plan --config=configs/vit_base.py --topology=h100:8     # arithmetic alone
    python -m mae_jax.plan --config=configs/quickstart.py --topology=cpu      # or gpu: those here

For a slice of TPUs (v5e:4x4, v5p:2x2x2, v6e:4x4 ...) the step is compiled by the real compiler,
which needs no TPU: `pip install 'mae_jax[tpu]'`. That takes a minute or a few, and most of what is
said comes from it: the memory is its own plan; the bytes are read from the compiled program.

The time of a step is between two figures. At least: the slowest of three (the products, the bytes
that its memory moves, the bytes that its links carry, each at the device's best), as if the others
ran meanwhile. At most: a TPU's compiler expects so many cycles, and then the links; without that
figure, the sum of the three. Reading data, evaluating, saving and restarting come on top.
"""

import argparse
import collections
import dataclasses
import json
import logging
import math
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mae_jax import config as configs
from mae_jax import flops, hlo, metrics, optimizer, sharding
from mae_jax.data import sources
from mae_jax.step import make_init, make_step
from mae_jax.tasks import classify, pretrain

TASKS = {"pretrain": pretrain, "classify": classify}
KNOWN = {"tfds:imagenet2012": (1_281_167, 1000)}  # examples and classes, where it is not prepared
GPUS = {
    "a100": "NVIDIA A100",
    "a100-80": "NVIDIA A100 SXM4 80GB",
    "h100": "NVIDIA H100",
    "h200": "NVIDIA H200",
    "gh200": "NVIDIA GH200",
    "l4": "NVIDIA L4",
    "l40s": "NVIDIA L40S",
}
# Hz. Their best FLOP/s are those of 4 units of 128 x 128 for each core at this clock.
CLOCKS = {"TPU v4": 1.05e9, "TPU v5 lite": 1.5e9, "TPU v5": 1.75e9}
FORMS = f"v5e:4x4, v5p:2x2x2, v6e:4x4, cpu, gpu, or N GPUs of {', '.join(GPUS)}, as in h100:8"


@dataclasses.dataclass(frozen=True)
class Absent:
    """A device that is not here; enough of one for a mesh."""

    id: int
    device_kind: str
    process_index: int = 0
    platform: str = "gpu"


class Source(NamedTuple):
    """As much of a data set as the plan of a run asks for."""

    examples: int | None
    classes: tuple[str, ...]
    several: bool  # labels for an example

    def __getitem__(self, i: int) -> dict:
        return {"label": np.zeros(len(self.classes)) if self.several else 0}


class Program(NamedTuple):
    """A training step and what goes into it, as shapes with their places on a mesh."""

    step: Callable
    state: Any
    batch: dict[str, jax.ShapeDtypeStruct]
    kept: int  # bytes on a device that differentiation keeps, before anything is optimised
    products: int | None  # FLOPs of the global step


def devices_of(topology: str) -> list[Any]:
    """The devices that the argument `--topology` names.

    Raises:
      ValueError: in one sentence, why there are none.
    """
    kind, _, count = topology.lower().partition(":")
    if topology in ("cpu", "gpu"):
        try:
            return jax.devices(topology)
        except RuntimeError as error:
            raise ValueError(f"topology {topology!r}: there is none here ({error})") from error
    if kind in GPUS and count.isdigit() and int(count):
        jax.config.update("jax_platforms", "cpu")
        return [Absent(i, GPUS[kind], i // 8) for i in range(int(count))]
    if not re.fullmatch(r"v\d+[a-z]*:\d+(x\d+)*", topology):
        raise ValueError(f"unknown topology {topology!r}: use one of {FORMS}")
    # The compiler looks for a TPU and would complain of what it does not find, and it allows one
    # process at a time, as if it held one.
    told = dict(SKIP_MDS_QUERY="1", WORKER_HOSTNAMES="localhost", MIN_LOG_LEVEL="3")
    os.environ |= {f"TPU_{name}": x for name, x in told.items()}
    os.environ |= {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    jax.config.update("jax_platforms", "cpu")
    try:
        import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            f"topology {topology!r} needs the compiler for TPUs: pip install 'mae_jax[tpu]' (no "
            "TPU is needed)"
        ) from error
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except jax.errors.JaxRuntimeError as error:
        why = str(error).removeprefix("INVALID_ARGUMENT: ")
        raise ValueError(f"unknown topology {topology!r} ({why}): use one of {FORMS}") from error
    return list(found.devices)


def source_of(config, examples: int | None) -> Source:
    """The number of examples and the classes of a config's data, without reading much of it."""
    train = config.data.train
    known, classes = KNOWN.get(train.source, (None, 0))
    labels, several = tuple(map(str, range(classes))), False
    logging.getLogger("absl").setLevel(logging.ERROR)  # tfds's, of what is not prepared
    try:
        found = sources.open(train.source, train.split, config.data.modality)
        found = sources.part(found, config.data.examples)
        known, labels, several = len(found), found.classes, np.ndim(found[0]["label"]) > 0
    except (ValueError, OSError, ImportError) as error:
        if not labels and config.task == "classify":
            raise ValueError(f"the number of classes is unknown: {error}") from error
    return Source(examples or known, labels, several)


def program(config, source: Source, mesh) -> Program:
    """The training step of a config, as `train.py` makes it."""
    config = config.copy_and_resolve_references()
    for part in (config.data.test, *(config.get("probe", {}).get(x) for x in ("train", "test"))):
        if part is not None:
            part.source = ""  # nothing is evaluated, so nothing is opened
    numbers = [
        (0.5,) * config.data.channels if config.data[name] == "auto" else config.data[name]
        for name in ("mean", "std")
    ]
    task = TASKS[config.task].build(config, source, *numbers, mesh, jax.random.key(0))
    options = config.optimizer
    schedule = optimizer.cosine_schedule(options.base_learning_rate, config.batch_size, 1000, 10)
    tx, cut = task.optimizer(schedule), dict(ema=options.ema, trainable=task.trainable)
    init: Any = make_init(task.init, tx, **cut)
    key = jax.random.key(0)
    step: Any = make_step(task.augment, task.loss, tx, schedule, key, config.accumulation, **cut)
    dtype = {"image": jnp.uint8, "video": jnp.uint8, "text": jnp.int32}.get(config.data.modality)
    batch: dict[str, Any] = {
        "image": ((*config.data.size, config.data.channels), dtype or jnp.float32)
    }
    if config.task == "classify":
        batch["label"] = ((len(source.classes),) * source.several, jnp.int32)
    batch = {
        name: jax.ShapeDtypeStruct((config.batch_size, *shape), dtype)
        for name, (shape, dtype) in batch.items()
    }
    whole = jax.eval_shape(init, key)
    products = flops.program_flops(jax.jit(step).trace(whole, batch))
    kept = _kept(task, whole, batch) // config.accumulation // sharding.batch_shares(mesh)
    init, step, state = sharding.jit_training(init, step, mesh, options.shard)
    place = sharding.batched(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for name, x in batch.items()
    }
    return Program(step, state, batch, kept, products)


def _kept(task, state, batch) -> int:
    """Bytes of all arrays of samples that the backward pass takes from the forward pass."""

    def residuals(params, stats, batch):
        batch = task.augment(jax.random.key(0), batch)
        loss = lambda params: task.loss(params, stats, batch)
        _, backward, _ = jax.vjp(loss, params, has_aux=True)
        return jax.tree.leaves(backward)

    size = len(batch["image"])
    found = jax.eval_shape(residuals, state.params, state.stats, batch)
    return sum(x.size * x.dtype.itemsize for x in found if size in x.shape)


def share(tree: Any) -> int:
    """Bytes of a device's part of all arrays of a tree."""
    part = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    return sum(part(x) for x in jax.tree.leaves(tree) if hasattr(x, "sharding"))


def compiled(made: Program, memory: float | None) -> dict[str, Any]:
    """What the compiler says of a step: bytes, cycles and collectives of one device."""
    begin = time.perf_counter()
    try:
        result = made.step.lower(made.state, made.batch).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used = re.search(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT])", str(error))
        if not used:
            raise
        scale = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
        peak, memory = (float(used[i]) * scale[used[i + 1]] for i in (1, 3))
        return {"memory": {"peak": peak, "limit": memory, "fits": False}}
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


def plan(config, topology: str, examples: int | None) -> dict[str, Any]:
    """All figures of a plan, by the names that `--json` writes; bytes are those of one device.

    Raises:
      ValueError: in one sentence, something that the user can mend.
    """
    devices = devices_of(topology)
    kind, platform = devices[0].device_kind, devices[0].platform
    if platform != "cpu":  # the modules would ask what runs here
        for name, value in (("dtype", "bfloat16"), ("attention", "plain")):
            config.model[name] = value if config.model[name] == "auto" else config.model[name]
    mesh = sharding.make_mesh(**config.mesh, devices=devices)
    shares = sharding.batch_shares(mesh)
    if config.batch_size % (shares * config.accumulation):
        raise ValueError(
            f"batch_size = {config.batch_size} is not a multiple of {shares} shares of the batch "
            f"x accumulation {config.accumulation}: give another --config.batch_size"
        )
    source = source_of(config, examples)
    made = program(config, source, mesh)
    offers = flops.device(kind)
    memory = offers and offers.memory
    if platform == "cpu":
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / len(devices)
    state = {name: share(getattr(made.state, name)) for name in ("params", "opt_state", "ema")}
    arithmetic = None
    if config.task == "pretrain":
        model, hide = pretrain.model_of(config), pretrain.hiding_of(config)
        parts = flops.forward_flops(model, hide.n, hide.keep, config.data.channels, hide.decode)
        arithmetic = flops.step_flops(parts, config.batch_size)
    figures: dict[str, Any] = {
        "topology": topology,
        "device": kind,
        "devices": len(devices),
        "mesh": dict(mesh.shape),
        "batch_size": config.batch_size,
        "images_per_device": config.batch_size / shares,
        "choices": {name: config.model[name] for name in ("dtype", "remat", "scan")}
        | {"accumulation": config.accumulation, "optimizer.shard": config.optimizer.shard},
        "parameters": sum(x.size for x in jax.tree.leaves(made.state.params)),
        "state": state | {"batch": share(made.batch)},
        "kept": made.kept,
        "flops_arithmetic": arithmetic,
        "flops_program": made.products,
        "compiled": not isinstance(devices[0], Absent),
        "examples": source.examples,
    }
    if figures["compiled"]:
        blocks = config.model.depth + config.model.get("decoder_depth", 0)
        how = f"{blocks} blocks one by one; with --config.model.scan two"
        say(
            f"compiling for {len(devices)} x {kind} ({'scanned' if config.model.scan else how}) ..."
        )
        figures |= compiled(made, memory)
    else:
        figures |= by_arithmetic(figures, shares, memory)
    if not figures["memory"]["fits"]:
        figures["advice"] = advice(config, figures, shares)
    if offers and "collectives" in figures:
        figures |= times(config, figures, offers)
    return figures


def by_arithmetic(figures: dict, shares: int, memory: float | None) -> dict[str, Any]:
    """What can be said without a compiler; the sizes of arrays, and nothing that is moved twice."""
    state = sum(figures["state"].values())
    peak = state + figures["state"]["params"] + figures["kept"]  # and the gradients
    sent = 2 * (shares - 1) / shares * figures["state"]["params"]
    if figures["mesh"]["fsdp"] > 1:  # gathered twice, in bfloat16, and scattered
        sent = 2 * figures["parameters"] * 4 * (shares - 1) / shares
    return {
        "memory": {"peak": peak, "limit": memory, "fits": memory is None or peak <= memory},
        # the state is read and written, what is kept is written and read
        "bytes_moved": 2 * state + 2 * figures["kept"],
        "cycles": None,
        "collectives": {"of the gradients": {"times": 1, "array": None, "sent": round(sent)}},
    }


def advice(config, figures: dict, shares: int) -> list[str]:
    """What would make it fit, by arithmetic: each alone, the first that suffices first."""
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
    for remat, left in (("products", 0.6), ("inputs", 0.2)):
        if config.model.remat == "none" or (config.model.remat, remat) == ("products", "inputs"):
            options.append((f"--config.model.remat={remat}", activations * (1 - left)))
    for parts in (2, 4, 8, 16):
        if figures["images_per_device"] % (parts * config.accumulation) == 0:
            flag = f"--config.accumulation={parts * config.accumulation}"
            options.append((flag, activations * (1 - 1 / parts)))
    enough = [flag for flag, saved in options if saved > over]
    every = " ".join(dict.fromkeys(flag for flag, _ in options if "accum" not in flag))
    return enough or [f"{every} together, or a smaller --config.batch_size"]


def times(config, figures: dict, offers: flops.Device) -> dict[str, Any]:
    """Seconds of a step, at least and at most, and what they make of the whole run."""
    products = figures["flops_program"] or figures["flops_arithmetic"]
    sent = sum(row["sent"] for row in figures["collectives"].values())
    terms = {
        "products": products / figures["devices"] / offers.flops if products else 0.0,
        "memory": figures["bytes_moved"] / offers.bandwidth,
        "links": sent / offers.links,
    }
    least, most = max(terms.values()), sum(terms.values())
    if figures["cycles"] and figures["device"] in CLOCKS:
        expected = figures["cycles"] / CLOCKS[figures["device"]]
        terms["cycles"] = expected
        most = max(most, expected + terms["links"])
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


def report(figures: dict) -> str:
    """A plan as text."""
    memory, state = figures["memory"], figures["state"]
    mesh = ", ".join(f"{name} {size}" for name, size in figures["mesh"].items())
    about = (
        "{devices} x {device} ({mesh}), batch {batch_size:,}, {images_per_device:g} for a share\n"
        "{millions:.1f} M parameters; {choices}"
    ).format(
        **figures
        | dict(mesh=mesh, millions=figures["parameters"] / 1e6)
        | dict(choices=", ".join(f"{k} {x}" for k, x in figures["choices"].items()))
    )
    rows = [
        ("memory of a device", ""),
        ("  parameters", amount(state["params"])),
        ("  optimizer state", amount(state["opt_state"])),
        ("  average of the parameters", amount(state["ema"]) if state["ema"] else ""),
        ("  batch", amount(state["batch"])),
    ]
    if "temp" in memory:
        rows += [
            ("  activations, all that is temporary", amount(memory["temp"])),
            ("  program", amount(memory["generated_code"])),
        ]
    elif not figures["compiled"]:
        rows.append(
            ("  gradients, activations before fusing", amount(memory["peak"] - sum(state.values())))
        )
    rows.append(("  most in use", amount(memory["peak"])))
    if limit := memory["limit"]:
        room = 1 - memory["peak"] / limit
        rows.append(
            ("  of", f"{amount(limit)}: {abs(room):.0%} {'free' if room >= 0 else 'too much'}")
        )
    rows += [("", ""), ("a step", "")]
    images = figures["batch_size"]
    for name in ("arithmetic", "program"):
        if value := figures[f"flops_{name}"]:
            title = (
                "  products by arithmetic" if name == "arithmetic" else "  products in the program"
            )
            rows.append((title, f"{amount(value / images, 'FLOP')} an image"))
    if "bytes_moved" in figures:
        shown = figures["images_per_device"]
        if "bytes_accessed" in figures:
            accessed = amount(figures["bytes_accessed"] / shown)
            rows.append(("  bytes its instructions touch", f"{accessed} an image"))
        moved = amount(figures["bytes_moved"] / shown)
        rows.append(("  bytes its memory moves", f"{moved} an image"))
        for kind, row in figures["collectives"].items():
            rows.append((f"  sent by a device, {kind} x {row['times']}", amount(row["sent"])))
    text = metrics.table([list(row) for row in rows if row[1] or not row[0].startswith("  ")])
    return "\n\n".join([about, text, *verdict(figures)])


def verdict(figures: dict) -> list[str]:
    """The estimates, and what to do about them."""
    texts = []
    if not figures["compiled"]:
        texts.append(
            "arithmetic alone: nothing was compiled; activations are what differentiation keeps, "
            "before XLA\nfuses and recomputes, and the bytes are the least that must move"
        )
    if not figures["memory"]["fits"]:
        texts.append("DOES NOT FIT; try " + ", or ".join(figures["advice"]))
    if "step_seconds" not in figures:
        return [*texts, "no estimate of the time: the peaks of this device are not known"]
    longest = max(figures["seconds"].values())
    rows = [["time of a step", "estimate", ""]]
    names = {
        "products": "products, at the peak",
        "memory": "bytes moved",
        "links": "bytes sent",
        "cycles": "the compiler's cycles",
    }
    for name, seconds in figures["seconds"].items():
        rows.append(["  " + names[name], f"{1e3 * seconds:,.2f} ms", f"{seconds / longest:.0%}"])
    low, high = figures["step_seconds"]
    rows.append(["at least, at most", f"{1e3 * low:,.1f} to {1e3 * high:,.1f} ms", ""])
    slow, fast = figures["images_per_second"]
    rows.append(["images per second", f"{slow:,.0f} to {fast:,.0f}", ""])
    if "mfu" in figures:
        rows.append(["MFU", "{:.0%} to {:.0%}".format(*figures["mfu"]), ""])
    if "hours" in figures:
        low, high = figures["hours"]
        rows.append([f"the run, {figures['steps']:,} steps", f"{low:,.1f} to {high:,.1f} h", ""])
    texts.append(metrics.table(rows))
    left = "an estimate, nothing was run: without reading data, evaluating, saving and restarting"
    unknown = "" if "hours" in figures else "; the hours need --examples=N, of the data set"
    return [*texts, left + unknown]


def amount(value: float, unit: str = "B") -> str:
    """`1.46 GB`: three digits, with the prefix that fits."""
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            value /= scale
            return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {prefix}{unit}"
    return f"{value:.0f} {unit}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def mesh_of(text: str) -> list[str]:
    """`--mesh`: `data=32,fsdp=8` as overrides of the config."""
    sides = [part.partition("=") for part in text.split(",")]
    if not all(name in ("data", "fsdp", "tensor") for name, _, _ in sides):
        raise argparse.ArgumentTypeError(f"{text!r} should be such as data=32,fsdp=8,tensor=1")
    return [f"--config.mesh.{name}={size}" for name, _, size in sides]


def main() -> None:
    """The command line; a user's mistake ends in one sentence and exit status 2."""
    parser = configs.Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # or --config.x would be an abbreviation
    )
    add = parser.add_argument
    add("--config", required=True, help="configs/NAME.py; with --config.key=value ...")
    add("--topology", required=True, help=FORMS)
    add("--mesh", type=mesh_of, default=[], help="such as data=32,fsdp=8, over the config's")
    add("--examples", type=int, help="in the training data, where it does not lie here")
    add("--json", metavar="FILE", help="where the figures are written too")
    try:
        with configs.mistakes():
            options, changes = parser.parse_known_args()
            config = configs.configured(options.config, [*options.mesh, *changes])
            from ml_collections import ConfigDict

            figures = plan(ConfigDict(config), options.topology, options.examples)
            print(report(figures))
            if options.json:
                with open(options.json, "w") as file:
                    file.write(json.dumps(figures, indent=2) + "\n")
    except configs.Mistake as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
