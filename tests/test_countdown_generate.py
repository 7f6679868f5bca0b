"""The Countdown generator: solvable, deterministic by index, disjoint splits."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest

from jaxrl_ml.tasks.countdown import Countdown
from jaxrl_ml.types import UserError


def reachable(values: tuple[Fraction, ...]) -> set[Fraction]:
    """Every value of an expression over all the values: brute force."""
    if len(values) == 1:
        return {values[0]}
    found: set[Fraction] = set()
    for i, j in permutations(range(len(values)), 2):
        x, y = values[i], values[j]
        rest = tuple(v for k, v in enumerate(values) if k not in (i, j))
        for result in (x + y, x - y, x * y, *([x / y] if y else [])):
            found |= reachable((*rest, result))
    return found


def intermediate_values(solution: str) -> list[Fraction]:
    """The values of every operation of an expression, the outermost last."""
    values: list[Fraction] = []

    def value(node: ast.AST) -> Fraction:
        if isinstance(node, ast.Constant):
            return Fraction(node.value)
        x, y = value(node.left), value(node.right)
        match node.op:
            case ast.Add():
                values.append(x + y)
            case ast.Sub():
                values.append(x - y)
            case ast.Mult():
                values.append(x * y)
            case _:
                values.append(x / y)
        return values[-1]

    value(ast.parse(solution, mode="eval").body)
    return values


def key(example):
    return tuple(sorted(example.fields["numbers"])), example.fields["target"]


def test_fields_are_in_range_and_the_target_is_reachable():
    task = Countdown(num_numbers=(2, 3), min_number=2, max_number=12, min_target=-5, max_target=40, seed=4)
    for example in map(task.__getitem__, range(150)):
        numbers, target = example.fields["numbers"], example.fields["target"]
        assert len(numbers) in (2, 3) and example.task == f"countdown/{len(numbers)}"
        assert all(2 <= number <= 12 for number in numbers) and -5 <= target <= 40
        assert Fraction(target) in reachable(tuple(map(Fraction, numbers)))
        solution = example.fields["solution"]
        assert intermediate_values(solution)[-1] == target
        assert sorted(map(int, re.findall(r"\d+", solution))) == sorted(numbers)


def test_intermediate_results_may_be_negative_or_fractional():
    task = Countdown(seed=5)
    seen = [value for i in range(500) for value in intermediate_values(task[i].fields["solution"])]
    assert sum(value < 0 for value in seen) > 10
    assert sum(value.denominator > 1 for value in seen) > 10


def test_an_index_alone_decides():
    first, second = Countdown(seed=7), Countdown(seed=7)
    backwards = [second[i] for i in reversed(range(50))]
    assert [first[i] for i in range(50)] == backwards[::-1]
    assert len({first[i].id for i in range(50)}) == 50
    assert [key(first[i]) for i in range(50)] != [key(Countdown(seed=8)[i]) for i in range(50)]
    assert first[np.int64(3)] == first[3]


def test_the_same_in_another_process():
    code = "from jaxrl_ml.tasks.countdown import Countdown\nprint([dict(Countdown(seed=7)[i].fields) for i in (0, 10**9 - 1)])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str([dict(Countdown(seed=7)[i].fields) for i in (0, 10**9 - 1)])


def test_values_are_fixed_for_good():
    """A changed stream would silently change every recorded run: change this only on purpose."""
    example = Countdown()[0]
    assert (example.id, example.fields["numbers"], example.fields["target"]) == ("train-0-0", (5, 6, 10), 12)


def test_size_and_bounds():
    task = Countdown()
    assert len(task) == 10**9
    assert task[10**9 - 1].id.endswith(str(10**9 - 1))
    for index in (-1, 10**9):
        with pytest.raises(IndexError):
            task[index]
    assert [example.id for example in Countdown(size=3)] == ["train-0-0", "train-0-1", "train-0-2"]


def overlap(draws: int) -> tuple[int, int, int]:
    train, test = Countdown(seed=1), Countdown(seed=2, split="test")
    of_train = {key(train[i]) for i in range(draws // 2)}
    of_test = {key(test[i]) for i in range(draws // 2)}
    return len(of_train & of_test), len(of_train), len(of_test)


def test_splits_do_not_overlap():
    common, num_train, num_test = overlap(40_000)
    assert common == 0
    assert 0.03 < num_test / (num_test + num_train) < 0.12  # nearly every problem of this small space was drawn


@pytest.mark.slow
def test_splits_do_not_overlap_in_a_million_draws():
    assert overlap(1_000_000)[0] == 0


def test_smaller_test_sets_nest():
    small = Countdown(split="test", test_fraction=1 / 32, seed=1)
    large_train = Countdown(test_fraction=1 / 8, seed=2)
    assert not {key(small[i]) for i in range(2000)} & {key(large_train[i]) for i in range(4000)}


def test_counts_are_picked_evenly_and_order_is_uninformative():
    task = Countdown(num_numbers=(2, 3, 4), seed=9)
    examples = [task[i] for i in range(3000)]
    counts = Counter(len(e.fields["numbers"]) for e in examples)
    assert all(850 < counts[n] < 1150 for n in (2, 3, 4))
    ascending = sum(e.fields["numbers"][0] < e.fields["numbers"][1] for e in examples)
    descending = sum(e.fields["numbers"][0] > e.fields["numbers"][1] for e in examples)
    assert abs(ascending - descending) < 4 * (ascending + descending) ** 0.5


def test_demonstrations_see_the_solution_and_are_deterministic():
    def demonstrate(example, rng):
        return f"<answer>{example.fields['solution']}</answer> {rng.randrange(1000)}"

    task = Countdown(demonstrate=demonstrate)
    assert task[5].fields == Countdown()[5].fields and Countdown()[5].completion is None
    assert task[5].completion == task[5].completion
    assert task[5].completion.startswith(f"<answer>{task[5].fields['solution']}</answer>")
    assert len({task[i].completion.split()[-1] for i in range(20)}) > 10


@pytest.mark.parametrize(
    "settings",
    [
        {"num_numbers": ()}, {"num_numbers": (1,)}, {"num_numbers": (17,)}, {"min_number": 11}, {"min_number": 0},
        {"max_number": 10**9}, {"min_target": 100}, {"split": "dev"}, {"split": "test", "test_fraction": 0.0},
        {"test_fraction": 1.0}, {"size": 0}, {"seed": -1},
        {"num_numbers": (2,), "max_number": 3, "min_target": 50},  # 3 · 3 is the most that two such numbers reach
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(settings):
    with pytest.raises(UserError) as error:
        Countdown(**settings)
    assert "\n" not in str(error.value)
