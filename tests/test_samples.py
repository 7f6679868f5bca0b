"""Paging through samples: the selection is a filter, an order and a cut; hostile text reaches the terminal as text."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxrl_ml.config import LoggingConfig
from jaxrl_ml.metrics import MetricsLog
from jaxrl_ml.samples import main, select
from jaxrl_ml.types import UserError

HOSTILE = "\x1b]0;owned\x07\x1b[2J [red]not markup[/red] [/] \ud800\u202e<script>"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with MetricsLog(tmp_path, LoggingConfig(console=False, tensorboard=False), 30) as log:
        for step in (10, 20, 30):
            log.log_samples(
                step,
                "warm" if step == 10 else "grpo",
                [
                    {
                        "prompt": f"prompt {step}.{i}",
                        "completion": HOSTILE if i == 0 else f"answer {step}.{i}",
                        "reward": i + 0.1 if i else float("nan"),
                        "parts": {"answer": float(i), "format": 0.1},
                        "correct": i == 3,
                        "truncated": i == 2,
                        "advantage": i - 1.5,
                        "length": 40 - step + i,
                    }
                    for i in range(4)
                ],
            )
    return tmp_path


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    main(list(argv))
    return capsys.readouterr().out


def test_everything_is_shown_newest_first(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, str(run))
    places = [out.index(f"prompt {step}.{i}\n") for step in (30, 20, 10) for i in range(4)]
    assert places == sorted(places)
    assert out.count("reward") == 12
    assert "reward 3.1 = answer 3 + format 0.1 · advantage +1.5 · 13 tokens\n" in out
    assert "advantage +0.5 · 12 tokens, truncated\n" in out


def test_hostile_text_neither_drives_the_terminal_nor_is_read_as_markup(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, str(run), "--step", "10", "--limit", "1")
    assert r"→ \x1b]0;owned\x07\x1b[2J [red]not markup[/red] [/] \ud800\u202e<script>" in out
    assert "\x1b" not in out and "\x07" not in out
    assert "reward nan" in out


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--correct"], {"10.3", "20.3", "30.3"}),
        (["--wrong", "--step", "20"], {"20.0", "20.1", "20.2"}),
        (["--stage", "warm", "--correct"], {"10.3"}),
        (["--sort", "reward", "--limit", "3"], {"10.3", "20.3", "30.3"}),
        (["--sort", "length", "--limit", "1"], {"10.3"}),
        (["--limit", "0"], {f"{step}.{i}" for step in (10, 20, 30) for i in range(4)}),
    ],
)
def test_selection(run: Path, capsys: pytest.CaptureFixture[str], argv: list[str], expected: set[str]) -> None:
    out = shown(capsys, str(run), *argv)
    assert {line.removeprefix("prompt ") for line in out.splitlines() if line.startswith("prompt ")} == expected


def test_sorting_is_descending_and_stable() -> None:
    records = [{"step": s, "stage": "g", "reward": r, "length": s} for s, r in [(1, 0.5), (2, 1.0), (3, 0.5)]]
    assert [r["step"] for r in select(records, sort="reward")] == [2, 1, 3]
    assert [r["step"] for r in select(records)] == [3, 2, 1]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--step", "15"], "steps 10 to 30 of grpo, warm"),
        (["--correct", "--wrong"], "give one of them"),
        (["--limit", "-1"], "--limit -1"),
    ],
)
def test_mistakes_are_one_line(run: Path, argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        main([str(run), *argv])
    assert "\n" not in str(error.value)


def test_as_a_command_it_fails_with_one_line_even_where_output_is_ascii(run: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "jaxrl_ml.samples"]
    good = subprocess.run([*command, str(run)], capture_output=True, env=environment, check=False)
    assert good.returncode == 0 and b"prompt 30.0" in good.stdout
    bad = subprocess.run([*command, str(run / "nowhere")], capture_output=True, text=True, check=False)
    assert bad.returncode == 2 and bad.stderr.count("\n") == 1 and "nowhere" in bad.stderr
