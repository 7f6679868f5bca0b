"""Rows of data sets: a hub name or file paths in, tables of rows out that know where each row stands.

A file is JSONL, JSON (a list of objects), CSV, TSV or parquet, by its suffix, on local disk, gs:// or s3://; text is UTF-8. CSV
and TSV values are text and an empty one is None: nothing is guessed, so an answer `007` or `NA` stays what it is. TSV has no
quotes: a tab ends a value, a line ends a row. Parquet and hub data sets stay Arrow tables, text formats become lists of dicts.
A hub data set is read with `datasets`, from its cache where it has been loaded before.

A column name with dots, such as `reward_model.ground_truth`, names a field of an object in a column, at any depth. A column
whose own name has the dot takes precedence.

Errors are one line that begins with the file (or the hub name, configuration and split) and the line, counted from 1: in JSON,
parquet and hub data sets the row.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxrl_ml import storage
from jaxrl_ml.types import HALF_CHARACTER, Example, Message, UserError

if TYPE_CHECKING:
    import pyarrow

Source = str | Path | Sequence[str | Path]
"""A hub name, or the path of one file, or the paths of several that are read one after the other."""

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Row:
    """One row and where it stands; its methods check the value that they return."""

    values: Mapping[str, Any]
    source: str
    index: int  # from 0, within its source
    number: int  # from 0, over all sources that were read together
    line: int | None = None  # from 1, where the format has lines

    @property
    def place(self) -> str:
        return f"{self.source}, row {self.index + 1}" if self.line is None else f"{self.source}, line {self.line}"

    def wrong(self, problem: str) -> UserError:
        """The error that says what is wrong with this row."""
        return UserError(f"{self.place}: {problem}")

    def value(self, column: str) -> Any:
        """The value in a column, or in a field of one, None where it or an object around it is null.

        Raises UserError where there is no such column or field.
        """
        path, fields, rest = "", self.values, column
        while True:
            name = _longest_prefix(rest, fields)
            if name is None and not path:
                columns = ", ".join(str(name) for name in self.values if name) or "no columns"
                raise self.wrong(f"no column {column!r}, it has {columns}; rename a column or give another file")
            if name is None:
                names = ", ".join(map(str, fields)) or "no fields"
                raise self.wrong(f"no column {column!r}, {path} has {names}; name one of them or give another file")
            value, path = fields[name], f"{path}.{name}" if path else name
            if value is None or name == rest:
                return value
            rest = rest[len(name) + 1 :]
            if not isinstance(value, Mapping):
                raise self.wrong(f"{path}={short(value)} is no object with a field {rest!r}; name another column")
            fields = value

    def is_blank(self, column: str) -> bool:
        value = self.value(column)
        return value is None or (isinstance(value, str) and not value.strip())

    def text(self, column: str) -> str:
        """The text in a column, stripped; raises UserError where it is no text, blank, or nothing that UTF-8 can hold."""
        return self._checked(self.value(column), column).strip()

    def _checked(self, value: Any, name: str) -> str:
        """The value, which must be text; `name` is what an error calls it."""
        if value is not None and not isinstance(value, str):
            raise self.wrong(f"{name}={short(value)} must be text")
        if value is None or not value.strip():
            raise self.wrong(f"{name} is empty; fill it or leave the row out")
        if half := HALF_CHARACTER.search(value):  # JSON can spell it, but no tokenizer can encode it
            raise self.wrong(f"{name} has half of a character, {half[0]!r}, at position {half.start()}; mend the text")
        return value

    def messages(self, column: str) -> list[Message]:
        """The chat messages in a column, their contents unchanged, the last one the user's.

        Raises UserError where the value is no list of objects with `role` and `content`, and where a prompt cannot be made of
        them: another role than system, user and assistant, a content that is no text or blank, a message after the user's last.
        """
        listed = self.value(column)
        if not isinstance(listed, list) or not listed or not all(isinstance(message, Mapping) for message in listed):
            raise self.wrong(f"{column}={short(listed)} must be text or a list of messages with role and content")
        messages = []
        for index, message in enumerate(listed):
            name = f"{column}[{index}]"
            if "role" not in message or "content" not in message:
                raise self.wrong(f"{name}={short(message)} must have role and content")
            if message["role"] not in _ROLES:
                raise self.wrong(f"{name} has role={short(message['role'])}; it must be one of {', '.join(_ROLES)}")
            more = [str(key) for key, value in message.items() if key not in ("role", "content") and value is not None]
            if more:
                raise self.wrong(f"{name} has {more[0]!r}; a message of a prompt has role and content only: remove it")
            messages.append({"role": message["role"], "content": self._checked(message["content"], f"{name}.content")})
        if messages[-1]["role"] != "user":
            raise self.wrong(
                f"the last message of {column} has role {messages[-1]['role']!r}; a prompt must end with the user's"
            )
        return messages

    def scalar(self, column: str) -> str:
        """The text or number in a column, as text; a whole float, as a column with gaps has them, loses its `.0`.

        No float has an exponent: `1e-05` is no number to a verifier, 0.00001 is.
        """
        value = self.value(column)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return self.text(column)
        if isinstance(value, float) and not math.isfinite(value):
            raise self.wrong(f"{column}={value} must be text or a finite number")
        return str(int(value)) if value == int(value) else f"{Decimal(str(value)):f}"


@dataclass(frozen=True)
class Table:
    """The rows of one file or hub data set."""

    name: str
    rows: list[Any] | pyarrow.Table
    lines: Sequence[int] | None = None  # where each row begins
    first: int = 0  # the number of its first row

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        values = self.rows[index] if isinstance(self.rows, list) else self.rows.slice(index, 1).to_pylist()[0]
        line = None if self.lines is None else self.lines[index]
        row = Row(values, self.name, index, self.first + index, line)
        if not isinstance(values, Mapping):
            raise row.wrong(f"holds a {type(values).__name__}; give an object with named fields")
        return row

    def __iter__(self) -> Iterator[Row]:
        return map(self.__getitem__, range(len(self)))

    def column(self, name: str) -> list[Any]:
        """All values of a column; raises UserError where there is none. Much faster than row by row on an Arrow table."""
        if isinstance(self.rows, list):
            return [row.value(name) for row in self]
        outer = _longest_prefix(name, self.rows.column_names)
        if outer is None:
            raise UserError(f"{self.name}: no column {name!r}, it has {', '.join(self.rows.column_names)}; give another file")
        values = self.rows.column(outer).to_pylist()
        if outer == name:
            return values
        return [Row({outer: value}, self.name, i, self.first + i).value(name) for i, value in enumerate(values)]


def read(
    source: Source,
    *,
    config: str | None = None,
    split: str = "train",
    columns: Sequence[str] | None = None,
    header: Sequence[str] | None = None,
) -> list[Table]:
    """The tables of a source, one a file; a hub data set is one.

    A text that ends in one of SUFFIXES or names a file that exists is a path, any other a hub name; `config` and `split` are
    for the hub. `columns` are those that an Arrow table keeps, where it has them; of a column with a wanted field it keeps all.
    `header` names the columns of TSV files that have no header line. Raises UserError for a file that is missing, malformed or
    of an unknown suffix, and for a data set that cannot be loaded.
    """
    if isinstance(source, str) and Path(source).suffix.lower() not in SUFFIXES and not Path(source).is_file():
        return [_from_hub(source, config, split, columns)]
    paths = [source] if isinstance(source, (str, Path)) else list(source)
    tables: list[Table] = []
    for path in paths:
        first = tables[-1].first + len(tables[-1]) if tables else 0
        tables.append(replace(_from_file(storage.at(path), columns, header), first=first))
    return tables


def collect(tables: Sequence[Table], make: Callable[[Row], Example | None]) -> list[Example]:
    """The examples that `make` gives for each row, in order; None leaves a row out.

    Raises UserError for an id that is used twice, and where there is no example.
    """
    examples: list[Example] = []
    places: dict[str, str] = {}
    for table in tables:
        for row in table:
            example = make(row)
            if example is None:
                continue
            if example.id in places:
                raise row.wrong(f"id {example.id!r} is used already at {places[example.id]}; ids must differ")
            places[example.id] = row.place
            examples.append(example)
    if not examples:
        raise no_problems(tables)
    return examples


def no_problems(tables: Sequence[Table]) -> UserError:
    names = ", ".join(table.name for table in tables)
    return UserError(f"no problems in {names or 'an empty list of files'}; give files with at least one")


def short(value: Any) -> str:
    """A value's repr, cut to fit in an error."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _longest_prefix(column: str, names: Container[str]) -> str | None:
    """The column itself where it is among the names, else the longest of its dotted prefixes that is, else None."""
    while column not in names:
        column, dot, _ = column.rpartition(".")
        if not dot:
            return None
    return column


def _kept(columns: Sequence[str], names: Sequence[str]) -> list[str]:
    """The names that hold the wanted columns, each once."""
    outer = (_longest_prefix(column, names) for column in columns)
    return list(dict.fromkeys(name for name in outer if name is not None))


def _from_hub(name: str, config: str | None, split: str, columns: Sequence[str] | None) -> Table:
    import datasets

    full_name = f"{name} ({config}, {split})" if config else f"{name} ({split})"
    try:
        with _quiet():
            data = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the network's, the hub's and the builders' errors have no common class
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"{full_name}: cannot be loaded from the hub; give a name that can, or the path of a local copy "
            f"({', '.join(SUFFIXES)}): {reason[:300]}"
        ) from error
    if columns is not None:
        data = data.select_columns(_kept(columns, data.column_names))
    return Table(full_name, data.with_format("arrow")[:])


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


def _from_file(path: Path, columns: Sequence[str] | None, header: Sequence[str] | None) -> Table:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: suffix {path.suffix!r} is not one of {', '.join(SUFFIXES)}; rename or convert the file")
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of one that exists")
    if suffix == ".parquet":
        return _parquet(path, columns)
    if suffix == ".json":
        text = "".join(text for _, text in _lines(path))
        rows = _parsed(text, path, 1) if text.strip() else []
        if not isinstance(rows, list):
            raise UserError(f"{path}: holds a {type(rows).__name__}; give a list of objects, or name it .jsonl")
        return Table(str(path), rows)
    if suffix == ".jsonl":
        numbered = [(line, _parsed(text.strip(), path, line)) for line, text in _lines(path) if text.strip()]
    elif suffix == ".csv":
        numbered = list(_cells_to_rows(path, _csv_cells(path), None))
    else:
        cells = ((line, text.rstrip("\r\n").split("\t")) for line, text in _lines(path) if text.strip())
        numbered = list(_cells_to_rows(path, cells, header))
    return Table(str(path), [row for _, row in numbered], [line for line, _ in numbered])


def _parquet(path: Path, columns: Sequence[str] | None) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        with path.open("rb") as raw, pyarrow.parquet.ParquetFile(raw) as file:
            if columns is None:
                return Table(str(path), file.read())
            kept = _kept(columns, file.schema_arrow.names)
            return Table(str(path), file.read(kept).select(kept))  # pyarrow takes `a.b` for the field of `a`, too
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read as parquet; write it anew: {reason[:300]}") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file with their numbers, from 1. Lines end at a line feed and at no other character."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{path}, line {number}: byte {error.start + 1} is not UTF-8; convert the file") from error


def _parsed(text: str, path: Path, first_line: int) -> Any:
    """JSON text that starts in line `first_line` of a file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        hint = "; if every line is an object, name it .jsonl" if path.suffix.lower() == ".json" else ""
        raise UserError(f"{path}, line {line}: malformed JSON at column {error.colno}: {error.msg}{hint}") from error
    except (RecursionError, ValueError) as error:  # nested too deep, or an integer too long
        raise UserError(f"{path}, line {first_line}: malformed JSON: {error}") from error


def _csv_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file with the line that each begins in."""
    csv.field_size_limit(2**31 - 1)  # 128 KiB else, less than a long trace
    reader = csv.reader((text for _, text in _lines(path)), strict=True)
    line = 1
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {line}: malformed CSV: {error}") from error


def _cells_to_rows(
    path: Path, rows: Iterator[tuple[int, list[str]]], header: Sequence[str] | None
) -> Iterator[tuple[int, dict[str, str | None]]]:
    for line, cells in rows:
        if header is None:
            header = cells
            repeated = sorted({name for name in header if header.count(name) > 1})
            if repeated:
                raise UserError(f"{path}, line {line}: column {repeated[0]!r} is there twice; rename one")
            continue
        if len(cells) != len(header):
            raise UserError(
                f"{path}, line {line}: {len(cells)} values for {len(header)} columns ({', '.join(header)}); "
                "quote or escape what separates values"
            )
        yield line, {name: cell or None for name, cell in zip(header, cells, strict=True)}
