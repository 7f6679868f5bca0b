"""Cross-lingual transfer: records of evaluations of a base and a trained model in; gains by language and their ratio out.

Records are those of `evaluate`, on tasks called `BENCHMARK/LANGUAGE` whose ids are `LANGUAGE-PROBLEM` (`tasks/maths.py`), so
that the versions of a problem share PROBLEM. A *cell* is a benchmark in a language. The index (study 3, arXiv 2510.02272):

    g(b, l) = (Acc_model − Acc_base) / Acc_base,    ΔR_S = mean of g over benchmarks b and languages l in S,
    MTI = ΔR_unseen / ΔR_train        (Multilingual Transferability Index)

The paper's words define it; the formula is our reading of them, and no match with the paper's numbers is claimed. Ours, too:

1. Problems are drawn anew, within their benchmark, all languages and both models of one together: they share its difficulty,
   so a difference has a narrower interval than either of its sides. Intervals are percentiles of NUM_RESAMPLES such draws, but
   for accuracies, which have those of `passk`. They take the trained weights as given: other seeds of a training would differ.
2. The index is refused, with the reason, where a denominator is not distinguishable from 0, that is, where its own interval
   reaches 0: the base's accuracy in a cell (three right answers or fewer among many problems), or ΔR_train, which has to be
   positive, for a ratio of losses reads like one of gains. Plain differences of accuracies, which divide by nothing, always
   stand beside it.
3. A draw in which a denominator is 0 or negative nevertheless counts as −∞ for the lower end and as +∞ for the upper one.

An interval of width 0 says that nothing varied among the problems at hand, not that nothing can.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxrl_ml.analysis.passk import CONFIDENCE, Estimate, estimate
from jaxrl_ml.types import UserError

NUM_RESAMPLES = 2000
BLOCK = 250  # resamples at a time: memory is BLOCK × problems

Records = Sequence[Mapping[str, Any]]


class Table(NamedTuple):
    """How a model did, problem by problem: P problems in rows, C cells in columns."""

    source: str  # what to call it in an error: the names of its files
    cells: tuple[tuple[str, str], ...]  # (benchmark, language) of each column, sorted
    problems: tuple[tuple[str, str], ...]  # (benchmark, problem) of each row, sorted
    shares: np.ndarray  # f64 [P, C]; of right samples, NaN where the cell does not have the problem


def tabulate(files: Mapping[str, Records]) -> Table:
    """One table of the records of one model, by the names of their files.

    Files may hold different benchmarks, or the same problems: several evaluations, or seeds of a training, that are averaged.
    Raises UserError where a record is not as this module's docstring has it, and where some problems of a benchmark are in more
    files than others.
    """
    source = ", ".join(files)
    found: dict[tuple[str, str, str], list[float]] = {}
    for name, records in files.items():
        correct: dict[tuple[str, str, str], list[bool]] = {}
        for number, record in enumerate(records):
            correct.setdefault(_place(name, number, record), []).append(record["correct"])
        for place, values in correct.items():
            found.setdefault(place, []).append(float(np.mean(values)))
    if not found:
        raise UserError(f"{source or 'no file'}: no records; give results of python -m jaxrl_ml.evaluate")
    most: dict[str, int] = {}
    for (benchmark, *_), shares in found.items():
        most[benchmark] = max(len(shares), most.get(benchmark, 0))
    for (benchmark, language, problem), shares in found.items():
        if len(shares) < most[benchmark]:
            raise UserError(
                f"{source}: {f'{language}-{problem}'!r} of {benchmark} is in {len(shares)} of the files, others in "
                f"{most[benchmark]}; give files of the same problems"
            )
    cells = sorted({(benchmark, language) for benchmark, language, _ in found})
    problems = sorted({(benchmark, problem) for benchmark, _, problem in found})
    column, row = ({key: i for i, key in enumerate(keys)} for keys in (cells, problems))
    shares = np.full((len(problems), len(cells)), np.nan)
    for (benchmark, language, problem), values in found.items():
        shares[row[benchmark, problem], column[benchmark, language]] = np.mean(values)
    return Table(source, tuple(cells), tuple(problems), shares)


def _place(name: str, number: int, record: Mapping[str, Any]) -> tuple[str, str, str]:
    """Benchmark, language and problem of a record."""
    task, id_, correct = (record.get(key) for key in ("task", "id", "correct"))
    if not (isinstance(task, str) and isinstance(id_, str) and isinstance(correct, bool)):
        raise UserError(f"{name}: record {number} lacks a task, id or correct; give a result of python -m jaxrl_ml.evaluate")
    benchmark, slash, language = task.rpartition("/")
    if not (slash and benchmark and language):
        raise UserError(f"{name}: task {task!r} names no language; evaluate tasks called BENCHMARK/LANGUAGE")
    if not id_.startswith(f"{language}-"):
        raise UserError(f"{name}: id {id_!r} of {task} names no version of a problem; ids must be {language}-PROBLEM")
    return benchmark, language, id_.removeprefix(f"{language}-")


def require_same_problems(tables: Sequence[Table]) -> None:
    """Raises UserError, naming the first difference, unless all tables have the same problems in the same languages."""

    def cells_and_problems(table: Table) -> set[tuple[str, str, str]]:
        rows, columns = np.nonzero(np.isfinite(table.shares))
        return {(*table.cells[c], table.problems[p][1]) for p, c in zip(rows.tolist(), columns.tolist(), strict=True)}

    first = cells_and_problems(tables[0])
    for table in tables[1:]:
        other = cells_and_problems(table)
        for missing, lacking, having in ((first - other, table, tables[0]), (other - first, tables[0], table)):
            if missing:
                benchmark, language, problem = min(missing)
                raise UserError(
                    f"{lacking.source} lacks {len(missing)} problem(s) of {having.source}, such as "
                    f"{f'{language}-{problem}'!r} of {benchmark}; evaluate both on the same problems"
                )


def columns_of(table: Table, languages: Sequence[str]) -> np.ndarray:
    """Which cells are of these languages, bool [C]. Raises UserError for a language that the table does not have."""
    known = sorted({language for _, language in table.cells})
    for language in languages:
        if language not in known:
            raise UserError(f"{table.source}: no results in language {language!r}, only in {', '.join(known)}")
    return np.array([language in languages for _, language in table.cells], bool)


def accuracies(tables: Sequence[Table]) -> np.ndarray:
    """The accuracy of each of M models in each cell, f64 [M, C]."""
    return np.nanmean(np.stack([table.shares for table in tables]), axis=1)


def resampled_accuracies(tables: Sequence[Table], num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> np.ndarray:
    """The same, f64 [R, M, C], in each of R draws of problems, which are the same for all models and languages.

    NaN where a draw has no problem of the cell. The tables must have the same problems.
    """
    shares = np.stack([table.shares for table in tables], axis=1)  # [P, M, C]
    P, M, C = shares.shape
    there = np.isfinite(shares[:, 0]).astype(float)
    right = np.nan_to_num(shares).reshape(P, M * C)
    names = np.array([benchmark for benchmark, _ in tables[0].problems])
    benchmarks = [np.flatnonzero(names == name) for name in np.unique(names)]
    rng, found = np.random.default_rng(seed), []
    for start in range(0, num_resamples, BLOCK):
        counts = np.empty((min(BLOCK, num_resamples - start), P))
        for rows in benchmarks:
            counts[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=len(counts))
        with np.errstate(invalid="ignore"):
            found.append((counts @ right).reshape(-1, M, C) / (counts @ there)[:, None])
    return np.concatenate(found)


def interval(value: float, draws: np.ndarray, confidence: float = CONFIDENCE) -> Estimate:
    """A value and the percentiles of its draws f64 [R]; one that is NaN counts as −∞ below and as +∞ above."""
    tail, unknown = (1 - confidence) / 2, np.isnan(draws)
    low = np.sort(np.where(unknown, -np.inf, draws))[math.floor(tail * (len(draws) - 1))]
    high = np.sort(np.where(unknown, np.inf, draws))[math.ceil((1 - tail) * (len(draws) - 1))]
    return Estimate(float(value), min(float(low), float(value)), max(float(high), float(value)))


class Index(NamedTuple):
    """The index of a model, with its denominators judged."""

    value: float  # NaN where it is refused
    draws: np.ndarray  # f64 [R]; NaN where a denominator is 0 or negative
    refusal: str  # why, "" where it is not


def index(
    cells: Sequence[tuple[str, str]],
    base: tuple[np.ndarray, np.ndarray],
    model: tuple[np.ndarray, np.ndarray],
    train: np.ndarray,
    unseen: np.ndarray,
) -> Index:
    """MTI of a model, from accuracies f64 [C] and their draws f64 [R, C] of it and its base; train, unseen bool [C]."""
    gain, gains = (relative_gain(*pair) for pair in zip(base, model, strict=True))
    below = gains[:, train].mean(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = np.where(below > 0, gains[:, unseen].mean(1) / below, np.nan)
    refusal = ""
    if weak := [c for c in np.flatnonzero(train | unseen) if not reaches_above_zero(base[0][c], base[1][:, c])]:
        names = ", ".join("/".join(cells[c]) for c in weak[:3]) + (f" and {len(weak) - 3} more" if len(weak) > 3 else "")
        refusal = f"the base's accuracy is not distinguishable from 0 in {names}: take more problems, or leave them out"
    elif not reaches_above_zero(gain[train].mean(), below):
        found = interval(gain[train].mean(), below)
        refusal = (
            f"the gain in the training languages is not distinguishable from 0, or negative: {found.value:.1%} "
            f"({found.low:.1%} to {found.high:.1%})"
        )
    return Index(math.nan if refusal else float(gain[unseen].mean() / gain[train].mean()), draws, refusal)


def relative_gain(base: np.ndarray, model: np.ndarray) -> np.ndarray:
    """g = (Acc_model − Acc_base) / Acc_base of f64 [..., C]; NaN where the base solves nothing."""
    return np.where(base > 0, (model - base) / np.where(base > 0, base, 1), np.nan)


def reaches_above_zero(value: float, draws: np.ndarray) -> bool:
    """Whether a value is told apart from 0, and positive, by its draws f64 [R]."""
    return interval(value, draws).low > 0 if value > 0 else False


class Cell(NamedTuple):
    """What training changed in a cell."""

    benchmark: str
    language: str
    group: str  # train, unseen, or "" for neither
    num_problems: int
    base: Estimate
    model: Estimate
    difference: Estimate  # of the accuracies
    relative: Estimate | None  # g; None where the base's accuracy is not distinguishable from 0


@dataclass(frozen=True)
class Transfer:
    """What training changed, by cell and by group of languages, and the index; `refusal` says why there is none."""

    model: str
    cells: tuple[Cell, ...]
    difference: Mapping[str, Estimate]  # {train, unseen: mean difference of the accuracies over cells}
    relative: Mapping[str, Estimate | None]  # {train, unseen: ΔR}
    mti: Estimate | None
    refusal: str


def transfer(
    base: Table,
    model: Table,
    train: Sequence[str],
    unseen: Sequence[str] = (),
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Transfer:
    """How a model trained in the languages `train` does against its base in those and in `unseen`, all others by default.

    Raises UserError where the two have other problems, a language no results, or a group no language or one of the other's.
    """
    require_same_problems((base, model))
    unseen = unseen or tuple(dict.fromkeys(language for _, language in base.cells if language not in train))
    for name, languages in (("train", train), ("unseen", unseen)):
        if not languages:
            raise UserError(f"{base.source}: no {name} language among its results; name at least one")
    if both := sorted(set(train) & set(unseen)):
        raise UserError(f"{', '.join(both)}: both train and unseen language; choose one")
    columns = {"train": columns_of(base, train), "unseen": columns_of(base, unseen)}
    values, draws = accuracies((base, model)), resampled_accuracies((base, model), num_resamples, seed)
    difference, differences = values[1] - values[0], draws[:, 1] - draws[:, 0]
    gain, gains = relative_gain(*values), relative_gain(draws[:, 0], draws[:, 1])
    firm = np.array([reaches_above_zero(values[0, c], draws[:, 0, c]) for c in range(len(base.cells))], bool)
    cells = []
    for c, (benchmark, language) in enumerate(base.cells):
        known = np.isfinite(base.shares[:, c])
        cells.append(
            Cell(
                benchmark=benchmark,
                language=language,
                group=next((name for name, inside in columns.items() if inside[c]), ""),
                num_problems=int(known.sum()),
                base=estimate(base.shares[known, c], seed=seed),
                model=estimate(model.shares[known, c], seed=seed),
                difference=interval(difference[c], differences[:, c]),
                relative=interval(gain[c], gains[:, c]) if firm[c] else None,
            )
        )
    found = index(base.cells, (values[0], draws[:, 0]), (values[1], draws[:, 1]), columns["train"], columns["unseen"])
    return Transfer(
        model=model.source,
        cells=tuple(cells),
        difference={k: interval(difference[v].mean(), differences[:, v].mean(1)) for k, v in columns.items()},
        relative={k: interval(gain[v].mean(), gains[:, v].mean(1)) if firm[v].all() else None for k, v in columns.items()},
        mti=None if found.refusal else interval(found.value, found.draws),
        refusal=found.refusal,
    )
