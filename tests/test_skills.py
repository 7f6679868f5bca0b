"""The command that tells of an expression: its text, its JSON lines, its mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_ml.skills import lines, main
from jaxrl_ml.types import UserError

COMMAND = [sys.executable, "-m", "jaxrl_ml.skills"]


def told(*texts: bytes) -> list[dict]:
    return [json.loads(line) for line in lines(texts)]


def test_an_expression_is_told_and_drawn(capsys):
    main(["12 - (3 + 4) / 7"])
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "pattern    A-(B+C)/D   (A=12, B=3, C=4, D=7)",
        "class      A-(B+C)/D",
        "shape      [1]∘[3], right-heavy",
        "depth      3",
        "sub-skills (A+B)/C, A+B",
        "value      11",
        "−",
        "├── 12",
        "└── ÷",
        "    ├── +",
        "    │   ├── 3",
        "    │   └── 4",
        "    └── 7",
    ]


def test_a_class_of_two_patterns_and_no_value(capsys):
    main(["1-(2-3)/(4-4)"])
    out = capsys.readouterr().out
    assert "A-(B-C)/(D-E)" in out and "none: a division by zero" in out


def test_json_lines():
    assert told(b"1 - (2 - 3) * 4\n", rb"\frac{1}{2} \times 3 = 24", "8÷(3−1)\r\n".encode()) == [
        {
            "expression": "1 - (2 - 3) * 4", "pattern": "A-(B-C)*D", "semantic_class": "(A-B)*C+D",
            "shape": "[1]∘[3]", "balance": "right-heavy", "depth": 3,
        },
        {
            "expression": r"\frac{1}{2} \times 3 = 24", "pattern": "A*B/C", "semantic_class": "A*B/C",
            "shape": "[2]∘[1]", "balance": "left-heavy", "depth": 2,
        },
        {
            "expression": "8÷(3−1)", "pattern": "A/(B-C)", "semantic_class": "A/(B-C)",
            "shape": "[1]∘[2]", "balance": "right-heavy", "depth": 2,
        },
    ]  # fmt: skip


HOSTILE = [
    b"",
    b"\n",
    b"   \n",
    b"\xff\xfe+1\n",
    b"\x00\n",
    b"1+\n",
    b"[red]1[/red]\n",
    b"(" * 100_000,
    b"9" * 100_000,
    b"1+" * 50_000,
]


@pytest.mark.parametrize("line", HOSTILE)
def test_hostile_lines_are_refused_in_one_line_of_ascii(line):
    (written,) = lines([line])
    assert written.isascii() and "\n" not in written
    record = json.loads(written)
    assert record.keys() == {"expression", "error"}
    assert "position" in record["error"] and len(record["error"]) < 200


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.lists(st.one_of(st.binary(max_size=20), st.text("12+-*/()=\\frac{} ×", max_size=20).map(str.encode))))
def test_a_line_each_whatever_stands_in_it(texts):
    records = [json.loads(line) for line in lines(texts)]
    assert len(records) == len(texts)
    assert all(("error" in record) != ("pattern" in record) for record in records)


@pytest.mark.parametrize(
    ("argv", "message"),
    [([], "either an expression"), (["1+2", "--stdin"], "either an expression"), (["1+(2"], "position 2"), (["1+\x1b"], "x1b")],
)
def test_mistakes_are_one_line(argv, message):
    with pytest.raises(UserError, match=message) as error:
        main(argv)
    assert "\n" not in str(error.value) and "\x1b" not in str(error.value)


def test_as_a_command():
    """An ASCII terminal, a closed pipe and a mistake end no program with a traceback."""
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    shown = subprocess.run([*COMMAND, "1 − 2/3"], capture_output=True, env=ascii_only, check=True)
    assert b"A-B/C" in shown.stdout and shown.stdout.isascii()
    wrong = subprocess.run([*COMMAND, "1 +"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and "position 3" in wrong.stderr
    reader, writer = os.pipe()
    os.close(reader)
    closed = subprocess.run([*COMMAND, "--stdin"], input=b"1+2\n" * 3, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert closed.returncode == 0 and closed.stderr == b""
