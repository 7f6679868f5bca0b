"""Arms of a skills study side by side: the histories of their runs (`skills.history`) in, summaries and rich tables out."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.table import Table

from jaxrl_ml.analysis.skills import History, Order, Row, first_steps, order_test
from jaxrl_ml.metrics import visible

METRICS = ("success", "coverage", "precision")
_LEVELS = ("n", "balance", "depth")

Key = tuple[str, int, str]  # evaluation, count of numbers, and the set of patterns as its level calls it


class Spread(NamedTuple):
    """What the runs of an arm give, those left out that have nothing to tell of (a share of nothing)."""

    mean: float
    sd: float  # of a sample of runs; NaN for one run
    values: tuple[float, ...]


def spread(values: Sequence[float]) -> Spread | None:
    """The mean and the standard deviation over runs; None where no run has a value."""
    known = tuple(value for value in values if value == value)
    if not known:
        return None
    return Spread(statistics.mean(known), statistics.stdev(known) if len(known) > 1 else float("nan"), known)


def last_rows(histories: Mapping[str, History]) -> dict[Key, Row]:
    """A run's rows at the last step of each evaluation: all problems of a count, by balance, and by balance and depth."""
    return {
        (name, row.n, row.name if row.level != "n" else "all"): row
        for name, history in histories.items()
        for row in history[max(history)]
        if row.level in _LEVELS and row.problems
    }


def compare(runs: Sequence[Mapping[str, History]]) -> dict[Key, dict[str, Spread | None]]:
    """The metrics of an arm's runs at their last steps, for every set of patterns that a run has problems of."""
    rows = [last_rows(histories) for histories in runs]
    keys = sorted({key for of_run in rows for key in of_run}, key=lambda key: (key[0], key[1], key[2] != "all", key[2]))
    return {
        key: {metric: spread([getattr(of_run[key], metric).value for of_run in rows if key in of_run]) for metric in METRICS}
        for key in keys
    }


def orders(histories: Mapping[str, History]) -> dict[str, Order]:
    """Whether base patterns come before their dependents in a run: produced, and mastered."""
    first = first_steps(histories.values())
    return {
        "produced": order_test({name: steps.produced for name, steps in first.items()}),
        "mastered": order_test({name: steps.mastered for name, steps in first.items()}),
    }


def arms_table(arms: Mapping[str, Mapping[Key, Mapping[str, Spread | None]]], metric: str) -> Table:
    """One metric: a line for each set of patterns, a column for each arm; per cent, mean ± standard deviation over runs."""
    table = Table("evaluation", "n", "patterns", *map(visible, arms), title=metric, title_justify="left")
    for key in dict.fromkeys(key for found in arms.values() for key in found):
        cells = (_shown(found.get(key, {}).get(metric)) for found in arms.values())
        table.add_row(visible(key[0]), str(key[1]), key[2], *cells)
    return table


def orders_table(found: Mapping[str, Sequence[Mapping[str, Order]]]) -> Table:
    """Base before dependents, a line for each run: share of pairs (p), rank correlation (p)."""
    table = Table("arm", "run", "event", "pairs", "base first", "p", "rank correlation", "p")
    table.caption, table.caption_justify = "p: one-sided, by shuffling steps among patterns of the same n", "left"
    for arm, runs in found.items():
        for number, of_run in enumerate(runs):
            for event, order in of_run.items():
                numbers = (
                    f"{order.share:.1%}",
                    f"{order.p_share:.2g}",
                    f"{order.correlation:.2f}",
                    f"{order.p_correlation:.2g}",
                )
                table.add_row(visible(arm), str(number), event, str(order.pairs), *(numbers if order.pairs else ("–",) * 4))
    return table


def as_json(found: Mapping[Key, Mapping[str, Spread | None]]) -> list[dict[str, Any]]:
    """A comparison as a list of objects, for JSON."""
    return [{"evaluation": name, "n": n, "patterns": which, **metrics} for (name, n, which), metrics in found.items()]


def _shown(found: Spread | None) -> str:
    if found is None:
        return "–"
    return f"{100 * found.mean:.1f}" + (f" ± {100 * found.sd:.1f}" if len(found.values) > 1 else "")
