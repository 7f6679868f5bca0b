"""Gains and the transferability index against tables by hand; intervals cover; what cannot be divided is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from jaxrl_ml.analysis.transfer import (
    Table,
    accuracies,
    index,
    interval,
    resampled_accuracies,
    tabulate,
    transfer,
)
from jaxrl_ml.types import UserError


def records(correct: Mapping[str, Sequence[bool]], benchmark: str = "words") -> list[dict[str, Any]]:
    """One sample of each problem, by language; problems are called by their places."""
    return [
        {"id": f"{code}-{place}", "task": f"{benchmark}/{code}", "correct": bool(right)}
        for code, values in correct.items()
        for place, right in enumerate(values)
    ]


def first(right: int, of: int = 40) -> list[bool]:
    return [place < right for place in range(of)]


BASE = {"en": first(20), "de": first(16), "sw": first(8), "he": first(10)}
MODEL = {"en": first(30), "de": first(20), "sw": first(12), "he": first(9)}


def test_by_hand() -> None:
    found = transfer(tabulate({"base": records(BASE)}), tabulate({"model": records(MODEL)}), ["en", "de"], ["sw", "he"])
    # g: en (30−20)/20 = 1/2, de (20−16)/16 = 1/4, sw (12−8)/8 = 1/2, he (9−10)/10 = −1/10
    assert {(cell.language, cell.group): round(cell.relative.value, 12) for cell in found.cells} == {
        ("de", "train"): 0.25, ("en", "train"): 0.5, ("he", "unseen"): -0.1, ("sw", "unseen"): 0.5,
    }  # fmt: skip
    assert found.relative["train"].value == pytest.approx(3 / 8)
    assert found.relative["unseen"].value == pytest.approx(1 / 5)
    assert found.mti.value == pytest.approx((1 / 5) / (3 / 8)) and found.refusal == ""
    assert found.difference["train"].value == pytest.approx((10 + 4) / 80)
    assert found.difference["unseen"].value == pytest.approx((4 - 1) / 80)
    english = next(cell for cell in found.cells if cell.language == "en")
    assert (english.base.value, english.model.value, english.difference.value) == (0.5, 0.75, 0.25)
    for one in (found.mti, *found.relative.values(), *found.difference.values(), *(cell.base for cell in found.cells)):
        assert one.low < one.value < one.high


def test_benchmarks_weigh_alike_whatever_their_size() -> None:
    base = tabulate({"a": records({"en": first(20), "sw": first(20)}), "b": records({"en": first(40, 400)}, "long")})
    model = tabulate({"a": records({"en": first(30), "sw": first(25)}), "b": records({"en": first(80, 400)}, "long")})
    found = transfer(base, model, ["en"])
    assert found.relative["train"].value == pytest.approx((1 / 2 + 1) / 2)
    assert found.mti.value == pytest.approx((1 / 4) / (3 / 4))


def test_files_of_the_same_problems_are_averaged_and_samples_too() -> None:
    double = records({"en": [True, False]}) + records({"en": [True, True]})
    table = tabulate({"one": double, "two": records({"en": [False, False]})})
    np.testing.assert_allclose(table.shares[:, 0], [0.5, 0.25])
    assert table.source == "one, two" and table.cells == (("words", "en"),)


def test_a_language_may_lack_problems_that_both_models_lack() -> None:
    part = {"en": first(20), "sw": first(15, 30)}
    found = transfer(tabulate({"b": records(part)}), tabulate({"m": records({"en": first(30), "sw": first(18, 30)})}), ["en"])
    assert [cell.num_problems for cell in found.cells] == [40, 30]
    assert found.mti.value == pytest.approx((3 / 15) / (10 / 20))


def test_order_of_records_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    tables = []
    for correct in (BASE, MODEL):
        rows = records(correct)
        tables.append((tabulate({"x": rows}), tabulate({"x": [rows[i] for i in rng.permutation(len(rows))]})))
    (base, base_too), (model, model_too) = tables
    assert transfer(base, model, ["en"]) == transfer(base_too, model_too, ["en"])


def test_draws_are_paired_over_models_and_languages_and_stay_in_their_benchmark() -> None:
    easy = tabulate({"a": records({"en": first(20), "de": first(20)}), "b": records({"en": [True]}, "easy")})
    draws = resampled_accuracies((easy, easy), 500)
    assert draws.shape == (500, 2, 3)
    np.testing.assert_array_equal(draws[:, 0], draws[:, 1])
    columns = dict(zip(easy.cells, draws[:, 0].T, strict=True))
    np.testing.assert_array_equal(columns["words", "en"], columns["words", "de"])
    assert (columns["easy", "en"] == 1).all(), "its one problem is in every draw"
    assert columns["words", "en"].std() == pytest.approx(math.sqrt(0.25 / 40), rel=0.1)
    assert not (draws[:250] == draws[250:]).all(), "blocks differ"
    same = transfer(easy, easy, ["en"])
    assert all(cell.difference == (0, 0, 0) for cell in same.cells)


@pytest.mark.parametrize(("right", "refused"), [(0, True), (1, True), (3, True), (6, False), (20, False)])
def test_a_weak_base_is_refused_by_name(right: int, refused: bool) -> None:
    base = tabulate({"b": records({"en": first(50, 100), "sw": first(right, 100)})})
    model = tabulate({"m": records({"en": first(70, 100), "sw": first(40, 100)})})
    found = transfer(base, model, ["en"])
    assert (found.mti is None) == refused == ("words/sw" in found.refusal) == (found.relative["unseen"] is None)
    assert found.relative["train"].value == pytest.approx(0.4)
    assert found.difference["unseen"].value == pytest.approx((40 - right) / 100), "raw gains are always there"


@pytest.mark.parametrize("right", [50, 53, 20])
def test_a_training_without_gain_in_its_languages_is_refused(right: int) -> None:
    rng = np.random.default_rng(1)
    base = tabulate({"b": records({"en": rng.permutation(first(50, 100)), "sw": first(50, 100)})})
    model = tabulate({"m": records({"en": rng.permutation(first(right, 100)), "sw": first(70, 100)})})
    found = transfer(base, model, ["en"])
    assert found.mti is None and "gain in the training languages" in found.refusal
    assert found.relative["unseen"].value == pytest.approx(0.4)


def test_draws_without_a_value_count_at_both_ends() -> None:
    draws = np.linspace(0, 1, 1001)
    known = interval(0.5, draws)
    assert (known.low, known.high) == pytest.approx((0.025, 0.975))
    few, many = draws.copy(), draws.copy()
    few[500:510], many[500:540] = np.nan, np.nan
    assert 0.0 <= interval(0.5, few).low < known.low and known.high < interval(0.5, few).high <= 1.0
    assert interval(0.5, many)[1:] == (-math.inf, math.inf)
    assert interval(2.0, draws).high == 2.0, "the value lies within"


def test_index_has_no_value_in_a_draw_whose_denominator_is_not_positive() -> None:
    cells = (("words", "en"), ("words", "sw"))
    base_draws = np.tile([0.5, 0.4], (200, 1))
    model_draws = np.tile([0.6, 0.6], (200, 1))
    model_draws[0], base_draws[1] = [0.4, 0.6], [0.5, 0.0]
    train = np.array([True, False])
    found = index(cells, (np.array([0.5, 0.4]), base_draws), (np.array([0.6, 0.6]), model_draws), train, ~train)
    assert found.value == pytest.approx(0.5 / 0.2)
    assert np.isnan(found.draws).nonzero()[0].tolist() == [0, 1]


def simulated(rng: np.random.Generator, chances: Sequence[float], hard: np.ndarray) -> Table:
    """A model's results in languages 0, 1, …: it solves a problem with a chance times the problem's own factor."""
    shares = rng.random((len(hard), len(chances))) < np.array(chances) * hard[:, None]
    cells = tuple(("words", str(code)) for code in range(len(chances)))
    return Table("x", cells, tuple(("words", str(p)) for p in range(len(hard))), shares.astype(float))


def test_intervals_cover_as_often_as_they_say() -> None:
    rng, inside, runs = np.random.default_rng(2), np.zeros(3), 200
    train = np.array([True, True, False, False])
    for _ in range(runs):
        hard = rng.uniform(0.5, 1.5, 150)
        base, model = simulated(rng, [0.3] * 4, hard), simulated(rng, [0.6, 0.6, 0.45, 0.45], hard)
        values, draws = accuracies((base, model)), resampled_accuracies((base, model), 300)
        found = index(base.cells, (values[0], draws[:, 0]), (values[1], draws[:, 1]), train, ~train)
        mti = interval(found.value, found.draws)  # planted: gains of 1/2 and 1
        change = interval((values[1] - values[0])[0], (draws[:, 1] - draws[:, 0])[:, 0])  # planted: 0.3
        unseen = interval(values[1, ~train].mean(), draws[:, 1, ~train].mean(1))  # planted: 0.45
        inside += [one.low <= true <= one.high for one, true in ((mti, 0.5), (change, 0.3), (unseen, 0.45))]
    assert ((inside / runs > 0.90) & (inside / runs < 0.99)).all(), inside / runs


ROW = {"id": "en-1", "task": "words/en", "correct": True}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no file: no records"),
        ({"f.json": []}, "f.json: no records"),
        ({"f.json": [ROW, {**ROW, "task": None}]}, "f.json: record 1 lacks"),
        ({"f.json": [{**ROW, "correct": 1}]}, "record 0 lacks"),
        ({"f.json": [{**ROW, "task": "countdown"}]}, "'countdown' names no language"),
        ({"f.json": [{**ROW, "task": "/en"}]}, "'/en' names no language"),
        ({"f.json": [{**ROW, "id": "1"}]}, "f.json: id '1' of words/en"),
        ({"f.json": [{**ROW, "id": "de-1"}]}, "must be en-PROBLEM"),
        ({"f": [ROW, {**ROW, "id": "en-2"}], "g": [ROW]}, "'en-2' of words is in 1 of the files, others in 2"),
    ],
)
def test_broken_results_are_named(files: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        tabulate(files)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("other", "train", "unseen", "message"),
    [
        ({**BASE, "en": first(20, 39)}, ["en"], [], r"m lacks 1 problem\(s\) of b, such as 'en-39' of words"),
        ({**BASE, "en": first(20, 41)}, ["en"], [], r"b lacks 1 problem\(s\) of m, such as 'en-40'"),
        ({"en": first(20)}, ["en"], [], "m lacks 120"),
        (MODEL, ["en"], ["fr"], "no results in language 'fr', only in de, en, he, sw"),
        (MODEL, ["en", "de"], ["de"], "de: both train and unseen"),
        (MODEL, [], ["de"], "no train language"),
        (MODEL, ["en", "de", "sw", "he"], [], "no unseen language"),
    ],
)
def test_what_cannot_be_compared_is_refused(other: dict, train: list[str], unseen: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        transfer(tabulate({"b": records(BASE)}), tabulate({"m": records(other)}), train, unseen)
    assert "\n" not in str(error.value)
