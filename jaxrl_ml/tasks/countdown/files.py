"""Countdown problems from files and to files: paths in, a task out, and back.

A file is JSONL, JSON (a list of objects), CSV, TSV or parquet, told by its suffix, with the columns `numbers` (or `nums`, as
TinyZero's data has it) and `target`, and optionally `id`, `solution` and `completion` (a demonstration for SFT). Numbers are a
list of whole numbers, or in CSV a text such as `3 4 5` or `[3, 4, 5]`. Other columns are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxrl_ml.tasks.countdown.generate import MAX_NUMBER
from jaxrl_ml.tasks.files import Row, collect, read, short
from jaxrl_ml.types import Example, Task, UserError

_MAX_DIGITS = 18  # fits 64 bits


def from_files(paths: str | Path | Sequence[str | Path]) -> Task:
    """The problems of one or more files, in order, in memory.

    A problem without `id` is called `path:row`. Raises UserError, naming file and line (row in JSON and parquet, counted
    from 1), for a missing file, an unknown suffix, malformed JSON, a field that is missing or of the wrong kind, an id that is
    used twice, and files without a problem.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else paths  # a list: never the name of a hub data set
    return collect(read(list(paths)), _example)


def write_jsonl(task: Task, path: str | Path, count: int) -> None:
    """Writes the first `count` problems of a Countdown task as JSONL that `from_files` reads back to the same examples.

    The file appears when it is complete. Raises UserError where the task has fewer problems.
    """
    if not 0 < count <= len(task):
        raise UserError(f"count={count} must be in 1..{len(task)}, the size of the task")
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for index in range(count):
            example = task[index]
            row = {"id": example.id, **example.fields, "completion": example.completion}
            row = {name: value for name, value in row.items() if value is not None}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    temporary.replace(path)


def _example(row: Row) -> Example:
    values = row.values
    shown = values.get("numbers") if values.get("numbers") is not None else values.get("nums")
    if shown is None:
        columns = ", ".join(name for name in values if name) or "nothing"
        raise row.wrong(f"no numbers (it has {columns}); give a list of whole numbers in the column numbers or nums")
    numbers = _whole_numbers(shown)
    if numbers is None:
        raise row.wrong(f"numbers={short(shown)} must be a list of one or more whole numbers in 0..{MAX_NUMBER}")
    target = _whole(values.get("target"))
    if target is None:
        raise row.wrong(f"target={short(values.get('target'))} must be a whole number")
    fields: dict[str, Any] = {"numbers": numbers, "target": target}
    for name in ("id", "solution", "completion", "pattern"):
        if not isinstance(values.get(name), (str, int, type(None)) if name == "id" else (str, type(None))):
            raise row.wrong(f"{name}={short(values[name])} must be text, or absent")
    fields |= {name: values[name] for name in ("solution", "pattern") if values.get(name) is not None}
    identity = values.get("id")
    return Example(
        id=f"{row.source}:{row.index + 1}" if identity is None else str(identity),
        task=f"countdown/{len(numbers)}",
        fields=fields,
        completion=values.get("completion"),
    )


def _whole(value: Any) -> int | None:
    """A whole number from a number or, as CSV has it, its text; None where it is none."""
    if isinstance(value, str):
        digits = value.strip().removeprefix("-")
        plain = digits.isascii() and digits.isdecimal() and len(digits) <= _MAX_DIGITS
        return int(value) if plain else None
    if isinstance(value, float) and value.is_integer():  # a column with a gap in it is read as floats
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 10**_MAX_DIGITS:
        return None
    return value


def _whole_numbers(value: Any) -> tuple[int, ...] | None:
    if isinstance(value, str):
        value = value.strip().removeprefix("[").removesuffix("]").replace(",", " ").split()
    if not isinstance(value, Sequence) or not value:
        return None
    numbers = tuple(map(_whole, value))
    return None if any(number is None or not 0 <= number <= MAX_NUMBER for number in numbers) else numbers
