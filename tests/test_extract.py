"""Expressions in completions: tables of what models write, an oracle that walks Python's syntax tree, and operation counts."""

from __future__ import annotations

import ast
import random
from functools import partial

import numpy as np
import pytest
from conftest import lines_run
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_ml.tasks.countdown import extract as module
from jaxrl_ml.tasks.countdown.expressions import read
from jaxrl_ml.tasks.countdown.extract import MAX_EXPRESSION_CHARS, Found, extract
from jaxrl_ml.types import UserError

FOUND = [  # text, the expressions over 3, 4 and 2 in it
    ("3*4+2", ["3*4+2"]),
    ("so 3 * 4 + 2 = 14 and (3*4)+2", ["3 * 4 + 2", "(3*4)+2"]),
    ("14 = 3*4+2", ["3*4+2"]),
    ("2+3*4 = 3*4+2 = 14", ["2+3*4", "3*4+2"]),
    ("(3*4+2)*5", ["(3*4+2)"]),
    ("3*4+2-14=0", ["3*4+2"]),
    ("3*4+2+2*0", ["3*4+2"]),
    ("5 + 3*4*2", ["3*4*2"]),
    ("5 - (2-3-4)", ["(2-3-4)"]),
    ("5*(3*4+2)", ["(3*4+2)"]),
    ("( (3*4+2) )", ["( (3*4+2) )"]),
    ("(3*4+2 = 14)", ["3*4+2"]),
    ("f(3*4+2)", ["(3*4+2)"]),
    ("(3*4+2)^2", ["(3*4+2)"]),
    ("- 3*4 + 2\n* 3+4-2\n+ 4-2-3", ["3*4 + 2", "3+4-2", "4-2-3"]),
    ("1. 3*4+2\n2) 4*3+2", ["3*4+2", "4*3+2"]),
    ("**3*4+2** and **(3*4)+2** = 14", ["3*4+2", "(3*4)+2"]),
    ("**Answer:** 3*4+2", ["3*4+2"]),
    (r"\(3 \times 4 + 2\)", [r"3 \times 4 + 2"]),
    (r"\((3+4)*2\) and \[3*4+2\]", ["(3+4)*2", "3*4+2"]),
    (r"3*4+2\\ 3*(4+2)\quad", ["3*4+2", "3*(4+2)"]),
    ("so...3*4+2...", ["3*4+2"]),
    (r"\[ \frac{3}{4} + 2 \]", [r"\frac{3}{4} + 2"]),
    (r"$\frac{3+4}{2}$", [r"\frac{3+4}{2}"]),
    (r"\frac {3+4} {2}", [r"\frac {3+4} {2}"]),
    (r"\frac{1}{\frac{3}{4}+2}", [r"\frac{3}{4}+2"]),
    (r"\boxed{3*4+2}", ["3*4+2"]),
    (r"\left(3+4\right)\cdot2 = \dfrac{3}{4}\div 2", [r"\left(3+4\right)\cdot2", r"\dfrac{3}{4}\div 2"]),
    ("<answer>3*4+2</answer>", ["3*4+2"]),
    ("`3*4+2`", ["3*4+2"]),
    ("所以3×4+2等于14，對嗎？", ["3×4+2"]),
    ("🙂3−4÷2🙂", ["3−4÷2"]),
    ("3*4+2. Or 3+4+2, or 3-4-2!", ["3*4+2", "3+4+2", "3-4-2"]),
    ("3*4+2 (which is 14)", ["3*4+2"]),
    ("3*4+2 - yes", ["3*4+2"]),
    ("\ud8003*4+2\x00", ["3*4+2"]),
    ("3*4+2\r\n4*3+2\r\n", ["3*4+2", "4*3+2"]),
]
NOTHING = [
    "", "3, 4, 2", "[3, 4, 2]", "3 4 2", "3 4 + 2", "- 3\n- 4\n- 2", "3*4=12, 12+2=14", "3+4=2", "3*4\n+2", "3*4",
    "2*0+3*4+2", "5*3*4+2", "5-3*4+2", "x - 3*4+2", "-3*4+2", "= -3+4+2", "3*-4+2", "3*4+2*5", "3*4+2/", "*3*4+2",
    "2^3+4*2", "3^4+2", "3**4+2", "5 ** 3*4+2", "3*4+2**2", "3*4+2 ** (2)", "(3*4)+2^2", "3//4+2", "3*4+2(5)", "3*4+2{5}",
    r"3*4+2\frac{1}{2}", "(5)3*4+2", "sqrt(3*4)+2", r"\sqrt{3}*4+2", r"\frac{9}{3}*4+2", r"\frac{3}{4+2", r"\frac34+2",
    "3*4+2x", "x3*4+2", "x4*3+2", "3*4+2_1", "3*(4)x+2", "3.4*2", "3.5*4+2", "3*4+2.5", "3*4+2.4.2", "3*4+02", "03*4+2",
    "3*4+2e5", "30*4+2", "3*4+20", "3*(4+2", "3*4)+2", ")3*4(+2", "3|4+2", "3*4+２", "3∗4+2",
    "3*4 + " + " " * MAX_EXPRESSION_CHARS + "2",
]  # fmt: skip


def spans(text: str, *numbers: int) -> list[str]:
    return [text[found.start : found.end] for found in extract([text], [numbers])[0]]


@pytest.mark.parametrize(("text", "expected"), FOUND, ids=lambda x: ascii(x)[:24])
def test_found(text, expected):
    assert spans(text, 3, 4, 2) == expected
    assert spans(text, 2, 3, 4) == expected
    for found in extract([text], [(3, 4, 2)])[0]:
        assert found.expression == read(text[found.start : found.end])


@pytest.mark.parametrize("text", NOTHING, ids=lambda x: ascii(x)[:24])
def test_not_found(text):
    assert spans(text, 3, 4, 2) == []


def test_numbers_are_a_multiset():
    assert spans("5+5 5*5+5 3+5 5+5*5", 5, 5) == ["5+5", "5*5", "5*5"]
    assert spans("5+5 and 5*5*5", 5, 5, 5) == ["5*5*5"]
    assert spans("5", 5) == []
    assert spans("999999999-0", 0, 999999999) == ["999999999-0"]
    assert spans("1+9999999999", 1, 9999999999 % 10**9) == []


def test_batch_equals_rows():
    rows = (
        [(text, (3, 4, 2)) for text, _ in FOUND] + [(text, (4, 3, 2)) for text in NOTHING] + [("1+2", (2, 1)), ("1+2", (1, 3))]
    )
    random.Random(0).shuffle(rows)
    batch = extract(*zip(*rows, strict=True))
    assert batch == [extract([text], [numbers])[0] for text, numbers in rows]
    assert sum(map(len, batch)) == sum(len(expected) for _, expected in FOUND) + 1
    assert all(isinstance(found, Found) for row in batch for found in row)


def test_what_is_found_does_not_hang_on_the_hash(monkeypatch):
    monkeypatch.setattr(module, "_hashes", lambda values: np.zeros(len(values), np.uint64))
    for text, expected in [*FOUND, *((text, []) for text in NOTHING)]:
        assert spans(text, 3, 4, 2) == expected


def test_batches_larger_than_a_chunk(monkeypatch):
    texts = [f"{'x' * (i % 7)} so 1+{i}" for i in range(100)] + ["", "1+0" * 40]
    numbers = [(1, i) for i in range(100)] + [(1, 2), (1, 0)]
    whole = extract(texts, numbers)
    assert [len(row) for row in whole[:100]] == [1] * 100
    for size in (1, 10, 64):
        monkeypatch.setattr(module, "_CHUNK_CHARS", size)
        assert extract(texts, numbers) == whole


def test_empty_batches_and_texts():
    assert extract([], []) == []
    assert extract(["", ""], [(1, 2), (3,)]) == [[], []]
    assert extract(["1+2"], [np.array([2, 1])])[0][0].expression.skill.pattern == "A+B"


@pytest.mark.parametrize("numbers", [(), (1, -2), (1, 10**9), (1,) * 17])
def test_numbers_out_of_range_are_refused(numbers):
    with pytest.raises(UserError, match="extract: numbers="):
        extract(["1+2", "1+2"], [(1, 2), numbers])


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 texts for 1 lists"):
        extract(["", ""], [(1, 2)])


def oracle(text: str, numbers: tuple[int, ...]) -> list[tuple[int, int, str]]:
    """The spans, inside all parentheses, and Python's own tree of every subtree of an expression with exactly these numbers."""
    found = []
    for node in ast.walk(ast.parse(text, mode="eval").body):
        leaves = sorted(leaf.value for leaf in ast.walk(node) if isinstance(leaf, ast.Constant))
        if isinstance(node, ast.BinOp) and leaves == sorted(numbers):
            found.append((node.col_offset, node.end_col_offset, ast.unparse(node)))
    return sorted(found)


@settings(deadline=None, derandomize=True, max_examples=400)
@given(st.integers(0, 2**32), st.integers(2, 9), st.integers(2, 4))
def test_in_an_expression_exactly_its_subtrees_are_found(seed, count, given_count):
    rng = random.Random(seed)
    terms = [str(rng.randint(1, 3)) for _ in range(count)]
    while len(terms) > 1:
        place = rng.randrange(len(terms) - 1)
        left, right = terms.pop(place), terms.pop(place)
        term = f"{left}{rng.choice(['', ' '])}{rng.choice('+-*/')}{rng.choice(['', ' '])}{right}"
        terms.insert(place, f"({term})" if rng.random() < 0.4 else term)
    text, numbers = terms[0], tuple(rng.randint(1, 3) for _ in range(given_count))
    expected = oracle(text, numbers)
    found = extract([text], [numbers])[0]
    assert [ast.unparse(ast.parse(text[f.start : f.end].strip(), mode="eval").body) for f in found] == [e[2] for e in expected]
    for own, (start, end, _) in zip(found, expected, strict=True):
        assert own.start <= start < end <= own.end
        assert set(text[own.start : start] + text[end : own.end]) <= set("() ")


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.lists(st.one_of(st.text(max_size=40), st.text("12+-*/(){}=\\frac×.\n x", max_size=40)), max_size=6))
def test_whatever_is_found_is_an_expression_over_the_numbers(texts):
    for text, row in zip(texts, extract(texts, [(1, 2)] * len(texts)), strict=True):
        for found in row:
            assert read(text[found.start : found.end]) == found.expression
            assert sorted(found.expression.numbers) == [1, 2]
        assert all(a.end <= b.start for a, b in zip(row, row[1:], strict=False))


def operations(text: str, numbers: tuple[int, ...], monkeypatch) -> tuple[int, int]:
    """Lines of Python run to extract from a text, and characters handed to the parser."""
    characters = 0

    def counting(part):
        nonlocal characters
        characters += len(part)
        return read(part)

    monkeypatch.setattr(module, "read", counting)
    lines = lines_run(partial(extract, [text], [numbers]))
    return lines, characters


@pytest.mark.parametrize(
    ("unit", "numbers"),
    [
        ("1+", (1, 1)), ("1 ", (1, 1)), ("(1+1)", (1, 1)), ("(((1+1", (1, 1)), ("1+1)))", (1, 1)), ("1+1" + " " * 60, (1, 1)),
        ("1" + " " * 60, (1, 1)), ("1+1" + "(" * 60, (1, 1)), ("\\frac{1}{1}", (1, 1)), ("1**", (1, 1)), ("1+1 ** ", (1, 1)),
        ("((((((((", (1, 1)), ("\\left(", (1, 1)), ("9", (1, 1)), (" ", (1, 1)), ("1+", (1,) * 6),
    ],
)  # fmt: skip
def test_cost_is_linear_in_the_text(unit, numbers, monkeypatch):
    """1, 10 and 100 kB of text made to be slow: ten times the text costs at most ten times the operations, and few a character.

    What is done in C outside the parser is numpy on the whole batch, and searches within a window and what surrounds it.
    """
    counts = [operations((unit * size)[:size], numbers, monkeypatch) for size in (1_000, 10_000, 100_000)]
    warm_up = 12_000  # lines: the forms that come up for the first time, and what does not depend on the text
    for (small, small_parsed), (large, large_parsed) in zip(counts, counts[1:], strict=False):
        assert large <= 10.5 * small + warm_up
        assert large_parsed <= 10.5 * small_parsed + 5_000
    assert counts[-1][0] <= 100_000 * 60 and counts[-1][1] <= 100_000 * (len(numbers) + 2)
