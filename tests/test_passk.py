"""Pass@k is the share of subsets that hold a correct sample; intervals cover as often as they say."""

from __future__ import annotations

import itertools
from math import comb

import numpy as np
import pytest

from jaxrl_ml.analysis.passk import avg_at_k, bootstrap_interval, estimate, pass_at_k, wilson_interval
from jaxrl_ml.types import UserError


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(n: int) -> None:
    counts = np.arange(n + 1)
    for k in range(1, n + 1):
        expected = [np.mean([any(i < c for i in subset) for subset in itertools.combinations(range(n), k)]) for c in counts]
        np.testing.assert_allclose(pass_at_k(counts, n, k), expected, atol=1e-12)


def test_pass_at_k_is_exact_where_binomials_overflow() -> None:
    n = 5000
    for c, k in ((1, 1), (3, 64), (2500, 2), (4990, 11), (7, 2500)):
        exact = 1 - comb(n - c, k) / comb(n, k)
        assert abs(pass_at_k(np.array([c]), n, k)[0] - exact) < 1e-12
    assert comb(n, 2500) > 10**308


def test_ends_are_exact() -> None:
    n = 7
    for k in range(1, n + 1):
        values = pass_at_k(np.arange(n + 1), n, k)
        assert values[0] == 0 and values[n] == 1
        assert np.all(np.diff(values) >= 0)
    assert np.array_equal(pass_at_k(np.arange(n + 1), n, n), np.arange(n + 1) > 0)
    np.testing.assert_allclose(pass_at_k(np.arange(n + 1), n, 1), avg_at_k(np.arange(n + 1), n))


def test_estimators_are_unbiased() -> None:
    rng = np.random.default_rng(0)
    n, k, p = 6, 3, 0.2
    counts = rng.binomial(n, p, size=200_000)
    assert abs(pass_at_k(counts, n, k).mean() - (1 - (1 - p) ** k)) < 0.003
    assert abs(avg_at_k(counts, n).mean() - p) < 0.002
    naive = (1 - (1 - counts / n) ** k).mean()  # what the estimator is there to avoid
    assert abs(naive - (1 - (1 - p) ** k)) > 0.03


def test_more_samples_than_there_are_is_a_user_error() -> None:
    for k in (0, 9):
        with pytest.raises(UserError, match=rf"pass@{k} .*8 sample") as caught:
            pass_at_k(np.array([1]), 8, k)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("counts", [[-1], [9], [0.5], [[1]]])
def test_counts_that_cannot_be_are_refused(counts: list) -> None:
    with pytest.raises(ValueError, match=r"in 0\.\.8"):
        pass_at_k(np.array(counts), 8, 2)
    with pytest.raises(ValueError, match=r"in 0\.\.8"):
        avg_at_k(np.array(counts), 8)


def test_no_problems_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        estimate(np.zeros(0))


def test_wilson_against_a_published_value() -> None:
    # Newcombe 1998 (Statistics in Medicine 17, table I): 81 of 263, 95 %: 0.2553 to 0.3662.
    np.testing.assert_allclose(wilson_interval(81, 263), (0.2553, 0.3662), atol=5e-5)
    assert wilson_interval(0, 20) == (0.0, pytest.approx(0.1611, abs=5e-5))
    assert wilson_interval(20, 20) == (pytest.approx(0.8389, abs=5e-5), 1.0)
    low, high = wilson_interval(81, 263, confidence=0.5)
    assert 0.2553 < low < high < 0.3662


def test_wilson_covers_as_often_as_it_says() -> None:
    n = 64
    bounds = np.array([wilson_interval(c, n) for c in range(n + 1)])
    coverage = []
    for p in np.linspace(0.02, 0.98, 97):
        chances = np.array([comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)])
        coverage.append(chances[(bounds[:, 0] <= p) & (p <= bounds[:, 1])].sum())
    assert abs(np.mean(coverage) - 0.95) < 0.01
    assert min(coverage) > 0.85


@pytest.mark.parametrize("k", [1, 2, 4])
def test_bootstrap_covers_as_often_as_it_says(k: int) -> None:
    rng = np.random.default_rng(k)
    num_problems, n, trials = 80, 8, 400
    # Chances of the problems are Beta(a, b), so the mean of 1 − (1 − p)^k is known.
    a, b = 0.6, 1.4
    truth = 1 - np.prod([(b + i) / (a + b + i) for i in range(k)])
    hits = 0
    for trial in range(trials):
        counts = rng.binomial(n, rng.beta(a, b, size=num_problems))
        low, high = bootstrap_interval(pass_at_k(counts, n, k), num_resamples=400, seed=trial)
        hits += low <= truth <= high
    assert 0.91 < hits / trials < 0.98


def test_bootstrap_spread_is_the_standard_error() -> None:
    values = pass_at_k(np.random.default_rng(0).integers(0, 9, size=500), 8, 2)
    low, high = bootstrap_interval(values)
    standard_error = values.std() / np.sqrt(len(values))
    assert abs((high - low) / (2 * 1.96 * standard_error) - 1) < 0.06
    assert (low, high) == bootstrap_interval(values)
    assert (low, high) != bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, confidence=0.5)[0] > low


def test_estimate_chooses_the_interval_that_does_not_collapse() -> None:
    assert estimate(np.zeros(20)) == (0.0, 0.0, pytest.approx(0.1611, abs=5e-5))
    assert estimate(np.ones(20))[1] < 1
    assert estimate(np.array([0.0, 1, 1, 0]))[1:] == wilson_interval(2, 4)
    values = np.array([0.0, 0.25, 0.5, 1.0])
    assert estimate(values, seed=3)[1:] == bootstrap_interval(values, seed=3)
    assert estimate(np.full(5, 0.1)) == (pytest.approx(0.1), pytest.approx(0.1), pytest.approx(0.1))
    for array in (np.full(7, 0.1), values):
        value, low, high = estimate(array)
        assert low <= value <= high
