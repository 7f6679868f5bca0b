"""Figures of the parallel scaling study, in the style of `plots`: laws of the budget arms, and gains by language."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxrl_ml.analysis.passk import Estimate
from jaxrl_ml.analysis.plots import COLOURS, INK, PALE, new_figure, style_axes
from jaxrl_ml.analysis.scaling_law import Law
from jaxrl_ml.analysis.transfer import Transfer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GROUPS = {  # label and colour
    "train": ("training languages", COLOURS[0]),
    "unseen": ("unseen languages", COLOURS[1]),
    "": ("others", PALE),
}


def law_figure(arms: Mapping[str, Law], ylabel: str, percent: bool = True) -> Figure:
    """Every run, the mean of each X with its interval, and the fitted law with its band, in each arm's colour.

    X = 1 is hollow, since the law is not fitted to it; a dashed line carries the law there, so that the gap can be seen.
    """
    figure = new_figure(7.2, 4.2)
    axes = figure.add_subplot()
    for place, ((name, law), colour) in enumerate(zip(arms.items(), COLOURS, strict=False)):
        shift = 0.05 * (place - (len(arms) - 1) / 2)  # arms must not hide each other
        for level, estimate in law.means.items():
            runs = law.runs[level]
            axes.plot([level + shift] * len(runs), runs, ".", color=colour, alpha=0.4, markersize=4)
            axes.errorbar(
                level + shift, estimate.value, yerr=_bars([estimate]), color=colour, fmt="o", markersize=5, linewidth=1.2,
                markerfacecolor="white" if level == 1 else colour,
            )  # fmt: skip
        label = name
        if law.fits:
            alpha, beta = law.fits[0].alpha_drawn, law.fits[0].beta_drawn
            label = f"{name}: {alpha.value:.3g}·X^{beta.value:.3g}  (β {beta.low:.2g} to {beta.high:.2g})"
            low, high = (_finite(law.curve[end]) for end in ("low", "high"))
            axes.fill_between(law.curve["x"], low, high, color=colour, alpha=0.14, linewidth=0)
            ahead = np.linspace(1, 2, 20)
            axes.plot(ahead, alpha.value * ahead**beta.value, color=colour, linewidth=1, linestyle=(0, (3, 3)))
        axes.plot(law.curve.get("x", ()), law.curve.get("value", ()), color=colour, linewidth=2, label=label)
    style_axes(axes, percent)
    axes.set_xticks(sorted({level for law in arms.values() for level in law.means}))
    axes.set_xlabel("training languages X, English included", color=INK, fontsize=9)
    axes.set_ylabel(ylabel, color=INK, fontsize=9, parse_math=False)
    for text in axes.legend(fontsize=8, frameon=False, labelcolor=INK, handlelength=1.2).get_texts():
        text.set_parse_math(False)
    return figure


def languages_figure(
    curves: Mapping[str, Mapping[str, Mapping[int, Estimate]]], train: Sequence[str], columns: int = 4
) -> Figure:
    """A small chart of each language, the accuracy over X of each arm (`language_curves`), those of the training first.

    A dashed line stands where the language joins the training, the i-th of `train` at X = i.
    """
    order = [*(code for code in train if code in curves), *(code for code in curves if code not in train)]
    rows = math.ceil(len(order) / columns)
    figure = new_figure(2.6 * columns, 2.1 * rows + 0.3)
    top = max(estimate.high for arms in curves.values() for means in arms.values() for estimate in means.values())
    for place, code in enumerate(order):
        axes = figure.add_subplot(rows, columns, place + 1)
        for (arm, means), colour in zip(curves[code].items(), COLOURS, strict=False):
            axes.errorbar(
                list(means), [one.value for one in means.values()], yerr=_bars(list(means.values())), color=colour, marker="o",
                markersize=3, linewidth=1.4, elinewidth=0.8, label=f"{arm} budget",
            )  # fmt: skip
        if code in train:
            axes.axvline(train.index(code) + 1, color=PALE, linewidth=0.8, linestyle=(0, (3, 3)))
        style_axes(axes, percent=True)
        axes.set_ylim(0, 1.05 * top or 1)
        axes.set_xticks(sorted({x for means in curves[code].values() for x in means}))
        title = f"{code}, unseen" if train and code not in train else code
        axes.set_title(title, loc="left", fontsize=9, color=INK, parse_math=False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, fontsize=8, frameon=False, labelcolor=INK)
    figure.supxlabel("training languages X, English included; dashed: the language joins them", fontsize=8, color=INK)
    return figure


def gains_figure(found: Transfer) -> Figure:
    """The change of accuracy in each cell, with its interval, by group of languages and falling within it."""
    groups = list(GROUPS)
    cells = sorted(found.cells, key=lambda cell: (groups.index(cell.group), -cell.difference.value), reverse=True)
    several = len({cell.benchmark for cell in cells}) > 1
    figure = new_figure(6.4, 1.1 + 0.24 * len(cells))
    axes = figure.add_subplot()
    for group, (label, colour) in GROUPS.items():
        places = [place for place, cell in enumerate(cells) if cell.group == group]
        if not places:
            continue
        changes = [cells[place].difference for place in places]
        axes.errorbar(
            [100 * change.value for change in changes], places, xerr=100 * _bars(changes), color=colour, fmt="o",
            markersize=4.5, linewidth=1.4, label=label,
        )  # fmt: skip
    style_axes(axes)
    names = [f"{cell.language} · {cell.benchmark}" if several else cell.language for cell in cells]
    axes.set_yticks(range(len(cells)), names, fontsize=8, parse_math=False)
    axes.set_ylim(-0.7, len(cells) - 0.3)
    axes.axvline(0, color=PALE, linewidth=0.8)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.7)
    axes.set_xlabel("change of accuracy, percentage points", color=INK, fontsize=9)
    axes.legend(fontsize=8, frameon=False, labelcolor=INK)
    return figure


def _bars(estimates: Sequence[Estimate]) -> np.ndarray:
    """Lengths of error bars below and above, f64 [2, N]; an end that is not known has none."""
    value, low, high = np.array(estimates, float).T
    return np.nan_to_num(np.stack([value - low, high - value]), posinf=0.0)


def _finite(values: Sequence[float]) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)
