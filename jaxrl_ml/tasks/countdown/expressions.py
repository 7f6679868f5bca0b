r"""Countdown expressions as models write them: text in, numbers, tree, value and skill out.

Read are

* ASCII decimal numbers of at most nine digits without leading zeros, the operators + - * / and × ÷ −, parentheses, and ASCII
  white space;
* LaTeX: `\times`, `\cdot`, `\div`, `\frac{a}{b}`, `\dfrac{a}{b}`, `\left(` and `\right)`;
* after the expression `= 24`, whatever the whole number: a pattern is a pattern also where the sum is done wrong.

Anything else is refused with its position, as are expressions without an operator or with more than MAX_NUMBERS numbers. A sign
in front of an operand (`-3`, `+3`) is refused as the reward refuses it: it makes a number out of none, and there is no pattern
with one. `1/0` is an expression, without a value.

The text is hostile: reading it is linear in its length, nothing recurses into parentheses, and numbers are not converted before
their digits are counted. It is also read by the million, so all that does not depend on the numbers is worked out once for each
*form*, the text with `0` for every number and without white space, such as `(0+0)*0`, and cached.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

from jaxrl_ml.tasks.countdown.generate import MAX_NUMBER, Tree
from jaxrl_ml.tasks.countdown.patterns import MAX_NUMBERS, Node, Skill, skill_of
from jaxrl_ml.types import UserError

MAX_FORM_CHARS = 512
"""Longest expression, less white space and with each number counted as one character. Bounds the depth of parentheses."""
ATOM = 3
"""`Form.binds` of an expression in parentheses or of a fraction: they bind tighter than any operator."""
_MAX_DIGITS = len(str(MAX_NUMBER))

# What stands for an operator or for nothing, with text of the same length, so that positions stay true, and spans too: what
# opens something stands where the command starts, what closes something where it ends.
_SAME_LENGTH = (("×", "*"), ("÷", "/"), ("−", "-"))
_SAME_LENGTH_LATEX = (
    (r"\times", "     *"), (r"\cdot", "    *"), (r"\div", "   /"), (r"\dfrac", r"\frac "),
    (r"\left(", "(     "), (r"\right)", "      )"),
)  # fmt: skip
_WHITE_SPACE = str.maketrans("", "", " \t\n\r\v\f")
_SPACE = r"[ \t\n\r\v\f]*"
_NUMBER = re.compile("[0-9]+")
_RESULT = re.compile(f"{_SPACE}-?{_SPACE}[0-9]+{_SPACE}")
_RESULT_SO_FAR = re.compile(f"{_SPACE}-?{_SPACE}[0-9]*{_SPACE}")
_TOKEN = re.compile(rf"[0-9]+|\\frac{_SPACE}\{{|\}}{_SPACE}\{{|[^ \t\n\r\v\f]")
_FORM_TOKEN = re.compile(r"\\frac\{|\}\{|.")
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}
_AFTER_OPERAND = {*_PRECEDENCE, ")", "}{", "}"}
_TOKENS = {"0", "(", "\\frac{"} | _AFTER_OPERAND
_WANTED = {
    False: "is where a number or ( is expected",
    True: "is where an operator or the end is expected",
}
_CLOSED_BY = {"(": ")", "\\frac{": "}{", "}{": "}"}


class ExpressionError(UserError):
    """A text that is no expression; `position`, from 0, is that of the first character that cannot be read."""

    def __init__(self, text: str, position: int, reason: str) -> None:
        super().__init__(f"no expression: at position {position}, {_shown(text, position)} {reason}")
        self.position = position


def _shown(text: str, position: int) -> str:
    """What stands at a position, fit for one line on any terminal."""
    command = re.compile(r"\\[A-Za-z]{1,20}").match(text, position)
    return ascii(command[0] if command else text[position]) if position < len(text) else "the end"


class Form(NamedTuple):
    """What an expression is, whatever its numbers."""

    program: str  # as written, in reverse Polish notation, 0 for a number: `00+0*`
    binds: int  # precedence of the outermost operator: 1 for + and -, 2 for * and /, else ATOM
    order: tuple[int, ...]  # place in the expression, from 0, of the pattern's letters A, B, C, …
    skill: Skill


class _Fault(NamedTuple):
    token: int  # place of the token at fault
    reason: str


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression that was read: its numbers from left to right, and its form."""

    numbers: tuple[int, ...]
    form: Form

    @property
    def skill(self) -> Skill:
        """Pattern, semantic class, shape, balance, depth and sub-skills."""
        return self.form.skill

    @property
    def letters(self) -> tuple[int, ...]:
        """The numbers that the pattern's letters A, B, C, … stand for."""
        return tuple(self.numbers[place] for place in self.form.order)

    @property
    def tree(self) -> Tree:
        """The binary tree as written: a number or (operator, left, right)."""
        return _run(self.form.program, self.numbers, lambda operator, left, right: (operator, left, right))

    @property
    def value(self) -> Fraction | None:
        """The exact value; None where there is a division by zero in the expression as written."""
        pairs = _run(self.form.program, [(number, 1) for number in self.numbers], _pair)
        return Fraction(*pairs) if pairs[1] else None


def parse(text: str) -> Expression:
    """The expression of a text. Raises ExpressionError where it is none."""
    expression = read(text)
    if expression is None:
        raise _complaint(text)
    return expression


def read(text: str) -> Expression | None:
    """As `parse`, but None where the text is no expression."""
    text, equals, right = plain(text).partition("=")
    if equals and not _RESULT.fullmatch(right):
        return None
    digits = _NUMBER.findall(text)
    if len(digits) > MAX_NUMBERS or any(map(_is_malformed, digits)):
        return None
    if text.count("\\") != text.count("\\frac"):  # or white space within a command would be lost
        return None
    form = _NUMBER.sub("0", text).translate(_WHITE_SPACE)
    found = _form(form) if len(form) <= MAX_FORM_CHARS else None
    return Expression(tuple(map(int, digits)), found) if isinstance(found, Form) else None


def plain(text: str) -> str:
    """The text with ASCII operators for all that mean the same; every character that stays keeps its position."""
    if not text.isascii():
        for symbol, operator in _SAME_LENGTH:
            text = text.replace(symbol, operator)
    if "\\" in text:
        for command, operator in _SAME_LENGTH_LATEX:
            text = text.replace(command, operator)
    return text


def _is_malformed(digits: str) -> bool:
    return len(digits) > _MAX_DIGITS or (digits[0] == "0" and len(digits) > 1)


def _complaint(text: str) -> ExpressionError:
    """Why a text is no expression, and where."""
    original, (text, equals, right) = text, plain(text).partition("=")
    tokens = list(itertools.islice(_TOKEN.finditer(text), MAX_FORM_CHARS + 1))
    words = [token[0].translate(_WHITE_SPACE) for token in tokens]
    form = "".join("0" if _NUMBER.match(word) else "?" if word == "\\" else word for word in words)
    faults = []
    if len(form) > MAX_FORM_CHARS:
        faults.append(_Fault(len(tokens) - 1, f"makes the expression longer than {MAX_FORM_CHARS} characters"))
    elif isinstance(found := _form(form), _Fault):
        faults.append(found)
    for place, word in enumerate(words):
        if _NUMBER.match(word) and _is_malformed(word):
            what = f"of more than {_MAX_DIGITS} digits" if len(word) > _MAX_DIGITS else "with leading zeros"
            faults.append(_Fault(place, f"starts a number {what}"))
            break
    if faults:
        place, reason = min(faults)
        position = tokens[place].start() if place < len(tokens) else len(text)
    else:
        reason = "is not as expected: only `=` and one whole number may follow the expression"
        position = len(text) + len(equals) + _RESULT_SO_FAR.match(right).end()
    return ExpressionError(original, position, reason)


@functools.lru_cache(maxsize=1 << 15)
def _form(text: str) -> Form | _Fault:
    """The form of a text that has `0` for every number and no white space, by Dijkstra's shunting yard."""
    program: list[str] = []
    operands: list[Node] = []
    pending: list[tuple[str, int]] = []  # operators and what opens a group, with the places of their tokens
    depth, binds = 0, ATOM
    after_operand = False

    def apply(operator: str) -> None:
        right = operands.pop()
        operands[-1] = operands[-1].combine(operator, right)
        program.append(operator)

    def apply_down_to(precedence: int) -> None:
        while pending and _PRECEDENCE.get(pending[-1][0], 0) >= precedence:
            apply(pending.pop()[0])

    place = -1
    for place, token in enumerate(_FORM_TOKEN.findall(text)):
        if token not in _TOKENS:
            return _Fault(place, "is no part of an expression")
        if after_operand != (token in _AFTER_OPERAND):
            sign = "; signs in front of operands are not read" if token in ("+", "-") else ""
            return _Fault(place, _WANTED[after_operand] + sign)
        if token == "0":
            operands.append(Node.number(program.count("0")))
            program.append(token)
            if program.count("0") > MAX_NUMBERS:
                return _Fault(place, f"starts the number after {MAX_NUMBERS}, the most there may be")
            after_operand = True
        elif token in _PRECEDENCE:
            apply_down_to(_PRECEDENCE[token])
            binds = binds if depth else min(binds, _PRECEDENCE[token])
            pending.append((token, place))
            after_operand = False
        elif token in ("(", "\\frac{"):
            pending.append((token, place))
            depth += 1
        else:
            apply_down_to(1)
            if not pending or _CLOSED_BY[pending.pop()[0]] != token:
                return _Fault(place, "closes nothing that is open")
            if token == "}{":
                pending.append((token, place))
                after_operand = False
                continue
            depth -= 1
            if token == "}":
                apply("/")
    if not after_operand:
        return _Fault(place + 1, _WANTED[False])
    apply_down_to(1)
    if pending:
        return _Fault(pending[-1][1], "is never closed")
    if program == ["0"]:
        return _Fault(place + 1, "is where an operator is expected: a number alone has no pattern")
    return Form("".join(program), binds, operands[0].order, skill_of(operands[0]))


def _run(program: str, numbers: Sequence[Any], operation: Callable[[str, Any, Any], Any]) -> Any:
    """What a program makes of its numbers when `operation` is what an operator does."""
    rest = iter(numbers)
    stack: list[Any] = []
    for symbol in program:
        if symbol == "0":
            stack.append(next(rest))
        else:
            right = stack.pop()
            stack[-1] = operation(symbol, stack[-1], right)
    return stack[0]


def _pair(operator: str, left: tuple[int, int], right: tuple[int, int]) -> tuple[int, int]:
    """One operation on fractions (numerator, denominator); a denominator of 0 marks what is undefined, and stays."""
    (a, b), (c, d) = left, right
    match operator:
        case "+":
            return a * d + c * b, b * d
        case "-":
            return a * d - c * b, b * d
        case "*":
            return a * c, b * d
    return a * d, b * c * bool(d)
