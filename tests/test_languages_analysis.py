"""AccF, Acc*, compliance, wins and shares against counts by hand and laws that they obey."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_ml.analysis import passk
from jaxrl_ml.analysis.languages import by_language, language_metrics, ratio, win_tie_lose
from jaxrl_ml.types import UserError


def record(correct: bool, language: str, detected: str, tokens: int = 10, id: str = "0") -> dict:
    return {"id": id, "correct": correct, "language": language, "detected": detected, "thinking_tokens": tokens}


# Two problems of four samples: right and compliant, right in another language, wrong and compliant, right but too short to
# tell; then right without a tag, wrong without one, right and compliant, wrong in another language.
RECORDS = [
    record(True, "de", "de", 10), record(True, "de", "en", 20), record(False, "en", "en", 30), record(True, "en", "", 0),
    record(True, "", "de", 40, "1"), record(False, "", "", 0, "1"), record(True, "fr", "fr", 5, "1"),
    record(False, "de", "sw", 7, "1"),
]  # fmt: skip


def test_a_setting_by_hand() -> None:
    metrics = language_metrics(RECORDS, 2, 4)
    assert metrics["accuracy"] == 5 / 8
    assert metrics["compliance"] == 3 / 8
    assert metrics["accuracy_compliant"] == pytest.approx(2 / 3)
    assert metrics["accuracy_strict"] == 2 / 8
    assert metrics["abstain"] == 1 / 8
    assert metrics["thinking_tokens"] == 112 / 8
    assert metrics["pass@4"] == 1.0
    assert language_metrics(RECORDS, 2, 2)["pass@2"] == pytest.approx(passk.pass_at_k(np.array([3, 2]), 4, 2).mean())
    for name in ("accuracy", "pass@4", "accuracy_compliant", "accuracy_strict", "compliance"):
        assert 0 <= metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"] <= 1
    with pytest.raises(UserError, match="pass@5"):
        language_metrics(RECORDS, 2, 5)


def test_languages_by_hand() -> None:
    found = by_language(RECORDS)
    assert list(found) == ["de", "", "en", "fr"], "by share, then by code"
    assert found["de"] == {
        "share": 3 / 8, "accuracy": 2 / 3, "accuracy_compliant": 1.0, "accuracy_strict": 1 / 3, "compliance": 1 / 3,
        "abstain": 0.0, "thinking_tokens": 37 / 3,
    }  # fmt: skip
    assert found["en"]["abstain"] == 0.5 and found["en"]["accuracy_compliant"] == 0
    assert found[""]["compliance"] == 0 and found[""]["accuracy"] == 0.5 and math.isnan(found[""]["accuracy_compliant"])
    assert sum(values["share"] for values in found.values()) == 1


def test_a_model_without_tags_has_nothing_to_comply_with() -> None:
    metrics = language_metrics([record(i % 2 == 0, "", "en") for i in range(4)], 2, 1)
    assert metrics["accuracy"] == 0.5 and metrics["thinking_tokens"] == 10
    for name in ("compliance", "accuracy_compliant", "accuracy_strict", "abstain"):
        assert math.isnan(metrics[name])


def test_wins_are_of_problems_whatever_the_numbers_of_samples() -> None:
    def problem(id: int, verdicts: str) -> list[dict]:
        return [record(verdict == "1", "de", "de", id=str(id)) for verdict in verdicts]

    others = problem(0, "110000") + problem(1, "111111") + problem(2, "000000") + problem(3, "100000") + problem(4, "000000")
    english = problem(0, "100") + problem(1, "111") + problem(2, "001") + problem(3, "000") + problem(4, "000")
    assert win_tie_lose(others, english, 5) == (1 / 5, 3 / 5, 1 / 5)
    assert win_tie_lose(english, others, 5) == (1 / 5, 3 / 5, 1 / 5)
    assert win_tie_lose(others, others, 5) == (0, 1, 0)
    with pytest.raises(ValueError, match="same problems"):
        win_tie_lose(problem(0, "1"), problem(1, "1"), 1)


CODES = st.sampled_from(["", "de", "en"])


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(1, 4), st.lists(st.tuples(st.booleans(), CODES, CODES), min_size=1, max_size=20))
def test_laws(samples: int, rows: list[tuple[bool, str, str]]) -> None:
    records = [record(*row, id=str(p)) for p, row in enumerate(rows) for _ in range(samples)]
    metrics = language_metrics(records, len(rows), 1)
    parts = by_language(records)
    assert metrics["accuracy"] == pytest.approx(sum(p["share"] * p["accuracy"] for p in parts.values()))
    assert metrics["pass@1"] == pytest.approx(metrics["accuracy"])
    if math.isnan(metrics["compliance"]):
        assert parts.keys() == {""}
        return
    assert metrics["accuracy_strict"] <= min(metrics["accuracy"], metrics["compliance"])
    assert metrics["compliance"] == pytest.approx(sum(p["share"] * p["compliance"] for p in parts.values()))
    assert metrics["compliance"] + metrics["abstain"] <= 1 + 1e-9
    if metrics["compliance"]:
        assert metrics["accuracy_compliant"] == pytest.approx(metrics["accuracy_strict"] / metrics["compliance"])
    else:
        assert math.isnan(metrics["accuracy_compliant"])


def test_the_interval_of_a_ratio_covers_it() -> None:
    """Nine in ten and more of the 95 % intervals hold the ratio that the problems were drawn with."""
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        easiness = rng.beta(2, 2, 80)  # a problem that is easy is complied with, too
        compliant = rng.binomial(8, 0.3 + 0.6 * easiness)
        right = rng.binomial(compliant, easiness)
        _, low, high = ratio(right / 8, compliant / 8, seed=trial)
        held += low <= 0.33 / 0.6 <= high  # E[(0.3 + 0.6 e) e] / E[0.3 + 0.6 e], where E[e] = 0.5 and E[e²] = 0.3
    assert 180 <= held < 200
    assert all(map(math.isnan, ratio(np.zeros(3), np.zeros(3))))
    assert ratio(np.ones(5), np.ones(5)).value == 1.0 > ratio(np.ones(5), np.ones(5)).low
