"""Countdown problems from files: the same problems back, and errors that say where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jaxrl_ml.tasks.countdown import Countdown, from_files, write_jsonl
from jaxrl_ml.types import UserError

GOOD = '{"nums": [3, 4, 5], "target": 12}\n'


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def solved(example, rng):
    return f"<answer>{example.fields['solution']}</answer> é{rng.randrange(9)}"


@pytest.mark.parametrize("demonstrate", [None, solved])
def test_written_problems_read_back_the_same(tmp_path, demonstrate):
    task = Countdown(num_numbers=(2, 3, 4), demonstrate=demonstrate, seed=1)
    write_jsonl(task, tmp_path / "problems.jsonl", 40)
    read = from_files(tmp_path / "problems.jsonl")
    assert list(read) == [task[i] for i in range(40)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["problems.jsonl"]


def test_all_formats_give_the_same_problems(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"nums": [3, 4, 5], "target": 12, "completion": "a\nb"}, {"nums": [7, 8], "target": -1, "completion": None}]
    write(tmp_path, "a.jsonl", "\n\n".join(map(json.dumps, rows)))
    write(tmp_path, "a.json", json.dumps(rows, indent=1))
    write(tmp_path, "a.csv", 'nums,target,completion\n"[3, 4, 5]",12,"a\nb"\n7 8,-1,\n')
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.json", "a.csv", "a.parquet"):
        first, second = from_files(tmp_path / name)
        assert first.fields == {"numbers": (3, 4, 5), "target": 12} and first.completion == "a\nb", name
        assert second.fields == {"numbers": (7, 8), "target": -1} and second.completion is None, name
        assert (first.task, second.task) == ("countdown/3", "countdown/2")
        assert (first.id, second.id) == (f"{tmp_path / name}:1", f"{tmp_path / name}:2")


def test_several_files_are_one_task_in_order(tmp_path):
    paths = [write(tmp_path, "a.jsonl", GOOD), write(tmp_path, "b.jsonl", '{"numbers": [1, 2], "target": 3}\n' + GOOD)]
    assert [example.fields["target"] for example in from_files(paths)] == [12, 3, 12]


def test_the_users_cache_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    from_files(write(tmp_path, "a.jsonl", GOOD))
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("name", "text", "place", "message"),
    [
        ("a.jsonl", GOOD + '{"nums": [3, 4], "target":\n', "line 2", "malformed JSON at column"),
        ("a.jsonl", GOOD + "\n" + "not json\n", "line 3", "malformed JSON"),
        ("a.jsonl", GOOD + "[" * 100_000 + "\n", "line 2", "malformed JSON"),
        ("a.jsonl", GOOD + "\n" + '{"nums": [3, 4]}\n', "line 3", "target=None"),
        ("a.jsonl", GOOD + '{"nums": [3, 4], "target": "abc"}\n', "line 2", "target='abc'"),
        ("a.jsonl", GOOD + '{"nums": [3, 4], "target": 1.5}\n', "line 2", "target=1.5"),
        ("a.jsonl", GOOD + '{"nums": [3, 4], "target": true}\n', "line 2", "target=True"),
        ("a.jsonl", GOOD + '{"nums": [3, "x"], "target": 1}\n', "line 2", "numbers=[3, 'x']"),
        ("a.jsonl", GOOD + '{"nums": [], "target": 1}\n', "line 2", "numbers=[]"),
        ("a.jsonl", GOOD + '{"nums": [3, -4], "target": 1}\n', "line 2", "numbers=[3, -4]"),
        ("a.jsonl", GOOD + '{"nums": "three", "target": 1}\n', "line 2", "numbers='three'"),
        ("a.jsonl", GOOD + '{"target": 1}\n', "line 2", "no numbers"),
        ("a.jsonl", GOOD + "3\n", "line 2", ""),
        ("a.jsonl", GOOD + '{"nums": [3, 4], "target": 1, "completion": 5}\n', "line 2", "completion=5"),
        ("a.jsonl", '{"id": "x", "nums": [1], "target": 1}\n' * 2, "line 2", "'x' is used already"),
        ("a.json", '[{"nums": [3, 4], "target": 7},\n {"nums": [3, 4], "target": }]', "line 2", "malformed JSON"),
        ("a.json", '[{"nums": [3, 4], "target": 7}, {"nums": [3, 4], "target": null}]', "row 2", "target=None"),
        ("a.csv", "nums,target\n3 4,7\n3 4,\n", "line 3", "target=None"),
        ("a.csv", "nums,target\n3 4,7\n3 x,7\n", "line 3", "numbers='3 x'"),
        ("a.csv", "numbers;target\n3 4;7\n", "line 2", "no numbers"),
    ],
)
def test_errors_name_file_and_line(tmp_path, name, text, place, message):
    path = write(tmp_path, name, text)
    with pytest.raises(UserError) as error:
        from_files(path)
    assert f"{path}, {place}: " in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"), [("a.txt", "'.txt'"), ("absent.jsonl", "no such file"), ("a.jsonl", "no problems")]
)
def test_files_that_cannot_be_used(tmp_path, name, message):
    if name != "absent.jsonl":
        write(tmp_path, name, "")
    with pytest.raises(UserError, match=message):
        from_files(tmp_path / name)


def test_a_broken_parquet_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"bad\.parquet: cannot be read as parquet"):
        from_files(write(tmp_path, "bad.parquet", "PAR1 no"))


def test_count_must_fit_the_task(tmp_path):
    with pytest.raises(UserError, match="count=4 must be in 1..3"):
        write_jsonl(Countdown(size=3), tmp_path / "a.jsonl", 4)
    assert list(tmp_path.iterdir()) == []
