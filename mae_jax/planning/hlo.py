"""Read what a compiled program does from its text: loops, bytes moved, bytes sent (experimental).

XLA's own cost analysis counts the body of a loop once and says nothing of collectives, so this
parses `compiled.as_text()`. The text format of XLA is not stable: another version of jax or libtpu
may need changes here. The tests hold recorded programs. One line is one instruction, in
computations that call each other:

    %name = bf16[32,768]{1,0:T(8,128)S(1)} fusion(%a, %b), kind=kLoop, calls=%fused.7

Here `S(1)` is the memory space: without it an array is in the device's memory, 1 is the memory on a
TPU's chip. The metadata of a kernel are on a line of their own.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

COLLECTIVES = {"all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all"}
COLLECTIVES |= {"collective-permute", "collective-broadcast"}
SLICES = {"slice", "dynamic-slice", "gather"}
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"}
FREE |= {"call", "after-all", "opt-barrier", "partition-id", "replica-id", "iota"}

_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^{}]*\})?")
_MOVES_NOTHING = re.compile(r'custom_call_target="(AllocateBuffer|ConcatBitcast)"')  # on TPUs
_INSTRUCTION = re.compile(
    r"\s+(ROOT )?%?([\w.-]+) = (.*?[\])}]) ([a-z][a-z0-9-]*)\((.*?)\)(, .*|$)"
)


class Array(NamedTuple):
    bytes: int
    space: int  # 0 = the device's memory


class Instruction(NamedTuple):
    name: str
    opcode: str
    arrays: list[Array]  # of the result; several in a tuple
    operands: list[str]
    text: str  # the attributes; of a parameter or a constant its number
    root: bool


class Collective(NamedTuple):
    kind: str  # one of `COLLECTIVES`
    bytes: int  # of the whole array on one device: the result, or the operand of a reduce-scatter
    group: int  # number of devices that take part
    times: int  # how often the collective runs, with the loops around it

    @property
    def sent(self) -> float:
        """Bytes that a device sends, by the algorithms of a ring of g devices.

        An all-reduce is a reduce-scatter and an all-gather, and each of these sends (g - 1) / g of
        the whole array, as does an all-to-all. A permutation and a broadcast send it once.
        """
        factor = (self.group - 1) / self.group
        if "permute" in self.kind or "broadcast" in self.kind:
            factor = 1.0
        return self.times * self.bytes * factor * (2 if self.kind == "all-reduce" else 1)


class Program(NamedTuple):
    computations: dict[str, list[Instruction]]
    times: dict[str, int]  # how often each computation outside of fusions runs
    fused: dict[str, int]  # how often each computation inside of fusions runs

    def collectives(self) -> list[Collective]:
        """List the collectives, each once.

        A TPU's compiler spreads a collective over several fusions, some of them in loops, so that
        products run meanwhile. All of these fusions name its channel, and it runs as often as the
        fusion that runs least. The compiler also turns a gather or scatter behind a product into a
        loop of permutations and products; those count as permutations.
        """
        collectives: dict[str, Collective] = {}
        for name, times in (self.times | self.fused).items():
            arrays = {op.name: op.arrays for op in self.computations[name]}
            for op in self.computations[name]:
                kind = op.opcode.removesuffix("-start")
                if kind not in COLLECTIVES:
                    continue
                parts = op.arrays
                if kind == "reduce-scatter":
                    parts = [a for operand in op.operands for a in arrays.get(operand, [])]
                elif op.opcode.endswith("-start") and kind != "all-reduce":  # operands, results ...
                    parts = parts[len(op.operands) : 2 * len(op.operands)]
                if name.startswith("all-reduce-scatter"):  # a TPU's fusion, with a slice behind it
                    kind = "reduce-scatter"
                new = Collective(kind, sum(a.bytes for a in parts), _group(op.text), times)
                channel = re.search(r"channel_id=(\d+)", op.text)
                key = channel[1] if channel else op.name
                old = collectives.get(key, new)
                collectives[key] = min(old, new, key=lambda c: (c.times, -c.bytes))
        return list(collectives.values())

    def cycles(self) -> int | None:
        """Sum the cycles that a TPU's compiler expects over all instructions; None elsewhere.

        The compiler knows nothing about a Pallas kernel; there the kernel's own estimate counts.
        """
        total = 0
        for name, times in self.times.items():
            for op in self.computations[name]:
                if match := re.search(r'"(?:estimated_)?cycles":"(\d+)"', op.text):
                    total += times * int(match[1])
        return total or None

    def traffic(self, loops: bool = True, everywhere: bool = False) -> float:
        """Sum the bytes that instructions read and write in the device's memory, by their shapes.

        Args:
          loops: count the body of a loop as often as it runs, and not once.
          everywhere: count all memories, also the one on a TPU's chip.
        """
        total = 0.0
        size = lambda arrays: sum(a.bytes for a in arrays if everywhere or not a.space)
        for name, times in self.times.items():
            arrays = {op.name: op.arrays for op in self.computations[name]}
            for op in self.computations[name]:
                sources = [arrays.get(operand, []) for operand in op.operands]
                total += (times if loops else 1) * self._moved(op, sources, size)
        return total

    def _moved(self, op: Instruction, sources: list[list[Array]], size: Callable) -> float:
        if op.opcode in FREE or op.opcode.endswith("-done") or _MOVES_NOTHING.search(op.text):
            return 0
        if op.opcode in ("copy-start", "slice-start"):  # (from, to, flag): count `to` at both ends
            ends = [size([array]) for array in op.arrays[:2]]
            return op.arrays[1].bytes * sum(end > 0 for end in ends)
        if op.opcode in SLICES:
            return 2 * size(op.arrays)
        if op.opcode == "dynamic-update-slice":
            return 2 * size(sources[1])
        if op.opcode != "fusion":
            return size(op.arrays) + sum(map(size, sources))
        inside = _called(op.text, "calls")[0]
        total = sum(
            min(size(source), self._read(inside, index)) for index, source in enumerate(sources)
        )
        by_name = {inner.name: inner for inner in self.computations[inside]}
        root = next(inner for inner in by_name.values() if inner.root)
        roots = [by_name[name] for name in root.operands] if root.opcode == "tuple" else [root]
        for inner, array in zip(roots, op.arrays, strict=False):
            while inner.opcode == "bitcast":
                inner = by_name[inner.operands[0]]
            in_place = inner.opcode == "dynamic-update-slice" and size([array])
            total += size(by_name[inner.operands[1]].arrays if in_place else [array])
        return total

    def _read(self, computation: str, index: int) -> float:
        """Return the bytes of a parameter that a fusion reads by slices, or infinity for all."""
        inside = self.computations[computation]

        def used(name: str) -> float:
            total = 0.0
            for user in (op for op in inside if name in op.operands):
                first = user.operands[0] == name
                if user.opcode in SLICES and first:
                    total += sum(array.bytes for array in user.arrays)
                elif user.opcode == "bitcast":
                    total += used(user.name)
                elif user.opcode == "fusion":
                    total += self._read(_called(user.text, "calls")[0], user.operands.index(name))
                elif not (user.opcode == "dynamic-update-slice" and first):  # the rest is untouched
                    return math.inf
            return total

        parameters = (op for op in inside if op.opcode == "parameter")
        return used(next(op.name for op in parameters if int(op.text) == index))


def parse(text: str) -> Program:
    """Parse the text of a compiled program."""
    computations: dict[str, list[Instruction]] = {}
    current, entry = [], ""
    text = re.sub(r"(kernel_metadata=\{)\n(.*)\n(?=\})", r"\1\2", text)
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith((" ", "HloModule")):
            name = line.removeprefix("ENTRY ").split(" ", 1)[0].removeprefix("%")
            current = computations.setdefault(name, [])
            entry = name if line.startswith("ENTRY") else entry
        elif match := _INSTRUCTION.match(line):
            root, name, result, opcode, inside, attributes = match.groups()
            attributes = inside if opcode in ("parameter", "constant") else attributes
            operands = re.findall(r"%([\w.-]+)", inside)
            current.append(
                Instruction(name, opcode, _arrays(result), operands, attributes, bool(root))
            )
    times: dict[str, int] = {}
    fused: dict[str, int] = {}

    def visit(name: str, count: int, into: dict[str, int]) -> None:
        into[name] = into.get(name, 0) + count
        for op in computations.get(name, []):
            if op.opcode == "while":
                (condition,), (body,) = _called(op.text, "condition"), _called(op.text, "body")
                trips = _trips(op, computations[condition], computations[body])
                visit(body, count * trips, into)
            elif op.opcode == "fusion":
                for called in _called(op.text, "calls"):
                    visit(called, count, fused)
            elif op.opcode in ("call", "conditional") or op.opcode.startswith("async-start"):
                # One branch of a conditional runs, and all branches of a step cost the same.
                keys = ("to_apply", "calls", "branch_computations", "called_computations")
                for called in [name for key in keys for name in _called(op.text, key)][:1]:
                    visit(called, count, into)

    visit(entry, 1, times)
    return Program(computations, times, fused)


def _arrays(text: str) -> list[Array]:
    arrays = []
    for kind, sides, layout in _SHAPE.findall(text):
        bits, space = re.search(r"\d+", kind), re.search(r"S\((\d+)\)", layout)
        width = int(bits[0]) / 8 if bits else float(kind != "token")  # a `pred` is a byte
        count = math.prod(int(side) for side in sides.split(",") if side)
        arrays.append(Array(math.ceil(count * width), int(space[1]) if space else 0))
    return arrays


def _called(text: str, key: str) -> list[str]:
    match = re.search(rf"\b{key}=(%[\w.-]+|\{{[^}}]*\}})", text)
    return re.findall(r"%([\w.-]+)", match[1]) if match else []


def _trips(loop: Instruction, condition: list[Instruction], body: list[Instruction]) -> int:
    """Return how often a loop runs: as the compiler says, or by the bound of its counter."""
    if match := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.text):
        return int(match[1])
    counters = [re.search(r"index=(\d+)", op.text) for op in condition if "get-tuple" in op.opcode]
    by_name, root = {op.name: op for op in body}, next(op for op in body if op.root)
    step = 1
    if counters and counters[0] and root.opcode == "tuple":
        counter = by_name.get(root.operands[int(counters[0][1])])
        if counter and counter.opcode == "add":  # unrolled loops count in twos
            step = _largest([by_name[name] for name in counter.operands if name in by_name])
    return math.ceil(_largest(condition) / step)


def _largest(instructions: Sequence[Instruction]) -> int:
    """Return the largest integer constant, at least 1."""
    texts = [op.text for op in instructions if op.opcode == "constant"]
    return max([1, *(int(text) for text in texts if text.isdigit())])


def _group(text: str) -> int:
    """Return the number of devices that take part in a collective.

    Groups are written in three ways: `{{0,1},{2,3}}`, `[2,2]<=[4]` (groups of the last number) and
    `mesh['a'=2,'b'=2] {'b'}`.
    """
    if "source_target_pairs={{" in text:
        return 2  # any number above one
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return len(match[1].split(","))
    if match := re.search(r"replica_groups=\[([\d,]+)\]", text):
        return int(match[1].split(",")[-1])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}", text):
        sides = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sides[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
    return 1
