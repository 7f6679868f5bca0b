"""What a run says about itself: a live console, `metrics.jsonl`, `samples.jsonl`, TensorBoard, and Weights & Biases if asked.

In: numbers by name (`reward/correct`, `eval/test/accuracy`, `time/step_s`) and samples. Out: one JSON line a write, flushed at
once, so that a killed run loses at most a torn last line. A run that resumes from step n cuts both files back to n first.
JSON has no word for a number that is not finite: those are written as "NaN", "Infinity" and "-Infinity", and read back.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jaxrl_ml import storage
from jaxrl_ml.config import LoggingConfig
from jaxrl_ml.types import UserError

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"

# Everything that moves a cursor, hides or reverses text, or cannot be encoded; newline, tab and the joiners that Indic scripts
# and emoji need stay.
_UNSAFE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)

# What the console shows: label, metric, format. A metric that the stage does not write is left out.
_SHOWN = (
    ("loss", "sft/loss", "{:.3f}"),
    ("reward", "reward/mean", "{:.3f}"),
    ("correct", "reward/correct", "{:.1%}"),
    ("length", "rollout/length_tokens", "{:.1f}"),
    ("entropy", "policy/entropy", "{:.3f}"),
    ("tokens/s", "rate/tokens_per_s", "{:,.0f}"),
)


def visible(text: str) -> str:
    """`text` with control characters, escape sequences, direction overrides and lone surrogates spelled out.

    Model text may drive a terminal or mislead a reader; after this it can do neither, in linear time.
    """
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def duration(seconds: float) -> str:
    """Seconds as `42s`, `3m05s` or `2h07m`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    return f"{whole // 60}m{whole % 60:02d}s" if whole < 3600 else f"{whole // 3600}h{whole // 60 % 60:02d}m"


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The records of a run's `metrics.jsonl` in order: `{"step": int, "stage": str, name: float, ...}`.

    Raises UserError where there is no such file.
    """
    path = _existing(run_dir, METRICS_FILE)
    return [
        {key: value if key in ("step", "stage") else float(value) for key, value in record.items()}
        for _, record in _lines(path)
    ]


def read_samples(run_dir: Path) -> list[dict[str, Any]]:
    """The records of a run's `samples.jsonl` in order, as `MetricsLog.log_samples` takes them.

    Raises UserError where there is no such file.
    """
    return [record for _, record in _lines(_existing(run_dir, SAMPLES_FILE))]


def series(records: Iterable[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric, by rising step; where a step was written twice the later record counts."""
    values = {record["step"]: record[name] for record in records if name in record}
    steps = sorted(values)
    return steps, [values[step] for step in steps]


def _existing(run_dir: Path, name: str) -> Path:
    path = storage.local(run_dir) / name
    if not path.is_file():
        raise UserError(f"no {name} in {run_dir}: give the folder of a run (config.run_dir)")
    return path


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Raw line and record of every readable line; one torn by a kill is skipped."""
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if line.endswith(b"\n") and isinstance(record, dict) and isinstance(record.get("step"), int):
                yield line, record


def _cut_back(path: Path, last_step: int) -> dict[str, Any]:
    """Drops the records after `last_step` from a JSONL file, atomically; returns the last record kept, or {}."""
    last: dict[str, Any] = {}
    if not path.exists():
        return last
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        for line, record in _lines(path):
            if record["step"] <= last_step:
                file.write(line)
                last = record
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return last


def plain(value: Any) -> Any:
    """`value` as what strict JSON can hold: numpy scalars become Python's, numbers that are not finite become text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


class Eta:
    """Seconds to the end at the pace of the present stage, whose first steps are left out: they compile."""

    compiling_steps = 3

    def __init__(self, total_steps: int) -> None:
        self.total_steps = total_steps
        self._stage: str | None = None
        self._step = -1
        self._seen = 0
        self._mark: tuple[int, float] | None = None

    def update(self, step: int, stage: str, now_s: float) -> float | None:
        """The estimate after `step` was seen at time `now_s`; None while there is nothing to tell it from."""
        if stage != self._stage:
            self._stage, self._step, self._seen, self._mark = stage, -1, 0, None
        if step > self._step:
            self._step = step
            self._seen += 1
            if self._seen == self.compiling_steps:
                self._mark = (step, now_s)
        if self._mark is None or step <= self._mark[0]:
            return None
        return (now_s - self._mark[1]) / (step - self._mark[0]) * (self.total_steps - step)


class _Progress:
    """The live lines on a terminal; elsewhere, one plain line every few seconds."""

    plain_every_s = 5.0

    def __init__(self, console: Console, total_steps: int, start_step: int) -> None:
        self.console = console
        self.total_steps = total_steps
        self.step = start_step
        self.stage = "starting"
        self._eta = Eta(total_steps)
        self._left_s: float | None = None
        self._started_s = time.monotonic()
        self._printed_s = -math.inf
        self._latest: dict[str, float] = {}
        self._accuracies: dict[str, float] = {}
        self._live = Live(console=console, get_renderable=self.render, refresh_per_second=2) if console.is_terminal else None

    def start(self) -> None:
        if self._live:
            self._live.start()

    def stop(self) -> None:
        if self._live:
            self._live.stop()

    def update(self, step: int, stage: str, metrics: Mapping[str, float]) -> None:
        now_s = time.monotonic()
        self._left_s = self._eta.update(step, stage, now_s)
        if stage != self.stage:
            self._latest = {}
        self.step, self.stage = step, stage
        self._latest.update(metrics)
        for name, value in metrics.items():
            if name.startswith("eval/") and name.endswith("/accuracy"):
                self._accuracies[name.split("/")[1]] = value
        due = now_s - self._printed_s >= self.plain_every_s or step >= self.total_steps
        if self._live is None and due:
            self._printed_s = now_s
            self.say(f"{stage} {step}/{self.total_steps} · {self._times()} · {'  '.join(map(' '.join, self._numbers()))}")

    def say(self, text: str) -> None:
        # soft_wrap: a log file has no width, and a terminal wraps by itself.
        self.console.print(Text(visible(text)), soft_wrap=True)

    def render(self) -> Group:
        bar = Table.grid(padding=(0, 2))
        bar.add_row(
            Text(visible(self.stage), style="bold"),
            ProgressBar(total=self.total_steps, completed=self.step, width=32),
            Text(f"{self.step}/{self.total_steps}"),
            Text(self._times(), style="dim"),
        )
        numbers = [Text.assemble((label + " ", "dim"), value) for label, value in self._numbers()]
        return Group(bar, Text("   ").join(numbers))

    def _numbers(self) -> list[tuple[str, str]]:
        now = [(label, form.format(self._latest[name])) for label, name, form in _SHOWN if name in self._latest]
        return now + [(f"accuracy({visible(name)})", f"{value:.1%}") for name, value in self._accuracies.items()]

    def _times(self) -> str:
        elapsed = duration(time.monotonic() - self._started_s)
        return elapsed if not self._left_s else f"{elapsed}, {duration(self._left_s)} left"


class MetricsLog:
    """Everything a run writes about itself, as a context manager over its folder.

    Opening it cuts `metrics.jsonl` and `samples.jsonl` back to records with step ≤ `start_step`, the step that the run resumes
    from, −1 for a new one, which writes step 0 too. To every record it adds `time/elapsed_s`, the seconds since the log was
    first opened, times between runs left out. With `enabled=False` (processes other than 0) every method does nothing. Raises
    UserError on entering where TensorBoard or Weights & Biases is asked for and not installed.
    """

    def __init__(
        self,
        run_dir: Path,
        logging: LoggingConfig,
        total_steps: int,
        start_step: int = 0,
        run_name: str | None = None,
        resolved_config: Mapping[str, Any] | None = None,
        enabled: bool = True,
        console: Console | None = None,
    ) -> None:
        self.run_dir = Path(run_dir)
        self.logging = logging
        self.total_steps = total_steps
        self.start_step = start_step
        self.run_name = run_name or self.run_dir.name
        self.resolved_config = dict(resolved_config or {})
        self.enabled = enabled
        self._console = console
        self._progress: _Progress | None = None
        self._tensorboard: Any = None
        self._wandb: Any = None
        self._metrics_file: TextIO
        self._samples_file: TextIO
        self._opened_s = 0.0  # on the monotonic clock, moved back by the time that earlier runs took

    def __enter__(self) -> MetricsLog:
        if not self.enabled:
            return self
        self.run_dir.mkdir(parents=True, exist_ok=True)
        if self.logging.tensorboard:
            self._tensorboard = self._open_tensorboard()
        if self.logging.wandb_project is not None:
            self._wandb = self._open_wandb(self.logging.wandb_project)
        last = _cut_back(self.run_dir / METRICS_FILE, self.start_step)
        _cut_back(self.run_dir / SAMPLES_FILE, self.start_step)
        self._opened_s = time.monotonic() - float(last.get("time/elapsed_s", 0.0))
        self._metrics_file = (self.run_dir / METRICS_FILE).open("a", encoding="ascii")
        self._samples_file = (self.run_dir / SAMPLES_FILE).open("a", encoding="ascii")
        if self.logging.console:
            self._progress = _Progress(self._console or Console(highlight=False), self.total_steps, max(self.start_step, 0))
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self.enabled:
            return
        if self._progress:
            self._progress.stop()
        self._metrics_file.close()
        self._samples_file.close()
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.finish(exit_code=0 if error is None else 1)

    def write(self, step: int, stage: str, metrics: Mapping[str, float]) -> None:
        """Appends one record; several writes for a step are as good as one, if they name different metrics."""
        if not self.enabled:
            return
        clash = {"step", "stage"} & metrics.keys()
        if clash:
            raise ValueError(f"a metric cannot be called {clash.pop()!r}")
        values = {name: float(value) for name, value in metrics.items()}
        elapsed_s = round(time.monotonic() - self._opened_s, 3)
        record = {"step": int(step), "stage": stage, **values, "time/elapsed_s": elapsed_s}
        _append(self._metrics_file, record)
        if self._tensorboard:
            for name, value in values.items():
                if not math.isfinite(value):  # TensorBoard cannot draw it and warns each time; the JSON line has it
                    continue
                self._tensorboard.add_scalar(name, value, int(step))
        if self._wandb:
            self._wandb.log(record)
        if self._progress:
            self._progress.update(int(step), stage, values)

    def log_samples(self, step: int, stage: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Appends samples: prompt, completion, reward, parts {name: value}, correct, truncated, advantage, length."""
        if not self.enabled:
            return
        for record in records:
            _append(self._samples_file, {"step": int(step), "stage": stage, **record})

    def say(self, text: str) -> None:
        """Prints a message, above the live lines where there are any; nothing with console off."""
        if self._progress:
            self._progress.say(text)

    def _open_tensorboard(self) -> Any:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise UserError("logging.tensorboard=True needs the package tensorboardX: install it, or turn it off") from error
        # Events of an interrupted run that lie after the step it resumes from are hidden.
        writer = SummaryWriter(str(self.run_dir / "tensorboard"), purge_step=self.start_step + 1, flush_secs=10)
        if self.start_step <= 0:
            config = json.dumps(self.resolved_config, indent=1, ensure_ascii=True)
            writer.add_text("config", "    " + config.replace("\n", "\n    "), 0)
        return writer

    def _open_wandb(self, project: str) -> Any:
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                f"logging.wandb_project={project!r} needs the package wandb: install it, or set wandb_project to None"
            ) from error
        id_file = self.run_dir / "wandb" / "run_id"
        if not id_file.exists():
            id_file.parent.mkdir(exist_ok=True)
            id_file.write_text(uuid.uuid4().hex)
        wandb.init(
            project=project,
            name=self.run_name,
            id=id_file.read_text(),
            resume="allow",
            dir=str(self.run_dir),
            config=self.resolved_config,
        )
        # The step is a metric of its own: wandb's internal counter never goes back, a resumed run does.
        wandb.define_metric("step")
        wandb.define_metric("*", step_metric="step")
        return wandb


def _append(file: TextIO, record: Mapping[str, Any]) -> None:
    file.write(json.dumps(plain(record), allow_nan=False) + "\n")
    file.flush()
