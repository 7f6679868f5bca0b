"""The solver against brute force over all binary trees, and the laws of families of patterns."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from fractions import Fraction
from functools import cache, partial

import numpy as np
import pytest
from conftest import lines_run
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_ml.tasks.countdown import Countdown, solver
from jaxrl_ml.tasks.countdown.expressions import parse
from jaxrl_ml.tasks.countdown.patterns import patterns, semantic_classes, skills
from jaxrl_ml.tasks.countdown.solver import (
    assignments,
    avoids,
    family,
    requires,
    solutions,
    solvable_by,
    solving_patterns,
    written,
)
from jaxrl_ml.types import UserError

Tree = int | tuple


def trees(numbers: tuple[int, ...]) -> Iterator[Tree]:
    """Every binary tree over all the numbers in every order."""
    if len(numbers) == 1:
        yield numbers[0]
    for size in range(1, len(numbers)):
        for chosen in itertools.combinations(range(len(numbers)), size):
            left = tuple(numbers[place] for place in chosen)
            right = tuple(number for place, number in enumerate(numbers) if place not in chosen)
            yield from itertools.product("+-*/", trees(left), trees(right))


def text(tree: Tree) -> str:
    return str(tree) if isinstance(tree, int) else f"({text(tree[1])}{tree[0]}{text(tree[2])})"


def fraction(tree: Tree) -> Fraction | None:
    if isinstance(tree, int):
        return Fraction(tree)
    left, right = fraction(tree[1]), fraction(tree[2])
    if left is None or right is None or (tree[0] == "/" and not right):
        return None
    return {"+": left.__add__, "-": left.__sub__, "*": left.__mul__, "/": left.__truediv__}[tree[0]](right)


def brute_force(numbers: tuple[int, ...], target: int) -> set[str]:
    """The patterns of all trees with that value."""
    return {parse(text(tree)).skill.pattern for tree in trees(numbers) if fraction(tree) == target}


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=3), st.integers(-5, 20))
def test_agrees_with_brute_force(numbers, target):
    assert solving_patterns(numbers, target) == brute_force(tuple(numbers), target)


@pytest.mark.parametrize(
    ("numbers", "target"), [((3, 3, 8, 8), 24), ((1, 5, 5, 5), 24), ((2, 2, 4, 6), 8), ((0, 1, 2, 3), 0), ((7, 9, 4, 2), 5)]
)
def test_agrees_with_brute_force_on_four_numbers(numbers, target):
    assert solving_patterns(numbers, target) == brute_force(numbers, target)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.lists(st.integers(0, 30), min_size=2, max_size=5), st.integers(-5, 60))
def test_solutions_are_what_they_are_said_to_be(numbers, target):
    found = solutions(numbers, target)
    assert len(set(found)) == len(found)
    for pattern, expression in found:
        read = parse(expression)
        assert read.value == target and read.skill.pattern == pattern and sorted(read.numbers) == sorted(numbers)
    assert {pattern for pattern, _ in found} == solving_patterns(numbers, target) <= set(patterns(len(numbers)))


def test_known_solutions():
    assert solutions((8, 3, 8, 3), 24) == (("A/(B-C/D)", "8 / (3 - 8 / 3)"),)
    assert solutions((1, 2), 7) == ()
    assert solutions((5, 5), 1) == (("A/B", "5 / 5"),)  # once, though the fives may be swapped
    assert {pattern for pattern, _ in solutions((5, 3, 2, 4), 10)} >= {"(A-B)*C+D", "A-(B-C)*D"}  # one class
    assert solving_patterns((2, 3, 5, 7, 11, 13), 30030) == {"A*B*C*D*E*F"}


def test_divisions_by_zero_solve_nothing():
    for numbers in [(0, 1), (1, 2, 2), (1, 5, 2, 2)]:
        for _, expression in solutions(numbers, 0):
            assert parse(expression).value == 0
    pattern = "A/(B/(C-D)+E)"  # x / (y / 0 + z) is not 0
    assert pattern in patterns(5) and pattern not in solving_patterns((1, 2, 2, 3, 5), 0)


def test_large_numbers_are_exact():
    product = 999_999_999 * 999_999_998
    assert {pattern for pattern, _ in solutions((999_999_999, 999_999_998), product)} == {"A*B"}
    assert solutions((999_999_999, 999_999_998), product - 1) == ()  # equal as floats
    numbers = (999_999_999,) * 6
    assert "A*B*C*D*E*F" not in solving_patterns(numbers, (999_999_999**6 + 2**63) % 2**64 - 2**63)  # what 64 bits make of it
    assert "A/B+C/D+E/F" in solving_patterns(numbers, 3)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_expressions_are_as_many_as_brute_force_finds(count):
    """Each canonical expression is tried exactly once: 6, 68 and 1,260 of distinct numbers."""
    of_trees = {named(text(tree)) for tree in trees(tuple(range(1, count + 1)))}
    tried = [named(written(pattern, way)) for pattern in patterns(count) for way in (assignments(pattern).T + 1).tolist()]
    assert len(tried) == len(set(tried)) == {2: 6, 3: 68, 4: 1260}[count]
    assert set(tried) == of_trees


def named(expression: str) -> object:
    """An expression of distinct numbers up to commuting and re-associating: nested groups of signed operands, unordered."""

    def group(tree: Tree) -> object:
        if isinstance(tree, int):
            return tree
        kind = "+" if tree[0] in "+-" else "*"
        return kind, frozenset(flat(tree, kind, 1))

    def flat(tree: Tree, kind: str, sign: int) -> Iterator[tuple[int, object]]:
        if isinstance(tree, tuple) and tree[0] in {"+": "+-", "*": "*/"}[kind]:
            yield from flat(tree[1], kind, sign)
            yield from flat(tree[2], kind, -sign if tree[0] in "-/" else sign)
        else:
            yield sign, group(tree)

    return group(parse(expression).tree)


@settings(deadline=None, derandomize=True, max_examples=20)
@given(st.integers(0, 2**32), st.integers(2, 4))
def test_many_problems_at_once_as_one_by_one(seed, count):
    rng = random.Random(seed)
    numbers = np.array([[rng.randint(1, 12) for _ in range(count)] for _ in range(20)])
    targets = np.array([rng.randint(1, 40) for _ in range(20)])
    allowed = rng.sample(patterns(count), rng.randint(0, len(patterns(count))))
    told = [solving_patterns(own, target) for own, target in zip(numbers.tolist(), targets.tolist(), strict=True)]
    assert solvable_by(allowed, numbers, targets).tolist() == [bool(set(allowed) & found) for found in told]
    assert requires(allowed, numbers, targets).tolist() == [bool(found) and found <= set(allowed) for found in told]


def test_many_problems_in_chunks():
    """More problems than fit a chunk, and more assignments."""
    numbers = np.random.default_rng(0).integers(1, 100, (9000, 3))
    targets = numbers[:, 0] * numbers[:, 1] - numbers[:, 2]
    assert solvable_by({"A*B-C"}, numbers, targets).all()
    assert not solvable_by(set(), numbers, targets).any()
    rng = np.random.default_rng(1)
    numbers = rng.integers(1, 100, (9000, 4))
    a, b, c, d = rng.permuted(numbers, axis=1).T
    assert solvable_by({"(A-B)*C-D"}, numbers, (a - b) * c - d).all()  # each of 24 assignments is needed
    assert solvable_by({"A*B*C*D*E-F"}, np.array([[2, 3, 5, 7, 11, 13]] * 3), np.array([2297, 2298, 2297])).tolist() == [
        True, False, True,
    ]  # fmt: skip
    assert solvable_by({"A+B"}, np.empty((0, 2), int), np.empty(0, int)).shape == (0,)


def test_offered_is_not_required():
    numbers, target = np.array([[2, 2, 4]]), np.array([8])
    told = solving_patterns((2, 2, 4), 8)
    assert {"A+B+C", "(A+B)*C", "A*B+C"} & told == {"A+B+C", "A*B+C"}
    assert solvable_by({"A+B+C"}, numbers, target)[0] and not requires({"A+B+C"}, numbers, target)[0]
    assert requires(told, numbers, target)[0]


# Families


@cache
def unlabelled(count: int) -> tuple[Tree, ...]:
    """Every binary tree of that many numbers, all of them 1: patterns do not depend on the numbers."""
    if count == 1:
        return (1,)
    sizes = range(1, count)
    return tuple(
        (symbol, left, right)
        for size in sizes
        for symbol, left, right in itertools.product("+-*/", unlabelled(size), unlabelled(count - size))
    )


@cache
def shown(tree: Tree) -> frozenset[str]:
    """The patterns of a tree and of its subtrees."""
    if isinstance(tree, int):
        return frozenset()
    return shown(tree[1]) | shown(tree[2]) | {pattern_of(tree)}


@cache
def pattern_of(tree: Tree) -> str:
    return parse(text(tree)).skill.pattern


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_a_family_is_every_class_that_some_way_of_writing_shows(count):
    """By brute force: of all binary trees, those with a subtree whose pattern is semantically equal to the base."""
    class_of = {skill.pattern: skill.semantic_class for size in range(2, count + 1) for skill in skills(size)}
    showing: dict[str, set[str]] = {}
    for tree in unlabelled(count):
        for pattern in shown(tree):
            showing.setdefault(class_of[pattern], set()).add(class_of[pattern_of(tree)])
    bases = [base for size in range(2, count + 1) for base in patterns(size)]
    for base in bases[:: 1 if count < 5 else 7]:
        expected = {pattern for pattern in patterns(count) if class_of[pattern] in showing[class_of[base]]}
        assert family(base, count) == expected, base


def test_no_expression_outside_a_family_has_a_part_in_it():
    for base in patterns(3):
        for tree in unlabelled(4):
            assert pattern_of(tree) in family(base, 4) or base not in shown(tree)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.sampled_from([base for count in (2, 3, 4) for base in patterns(count)]), st.integers(2, 5))
def test_laws_of_families(base, count):
    own, size = family(base, count), sum(map(str.isalpha, base))
    assert own <= set(patterns(count))
    assert bool(own) == (size <= count)
    if size == count:
        assert base in own and any(own == set(members) for members in semantic_classes(count).values())
    for members in semantic_classes(count).values():
        assert own >= set(members) or not own & set(members)
    for member in sorted(own)[:10]:
        assert family(member, 5) <= family(base, 5)


def test_known_families():
    assert family("A/(B-C)", 3) == {"A/(B-C)"}
    assert family("A/(B-C)", 4) == {
        "(A-B)*C/D", "A*B/(C-D)", "A-B/(C-D)", "A/(B-C)+D", "A/(B-C)-D", "A/(B-C)/D",
    }  # fmt: skip
    assert "A-B-C" in family("A+B", 3)  # A-(B+C)
    assert "A+B-C" in family("A+B", 3) and "A/B/C" in family("A*B", 3)
    assert "A+B+C-D" in family("A-B-C", 4)  # D-(C-A-B)
    assert "A-B-C" not in family("A/B", 3)


@pytest.mark.parametrize("base", ["A-(B-C)", "C-A", "A+", "", "A", "1+2", "A+B)", "nonsense"])
def test_bases_must_be_canonical(base):
    with pytest.raises(UserError, match="no canonical pattern") as error:
        family(base, 4)
    assert "\n" not in str(error.value)


def test_the_uniform_task_can_do_without_a_family():
    base = "A-B*C"
    task = Countdown(num_numbers=(3, 4), max_number=20, accept=partial(avoids, (base, "A/(B-C)")), seed=3)
    free = Countdown(num_numbers=(3, 4), max_number=20, seed=3)

    def solved(task: Countdown) -> int:
        problems = [task[i].fields for i in range(150)]
        return sum(bool(solving_patterns(p["numbers"], p["target"]) & forbidden(len(p["numbers"]))) for p in problems)

    def forbidden(count: int) -> set[str]:
        return family(base, count) | family("A/(B-C)", count)

    assert solved(task) == 0 and solved(free) > 10
    with pytest.raises(UserError, match="accept more"):
        Countdown(num_numbers=(2,), accept=lambda numbers, target: False)


def test_solved_problems_cost_no_more(monkeypatch):
    tried, real = [], solver._reached
    monkeypatch.setattr(
        solver, "_reached", lambda pattern, letters, goals: tried.append(goals.size) or real(pattern, letters, goals)
    )
    assert solvable_by({"A+B", "A*B", "A-B"}, np.array([[2, 3], [5, 7], [3, 4]]), np.array([6, 12, 7])).all()
    assert tried == [3, 2]  # A*B solves the first, A+B the others


def test_work_of_a_batch_does_not_grow_with_its_rows():
    """Up to a chunk, a batch costs as many lines of Python as one problem of it."""

    def lines_of(rows: int) -> int:
        return lines_run(partial(solvable_by, patterns(4), np.full((rows, 4), 97), np.full(rows, 98)))

    lines_of(1)  # fills caches
    assert lines_of(2000) <= 1.05 * lines_of(1)


@pytest.mark.parametrize(
    ("numbers", "target"),
    [((1,), 1), ((1,) * 7, 1), ((), 0), ((1, -2), 1), ((1, 2.5), 1), ((1, 2), 1.5), ((1, 10**9), 1), ((1, 2**70), 1)],
)
def test_problems_that_are_none_are_refused(numbers, target):
    with pytest.raises(UserError) as error:
        solutions(numbers, target)
    assert "\n" not in str(error.value)
