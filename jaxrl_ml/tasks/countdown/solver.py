"""Which patterns solve a Countdown problem: numbers and target in, all solutions out, or for many problems at once a verdict.

A problem made from one pattern *offers* it, but may be solved by others too. It *requires* a set of patterns where all its
solutions have patterns of the set. So what a model does without a skill is seen on problems that require it, and a model has
been kept from a skill only where no problem it was trained on could be solved with it.

What is kept out is a *family*: a base pattern and all that it is part of. A pattern belongs to the family of a base where some
way to write an expression of that pattern has a sub-expression, or is one, whose pattern is the base. In terms of signed
groups: the operands of the base are among those of one group of the pattern, with their signs; or with all signs turned, where
that leaves a positive operand to subtract from or to divide. So `A-B-C`, which is also `A-(B+C)`, is in the family of `A+B`,
and no trace that goes through an expression step by step shows the base unless its pattern is in the family. Semantically equal
patterns solve the same problems, so that none could require one and not the other: a family holds all or none of a semantic
class, and base patterns of one class have one family.

All is tried: every pattern with every assignment of the numbers to its letters, less those that only swap operands printed
alike. These are 6, 68, 1,260, 32,632 and 1,085,952 expressions of 2 to 6 numbers, on arrays of exact fractions: about 0.2, 1,
8 and 70 ms for the solutions of a problem of 3 to 6. Expressions are valued as their patterns are printed, which is defined
wherever another way to write them is.
"""

from __future__ import annotations

import functools
import itertools
import string
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxrl_ml.tasks.countdown.expressions import ExpressionError, parse
from jaxrl_ml.tasks.countdown.generate import MAX_NUMBER, Tree
from jaxrl_ml.tasks.countdown.patterns import Node, patterns, skills
from jaxrl_ml.types import UserError

MAX_SOLVED = 6
"""Most numbers of a problem that is solved."""
_CHUNK_VALUES = 1 << 16  # what fits a cache, in elements of an array
_LETTERS_TO_PLACES = str.maketrans(string.ascii_uppercase[:10], string.digits)


class Solution(NamedTuple):
    """An expression that reaches the target, and its canonical pattern; the expression is written as the pattern is."""

    pattern: str
    expression: str


def solutions(numbers: Sequence[int], target: int) -> tuple[Solution, ...]:
    """All expressions that make the target of the numbers, each used once, in the order of `patterns`.

    Expressions that differ by commuting and re-associating are one. Those of semantically equal patterns are not, so each is
    listed once for each pattern. Raises UserError outside 2..MAX_SOLVED numbers, or for numbers not in 0..MAX_NUMBER.
    """
    columns, goals = _checked([numbers], [target])
    found = {}  # keeps the order; equal numbers give equal expressions
    for pattern in patterns(len(numbers)):
        places = assignments(pattern)
        for way in np.flatnonzero(_reached(pattern, columns[:, 0][places], goals)):
            found[Solution(pattern, written(pattern, [numbers[place] for place in places[:, way]]))] = None
    return tuple(found)


def solving_patterns(numbers: Sequence[int], target: int) -> frozenset[str]:
    """The canonical patterns that solve a problem. Raises as `solutions`."""
    return frozenset(solution.pattern for solution in solutions(numbers, target))


def solvable_by(allowed: Collection[str], numbers: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Whether, bool [R], each of R problems has a solution of one of the allowed canonical patterns.

    `numbers` int [R, n], `targets` int [R]; patterns of another count than n solve none. Raises as `solutions`.
    """
    columns, goals = _checked(numbers, targets)
    count = len(columns)
    tried = [pattern for pattern in patterns(count) if pattern in allowed]
    solved = np.zeros(len(goals), bool)
    size = _CHUNK_VALUES // 16
    for start in range(0, len(goals), size):
        rows = np.arange(start, min(start + size, len(goals)))
        for pattern in tried:
            hit = np.zeros(len(rows), bool)
            places = assignments(pattern)
            width = max(1, _CHUNK_VALUES // max(1, len(rows)))
            for first in range(0, places.shape[1], width):
                letters = columns[:, rows][places[:, first : first + width]]
                hit |= _reached(pattern, letters, goals[rows]).any(0)
            solved[rows[hit]] = True
            rows = rows[~hit]
            if not len(rows):
                break
    return solved


def requires(wanted: Collection[str], numbers: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Whether, bool [R], each of R problems has a solution, and none but of the wanted patterns. As `solvable_by`."""
    others = set(patterns(np.shape(numbers)[1])) - set(wanted)
    return ~solvable_by(others, numbers, targets) & solvable_by(wanted, numbers, targets)


def avoids(bases: Sequence[str], numbers: Sequence[int], target: int) -> bool:
    """Whether no pattern of the bases' families solves a problem; `partial(avoids, bases)` filters `Countdown`."""
    forbidden = frozenset().union(*(family(base, len(numbers)) for base in bases))
    return not solvable_by(forbidden, np.array([numbers]), np.array([target]))[0]


@functools.lru_cache(maxsize=256)
def family(base: str, count: int) -> frozenset[str]:
    """The patterns of `count` numbers in the family of a base pattern; none where the base has more numbers.

    Raises UserError where the base is no canonical pattern, or the count not one that patterns are listed for.
    """
    same = _class_members(base)
    members = {skill.semantic_class for skill in skills(count) if any(_is_part(part, node_of(skill.pattern)) for part in same)}
    return frozenset(skill.pattern for skill in skills(count) if skill.semantic_class in members)


def _class_members(base: str) -> list[Node]:
    """The nodes of all patterns that are semantically equal to a base."""
    try:
        skill = parse(base.translate(_LETTERS_TO_PLACES)).skill
    except ExpressionError:
        skill = None
    if skill is None or skill.pattern != base:
        hint = f"its canonical form is {skill.pattern}" if skill else "write it with letters, such as A/(B-C)"
        raise UserError(f"base pattern {base!r} is no canonical pattern; {hint}")
    count = sum(map(str.isalpha, base))
    return [node_of(other.pattern) for other in skills(count) if other.semantic_class == skill.semantic_class]


def _is_part(base: Node, node: Node) -> bool:
    """Whether some way to write the node has a sub-expression, or is one, that is printed as the base."""
    if base.symbol == node.symbol:
        own = Counter((negative, operand.text) for negative, operand in node.operands)
        if own >= Counter((negative, operand.text) for negative, operand in base.operands):
            return True
        turned = Counter((not negative, operand.text) for negative, operand in base.operands)
        if own >= turned and not all(negative for negative, _ in own - turned):
            return True
    return any(_is_part(base, operand) for _, operand in node.operands)


@functools.lru_cache(maxsize=1 << 13)
def tree_of(pattern: str) -> Tree:
    """The binary tree of a canonical pattern of up to ten numbers; its leaves are the letters' places, 0 for A."""
    return parse(pattern.translate(_LETTERS_TO_PLACES)).tree


@functools.lru_cache(maxsize=1 << 13)
def node_of(pattern: str) -> Node:
    """The node of a canonical pattern; its numbers are in the letters' order."""

    def fold(tree: Tree) -> Node:
        return Node.number(tree) if isinstance(tree, int) else fold(tree[1]).combine(tree[0], fold(tree[2]))

    return fold(tree_of(pattern))


@functools.lru_cache(maxsize=1 << 13)
def assignments(pattern: str) -> np.ndarray:
    """All ways, int [n, ways], to give n places to a pattern's letters, up to swaps of operands that are printed alike."""
    places = _permutations(sum(map(str.isalpha, pattern)))
    for first, second in _alike(node_of(pattern)):
        places = places[:, places[first] < places[second]]
    return places


@functools.cache
def _permutations(count: int) -> np.ndarray:
    return np.array(list(itertools.permutations(range(count))), np.int8).T


def _alike(node: Node) -> Iterator[tuple[int, int]]:
    """The first letters of any two neighbouring operands of a group that may be swapped without a change of the pattern."""
    for (negative, left), (other, right) in itertools.pairwise(node.operands):
        if negative == other and left == right:
            yield left.order[0], right.order[0]
    for _, operand in node.operands:
        yield from _alike(operand)


def written(pattern: str, letters: Sequence[int]) -> str:
    """A pattern with numbers for its letters and spaces around its operators."""
    names = dict(zip(string.ascii_uppercase, map(str, letters), strict=False))
    names |= {operator: f" {operator} " for operator in "+-*/"}
    return "".join(names.get(symbol, symbol) for symbol in pattern)


def value(tree: Tree, letters: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray | int]:
    """Numerators and denominators, not reduced, of a tree whose leaves are places in `letters`, integer arrays of one shape.

    A denominator of 0 marks what is undefined; denominators that are 1 throughout are the one number 1. Neither part exceeds
    the product of twice the letters, so it is the caller's to choose integers that hold that.
    """
    if isinstance(tree, int):
        return letters[tree], 1
    symbol, *operands = tree
    (a, b), (c, d) = (value(operand, letters) for operand in operands)
    match symbol:
        case "+":
            return _times(a, d) + _times(c, b), _times(b, d)
        case "-":
            return _times(a, d) - _times(c, b), _times(b, d)
        case "*":
            return a * c, _times(b, d)
    return _times(a, d), _times(_times(b, c), 1 if isinstance(d, int) else d != 0)  # x / (y / 0) stays undefined


def _times(left: np.ndarray | int, right: np.ndarray | int) -> np.ndarray | int:
    """A product, without the work where a factor is the one number 1."""
    if isinstance(left, int):
        return right
    return left if isinstance(right, int) else left * right


def _reached(pattern: str, letters: Sequence[np.ndarray], targets: np.ndarray) -> np.ndarray:
    numerators, denominators = value(tree_of(pattern), letters)
    return (numerators == _times(targets, denominators)) & (np.asarray(denominators) != 0)


def fits_64_bits(count: int, max_number: int, largest_target: int) -> bool:
    """Whether 64 bits hold all that `value` makes of `count` numbers, times a target; largest in absolute terms."""
    return (2 * max_number) ** count * max(largest_target, 1) < 2**63


def _checked(
    numbers: Sequence[Sequence[int]] | np.ndarray, targets: Sequence[int] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers [n, R] and targets [R], in Python's integers where 64 bits may not do."""
    columns, goals = np.asarray(numbers).T, np.asarray(targets)
    if columns.ndim != 2 or not 2 <= len(columns) <= MAX_SOLVED:
        raise UserError(f"numbers of shape {columns.T.shape} are not solved; give 2 to {MAX_SOLVED} numbers a problem")
    if goals.dtype.kind not in "iu" or columns.dtype.kind not in "iu":
        raise UserError(f"numbers of type {columns.dtype} and targets of type {goals.dtype} must be whole numbers of 64 bits")
    if columns.size and not 0 <= columns.min() <= columns.max() <= MAX_NUMBER:
        raise UserError(f"numbers in {columns.min()}..{columns.max()} must be in 0..{MAX_NUMBER}")
    largest = max(abs(int(goals.min())), abs(int(goals.max()))) if goals.size else 0
    dtype = np.int64 if fits_64_bits(len(columns), int(columns.max(initial=1)), largest) else object
    return columns.astype(dtype), goals.astype(dtype)
