"""Canonical patterns of Countdown expressions: signed groups of operands in, patterns and what there is to say of them out.

A *pattern* is an expression with letters for numbers, the same for all expressions that differ by commuting, re-associating and
the numbers only: `3 - (4 + 5)` and `9 - 1 - 7` are both `A-B-C`. Its printed string is its identity. As the study has it
(arXiv 2512.01775, the authors' code): chains of + and − merge into a signed sum, chains of × and ÷ into a signed product
(`A/(B/C)` is `A*B/C`); the operands of a group are sorted by sign, + first, then by how many numbers they hold, most first,
then by how many positive operands they hold, most first; and letters are given from left to right.

Departures and choices, where the study is silent:

1. The stated sort key leaves ties from six numbers on, such as `A*B/C` and `(A+B)*C` in a sum, so that it tells
   `A*B/C+(D+E)*F` from `(A+B)*C+D*E/F`, the same commuted. Here ties are broken by the operands' own canonical text, and a
   pattern is the same however its expression is commuted: there are 4, 18, 96, 558 and 3,494 for 2 to 6 numbers. The study's
   3,520 for six are the same patterns, 26 of them in two orders: `published_patterns` lists those. (The released list has
   4,328, as one of its templates repeats a letter.)
2. A pattern is read as people read it, operators of one precedence from left to right. So every pattern has a binary tree, in
   which `A+B` is a subtree of `A+B-C`, whose root is the last operator of lowest precedence. Shape, depth and sub-skills are
   those of this tree.
3. A *semantic class* is a set of patterns that are the same rational function up to the names of the letters. In expressions
   that use every letter once, such patterns can differ only by where a minus stands: `(A-B)*C+D` and `A-(B-C)*D`. So a class is
   what comes of writing each factor and each term in either sign, and is found exactly, without evaluating anything. A test
   holds this against values of all patterns of six numbers modulo a prime. A class is called by its shortest pattern,
   among equally short ones the first in ASCII order.
"""

from __future__ import annotations

import functools
import itertools
import string
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from jaxrl_ml.types import UserError

MAX_NUMBERS = 16
"""Most numbers of an expression: bounds the work on one."""
MAX_ENUMERATED = 7
"""Most numbers that patterns are listed for: 22,890 in a few seconds. One number more makes it seven times as many."""

Operand = tuple[bool, "Node"]  # whether it is subtracted or divided by, and what
Balance = Literal["left-heavy", "balanced", "right-heavy"]


@dataclass(frozen=True)
class Node:
    """A number, or a sum or product in canonical order; equal to every node that is printed alike."""

    text: str  # the pattern with 0 for every letter
    symbol: str = field(compare=False)  # "+", "*", or "0" for a number
    operands: tuple[Operand, ...] = field(compare=False)
    order: tuple[int, ...] = field(compare=False)  # of the numbers from left to right, their places in the text they came from

    @staticmethod
    def number(place: int = 0) -> Node:
        """A number that stands in a text after `place` other ones."""
        return Node("0", "0", (), (place,))

    @staticmethod
    def group(symbol: str, operands: Iterable[Operand]) -> Node:
        """The sum ("+") or product ("*") of two operands or more, at least one positive and none a group of that symbol."""
        operands = tuple(sorted(operands, key=_rank))
        text = _printed(symbol, [(negative, node.text) for negative, node in operands])
        return Node(text, symbol, operands, tuple(itertools.chain.from_iterable(node.order for _, node in operands)))

    def combine(self, operator: str, other: Node) -> Node:
        """The node of `self operator other`, operator one of + - * /."""
        symbol = "+" if operator in "+-" else "*"
        flip = operator in "-/"
        return Node.group(symbol, [*self._as(symbol), *((negative != flip, node) for negative, node in other._as(symbol))])

    def _as(self, symbol: str) -> tuple[Operand, ...]:
        return self.operands if self.symbol == symbol else ((False, self),)


def _printed(symbol: str, operands: Sequence[tuple[bool, str]]) -> str:
    """A sum or product of operands in print, the first of them positive; an operand of a product is a number or a sum."""
    inverse = "-" if symbol == "+" else "/"
    inner = [f"({text})" if symbol == "*" and text != "0" else text for _, text in operands]
    signs = ["", *(inverse if negative else symbol for negative, _ in operands[1:])]
    return "".join(sign + text for sign, text in zip(signs, inner, strict=True))


def _stated_rank(operand: Operand) -> tuple[bool, int, int]:
    negative, node = operand
    return negative, -len(node.order), -sum(not negative for negative, _ in node.operands)


def _rank(operand: Operand) -> tuple[bool, int, int, str]:
    return *_stated_rank(operand), operand[1].text


@dataclass(frozen=True)
class Skill:
    """What there is to say of a pattern, as text and whole numbers."""

    pattern: str
    semantic_class: str
    """The first pattern of its class: shortest, then in ASCII order."""
    shape: str
    """`[x]∘[y]`: the root has x numbers on its left and y on its right."""
    balance: Balance
    """Of x and y. No pattern of an odd count of numbers is balanced: there compare the two at equal depth."""
    depth: int
    """Most operators on the way from the root to a number, both counted in the binary tree: 1 for `A+B`, 2 for `A+B+C`."""
    sub_skills: frozenset[str]
    """The patterns of the subtrees with an operator, without the pattern itself."""


@functools.lru_cache(maxsize=1 << 15)
def skill_of(node: Node) -> Skill:
    """The skill of a node that is not a single number."""
    last = len(node.operands[-1][1].order)
    first = len(node.order) - last
    return Skill(
        pattern=lettered(node.text),
        semantic_class=lettered(min(_forms(node, False), key=lambda form: (len(form.text), form.text)).text),
        shape=f"[{first}]∘[{last}]",
        balance="left-heavy" if first > last else "right-heavy" if first < last else "balanced",
        depth=_depth(node),
        sub_skills=frozenset(lettered(part.text) for part in _subtrees(node)),
    )


def lettered(text: str) -> str:
    """A text with A, B, C, … for its zeros, from left to right."""
    letters = iter(string.ascii_uppercase)
    return "".join(next(letters) if symbol == "0" else symbol for symbol in text)


def _depth(node: Node) -> int:
    """Of the binary tree, in which the operands of a group are taken in from left to right."""
    depths = [_depth(operand) for _, operand in node.operands]
    return functools.reduce(lambda left, right: max(left, right) + 1, depths) if depths else 0


def _subtrees(node: Node) -> Iterator[Node]:
    """Proper subtrees of the binary tree that have an operator; all that stands left of an operator of a group is one."""
    for count in range(2, len(node.operands)):
        yield Node.group(node.symbol, node.operands[:count])
    for _, operand in node.operands:
        if operand.operands:
            yield operand
            yield from _subtrees(operand)


@functools.lru_cache(maxsize=1 << 15)
def _forms(node: Node, negated: bool) -> frozenset[Node]:
    """Every node that equals `node`, or minus it, whatever the numbers, up to their order; none for minus a number.

    A term may be added or its opposite subtracted; any even number of factors may be written as their opposites.
    """
    if not node.operands:
        return frozenset() if negated else frozenset([node])
    # For every way to write the operands so far, in any order: whether what remains to be written is still to be negated.
    ways: set[tuple[bool, tuple[Operand, ...]]] = {(negated, ())}
    for negative, operand in node.operands:
        same, opposite = _forms(operand, False), _forms(operand, True)
        longer = set()
        for still, done in ways:
            if node.symbol == "*":
                options = [(still, (negative, form)) for form in same] + [(not still, (negative, form)) for form in opposite]
            else:
                sign = negative != negated
                options = [(still, (sign, form)) for form in same] + [(still, (not sign, form)) for form in opposite]
            longer |= {(still, tuple(sorted((*done, way), key=_rank))) for still, way in options}
        ways = longer
    allowed = (False,) if node.symbol == "*" else (negated,)
    return frozenset(
        Node.group(node.symbol, done) for still, done in ways if still in allowed and not all(negative for negative, _ in done)
    )


@functools.cache
def skills(count: int) -> tuple[Skill, ...]:
    """The skill of every canonical pattern of `count` numbers, in ASCII order of the patterns.

    Raises UserError outside 2..MAX_ENUMERATED.
    """
    _check(count)
    found = (skill_of(node) for symbol in "+*" for node in _groups(symbol, count))
    return tuple(sorted(found, key=lambda skill: skill.pattern))


def patterns(count: int) -> tuple[str, ...]:
    """Every canonical pattern of `count` numbers, in ASCII order: 4, 18, 96, 558 and 3,494 for 2 to 6. Raises as `skills`."""
    return tuple(skill.pattern for skill in skills(count))


def published_patterns(count: int) -> tuple[str, ...]:
    """As `patterns`, but with the study's sort key, ties and all: 4, 18, 96, 558 and 3,520 for 2 to 6. Raises as `skills`."""
    _check(count)
    return tuple(sorted({lettered(text) for symbol in "+*" for node in _groups(symbol, count) for text in _spellings(node)}))


def semantic_classes(count: int) -> dict[str, tuple[str, ...]]:
    """The patterns of each semantic class of `count` numbers, by its name: 4, 18, 93, 500 and 2,844 for 2 to 6.

    Raises as `skills`.
    """
    classes = defaultdict(list)
    for skill in skills(count):
        classes[skill.semantic_class].append(skill.pattern)
    return {name: tuple(members) for name, members in classes.items()}


def census(count: int) -> Mapping[str, int]:
    """How many patterns of `count` numbers have each shape. Raises as `skills`."""
    return Counter(skill.shape for skill in skills(count))


@functools.cache
def _groups(symbol: str, count: int) -> tuple[Node, ...]:
    """Every group of that symbol with `count` numbers: all multisets of signed operands, less those without a positive one."""
    other = "*" if symbol == "+" else "+"
    operands = [Node.number(), *itertools.chain.from_iterable(_groups(other, size) for size in range(2, count))]
    signed = [(negative, operand) for operand in operands for negative in (False, True)]
    sizes = [len(operand.order) for _, operand in signed]

    def multisets(rest: int, start: int) -> Iterator[tuple[Operand, ...]]:
        if not rest:
            yield ()
        for place in range(start, len(signed)):
            if sizes[place] > rest:  # sizes rise
                break
            for more in multisets(rest - sizes[place], place):
                yield (signed[place], *more)

    chosen = (operands for operands in multisets(count, 0) if not all(negative for negative, _ in operands))
    return tuple(Node.group(symbol, operands) for operands in chosen)


def _spellings(node: Node) -> set[str]:
    """How a node may be printed where operands that tie in the stated sort key stand in any order."""
    if not node.operands:
        return {node.text}
    ties = [tuple(tied) for _, tied in itertools.groupby(node.operands, _stated_rank)]
    orders = [itertools.permutations(tied) if len(set(tied)) > 1 else [tied] for tied in ties]
    spelled = set()
    for arranged in itertools.product(*orders):
        operands = list(itertools.chain.from_iterable(arranged))
        texts = itertools.product(*(_spellings(operand) for _, operand in operands))
        signs = [negative for negative, _ in operands]
        spelled |= {_printed(node.symbol, list(zip(signs, chosen, strict=True))) for chosen in texts}
    return spelled


def _check(count: int) -> None:
    if not 2 <= count <= MAX_ENUMERATED:
        raise UserError(f"patterns of {count} numbers are not listed; give a count in 2..{MAX_ENUMERATED}")
