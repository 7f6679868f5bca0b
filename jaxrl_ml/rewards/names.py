r"""Names of values in an answer: `x = 3`, `f(2) = 3`, `x = 1, y = 2`, `(x, y) = (1, 2)`. Pure functions of tidy LaTeX.

A name may be left out. If the left side of `=` is not a name, the text is an equation, and its right side alone is a different
answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from jaxrl_ml.rewards.structure import split, squeezed

NAME = re.compile(r"[A-Za-z]'*(?:_\w|_\{\w+\})?(?:\([^()]*\))?")
COMMAND = re.compile(r"\\[A-Za-z]+|\\.")
_UNDER = re.compile(r"_\s*(?:\{[^{}]*\}|\w)")
_OF_ONE_COMMAND = re.compile(r"\\(?!frac|sqrt)[a-zA-Z]")
_LABELLED = re.compile(r"([A-Za-z](?:_\w|_\{\w+\})?)\s*=(?P<value>[^=]*)")
_LABELLED_TUPLE = re.compile(
    r"\(\s*([A-Za-z](?:_\w|_\{\w+\})?(?:\s*,\s*[A-Za-z](?:_\w|_\{\w+\})?)+)\s*\)\s*=\s*\(((?:[^()]|\([^()]*\))*)\)"
)
_TUPLE = re.compile(r"(?:\(|\\\{)(.*?)(?:\)|\\\})")


def named(text: str) -> tuple[str, str]:
    """Splits a text at its last `=` outside of brackets: the left side, "" if there is no `=`, and the right side."""
    sides = split(text, "=")
    return "=".join(sides[:-1]), sides[-1] if sides else ""


def is_equation(name: str, of_one_variable: bool = False) -> bool:
    r"""Whether what stands before `=` is no name of a value but a side of an equation: `x + y`, `xy`, `y^2`, `\frac{x}{a}`.

    Segments (`AB`), functions of a variable (`\sin x`) and `x`, `x_1`, `f(x)` are names. Where the gold answer has no name, an
    answer may have any (`a^2 + b^2 = 7`), but not a side of an equation in one variable (`2x = 7`).
    """
    bare = COMMAND.sub(" ", name)
    variables = set(re.findall(r"[A-Za-z]", bare))
    if of_one_variable:
        return len(variables) == 1 and bare == name and NAME.fullmatch(name) is None
    if not variables or NAME.fullmatch(name):
        return False
    bare = COMMAND.sub(" ", _UNDER.sub("", name))
    if re.search(r"[\w)}]\s*[-+]", bare):
        return True
    return re.search(r"[a-z]", bare) is not None and NAME.fullmatch(bare) is None and _OF_ONE_COMMAND.match(name) is None


def untupled(text: str) -> str:
    r"""The text with `(x, y) = (1, 2)` as `x = 1, y = 2`."""
    if match := _LABELLED_TUPLE.fullmatch(text.strip()):
        labels, values = split(match[1]), split(match[2])
        if len(labels) == len(values):
            return ", ".join(f"{label} = {value}" for label, value in zip(labels, values, strict=True))
    return text


def assignments(items: Sequence[str]) -> dict[str, str] | None:
    """The values of a list of them by name, None where one has no name or two have the same."""
    matches = [_LABELLED.fullmatch(item) for item in items]
    if len(items) < 2 or None in matches:
        return None
    by_name = {squeezed(match[1]).replace("{", "").replace("}", ""): match["value"].strip() for match in matches}
    return by_name if len(by_name) == len(items) else None


def in_order(values: dict[str, str]) -> list[str]:
    """The values by name. Letters that follow each other in the alphabet do so here; other names stay as they were written."""
    names = sorted(values)
    follow = len("".join(names)) == len(names) and all(ord(b) - ord(a) == 1 for a, b in zip(names, names[1:], strict=False))
    return [values[name] for name in (names if follow else values)]


def of_one_letter(values: dict[str, str]) -> bool:
    """Whether the names are one letter with several indices, as of roots: `x_1`, `x_2`."""
    return len({name[0] for name in values}) == 1


def members(item: str) -> list[str] | None:
    r"""What stands in `(1, 2)` or `\{1, 2\}`; None for any other text."""
    match = _TUPLE.fullmatch(item)
    return split(match[1]) if match else None
