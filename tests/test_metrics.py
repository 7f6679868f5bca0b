"""The run's own record: what is written is read back, a resumed log is the uninterrupted one, hostile text stays text."""

from __future__ import annotations

import io
import json
import math
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from jaxrl_ml.config import LoggingConfig
from jaxrl_ml.metrics import Eta, MetricsLog, duration, read_metrics, read_samples, series, visible
from jaxrl_ml.types import UserError

QUIET = LoggingConfig(console=False, tensorboard=False)
LOUD = LoggingConfig(console=True, tensorboard=False)


def write_steps(run: Path, start: int, stop: int, resume: int = 0) -> None:
    with MetricsLog(run, QUIET, 10, start_step=resume) as log:
        for step in range(start, stop + 1):
            log.write(step, "grpo", {"reward/mean": 1 / (step + 1)})
            log.log_samples(step, "grpo", [{"prompt": "p", "completion": str(step), "reward": 1.0}])


def without_times(records: list[dict]) -> list[dict]:
    return [{key: value for key, value in record.items() if not key.startswith("time/")} for record in records]


def test_numbers_come_back_exactly_and_every_line_is_strict_json(tmp_path: Path) -> None:
    values = {"a/third": 1 / 3, "a/nan": math.nan, "a/inf": math.inf, "a/minus": -math.inf, "a/np": np.float32(0.1), "a/int": 3}
    with MetricsLog(tmp_path, QUIET, 10) as log:
        log.write(7, "grpo", values)
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()

    def refuse(word: str) -> float:
        raise AssertionError(f"{word} is not JSON")

    json.loads(line, parse_constant=refuse)
    (record,) = read_metrics(tmp_path)
    assert (record["step"], record["stage"]) == (7, "grpo")
    assert math.isnan(record["a/nan"])
    for name in values.keys() - {"a/nan"}:
        assert record[name] == float(values[name])


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, QUIET, 10) as log:
        log.write(1, "sft", {"sft/loss": 2.0})
        log.log_samples(1, "sft", [{"prompt": "p", "completion": "c"}])
        assert len(read_metrics(tmp_path)) == len(read_samples(tmp_path)) == 1


@pytest.mark.parametrize(
    "torn", [b"", b'{"step": 7, "stage": "gr', b'{"step": 7, "stage": "grpo"}', b"\x00\x00\xff", b"[1]\n\n"]
)
def test_a_resumed_log_equals_the_uninterrupted_one(tmp_path: Path, torn: bytes) -> None:
    write_steps(tmp_path / "whole", 0, 9)
    write_steps(tmp_path / "killed", 0, 6)
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (tmp_path / "killed" / name).open("ab") as file:
            file.write(torn)
    assert len(read_metrics(tmp_path / "killed")) == 7
    write_steps(tmp_path / "killed", 4, 9, resume=3)
    assert without_times(read_metrics(tmp_path / "killed")) == without_times(read_metrics(tmp_path / "whole"))
    whole, killed = (tmp_path / run / "samples.jsonl" for run in ("whole", "killed"))
    assert killed.read_bytes() == whole.read_bytes()
    assert not list((tmp_path / "killed").glob("*.tmp"))


def test_elapsed_time_goes_on_where_the_run_stopped(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "stage": "s", "time/elapsed_s": 1000.0}\n{"step": 2, "stage": "s", "time/elapsed_s": 5000.0}\n'
    )
    write_steps(tmp_path, 2, 3, resume=1)
    _, elapsed = series(read_metrics(tmp_path), "time/elapsed_s")
    assert elapsed[0] == 1000.0
    assert 1000.0 <= elapsed[1] <= elapsed[2] < 1060.0


def test_series_is_sorted_and_the_later_record_counts() -> None:
    records = [{"step": 3, "a": 1.0}, {"step": 1, "a": 2.0}, {"step": 2, "b": 9.0}, {"step": 3, "a": 5.0}]
    assert series(records, "a") == ([1, 3], [2.0, 5.0])
    assert series(records, "missing") == ([], [])


def test_disabled_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with MetricsLog(tmp_path / "run", LoggingConfig(), 10, enabled=False) as log:
        log.write(1, "sft", {"sft/loss": 2.0})
        log.log_samples(1, "sft", [{"prompt": "p"}])
        log.say("hello")
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().out == ""


def test_a_missing_run_is_named(tmp_path: Path) -> None:
    for read in (read_metrics, read_samples):
        with pytest.raises(UserError, match="nowhere") as error:
            read(tmp_path / "nowhere")
        assert "\n" not in str(error.value)


def test_reserved_names_are_refused(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, QUIET, 10) as log, pytest.raises(ValueError, match="stage"):
        log.write(1, "sft", {"stage": 1.0})


def test_samples_keep_any_text_and_any_number(tmp_path: Path) -> None:
    completion = "\ud800 \u2028 日本 \x1b[2J NaN \r\n"
    sample = {
        "prompt": "p",
        "completion": completion,
        "reward": np.float32(0.5),
        "correct": np.bool_(True),
        "parts": {"x": math.nan},
    }
    with MetricsLog(tmp_path, QUIET, 10) as log:
        log.log_samples(np.int64(4), "grpo", [sample])
    (record,) = read_samples(tmp_path)
    assert record["completion"] == completion
    assert record["reward"] == 0.5 and record["correct"] is True and record["step"] == 4
    assert math.isnan(float(record["parts"]["x"]))


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.text(st.characters(exclude_categories=()), max_size=80))
def test_visible_text_is_harmless_and_loses_nothing(text: str) -> None:
    shown = visible(text)
    shown.encode("utf-8")
    assert all(char.isprintable() or char in "\n\t" or ord(char) >= 0xA0 for char in shown)
    assert "\x1b" not in shown and "\u202e" not in shown and "\r" not in shown
    assert visible(shown) == shown
    if text.isascii() and text.isprintable():
        assert shown == text


def test_visible_spells_out_what_it_takes_away() -> None:
    assert visible("\x1b[31m\u202e\ud800\r\x9b") == r"\x1b[31m\u202e\ud800\r\x9b"
    assert visible("ক্‍ষ\tনা\n👩‍🚀") == "ক্‍ষ\tনা\n👩‍🚀"


def test_eta_leaves_out_the_compiling_steps_of_each_stage() -> None:
    eta = Eta(total_steps=100)
    now, seen = 0.0, {}
    for step in range(1, 61):
        stage = "sft" if step <= 30 else "grpo"
        first = step in (1, 31)
        now += 50.0 if first else 1.0 if stage == "sft" else 4.0
        seen[step] = eta.update(step, stage, now)
        eta.update(step, stage, now)  # a second write of the step changes nothing
    assert seen[1] is seen[3] is None and seen[31] is seen[33] is None
    assert seen[4] == pytest.approx(96.0)
    assert seen[30] == pytest.approx(70.0)
    assert seen[60] == pytest.approx(160.0)


def test_durations() -> None:
    assert [duration(s) for s in (0, 59.4, 59.6, 185, 7650)] == ["0s", "59s", "1m00s", "3m05s", "2h07m"]


def test_without_a_terminal_a_line_is_plain_and_not_printed_each_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with MetricsLog(tmp_path, LOUD, 50) as log:
        for step in range(1, 51):
            log.write(step, "grpo", {"reward/mean": step / 100, "reward/correct": 0.25, "eval/test/accuracy": 0.5})
        log.say("saved [bold]x[/bold] \x1b[2J " + "long " * 40)
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert 2 <= len(lines) <= 12
    assert (
        "50/50" in lines[-2]
        and "reward 0.500" in lines[-2]
        and "correct 25.0%" in lines[-2]
        and "accuracy(test) 50.0%" in lines[-2]
    )
    assert lines[-1].startswith(r"saved [bold]x[/bold] \x1b[2J long")
    assert "\x1b" not in out


def test_on_a_terminal_the_live_lines_follow_the_stage(tmp_path: Path) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, color_system=None, width=120, height=30)
    with MetricsLog(tmp_path, LOUD, 4, console=console) as log:
        log.write(1, "sft", {"sft/loss": 2.5})
        log.write(2, "[red]grpo", {"reward/correct": 0.125, "rate/tokens_per_s": 21000.0})
        log.say("checkpoint saved")
        stray_stdout = sys.stdout
    assert stray_stdout is not sys.stdout  # prints of others went above the live lines
    last = screen.getvalue().rpartition("checkpoint saved")[2]
    assert "[red]grpo" in last and "2/4" in last and "correct 12.5%" in last and "21,000" in last
    assert "loss" not in last


def test_a_new_run_begins_at_step_zero_and_shows_its_config_in_tensorboard(tmp_path: Path) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, color_system=None, width=120, height=30)
    logging = LoggingConfig(console=True, tensorboard=True)
    with MetricsLog(tmp_path, logging, 4, start_step=-1, resolved_config={"seed": 76543}, console=console) as log:
        log.say("compiling")
    assert "0/4" in screen.getvalue() and "-1/4" not in screen.getvalue()
    assert any(b"76543" in path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())


def test_console_off_is_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with MetricsLog(tmp_path, QUIET, 2) as log:
        log.write(1, "sft", {"sft/loss": 2.0})
        log.say("hello")
    assert capsys.readouterr().out == ""


def tensorboard_scalars(folder: Path) -> dict[tuple[str, int], float]:
    """What a reader of the event files sees; a session start at step n hides older events from n on."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    seen: dict[tuple[str, int], float] = {}
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            if event.session_log.status == SessionLog.START:
                seen = {key: value for key, value in seen.items() if key[1] < event.step}
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    seen[value.tag, event.step] = value.simple_value
    return seen


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path: Path) -> None:
    logging = LoggingConfig(console=False, tensorboard=True)
    for run, (start, steps, value) in enumerate([(0, range(1, 7), 1.0), (3, range(4, 6), 2.0)]):
        with MetricsLog(tmp_path / "run", logging, 10, start_step=start, resolved_config={"seed": 0}) as log:
            for step in steps:
                log.write(step, "grpo", {"reward/mean": value, "reward/broken": math.nan})
        for path in (tmp_path / "run" / "tensorboard").iterdir():  # two runs within a second would share a name
            if not path.name.startswith("run"):
                path.rename(path.with_name(f"run{run}"))
    assert tensorboard_scalars(tmp_path / "run" / "tensorboard") == {
        ("reward/mean", step): 1.0 if step <= 3 else 2.0 for step in range(1, 6)
    }


def test_wandb_that_is_missing_is_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    logging = LoggingConfig(console=False, tensorboard=False, wandb_project="countdown")
    with (
        pytest.raises(UserError, match="countdown.*install it, or set wandb_project to None"),
        MetricsLog(tmp_path, logging, 10),
    ):
        pass


def test_wandb_resumes_the_same_run_and_takes_the_step_as_a_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, dict]] = []
    fake = types.ModuleType("wandb")
    fake.init = lambda **kwargs: calls.append(("init", kwargs))
    fake.log = lambda record: calls.append(("log", record))
    fake.finish = lambda exit_code: calls.append(("finish", {"exit_code": exit_code}))
    fake.define_metric = lambda name, **kwargs: calls.append(("define", {name: kwargs}))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    logging = LoggingConfig(console=False, tensorboard=False, wandb_project="countdown")
    for start in (0, 1):
        with MetricsLog(tmp_path / "r", logging, 10, start_step=start, run_name="mine", resolved_config={"seed": 5}) as log:
            log.write(start + 1, "sft", {"sft/loss": 2.0})
    first, second = (kwargs for name, kwargs in calls if name == "init")
    assert first["id"] == second["id"] and first["name"] == "mine" and first["config"] == {"seed": 5}
    assert [record["step"] for name, record in calls if name == "log"] == [1, 2]
    assert ("finish", {"exit_code": 0}) in calls and ("define", {"*": {"step_metric": "step"}}) in calls
