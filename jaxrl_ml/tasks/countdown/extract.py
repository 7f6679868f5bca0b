r"""Expressions in completions: B texts and B lists of numbers in, per text every expression over exactly those numbers out.

What counts is a complete sub-expression, as `expressions` reads them, on one line, that uses each given number exactly once and
no other: it is no part of a longer term. In `(3*4 + 2) * 5 = 14*5` and in `3*4 + 2 - 14 = 0` there is `3*4 + 2`; in
`5 * 3*4 + 2` and `x - 3*4 + 2` there is not. `=`, words and all other characters end an expression, so each side of an
equation is looked at, and lists (`3, 4, 2`), LaTeX delimiters, `\boxed{…}`, tags, bullets, `1.`, `1)`, **bold** and code marks
do no harm. A chain of steps (`3*4 = 12, 12+2 = 14`) uses 12 twice and is no expression: results are not substituted.
Parentheses around an expression belong to it. Expressions found in one text do not overlap, as each number stands in one of
them at most.

Numbers that touch a letter or are part of a decimal (`x4`, `2a`, `3.5`), powers and calls (`f(3)+4`) take no part.

The work is linear in the length of the texts. For the whole batch at once, numpy finds all numbers and then all windows of n
consecutive numbers, n as many as given, whose multiset is the given one, by a running sum of hashes. Only at these, few unless
the text is made up of them, is the syntax looked at: a window costs its own length and the white space and brackets around it,
and a character lies in n windows and between two neighbours at most.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxrl_ml.tasks.countdown.expressions import ATOM, Expression, plain, read
from jaxrl_ml.tasks.countdown.generate import MAX_NUMBER
from jaxrl_ml.tasks.countdown.patterns import MAX_NUMBERS
from jaxrl_ml.types import UserError

MAX_EXPRESSION_CHARS = 512
"""A longer stretch of text, white space included, is not looked at."""
_CHUNK_CHARS = 1 << 22  # bounds the memory of a large batch
_MAX_DIGITS = len(str(MAX_NUMBER))
_NOT_A_NUMBER = -1
_BETWEEN = "\n"  # no expression goes on in the next line, nor in the next text

_CORE = re.compile(r"(?:[-+*/0-9(){} \t]|\\frac)+")
_BRACKETS = re.compile(r"[(){}]")
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "^": 3}
_ENDS_OPERAND = frozenset(")}0123456789")
_STARTS_OPERAND = frozenset("({0123456789")
_BULLETS = frozenset("-*+")
_LETTERS = np.zeros(256, bool)
_LETTERS[[byte for byte in range(128) if chr(byte).isalpha() or chr(byte) == "_"]] = True


class Found(NamedTuple):
    """An expression and where in its text it stands: `text[start:end]`, enclosing parentheses included."""

    start: int
    end: int
    expression: Expression


def extract(texts: Sequence[str], numbers: Sequence[Sequence[int]]) -> list[list[Found]]:
    """The expressions of each of B texts that use each of its given numbers exactly once, in order of appearance.

    Raises UserError where a list of numbers is empty, has more than MAX_NUMBERS or one outside 0..MAX_NUMBER, and ValueError
    where the lengths differ. A single number is never found: it is no expression.
    """
    if len(texts) != len(numbers):
        raise ValueError(f"{len(texts)} texts for {len(numbers)} lists of numbers")
    given = [sorted(map(operator.index, own)) for own in numbers]
    for own in given:
        if not 0 < len(own) <= MAX_NUMBERS or own[0] < 0 or own[-1] > MAX_NUMBER:
            raise UserError(f"extract: numbers={own} must be 1 to {MAX_NUMBERS} whole numbers in 0..{MAX_NUMBER}")
    found: list[list[Found]] = []
    for start, end in _chunks(texts):
        found.extend(_extract(texts[start:end], given[start:end]))
    return found


def _chunks(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Ranges of rows with about _CHUNK_CHARS characters, or one longer text."""
    start = size = 0
    for row, text in enumerate(texts):
        size += len(text)
        if size >= _CHUNK_CHARS:
            yield start, row + 1
            start, size = row + 1, 0
    if start < len(texts):
        yield start, len(texts)


def _extract(texts: Sequence[str], given: Sequence[list[int]]) -> list[list[Found]]:
    lengths = np.array([len(text) for text in texts])
    text = plain(_BETWEEN.join(texts))
    offsets = np.cumsum(lengths + len(_BETWEEN)) - lengths - len(_BETWEEN)
    starts, ends, values = _numbers_of(np.frombuffer(text.encode("latin-1", "replace"), np.uint8))
    rows, first, last = _windows(values, np.searchsorted(starts, offsets), given)
    near = ends[last] - starts[first] <= MAX_EXPRESSION_CHARS
    rows, first, last = rows[near], first[near], last[near]
    values = values.tolist()
    found: list[list[Found]] = [[] for _ in texts]
    windows = rows, offsets[rows], first, last, starts[first], ends[last]
    for row, offset, i, j, start, end in zip(*(column.tolist() for column in windows), strict=True):
        if sorted(values[i : j + 1]) == given[row] and (hit := _at(text, start, end)):
            found[row].append(Found(hit.start - offset, hit.end - offset, hit.expression))
    return found


def _numbers_of(buffer: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All runs of digits in a text, uint8 [chars]: starts, ends and values, int64 [numbers].

    A number that touches a letter or is part of a decimal has a value that is never given. Of too long a number the value is
    that of its first digits, and a leading zero does not count: the parser refuses both.
    """
    padded = np.pad(buffer, 2)  # with zeros, so that what is next to the text is neither digit nor letter
    is_digit = padded - ord("0") < 10  # uint8 wraps round below "0"
    edges = np.flatnonzero(is_digit[1:] != is_digit[:-1]) + 1
    starts, ends = edges[::2], edges[1::2]
    values = np.zeros(len(starts), np.int64)
    lengths = ends - starts
    for place in range(min(lengths.max(initial=0), _MAX_DIGITS)):
        longer = np.flatnonzero(lengths > place)
        values[longer] = 10 * values[longer] + padded[starts[longer] + place] - ord("0")
    touches_letter = _LETTERS[padded[starts - 1]] | _LETTERS[padded[ends]]
    decimal = ((padded[starts - 1] == ord(".")) & is_digit[starts - 2]) | ((padded[ends] == ord(".")) & is_digit[ends + 1])
    values[touches_letter | decimal] = _NOT_A_NUMBER
    return starts - 2, ends - 2, values


def _windows(
    values: np.ndarray, first_of_row: np.ndarray, given: Sequence[list[int]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows of consecutive numbers that, but for a clash of hashes, are a row's given ones: row, first and last number."""
    counts = np.array([len(own) for own in given])
    bounds = np.append(first_of_row, len(values))
    row = np.repeat(np.arange(len(given)), np.diff(bounds))
    last = np.arange(len(values)) + counts[row] - 1
    whole = np.flatnonzero(last < bounds[row + 1])
    row, first, last = row[whole], whole, last[whole]
    running = np.append(np.uint64(0), np.cumsum(_hashes(values), dtype=np.uint64))
    wanted = np.add.reduceat(_hashes(np.concatenate(given).astype(np.int64)), np.cumsum(counts) - counts)
    match = running[last + 1] - running[first] == wanted[row]
    return row[match], first[match], last[match]


def _hashes(values: np.ndarray) -> np.ndarray:
    """Numbers that are spread over 64 bits, so that sums of few of them differ (the mixing steps of SplitMix64)."""
    mixed = (values.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _at(text: str, start: int, end: int) -> Found | None:
    """The complete expression whose first and last number end and start a stretch of text, if there is one."""
    core = _CORE.fullmatch(text, start, end)
    extended = _with_brackets(text, start, end) if core else None
    if extended is None:
        return None
    start, end = extended
    expression = read(text[start:end])
    if expression is None or not _is_complete(text, start, end, expression.form.binds):
        return None
    return Found(start, end, expression)


def _with_brackets(text: str, start: int, end: int) -> tuple[int, int] | None:
    """The stretch with the brackets that it needs around it, and with all parentheses that enclose it; None where they lack."""
    opened: list[str] = []
    missing: list[str] = []
    for bracket in _BRACKETS.findall(text, start, end):
        if bracket in "({":
            opened.append(bracket)
        elif opened:
            opened.pop()  # the parser sees whether they match
        else:
            missing.append(bracket)
    for bracket in missing:
        start = _left_of(text, start) - 1
        if not text.startswith("(" if bracket == ")" else "{", max(start, 0)):
            return None
        if bracket == "}":
            start = _left_of(text, start) - len("\\frac")
            if not text.startswith("\\frac", max(start, 0)):
                return None
    for bracket in reversed(opened):
        end = _right_of(text, end)
        if not text.startswith(")" if bracket == "(" else "}", end):
            return None
        end += 1
    while True:
        left, right = _left_of(text, start), _right_of(text, end)
        if not (left and text[left - 1] == "(" and text.startswith(")", right)):
            return start, end
        start, end = left - 1, right + 1


def _is_complete(text: str, start: int, end: int, binds: int) -> bool:
    """Whether an expression is no part of a longer term: what stands beside it binds its operands less than it does itself."""
    if binds == ATOM:
        return True
    before, after = text[start - 1 : start], text[end : end + 1]
    if before in _ENDS_OPERAND or after in _STARTS_OPERAND or _is_letter(before) or _is_letter(after):
        return False
    if text.startswith("\\frac", end):
        return False
    return _PRECEDENCE.get(_operator_before(text, start), 0) < binds >= _PRECEDENCE.get(_operator_after(text, end), 0)


def _operator_before(text: str, start: int) -> str:
    """The character before the blanks before a place, `^` for a power; nothing where it is a bullet or opens bold type."""
    left = _left_of(text, start)
    if text.endswith("**", 0, left):
        ahead = _left_of(text, left - 2)
        return "^" if text[ahead - 1 : ahead] in _ENDS_OPERAND else ""
    before = text[left - 1 : left]
    if before in _BULLETS and left < start:
        ahead = _left_of(text, left - 1)
        return "" if text[ahead - 1 : ahead] in ("", _BETWEEN) else before
    return before


def _operator_after(text: str, end: int) -> str:
    """The character after the blanks after a place, `^` for a power; nothing where it closes bold type."""
    right = _right_of(text, end)
    if text.startswith("**", right):
        ahead = _right_of(text, right + 2)
        return "^" if text[ahead : ahead + 1] in _STARTS_OPERAND else ""
    return text[right : right + 1]


def _is_letter(character: str) -> bool:
    return character.isascii() and character.isalpha()


def _left_of(text: str, position: int) -> int:
    """The position after the last character before a position that is not a blank."""
    while position and text[position - 1] in " \t":
        position -= 1
    return position


def _right_of(text: str, position: int) -> int:
    """The position of the first character from a position on that is not a blank."""
    while position < len(text) and text[position] in " \t":
        position += 1
    return position
