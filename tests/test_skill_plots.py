"""Figures of skills show the rows they are given, and a run with records has them in its report."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest

from jaxrl_ml.analysis import skill_plots
from jaxrl_ml.analysis.plots import to_svg
from jaxrl_ml.analysis.skill_plots import coverage_against_precision, heat_map, success_by_balance, success_by_count
from jaxrl_ml.analysis.skills import History, first_steps, history, observe, skill_rows
from jaxrl_ml.records import write_records
from jaxrl_ml.report import write_report
from jaxrl_ml.tasks.countdown import Balanced
from jaxrl_ml.types import Example

STEPS = (0, 20, 40)


def records_of(examples: list[Example], step: int, seed: int) -> list[dict]:
    """Two samples a problem: the solution, more often at later steps, or some expression."""
    rng = random.Random(f"{seed} {step}")
    found = []
    for example in examples:
        for sample in range(2):
            correct = rng.random() < step / 50
            numbers = map(str, rng.sample(example.fields["numbers"], len(example.fields["numbers"])))
            text = example.fields["solution"] if correct else rng.choice("+-*/").join(numbers)
            found.append(
                {
                    "id": example.id, "task": example.task, "sample": sample, "correct": correct, "reward": float(correct),
                    "length": len(text), "completion": text, "fields": example.fields,
                }
            )  # fmt: skip
    return found


def problems(n: int) -> list[Example]:
    task = Balanced(num_numbers=(n,), quota=2, split="test", test_fraction=1, max_number=30)
    return [task[index] for index in range(len(task))]


@pytest.fixture(scope="module")
def histories() -> dict[str, History]:
    return {
        name: {step: skill_rows(observe(records_of(problems(n), step, n))) for step in STEPS}
        for name, n in (("$three_", 3), ("four", 4))
    }


def test_success_by_balance_is_that_of_the_rows(histories: dict[str, History]) -> None:
    three, four = success_by_balance(histories).axes
    assert [axes.get_title(loc="left") for axes in (three, four)] == ["$three_, n = 3", "four, n = 4"]
    assert [line.get_label() for line in three.lines] == ["left-heavy", "right-heavy"], "no odd count is balanced"
    assert [line.get_label() for line in four.lines] == ["left-heavy", "balanced", "right-heavy"]
    rows = {row.name: row for row in histories["four"][40] if row.level == "balance"}
    for line, band in zip(four.lines, four.collections, strict=True):
        row = rows[line.get_label()]
        assert list(line.get_xdata()) == list(STEPS) and line.get_ydata()[-1] == row.success.value
        last = band.get_paths()[0].vertices
        last = last[last[:, 0] == 40, 1]
        assert (last.min(), last.max()) == pytest.approx((row.success.low, row.success.high))


def test_success_by_count_has_a_line_for_every_count(histories: dict[str, History]) -> None:
    (axes,) = success_by_count(histories).axes
    assert [line.get_label() for line in axes.lines] == ["$three_, n = 3", "four, n = 4"]
    for line, history_of in zip(axes.lines, histories.values(), strict=True):
        shown = [next(row.success.value for row in history_of[step] if row.level == "n") for step in STEPS]
        assert list(line.get_ydata()) == shown and shown[0] == 0 < shown[-1]


def test_every_pattern_that_is_tried_has_its_place(histories: dict[str, History]) -> None:
    three, _ = coverage_against_precision(histories).axes
    assert three.get_title(loc="left") == "$three_, n = 3, step 40"
    rows = histories["$three_"][40]
    expected = {(row.coverage.value, row.precision.value) for row in rows if row.level == "pattern" and row.attempts}
    assert {tuple(place) for dots in three.collections for place in dots.get_offsets().tolist()} == expected
    assert {dots.get_label() for dots in three.collections} == {"left-heavy", "right-heavy"}
    (cross,) = three.lines
    whole = next(row for row in rows if row.level == "n")
    assert (cross.get_xdata()[0], cross.get_ydata()[0]) == (whole.coverage.value, whole.precision.value)


def test_the_heat_map_is_of_precision_and_marks_what_is_mastered(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [problem for problem in problems(3) if problem.fields["pattern"] in ("A+B+C", "A*B*C", "A-B-C")]
    of_pattern = {problem.fields["pattern"]: problem for problem in examples}

    def at(step: int) -> list[dict]:
        texts = {
            "A*B*C": "*" if step >= 20 else None,  # right from step 20 on
            "A+B+C": "+",  # right from the start
            "A-B-C": None,  # tried once, at the start
        }
        found = []
        for pattern, example in of_pattern.items():
            symbol = texts[pattern]
            for sample in range(8):
                text = symbol.join(map(str, example.fields["numbers"])) if symbol else "none"
                if (pattern, step, sample) == ("A-B-C", 0, 0):
                    text = example.fields["solution"]
                found.append({"sample": sample, "correct": False, "completion": text, "fields": example.fields})
        return found

    rows = {step: skill_rows(observe(at(step))) for step in STEPS}
    assert first_steps([rows])["A*B*C"].mastered == 20
    axes = heat_map(rows, 3).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["A+B+C", "A*B*C", "A-B-C"], "as they are mastered"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "20", "40"]
    values = axes.collections[0].get_array().reshape(3, 3)
    np.testing.assert_array_equal(values.filled(-1), [[1, 1, 1], [-1, 1, 1], [1, -1, -1]])
    (dots,) = axes.lines
    assert sorted(zip(dots.get_xdata(), dots.get_ydata(), strict=True)) == [(0.5, 0.5), (1.5, 1.5)]
    assert heat_map(rows, 4) is None
    monkeypatch.setattr(skill_plots, "MAX_COLUMNS", 2)
    assert [label.get_text() for label in heat_map(rows, 3).axes[0].get_xticklabels()] == ["0", "40"]
    monkeypatch.setattr(skill_plots, "MAX_PATTERNS", 2)
    assert [label.get_text() for label in heat_map(rows, 3).axes[0].get_yticklabels()] == ["[2]∘[1]"]


def test_without_patterns_only_the_count_is_drawn() -> None:
    fields = {"numbers": [1, 2, 3], "target": 6}
    rows = {5: skill_rows(observe([{"sample": 0, "correct": True, "completion": "1+2+3", "fields": fields}]))}
    assert success_by_balance({"u": rows}) is coverage_against_precision({"u": rows}) is heat_map(rows, 3) is None
    (axes,) = success_by_count({"u": rows}).axes
    assert list(axes.lines[0].get_ydata()) == [1.0]
    assert success_by_count({}) is None


def test_the_figures_are_vectors_alone_and_equal_for_equal_rows(histories: dict[str, History]) -> None:
    for draw in (success_by_balance, success_by_count, coverage_against_precision, lambda found: heat_map(found["four"], 4)):
        text = to_svg(draw(histories))
        assert "<image" not in text and text == to_svg(draw(histories))


def test_a_run_with_records_reports_its_skills(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 40, "stage": "grpo", "reward/mean": 0.5}) + "\n")
    bare = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Skills" not in bare
    name = "<script>n3"
    for step in STEPS:
        write_records(tmp_path, name, step, records_of(problems(3), step, 3), problems(3))
    text = write_report(tmp_path).read_text(encoding="utf-8")
    row = next(row for row in history(tmp_path)[name][40] if row.level == "n")
    body = re.sub(r"<[^>]*>", " ", re.sub(r"<svg.*?</svg>", "", text, flags=re.S))
    assert f"{row.success.value:.1%} [{100 * row.success.low:.1f}, {100 * row.success.high:.1f}]" in body
    assert f"{row.precision.value:.1%}" in body and f"{row.produced} of 18" in body
    for title in ("Success by balance", "Success by count of numbers", "Coverage against precision", "pattern and step"):
        assert title in body
    assert text.count("<svg") == bare.count("<svg") + 4
    assert "<script" not in text and "<image" not in text
    assert all(link.startswith("#") for link in re.findall(r'(?:href|src)="([^"]*)"', text))
