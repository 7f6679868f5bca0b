"""What a compiled program does on one device, counted in its optimised HLO text: FLOPs, bytes of memory, collectives.

In: the text of a compiled program (CPU, TPU or CUDA). Out: a `Work`. XLA's own `cost_analysis` counts the body of a loop once,
and there is none for CUDA without a GPU; here a loop's body counts as often as it runs.

1. FLOPs are those of matrix products (dot, convolution, cuBLAS calls), 2 a multiply-add; what is elementwise counts nothing.
   Splash attention's are those of the blocks that its causal mask leaves.
2. Bytes are the operands and results of every scheduled instruction, so far as they lie in device memory: those of a fusion
   once, a slice of a larger array as the slice. Caches are not modelled.
3. A collective's bytes are what one device sends, by ring: with n devices a group and b bytes of operand, b·(n−1) for
   all-gather, b·(n−1)/n for reduce-scatter and all-to-all, twice that for all-reduce, b for collective-permute. One that TPU
   runs beside several fusions (a chain) is written in each of them, on one channel, and counts once.
4. A loop without a known number of turns, which ends when the data says so, runs `trips` times; of a conditional's branches,
   the dearest runs.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from jaxrl_ml.planning.work import Work

_BITS = {"pred": 8, "token": 0, "opaque": 0}  # of the others, the name tells
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id", "iota"),
    *("opt-barrier", "domain", "add-dependency"),
}
_SLICES = {"dynamic-slice", "slice", "gather"}


class Array(NamedTuple):
    """A shape as the text has it."""

    dtype: str
    shape: tuple[int, ...]
    elsewhere: bool  # in a memory space that is not the device's main one, such as a TPU's VMEM

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> float:
        """Bytes of main memory; 0 where it lies elsewhere."""
        if self.elsewhere:
            return 0.0
        bits = _BITS[self.dtype] if self.dtype in _BITS else int(re.search(r"\d+", self.dtype).group())
        return self.size * bits / 8


@dataclass
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    arrays: list[Array]  # of its result, a tuple flat
    operands: list[str]
    inside: str  # what stands between the parentheses: a constant's value, a parameter's place
    rest: str  # attributes
    root: bool

    @cached_property
    def op_name(self) -> str:
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found.group(1) if found else self.name

    def attribute(self, name: str) -> list[str]:
        """The computations that an attribute such as `calls=` names."""
        found = re.search(r"\b" + name + r"=(?:\{([^}]*)\}|(%?[\w.\-]+))", self.rest)
        return [] if found is None else [item.lstrip("%") for item in (found.group(1) or found.group(2)).split(", ")]


class Module:
    """The computations of a compiled program."""

    def __init__(self, text: str, trips: int = 1) -> None:
        self.trips = trips
        self.computations: dict[str, dict[str, Instruction]] = {}
        current, self.entry = {}, ""
        for line in text.splitlines():
            if head := _HEAD.match(line):
                current = self.computations[head.group(1)] = {}
                self.entry = head.group(1) if line.startswith("ENTRY") else self.entry
            elif found := _LINE.match(line):
                instruction = _parse(*found.groups())
                current[instruction.name] = instruction
        partitions = re.search(r"num_partitions=(\d+)", text)
        self.num_devices = int(partitions.group(1)) if partitions else 1
        self._pieces = Counter(_channel(i) for c in self.computations.values() for i in c.values() if _is_chained(i))
        self._known: dict[tuple[str, bool], Work] = {}

    def work(self) -> Work:
        """What a device does in one run."""
        return self._work(self.entry, fused=False)

    def largest(self, count: int) -> list[tuple[float, str, str]]:
        """The largest arrays that instructions make: (bytes, shape, the operation that makes it), one of each shape."""
        bodies = {
            name
            for c in self.computations.values()
            for i in c.values()
            if i.opcode == "fusion"
            for name in i.attribute("calls")
        }
        found: dict[str, tuple[float, str, str]] = {}
        for name, computation in self.computations.items():
            for i in computation.values() if name not in bodies else ():
                if i.opcode in _FREE or i.opcode == "while" or i.opcode.endswith("-done"):
                    continue
                for array in i.arrays:
                    shape = f"{array.dtype}{list(array.shape)}".replace(" ", "")
                    found.setdefault(shape, (array.bytes, shape, i.op_name))
        return sorted(found.values(), reverse=True)[:count]

    def _work(self, name: str, fused: bool) -> Work:
        if (name, fused) not in self._known:
            total = Work()
            for instruction in self.computations[name].values():
                self._count(total, self.computations[name], instruction, fused)
            self._known[name, fused] = total
        return self._known[name, fused]

    def _count(self, total: Work, inside: dict[str, Instruction], i: Instruction, fused: bool) -> None:
        kind = i.opcode.removesuffix("-start")
        if i.opcode == "while":
            turns = self._turns(inside, i)
            for part in ("body", "condition"):
                total.add(self._work(i.attribute(part)[0], fused), turns)
        elif i.opcode == "conditional":
            branches = i.attribute("branch_computations") or i.attribute("true_computation") + i.attribute("false_computation")
            total.add(max((self._work(b, fused) for b in branches), key=lambda w: (w.flops, w.bytes)))
        elif i.opcode in ("call", "async-start"):
            for called in i.attribute("to_apply") or i.attribute("calls"):
                total.add(self._work(called, fused))
        elif i.opcode == "fusion":
            for called in i.attribute("calls"):
                total.add(self._work(called, fused=True))
        elif kind in _COLLECTIVES:
            self._count_collective(total, inside, i, kind)
        else:
            total.flops += self._flops(inside, i)
        if not fused:
            total.bytes += self._bytes(inside, i)

    def _turns(self, inside: dict[str, Instruction], i: Instruction) -> int:
        """How often a loop runs: told by XLA, or (TPU) read off a counter that is compared with a constant."""
        if known := re.search(r'known_trip_count":\{"n":"(\d+)"', i.rest):
            return int(known.group(1))
        condition, body = (self.computations[i.attribute(part)[0]] for part in ("condition", "body"))
        test, last = _root(condition), _root(body)
        limit = _constant(condition, test.operands[1]) if test.opcode == "compare" and "direction=LT" in test.rest else None
        counter = condition.get(test.operands[0])
        if limit is None or counter is None or counter.opcode != "get-tuple-element" or last.opcode != "tuple":
            return self.trips
        place = int(re.search(r"index=(\d+)", counter.rest).group(1))
        start = _constant(inside, inside[i.operands[0]].operands[place]) if i.operands[0] in inside else None
        added = body.get(last.operands[place])
        steps = [_constant(body, name) for name in added.operands] if added is not None and added.opcode == "add" else []
        step = next((value for value in steps if value), 1)
        return max(0, -(-(limit - (start or 0)) // step))

    def _count_collective(self, total: Work, inside: dict[str, Instruction], i: Instruction, kind: str) -> None:
        operand = sum(a._replace(elsewhere=False).bytes for name in i.operands for a in self._arrays(inside, name))
        n = _group_size(i.rest, self.num_devices)
        factor = {"all-gather": n - 1, "all-reduce": 2 * (n - 1) / n, "collective-permute": 1}.get(kind, (n - 1) / n)
        pieces = self._pieces[_channel(i)] if _is_chained(i) else 1
        total.send(kind, n, n, operand * factor / pieces, 1 / pieces)

    def _arrays(self, inside: dict[str, Instruction], name: str) -> list[Array]:
        return inside[name].arrays if name in inside else []

    def _flops(self, inside: dict[str, Instruction], i: Instruction) -> float:
        if i.opcode == "dot" or i.opcode == "custom-call" and "matmul" in i.rest:
            left = self._arrays(inside, i.operands[0])[0]
            found = re.search(r'lhs_contracting_dim(?:ension)?s"?[=:][\[{]([\d,"]*)[\]}]', i.rest)
            axes = re.findall(r"\d+", found.group(1)) if found else []
            return 2.0 * i.arrays[0].size * math.prod(left.shape[int(axis)] for axis in axes)
        if "tpu_custom_call" in i.rest and (kernel := re.search(r"splash_mha_(fwd|dq|dkv)", i.name + i.op_name)):
            return _splash_flops(kernel.group(1), [a for name in i.operands for a in self._arrays(inside, name)])
        if i.opcode == "convolution":
            left, right = (self._arrays(inside, name)[0] for name in i.operands[:2])
            return _convolution_flops(i, left, right)
        return 0.0

    def _bytes(self, inside: dict[str, Instruction], i: Instruction) -> float:
        if (
            i.opcode in _FREE
            or i.opcode in ("while", "conditional", "call", "async-start")
            or i.opcode.endswith(("-done", "-update"))
        ):
            return 0.0
        if i.opcode == "fusion":
            called = self.computations[i.attribute("calls")[0]]
            parameters = sorted((p for p in called.values() if p.opcode == "parameter"), key=lambda p: int(p.inside))
            reads = sum(
                min(self._read(called, p), sum(a.bytes for a in self._arrays(inside, name)))
                for p, name in zip(parameters, i.operands, strict=False)
            )
            root = _root(called)
            return reads + min(self._written(called, root), sum(a.bytes for a in i.arrays))
        operands = [sum(a.bytes for a in self._arrays(inside, name)) for name in i.operands]
        if i.opcode in _SLICES:
            return 2 * sum(a.bytes for a in i.arrays)
        if i.opcode == "slice-start":  # (what it is of, the slice, …): TPU brings matrices to VMEM so, piece by piece
            return i.arrays[1]._replace(elsewhere=False).bytes + i.arrays[1].bytes
        if i.opcode == "dynamic-update-slice":
            return 2 * operands[1]
        # What is started has its operand in its result as well.
        result = i.arrays[0].bytes if i.opcode == "copy-start" else sum(a.bytes for a in i.arrays)
        return sum(operands) + max(0.0, result - sum(operands) if _is_started(i) else result)

    def _read(self, called: dict[str, Instruction], value: Instruction) -> float:
        """Bytes that a fusion reads of a parameter, or of what is a parameter under another shape."""
        total, whole = 0.0, sum(a.bytes for a in value.arrays)
        for user in called.values():
            if value.name not in user.operands:
                continue
            if user.opcode in _SLICES and user.operands[0] == value.name:
                total += sum(a._replace(elsewhere=False).bytes for a in user.arrays)
            elif user.opcode == "bitcast":
                total += self._read(called, user)
            elif user.opcode == "fusion":
                inner = self.computations[user.attribute("calls")[0]]
                place = str(user.operands.index(value.name))
                parameter = next(p for p in inner.values() if p.opcode == "parameter" and p.inside == place)
                only_shape = _root(inner).opcode == "bitcast" and _root(inner).operands == [parameter.name]
                total += self._read(called, user) if only_shape else self._read(inner, parameter)
            elif user.opcode != "dynamic-update-slice" or user.operands[0] != value.name:
                return whole
        return whole if value.root else min(total, whole)

    def _written(self, called: dict[str, Instruction], root: Instruction) -> float:
        """Bytes that a fusion writes: of an array that is updated in place, the update."""
        if root.opcode == "tuple":
            return sum(self._written(called, called[name]) for name in root.operands if name in called)
        if root.opcode == "bitcast" and root.operands[0] in called:
            return self._written(called, called[root.operands[0]])
        if root.opcode == "dynamic-update-slice":
            return sum(a._replace(elsewhere=False).bytes for a in self._arrays(called, root.operands[1]))
        if root.opcode == "fusion":
            inner = self.computations[root.attribute("calls")[0]]
            return self._written(inner, _root(inner))
        return sum(a.bytes for a in root.arrays)


def _is_started(i: Instruction) -> bool:
    """Whether a collective's result holds its operand too, as those of asynchronous ones do."""
    return i.opcode.endswith("-start") and i.opcode != "copy-start"


def _is_chained(i: Instruction) -> bool:
    return 'chain_id="' in i.rest and "channel_id=" in i.rest


def _channel(i: Instruction) -> str:
    return re.search(r"channel_id=(\d+)", i.rest).group(1)


def _root(computation: dict[str, Instruction]) -> Instruction:
    return next(i for i in computation.values() if i.root)


def _constant(inside: dict[str, Instruction], name: str) -> int | None:
    """The value of an integer constant, copied or not."""
    found = inside.get(name)
    while found is not None and found.opcode in ("copy", "bitcast"):
        found = inside.get(found.operands[0])
    if found is None or found.opcode != "constant" or not re.fullmatch(r"-?\d+", found.inside):
        return None
    return int(found.inside)


def _parse(root: str | None, name: str, text: str) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    arrays = [
        Array(dtype, tuple(map(int, filter(None, shape.split(",")))), bool(re.search(r"S\([1-9]", layout or "")))
        for dtype, shape, layout in _ARRAY.findall(text[:end])
    ]
    opcode, _, after = text[end:].lstrip().partition("(")
    close = _closing("(" + after, 0) - 1
    inside, rest = after[:close], after[close + 1 :]
    operands = re.findall(r"%([\w.\-]+)", inside)
    return Instruction(name, opcode, arrays, operands, inside, rest, bool(root))


def _closing(text: str, start: int) -> int:
    """The place of the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place
    return len(text)


def _group_size(rest: str, num_devices: int) -> int:
    """Devices that take part in one group of a collective."""
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return len(found.group(1).split(","))
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]<=", rest):
        return int(found.group(1))
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found.group(1)))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found.group(2)))
    return num_devices


def _splash_flops(kernel: str, operands: list[Array]) -> float:
    """Of one call for all rows; its first operand tells of [1, blocks of queries, blocks of keys].

    q [rows, heads, queries, width] and k are its first operands of floating point; a single row's axis may be left out.
    """
    q, k = [a for a in operands if "f" in a.dtype][:2]
    queries, keys = q.shape[-2], k.shape[-2]
    block = queries // operands[0].shape[-2]
    pairs = queries * (keys - queries) + queries * (queries + block) / 2
    return 2.0 * {"fwd": 2, "dq": 3, "dkv": 4}[kernel] * (q.size // queries) * pairs


def _convolution_flops(i: Instruction, left: Array, right: Array) -> float:
    """As XLA's cost analysis: TPUs write batched products as convolutions of which most places are padding."""
    inputs, kernel, output = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.rest).groups()
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", (re.search(r"window=\{([^}]*)\}", i.rest) or [""])[0]))
    groups = {name: int(value) for name, value in re.findall(r"(feature|batch)_group_count=(\d+)", i.rest)}
    valid = 1
    for place, label in enumerate(sorted(set(kernel) - {"i", "o"})):

        def setting(name: str, default: str, place: int = place) -> str:
            return window[name].split("x")[place] if name in window else default

        sizes = left.shape[inputs.index(label)], right.shape[kernel.index(label)], i.arrays[0].shape[output.index(label)]
        low = int(setting("pad", "0_0").split("_")[0])
        dilations = int(setting("lhs_dilate", "1")), int(setting("rhs_dilate", "1"))
        valid *= _valid_places(sizes, int(setting("stride", "1")), low, dilations)
    features, batch = left.shape[inputs.index("f")], left.shape[inputs.index("b")]
    features, batch = features // groups.get("feature", 1), batch // groups.get("batch", 1)
    return 2.0 * features * batch * right.shape[kernel.index("o")] * valid


def _valid_places(sizes: tuple[int, int, int], stride: int, low: int, dilations: tuple[int, int]) -> int:
    """How many pairs of output and kernel places along an axis meet an input that is neither padding nor a dilation's hole."""
    size, window, outputs = sizes
    count = 0
    for k in range(window):
        offset = k * dilations[1] - low
        if dilations[0] == 1 and stride == 1:
            count += max(0, min(outputs, size - offset) - max(0, -offset))
            continue
        for o in range(outputs):
            place = o * stride + offset
            count += 0 <= place <= (size - 1) * dilations[0] and place % dilations[0] == 0
    return count
