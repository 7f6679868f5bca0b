"""What a program takes: work, memory and, on a chip, time.

A time is that of the slowest of three: matrix products at `FLOPS_SHARE` of the chip's peak, memory at `BANDWIDTH_SHARE` and
links at `LINK_SHARE` of their rates, with each collective's latency on top. The shares are assumptions, not measurements; so is
that the three overlap, latencies too, asynchronous or not. Sums over a tensor axis, which what comes next waits for, do not: a
program that has many small ones, as decoding has, takes up to the sum of its times.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from jaxrl_ml.planning.topology import Chip

FLOPS_SHARE, BANDWIDTH_SHARE, LINK_SHARE = 0.5, 0.8, 0.7


@dataclass
class Work:
    """What a device does in one run of a program.

    The span of a group is how many devices it reaches over, in the mesh's order: a group of 8 that takes every fourth device
    spans 32. As read off a compiled program, it is the group itself.
    """

    flops: float = 0.0  # of matrix products
    bytes: float = 0.0  # to and from its memory
    sent: Counter = field(default_factory=Counter)  # {(kind of collective, devices a group, span): bytes sent}
    calls: Counter = field(default_factory=Counter)  # as often as each of these is called

    def send(self, kind: str, devices: int, span: int, size: float, calls: float) -> None:
        """Counts collectives that send `size` bytes together; a group of one sends nothing."""
        if devices == 1:
            return
        self.sent[kind, devices, span] += size
        self.calls[kind, devices, span] += calls

    def add(self, other: Work, times: float = 1) -> None:
        self.flops += times * other.flops
        self.bytes += times * other.bytes
        for mine, others in ((self.sent, other.sent), (self.calls, other.calls)):
            for key, value in others.items():
                mine[key] += times * value

    @property
    def sent_bytes(self) -> float:
        return sum(self.sent.values())


class Memory(NamedTuple):
    """Bytes of a device's memory that a program takes."""

    arguments: float
    outputs: float
    temporaries: float
    peak: float  # outputs that take an argument's place counted once
    beside: float = 0.0  # what lives on the device meanwhile, and is no argument

    @property
    def total(self) -> float:
        return self.peak + self.beside


@dataclass(frozen=True)
class Estimate:
    """One program of a stage, worked out or compiled."""

    name: str
    work: Work
    memory: Memory
    runs: int  # times a step of the stage
    compile_s: float | None = None  # None: worked out, not compiled
    largest: tuple[tuple[float, str, str], ...] = ()  # the largest arrays: bytes, shape, operation
    note: str = ""  # what is peculiar about how it was compiled
    refused: bool = False  # the compiler found it too large: `memory` tells by how much, and `work` is worked out


class Seconds(NamedTuple):
    """How long a run takes on a chip, by what it takes it for."""

    compute: float
    memory: float
    links: float

    @property
    def total(self) -> float:
        return max(self)

    @property
    def bound(self) -> str:
        return self._fields[self.index(self.total)]


def seconds(work: Work, chip: Chip) -> Seconds:
    """The time of a run. Collectives that span more than a slice or node go at the network's rate."""
    links = sum(b / (LINK_SHARE * (chip.link if span <= chip.largest else chip.network)) for (*_, span), b in work.sent.items())
    links += latency_seconds(work, chip)
    return Seconds(work.flops / (FLOPS_SHARE * chip.flops), work.bytes / (BANDWIDTH_SHARE * chip.bandwidth), links)


def latency_seconds(work: Work, chip: Chip) -> float:
    """What of a run's time for links is latency."""
    return sum(calls * chip.latency(*key) for key, calls in work.calls.items())


def step_seconds(estimates: list[Estimate], chip: Chip) -> float:
    """The time of a step: its programs one after the other; what the host does is not in it."""
    return sum(e.runs * seconds(e.work, chip).total for e in estimates)
