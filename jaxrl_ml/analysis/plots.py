"""Figures of logged metrics: pure functions from records (`metrics.read_metrics`) to matplotlib figures, and to SVG or PNG.

Figures are built on the Agg canvas without pyplot, so nothing global changes and no display is needed. Colours are those of
Okabe and Ito (Color Universal Design, 2008), told apart by colour-blind readers too.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jaxrl_ml.metrics import series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Records = Sequence[Mapping[str, Any]]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK, PALE = "#333333", "#8a8a8a"
MAX_POINTS = 1500  # of a drawn line: more cannot be seen and makes an SVG heavy


@dataclass(frozen=True)
class Panel:
    """One small chart: its title, the metrics it shows under short labels, and how its y axis reads."""

    title: str
    lines: Mapping[str, str]  # {metric name: label}; `eval/*/x` stands for every evaluation's x, labelled by its name
    percent: bool = False
    log: bool = False


PANELS = (
    Panel("Held-out accuracy", {"eval/*/accuracy": "*"}, percent=True),
    Panel("Training: share correct", {"reward/correct": "correct"}, percent=True),
    Panel("Training: mean reward", {"reward/mean": "reward"}),
    Panel("SFT loss (nats per token)", {"sft/loss": "loss"}),
    Panel("Completion length (tokens)", {"rollout/length_tokens": "training", "eval/*/length_tokens": "*"}),
    Panel("Truncated completions", {"rollout/truncated": "truncated"}, percent=True),
    Panel("Entropy (nats per token)", {"policy/entropy": "entropy"}),
    Panel("KL to the reference (nats per token)", {"policy/kl": "KL"}),
    Panel("Clipped tokens", {"policy/clip_fraction": "clipped"}, percent=True),
    Panel("Gradient norm", {"policy/grad_norm": "GRPO", "sft/grad_norm": "SFT"}, log=True),
    Panel("Sampler–trainer gap (nats per token)", {"policy/sampler_gap": "gap"}),
    Panel("Tokens per second", {"rate/tokens_per_s": "tokens/s"}),
)


def stages(records: Records) -> list[tuple[str, int, int]]:
    """(stage, first step, last step) in the order of the run, by the steps that the stage wrote."""
    spans: dict[str, tuple[int, int]] = {}
    for record in records:
        low, high = spans.get(record["stage"], (record["step"], record["step"]))
        spans[record["stage"]] = (min(low, record["step"]), max(high, record["step"]))
    return [(name, low, high) for name, (low, high) in sorted(spans.items(), key=lambda item: item[1])]


def learning_curves(records: Records, panels: Sequence[Panel] = PANELS, columns: int = 3) -> Figure:
    """A grid of small charts over steps, one for each panel that has data, with the borders between stages marked."""
    found = [(panel, _lines_of(panel, records)) for panel in panels]
    found = [(panel, lines) for panel, lines in found if lines]
    spans = stages(records)
    borders = [(low_high[2] + spans[i + 1][1]) / 2 for i, low_high in enumerate(spans[:-1])]
    rows = max(1, math.ceil(len(found) / columns))
    figure = new_figure(4.0 * columns, 2.7 * rows)
    for index, (panel, lines) in enumerate(found):
        axes = figure.add_subplot(rows, columns, index + 1)
        colour = iter(COLOURS * (1 + len(lines) // len(COLOURS)))
        for name, label in lines.items():
            _draw_line(axes, records, name, label, next(colour), borders)
        positive = any((_arrays(records, name)[1] > 0).any() for name in lines)
        style_axes(axes, panel.percent, panel.log and positive)
        axes.set_title(panel.title, loc="left", fontsize=10, color=INK, parse_math=False, pad=14 if borders else 6)
        axes.set_xlabel("step", fontsize=8, color=PALE)
        if spans:
            _mark_stages(axes, spans, borders)
        if len(lines) > 1:
            axes.legend(fontsize=8, frameon=False, labelcolor=INK, handlelength=1.2)
    return figure


def accuracy_curve(
    arms: Mapping[str, Sequence[Records]],
    metric: str = "eval/test/accuracy",
    x: Literal["step", "minutes"] = "minutes",
    title: str = "",
    ylabel: str = "held-out accuracy",
) -> Figure:
    """One figure for a README: each arm's mean over its runs (seeds), the range between them, and every single run.

    `arms` maps a name to the records of its runs; the first is the claim, the others are its controls. Minutes are wall time
    (`time/elapsed_s`). Runs that were evaluated at different places are interpolated linearly; the mean's curve ends where the
    shortest run does, and its label tells mean and standard deviation of the runs' own last values. Raises ValueError where a
    run never logged `metric`.
    """
    figure = new_figure(7.2, 3.8)
    axes = figure.add_subplot()
    ends: list[tuple[float, float, str, str]] = []  # x and y of the last point, text, colour
    for (name, runs), colour in zip(arms.items(), COLOURS, strict=False):
        curves = [_curve(records, metric, x) for records in runs]
        low, high = max(xs[0] for xs, _ in curves), min(xs[-1] for xs, _ in curves)
        grid = np.unique(np.concatenate([xs for xs, _ in curves]))
        grid = grid[(grid >= low) & (grid <= high)]
        values = np.stack([np.interp(grid, xs, ys) for xs, ys in curves])
        mean = values.mean(axis=0)
        for xs, ys in curves if len(curves) > 1 else []:
            axes.plot(xs, ys, color=colour, linewidth=0.7, alpha=0.4)
        axes.fill_between(grid, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.14, linewidth=0)
        axes.plot(grid, mean, color=colour, linewidth=2.2, marker="o", markersize=3.5)
        last = np.array([ys[-1] for _, ys in curves])
        spread = f" ± {last.std(ddof=1):.1%}" if len(curves) > 1 else ""
        seeds = f", {len(curves)} seeds" if len(curves) > 1 else ""
        ends.append((grid[-1], mean[-1], f"{name}\n{last.mean():.1%}{spread}{seeds}", colour))
    style_axes(axes, percent=True)
    axes.set_ylim(bottom=0)
    _label_ends(axes, ends)
    for stage, at in _mean_starts(next(iter(arms.values())), x).items():
        axes.axvline(at, color=PALE, linewidth=0.8, linestyle=(0, (3, 3)))
        axes.annotate(
            f"{stage} starts", (at, 0.02), (4, 0), xycoords=axes.get_xaxis_transform(), textcoords="offset points", fontsize=8,
            color=PALE, parse_math=False,
        )  # fmt: skip
    axes.set_xlabel({"step": "step", "minutes": "wall time (minutes)"}[x], color=INK, fontsize=9)
    axes.set_ylabel(ylabel, color=INK, fontsize=9)
    if title:
        axes.set_title(title, loc="left", fontsize=11, color=INK, parse_math=False)
    return figure


def language_shares(records: Records, most: int = 12) -> Figure | None:
    """Stacked areas over steps: how often each thinking language was chosen; None where no language was ever logged.

    The `most` frequent languages are named, the others are one area, and what is left to 100 % chose none.
    """
    prefix = "language/share/"
    names = [name for name in {name: None for record in records for name in record} if name.startswith(prefix)]
    shares = {name.removeprefix(prefix): _arrays(records, name) for name in names if name != prefix + "none"}
    if not shares:
        return None
    steps = np.unique(np.concatenate([at for at, _ in shares.values()]))
    half = max(1, len(steps) // 60)
    values = {}
    for code, (at, share) in shares.items():
        line = np.interp(steps, at, np.nan_to_num(share))
        padded = np.pad(line, half, mode="edge")
        values[code] = np.convolve(padded, np.full(2 * half + 1, 1 / (2 * half + 1)), mode="valid")
    ordered = sorted(values, key=lambda code: -values[code].mean())
    areas = {code: values[code] for code in ordered[:most]}
    if len(ordered) > most:
        areas[f"{len(ordered) - most} others"] = np.sum([values[code] for code in ordered[most:]], axis=0)
    figure = new_figure(12.0, 3.6)
    axes = figure.add_subplot()
    colours = [*COLOURS, *("#F0E442", "#999999", "#332288", "#88CCEE", "#AA4499", "#DDCC77", "#117733")]
    axes.stackplot(steps, list(areas.values()), labels=list(areas), colors=colours[: len(areas)], linewidth=0)
    style_axes(axes, percent=True)
    axes.set_ylim(0, 1)
    # A name beside the axes, of a stage before the first choice, would take the room of the areas.
    spans = [span for span in stages(records) if steps[0] <= span[2] and span[1] <= steps[-1]]
    _mark_stages(axes, spans, [(before[2] + after[1]) / 2 for before, after in zip(spans[:-1], spans[1:], strict=True)])
    axes.set_xlim(steps[0], max(steps[-1], steps[0] + 1))
    axes.set_xlabel("step", fontsize=8, color=PALE)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, frameon=False)
    return figure


def to_svg(figure: Figure) -> str:
    """The figure as an `<svg>` element that stands alone and goes into HTML as it is; equal figures give equal text."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "jaxrl_ml"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]  # without the XML prologue, which HTML does not know


def to_png(figure: Figure, dpi: int = 160) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, on the Agg canvas."""
    # Imported here: only those who draw pay for matplotlib's start-up.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _lines_of(panel: Panel, records: Records) -> dict[str, str]:
    """Metric names and labels of a panel that the records hold, evaluations spelled out in order of appearance."""
    names = {name: None for record in records for name in record}
    lines = {}
    for pattern, label in panel.lines.items():
        before, star, after = pattern.partition("*")
        for name in names:
            middle = name[len(before) : len(name) - len(after)]
            if name == pattern or (star and name == before + middle + after and middle and "/" not in middle):
                lines[name] = label.replace("*", middle) if star else label
    return lines


def _draw_line(axes: Axes, records: Records, name: str, label: str, colour: str, borders: Sequence[float]) -> None:
    """A metric over steps: points and an interval for evaluations, a pale line under its running mean for noisy ones."""
    steps, values = _arrays(records, name)
    if name.startswith("eval/"):
        axes.plot(steps, values, color=colour, linewidth=1.6, marker="o", markersize=3, label=label)
        low_steps, low = _arrays(records, name + "_low")
        high_steps, high = _arrays(records, name + "_high")
        if len(low) and np.array_equal(low_steps, high_steps):
            axes.fill_between(low_steps, low, high, color=colour, alpha=0.15, linewidth=0)
        return
    thin = slice(None, None, math.ceil(len(steps) / MAX_POINTS))
    if len(steps) < 40:
        axes.plot(steps, values, color=colour, linewidth=1.6, label=label)
        return
    axes.plot(steps[thin], values[thin], color=colour, linewidth=0.6, alpha=0.3)
    axes.plot(steps[thin], _running_mean(steps, values, borders)[thin], color=colour, linewidth=1.6, label=label)


def _arrays(records: Records, name: str) -> tuple[np.ndarray, np.ndarray]:
    steps, values = series(records, name)
    array = np.asarray(values, dtype=np.float64)
    return np.asarray(steps, dtype=np.float64), np.where(np.isfinite(array), array, np.nan)


def _running_mean(steps: np.ndarray, values: np.ndarray, borders: Sequence[float]) -> np.ndarray:
    """Centred mean over a thirtieth of the line, never across a border between stages, gaps left out."""
    half = max(2, len(values) // 60)
    out = np.empty_like(values)
    edges = [0, *np.searchsorted(steps, borders), len(values)]
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        part = values[start:stop]
        there = np.isfinite(part)
        sums = np.concatenate([[0.0], np.cumsum(np.where(there, part, 0.0))])
        counts = np.concatenate([[0], np.cumsum(there)])
        low = np.maximum(np.arange(len(part)) - half, 0)
        high = np.minimum(np.arange(len(part)) + half + 1, len(part))
        count = counts[high] - counts[low]
        out[start:stop] = np.where(count > 0, (sums[high] - sums[low]) / np.maximum(count, 1), np.nan)
    return out


def _curve(records: Records, metric: str, x: str) -> tuple[np.ndarray, np.ndarray]:
    steps, values = _arrays(records, metric)
    keep = np.isfinite(values)
    if not keep.any():
        raise ValueError(f"a run has no {metric}")
    if x == "step":
        return steps[keep], values[keep]
    seconds = {record["step"]: record["time/elapsed_s"] for record in records if metric in record}
    return np.array([seconds[step] / 60 for step in steps[keep]]), values[keep]


def _mean_starts(runs: Sequence[Records], x: str) -> dict[str, float]:
    """Where the stages after the first one start, on the x axis, as a mean over the runs."""
    key, unit = ("step", 1) if x == "step" else ("time/elapsed_s", 60)
    starts: dict[str, list[float]] = {}
    for records in runs:
        for (before, *_), (name, *_) in zip(stages(records)[:-1], stages(records)[1:], strict=True):
            starts.setdefault(name, []).append(max(record[key] for record in records if record["stage"] == before) / unit)
    return {name: float(np.mean(values)) for name, values in starts.items()}


def style_axes(axes: Axes, percent: bool = False, log: bool = False) -> None:
    """The look of all figures: pale grid and spines, few round ticks, y as it reads or in percent."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#bbbbbb")
    axes.tick_params(labelsize=8, labelcolor=INK, color="#bbbbbb")
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.3g}%" if percent else f"{y:,.5g}"))
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.3g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    low, high = axes.get_ylim()
    if high - low < 1e-3 * max(abs(low), abs(high)):  # a constant: the axis must not magnify its last digit
        room = 0.1 * max(abs(low), abs(high))
        axes.set_ylim(low - room, high + room)


def _mark_stages(axes: Axes, spans: Sequence[tuple[str, int, int]], borders: Sequence[float]) -> None:
    """Dashed lines at the borders and the stages' names above the axes, on the time line of the whole run."""
    start, end = min(low for _, low, _ in spans), max(high for *_, high in spans)
    room = 0.015 * max(end - start, 1)
    axes.set_xlim(start - room, max(end, start + 1) + room)
    for border in borders:
        axes.axvline(border, color=PALE, linewidth=0.8, linestyle=(0, (3, 3)))
    if not borders:
        return
    for (name, *_), low, high in zip(spans, [start, *borders], [*borders, end], strict=True):
        if (high - low) > 0.08 * (end - start):
            axes.text(
                (low + high) / 2, 1.01, name, transform=axes.get_xaxis_transform(), ha="center", va="bottom", fontsize=7,
                color=PALE, parse_math=False,
            )  # fmt: skip


def _label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Labels to the right of the lines' ends, in their colours, pushed apart where the ends are close."""
    bottom, top = axes.get_ylim()
    gap = 0.17 * (top - bottom)  # the height of a label of two lines
    right = max(x for x, *_ in ends)
    place = -math.inf
    for _, y, text, colour in sorted(ends, key=lambda end: end[1]):
        place = max(y, place + gap)
        axes.annotate(
            text, (right, place), xytext=(8, 0), textcoords="offset points", va="center", color=colour, fontsize=9,
            annotation_clip=False, parse_math=False,
        )  # fmt: skip
