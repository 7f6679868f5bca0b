r"""Operators of an answer that math-verify computes: two texts of LaTeX in, tidy and spelt alike.

It computes sums, integrals and limits, so the question itself would be paid as its answer; and it computes what has no value:
of `\gcd(m, n)` it makes 1, of `\frac{dy}{dx}` 0.
"""

from __future__ import annotations

import re
from math import prod

from jaxrl_ml.rewards.names import named
from jaxrl_ml.rewards.structure import split, squeezed

_UNDER = re.compile(r"_\s*(?:\{[^{}]*\}|\\[a-zA-Z]+|\w)")
_OPERATOR = re.compile(
    r"\\(?P<sign>i{0,3}nt|oint|sum|prod|lim|det|gcd|max|min|lfloor|lceil)(?![a-zA-Z])|\\operatorname\*?\{(?P<name>lcm|tr|rank)\}"
    r"|(?<![\\a-zA-Z{])(?P<bare>gcd|lcm|lim|det|max|min)(?=\s*[(_])|\\begin\{(?P<matrix>vmatrix)\}"
    r"|\\frac\s*\{\s*(?P<derivative>d|\\partial)\s*(?:\^\d)?\s*\}\s*\{\s*(?:d|\\partial)"
)


def restates(gold: str, answer: str) -> bool:
    r"""Whether an answer has a sum, an integral, a limit, a gcd or the like to be computed that the gold answer has not.

    On the left of `=` it may stand: `\int_0^1 x^2\,dx = \frac13` is an answer.
    """
    value = " ".join(_UNDER.sub(" ", named(item)[1]) for item in split(answer))
    return not {match[match.lastgroup] for match in _OPERATOR.finditer(value)} <= {
        match[match.lastgroup] for match in _OPERATOR.finditer(_UNDER.sub(" ", gold))
    }


_OF_LETTERS = re.compile(
    r"\\frac\s*\{\s*(?:d|\\partial)\s*(?:\^\d)?\s*[a-zA-Z]\s*\}\s*\{\s*(?:d|\\partial)\s*[a-zA-Z]\s*(?:\^\d)?\s*\}"
    r"|(?:\\|\\operatorname\{|(?<![a-zA-Z]))(?P<common>gcd|lcm)\}?\s*\((?P<numbers>[^()]*[a-zA-Z][^()]*)\)"
    r"|\(\s*2\s*(?P<half>[a-zA-Z])\s*(?P<more>(?:[+-]\s*1)?)\s*\)\s*!!"
    r"|(?:(?<!\d)(?P<factor>\d{1,2})|\d+|[a-zA-Z]|\([^()]*\))\s*!!"
)


def with_symbols(gold: str, answer: str) -> tuple[str, str]:
    r"""Both texts with one symbol for each derivative `\frac{dy}{dx}`, gcd or lcm of letters, and double factorial.

    Double factorials of numbers below 100 are computed, and those of 2n, 2n + 1 and 2n - 1 written with factorials: math-verify
    takes them for two factorials.
    """
    symbols: dict[str, str] = {}

    def symbol(match: re.Match[str]) -> str:
        text = squeezed(match[0])
        if match["half"]:  # (2n)!! = 2^n n!
            upper = {"": "", "+1": f"(2{match['half']}+1)!", "-1": f"(2{match['half']})!"}[match["more"].replace(" ", "")]
            lower = f"2^{{{match['half']}}} {match['half']}!"
            return rf"\frac{{{upper}}}{{{lower}}}" if upper else f"({lower})"
        if match["factor"]:
            return str(prod(range(int(match["factor"]), 1, -2)))
        if match["common"]:
            text = f"{match['common']} {sorted(map(squeezed, split(match['numbers'])))}"
        return symbols.setdefault(text, rf"\Xi_{{{len(symbols) + 1}}}")

    return tuple(_OF_LETTERS.sub(symbol, text) for text in (gold, answer))
