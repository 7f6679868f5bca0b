"""Success, coverage, precision, first steps and order against a log that is worked by hand, and laws that they obey."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from jaxrl_ml.analysis import skills
from jaxrl_ml.analysis.passk import wilson_interval
from jaxrl_ml.analysis.skills import First, Row, first_steps, history, observe, order_test, read_skill, skill_rows
from jaxrl_ml.records import write_records
from jaxrl_ml.tasks.countdown import Balanced
from jaxrl_ml.tasks.countdown.patterns import patterns
from jaxrl_ml.types import Example, UserError

# Three problems: two of three numbers, left-heavy and right-heavy, and one of four.
PROBLEMS = (
    {"numbers": [3, 4, 5], "target": 17, "pattern": "A*B+C"},
    {"numbers": [2, 3, 20], "target": 4, "pattern": "A/(B+C)"},
    {"numbers": [1, 2, 3, 4], "target": 10, "pattern": "A+B+C+D"},
)
# Two samples of each at two steps: the completion, and what the reward says of it.
LOG = {
    0: (
        ("3*4+5 = 17, that is 5+(4*3)", True),  # A*B+C once, right
        ("3+4+5=12. 3*5+4=19", False),  # A+B+C wrong, A*B+C wrong
        ("20+2+3", False),  # A+B+C wrong
        ("no idea: 20/2 = 10, 10-3 = 7", False),
        ("1+2+3+4", True),  # A+B+C+D right
        ("4+3+2+1, no: 1*2*3*4", False),  # A+B+C+D right, A*B*C*D wrong
    ),
    10: (
        ("17", True),  # none; the reward is not asked why
        ("3+4+5", False),  # A+B+C wrong
        ("<answer>20/(3+2)</answer>", True),  # A/(B+C) right
        ("20/(2-3+1)? 20/(2+3)", True),  # A/(B+C) right, the other uses a fourth number
        ("", False),
        ("1/(2-2) or 4/(3-2-1)", False),  # A/(B-C-D), which divides by zero: wrong
    ),
}


def records(step: int, problems: Sequence[dict] = PROBLEMS) -> list[dict]:
    return [
        {
            "id": str(i // 2), "task": "countdown", "sample": i % 2, "correct": correct, "reward": float(correct),
            "length": len(text), "completion": text, "fields": problems[i // 2],
        }
        for i, (text, correct) in enumerate(LOG[step])
    ]  # fmt: skip


def rows_at(step: int) -> dict[tuple[str, int, str], Row]:
    return {(row.level, row.n, row.name): row for row in skill_rows(observe(records(step)))}


def test_the_first_step_by_hand() -> None:
    rows = rows_at(0)
    three = rows["n", 3, "3"]
    assert (three.patterns, three.produced, three.problems) == (2, 1, 2)
    assert three.success == (1 / 4, *wilson_interval(0.5, 2)), "one of four samples, on two problems"
    assert three.pass_at == {2: (1 / 2, *wilson_interval(1, 2))}, "one problem is solved by one sample of two, one by none"
    assert three.coverage == (1 / 2, *wilson_interval(1, 2))
    assert (three.attempts, three.right) == (4, 1)
    assert three.precision == (1 / 4, *wilson_interval(0.25 * 1.6, 1.6)), "3 and 1 attempts: (3 + 1)² / (3² + 1²) = 1.6"
    four = rows["n", 4, "4"]
    assert (four.success.value, four.coverage.value, four.attempts, four.right) == (1 / 2, 1.0, 3, 2)
    left, right = rows["balance", 3, "left-heavy"], rows["balance", 3, "right-heavy"]
    assert (left.problems, left.success.value, left.attempts, left.right, left.produced) == (1, 1 / 2, 4, 1, 1)
    assert (right.problems, right.success.value, right.coverage.value, right.attempts, right.produced) == (1, 0.0, 0.0, 0, 0)
    assert all(map(math.isnan, right.precision))
    assert rows["depth", 3, "right-heavy, depth 2"][3:-1] == right[3:-1], "the same set of patterns"
    assert rows["shape", 3, "[2]∘[1]"][3:] == left[3:]
    product, total = rows["pattern", 3, "A*B+C"], rows["pattern", 3, "A+B+C"]
    assert (product.attempts, product.right) == (2, 1) and product.precision == (1 / 2, *wilson_interval(0.5, 1))
    assert (total.problems, total.patterns, total.produced, total.attempts, total.right) == (0, 0, 0, 2, 0)
    assert total.precision == (0.0, *wilson_interval(0, 2)), "on two problems"
    assert all(map(math.isnan, (*total.success, *total.coverage, *total.pass_at[2])))
    assert set(name for level, _, name in rows if level == "pattern") == {
        "A*B+C", "A+B+C", "A/(B+C)", "A+B+C+D", "A*B*C*D",
    }  # fmt: skip


def test_the_second_step_by_hand() -> None:
    rows = rows_at(10)
    own, zero = rows["pattern", 3, "A/(B+C)"], rows["pattern", 4, "A/(B-C-D)"]
    assert (own.success.value, own.pass_at[2].value, own.coverage.value) == (1.0, 1.0, 1.0)
    assert (own.attempts, own.right) == (2, 2) and own.precision == (1.0, *wilson_interval(1, 1))
    assert (zero.attempts, zero.right) == (1, 0)
    lost = rows["pattern", 3, "A*B+C"]
    assert (lost.success.value, lost.coverage.value, lost.attempts) == (1 / 2, 0.0, 0)
    assert rows["n", 3, "3"].success.value == 3 / 4 and rows["n", 3, "3"].precision.value == 2 / 3


def test_first_steps_by_hand() -> None:
    found = {step: skill_rows(observe(records(step))) for step in LOG}
    assert first_steps([found], threshold=0.5, min_attempts=2) == {
        "A*B+C": First(0, 0),
        "A/(B+C)": First(10, 10),
        "A+B+C+D": First(0, 0),
    }
    assert list(first_steps([found])) == ["A*B+C", "A/(B+C)", "A+B+C+D"], "by count of numbers, then by name"
    assert first_steps([found], 0.51, 2)["A*B+C"] == First(0, None), "precision short of the threshold"
    assert first_steps([found], 0.5, 3)["A/(B+C)"] == First(10, None), "too few attempts"
    later = {step + 5: rows for step, rows in found.items()}
    assert first_steps([later, found]) == first_steps([found, later]) == first_steps([found]), "the earliest counts"


def test_a_run_of_files_gives_the_same(tmp_path: Path) -> None:
    examples = [Example(str(i), "countdown", fields) for i, fields in enumerate(PROBLEMS)]
    for step in LOG:
        write_records(tmp_path, "n3-4", step, records(step), examples)
        for name, fields in (("maths", {}), ("sums", {"numbers": [0.5, 1.5], "target": 2.0}), ("list", {"numbers": "1 2"})):
            write_records(tmp_path, name, step, records(step), [Example(str(i), name, fields) for i in range(3)])
    found = history(tmp_path)
    assert list(found) == ["n3-4"] and list(found["n3-4"]) == [0, 10]
    for step, rows in found["n3-4"].items():
        np.testing.assert_equal(rows, skill_rows(observe(records(step))))
    assert history(tmp_path / "nowhere") == {}


def test_problems_without_a_pattern_count_for_n_alone() -> None:
    problems = [{"numbers": p["numbers"], "target": p["target"]} for p in PROBLEMS]
    rows = {(row.level, row.n, row.name): row for row in skill_rows(observe(records(0, problems)))}
    three, known = rows["n", 3, "3"], rows_at(0)["n", 3, "3"]
    assert (three.success, three.precision, three.problems) == (known.success, known.precision, 2)
    assert three.patterns == 0 and math.isnan(three.coverage.value)
    assert all(row.problems == 0 for (level, *_), row in rows.items() if level != "n")
    assert first_steps([{0: tuple(rows.values())}]) == {}


def test_a_pattern_that_is_not_canonical_is_read_and_what_is_none_is_named() -> None:
    written = [{**PROBLEMS[0], "pattern": "C+B*A"}, *PROBLEMS[1:]]
    np.testing.assert_equal(skill_rows(observe(records(0, written))), skill_rows(observe(records(0))))
    with pytest.raises(UserError, match="no expression"):
        observe(records(0, [{**PROBLEMS[0], "pattern": "A*"}, *PROBLEMS[1:]]))
    with pytest.raises(ValueError, match="numbers of samples"):
        observe(records(0)[:-1])


def simulated(quota: int, seed: int) -> list[dict]:
    """Random expressions and some right ones, four samples a problem."""
    rng = random.Random(seed)
    task = Balanced(num_numbers=(2, 3), quota=quota, split="test", test_fraction=1, max_number=30)
    found = []
    for index in range(len(task)):
        fields = task[index].fields
        for sample in range(4):
            numbers = rng.sample(fields["numbers"], len(fields["numbers"]))
            text = f" {rng.choice('+-*/')} ".join(map(str, numbers))
            text = fields["solution"] if rng.random() < 0.3 else f"({text}) or {text}"
            found.append({"sample": sample, "correct": rng.random() < 0.3, "completion": text, "fields": fields})
    return found


def test_levels_divide_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = simulated(quota=3, seed=0)
    rows = skill_rows(observe(sample))
    whole = {row.n: row for row in rows if row.level == "n"}
    for level in skills.LEVELS:
        for n, total in whole.items():
            parts = [row for row in rows if row.level == level and row.n == n]
            for field in ("patterns", "produced", "problems", "attempts", "right"):
                assert sum(getattr(row, field) for row in parts) == getattr(total, field)
            for field in ("success", "coverage"):
                weighted = sum(getattr(row, field).value * row.problems for row in parts)
                assert weighted / total.problems == pytest.approx(getattr(total, field).value)
    for row in rows:
        for found in (row.success, row.coverage, row.precision, *row.pass_at.values()):
            assert math.isnan(found.value) or 0 <= found.low <= found.value <= found.high <= 1
        assert row.right <= row.attempts and row.produced <= row.patterns
        assert list(row.pass_at) == [2, 4]
    monkeypatch.setattr(skills, "_RECORDS_READ", 7)
    np.testing.assert_equal(skill_rows(observe(iter(sample))), rows)


def test_intervals_cover_where_all_samples_of_a_problem_go_the_same_way() -> None:
    rng, hits = np.random.default_rng(0), 0
    for _ in range(400):
        right = np.repeat(rng.random(30) < 0.3, 8)
        trials = np.full(30, 8)
        low, high = skills._share(right.sum(), trials)[1:]
        hits += low <= 0.3 <= high
    assert 0.93 <= hits / 400 <= 0.98


def test_nothing_gives_nothing() -> None:
    assert skill_rows(observe([])) == ()
    order = order_test({"A+B": 3, "A*B*C": 5})
    assert order.pairs == 0 and math.isnan(order.share) and order.p_share == order.p_correlation == 1


def test_order_by_hand() -> None:
    steps = {"A*B": 10, "A+B": 30, "A*B+C": 20, "A+B+C": 30}
    order = order_test(steps)
    assert (order.pairs, order.share, order.correlation) == (2, 0.75, 1.0), "one pair in order and one tie; early before late"
    # Of the four ways to give the steps of each count to its two patterns, two have at least that share and correlation.
    assert order.p_share == order.p_correlation == pytest.approx(0.5, abs=0.02)
    assert order_test(dict(reversed(steps.items())))[:2] == (2, 0.75)
    never = order_test({"A*B": None, "A+B": None, "A*B+C": 20, "A+B+C": None})
    assert never.share == 0.25, "a base that never comes is last, and ties with another that never does"
    assert never.p_share == 1, "whichever dependent came, its base had not"
    assert (never.correlation, never.p_correlation) == (0, 1), "of what is constant there is none"
    # Ranks are among patterns of the same size, ties have their mean: the bases' are 0, 1.5, 1.5, the dependents' 0, 1, 2.
    tied = order_test({"A*B": 10, "A+B": 30, "A/B": 30, "A*B+C": 40, "A+B+C": 50, "A/B+C": 60}, 9)
    assert tied.correlation == pytest.approx(3**0.5 / 2)


def test_order_is_of_ranks_and_of_a_seed() -> None:
    rng = random.Random(0)
    steps = {name: rng.randrange(100) for n in (3, 4) for name in patterns(n)}
    stretched = {name: step**3 + 7 for name, step in steps.items()}
    assert order_test(steps, 199) == order_test(stretched, 199)
    assert len({order_test(steps, 199, seed).p_share for seed in range(5)}) > 1


def test_the_p_values_are_uniform_where_order_is_chance() -> None:
    rng = random.Random(1)
    names = [*patterns(3), *patterns(4)]
    orders = [order_test({name: rng.randrange(50) for name in names}, 99, seed) for seed in range(300)]
    for p_values in (np.sort([order.p_share for order in orders]), np.sort([order.p_correlation for order in orders])):
        grid = (np.arange(300) + 1) / 300
        assert np.abs(p_values - grid).max() < 0.1, "Kolmogorov and Smirnov at 0.5 %"
        assert (p_values <= 0.05).mean() < 0.09


def test_a_planted_order_is_found_and_size_alone_is_not() -> None:
    rng = random.Random(2)
    bases = {name: rng.randrange(0, 1000, 10) for name in patterns(3)}

    def last_base(name: str) -> int:
        return max((bases[base] for base in read_skill(name).sub_skills if base in bases), default=0)

    planted = order_test({**bases, **{name: last_base(name) + 10 for name in patterns(4)}}, 999)
    assert planted.share == 1 and planted.p_share == planted.p_correlation == 0.001
    backwards = order_test({**bases, **{name: 1000 - last_base(name) for name in patterns(4)}}, 999)
    assert backwards.share < planted.share and backwards.p_share > 0.9
    assert backwards.correlation < 0 and backwards.p_correlation > 0.9
    by_size = order_test({**bases, **{name: 1000 + rng.randrange(1000) for name in patterns(4)}}, 99)
    assert by_size.share == 1 and by_size.p_share == 1, "three numbers came before four, whatever is part of what"
    assert by_size.p_correlation > 0.05
    later = order_test({**bases, **{name: 2000 + last_base(name) for name in patterns(4)}}, 999)
    assert (later.p_share, later.p_correlation) == (1, 0.001), "all come later, but in the order of their bases"
