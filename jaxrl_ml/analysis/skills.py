"""Which skills a model shows on Countdown, step by step: evaluation records in; success, coverage, precision and order out.

Of a record, `sample`, `correct`, `completion` and the problem's `fields` are read: `numbers`, `target` and, where there is
one, `pattern`, the problem's *own*: the one that it was made from. Samples of a problem are adjacent, the first is sample 0.

An *attempt* at a pattern is an expression with it, anywhere in a completion, over exactly the problem's numbers (`extract`).
Expressions of one completion that have the same pattern and the same value are one attempt: what is written twice, commuted or
re-associated counts once. It is *right* where its value is the target, and a division by zero is wrong.

For a set S of patterns (a pattern, a shape, a balance, a balance at equal depth, or all patterns of n numbers):

    success    right samples / samples, on the problems whose own pattern is in S; a sample is right where the reward says so
    pass@k     mean over these problems of the unbiased estimate of Chen et al. (`passk.pass_at_k`)
    coverage   share of these problems for which some sample attempts the problem's own pattern: discovery
    attempts   attempts at patterns in S, whatever the problem's own
    precision  right attempts / attempts: mastery, in which the choice of the pattern is part of what is mastered
    produced   how many of the problems' own patterns in S are attempted at all, on any problem

For all of n, problems without an own pattern count as well, except in coverage. Semantically equal patterns stay apart.

Intervals are Wilson's, (p + z²/2m ± z √(p(1−p)/m + z²/4m²)) / (1 + z²/m) with z = 1.96, as of m = (Σ t)² / Σ t² trials where
t of the trials belong to each problem: as if all that is tried at a problem went the same way (Kish 1965, Survey Sampling, an
intraclass correlation of 1). So m is the number of problems for success, pass@k and coverage, and at most that of the problems
with attempts for precision. With one trial a problem this is Wilson's interval as it is; with more it is too wide where they
differ, while counting each of them would be too narrow, and a bootstrap over the few problems of a pattern collapses.

Source: arXiv 2512.01775, which names coverage and precision but publishes no formulas: these are ours. Coverage grows with the
number of samples, and precision depends on which problems are asked: compare what was sampled equally often on the same ones.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from string import ascii_uppercase
from typing import Any, NamedTuple

import numpy as np

from jaxrl_ml.analysis.passk import Estimate, pass_at_k, wilson_interval
from jaxrl_ml.records import read_records, record_files
from jaxrl_ml.tasks.countdown.expressions import parse
from jaxrl_ml.tasks.countdown.extract import extract
from jaxrl_ml.tasks.countdown.patterns import Skill

THRESHOLD, MIN_ATTEMPTS = 0.5, 8
"""What mastery is: at least this precision in at least so many attempts at one step."""
_RECORDS_READ = 4096  # at a time
_LETTERS_TO_NUMBERS = str.maketrans(ascii_uppercase, "1" * 26)
_UNKNOWN = Estimate(math.nan, math.nan, math.nan)

LEVELS: Mapping[str, Callable[[Skill], str]] = {
    "n": lambda skill: str(_size(skill.pattern)),
    "balance": lambda skill: skill.balance,
    "depth": lambda skill: f"{skill.balance}, depth {skill.depth}",
    "shape": lambda skill: skill.shape,
    "pattern": lambda skill: skill.pattern,
}


class Seen(NamedTuple):
    """What an evaluation shows of P problems, in A attempts."""

    skills: tuple[Skill, ...]  # of all patterns in what follows, which are places in it
    counts: np.ndarray  # int [P]; how many numbers
    own: np.ndarray  # int [P]; the problem's own pattern, −1 for none
    num_samples: int  # of a problem
    num_correct: np.ndarray  # int [P]
    problem: np.ndarray  # int [A]
    pattern: np.ndarray  # int [A]
    right: np.ndarray  # bool [A]


class Row(NamedTuple):
    """The metrics of one set of patterns of n numbers; a share of nothing is NaN."""

    level: str  # of LEVELS
    n: int
    name: str  # as the level calls it
    patterns: int  # different own patterns of its problems
    produced: int
    problems: int
    success: Estimate
    pass_at: Mapping[int, Estimate]  # for k = 2, 4, … up to the samples of a problem
    coverage: Estimate
    attempts: int
    right: int
    precision: Estimate


class First(NamedTuple):
    """The steps at which a pattern is first produced and first mastered; None for never."""

    produced: int | None
    mastered: int | None


class Order(NamedTuple):
    """Whether base patterns come before those that they are part of (`order_test`)."""

    pairs: int
    share: float  # of pairs in which the base comes first, ties counted half; NaN without pairs
    p_share: float
    correlation: float  # of the bases' and the dependents' ranks, each among patterns of its size; NaN without pairs
    p_correlation: float


History = Mapping[int, Sequence[Row]]  # by step


def history(run_dir: Path) -> dict[str, dict[int, tuple[Row, ...]]]:
    """The metrics of a run's recorded evaluations, by evaluation and step; those of other tasks than Countdown are left out.

    Raises UserError where a file cannot be read.
    """
    found: dict[str, dict[int, tuple[Row, ...]]] = {}
    for name, files in record_files(run_dir).items():
        first = next(read_records(next(iter(files.values()))), None)
        if first is not None and _is_countdown(first["fields"]):
            found[name] = {step: skill_rows(observe(read_records(path))) for step, path in files.items()}
    return found


def _is_countdown(fields: Mapping[str, Any]) -> bool:
    numbers = fields.get("numbers")
    return isinstance(numbers, list) and all(isinstance(number, int) for number in [*numbers, fields.get("target")])


def observe(records: Iterable[Mapping[str, Any]]) -> Seen:
    """Extracts all attempts from records, which may be a stream: of the completions nothing is kept.

    Raises UserError for numbers that `extract` refuses and for an own pattern that is none, ValueError where problems have
    different numbers of samples.
    """
    places: dict[str, int] = {}
    skills: list[Skill] = []

    def place_of(skill: Skill) -> int:
        if skill.pattern not in places:
            places[skill.pattern] = len(skills)
            skills.append(skill)
        return places[skill.pattern]

    problems: list[list[int]] = []  # count of numbers, own pattern, samples, right samples
    attempts: list[tuple[int, int, bool]] = []
    records = iter(records)
    while batch := list(islice(records, _RECORDS_READ)):
        found = extract([record["completion"] for record in batch], [record["fields"]["numbers"] for record in batch])
        for record, expressions in zip(batch, found, strict=True):
            fields = record["fields"]
            if record["sample"] == 0:
                own = fields.get("pattern")
                problems.append([len(fields["numbers"]), -1 if own is None else place_of(read_skill(own)), 0, 0])
            problems[-1][2] += 1
            problems[-1][3] += bool(record["correct"])
            values = dict.fromkeys((place_of(hit.expression.skill), hit.expression.value) for hit in expressions)
            attempts += [(len(problems) - 1, pattern, value == fields["target"]) for pattern, value in values]
    counts, own, num_samples, num_correct = np.array(problems, int).reshape(-1, 4).T
    if len(set(num_samples.tolist())) > 1:
        raise ValueError("problems have different numbers of samples")
    problem, pattern, right = np.array(attempts, int).reshape(-1, 3).T
    return Seen(tuple(skills), counts, own, int(num_samples.max(initial=0)), num_correct, problem, pattern, right.astype(bool))


@functools.lru_cache(maxsize=1 << 13)
def read_skill(pattern: str) -> Skill:
    """The skill of a pattern, canonical or not. Raises UserError where the text is none."""
    return parse(pattern.translate(_LETTERS_TO_NUMBERS)).skill


def _size(pattern: str) -> int:
    return sum(map(str.isalpha, pattern))


def skill_rows(seen: Seen) -> tuple[Row, ...]:
    """The metrics of every set of patterns that has a problem or an attempt, by level, n and name."""
    covered = np.zeros(len(seen.counts), bool)
    covered[seen.problem[seen.pattern == seen.own[seen.problem]]] = True
    rows = []
    for level, label in LEVELS.items():
        of_pattern = [(_size(skill.pattern), label(skill)) for skill in seen.skills]
        of_problem = [of_pattern[own] if own >= 0 else None for own in seen.own]
        if level == "n":
            of_problem = [(count, str(count)) for count in seen.counts.tolist()]
        keys = sorted({*of_pattern, *of_problem} - {None})
        number = {key: i for i, key in enumerate(keys)}
        problems = _members(np.array([number.get(key, -1) for key in of_problem], int), len(keys))
        attempts = _members(np.array([number[key] for key in of_pattern], int)[seen.pattern], len(keys))
        rows += [_row(seen, covered, level, *group) for group in zip(keys, problems, attempts, strict=True)]
    return tuple(rows)


def _members(numbers: np.ndarray, count: int) -> list[np.ndarray]:
    """For each of `count` groups, the places in the group numbers int [N] where it stands."""
    order = np.argsort(numbers, kind="stable")
    bounds = np.searchsorted(numbers[order], np.arange(count + 1))
    return [order[low:high] for low, high in zip(bounds[:-1], bounds[1:], strict=True)]


def _row(seen: Seen, covered: np.ndarray, level: str, key: tuple[int, str], problems: np.ndarray, attempts: np.ndarray) -> Row:
    """The metrics of a set of patterns: `problems` are its own, `attempts` those at its patterns."""
    G, num_correct = seen.num_samples, seen.num_correct[problems]
    own = problems[seen.own[problems] >= 0]
    patterns = np.unique(seen.own[own])
    tried = np.unique(seen.problem[attempts], return_counts=True)[1]
    return Row(
        level=level,
        n=key[0],
        name=key[1],
        patterns=len(patterns),
        produced=int(np.isin(patterns, seen.pattern[attempts]).sum()),
        problems=len(problems),
        success=_share(num_correct.sum(), np.full(len(problems), G)),
        pass_at={2**i: _share(pass_at_k(num_correct, G, 2**i).sum(), np.ones(len(problems))) for i in range(1, G.bit_length())},
        coverage=_share(covered[own].sum(), np.ones(len(own))),
        attempts=len(attempts),
        right=int(seen.right[attempts].sum()),
        precision=_share(seen.right[attempts].sum(), tried),
    )


def _share(successes: float, trials: np.ndarray) -> Estimate:
    """The share of successes in trials [problems], with Wilson's interval for clusters that go one way (see above)."""
    total = trials.sum()
    if not total:
        return _UNKNOWN
    share, effective = min(float(successes / total), 1.0), float(total**2 / (trials**2).sum())
    return Estimate(share, *wilson_interval(share * effective, effective))


def first_steps(
    histories: Iterable[History], threshold: float = THRESHOLD, min_attempts: int = MIN_ATTEMPTS
) -> dict[str, First]:
    """When the own patterns of the problems of evaluations are first produced and first mastered, in the order of n and name.

    A pattern is produced at a step with an attempt at it, and mastered at one with a precision of at least `threshold` in at
    least `min_attempts` attempts; it may be lost again later. Where several evaluations have a pattern, the earliest counts.
    """
    produced: dict[str, list[int]] = {}
    mastered: dict[str, list[int]] = {}
    for step, row in _pattern_rows(histories):
        produced.setdefault(row.name, []).extend([step] * (row.attempts > 0))
        masters = row.attempts >= min_attempts and row.precision.value >= threshold
        mastered.setdefault(row.name, []).extend([step] * masters)
    names = sorted(produced, key=lambda name: (_size(name), name))
    return {name: First(min(produced[name], default=None), min(mastered[name], default=None)) for name in names}


def _pattern_rows(histories: Iterable[History]) -> Iterator[tuple[int, Row]]:
    for of_one in histories:
        for step, rows in of_one.items():
            yield from ((step, row) for row in rows if row.level == "pattern" and row.problems)


def order_test(steps: Mapping[str, int | None], num_permutations: int = 9999, seed: int = 0) -> Order:
    """Whether base patterns come before their dependents, from the steps at which patterns come; both statistics are of ranks.

    Pairs are all (base, dependent) among the patterns where the base is a sub-skill of the dependent (`Skill.sub_skills`);
    never (None) is later than any step and ties with never. `share` is that of the pairs in which the base is the earlier one,
    ties counted half. `correlation` is Spearman's, over the pairs, of the two steps' mid-ranks among the patterns of the same
    count of numbers: whether early bases have early dependents, which can be told also where all small patterns come before
    all large ones. The null hypothesis of both is that, among patterns of the same count, which step belongs to which pattern
    is chance: steps are shuffled within each count, so that small patterns coming before large ones is no evidence. p is
    (1 + shuffles with at least the value) / (1 + shuffles), one-sided (Phipson and Smyth 2010, Stat. Appl. Genet. Mol. Biol.
    9:39). Without pairs it is 1.
    """
    names = list(steps)
    place = {name: i for i, name in enumerate(names)}
    pairs = np.array([(place[b], i) for i, name in enumerate(names) for b in read_skill(name).sub_skills if b in place], int)
    if not len(pairs):
        return Order(0, math.nan, 1.0, math.nan, 1.0)
    times = np.array([math.inf if steps[name] is None else steps[name] for name in names])
    sizes = np.array([_size(name) for name in names])
    strata = [np.flatnonzero(sizes == size) for size in np.unique(sizes)]
    ranks = np.empty(len(names))
    for stratum in strata:
        ranks[stratum] = _mid_ranks(times[stratum])

    def statistics(order: np.ndarray) -> np.ndarray:
        return np.array([_share_before(*times[order][pairs].T), _correlation(*ranks[order][pairs].T)])

    rng = np.random.default_rng(seed)
    order = np.arange(len(names))
    observed, at_least = statistics(order), np.zeros(2, int)
    for _ in range(num_permutations):
        for stratum in strata:
            order[stratum] = rng.permutation(stratum)
        at_least += statistics(order) >= observed - 1e-12  # equal but for rounding is equal
    p_share, p_correlation = ((1 + at_least) / (1 + num_permutations)).tolist()
    share, correlation = observed.tolist()
    return Order(len(pairs), share, p_share, correlation, p_correlation)


def _share_before(first: np.ndarray, second: np.ndarray) -> float:
    return float((first < second).mean() + (first == second).mean() / 2)


def _mid_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks of values [N] from 0; those that tie have their mean."""
    ordered = np.sort(values)
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right") - 1) / 2


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's correlation; 0 where one side is constant."""
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt((x @ x) * (y @ y))
    return float(x @ y) / scale if scale else 0.0
