"""Records of evaluations come back as they were, are cut back on resuming, and never stop a run for what is in them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jaxrl_ml.config import LoggingConfig
from jaxrl_ml.metrics import MetricsLog
from jaxrl_ml.records import cut_back, read_records, record_files, write_records
from jaxrl_ml.types import Example, UserError

EXAMPLES = [
    Example("a", "countdown/3", {"numbers": (3, 4, 5), "target": 17, "pattern": "A*B+C"}),
    Example("b", "countdown/3", {"numbers": (1, 2, 3), "target": 6}),
]


def records(examples: list[Example] = EXAMPLES, completion: str = "3*4+5") -> list[dict[str, Any]]:
    return [
        {
            "id": example.id, "task": example.task, "sample": sample, "prompt": "p", "completion": f"{completion} {sample}",
            "correct": sample == 0, "reward": 1.0 - sample, "length": 7, "details": {}, "truncated": False,
        }
        for example in examples
        for sample in range(2)
    ]  # fmt: skip


def test_records_come_back(tmp_path: Path) -> None:
    path = write_records(tmp_path, "n3", 50, records(), EXAMPLES)
    assert path == tmp_path / "records" / "n3-50.parquet"
    assert [file.name for file in path.parent.iterdir()] == ["n3-50.parquet"], "nothing is left over"
    rows = list(read_records(path))
    assert rows[1] == {
        "id": "a", "task": "countdown/3", "sample": 1, "correct": False, "reward": 0.0, "length": 7, "completion": "3*4+5 1",
        "fields": {"numbers": [3, 4, 5], "target": 17, "pattern": "A*B+C"},
    }  # fmt: skip
    assert [(row["id"], row["sample"]) for row in rows] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert rows[2]["fields"] == {"numbers": [1, 2, 3], "target": 6}
    first = path.read_bytes()
    assert write_records(tmp_path, "n3", 50, records(), EXAMPLES).read_bytes() == first, "equal records, equal files"


@pytest.mark.parametrize("text", ["", "\ud800 \x00\x1b[2J", "四 = ४ \u202e", "'\"\n\r\n,;"])
def test_any_text_and_any_field_can_be_kept(tmp_path: Path, text: str) -> None:
    fields = {"array": np.arange(3), "number": np.float32(0.5), "set": {1}, "text": text, "nan": float("nan"), "none": None}
    examples = [Example(text, text, fields)]
    rows = list(read_records(write_records(tmp_path, "any", 0, records(examples, text), examples)))
    kept = text.replace("\ud800", "\\ud800")
    assert rows[0]["completion"] == f"{kept} 0" and rows[0]["id"] == rows[0]["task"] == kept
    found = rows[0]["fields"]
    assert (found["array"], found["number"], found["set"], found["text"]) == ([0, 1, 2], 0.5, "{1}", text)


def test_files_are_listed_in_order_and_cut_back(tmp_path: Path) -> None:
    assert record_files(tmp_path) == {}
    cut_back(tmp_path, 0)
    for name, step in (("n-4", 100), ("n-4", 20), ("n-4", 3), ("n3", 20), ("ood/n5", 50)):
        write_records(tmp_path, name, step, records(), EXAMPLES)
    (tmp_path / "records" / "notes-x.parquet").write_text("not ours")
    assert {name: list(files) for name, files in record_files(tmp_path).items()} == {
        "n-4": [3, 20, 100], "n3": [20], "ood/n5": [50],
    }  # fmt: skip
    cut_back(tmp_path, 20)
    assert {name: list(files) for name, files in record_files(tmp_path).items()} == {"n-4": [3, 20], "n3": [20]}
    assert (tmp_path / "records" / "notes-x.parquet").exists()


def test_what_does_not_fit_is_refused_and_a_broken_file_named(tmp_path: Path) -> None:
    for wrong in (records()[:-1], records(EXAMPLES[::-1]), records(EXAMPLES[:1])):
        with pytest.raises(ValueError, match="n3"):
            write_records(tmp_path, "n3", 0, wrong, EXAMPLES)
    path = write_records(tmp_path, "n3", 0, records(), EXAMPLES)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="n3-0.parquet") as broken:
        list(read_records(path))
    assert "\n" not in str(broken.value)


def test_a_run_keeps_the_records_of_the_evaluations_that_ask_for_it(tmp_path: Path) -> None:
    from jaxrl_ml.evaluate import EvaluationResult
    from jaxrl_ml.train import Run

    def evaluator(keeps: bool) -> SimpleNamespace:
        result = EvaluationResult({"accuracy": 0.5}, records())
        return SimpleNamespace(run=lambda *_: result, evaluation=SimpleNamespace(records=keeps), examples=EXAMPLES)

    for enabled in (False, True):
        run = object.__new__(Run)
        run.run_dir, run.programs = tmp_path, SimpleNamespace(gather=lambda params: params)
        run.evaluators = {"n3": evaluator(True), "maths": evaluator(False)}
        with MetricsLog(tmp_path, LoggingConfig(console=False, tensorboard=False), 9, enabled=enabled) as run.log:
            metrics = run._evaluate(SimpleNamespace(params=None), 3, "grpo")
        assert metrics == {"eval/n3/accuracy": 0.5, "eval/maths/accuracy": 0.5}
        kept = {name: list(files) for name, files in record_files(tmp_path).items()}
        assert kept == ({"n3": [3]} if enabled else {}), "only the main process writes"
