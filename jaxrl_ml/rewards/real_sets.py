r"""Sets of real numbers: an inequality in one variable and the interval of its solutions are the same answer.

`x > 5`, `5 < x`, `> 5` and `(5, \infty)` agree, as do `1 \le x < 5` and `x \in [1, 5[`, `|x| > 2` and
`x < -2 \text{ or } x > 2`. A bare `(1, 2)` is an interval beside one of these, and else a pair.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from jaxrl_ml.rewards.structure import Same, split, squeezed
from jaxrl_ml.rewards.wording import has_words

_UNEQUAL = re.compile(r"\\ne(?![a-zA-Z])")
SIGN = re.compile(r"(<|>|\\le(?![a-zA-Z])|\\ge(?![a-zA-Z]))")
_RISING = {">": "<", "\\ge": "\\le"}
_INTERVAL = re.compile(r"(?P<left>[(\[\]])(?P<low>[^()\[\];,]+)[,;](?P<high>[^()\[\];,]+)(?P<right>[)\]\[])")
_MEMBER = re.compile(r"(?P<variable>[a-zA-Z])\s*\\in(?![a-zA-Z])\s*(?=[(\[\]\\])")
_AROUND_ZERO = re.compile(rf"\|\s*(?P<variable>[a-zA-Z])\s*\|\s*(?P<sign>{SIGN.pattern})\s*(?P<bound>[^<>=,;|]+)")
_BUILDER = re.compile(
    r"\\\{\s*(?P<variable>[a-zA-Z])\s*(?:\\in\s*\\mathbb\s?\{?R\}?)?\s*(?:\\mid|\\vert|\\colon|[:|])"
    r"\s*(?P<condition>(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*?)\s*\\\}"
)
_ALL_REALS = re.compile(r"\\mathbb\s?\{?R\}?|all real(?:s|\s*numbers?|\s*values?)?")
_EXCEPTION = re.compile(r"\s*(?P<variable>[a-zA-Z])\s*\\ne\s*(?P<value>[^,;=<>\\]+|\\frac\{[^{}]*\}\{[^{}]*\})\s*")
_VARIABLE = re.compile(r"[a-zA-Z]?|[a-z]\([a-z]\)")


class RealSet(NamedTuple):
    """A union of intervals, and the variable that it is said of, "" for none."""

    variable: str
    intervals: str
    is_pair: bool = False  # written as `(a, b)`: it may be a pair as well


def real_sets_agree(gold: str, answer: str, equal: Same) -> bool | None:
    """Compares two sets of real numbers; None where either is none, and for two pairs."""
    golds, answers = read(gold), read(answer)
    if golds is None or answers is None or (golds.is_pair and answers.is_pair):
        return None
    if golds.variable and answers.variable and golds.variable != answers.variable:
        return False
    return squeezed(golds.intervals) == squeezed(answers.intervals) or equal(golds.intervals, answers.intervals)


def read(text: str) -> RealSet | None:
    """The set of real numbers that a text is, None for any other text."""
    member = _MEMBER.match(text)
    variable, text = (member["variable"], text[member.end() :]) if member else ("", text)
    if (builder := _BUILDER.fullmatch(text)) and (inner := read(builder["condition"])):
        return inner if inner.variable == builder["variable"] else None
    if _ALL_REALS.fullmatch(re.sub(r"\\text\{([^{}]*)\}", r"\1", text).strip()):
        return RealSet(variable, r"(-\infty,\infty)")
    if not SIGN.search(text) and not _UNEQUAL.search(text):
        intervals = [_INTERVAL.fullmatch(part) for part in split(text, r"\\cup(?![a-zA-Z])|\\OR")]
        if not intervals or not all(intervals):
            return None
        union = r"\cup".join(map(_english_brackets, intervals))
        return RealSet(variable, union, not variable and not re.search(r"[\[\]]|\\cup|\\infty", text))
    if around := _AROUND_ZERO.fullmatch(text):
        return _around_zero(around["variable"], around["sign"], around["bound"].strip())
    if has_words(text):
        return None
    alternatives = [[_solutions(part) for part in _conditions(either)] for either in split(text, r"\\OR")]
    conditions = [condition for either in alternatives for condition in either]
    if member or None in conditions or len({variable for variable, _ in conditions}) != 1:
        return None
    return RealSet(conditions[0][0], r"\cup".join(r"\cap".join(part for _, part in either) for either in alternatives))


def _conditions(text: str) -> list[str]:
    r"""The conditions that hold together. A comma joins them where one is an exception: `x < 2, x \ne 0`, `x \ne 0, 1`."""
    if not _UNEQUAL.search(text):
        return split(text, r"\\AND")
    parts = split(text, r"\\AND|,")
    if not SIGN.search(text):
        name = _UNEQUAL.split(text)[0]
        parts = [part if _UNEQUAL.search(part) else rf"{name}\ne {part}" for part in parts]
    return parts


def _around_zero(variable: str, sign: str, bound: str) -> RealSet:
    r"""The solutions of `|x| < 2`, or of another sign."""
    left, right = "()" if sign in "<>" else "[]"
    if sign in ("<", "\\le"):
        return RealSet(variable, f"{left}-({bound}),{bound}{right}")
    return RealSet(variable, rf"(-\infty,-({bound}){right}\cup{left}{bound},\infty)")


def _english_brackets(match: re.Match[str]) -> str:
    """An interval as it is written in English: `]2, 5[` is (2,5)."""
    left, right = {"]": "("}.get(match["left"], match["left"]), {"[": ")"}.get(match["right"], match["right"])
    return f"{left}{match['low'].strip()},{match['high'].strip()}{right}"


def _solutions(chain: str) -> tuple[str, str] | None:
    r"""The variable and the interval of `x > 5`, `> 5`, `1 < x \le 5`, `5 \ge x > 1` or `x \ne 5`; None for another chain."""
    if exception := _EXCEPTION.fullmatch(chain):
        return exception["variable"], rf"((-\infty,{exception['value']})\cup({exception['value']},\infty))"
    terms = SIGN.split(rising(chain))
    terms, signs = [term.strip() for term in terms[::2]], terms[1::2]
    if len(terms) not in (2, 3) or set(signs) & _RISING.keys() or re.search(r"[,=;]|\\ne", chain):
        return None
    places = [i for i, term in enumerate(terms) if _VARIABLE.fullmatch(term)]
    if len(places) > 1:
        places = [i for i in places if terms[i] != "e"]
    if len(places) != 1 or (len(terms) == 3 and places != [1]):
        return None
    place = places[0]
    low, left = (terms[place - 1], signs[place - 1]) if place else (r"-\infty", "<")
    high, right = (terms[place + 1], signs[place]) if place + 1 < len(terms) else (r"\infty", "<")
    return terms[place], f"{'(' if left == '<' else '['}{low},{high}{')' if right == '<' else ']'}"


def rising(chain: str) -> str:
    """The text with a falling chain of inequalities, such as `c > b > a`, turned round."""
    terms = SIGN.split(chain)
    if len(terms) < 3 or "," in chain or not set(terms[1::2]) <= _RISING.keys():
        return chain
    return " ".join(_RISING.get(term, term) for term in reversed(terms))
