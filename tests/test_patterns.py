"""Canonical patterns: the published counts and censuses, and semantic classes against values modulo a prime."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict

import numpy as np
import pytest

from jaxrl_ml.tasks.countdown import patterns as module
from jaxrl_ml.tasks.countdown.expressions import parse
from jaxrl_ml.tasks.countdown.patterns import (
    MAX_NUMBERS,
    Node,
    census,
    patterns,
    published_patterns,
    semantic_classes,
    skill_of,
    skills,
)
from jaxrl_ml.types import UserError

PRIME = 2**31 - 1


def with_numbers(pattern: str) -> str:
    return "".join(str(ord(symbol) - ord("A") + 1) if symbol.isalpha() else symbol for symbol in pattern)


def test_patterns_of_three_numbers_are_these():
    sums = ["A+B+C", "A+B-C", "A-B-C", "A*B+C", "A/B+C", "A*B-C", "A/B-C", "A-B*C", "A-B/C"]
    products = ["A*B*C", "A*B/C", "A/B/C", "(A+B)*C", "(A-B)*C", "(A+B)/C", "(A-B)/C", "A/(B+C)", "A/(B-C)"]
    assert patterns(2) == tuple(sorted(["A+B", "A-B", "A*B", "A/B"]))
    assert patterns(3) == tuple(sorted(sums + products))


@pytest.mark.parametrize(
    ("count", "canonical", "published", "classes"),
    [(2, 4, 4, 4), (3, 18, 18, 18), (4, 96, 96, 93), (5, 558, 558, 500), (6, 3494, 3520, 2844)],
)
def test_counts(count, canonical, published, classes):
    assert len(set(patterns(count))) == len(patterns(count)) == canonical
    assert len(published_patterns(count)) == published
    assert len(semantic_classes(count)) == classes
    assert set(patterns(count)) <= set(published_patterns(count))


def test_what_is_published_beyond_the_canonical_patterns_is_one_of_them_commuted():
    beyond = set(published_patterns(6)) - set(patterns(6))
    assert "(A+B)*C+D*E/F" in beyond or "A*B/C+(D+E)*F" in beyond
    canonical = [parse(with_numbers(pattern)).skill.pattern for pattern in beyond]
    assert len(beyond) == len(set(canonical)) == 26
    assert set(canonical) <= set(patterns(6))


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_every_pattern_is_its_own_pattern(count):
    for skill in skills(count):
        assert parse(with_numbers(skill.pattern)).skill == skill


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (2, {"[1]∘[1]": 4}),
        (3, {"[2]∘[1]": 14, "[1]∘[2]": 4}),
        (4, {"[3]∘[1]": 60, "[2]∘[2]": 18, "[1]∘[3]": 18}),
        (5, {"[4]∘[1]": 318, "[3]∘[2]": 90, "[2]∘[3]": 54, "[1]∘[4]": 96}),
    ],
)
def test_census(count, expected):
    assert dict(census(count)) == expected


def test_balance_follows_from_the_shape_and_right_heavy_roots_subtract_or_divide():
    for skill in (skill for count in range(2, 7) for skill in skills(count)):
        left, right = (int(side) for side in skill.shape.strip("[]").split("]∘["))
        sign = (left > right) - (left < right)
        assert skill.balance == {1: "left-heavy", 0: "balanced", -1: "right-heavy"}[sign]
        assert left + right == sum(symbol.isalpha() for symbol in skill.pattern)
        if skill.balance == "right-heavy":
            outer = "".join(s for s, depth in zip(skill.pattern, depths(skill.pattern), strict=True) if not depth)
            root = next(operators for operators in ("+-", "*/") if set(operators) & set(outer))
            assert [symbol for symbol in outer if symbol in root][-1] in "-/"
        if (left + right) % 2:
            assert skill.balance != "balanced"


def depths(text: str) -> list[int]:
    return list(itertools.accumulate((symbol == "(") - (symbol == ")") for symbol in text))


def test_depth_and_sub_skills():
    told = {skill.pattern: (skill.depth, set(skill.sub_skills)) for count in range(2, 6) for skill in skills(count)}
    assert told["A+B"] == (1, set())
    assert told["A+B-C-D"] == (3, {"A+B", "A+B-C"})
    assert told["A*B+C*D"] == (2, {"A*B"})
    assert told["A/(B-C/D)"] == (3, {"A/B", "A-B/C"})
    assert told["(A-B)/(C*D-E)"] == (3, {"A-B", "A*B", "A*B-C"})
    for _, parts in told.values():
        assert parts <= told.keys()
        for part in parts:
            assert told[part][1] <= parts


def test_the_three_algebraic_pairs_are_found():
    pairs = {members for members in semantic_classes(4).values() if len(members) > 1}
    assert {frozenset(pair) for pair in pairs} == {
        frozenset(pair) for pair in (("(A-B)*C+D", "A-(B-C)*D"), ("(A-B)/C+D", "A-(B-C)/D"), ("A-B/(C-D)", "A/(B-C)+D"))
    }
    assert all(len(members) == 1 for count in (2, 3) for members in semantic_classes(count).values())


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_a_class_is_called_by_its_first_pattern(count):
    for name, members in semantic_classes(count).items():
        assert name == min(members, key=lambda pattern: (len(pattern), pattern))


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_classes_are_equality_of_functions_up_to_the_names_of_the_letters(count):
    """A function's values at all permutations of a random point tell it from all others that permuting does not make of it.

    That two different functions of degree at most six agree at a random point modulo the prime has a chance below 12 / 2^31.
    """
    rng = random.Random(count)
    point = np.array([rng.randrange(1, PRIME) for _ in range(count)])
    points = point[np.array(list(itertools.permutations(range(count))))].T
    of_values, of_class = defaultdict(set), defaultdict(set)
    for skill in skills(count):
        values = np.sort(modular(parse(with_numbers(skill.pattern)).form.program, points)).tobytes()
        of_values[values].add(skill.semantic_class)
        of_class[skill.semantic_class].add(values)
    assert all(len(classes) == 1 for classes in of_values.values())
    assert all(len(values) == 1 for values in of_class.values())


def modular(program: str, points: np.ndarray) -> np.ndarray:
    """Values of a program, [points], at points [n, points], modulo PRIME."""
    rest = iter(points)
    stack: list[tuple[np.ndarray, np.ndarray]] = []
    for symbol in program:
        if symbol == "0":
            stack.append((next(rest), np.ones(points.shape[1], np.int64)))
            continue
        c, d = stack.pop()
        a, b = stack.pop()
        ad, bc, bd = a * d % PRIME, b * c % PRIME, b * d % PRIME
        stack.append(
            {"+": ((ad + bc) % PRIME, bd), "-": ((ad - bc) % PRIME, bd), "*": (a * c % PRIME, bd), "/": (ad, bc)}[symbol]
        )
    numerator, denominator = stack[0]
    denominator = denominator % PRIME
    assert denominator.all()
    inverse = np.ones_like(denominator)
    for bit in bin(PRIME - 2)[2:]:  # Fermat
        inverse = inverse * inverse % PRIME
        if bit == "1":
            inverse = inverse * denominator % PRIME
    return numerator % PRIME * inverse % PRIME


def test_the_largest_expressions_have_few_forms():
    """The one search of the module stays small: also where every factor may change its sign."""
    flippable = "+".join(f"({3 * i + 1}-{3 * i + 2})*{3 * i + 3}" for i in range(5)) + "-16"
    nested = "1"
    for number in range(2, MAX_NUMBERS + 1):
        nested = f"({nested}-{number})" if number % 2 else f"{nested}*{number}"
    rng = random.Random(0)
    sizes = [len(module._forms(node_of(text), False)) for text in (flippable, nested)]
    for _ in range(300):
        nodes = [Node.number(place) for place in range(MAX_NUMBERS)]
        while len(nodes) > 1:
            left, right = (nodes.pop(rng.randrange(len(nodes))) for _ in range(2))
            nodes.append(left.combine(rng.choice("+-*/"), right))
        sizes.append(len(module._forms(nodes[0], False)))
    assert 1 < max(sizes) < 300


def node_of(text: str) -> Node:
    def fold(tree):
        return Node.number() if isinstance(tree, int) else fold(tree[1]).combine(tree[0], fold(tree[2]))

    return fold(parse(text).tree)


def test_nodes_are_equal_where_they_print_alike():
    left = Node.number(0).combine("-", Node.number(1).combine("-", Node.number(2)))
    right = Node.number(5).combine("+", Node.number(7)).combine("-", Node.number(6))
    assert left == right and hash(left) == hash(right) and skill_of(left) is skill_of(right)
    assert (left.order, right.order) == ((0, 2, 1), (5, 7, 6))


@pytest.mark.parametrize("count", [-1, 0, 1, 8, 10**9])
@pytest.mark.parametrize("listing", [patterns, published_patterns, semantic_classes, census])
def test_counts_out_of_range_are_refused(listing, count):
    with pytest.raises(UserError, match=str(count)):
        listing(count)
