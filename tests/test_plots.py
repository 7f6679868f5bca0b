"""Figures say what the records say: which panels, which points, which means; equal records give equal SVG."""

from __future__ import annotations

import math
import subprocess
import sys
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest

from jaxrl_ml.analysis.plots import (
    MAX_POINTS,
    _running_mean,
    accuracy_curve,
    language_shares,
    learning_curves,
    stages,
    to_png,
    to_svg,
)


def fake_records(num_sft: int = 50, num_grpo: int = 60, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    records: list[dict[str, Any]] = [{"step": 0, "stage": "sft", "eval/test/accuracy": 0.0, "time/elapsed_s": 0.0}]
    for step in range(1, num_sft + num_grpo + 1):
        stage = "sft" if step <= num_sft else "grpo"
        record = {"step": step, "stage": stage, "time/elapsed_s": 6.0 * step, "rate/tokens_per_s": 2e4 + rng.normal()}
        record |= (
            {"sft/loss": 1 + rng.random()} if stage == "sft" else {"policy/entropy": rng.random(), "policy/grad_norm": 1.0}
        )
        if step % 10 == 0:
            accuracy = step / 200
            record |= {"eval/test/accuracy": accuracy, "eval/test/accuracy_low": accuracy - 0.05}
            record |= {"eval/test/accuracy_high": accuracy + 0.05, "eval/n4/accuracy": accuracy / 2}
        records.append(record)
    return records


def titles(figure: Any) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_stages_are_in_the_order_of_the_run() -> None:
    assert stages(fake_records()) == [("sft", 0, 50), ("grpo", 51, 110)]


def test_a_panel_for_each_metric_that_was_logged_and_no_other() -> None:
    names = titles(learning_curves(fake_records()))
    assert names == [
        "Held-out accuracy",
        "SFT loss (nats per token)",
        "Entropy (nats per token)",
        "Gradient norm",
        "Tokens per second",
    ]


def test_evaluations_are_drawn_point_by_point_with_their_interval() -> None:
    axes = learning_curves(fake_records()).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    assert set(lines) >= {"test", "n4"}
    np.testing.assert_allclose(lines["test"].get_xdata(), np.arange(0, 111, 10))
    np.testing.assert_allclose(lines["test"].get_ydata(), np.arange(0, 111, 10) / 200)
    (band,) = axes.collections
    low, high = band.get_paths()[0].vertices[:, 1].min(), band.get_paths()[0].vertices[:, 1].max()
    assert (low, high) == (pytest.approx(0.0), pytest.approx(0.6))


def test_the_border_between_stages_is_marked_in_every_panel() -> None:
    for axes in learning_curves(fake_records()).axes:
        assert any(list(line.get_xdata()) == [50.5, 50.5] for line in axes.lines)
        assert {"sft", "grpo"} <= {text.get_text() for text in axes.texts}


def test_running_mean_is_the_mean_of_its_window_and_stops_at_borders() -> None:
    values = np.where(np.arange(240) < 120, 0.0, 1.0)
    steps = np.arange(240, dtype=float)
    smooth = _running_mean(steps, values, [119.5])
    np.testing.assert_array_equal(smooth, values)
    half = 240 // 60
    smooth = _running_mean(steps, values, [])
    assert smooth[120] == pytest.approx((half + 1) / (2 * half + 1))
    values[100] = math.nan
    assert np.isfinite(_running_mean(steps, values, [])).all()


def test_long_runs_are_thinned() -> None:
    records = [{"step": i, "stage": "grpo", "policy/entropy": i % 7} for i in range(20_000)]
    assert max(len(line.get_xdata()) for line in learning_curves(records).axes[0].lines) <= MAX_POINTS


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
def test_odd_values_draw_without_a_warning(bad: float) -> None:
    names = ("policy/grad_norm", "policy/entropy", "eval/a/accuracy")
    for records in (
        [],
        [{"step": 5, "stage": "$a_", **dict.fromkeys(names, bad)}],
        [{"step": i, "stage": "g", **dict.fromkeys(names, bad if i % 3 else 1.0)} for i in range(60)],
        [{"step": i, "stage": "g", **dict.fromkeys(names, 1e-6)} for i in range(60)],
    ):
        assert to_png(learning_curves(records), dpi=30).startswith(b"\x89PNG")


def test_svg_is_one_element_without_scripts_and_equal_for_equal_records() -> None:
    text = to_svg(learning_curves(fake_records()))
    assert text == to_svg(learning_curves(fake_records()))
    assert ET.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    assert text.startswith("<svg") and "<script" not in text


def test_accuracy_curve_shows_mean_and_spread_of_the_seeds() -> None:
    def arm(scale: float) -> list[list[dict[str, Any]]]:
        return [
            [
                {"step": s, "stage": "a", "time/elapsed_s": 60.0 * s, "eval/test/accuracy": scale * s * k}
                for s in range(5 + (k == 3))
            ]
            for k in (1, 2, 3)
        ]

    (axes,) = accuracy_curve({"ours": arm(0.05), "control": arm(0.01)}).axes
    means = [line for line in axes.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(means[0].get_xdata(), [0, 1, 2, 3, 4])  # minutes, as far as the shortest run
    np.testing.assert_allclose(means[0].get_ydata(), [0, 0.1, 0.2, 0.3, 0.4])
    labels = [text.get_text() for text in axes.texts]
    assert "ours\n45.0% ± 27.8%, 3 seeds" in labels and "control\n9.0% ± 5.6%, 3 seeds" in labels
    assert len({line.get_color() for line in means}) == 2


def test_accuracy_curve_interpolates_runs_that_were_evaluated_elsewhere() -> None:
    first = [{"step": s, "stage": "a", "eval/test/accuracy": 0.1 * s} for s in (0, 2, 4)]
    second = [{"step": s, "stage": "a", "eval/test/accuracy": 0.1 * s} for s in (1, 3, 5)]
    (axes,) = accuracy_curve({"ours": [first, second]}, x="step").axes
    (mean,) = [line for line in axes.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(mean.get_xdata(), [1, 2, 3, 4])
    np.testing.assert_allclose(mean.get_ydata(), [0.1, 0.2, 0.3, 0.4])
    with pytest.raises(ValueError, match="eval/none/accuracy"):
        accuracy_curve({"ours": [first]}, metric="eval/none/accuracy", x="step")


def test_neither_pyplot_nor_jax_is_loaded() -> None:
    program = (
        "import sys; from jaxrl_ml.analysis.plots import *;"
        "to_png(learning_curves([{'step': 1, 'stage': 's', 'sft/loss': 1.0}]), dpi=30);"
        "sys.exit(int('matplotlib.pyplot' in sys.modules or 'jax' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_language_shares_stack_to_what_was_chosen() -> None:
    assert language_shares(fake_records()) is None
    codes = [f"l{i}" for i in range(15)]
    records = []
    for step in range(1, 31):
        stage = "explore" if step <= 10 else "exploit"
        shares = {f"language/share/{code}": 0.8 * (i + 1) / 120 for i, code in enumerate(codes)}
        records.append({"step": step, "stage": stage, "language/share/none": 0.2, **shares})
    records = [{"step": step, "stage": "pretraining"} for step in range(-90, 1)] + records  # of which nothing is drawn
    figure = language_shares(records, most=12)
    (axes,) = figure.axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[::-1] == [*codes[:2:-1], "3 others"]
    top = axes.collections[-1].get_paths()[0].vertices[:, 1].max()
    assert top == pytest.approx(0.8), "what chose none is left out"
    assert [line.get_xdata()[0] for line in axes.lines] == [10.5], "the border between the stages"
    assert [text.get_text() for text in axes.texts] == ["explore", "exploit"]
