"""What a compiled program spends its time on: a trace, joined with the program's text.

The trace says how long each instruction of the compiled program ran (events with an `hlo_op`, on
the threads of a CPU or the streams of a GPU). The text says what an instruction is and where in the
model it comes from. Reading either needs jax alone.
"""

import collections
import re
from pathlib import Path
from typing import NamedTuple

import jax

from scripts.benchmark.alternating import Contender

STEPS = 3  # that are traced

# The kind of an instruction is the first whose opcodes it, or an instruction fused into it, has; an
# instruction without any computes values one by one, or only moves them.
KINDS = {
    "matrix products": {"dot", "convolution", "gemm"},
    "between devices": {"all-reduce", "all-gather", "reduce-scatter", "all-to-all", "permute"},
    "sorting": {"sort", "topk"},
    "sums and maxima": {"reduce", "reduce-window", "select-and-scatter"},
    "gathering": {"gather", "scatter", "dynamic-slice", "dynamic-update-slice"},
    "other": {"custom-call"},
}
CONTAINERS = {"while", "call", "conditional"}  # what is inside has times of its own
MOVING = {"copy", "transpose", "reshape", "concatenate", "slice", "pad", "broadcast", "bitcast"}
MOVING |= {"parameter", "constant", "iota", "tuple", "get-tuple-element"}


class Instruction(NamedTuple):
    """Of a compiled program."""

    opcode: str
    kind: str
    place: str  # `encoder/block_#/mlp/fc1, backward`


def record(contender: Contender, folder: str) -> Path:
    """Write a trace of some steps to `folder`, for TensorBoard or Perfetto; return its path."""
    contender.wait(contender.dispatch())
    with jax.profiler.trace(folder):
        for number in range(STEPS):
            with jax.profiler.StepTraceAnnotation("step", step_num=number):
                last = contender.dispatch()
        contender.wait(last)
    return max(Path(folder).rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)


def seconds(path: Path) -> dict[str, float]:
    """Return the seconds in each instruction over the whole trace, without others inside it.

    Raises:
      ValueError: the trace names no instructions.
    """
    planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    total: dict[str, float] = collections.defaultdict(float)
    for plane in devices or planes:
        for line in plane.lines:
            events = [
                (event.start_ns, -event.duration_ns, name)
                for event in line.events
                if (name := dict(event.stats).get("hlo_op"))
            ]
            around: list[tuple[float, str]] = []  # ends and names of the events around this one
            for start, negative, name in sorted(events):
                while around and around[-1][0] <= start:
                    around.pop()
                if around:
                    total[around[-1][1]] += 1e-9 * negative
                total[str(name)] -= 1e-9 * negative
                around.append((start - negative, str(name)))
    if not total:
        raise ValueError(f"the trace {path} names no instructions on this kind of device")
    return dict(total)


def instructions(text: str) -> dict[str, Instruction]:
    """Read the instructions of a compiled program (`compiled.as_text()`), by name."""
    computations: dict[str, list[re.Match]] = collections.defaultdict(list)
    inside = ""
    for line in text.splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            inside = header[1]
        elif found := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = .*? ([a-z][\w\-]*)\((.*)", line):
            computations[inside].append(found)

    def parts(found: re.Match) -> list[re.Match]:
        """Return what an instruction consists of: itself, or what is fused into it."""
        called = re.search(r"calls=%?([\w.\-]+)", found[3]) if found[2] == "fusion" else None
        if not called:
            return [found]
        return [part for inner in computations[called[1]] for part in parts(inner)]

    return {
        found[1]: _described(found, parts(found))
        for listed in computations.values()
        for found in listed
    }


def _described(found: re.Match, parts: list[re.Match]) -> Instruction:
    opcodes = {part[2]: part for part in parts}
    if target := re.search(r'custom_call_target="([^"]+)"', found[3]):
        words = target[1].lower()
        product = "gemm" in words or "matmul" in words or "dot" in words or "conv" in words
        opcodes = {"gemm": found} if product else opcodes
    for kind, members in KINDS.items():
        chosen = [part for opcode, part in opcodes.items() if _one_of(opcode, members)]
        if chosen:
            return Instruction(found[2], kind, _place(chosen[0]) or _place(found) or "other")
    kind = "moving" if opcodes.keys() <= MOVING else "values one by one"
    places = filter(None, map(_place, (found, *reversed(parts))))
    return Instruction(found[2], kind, next(places, "other"))


def _one_of(opcode: str, members: set[str]) -> bool:
    return re.sub(r"^collective-|-(start|done)$", "", opcode) in members


def _place(found: re.Match) -> str:
    """Return where in the model an instruction comes from, all blocks as one; "" if unknown."""
    name = re.search(r'op_name="([^"]*)"', found[3])
    if not name:
        return ""
    direction = "backward" if "transpose(" in name[1] else "forward" if "jvp(" in name[1] else ""
    words = [word for word in name[1].split("/") if "(" not in word and "<locals>" not in word]
    words = [re.sub(r"_\d+$", "_#", word) for word in words[:-1]]  # the last one is the primitive
    words = [word for i, word in enumerate(words) if word != words[i - 1] or not i]
    if not direction:
        return "optimiser and the rest"
    return f"{'/'.join(words) or 'loss'}, {direction}"


def shares(path: Path, text: str) -> dict[str, dict[str, float]]:
    """Return the seconds of a step by kind, by place in the model, and by instruction.

    The largest come first. The cores of a CPU run several instructions at a time, so the seconds
    may add up to more than the step.
    """
    known = instructions(text)
    tables: dict[str, dict[str, float]] = {"kind": {}, "place": {}, "instruction": {}}
    for name, spent in seconds(path).items():
        one = known.get(name, Instruction("", "other", "other"))
        if one.opcode in CONTAINERS:
            continue
        keys = one.kind, f"{one.place} ({one.kind})", name
        for table, key in zip(tables.values(), keys, strict=True):
            table[key] = table.get(key, 0.0) + spent / STEPS
    ordered = lambda table: dict(sorted(table.items(), key=lambda item: -item[1]))
    return {title: ordered(table) for title, table in tables.items()}
