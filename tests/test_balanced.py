"""The balanced task: quotas, exhaustion against brute force, splits, held-out families, and one order for good."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from collections import Counter, defaultdict
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_ml.rewards.countdown import countdown_reward
from jaxrl_ml.tasks.countdown import Balanced, Countdown
from jaxrl_ml.tasks.countdown import balanced as module
from jaxrl_ml.tasks.countdown.expressions import parse
from jaxrl_ml.tasks.countdown.patterns import patterns
from jaxrl_ml.tasks.countdown.solver import family, solving_patterns
from jaxrl_ml.types import Example, UserError

BASE = "A/(B-C)"


@cache
def drawn(**settings) -> tuple[Example, ...]:
    task = Balanced(**settings)
    return tuple(task[index] for index in range(len(task)))


def key(example: Example) -> tuple[tuple[int, ...], int]:
    return tuple(sorted(example.fields["numbers"])), example.fields["target"]


def test_every_solution_has_its_pattern_and_reaches_its_target():
    examples = drawn(num_numbers=(2, 3, 4, 5), quota=4, min_number=2, max_number=15, min_target=-5, max_target=99, seed=3)
    for example in examples:
        fields = example.fields
        expression = parse(fields["solution"])
        assert expression.value == fields["target"] and expression.skill.pattern == fields["pattern"]
        assert sorted(expression.numbers) == sorted(fields["numbers"])
        assert all(2 <= number <= 15 for number in fields["numbers"]) and -5 <= fields["target"] <= 99
        assert example.task == f"countdown/{len(fields['numbers'])}"
        assert {type(x) for x in (*fields["numbers"], fields["target"])} == {int}
    some = {pattern for n in (2, 3, 4, 5) for pattern in patterns(n)} - {"A/(B+C)/(D+E)", "A/(B+C)/D/E", "A/B/C/D/E"}
    assert {e.fields["pattern"] for e in examples} == some  # those have no problem with numbers up to 15
    assert min(e.fields["target"] for e in examples) < 0
    assert len({example.id for example in examples}) == len(examples)
    assert countdown_reward([f"<answer>{e.fields['solution']}</answer>" for e in examples], examples).correct.all()


def test_the_study_s_test_set_has_1140_problems():
    counts = Counter(example.fields["pattern"] for example in drawn(split="test", quota=10))
    assert counts == dict.fromkeys((*patterns(3), *patterns(4)), 10)
    assert Balanced(split="test", quota=10).shortages == {}


def test_every_prefix_is_balanced():
    examples = drawn(num_numbers=(3,), quota=400, max_number=20, test_fraction=0.0)
    sizes = Counter(example.fields["pattern"] for example in examples)
    assert min(sizes.values()) < max(sizes.values()) == 400
    counts = dict.fromkeys(patterns(3), 0)
    for example in examples:
        counts[example.fields["pattern"]] += 1
        going = [counts[pattern] for pattern in counts if counts[pattern] < sizes[pattern]]
        assert max(counts.values()) - min(going, default=max(counts.values())) <= 1


def test_no_pattern_has_the_same_numbers_twice():
    examples = drawn(num_numbers=(3,), quota=1000, max_number=12, test_fraction=0.0)
    assert max(Counter((e.fields["pattern"], key(e)[0]) for e in examples).values()) == 1


def test_shortages_are_told_and_complete():
    """On small ranges, by brute force: a pattern's problems are exactly the multisets of numbers that can be had."""
    possible = defaultdict(set)
    for pattern in patterns(3):
        template = pattern.replace("A", "{0}").replace("B", "{1}").replace("C", "{2}")
        for numbers in itertools.product(range(2, 8), repeat=3):
            value = parse(template.format(*numbers)).value
            if value is not None and value.denominator == 1 and 1 <= value <= 9:
                possible[pattern].add(tuple(sorted(numbers)))
    settings = {"num_numbers": (3,), "min_number": 2, "max_number": 7, "max_target": 9, "test_fraction": 0.0}
    found = defaultdict(set)
    for example in drawn(quota=56, **settings):
        found[example.fields["pattern"]].add(key(example)[0])
    assert found == possible
    assert Balanced(quota=56, **settings).shortages == {
        pattern: (len(possible[pattern]), True) for pattern in patterns(3) if len(possible[pattern]) < 56
    }


def test_published_exhaustion():
    """315 problems of A*B*C, as published; of A*B*C*D there are 340, of which the authors' draws found 199."""

    def products(count: int, start: int = 1, product: int = 1) -> int:
        if not count:
            return 1
        return sum(products(count - 1, number, product * number) for number in range(start, 99 // product + 1))

    task = Balanced(test_fraction=0.0)
    for pattern, number in (("A*B*C", 315), ("A*B*C*D", 340)):
        found = module._drawn(task, pattern, frozenset(), frozenset())
        assert (len(found.targets), found.complete) == (number, True)
        assert number == products(found.letters.shape[1])
    together = [module._drawn(Balanced(split=s), "A*B*C", frozenset(), frozenset()) for s in ("train", "test")]
    assert sum(len(found.targets) for found in together) == 315  # the numbers tell the target


def test_a_search_that_is_given_up_says_so(monkeypatch):
    monkeypatch.setattr(module, "_MAX_LOOKS", 1 << 12)
    shortages = Balanced(num_numbers=(4,), quota=30, seed=99).shortages
    assert shortages["A*B*C*D"].found < 30 and not any(shortage.complete for shortage in shortages.values())


def test_settings_alone_decide():
    settings = {"num_numbers": (3,), "quota": 5, "seed": 11}
    first, fewer = Balanced(**settings), Balanced(**settings | {"quota": 3})
    assert [first[i] for i in range(54)] == [fewer[i] for i in range(54)]  # a larger quota only adds
    other = Balanced(**settings | {"seed": 12})
    assert len({key(first[i]) for i in range(90)} & {key(other[i]) for i in range(90)}) < 20
    assert first[np.int64(7)] == first[7]
    code = "from jaxrl_ml.tasks.countdown import Balanced\nprint(dict(Balanced(num_numbers=(3,), quota=5, seed=11)[80].fields))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(dict(first[80].fields))


def test_problems_are_fixed_for_good():
    """A changed stream would silently change every recorded run: change this only on purpose."""
    examples = drawn(split="test", quota=10)
    first, last = examples[0], examples[-1]
    assert (first.id, *first.fields.values()) == ("test-0-(A+B)*C-0", (8, 25, 1), 33, "(8 + 25) * 1", "(A+B)*C")
    assert (last.id, *last.fields.values()) == ("test-0-A/B/C/D-9", (80, 4, 2, 2), 5, "80 / 4 / 2 / 2", "A/B/C/D")


@pytest.mark.parametrize(("few", "many"), [(1, 7), (1 << 14, 1 << 14)])
def test_how_many_are_looked_at_at_a_time_changes_nothing(monkeypatch, few, many):
    settings = {"num_numbers": (2, 3), "quota": 3, "max_number": 9, "seed": 5, "split": "test", "test_fraction": 0.5}
    expected = drawn(**settings)
    monkeypatch.setattr(module, "_FEW", few)
    monkeypatch.setattr(module, "_MANY", many)
    found = module._table.__wrapped__(Balanced(**settings))
    assert sum(len(part.targets) for part in found.parts) == len(expected)
    for part in found.parts:
        own = [e.fields for e in expected if e.fields["pattern"] == part.pattern]
        assert part.shown.tolist() == [list(fields["numbers"]) for fields in own]


def test_splits_do_not_overlap_and_are_countdown_s():
    train, test = ({key(e) for e in drawn(quota=60, max_number=20, split=split)} for split in ("train", "test"))
    assert not train & test and len(test) > 3000
    uniform = Countdown(num_numbers=(3, 4), max_number=20, seed=1)
    assert not {key(uniform[i]) for i in range(3000)} & test
    held_out = Countdown(num_numbers=(3, 4), max_number=20, seed=1, split="test")
    assert not {key(held_out[i]) for i in range(1000)} & train


@pytest.mark.parametrize("bases", [(BASE,), ("A-B*C", "A+B")])
def test_excluded_families_solve_no_problem(bases):
    forbidden = {pattern for base in bases for count in (3, 4) for pattern in family(base, count)}
    settings = {"quota": 3, "max_number": 20, "seed": 2}
    examples = drawn(exclude=bases, **settings)
    assert {e.fields["pattern"] for e in examples} == {*patterns(3), *patterns(4)} - forbidden
    assert not forbidden & Balanced(exclude=bases, **settings).shortages.keys()  # not wanted, hence not short
    assert not any(solving_patterns(*fields_of(e)) & forbidden for e in examples)
    others = [e for e in drawn(**settings) if e.fields["pattern"] not in forbidden]
    assert any(solving_patterns(*fields_of(e)) & forbidden for e in others)


def test_required_families_are_all_that_solves_a_problem():
    wanted = {pattern for count in (3, 4) for pattern in family(BASE, count)}
    settings = {"quota": 5, "max_number": 20, "seed": 2, "split": "test", "test_fraction": 0.5}
    examples = drawn(require=(BASE,), **settings)
    assert {e.fields["pattern"] for e in examples} == wanted
    for example in examples:
        assert example.fields["pattern"] in solving_patterns(*fields_of(example)) <= wanted
    offered = [e for e in drawn(**settings) if e.fields["pattern"] in wanted]
    assert any(not solving_patterns(*fields_of(e)) <= wanted for e in offered)
    with pytest.raises(UserError, match="no train problem"):
        len(Balanced(num_numbers=(3,), require=("A+B+C-D",)))


def fields_of(example: Example) -> tuple[tuple[int, ...], int]:
    return example.fields["numbers"], example.fields["target"]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(1, 14), st.binary(min_size=64, max_size=64))
def test_every_assignment_is_looked_at_once(bits, key):
    codes = np.arange(1 << bits, dtype=np.uint64)
    assert np.sort(module._scrambled(codes, bits, key)).tolist() == list(range(1 << bits))


@pytest.mark.parametrize("bits", [33, 47, 64])
def test_large_spaces_are_not_cut(bits):
    found = module._scrambled(np.arange(1 << 14, dtype=np.uint64), bits, bytes(range(64)))
    assert len(set(found.tolist())) == 1 << 14
    assert found.dtype == np.uint64 and (1 << bits - 1) < int(found.max()) < 1 << bits
    low = found < np.uint64(1 << bits - 1)
    assert abs(int(low.sum()) - (1 << 13)) < 5 * (1 << 6)


def test_draws_are_uniform_over_the_assignments_that_fit():
    """The letters of A-B have the distribution that enumeration gives, seen over seeds in the first problems drawn."""
    counts = Counter()
    for seed in range(400):
        task = Balanced(num_numbers=(2,), quota=5, max_number=6, max_target=5, seed=seed, test_fraction=0.0)
        counts.update(map(tuple, module._drawn(task, "A-B", frozenset(), frozenset()).letters.tolist()))
    assert set(counts) == {(a, b) for a in range(1, 7) for b in range(1, a)}
    expected = 400 * 5 / 15
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_square < 45  # of 14 degrees of freedom: p about 4e-5


def test_the_order_shown_says_nothing():
    examples = drawn(num_numbers=(3,), quota=150, seed=4)
    places = Counter()
    for example in examples:
        if len(set(example.fields["numbers"])) == 3:
            first = parse(example.fields["solution"]).numbers[0]
            places[example.fields["numbers"].index(first)] += 1
    total = sum(places.values())
    assert all(abs(places[place] - total / 3) < 4 * (total * 2 / 9) ** 0.5 for place in range(3))


def test_demonstrations_see_the_example_and_share_its_problems():
    def demonstrate(example, rng):
        return f"{example.fields['pattern']} {example.fields['solution']} {rng.randrange(1000)}"

    task = Balanced(num_numbers=(3,), quota=3, seed=6)
    taught = dataclasses.replace(task, demonstrate=demonstrate)
    assert taught[9].fields == task[9].fields and task[9].completion is None
    assert taught[9].completion == taught[9].completion
    assert taught[9].completion.startswith(f"{task[9].fields['pattern']} {task[9].fields['solution']} ")
    assert taught._table is task._table


def test_nothing_is_drawn_before_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(module, "_drawn", None)
    task = Balanced(seed=10**6)
    with pytest.raises(TypeError):
        len(task)


def test_work_for_a_quota(monkeypatch):
    """Assignments looked at: the default's 400,000 problems are a few per cent of all that there are of three and four."""
    looked, real = [0], module._assignments

    def counting(looks, *rest):
        looked[0] += len(looks)
        return real(looks, *rest)

    monkeypatch.setattr(module, "_assignments", counting)
    small = sum(len(part.targets) for part in module._table.__wrapped__(Balanced(quota=40)).parts)
    assert small == 40 * 114 and looked[0] < 3_000 * small


def test_bounds():
    task = Balanced(num_numbers=(2,), quota=2)
    assert len(task) == 8
    for index in (-1, 8):
        with pytest.raises(IndexError):
            task[index]


@pytest.mark.parametrize(
    "settings",
    [
        {"num_numbers": ()}, {"num_numbers": (1,)}, {"num_numbers": (7,)}, {"num_numbers": (3, 3)}, {"quota": 0},
        {"min_number": 0}, {"min_number": 100}, {"max_number": 10**5}, {"num_numbers": (6,), "max_number": 999},
        {"min_target": 100}, {"max_target": 2**62}, {"split": "dev"}, {"split": "test", "test_fraction": 0.0},
        {"test_fraction": 1.0}, {"test_fraction": -0.1}, {"test_fraction": 1.1, "split": "test"}, {"seed": -1},
        {"exclude": ("A-(B-C)",)}, {"require": ("nonsense",)},
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(settings):
    with pytest.raises(UserError) as error:
        Balanced(**settings)
    assert "\n" not in str(error.value)


def test_settings_that_no_problem_meets_are_refused_when_asked_for():
    with pytest.raises(UserError, match=r"exclude=\('A\+B', 'A\*B', 'A-B', 'A/B'\)") as error:
        len(Balanced(num_numbers=(2,), exclude=("A+B", "A*B", "A-B", "A/B")))
    assert "\n" not in str(error.value)
