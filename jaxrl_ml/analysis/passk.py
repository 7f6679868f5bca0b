"""Pass@k and avg@k from counts of correct samples, with confidence intervals.

In: for each of P problems, how many of its n samples were correct. Out: one unbiased value a problem, and the mean over
problems with its interval. Problems are the units that are drawn anew: samples of one problem are not independent.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from jaxrl_ml.types import UserError

CONFIDENCE = 0.95
NUM_RESAMPLES = 4000


class Estimate(NamedTuple):
    """A mean over problems and its confidence interval, low ≤ value ≤ high."""

    value: float
    low: float
    high: float


def pass_at_k(num_correct: np.ndarray, num_samples: int, k: int) -> np.ndarray:
    """The chance that at least one of k samples is correct, f64 [P], without bias, from num_correct int [P] of num_samples.

    1 − C(n−c, k) / C(n, k) = 1 − Π_{i=n−c+1..n} (1 − k/i), as a product so that nothing overflows. Source: Chen et al. 2021,
    arXiv 2107.03374, eq. 1 and its listing. Raises UserError where k is not in 1..num_samples.
    """
    if not 1 <= k <= num_samples:
        raise UserError(f"pass@{k} cannot be told from {num_samples} sample(s) a prompt; use 1 ≤ k ≤ samples_per_prompt")
    counts = _counts(num_correct, num_samples)
    # Entry c of the running product is the chance of missing with c correct samples; the factor of i = k is 0 for good.
    factors = np.maximum(1 - k / np.arange(num_samples, 0, -1), 0)
    missed = np.concatenate([[1.0], np.cumprod(factors)])
    return 1 - missed[counts]


def avg_at_k(num_correct: np.ndarray, num_samples: int) -> np.ndarray:
    """The share of correct samples of each problem, f64 [P]: c / n, whatever k; avg@1 is accuracy."""
    return _counts(num_correct, num_samples) / num_samples


def _counts(num_correct: np.ndarray, num_samples: int) -> np.ndarray:
    counts = np.asarray(num_correct)
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or np.any((counts < 0) | (counts > num_samples)):
        raise ValueError(f"num_correct must be whole numbers [P] in 0..{num_samples}")
    return counts


def wilson_interval(successes: float, trials: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a proportion p = successes / trials; it does not collapse at 0 or 1.

    (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n). Source: Wilson 1927, J. Amer. Statist. Assoc. 22, p. 209.
    """
    p, z2 = successes / trials, NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    centre = p + z2 / (2 * trials)
    half = np.sqrt(z2 * (p * (1 - p) / trials + z2 / (4 * trials**2)))
    scale = 1 + z2 / trials
    # At p = 0 and p = 1 one end is p but for rounding.
    return float(min(max((centre - half) / scale, 0.0), p)), float(max(min((centre + half) / scale, 1.0), p))


def bootstrap_interval(
    values: np.ndarray, confidence: float = CONFIDENCE, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """The percentile interval of the mean of values f64 [P], problems drawn anew with replacement.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, ch. 13. It is a little narrow for few problems.
    """
    # Values of counts are few and repeat, so a resample of problems is a multinomial draw over the distinct ones.
    distinct, counts = np.unique(np.asarray(values, np.float64), return_counts=True)
    draws = np.random.default_rng(seed).multinomial(counts.sum(), counts / counts.sum(), size=num_resamples)
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws @ distinct / counts.sum(), [tail, 1 - tail])
    return float(low), float(high)


def estimate(values: np.ndarray, confidence: float = CONFIDENCE, seed: int = 0) -> Estimate:
    """The mean over problems of values f64 [P] (from `pass_at_k` or `avg_at_k`) and its interval.

    Wilson's where every value is 0 or 1 (one sample a prompt, pass@n of n samples), for then the mean is a proportion, and the
    bootstrap is empty where all are equal; else the percentile bootstrap. Deterministic for a seed.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"values of shape {values.shape}: give one a problem, of at least one problem")
    mean = float(values.mean())
    if np.all((values == 0) | (values == 1)):
        return Estimate(mean, *wilson_interval(values.sum(), len(values), confidence))
    low, high = bootstrap_interval(values, confidence, seed=seed)
    return Estimate(mean, min(low, mean), max(high, mean))
