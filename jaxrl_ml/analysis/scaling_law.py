r"""The Parallel Scaling Law: results of models trained in X parallel languages in; the law, leap and gap with intervals out.

X counts training languages, English included: X = 1 is English alone. From the paper (study 3, arXiv 2510.02272): f(X) = α·X^β
on X ≥ 2, f an accuracy over languages or the transferability index; the *First-Parallel Leap* f(2) − f(1); the *Monolingual
Generalization Gap* α − f(1), what the law, carried to X = 1, promises above what English alone gives. Ours (no match with the
paper's numbers is claimed):

1. Every run is a point: seeds of one X are not averaged before the fit.
2. The law is fitted by least squares on f, the headline, and on ln f against ln X. R² is of what is fitted, f or ln f.
3. Two intervals, since there are two kinds of chance. `drawn`: problems drawn anew, the same for all runs (the caller's
   `draws`), and among the n ≥ 2 runs of an X, n − 1 with replacement, whose mean varies as that of n runs does (Rao and Wu
   1988, J. Amer. Statist. Assoc. 83, p. 231; see `redraw_runs`). A single run of an X is taken as given, so that this interval
   is too narrow where seeds differ. `points`: Student's t from how far the points lie off the law, n − 2 degrees of freedom,
   whatever moved them; exact in the log-log fit where errors are normal there, by linearisation in the other. It leaves out
   what moves all points together, as harder problems would.
4. Alternatives, least squares on f with normal errors of one size: f = a + b·ln X, and f = c − a·X^−b with b > 0, which
   saturates. AICc = n ln(RSS/n) + 2p + 2p(p+1)/(n−p−1), p parameters with the variance (Hurvich and Tsai 1989, Biometrika 76,
   p. 297), where n − p − 1 > 0. Runs are evaluated on the same problems, so they are not independent: read it as a hint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxrl_ml.analysis.passk import CONFIDENCE, Estimate
from jaxrl_ml.analysis.transfer import (
    NUM_RESAMPLES,
    Table,
    accuracies,
    columns_of,
    index,
    interval,
    require_same_problems,
    resampled_accuracies,
)

BETAS = np.linspace(-5, 5, 201)  # where β is looked for
DECAYS = np.geomspace(0.01, 10, 121)  # and the saturating law's b
GOLDEN = (math.sqrt(5) - 1) / 2


class Fit(NamedTuple):
    """α·X^β fitted to batches of points; NaN where that cannot be. The `points` intervals are f64 [2, ...]: low, high."""

    alpha: np.ndarray  # f64 [...]
    beta: np.ndarray  # f64 [...]
    alpha_points: np.ndarray
    beta_points: np.ndarray
    r_squared: np.ndarray  # f64 [...]; NaN where all points are equal, or only two


def fit_power(x: np.ndarray, f: np.ndarray) -> Fit:
    """Least squares on f [..., n] at X = x f64 [n], at least two of them different, with β in −5..5.

    For a given β the best α is Σ f X^β / Σ X^2β, which leaves (Σ f X^β)² / Σ X^2β to be maximised over β: on a grid, and by
    golden sections around its best point. So no start is needed, and none can be bad.
    """
    x, f = np.asarray(x, float), np.asarray(f, float)
    usable = np.isfinite(f).all(-1) & (f != 0).any(-1)
    points = np.where(usable[..., None], f, 1.0).reshape(-1, len(x))
    log_x = np.log(x)

    def explained(beta: np.ndarray) -> np.ndarray:
        powers = np.exp(beta[:, None] * log_x)
        return (points * powers).sum(1) ** 2 / (powers**2).sum(1)

    powers = x ** BETAS[:, None]
    powers /= np.linalg.norm(powers, axis=1, keepdims=True)
    beta = _peak(explained, BETAS[np.argmax((points @ powers.T) ** 2, axis=1)], BETAS[1] - BETAS[0])
    beta = np.clip(beta, BETAS[0], BETAS[-1]).reshape(usable.shape)
    powers = np.exp(beta[..., None] * log_x)
    points = points.reshape(f.shape)
    alpha = (points * powers).sum(-1) / (powers**2).sum(-1)
    errors = points - alpha[..., None] * powers
    slopes = alpha[..., None] * powers * log_x  # ∂f/∂β
    aa, ab, bb = (powers**2).sum(-1), (powers * slopes).sum(-1), (slopes**2).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = _t_over_errors(errors) / (aa * bb - ab**2)
        half_alpha, half_beta = np.sqrt(bb * scale), np.sqrt(aa * scale)
    found = Fit(
        alpha, beta, np.stack([alpha - half_alpha, alpha + half_alpha]), np.stack([beta - half_beta, beta + half_beta]),
        _r_squared(points, errors),
    )  # fmt: skip
    return Fit(*(np.where(usable, values, np.nan) for values in found))


def fit_log_log(x: np.ndarray, f: np.ndarray) -> Fit:
    """Least squares on ln f against ln X, as `fit_power`; NaN where not all f are positive."""
    log_x = np.log(np.asarray(x, float))
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(np.asarray(f, float))
        logs = np.where(np.isfinite(logs).all(-1, keepdims=True), logs, np.nan)
    centred = log_x - log_x.mean()
    spread = (centred**2).sum()
    beta = (logs * centred).sum(-1) / spread
    start = logs.mean(-1) - beta * log_x.mean()
    errors = logs - start[..., None] - beta[..., None] * log_x
    scale = _t_over_errors(errors)
    half_beta, half_start = np.sqrt(scale / spread), np.sqrt(scale * (1 / len(log_x) + log_x.mean() ** 2 / spread))
    return Fit(
        np.exp(start), beta, np.exp(np.stack([start - half_start, start + half_start])),
        np.stack([beta - half_beta, beta + half_beta]), _r_squared(logs, errors),
    )  # fmt: skip


def _peak(score: Callable[[np.ndarray], np.ndarray], centre: np.ndarray, reach: float) -> np.ndarray:
    """Where score(points f64 [N]) f64 [N] is highest within `reach` of each centre, by golden sections."""
    low, high = centre - reach, centre + reach
    for _ in range(40):
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        better = score(left) >= score(right)
        low, high = np.where(better, low, left), np.where(better, right, high)
    return (low + high) / 2


def _t_over_errors(errors: np.ndarray) -> np.ndarray:
    """t² s² of the errors f64 [..., n] of a fit of two parameters; NaN where no degree of freedom is left."""
    free = errors.shape[-1] - 2
    if free < 1:
        return np.full(errors.shape[:-1], np.nan)
    from scipy.special import stdtrit

    return stdtrit(free, (1 + CONFIDENCE) / 2) ** 2 * (errors**2).sum(-1) / free


def _r_squared(values: np.ndarray, errors: np.ndarray) -> np.ndarray:
    total = ((values - values.mean(-1, keepdims=True)) ** 2).sum(-1)
    # Where points differ by rounding alone there is nothing to explain, and through two points a law always passes.
    varies = (total > 1e-24 * (values**2).sum(-1)) & (values.shape[-1] > 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(varies, 1 - (errors**2).sum(-1) / total, np.nan)


class Alternative(NamedTuple):
    """A form fitted to the same points; `aicc` is None where they are too few for it, and `note` says why."""

    form: str
    parameters: Mapping[str, float]  # empty where there are fewer different X than parameters
    aicc: float | None
    note: str


def alternatives(x: np.ndarray, f: np.ndarray) -> tuple[Alternative, ...]:
    """The power law, the log-linear and the saturating form on points f64 [n] at two different X or more."""
    x, f = np.asarray(x, float), np.asarray(f, float)

    def linear(column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        design = np.stack([np.ones_like(x), column], 1)
        found = np.linalg.lstsq(design, f, rcond=None)[0]
        return found, f - design @ found

    def score(decays: np.ndarray) -> np.ndarray:
        return np.array([-(linear(x**-decay)[1] ** 2).sum() for decay in decays])

    power = fit_power(x, f)
    (start, slope), off_line = linear(np.log(x))
    best = np.log(DECAYS[[np.argmax(score(DECAYS))]])
    decay = np.exp(_peak(lambda logs: score(np.exp(logs)), best, np.log(DECAYS[1] / DECAYS[0])))[0]
    (limit, drop), off_limit = linear(x**-decay)
    found = (
        ("α·X^β", {"α": power.alpha, "β": power.beta}, f - power.alpha * x**power.beta),
        ("a + b·ln X", {"a": start, "b": slope}, off_line),
        ("c − a·X^−b", {"c": limit, "a": -drop, "b": decay}, off_limit),
    )
    return tuple(_judge(x, f, form, {k: float(v) for k, v in values.items()}, errors) for form, values, errors in found)


def _judge(x: np.ndarray, f: np.ndarray, form: str, parameters: Mapping[str, float], errors: np.ndarray) -> Alternative:
    n, p, distinct, rss = len(x), len(parameters) + 1, len(np.unique(x)), (errors**2).sum()
    if distinct < len(parameters):
        return Alternative(form, {}, None, f"{len(parameters)} parameters, but {distinct} different X")
    if n - p - 1 <= 0:
        return Alternative(form, parameters, None, f"n − p − 1 = {n} − {p} − 1 is not above 0: too few points")
    if distinct == len(parameters):
        return Alternative(form, parameters, None, f"{distinct} different X: it passes through every mean")
    if not rss > 1e-14 * (f**2).sum():  # β is found to 1e-8
        return Alternative(form, parameters, None, "no errors are left to judge by")
    return Alternative(form, parameters, float(n * np.log(rss / n) + 2 * p + 2 * p * (p + 1) / (n - p - 1)), "")


class Parameters(NamedTuple):
    """The law by one method. Of the two kinds of interval, `drawn` and `points`, the module's docstring tells."""

    method: str
    alpha_drawn: Estimate
    beta_drawn: Estimate
    alpha_points: Estimate
    beta_points: Estimate
    r_squared: float


@dataclass(frozen=True)
class Law:
    """What the runs of one arm say; parts that they are too few for are empty or None, and `notes` say so."""

    runs: Mapping[int, tuple[float, ...]]  # {X: f of each run}
    means: Mapping[int, Estimate]  # {X: mean over its runs}, `drawn`
    fits: tuple[Parameters, ...]  # non-linear, log-log
    alternatives: tuple[Alternative, ...]
    leap: Estimate | None  # f(2) − f(1)
    gap: Estimate | None  # α − f(1), by the non-linear fit
    curve: Mapping[str, tuple[float, ...]]  # x, value, low, high of the non-linear fit, `drawn`
    notes: tuple[str, ...]


def law(x: Sequence[int], f: np.ndarray, draws: np.ndarray, seed: int = 0) -> Law:
    """The law through n runs: x [n] their numbers of languages, f64 [n] their results, draws f64 [R, n] of problems drawn anew.

    `seed` is of the draw of runs. Raises ValueError for shapes that do not match, X below 1 and results that are not finite.
    """
    x, f, draws = np.asarray(x, int), np.asarray(f, float), np.asarray(draws, float)
    if not len(x) or f.shape != x.shape or draws.shape[1:] != x.shape or (x < 1).any() or not np.isfinite(f).all():
        raise ValueError(f"x {x.shape}, f {f.shape} and draws {draws.shape} must be [n], [n], [R, n], with X ≥ 1 and finite f")
    draws = redraw_runs(x, f, draws, seed)
    levels = [int(level) for level in np.unique(x)]
    mean = {level: f[x == level].mean() for level in levels}
    drawn = {level: draws[:, x == level].mean(1) for level in levels}
    single = [level for level in levels if (x == level).sum() == 1]
    notes = [f"X = {_list(single)}: one run each, whose seed is taken as given"] if single else []
    fits, others, curve, gap, fitted = (), (), {}, None, [level for level in levels if level >= 2]
    if len(fitted) < 2:
        notes.append(f"no law: it takes two different X ≥ 2, and there is {_list(fitted) or 'none'}")
    elif not f[x >= 2].any():
        notes.append("no law: f is 0 at every X ≥ 2")
    else:
        part = x >= 2
        fits, alphas, betas = _fits(x[part], f[part], draws[:, part], notes)
        others = alternatives(x[part], f[part])
        alpha, beta = fits[0].alpha_drawn.value, fits[0].beta_drawn.value
        curve = _curve(alpha, beta, alphas, betas, np.linspace(2, fitted[-1], 60))
        if 1 in mean:
            gap = interval(alpha - mean[1], alphas - drawn[1])
    leap = interval(mean[2] - mean[1], drawn[2] - drawn[1]) if {1, 2} <= mean.keys() else None
    if leap is None:
        notes.append("no leap: it takes X = 1 and X = 2")
    return Law(
        runs={level: tuple(map(float, f[x == level])) for level in levels},
        means=_means(x, f, draws),
        fits=fits, alternatives=others, leap=leap, gap=gap, curve=curve, notes=tuple(notes),
    )  # fmt: skip


def _means(x: np.ndarray, f: np.ndarray, draws: np.ndarray) -> dict[int, Estimate]:
    return {int(level): interval(f[x == level].mean(), draws[:, x == level].mean(1)) for level in np.unique(x)}


def _fits(
    x: np.ndarray, f: np.ndarray, draws: np.ndarray, notes: list[str]
) -> tuple[tuple[Parameters, ...], np.ndarray, np.ndarray]:
    """The fits by both methods, and α and β f64 [R] of the non-linear one in the draws."""
    if len(x) == 2:
        notes.append("two points: the law passes through both, and only problems drawn anew give an interval")
    found, non_linear = [], fit_power(x, draws)
    for method, fit in (("non-linear", fit_power), ("log-log", fit_log_log)):
        if method == "log-log" and not (f > 0).all():
            notes.append("no log-log fit: f is not positive everywhere")
            continue
        best, drawn = fit(x, f), non_linear if fit is fit_power else fit(x, draws)
        found.append(
            Parameters(
                method,
                interval(best.alpha, drawn.alpha),
                interval(best.beta, drawn.beta),
                Estimate(float(best.alpha), *map(float, best.alpha_points)),
                Estimate(float(best.beta), *map(float, best.beta_points)),
                float(best.r_squared),
            )
        )
    if abs(found[0].beta_drawn.value) >= BETAS[-1]:
        notes.append(f"β is looked for in ±{BETAS[-1]:g} and lies at the end of it: this is no power law")
    return tuple(found), non_linear.alpha, non_linear.beta


def _curve(alpha: float, beta: float, alphas: np.ndarray, betas: np.ndarray, at: np.ndarray) -> dict[str, tuple[float, ...]]:
    band = [interval(alpha * level**beta, alphas * level**betas) for level in at]
    columns = zip(*band, strict=True)
    return {"x": tuple(map(float, at)), **dict(zip(("value", "low", "high"), columns, strict=True))}


def redraw_runs(x: np.ndarray, f: np.ndarray, draws: np.ndarray, seed: int = 0) -> np.ndarray:
    """Draws f64 [R, n] of problems in which runs are drawn, too: n − 1 of the n of an X, whose mean all of them move with.

    Runs of an X differ by their seeds and by what each makes of the problems drawn, and the latter is in `draws` already. So
    their spread is shrunk to what it has beyond that, one share for all X, by the method of moments.
    """
    rng, out = np.random.default_rng(seed), np.array(draws, float)
    levels = [runs for runs in (np.flatnonzero(x == level) for level in np.unique(x)) if len(runs) > 1]
    known = draws[np.isfinite(draws).all(1)]
    spread = drawn = 0.0  # sums of squares of runs about the mean of their X: as found, as problems alone make them
    for runs in levels:
        spread += ((f[runs] - f[runs].mean()) ** 2).sum()
        drawn += (known[:, runs] - known[:, runs].mean(1, keepdims=True)).var(0).sum() if len(known) else 0.0
    share = math.sqrt(1 - drawn / spread) if spread > drawn else 0.0
    for runs in levels:
        counts = rng.multinomial(len(runs) - 1, np.full(len(runs), 1 / len(runs)), size=len(draws))
        off = f[runs] - f[runs].mean()
        moved = draws[:, runs].mean(1) + share * (counts @ off) / (len(runs) - 1)
        out[:, runs] = moved[:, None] + off
    return out


class Run(NamedTuple):
    """One training run and how it did."""

    arm: str  # growing or fixed: how its budget goes with X
    x: int  # number of training languages
    table: Table


Measures = Mapping[str, tuple[np.ndarray, np.ndarray]]


def measure(
    runs: Sequence[Run],
    test: Sequence[str],
    base: Table | None = None,
    train: Sequence[str] = (),
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> tuple[Measures, dict[str, str]]:
    """{accuracy, mti: f f64 [n] of the runs, its draws f64 [R, n]}, and why a run has no index, by its source.

    Accuracy is the mean over benchmarks and test languages. The index needs the base; a run of X trained in the first X of
    `train`. It is left out for all where one run has none, as laws of other runs would be compared. Raises UserError where
    problems differ.
    """
    tables = [run.table for run in runs] + ([base] if base is not None else [])
    require_same_problems(tables)
    unseen, n = columns_of(tables[0], test), len(runs)
    values, draws = accuracies(tables), resampled_accuracies(tables, num_resamples, seed)
    measures = {"accuracy": (values[:n, unseen].mean(1), draws[:, :n, unseen].mean(2))}
    if base is None:
        return measures, {}
    found = []
    for i, run in enumerate(runs):
        trained = columns_of(tables[0], train[: run.x])
        found.append(index(base.cells, (values[n], draws[:, n]), (values[i], draws[:, i]), trained, unseen))
    refusals = {run.table.source: one.refusal for run, one in zip(runs, found, strict=True) if one.refusal}
    if not refusals:
        measures["mti"] = (np.array([one.value for one in found]), np.stack([one.draws for one in found], axis=1))
    return measures, refusals


def laws_of_arms(runs: Sequence[Run], f: np.ndarray, draws: np.ndarray, seed: int = 0) -> dict[str, Law]:
    """The law of each arm, from f f64 [n] of all runs and draws f64 [R, n]."""
    return {arm: law([runs[i].x for i in mine], f[mine], draws[:, mine], seed) for arm, mine in _arms(runs).items()}


def _arms(runs: Sequence[Run]) -> dict[str, list[int]]:
    """The places of each arm's runs."""
    return {arm: [i for i, run in enumerate(runs) if run.arm == arm] for arm in dict.fromkeys(run.arm for run in runs)}


def language_curves(
    runs: Sequence[Run], num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> dict[str, dict[str, dict[int, Estimate]]]:
    """{language: {arm: {X: accuracy, the mean over benchmarks and runs}}}, with `drawn` intervals, for all of the results."""
    tables, curves = [run.table for run in runs], {}
    values, draws = accuracies(tables), resampled_accuracies(tables, num_resamples, seed)
    for language in sorted({language for _, language in tables[0].cells}):
        columns = columns_of(tables[0], [language])
        f, drawn = values[:, columns].mean(1), draws[:, :, columns].mean(2)
        curves[language] = {}
        for arm, mine in _arms(runs).items():
            x = np.array([runs[i].x for i in mine])
            curves[language][arm] = _means(x, f[mine], redraw_runs(x, f[mine], drawn[:, mine], seed))
    return curves


def budget_differences(runs: Sequence[Run], f: np.ndarray, draws: np.ndarray, seed: int = 0) -> dict[int, Estimate]:
    """f at growing less f at fixed budget for every X of both arms, but where a run is in both, as that of X = 1 may be."""
    found = {}
    for x in sorted({run.x for run in runs}):
        growing, fixed = ([i for i, run in enumerate(runs) if run[:2] == (arm, x)] for arm in ("growing", "fixed"))
        shared = {runs[i].table.source for i in growing} & {runs[i].table.source for i in fixed}
        if not growing or not fixed or shared:
            continue
        both = growing + fixed
        drawn = redraw_runs(np.repeat([0, 1], [len(growing), len(fixed)]), f[both], draws[:, both], seed)
        value = f[growing].mean() - f[fixed].mean()
        found[x] = interval(value, drawn[:, : len(growing)].mean(1) - drawn[:, len(growing) :].mean(1))
    return found


def _list(levels: Sequence[int]) -> str:
    return ", ".join(map(str, levels))
