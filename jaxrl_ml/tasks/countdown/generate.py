"""Countdown problems by index: settings in, a task of up to 10^9 examples out that costs no memory.

Problem i is drawn from a random generator seeded by (seed, i) alone: numbers, then a random expression tree over all of them,
again until a tree's value is a whole number in range that belongs to the wanted split. So every problem has a solution, and
intermediate results may be negative or fractional: arithmetic is on pairs (numerator, denominator) of integers. Numbers are
independent draws and the tree is blind to their order, so the order shown says nothing about the solution.

The split is by a hash of (sorted numbers, target), whatever the seed and the other settings: no training problem is a test
problem in another order, and the test set of a smaller `test_fraction` lies within that of a larger one.
"""

from __future__ import annotations

import hashlib
import operator
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from jaxrl_ml.types import Example, UserError

MAX_NUMBER = 10**9 - 1
"""Largest number that a problem may show, generated or not: the reward reads no longer ones."""

_MAX_TRIES = 200_000  # about a second; settings that fail this often would be unusable anyway
_MAX_NUMBERS = 16  # keeps every solution well within the length that the reward reads
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}

Tree = int | tuple[str, "Tree", "Tree"]  # a number, or (operator, left, right)
Node = tuple[int, int, Tree]  # numerator, denominator (not zero, not reduced) and the expression they are the value of


@dataclass(frozen=True)
class Countdown(Sequence[Example]):
    """A task of `size` solvable problems, each a function of its index.

    `Example.fields` holds `numbers` (tuple of int), `target` (int) and `solution` (str); `Example.task` is `countdown/{n}`, n
    the count of numbers. Raises UserError for settings that no problem meets, IndexError outside 0 ≤ index < size.
    """

    num_numbers: tuple[int, ...] = (3,)
    """How many numbers a problem has; where several are given, each index picks one."""
    min_number: int = 1
    max_number: int = 10
    """99 in TinyZero's data."""
    min_target: int = 1
    max_target: int = 99
    split: Literal["train", "test"] = "train"
    test_fraction: float = 1 / 16
    """Share of the (numbers, target) pairs that is held out."""
    size: int = 10**9
    seed: int = 0
    accept: Callable[[tuple[int, ...], int], bool] | None = None
    """Whether problems with these numbers and this target are wanted, such as those that a held-out skill does not solve."""
    demonstrate: Callable[[Example, random.Random], str] | None = None
    """Writes `Example.completion` for SFT from the example (solution included) and the example's own generator."""

    def __post_init__(self) -> None:
        for holds, message in (
            (bool(self.num_numbers), "num_numbers is empty; give at least one count, such as (3,)"),
            (
                all(2 <= n <= _MAX_NUMBERS for n in self.num_numbers),
                f"num_numbers={self.num_numbers}: every count must be in 2..{_MAX_NUMBERS}",
            ),
            (
                1 <= self.min_number <= self.max_number <= MAX_NUMBER,
                f"min_number={self.min_number}, max_number={self.max_number} must satisfy 1 <= min <= max <= {MAX_NUMBER}",
            ),
            (
                self.min_target <= self.max_target,
                f"min_target={self.min_target} exceeds max_target={self.max_target}; swap them",
            ),
            (self.split in ("train", "test"), f"split={self.split!r} must be 'train' or 'test'"),
            (
                0 <= self.test_fraction < 1 and (self.split == "train" or self.test_fraction > 0),
                f"test_fraction={self.test_fraction} must be in [0, 1), and above 0 for split='test'",
            ),
            (self.size >= 1, f"size={self.size} must be at least 1"),
            (self.seed >= 0, f"seed={self.seed} must not be negative"),
        ):
            if not holds:
                raise UserError(f"Countdown: {message}")
        for count in self.num_numbers:  # fail here rather than at some step of a run
            self._draw(count, random.Random(0))

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Example:
        index = operator.index(index)
        if not 0 <= index < self.size:
            raise IndexError(f"index {index} is outside 0..{self.size - 1}")
        # Only random() is drawn from: the stream of that method alone is promised to be the same in every Python.
        rng = random.Random(self.seed << 64 | index)
        count = self.num_numbers[int(rng.random() * len(self.num_numbers))]
        numbers, target, tree = self._draw(count, rng)
        fields = {"numbers": numbers, "target": target, "solution": _render(tree)[0]}
        example = Example(id=f"{self.split}-{self.seed}-{index}", task=f"countdown/{count}", fields=fields)
        if self.demonstrate is None:
            return example
        return replace(example, completion=self.demonstrate(example, rng))

    def _draw(self, count: int, rng: random.Random) -> tuple[tuple[int, ...], int, Tree]:
        """Numbers, target and expression tree of one problem of this split."""
        low, span = self.min_number, self.max_number - self.min_number + 1
        want_test = self.split == "test"
        for _ in range(_MAX_TRIES):
            numbers = tuple([low + int(rng.random() * span) for _ in range(count)])
            found = [
                (target, tree)
                for target, tree in _random_trees(numbers, rng)
                if self.min_target <= target <= self.max_target
                and is_held_out(numbers, target, self.test_fraction) == want_test
                and (self.accept is None or self.accept(numbers, target))
            ]
            if found:
                return numbers, *found[int(rng.random() * len(found))]
        raise UserError(
            f"Countdown: no {self.split} problem with {count} numbers in {self.min_number}..{self.max_number} and a target in "
            f"{self.min_target}..{self.max_target} was found in {_MAX_TRIES} tries; widen the ranges or accept more"
        )


def _random_trees(numbers: tuple[int, ...], rng: random.Random) -> list[tuple[int, Tree]]:
    """A random expression over all the numbers, with each outermost operation that gives a whole number: (value, tree).

    All four outermost operations are tried because most expressions miss the range: it makes a problem several times cheaper.
    """
    draw = rng.random
    nodes: list[Node] = [(number, 1, number) for number in numbers]
    while len(nodes) > 2:
        left = nodes.pop(int(draw() * len(nodes)))
        right = nodes.pop(int(draw() * len(nodes)))
        node = _combine("+-*/"[int(draw() * 4)], left, right)
        if node is None:
            return []
        nodes.append(node)
    left = nodes.pop(int(draw() * 2))
    outermost = [_combine(symbol, left, nodes[0]) for symbol in "+-*/"]
    return [(node[0] // node[1], node[2]) for node in outermost if node and not node[0] % node[1]]


def _combine(symbol: str, left: Node, right: Node) -> Node | None:
    """One operation on two rationals; None for a division by zero."""
    a, b, x = left
    c, d, y = right
    if symbol == "+":
        return a * d + c * b, b * d, (symbol, x, y)
    if symbol == "-":
        return a * d - c * b, b * d, (symbol, x, y)
    if symbol == "*":
        return a * c, b * d, (symbol, x, y)
    return (a * d, b * c, (symbol, x, y)) if c else None


def _render(tree: Tree) -> tuple[str, int]:
    """The expression with the fewest parentheses that keep its value, and its outermost precedence."""
    if isinstance(tree, int):
        return str(tree), 3
    symbol, left, right = tree
    own = _PRECEDENCE[symbol]
    left_text, left_precedence = _render(left)
    right_text, right_precedence = _render(right)
    if left_precedence < own:
        left_text = f"({left_text})"
    if right_precedence < own or (right_precedence == own and symbol in "-/"):
        right_text = f"({right_text})"
    return f"{left_text} {symbol} {right_text}", own


def is_held_out(numbers: tuple[int, ...], target: int, fraction: float) -> bool:
    """Whether the problem belongs to the test split; the same in every process and Python version."""
    key = f"{sorted(numbers)}={target}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") < fraction * 2**64
