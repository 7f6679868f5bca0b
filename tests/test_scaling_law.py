"""The fits against other people's, planted laws recovered with intervals that cover, and what too few points can say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import curve_fit
from scipy.stats import linregress, t

from jaxrl_ml.analysis.scaling_law import (
    Run,
    alternatives,
    budget_differences,
    fit_log_log,
    fit_power,
    law,
    laws_of_arms,
    measure,
    redraw_runs,
)
from jaxrl_ml.analysis.transfer import Table, interval, resampled_accuracies
from jaxrl_ml.types import UserError

X = np.array([2, 3, 4, 5, 6, 7, 8])


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.floats(0.01, 10), st.floats(-3, 3), st.lists(st.integers(2, 40), min_size=2, max_size=8, unique=True))
def test_a_law_without_noise_is_recovered(alpha: float, beta: float, x: list[int]) -> None:
    for fit in (fit_power, fit_log_log):
        found = fit(np.array(x), alpha * np.array(x, float) ** beta)
        assert found.alpha == pytest.approx(alpha, rel=1e-5)
        assert found.beta == pytest.approx(beta, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_fits_agree_with_scipy(seed: int) -> None:
    f = 0.3 * X**0.3 + np.random.default_rng(seed).normal(0, 0.03, len(X))
    (alpha, beta), covariance = curve_fit(lambda x, a, b: a * x**b, X, f, p0=(0.3, 0.3))
    reach = t.ppf(0.975, len(X) - 2)
    found = fit_power(X, f)
    assert (found.alpha, found.beta) == pytest.approx((alpha, beta), rel=1e-5)
    halves = reach * np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(found.alpha_points, [alpha - halves[0], alpha + halves[0]], rtol=1e-4)
    np.testing.assert_allclose(found.beta_points, [beta - halves[1], beta + halves[1]], rtol=1e-4)
    assert found.r_squared == pytest.approx(1 - ((f - alpha * X**beta) ** 2).sum() / ((f - f.mean()) ** 2).sum())

    line, found = linregress(np.log(X), np.log(f)), fit_log_log(X, f)
    assert (np.log(found.alpha), found.beta) == pytest.approx((line.intercept, line.slope))
    assert found.r_squared == pytest.approx(line.rvalue**2)
    np.testing.assert_allclose(found.beta_points, [line.slope - reach * line.stderr, line.slope + reach * line.stderr])
    ends = line.intercept + reach * line.intercept_stderr * np.array([-1, 1])
    np.testing.assert_allclose(np.log(found.alpha_points), ends)


def test_a_batch_is_its_rows_one_by_one() -> None:
    f = np.random.default_rng(0).normal(0.5, 0.2, (5, 3, len(X)))  # some negative
    f[1, 1, 2] = np.nan
    for fit in (fit_power, fit_log_log):
        batch = fit(X, f)
        for place in np.ndindex(5, 3):
            for together, alone in zip(batch, fit(X, f[place]), strict=True):
                np.testing.assert_allclose(together[(..., *place)], alone, atol=1e-6)
        assert np.isnan(batch.beta[1, 1])


def test_intervals_from_the_points_cover_as_often_as_they_say() -> None:
    rng, runs = np.random.default_rng(1), 4000
    law_at = 0.3 * X**0.25
    noises = {
        "log-log": fit_log_log(X, law_at * np.exp(rng.normal(0, 0.1, (runs, len(X))))),
        "non-linear": fit_power(X, law_at + rng.normal(0, 0.02, (runs, len(X)))),
        "few points": fit_log_log(X[:3], law_at[:3] * np.exp(rng.normal(0, 0.1, (runs, 3)))),
    }
    for name, found in noises.items():
        for (low, high), true in ((found.alpha_points, 0.3), (found.beta_points, 0.25)):
            assert 0.935 < np.mean((low <= true) & (true <= high)) < 0.965, name
        assert np.median(found.beta) == pytest.approx(0.25, abs=0.02)


def simulated(rng: np.random.Generator, x: np.ndarray, spread: float, problems: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Results of runs at X = x and their draws: a planted law, problems of different difficulty, and seeds that differ."""
    chances = 0.3 * x**0.25 * np.exp(rng.normal(0, spread, len(x)))
    hard = rng.uniform(0.5, 1.5, problems)
    solved = (rng.random((len(x), problems)) < chances[:, None] * hard).astype(float)
    tables = [Table("x", (("a", "sw"),), tuple(("a", str(p)) for p in range(problems)), row[:, None]) for row in solved]
    return solved.mean(1), resampled_accuracies(tables, 300)[:, :, 0]


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (3, 0.1)])
def test_drawn_intervals_cover_as_often_as_they_say(seeds: int, spread: float) -> None:
    rng, runs, x = np.random.default_rng(seeds), 150, np.repeat([1, 2, 3, 4, 6, 8], seeds)
    inside = np.zeros(4)
    for _ in range(runs):
        found = law(x, *simulated(rng, x, spread))
        fit = found.fits[0]
        bands = (fit.alpha_drawn, fit.beta_drawn, found.leap, found.gap)
        truth = (0.3, 0.25, 0.3 * (2**0.25 - 1), 0.0)
        inside += [one.low <= true <= one.high for one, true in zip(bands, truth, strict=True)]
    # Means of lognormal seeds lie 0.5 % above the law, the percentiles of three seeds a little within: no more than that.
    assert ((inside / runs > 0.88) & (inside / runs < 0.99)).all(), inside / runs


def test_runs_of_a_level_are_drawn_with_the_variance_of_their_mean() -> None:
    x, f = np.array([2, 2, 2, 3]), np.array([0.2, 0.3, 0.7, 0.5])
    drawn = redraw_runs(x, f, np.tile(f, (40_000, 1)))
    mean = drawn[:, :3].mean(1)
    assert mean.mean() == pytest.approx(0.4, abs=0.005)
    assert mean.var() == pytest.approx(f[:3].var(ddof=1) / 3, rel=0.03)
    assert (drawn[:, 3] == 0.5).all()
    np.testing.assert_allclose(drawn[:, :3] - mean[:, None], np.tile(f[:3] - 0.4, (40_000, 1)), atol=1e-12)


def test_what_problems_explain_of_the_spread_of_runs_is_not_counted_twice() -> None:
    rng, x = np.random.default_rng(0), np.array([2] * 40 + [3] * 40)
    draws = 0.5 + rng.normal(0, 0.03, (5000, 80))  # each run of itself: problems explain 0.03² of 0.05²
    for beyond in (0.04, 0.0):
        f = 0.5 + rng.normal(0, 0.03, 80) + rng.normal(0, beyond, 80)
        variance = redraw_runs(x, f, draws)[:, :40].mean(1).var()
        assert variance == pytest.approx((0.03**2 + beyond**2) / 40, rel=0.35)


def test_leap_gap_and_means_by_hand() -> None:
    x, f = np.array([1, 1, 2, 4, 8]), np.array([0.1, 0.2, 0.4, 0.8, 1.6])  # 0.2·X
    found = law(x, f, np.tile(f, (200, 1)))
    assert found.leap.value == pytest.approx(0.4 - 0.15)
    assert found.gap.value == pytest.approx(0.2 - 0.15)
    assert found.means[1].value == pytest.approx(0.15) and found.runs[1] == (0.1, 0.2)
    assert (found.means[1].low, found.means[1].high) == pytest.approx((0.1, 0.2)), "one of two runs is drawn"
    assert found.leap.low == pytest.approx(0.2) and found.gap.high == pytest.approx(0.1)
    assert found.curve["x"][0] == 2 and found.curve["x"][-1] == 8
    np.testing.assert_allclose(found.curve["value"], 0.2 * np.array(found.curve["x"]), rtol=1e-5)
    assert "X = 2, 4, 8: one run each" in found.notes[0]


def by_form(x: np.ndarray, f: np.ndarray) -> dict:
    return {other.form: other for other in alternatives(x, f)}


@pytest.mark.parametrize(
    ("form", "planted"),
    [
        ("α·X^β", lambda x: 0.2 * x**0.8),
        ("a + b·ln X", lambda x: 0.1 + 0.3 * np.log(x)),
        ("c − a·X^−b", lambda x: 0.6 - 0.9 * x**-1.5),
    ],
)
def test_the_planted_form_has_the_lowest_aicc(form: str, planted) -> None:
    x = np.repeat([2, 3, 4, 6, 8, 12], 2).astype(float)
    found = by_form(x, planted(x) + np.random.default_rng(0).normal(0, 0.004, len(x)))
    assert min(found.values(), key=lambda other: other.aicc).form == form
    if form.startswith("c"):
        assert found[form].parameters == pytest.approx({"c": 0.6, "a": 0.9, "b": 1.5}, rel=0.15)


def test_aicc_by_hand() -> None:
    x, f = np.array([2.0, 3, 4, 6, 8]), np.array([0.30, 0.36, 0.37, 0.44, 0.45])
    line = linregress(np.log(x), f)
    rss = ((f - line.intercept - line.slope * np.log(x)) ** 2).sum()
    found = by_form(x, f)
    assert found["a + b·ln X"].parameters == pytest.approx({"a": line.intercept, "b": line.slope})
    assert found["a + b·ln X"].aicc == pytest.approx(5 * math.log(rss / 5) + 6 + 24 / 1)
    assert found["c − a·X^−b"].aicc is None and "5 − 4 − 1" in found["c − a·X^−b"].note
    assert found["c − a·X^−b"].parameters["b"] > 0


@pytest.mark.parametrize(
    ("x", "f", "notes"),
    [
        ([2, 3, 4], [0.3, 0.4, 0.45], ["3 − 3 − 1", "3 − 3 − 1", "3 − 4 − 1"]),
        ([2, 4], [0.3, 0.4], ["2 − 3 − 1", "2 − 3 − 1", "3 parameters, but 2"]),
        ([2, 2, 2, 4, 4, 4], [0.3, 0.31, 0.32, 0.4, 0.41, 0.42], ["2 different X"] * 2 + ["3 parameters, but 2"]),
        ([2, 3, 4, 5, 6, 7, 8], [0.5] * 7, ["no errors are left"] * 3),
    ],
)
def test_too_few_points_say_so(x: list[int], f: list[float], notes: list[str]) -> None:
    for other, note in zip(alternatives(np.array(x), np.array(f)), notes, strict=True):
        assert other.aicc is None and note in other.note, other


def degenerate(x: list[int], f: list[float]):
    return law(x, np.array(f), np.tile(f, (200, 1)))


def test_too_few_runs_have_no_law_and_say_why() -> None:
    for x, there in (([1], "none"), ([1, 2], "2"), ([3, 3], "3")):
        found = degenerate(x, [0.3] * len(x))
        assert found.fits == found.alternatives == () and found.gap is None and not found.curve
        assert any(f"there is {there}" in note for note in found.notes)
    assert degenerate([1, 2], [0.1, 0.3]).leap.value == pytest.approx(0.2)
    only_law = degenerate([2, 4, 8], [0.1, 0.2, 0.4])
    assert only_law.leap is None and only_law.gap is None and only_law.fits[0].beta_drawn.value == pytest.approx(1)


def test_two_points_have_no_interval_of_their_own() -> None:
    found = degenerate([1, 2, 8], [0.1, 0.2, 0.4])
    for fit in found.fits:
        assert math.isnan(fit.beta_points.low) and math.isnan(fit.alpha_points.high) and math.isnan(fit.r_squared)
        assert fit.beta_drawn == pytest.approx((0.5, 0.5, 0.5), abs=1e-6)
    assert any("two points" in note for note in found.notes)


def test_equal_zero_negative_and_absurd_results() -> None:
    equal = degenerate([1, 2, 3, 4, 6], [0.4] * 5)
    assert equal.fits[0].beta_drawn.value == pytest.approx(0, abs=1e-7) and math.isnan(equal.fits[0].r_squared)
    assert equal.fits[0].alpha_drawn.value == pytest.approx(0.4) and equal.gap.value == pytest.approx(0, abs=1e-7)
    zero = degenerate([1, 2, 3, 4], [0.1, 0.0, 0.0, 0.0])
    assert zero.fits == () and "no law: f is 0 at every X ≥ 2" in zero.notes and zero.leap.value == -0.1
    negative = degenerate([1, 2, 3, 4], [0.1, -0.1, 0.2, 0.3])
    assert [fit.method for fit in negative.fits] == ["non-linear"] and any("no log-log" in note for note in negative.notes)
    steep = degenerate([2, 3, 4, 8], [1e-9, 1e-7, 1e-5, 1.0])
    assert any("no power law" in note for note in steep.notes)


def test_draws_that_have_no_value_make_intervals_endless() -> None:
    f = 0.3 * X**0.25
    draws = np.tile(f, (200, 1))
    draws[:20, 3] = np.nan
    for fit in law(X, f, draws).fits:
        assert fit.beta_drawn[1:] == (-math.inf, math.inf)


@pytest.mark.parametrize(("x", "f"), [([], []), ([1, 2], [0.1]), ([0, 2], [0.1, 0.2]), ([1, 2], [0.1, math.nan])])
def test_shapes_are_checked(x: list[int], f: list[float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        law(x, np.array(f), np.zeros((10, len(x))))


def table(name: str, english: int, german: int, swahili: int, of: int = 100) -> Table:
    shares = np.arange(of)[:, None] < np.array([german, english, swahili])
    cells = tuple(("a", code) for code in ("de", "en", "sw"))
    return Table(name, cells, tuple(("a", str(p)) for p in range(of)), shares.astype(float))


RUNS = [
    Run("growing", 1, table("1", 60, 42, 33)),
    Run("growing", 2, table("2", 60, 60, 45)),
    Run("fixed", 1, table("1", 60, 42, 33)),
    Run("fixed", 2, table("2 fixed", 50, 50, 36)),
]


def test_accuracy_and_index_of_each_run_by_hand() -> None:
    measures, refusals = measure(RUNS, ["sw"], table("base", 40, 40, 30), ["en", "de"], num_resamples=200)
    np.testing.assert_allclose(measures["accuracy"][0], [0.33, 0.45, 0.33, 0.36])
    # X = 1 trained in English alone: 0.1 / 0.5; X = 2 in German, too: 0.5 / 0.5, and at fixed budget 0.2 / 0.25
    np.testing.assert_allclose(measures["mti"][0], [0.2, 1.0, 0.2, 0.8])
    assert refusals == {} and measures["mti"][1].shape == (200, 4)
    laws = laws_of_arms(RUNS, *measures["accuracy"])
    assert laws["growing"].leap.value == pytest.approx(0.12) and laws["fixed"].leap.value == pytest.approx(0.03)
    assert laws["growing"].leap == interval(0.12, np.diff(measures["accuracy"][1][:, :2])[:, 0])


def test_one_run_without_an_index_leaves_it_out() -> None:
    runs = [*RUNS, Run("fixed", 2, table("no gain", 40, 40, 50))]
    measures, refusals = measure(runs, ["sw"], table("base", 40, 40, 30), ["en", "de"], num_resamples=200)
    assert list(measures) == ["accuracy"] and list(refusals) == ["no gain"]
    with pytest.raises(UserError, match="lacks"):
        measure([*RUNS, Run("fixed", 2, table("short", 40, 40, 50, of=99))], ["sw"])


def test_budgets_are_compared_where_runs_differ() -> None:
    f, draws = measure(RUNS, ["sw"], num_resamples=200)[0]["accuracy"]
    found = budget_differences(RUNS, f, draws)
    assert list(found) == [2], "the run of X = 1 is the same"
    assert found[2].value == pytest.approx(0.09)
    assert 0 < found[2].low < 0.09 < found[2].high, "paired by problem"
