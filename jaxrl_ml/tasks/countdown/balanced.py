"""Countdown problems by pattern: settings in, a task out that has equally many problems of every canonical pattern.

For a pattern, assignments of numbers to its letters are looked at in an order that is random but fixed by (seed, pattern). One
makes a problem where the pattern's value is a whole number in range, no earlier problem of the pattern has the same numbers,
and the problem belongs to the wanted split and meets `exclude` and `require`; until the pattern has its quota. This is the
generation of arXiv 2512.01775, with these departures:

1. Assignments come without repetition, so that a pattern that falls short of its quota is known to have no more problems, where
   it has at most 2^27 assignments (numbers in 1..99 up to n=4). With numbers and targets in 1..99 there are 315 of `A*B*C`, as
   published; but 340, not 199, of `A*B*C*D`: ten million independent draws would find 315 and, on average, 203.
2. The split is Countdown's, a hash of (sorted numbers, target) whatever the pattern, instead of some of each pattern set aside:
   a training problem of one pattern is no test problem of another.

The same settings give the same problems in every version of Python and numpy, as integer arithmetic alone decides, and a larger
quota adds problems and keeps the others. Patterns take turns, so that every prefix of the task is balanced as well.
All problems are made when the first is asked for: for the defaults, 437,594 in about 20 s.
"""

from __future__ import annotations

import functools
import hashlib
import operator
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from jaxrl_ml.tasks.countdown.generate import is_held_out
from jaxrl_ml.tasks.countdown.patterns import patterns
from jaxrl_ml.tasks.countdown.solver import MAX_SOLVED, family, fits_64_bits, requires, solvable_by, tree_of, value, written
from jaxrl_ml.types import Example, UserError

_MAX_LOOKS = 1 << 27  # assignments of a pattern: a few seconds
_FEW, _MANY = 1 << 10, 1 << 15  # assignments looked at at a time; more would not fit a cache


class Shortage(NamedTuple):
    """What a pattern that falls short of its quota has; `complete` where there is no more, else the search was given up."""

    found: int
    complete: bool


@dataclass(frozen=True)
class Balanced(Sequence[Example]):
    """A task of up to `quota` problems for every canonical pattern of the given counts of numbers.

    `Example.fields` holds `numbers` (tuple of int, in an order that says nothing), `target` (int), `solution` (str), an
    expression that reaches the target, and `pattern` (str), the solution's; `Example.task` is `countdown/{n}`. Of any first i
    examples all patterns that still have some have equally many, give or take one. Raises UserError for settings that cannot
    be met, when the first example is asked for if no problem meets them, and IndexError outside 0 ≤ index < len.
    """

    num_numbers: tuple[int, ...] = (3, 4)
    quota: int = 4000
    """Problems of a pattern, as many as the study has at n=3 and 4; it has 10 at n=5 and 1 at n=6, where more take long."""
    min_number: int = 1
    max_number: int = 99
    min_target: int = 1
    max_target: int = 99
    exclude: tuple[str, ...] = ()
    """Base patterns, such as `A/(B-C)`: no problem is solvable by a pattern of their families (see `solver`)."""
    require: tuple[str, ...] = ()
    """Base patterns: every problem has a solution, and none but of patterns of their families."""
    split: Literal["train", "test"] = "train"
    test_fraction: float = 1 / 16
    """Share of the (numbers, target) pairs that is held out; 1 where nothing is trained on, so that all is test."""
    seed: int = 0
    demonstrate: Callable[[Example, random.Random], str] | None = None
    """Writes `Example.completion` for SFT from the example (solution included) and the example's own generator."""

    def __post_init__(self) -> None:
        largest = max(abs(self.min_target), abs(self.max_target))
        counts = self.num_numbers
        for holds, message in (
            (
                bool(counts) and len(set(counts)) == len(counts) and all(2 <= n <= MAX_SOLVED for n in counts),
                f"num_numbers={counts} must be one or more different counts in 2..{MAX_SOLVED}, such as (3, 4)",
            ),
            (self.quota >= 1, f"quota={self.quota} must be at least 1"),
            (
                1 <= self.min_number <= self.max_number,
                f"min_number={self.min_number}, max_number={self.max_number} must satisfy 1 <= min <= max",
            ),
            (
                self.min_target <= self.max_target,
                f"min_target={self.min_target} exceeds max_target={self.max_target}; swap them",
            ),
            (
                not counts or fits_64_bits(max(counts), self.max_number, largest),
                f"max_number={self.max_number} and targets to {largest} are too large for {max(counts, default=0)} numbers; "
                "lower them until (2 * max_number) ** n * target is below 2 ** 63",
            ),
            (self.split in ("train", "test"), f"split={self.split!r} must be 'train' or 'test'"),
            (
                0 < self.test_fraction <= 1 if self.split == "test" else 0 <= self.test_fraction < 1,
                f"test_fraction={self.test_fraction} must be in [0, 1], below 1 for split='train', above 0 for split='test'",
            ),
            (self.seed >= 0, f"seed={self.seed} must not be negative"),
        ):
            if not holds:
                raise UserError(f"Balanced: {message}")
        for base in (*self.exclude, *self.require):
            family(base, 2)  # says what is wrong with the base

    def __len__(self) -> int:
        return len(self._table.of_index)

    def __getitem__(self, index: int) -> Example:
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside 0..{len(self) - 1}")
        part, turn = self._table.of_index[index].tolist()
        drawn = self._table.parts[part]
        fields = {
            "numbers": tuple(drawn.shown[turn].tolist()),
            "target": int(drawn.targets[turn]),
            "solution": written(drawn.pattern, drawn.letters[turn].tolist()),
            "pattern": drawn.pattern,
        }
        identity = f"{self.split}-{self.seed}-{drawn.pattern}-{turn}"
        example = Example(id=identity, task=f"countdown/{len(fields['numbers'])}", fields=fields)
        if self.demonstrate is None:
            return example
        return replace(example, completion=self.demonstrate(example, random.Random(self.seed << 64 | index)))

    @property
    def shortages(self) -> Mapping[str, Shortage]:
        """The patterns that fall short of the quota, and what they have, which may be nothing."""
        return {
            drawn.pattern: Shortage(len(drawn.targets), drawn.complete)
            for drawn in self._table.parts
            if len(drawn.targets) < self.quota
        }

    @functools.cached_property
    def _table(self) -> _Table:
        return _table(replace(self, demonstrate=None))


class _Drawn(NamedTuple):
    """The problems of one pattern, in the order in which they were found."""

    pattern: str
    letters: np.ndarray  # int64 [R, n]; the numbers that the pattern's letters stand for
    shown: np.ndarray  # int64 [R, n]; the same in the problem's order
    targets: np.ndarray  # int64 [R]
    complete: bool  # whether all assignments were looked at


class _Table(NamedTuple):
    parts: tuple[_Drawn, ...]
    of_index: np.ndarray  # int64 [len, 2]; part, and which of its problems


@functools.lru_cache(maxsize=8)  # stages with and without demonstrations share one
def _table(task: Balanced) -> _Table:
    parts = []
    for count in task.num_numbers:
        excluded, required = (
            frozenset().union(*(family(base, count) for base in bases)) for bases in (task.exclude, task.require)
        )
        for pattern in patterns(count):
            if pattern not in excluded and (pattern in required or not task.require):
                parts.append(_drawn(task, pattern, excluded, required))
    sizes = [len(drawn.targets) for drawn in parts]
    if not sum(sizes):
        raise UserError(
            f"Balanced: no {task.split} problem with {task.num_numbers} numbers in {task.min_number}..{task.max_number} and a "
            f"target in {task.min_target}..{task.max_target} meets exclude={task.exclude} and require={task.require}; "
            "widen the ranges, or exclude and require less"
        )
    part = np.repeat(np.arange(len(parts)), sizes)
    turn = np.concatenate([np.arange(size) for size in sizes])
    order = np.lexsort((part, turn))
    return _Table(tuple(parts), np.stack([part, turn], 1)[order])


def _drawn(task: Balanced, pattern: str, excluded: frozenset[str], required: frozenset[str]) -> _Drawn:
    """The problems of one pattern."""
    count = sum(map(str.isalpha, pattern))
    span = task.max_number - task.min_number + 1
    key = hashlib.blake2b(f"{task.seed} {pattern}".encode()).digest()
    bits = max((span**count - 1).bit_length(), 1)
    end = min(1 << bits, _MAX_LOOKS)
    weights = span ** np.arange(count)
    letters, targets = np.empty((0, count), np.int64), np.empty(0, np.int64)
    seen: set[int] = set()  # sorted numbers, as one number
    looked, size = 0, _FEW
    while looked < end and len(targets) < task.quota:
        tried = _assignments(range(looked, min(looked + size, end)), bits, key, count, span) + task.min_number
        looked += size
        rows, values = _whole_in_range(pattern, tried, task.min_target, task.max_target)
        hits = tried[:, rows].T
        codes = (np.sort(hits, 1) - task.min_number) @ weights
        new = np.flatnonzero([code not in seen for code in codes.tolist()])
        new = new[_accepted(task, hits[new], values[new], excluded, required)]
        _, first = np.unique(codes[new], return_index=True)
        new = new[np.sort(first)][: task.quota - len(targets)]
        letters, targets = np.concatenate([letters, hits[new]]), np.append(targets, values[new])
        seen.update(codes[new].tolist())
        still = (task.quota - len(targets)) / (len(targets) + 1) * looked  # as many more, at the present rate
        size = int(min(max(still, _FEW), _MANY))
    return _Drawn(pattern, letters, _shuffled(letters, key), targets, looked >= 1 << bits)


def _assignments(looks: range, bits: int, key: bytes, count: int, span: int) -> np.ndarray:
    """The assignments, int64 [count, looks or fewer], that some looks find: numbers in 0..span-1."""
    codes = _scrambled(np.arange(looks.start, looks.stop, dtype=np.uint64), bits, key)
    codes = codes.take(np.flatnonzero(codes < span**count))  # twice as fast as indexing by a mask
    letters = np.empty((count, len(codes)), np.int64)
    for place in range(count):
        rest = codes // span
        letters[place] = codes - rest * span
        codes = rest
    return letters


def _scrambled(codes: np.ndarray, bits: int, key: bytes) -> np.ndarray:
    """A permutation of 0..2^bits-1 that looks random and is fixed by the key, of uint64 codes [N].

    Each step can be undone: flipping bits, multiplying by an odd number, folding high bits onto low ones.
    """
    half = (bits + 1) // 2
    if bits <= 32:
        codes = codes.astype(np.uint32)  # wraps round at a multiple of 2^bits too, and is faster
    mask, kind = (1 << bits) - 1, codes.dtype.type
    for start in range(0, 48, 16):
        flip, factor = (int.from_bytes(key[start + 8 * i : start + 8 * i + 8], "big") & mask for i in range(2))
        codes = ((codes ^ kind(flip)) * kind(factor | 1)) & kind(mask)
        codes = codes ^ (codes >> kind(half))
    return codes


def _whole_in_range(pattern: str, letters: np.ndarray, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """The columns of letters [n, N] for which a pattern's value is a whole number in low..high, and these values."""
    top, bottom = value(tree_of(pattern), letters)
    if isinstance(bottom, int):
        rows = np.flatnonzero((top >= low) & (top <= high))
        return rows, top[rows]
    top, bottom = top * np.sign(bottom), np.abs(bottom)
    rows = np.flatnonzero((top >= low * bottom) & (top <= high * bottom))  # a multiple of it is cheaper than a quotient
    rows = rows[bottom[rows] > 0]
    rows = rows[top[rows] % bottom[rows] == 0]
    return rows, top[rows] // bottom[rows]


def _accepted(
    task: Balanced, numbers: np.ndarray, targets: np.ndarray, excluded: frozenset[str], required: frozenset[str]
) -> np.ndarray:
    """Which of R problems, indices that rise, belong to the task's split and meet what is excluded and required."""
    problems = zip(numbers.tolist(), targets.tolist(), strict=True)
    test = task.split == "test"
    rows = np.flatnonzero([is_held_out(own, target, task.test_fraction) == test for own, target in problems])
    if excluded:
        rows = rows[~solvable_by(excluded, numbers[rows], targets[rows])]
    if required:
        rows = rows[requires(required, numbers[rows], targets[rows])]
    return rows


def _shuffled(letters: np.ndarray, key: bytes) -> np.ndarray:
    """Each row of letters [R, n] in an order of its own."""
    ranks = _scrambled(np.arange(letters.size, dtype=np.uint64), 64, key).reshape(letters.shape)
    return np.take_along_axis(letters, np.argsort(ranks, 1, kind="stable"), 1)
