"""The report is one safe, self-contained page that says what the records say."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from jaxrl_ml.config import LoggingConfig
from jaxrl_ml.metrics import MetricsLog
from jaxrl_ml.report import MAX_SAMPLE_CHARS, final_evaluations, main, pick_samples, write_report
from jaxrl_ml.types import UserError

HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(2)> &amp; \ud800\x1b[2J\u202e"
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; raises where tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "countdown<1>"
    with MetricsLog(folder, LoggingConfig(console=False, tensorboard=False), 6) as log:
        log.write(0, "sft", {"eval/test/accuracy": 0.0})
        for step in range(1, 7):
            stage = "sft" if step <= 3 else "grpo"
            log.write(
                step, stage, {"sft/loss": 1.0} if stage == "sft" else {"policy/entropy": 0.5, "reward/mean": float("nan")}
            )
            if step % 3 == 0:
                interval = {"eval/test/accuracy_low": step / 10 - 0.04, "eval/test/accuracy_high": step / 10 + 0.04}
                log.write(step, stage, {"eval/test/accuracy": step / 10, **interval, "eval/test/pass@8": 0.75})
        log.log_samples(
            6,
            "grpo",
            [
                {
                    "prompt": HOSTILE,
                    "completion": HOSTILE,
                    "reward": 0.1,
                    "parts": {"<b>": 0.1},
                    "correct": False,
                    "truncated": True,
                },
                {
                    "prompt": "p",
                    "completion": "x" * (MAX_SAMPLE_CHARS + 7),
                    "reward": float("inf"),
                    "parts": {},
                    "correct": True,
                },
            ],
        )
    config = {
        "model": {"family": "qwen3", "num_layers": 2, "embed_dim": 64},
        "stages": [{"type": "SFTStage", "name": "sft", "num_steps": 3}, {"type": "GRPOStage", "name": "grpo", "num_steps": 3}],
        "system_prompt": "</pre><script>",
        "seed": 0,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "config.py").write_text('"""Countdown & <co>.\n\nMore.\n"""\n')
    return folder


def test_the_page_is_well_formed_and_nothing_in_it_is_active_or_remote(run: Path) -> None:
    text = write_report(run).read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "img", "iframe", "link", "object", "base", "form"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    links = [value for name, value in page.attributes if name in ("href", "src", "xlink:href")]
    assert links and all(link.startswith("#") for link in links)
    assert not re.search(r"url\((?!#)", text)
    assert "default-src 'none'" in text


def test_hostile_text_is_shown_as_text(run: Path) -> None:
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert page.text.count(r"</pre><script>alert(1)</script><img src=x onerror=alert(2)> &amp; \ud800\x1b[2J\u202e") == 2
    assert "countdown<1>" in page.text and "(<b> 0.1)" in page.text
    assert "(7 more characters)" in page.text


def test_the_summary_says_what_the_records_say(run: Path) -> None:
    page = Page(write_report(run).read_text(encoding="utf-8"))
    for fact in (
        "Countdown & <co>.",
        "qwen3 of 2 layers, width 64",
        "6 steps",
        "60.0% [56.0, 64.0]",
        "30.0% [26.0, 34.0]",
        "75.0%",
    ):
        assert fact in page.text
    assert page.tags.count("svg") == 1 and page.tags.count("details") == 1
    assert '"num_layers": 2' in page.text


def test_stages_that_learnt_nothing_are_told(run: Path) -> None:
    assert "learnt nothing" not in Page(write_report(run).read_text(encoding="utf-8")).text
    with MetricsLog(run, LoggingConfig(console=False, tensorboard=False), 14, start_step=6) as log:
        for step in range(7, 15):
            log.write(step, "<b>grpo", {"train/steps_without_learning": max(0, step - 8)})
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert "warning: <b>grpo learnt nothing in 6 of 8 steps, up to 6 in a row" in page.text


def test_final_evaluations_are_the_last_of_each_stage_merged_by_step() -> None:
    records = [
        {"step": 0, "stage": "a", "eval/t/accuracy": 0.0},
        {"step": 1, "stage": "a", "eval/t/accuracy": 0.1},
        {"step": 2, "stage": "a", "eval/t/accuracy": 0.2},
        {"step": 2, "stage": "a", "eval/t/pass@8": 0.5, "eval/u/accuracy": 1.0},
        {"step": 3, "stage": "b", "policy/entropy": 1.0},
    ]
    assert final_evaluations(records) == [
        ("t", "start", 0, {"accuracy": 0.0}),
        ("t", "a", 2, {"accuracy": 0.2, "pass@8": 0.5}),
        ("u", "a", 2, {"accuracy": 1.0}),
    ]


def test_samples_are_from_both_ends_right_and_wrong_in_turn() -> None:
    samples = [{"step": s, "stage": "g", "correct": i < 3, "i": i} for s in (1, 2, 3) for i in range(6)]
    assert [(x["step"], x["i"]) for x in pick_samples(samples, 4)] == [(1, 0), (1, 3), (3, 0), (3, 3)]
    assert len(pick_samples(samples[:6], 4)) == 4
    assert pick_samples([]) == []


def test_a_run_of_metrics_alone_is_enough(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "stage": "s", "mine/own": 1.0}\n{"step": 2, "sta')
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "1 steps" in page.text and "Samples" not in page.text and "Evaluation" not in page.text
    assert not list(tmp_path.glob("*.tmp"))


def test_missing_empty_and_broken_runs_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere") as missing:
        main([str(tmp_path / "nowhere")])
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="no records yet") as empty:
        write_report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "stage": "s"}\n')
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json") as broken:
        write_report(tmp_path)
    assert all("\n" not in str(error.value) for error in (missing, empty, broken))
    assert not (tmp_path / "report.html").exists()


def test_the_command_prints_where_the_page_lies(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(run)])
    assert capsys.readouterr().out.strip() == f"wrote {run / 'report.html'}"
