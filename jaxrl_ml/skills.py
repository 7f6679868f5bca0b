"""`python -m jaxrl_ml.skills "12 - (3 + 4) / 7"`: what an arithmetic expression exercises, and its tree.

In: an expression, or with `--stdin` one a line. Out: text for people, or one JSON object a line. What is read as an expression
is told in `jaxrl_ml.tasks.countdown.expressions`, what pattern, class, shape and depth are in `patterns` beside it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from string import ascii_uppercase
from typing import Annotated

import tyro
from rich.console import Console
from rich.tree import Tree

from jaxrl_ml.cli import run_command
from jaxrl_ml.tasks.countdown import generate
from jaxrl_ml.tasks.countdown.expressions import Expression, ExpressionError, parse
from jaxrl_ml.types import UserError

Flag = tyro.conf.FlagCreatePairsOff[bool]
_OPERATORS = str.maketrans("*/-", "×÷−")


def record(text: str) -> dict[str, str | int]:
    """What is said of a line: its expression, pattern, semantic_class, shape, balance and depth, or expression and error."""
    try:
        skill = parse(text).skill
    except ExpressionError as error:
        return {"expression": text, "error": str(error)}
    return {
        "expression": text,
        "pattern": skill.pattern,
        "semantic_class": skill.semantic_class,
        "shape": skill.shape,
        "balance": skill.balance,
        "depth": skill.depth,
    }


def lines(stream: Iterable[bytes]) -> Iterator[str]:
    """A JSON object in ASCII for each line, whatever is in it; bytes that are not UTF-8 are spelled out."""
    for line in stream:
        text = line.removesuffix(b"\n").removesuffix(b"\r").decode(errors="backslashreplace")
        yield json.dumps(record(text))


def drawn(tree: generate.Tree) -> Tree:
    """A binary tree, drawn with its root on top."""
    if isinstance(tree, int):
        return Tree(str(tree))
    operator, *operands = tree
    node = Tree(operator.translate(_OPERATORS))
    node.children = [drawn(operand) for operand in operands]  # at most as deep as an expression has numbers
    return node


def main(argv: list[str] | None = None) -> None:
    """Entry point; raises UserError for what is no expression."""
    tyro.cli(_show, args=argv, prog="python -m jaxrl_ml.skills")


def _show(expression: Annotated[str, tyro.conf.Positional] = "", stdin: Flag = False) -> None:
    """Tell the pattern, semantic class, shape and depth of an arithmetic expression, and draw its tree.

    Args:
        expression: Such as "12 - (3 + 4) / 7"; LaTeX and × ÷ − are read too.
        stdin: Read one expression a line from standard input instead, and write one JSON object a line.
    """
    if stdin == bool(expression):
        raise UserError('give either an expression, such as "12 - (3 + 4) / 7", or --stdin')
    if stdin:
        try:
            for line in lines(sys.stdin.buffer):
                print(line, flush=True)
        except BrokenPipeError:  # the reader has seen enough; what is flushed at exit must not complain again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    _print(parse(expression))


def _print(expression: Expression) -> None:
    skill, value = expression.skill, expression.value
    letters = ", ".join(f"{letter}={number}" for letter, number in zip(ascii_uppercase, expression.letters, strict=False))
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for name, text in (
        ("pattern", f"{skill.pattern}   ({letters})"),
        ("class", skill.semantic_class),
        ("shape", f"{skill.shape}, {skill.balance}"),
        ("depth", skill.depth),
        ("sub-skills", ", ".join(sorted(skill.sub_skills)) or "none"),
        ("value", "none: a division by zero" if value is None else value),
    ):
        console.print(f"{name:<11}{text}")
    console.print(drawn(expression.tree))


if __name__ == "__main__":
    run_command(main)
