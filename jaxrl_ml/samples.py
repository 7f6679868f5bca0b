"""`python -m jaxrl_ml.samples RUN`: page through what the policy wrote, with its reward parts.

In: a run's `samples.jsonl` and a selection. Out: text, through the terminal's pager where there is a terminal. Model text is
shown with control characters spelled out and is never read as markup.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console, Group
from rich.rule import Rule
from rich.text import Text

from jaxrl_ml.cli import run_command
from jaxrl_ml.metrics import read_samples, visible
from jaxrl_ml.types import UserError

Flag = tyro.conf.FlagCreatePairsOff[bool]


def select(
    records: Sequence[Mapping[str, Any]],
    step: int | None = None,
    stage: str | None = None,
    correct: bool | None = None,
    sort: Literal["reward", "length", "step"] = "step",
    limit: int = 0,
) -> list[Mapping[str, Any]]:
    """The samples of a step, stage and verdict (None: any), best, longest or newest first; limit 0 is all of them."""
    kept = [
        record
        for record in records
        if (step is None or record["step"] == step)
        and (stage is None or record["stage"] == stage)
        and (correct is None or bool(record.get("correct")) == correct)
    ]

    def key(record: Mapping[str, Any]) -> float:
        value = float(record.get(sort, 0))  # a reward that is not finite was written as text
        return -math.inf if math.isnan(value) else value

    kept.sort(key=key, reverse=True)
    return kept[:limit] if limit else kept


def render(record: Mapping[str, Any]) -> Group:
    """One sample: a title, the prompt, the completion, and how the reward came about."""
    correct = bool(record.get("correct"))
    title = Text.assemble(
        f"step {record['step']} · {visible(str(record['stage']))} · ",
        ("correct", "bold green") if correct else ("wrong", "bold red"),
    )
    parts = " + ".join(f"{visible(name)} {_number(value)}" for name, value in record.get("parts", {}).items())
    verdict = f"reward {_number(record.get('reward', 0.0))}" + (f" = {parts}" if parts else "")
    if "advantage" in record:
        verdict += f" · advantage {_number(record['advantage'], sign='+')}"
    if "length" in record:
        verdict += f" · {int(record['length'])} tokens" + (", truncated" if record.get("truncated") else "")
    return Group(
        Rule(title, align="left", characters="─", style="dim"),
        Text(visible(record.get("prompt", "")), style="dim"),
        Text("→ " + visible(record.get("completion", ""))),
        Text(verdict, style="cyan"),
        "",
    )


def _number(value: float | str, sign: str = "") -> str:
    return f"{float(value):{sign}.3g}"


def main(argv: list[str] | None = None) -> None:
    """Entry point; raises UserError where the run has no sample log or nothing matches."""
    tyro.cli(_show, args=argv, prog="python -m jaxrl_ml.samples")


def _show(
    run: Annotated[Path, tyro.conf.Positional],
    step: int | None = None,
    stage: str | None = None,
    correct: Flag = False,
    wrong: Flag = False,
    limit: int = 50,
    sort: Literal["reward", "length", "step"] = "step",
) -> None:
    """Page through the samples of a run.

    Args:
        run: Folder of the run.
        step: Only samples of this step.
        stage: Only samples of this stage.
        correct: Only correct ones.
        wrong: Only wrong ones.
        limit: At most this many; 0 shows all.
        sort: Best, longest or newest first.
    """
    if correct and wrong:
        raise UserError("--correct and --wrong leave nothing: give one of them")
    if limit < 0:
        raise UserError(f"--limit {limit} must not be negative; 0 shows all")
    records = read_samples(run)
    chosen = select(records, step, stage, True if correct else False if wrong else None, sort, limit)
    if not chosen:
        raise UserError(f"none of the {len(records)} samples in {run} match; logged are {_range(records)}")
    console = Console(highlight=False)
    if not console.is_terminal:
        _print(console, chosen)
        return
    os.environ.setdefault("LESS", "FRX")  # as git does: colours, and no pager for what fits on the screen
    with console.pager(styles="less" in os.environ.get("PAGER", "less")):
        _print(console, chosen)


def _print(console: Console, records: Sequence[Mapping[str, Any]]) -> None:
    for record in records:
        console.print(render(record))


def _range(records: Sequence[Mapping[str, Any]]) -> str:
    if not records:
        return "none yet"
    steps = [record["step"] for record in records]
    return f"steps {min(steps)} to {max(steps)} of {', '.join(sorted({visible(str(r['stage'])) for r in records}))}"


if __name__ == "__main__":
    run_command(main)
