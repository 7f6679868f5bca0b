"""Figures of the skills of a run: what `skills.history` gives in, matplotlib figures out, in the style of `plots`.

Everywhere the problems of an evaluation that have one count of numbers n have a panel or a line of their own. Bands are the
rows' intervals. A figure is None where there is nothing to draw.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxrl_ml.analysis.plots import COLOURS, INK, PALE, new_figure, style_axes
from jaxrl_ml.analysis.skills import First, History, Row, first_steps, read_skill

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PATTERNS = 120  # of a heat map: where there are more, it is of shapes
MAX_COLUMNS = 60  # of a heat map: where there are more evaluations, some between are left out
BALANCES = {"left-heavy": COLOURS[0], "balanced": COLOURS[2], "right-heavy": COLOURS[1]}
_NOT_TRIED = "#ececec"

Histories = Mapping[str, History]  # by evaluation


def counts_of(history: History) -> list[int]:
    """The counts of numbers of an evaluation's problems."""
    return sorted({row.n for rows in history.values() for row in rows if row.level == "n" and row.problems})


def success_by_balance(histories: Histories) -> Figure | None:
    """Success over steps on left-heavy, balanced and right-heavy problems, a panel for each evaluation and n."""
    panels = {}
    for name, history in histories.items():
        for n in counts_of(history):
            lines = {balance: _series(history, "balance", n, balance) for balance in BALANCES}
            lines = {balance: line for balance, line in lines.items() if line}
            if lines:
                panels[f"{name}, n = {n}"] = lines
    if not panels:
        return None
    figure, grid = _grid(len(panels), 2.7)
    for axes, (title, lines) in zip(grid, panels.items(), strict=True):
        for balance, line in lines.items():
            _draw(axes, line, balance, BALANCES[balance])
        _finish(axes, title, "step")
    return figure


def success_by_count(histories: Histories) -> Figure | None:
    """Success over steps, a line for each evaluation and n: how far what is learnt reaches beyond the counts trained on."""
    lines = {
        f"{name}, n = {n}": _series(history, "n", n, str(n)) for name, history in histories.items() for n in counts_of(history)
    }
    if not lines:
        return None
    figure = new_figure(7.2, 3.6)
    axes = figure.add_subplot()
    for place, (label, line) in enumerate(lines.items()):
        _draw(axes, line, label, COLOURS[place % len(COLOURS)])
    _finish(axes, "", "step")
    return figure


def coverage_against_precision(histories: Histories) -> Figure | None:
    """The patterns at the last step, a panel for each evaluation and n: discovery to the right, mastery upwards.

    Dots are coloured by balance, and larger where there are more attempts; the cross is what the row of n says. Patterns
    without problems of their own, or without an attempt, have no place.
    """
    panels = {}
    for name, history in histories.items():
        step = max(history)
        for n in counts_of(history):
            rows = [row for row in history[step] if row.n == n]
            dots = [row for row in rows if row.level == "pattern" and row.problems and row.attempts]
            if dots:
                panels[f"{name}, n = {n}, step {step:,}"] = dots, next(row for row in rows if row.level == "n")
    if not panels:
        return None
    figure, grid = _grid(len(panels), 3.4)
    for axes, (title, (dots, whole)) in zip(grid, panels.items(), strict=True):
        most = max(row.attempts for row in dots)
        for balance, colour in BALANCES.items():
            own = [row for row in dots if read_skill(row.name).balance == balance]
            x, y = [row.coverage.value for row in own], [row.precision.value for row in own]
            if own:
                axes.scatter(x, y, [8 + 72 * row.attempts / most for row in own], colour, alpha=0.6, linewidth=0, label=balance)
        axes.plot([whole.coverage.value], [whole.precision.value], marker="+", markersize=12, linewidth=0, color=INK)
        _finish(axes, title, "coverage")
        axes.set_xlim(-0.04, 1.04)
        axes.set_xticks(np.linspace(0, 1, 5), [f"{100 * x:.0f}%" for x in np.linspace(0, 1, 5)])
        axes.set_ylabel("precision", fontsize=8, color=PALE)
    return figure


def heat_map(history: History, n: int) -> Figure | None:
    """Precision (colour) at each step of an evaluation of every own pattern, of n numbers, of its problems.

    Patterns are in the order in which they are first mastered, then first produced; a dot marks the step at which one is first
    mastered, and grey that it was not tried. Where there are over MAX_PATTERNS, the lines are shapes, without dots.
    """
    rows = [(step, row) for step, of_step in history.items() for row in of_step if row.n == n and row.problems]
    patterns = {row.name for _, row in rows if row.level == "pattern"}
    level = "pattern" if len(patterns) <= MAX_PATTERNS else "shape"
    first = {name: steps for name, steps in first_steps([history]).items() if name in patterns and level == "pattern"}
    names = sorted({row.name for _, row in rows if row.level == level}, key=lambda name: _place(name, first))
    if not names:
        return None
    steps = sorted(history)
    shown = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), MAX_COLUMNS)).round().astype(int))
    steps = [steps[place] for place in shown]
    values = np.full((len(names), len(steps)), math.nan)
    for step, row in rows:
        if row.level == level and step in steps:
            values[names.index(row.name), steps.index(step)] = row.precision.value
    figure = new_figure(9.0, 1.1 + 0.14 * len(names))
    axes = figure.add_subplot()
    mesh = axes.pcolormesh(np.ma.masked_invalid(values), cmap="viridis", vmin=0, vmax=1)
    mastered = {name: steps_of.mastered for name, steps_of in first.items() if steps_of.mastered is not None}
    if mastered:
        x = [np.searchsorted(steps, step) + 0.5 for step in mastered.values()]
        y = [names.index(name) + 0.5 for name in mastered]
        axes.plot(x, y, marker="o", markersize=3, linewidth=0, color="white", markeredgecolor=INK, markeredgewidth=0.5)
    axes.set_facecolor(_NOT_TRIED)
    axes.spines[:].set_visible(False)
    axes.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=6, color=INK, parse_math=False)
    ticks = range(0, len(steps), math.ceil(len(steps) / 12))
    axes.set_xticks([place + 0.5 for place in ticks], [f"{steps[place]:,}" for place in ticks], fontsize=8, color=INK)
    axes.tick_params(length=0)
    axes.invert_yaxis()
    axes.set_xlabel("step", fontsize=8, color=PALE)
    bar = figure.colorbar(mesh, ax=axes, fraction=0.03, pad=0.01, label="precision")
    bar.set_ticks([0, 0.5, 1], labels=["0%", "50%", "100%"], fontsize=8, color=INK)
    bar.outline.set_visible(False)
    bar.solids.set_rasterized(False)  # an image in the SVG would be a link, which the report's content policy forbids
    return figure


def _place(name: str, first: Mapping[str, First]) -> tuple[float, float, str]:
    """Where a pattern stands among others: by first mastered, first produced and name."""
    produced, mastered = first.get(name, First(None, None))
    return math.inf if mastered is None else mastered, math.inf if produced is None else produced, name


def _series(history: History, level: str, n: int, name: str) -> list[tuple[int, Row]]:
    """The rows of a set of patterns that has problems, by rising step."""
    return [
        (step, row)
        for step in sorted(history)
        for row in history[step]
        if (row.level, row.n, row.name) == (level, n, name) and row.problems
    ]


def _draw(axes: Axes, line: Sequence[tuple[int, Row]], label: str, colour: str) -> None:
    """Success over steps, and its interval."""
    steps = [step for step, _ in line]
    values, low, high = np.array([row.success for _, row in line]).T
    axes.plot(steps, values, color=colour, linewidth=1.6, marker="o", markersize=3, label=label)
    axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)


def _grid(count: int, height: float, columns: int = 3) -> tuple[Figure, list[Axes]]:
    rows, columns = math.ceil(count / columns), min(count, columns)
    figure = new_figure(max(4.0 * columns, 6.0), height * rows)
    return figure, [figure.add_subplot(rows, columns, index + 1) for index in range(count)]


def _finish(axes: Axes, title: str, xlabel: str) -> None:
    """A y axis of shares from 0 to 1, title and legend."""
    style_axes(axes, percent=True)
    axes.set_ylim(-0.04, 1.04)
    axes.set_title(title, loc="left", fontsize=10, color=INK, parse_math=False)
    axes.set_xlabel(xlabel, fontsize=8, color=PALE)
    if axes.get_legend_handles_labels()[0]:
        legend = axes.legend(fontsize=8, frameon=False, labelcolor=INK, handlelength=1.2)
        for text in legend.get_texts():
            text.set_parse_math(False)
