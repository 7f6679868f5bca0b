"""Countdown problems from files and to files: paths in, a task out, and back.

A file is JSONL, JSON (a list of objects), CSV or parquet, told by its suffix, with the columns `numbers` (or `nums`, as
TinyZero's data has it) and `target`, and optionally `id`, `solution` and `completion` (a demonstration for SFT). Numbers are a
list of whole numbers, or in CSV a text such as `3 4 5` or `[3, 4, 5]`. Other columns are ignored.
"""

from __future__ import annotations

import contextlib
import csv
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from jaxrl_ml.tasks.countdown.generate import MAX_NUMBER
from jaxrl_ml.types import Example, Task, UserError

_BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_MAX_DIGITS = 18  # fits 64 bits


def from_files(paths: str | Path | Sequence[str | Path]) -> Task:
    """The problems of one or more files, in order, in memory.

    A problem without `id` is called `path:row`. Raises UserError, naming file and line (row in JSON and parquet, counted
    from 1), for a missing file, an unknown suffix, malformed JSON, a field that is missing or of the wrong kind, an id that is
    used twice, and files without a problem.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    examples: list[Example] = []
    places: dict[str, str] = {}
    for path in map(Path, paths):
        for row, values in enumerate(_rows(path)):
            example = _example(path, row, values)
            if example.id in places:
                raise UserError(
                    f"{_place(path, row)}: id {example.id!r} is used already at {places[example.id]}; ids must differ"
                )
            places[example.id] = f"{path}, row {row + 1}"
            examples.append(example)
    if not examples:
        raise UserError(
            f"no problems in {', '.join(map(str, paths)) or 'an empty list of files'}; give files with at least one"
        )
    return examples


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


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file as `datasets` reads them."""
    builder = _BUILDERS.get(path.suffix.lower())
    if builder is None:
        raise UserError(f"{path}: suffix {path.suffix!r} is not one of {', '.join(_BUILDERS)}; rename or convert the file")
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of a file with Countdown problems")
    if path.stat().st_size == 0:
        return []
    import datasets

    try:
        with _quiet(), tempfile.TemporaryDirectory() as cache:  # the user's own cache is left alone
            data = datasets.load_dataset(
                builder, data_files=str(path.resolve()), split="train", cache_dir=cache, keep_in_memory=True
            )
            return data.to_list()
    except (datasets.exceptions.DatasetGenerationError, ValueError, TypeError, OSError) as error:
        # It tells neither line nor field; one look at the text does.
        for row, values in enumerate(_raw_rows(path)):
            _example(path, row, values)
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UserError(f"{path}: cannot be read as {path.suffix[1:]}: {reason}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no log of `datasets`: what goes wrong is raised."""
    import datasets

    bars_were_on, verbosity = not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if bars_were_on:
            datasets.enable_progress_bars()


def _raw_rows(path: Path) -> Iterator[Any]:
    """The rows of a text file read without `datasets`; nothing for parquet. Raises UserError at malformed JSON."""
    match path.suffix.lower():
        case ".jsonl":
            with path.open(encoding="utf-8", errors="replace") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield _parsed(line.rstrip(), path, number)
        case ".json":
            rows = _parsed(path.read_text(encoding="utf-8", errors="replace"), path, 1)
            if not isinstance(rows, list):
                raise UserError(f"{path}: holds a {type(rows).__name__}; give a list of objects, or name it .jsonl")
            yield from rows
        case ".csv":
            with path.open(encoding="utf-8", errors="replace", newline="") as file:
                try:
                    yield from csv.DictReader(file)
                except csv.Error as error:
                    raise UserError(f"{path}: malformed CSV: {error}") from error


def _parsed(text: str, path: Path, first_line: int) -> Any:
    """JSON text that starts in line `first_line` of a file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise UserError(f"{path}, line {line}: malformed JSON at column {error.colno}: {error.msg}") from error
    except (RecursionError, ValueError) as error:  # nested too deep, or an integer too long
        raise UserError(f"{path}, line {first_line}: malformed JSON: {error}") from error


def _place(path: Path, row: int) -> str:
    """Where a row (from 0) stands, in words."""
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        with path.open("rb") as file:
            filled = (number for number, line in enumerate(file, 1) if line.strip())
            return f"{path}, line {next(islice(filled, row, None), row + 1)}"
    if suffix == ".csv":
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            reader = csv.DictReader(file)
            next(islice(reader, row, None), None)
            return f"{path}, line {reader.line_num}"
    return f"{path}, row {row + 1}"


def _example(path: Path, row: int, values: Any) -> Example:
    def wrong(problem: str) -> UserError:
        return UserError(f"{_place(path, row)}: {problem}")

    if not isinstance(values, Mapping):
        raise wrong(f"holds a {type(values).__name__}; give an object with numbers and target")
    shown = values.get("numbers") if values.get("numbers") is not None else values.get("nums")
    if shown is None:
        columns = ", ".join(name for name in values if name) or "nothing"
        raise wrong(f"no numbers (it has {columns}); give a list of whole numbers in the column numbers or nums")
    numbers = _whole_numbers(shown)
    if numbers is None:
        raise wrong(f"numbers={_short(shown)} must be a list of one or more whole numbers in 0..{MAX_NUMBER}")
    target = _whole(values.get("target"))
    if target is None:
        raise wrong(f"target={_short(values.get('target'))} must be a whole number")
    fields: dict[str, Any] = {"numbers": numbers, "target": target}
    for name in ("id", "solution", "completion"):
        if not isinstance(values.get(name), (str, int, type(None)) if name == "id" else (str, type(None))):
            raise wrong(f"{name}={_short(values[name])} must be text, or absent")
    if values.get("solution") is not None:
        fields["solution"] = values["solution"]
    identity = values.get("id")
    return Example(
        id=f"{path}:{row + 1}" if identity is None else str(identity),
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
    elif isinstance(value, int):  # a CSV column of single numbers
        value = [value]
    if not isinstance(value, Sequence) or not value:
        return None
    numbers = tuple(map(_whole, value))
    return None if any(number is None or not 0 <= number <= MAX_NUMBER for number in numbers) else numbers


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
