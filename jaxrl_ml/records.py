"""What evaluations of a run saw: `RUN/records/NAME-STEP.parquet`, a row for every sample of evaluation NAME at a step.

In: an evaluation's records and its problems, where `Evaluation.records` asks for it. Out: files with the columns `id`,
`task`, `sample`, `correct`, `reward`, `length`, `completion` and `fields`, the problem's own fields as JSON; samples of a
problem are adjacent. A file appears when it is complete. A run that resumes from step n deletes those after n first, as it cuts
back its metrics, and writes the same again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxrl_ml import storage
from jaxrl_ml.types import Example, UserError

FOLDER = "records"
_ROWS_READ = 4096  # at a time


def write_records(
    run_dir: Path, name: str, step: int, records: Sequence[Mapping[str, Any]], examples: Sequence[Example]
) -> Path:
    """Writes the records of evaluation `name` at a step, as many for each of the examples and in their order.

    Raises ValueError where the records are not those of the examples.
    """
    import pyarrow as pa
    from pyarrow import parquet

    num_samples = len(records) // max(len(examples), 1)
    repeated = [example.id for example in examples for _ in range(num_samples)]
    if repeated != [record["id"] for record in records]:
        raise ValueError(f"the records of evaluation {name} are not those of its problems")
    fields = [json.dumps(dict(example.fields), default=_as_json) for example in examples]
    columns = {
        "id": (pa.string(), map(_encodable, repeated)),
        "task": (pa.string(), (_encodable(record["task"]) for record in records)),
        "sample": (pa.int32(), (record["sample"] for record in records)),
        "correct": (pa.bool_(), (record["correct"] for record in records)),
        "reward": (pa.float64(), (record["reward"] for record in records)),
        "length": (pa.int32(), (record["length"] for record in records)),
        "completion": (pa.string(), (_encodable(record["completion"]) for record in records)),
        "fields": (pa.string(), (text for text in fields for _ in range(num_samples))),
    }
    table = pa.table({column: pa.array(list(values), kind) for column, (kind, values) in columns.items()})
    path = storage.local(run_dir) / FOLDER / f"{name}-{step}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    parquet.write_table(table, temporary, compression="zstd")
    temporary.replace(path)
    return path


def _as_json(value: Any) -> Any:
    """What JSON has for a value of a user's own: arrays as lists, all else as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _encodable(text: str) -> str:
    """The text with lone surrogates, which no file in UTF-8 can hold, spelled out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def record_files(run_dir: Path) -> dict[str, dict[int, Path]]:
    """The files of a run by evaluation and step, both in rising order; none where the run keeps no records."""
    found: dict[str, dict[int, Path]] = {}
    folder = storage.local(run_dir) / FOLDER
    for path in folder.rglob("*-*.parquet"):  # a name may have a slash
        name, _, step = path.relative_to(folder).as_posix().removesuffix(".parquet").rpartition("-")
        if step.isascii() and step.isdecimal():
            found.setdefault(name, {})[int(step)] = path
    return {name: dict(sorted(files.items())) for name, files in sorted(found.items())}


def cut_back(run_dir: Path, last_step: int) -> None:
    """Deletes the files of steps after `last_step`."""
    for files in record_files(run_dir).values():
        for step, path in files.items():
            if step > last_step:
                path.unlink()


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file, one by one, `fields` as a mapping again. Raises UserError where it cannot be read."""
    import pyarrow as pa
    from pyarrow import parquet

    text, fields = None, {}
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS_READ):
                for row in batch.to_pylist():
                    if row["fields"] != text:  # once a problem
                        text, fields = row["fields"], json.loads(row["fields"])
                    yield {**row, "fields": fields}
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {reason}); delete it to go on without it") from error
