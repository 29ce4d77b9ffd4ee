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
    times: int  # how often it runs, with the loops around it

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
    times: dict[str, int]  # how often each one runs, without those inside of fusions
    fused: dict[str, int]  # the same for those inside of fusions

    def collectives(self) -> list[Collective]:
        """List the collectives, each once.

        A TPU's compiler spreads a collective over several fusions, some of them in loops, so that
        products run meanwhile. All of these fusions name its channel, and it runs as often as the
        fusion that runs least. The compiler also turns a gather or scatter behind a product into a
        loop of permutations and products; those count as permutations.
        """
        found: dict[str, Collective] = {}
        for name, times in (self.times | self.fused).items():
            arrays = {x.name: x.arrays for x in self.computations[name]}
            for x in self.computations[name]:
                kind = x.opcode.removesuffix("-start")
                if kind not in COLLECTIVES:
                    continue
                parts = x.arrays
                if kind == "reduce-scatter":
                    parts = [a for operand in x.operands for a in arrays.get(operand, [])]
                elif x.opcode != kind != "all-reduce":  # a start: (operands, results, ...)
                    parts = parts[len(x.operands) : 2 * len(x.operands)]
                if name.startswith("all-reduce-scatter"):  # a TPU's fusion, with a slice behind it
                    kind = "reduce-scatter"
                new = Collective(kind, sum(a.bytes for a in parts), _group(x.text), times)
                channel = re.search(r"channel_id=(\d+)", x.text)
                key = channel[1] if channel else x.name
                found[key] = min(found.get(key, new), new, key=lambda c: (c.times, -c.bytes))
        return list(found.values())

    def cycles(self) -> int | None:
        """Sum the cycles that a TPU's compiler expects over all instructions; None elsewhere.

        The compiler knows nothing about a Pallas kernel; there the kernel's own estimate counts.
        """
        total = 0
        for name, times in self.times.items():
            for x in self.computations[name]:
                if found := re.search(r'"(?:estimated_)?cycles":"(\d+)"', x.text):
                    total += times * int(found[1])
        return total or None

    def traffic(self, loops: bool = True, everywhere: bool = False) -> float:
        """Sum the bytes that instructions read and write in the device's memory, by their shapes.

        Args:
          loops: count the body of a loop as often as it runs, and not once.
          everywhere: count all memories, also that on a TPU's chip.
        """
        total = 0.0
        size = lambda arrays: sum(a.bytes for a in arrays if everywhere or not a.space)
        for name, times in self.times.items():
            arrays = {x.name: x.arrays for x in self.computations[name]}
            for x in self.computations[name]:
                sources = [arrays.get(operand, []) for operand in x.operands]
                total += (times if loops else 1) * self._moved(x, sources, size)
        return total

    def _moved(self, x: Instruction, sources: list[list[Array]], size: Callable) -> float:
        if x.opcode in FREE or x.opcode.endswith("-done") or _MOVES_NOTHING.search(x.text):
            return 0
        if x.opcode in ("copy-start", "slice-start"):  # (from, to, flag): what arrives, at each end
            ends = [size([array]) for array in x.arrays[:2]]
            return x.arrays[1].bytes * sum(end > 0 for end in ends)
        if x.opcode in SLICES:
            return 2 * size(x.arrays)
        if x.opcode == "dynamic-update-slice":
            return 2 * size(sources[1])
        if x.opcode != "fusion":
            return size(x.arrays) + sum(map(size, sources))
        inside = _called(x.text, "calls")[0]
        total = sum(
            min(size(source), self._read(inside, index)) for index, source in enumerate(sources)
        )
        by_name = {i.name: i for i in self.computations[inside]}
        root = next(i for i in by_name.values() if i.root)
        roots = [by_name[name] for name in root.operands] if root.opcode == "tuple" else [root]
        for i, array in zip(roots, x.arrays, strict=False):
            while i.opcode == "bitcast":
                i = by_name[i.operands[0]]
            in_place = i.opcode == "dynamic-update-slice" and size([array])
            total += size(by_name[i.operands[1]].arrays if in_place else [array])
        return total

    def _read(self, computation: str, index: int) -> float:
        """Bytes of a parameter that a fusion reads by slices; infinite if it reads all of it."""
        inside = self.computations[computation]

        def used(name: str) -> float:
            total = 0.0
            for user in (i for i in inside if name in i.operands):
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

        return used(
            next(i.name for i in inside if i.opcode == "parameter" and int(i.text) == index)
        )


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
        elif found := _INSTRUCTION.match(line):
            root, name, result, opcode, inside, attributes = found.groups()
            attributes = inside if opcode in ("parameter", "constant") else attributes
            operands = re.findall(r"%([\w.-]+)", inside)
            current.append(
                Instruction(name, opcode, _arrays(result), operands, attributes, bool(root))
            )
    times: dict[str, int] = {}
    fused: dict[str, int] = {}

    def visit(name: str, count: int, into: dict[str, int]) -> None:
        into[name] = into.get(name, 0) + count
        for x in computations.get(name, []):
            if x.opcode == "while":
                (condition,), (body,) = _called(x.text, "condition"), _called(x.text, "body")
                trips = _trips(x, computations[condition], computations[body])
                visit(body, count * trips, into)
            elif x.opcode == "fusion":
                for called in _called(x.text, "calls"):
                    visit(called, count, fused)
            elif x.opcode in ("call", "conditional") or x.opcode.startswith("async-start"):
                # one branch of a conditional runs; all branches of a step cost the same
                keys = ("to_apply", "calls", "branch_computations", "called_computations")
                for called in [c for key in keys for c in _called(x.text, key)][:1]:
                    visit(called, count, into)

    visit(entry, 1, times)
    return Program(computations, times, fused)


def _arrays(text: str) -> list[Array]:
    arrays = []
    for kind, sides, layout in _SHAPE.findall(text):
        bits, space = re.search(r"\d+", kind), re.search(r"S\((\d+)\)", layout)
        width = int(bits[0]) / 8 if bits else kind != "token"  # a `pred` is a byte
        count = math.prod(int(side) for side in sides.split(",") if side)
        arrays.append(Array(math.ceil(count * width), int(space[1]) if space else 0))
    return arrays


def _called(text: str, key: str) -> list[str]:
    found = re.search(rf"\b{key}=(%[\w.-]+|\{{[^}}]*\}})", text)
    return re.findall(r"%([\w.-]+)", found[1]) if found else []


def _trips(loop: Instruction, condition: list[Instruction], body: list[Instruction]) -> int:
    """How often a loop runs: as the compiler says, or what its counter counts up to."""
    if found := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.text):
        return int(found[1])
    counters = [re.search(r"index=(\d+)", x.text) for x in condition if "get-tuple" in x.opcode]
    by_name, root = {x.name: x for x in body}, next(x for x in body if x.root)
    step = 1
    if counters and counters[0] and root.opcode == "tuple":
        counter = by_name.get(root.operands[int(counters[0][1])])
        if counter and counter.opcode == "add":  # unrolled loops count in twos
            step = _largest([by_name[name] for name in counter.operands if name in by_name])
    return math.ceil(_largest(condition) / step)


def _largest(instructions: Sequence[Instruction]) -> int:
    """The largest whole constant, at least 1."""
    return max(
        [1, *(int(x.text) for x in instructions if x.opcode == "constant" and x.text.isdigit())]
    )


def _group(text: str) -> int:
    """How many devices take part in a collective.

    Groups are written in three ways: `{{0,1},{2,3}}`, `[2,2]<=[4]` (groups of the last number) and
    `mesh['a'=2,'b'=2] {'b'}`.
    """
    if "source_target_pairs={{" in text:
        return 2  # any: only more than one counts
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return len(listed[1].split(","))
    if tiled := re.search(r"replica_groups=\[([\d,]+)\]", text):
        return int(tiled[1].split(",")[-1])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}", text):
        sides = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sides[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
    return 1
