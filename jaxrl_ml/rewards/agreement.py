r"""Whether two answers say the same, whatever math-verify makes of them: two tidy texts of LaTeX in, a verdict out.

math-verify reads less than a text says: of `n \equiv 2 \pmod{7}` it reads 2, of `52_8` it reads 52, and it drops words. So
`agree` takes answers apart first and compares the parts:

* branches, congruences, numbers in another base and lists with an ellipsis (`structure.py`);
* inequalities in one variable and intervals, as sets of real numbers (`real_sets.py`);
* quantities in two units, such as 5 hours 20 minutes, number by number;
* words, which must be equal, except for one unit beside one quantity, which may be left out (`wording.py`).

What has no such part goes to `equal(gold, answer)`, which is math-verify's comparison. All this runs in the verifier's process.
"""

from __future__ import annotations

import re
from functools import partial

from jaxrl_ml.rewards import structure
from jaxrl_ml.rewards.real_sets import real_sets_agree, rising
from jaxrl_ml.rewards.structure import Same, match_all, split, squeezed
from jaxrl_ml.rewards.units import differ
from jaxrl_ml.rewards.wording import Quantity, compound, has_words, parts, quantity, with_connectives

_SPELLING = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:dots[bcimo]?|cdots|ldots|hdots)(?![a-zA-Z])|\.\.\.", r"\\ldots "),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"\\leq?(?:slant|q)?(?![a-zA-Z])|<=|=<", r"\\le "),
        (r"\\geq?(?:slant|q)?(?![a-zA-Z])|>=", r"\\ge "),
        (r"\\neq?(?![a-zA-Z])|\\not\s?=|!=", r"\\ne "),
        (r"\\lnot(?![a-zA-Z])", r"\\neg "),
        (r"\\vee(?![a-zA-Z])", r"\\lor "),
        (r"\\wedge(?![a-zA-Z])", r"\\land "),
        (r"\\(?:implies|Longrightarrow)(?![a-zA-Z])", r"\\Rightarrow "),
        (r"\\(?:iff|Longleftrightarrow)(?![a-zA-Z])", r"\\Leftrightarrow "),
        (r"\\(?:rightarrow|longrightarrow)(?![a-zA-Z])", r"\\to "),
        (r"\\varnothing|\\\{\s*\\\}", r"\\emptyset "),
        (r"\^\{?\\prime\s?\\prime\}?", "''"),
        (r"\^\{?\\prime\}?", "'"),
        (r"(?<![\\a-zA-Z])(?:infinity|inf)(?![a-zA-Z])", r"\\infty "),
        (r"(?<=\d) i(?![a-zA-Z])", "i"),  # math-verify takes the i of `2 i` for another one than that of `2i`
        (r"(?<![\d}])(?<![\d}]\s)\\text\{\s*([A-Z])\s*\}", r"\1"),
        (r"(\\log_(?:\{[^{}]*\}|\d))\s*\{([^{}]*)\}", r"\1(\2)"),
        (r"(?<=[\s{])([ap])\.\s?m(?![a-z])\.?", r"\1m"),
        (r"(?<=\d)\s*\\text\{\s*to\s*\}\s*(?=\d)", ":"),
        (r"^\(\s*[a-z](?:\s*,\s*[a-z])+\s*\)\s*=\s*(?=\()", ""),  # `(x, y) = (1, 2)`
    )
)


def agree(gold: str, answer: str, equal: Same) -> bool:
    """Whether the answer says what the gold answer says. `equal` compares LaTeX without words, the gold answer first."""
    gold, answer = _spelt(gold), _spelt(answer)
    if squeezed(gold) == squeezed(answer):
        return True
    same = partial(agree, equal=equal)
    structures = structure.branches_agree, structure.congruences_agree, structure.bases_agree, structure.ellipses_agree
    for compare in structures:
        verdict = compare(gold, answer, same)
        if verdict is not None:
            return verdict
    for compare in (real_sets_agree, _compounds_agree, _words_agree):
        verdict = compare(gold, answer, equal)
        if verdict is not None:
            return verdict
    return _lists_agree(gold, answer, equal)


def _spelt(text: str) -> str:
    """The text with one spelling of each sign, systems as lists, and *and* and *or* as commands."""
    for pattern, replacement in _SPELLING:
        text = pattern.sub(replacement, text)
    return with_connectives(structure.system_as_list(text))


def _compounds_agree(gold: str, answer: str, equal: Same) -> bool | None:
    golds, answers = compound(gold), compound(answer)
    if golds is None and answers is None:
        return None
    if golds is None or answers is None or len(golds) != len(answers):
        return False
    return all(_units_agree(one, other) and equal(one.value, other.value) for one, other in zip(golds, answers, strict=True))


def _units_agree(gold: Quantity, answer: Quantity) -> bool:
    """Whether one has no unit, or both units may mean the same. Five apples are not five oranges."""
    if gold.is_known and answer.is_known or not gold.unit or not answer.unit:
        return not differ(gold.unit, answer.unit)
    return gold.unit == answer.unit


def _words_agree(gold: str, answer: str, equal: Same) -> bool | None:
    """Compares texts with words; None where neither has one."""
    if not has_words(gold) and not has_words(answer):
        return None
    texts = split(gold), split(answer)
    items = [[quantity(text) or Quantity(text) for text in side] for side in texts]
    if not any(has_words(item.value) for side in items for item in side):
        if len(items[0]) == len(items[1]) == 1 and not _units_agree(items[0][0], items[1][0]):
            return False
        return _lists_agree(*(", ".join(item.value for item in side) for side in items), equal)
    if len(texts[0]) == len(texts[1]) > 1:
        return match_all(*texts, partial(agree, equal=equal))
    pieces = parts(gold), parts(answer)
    words = [[part.text if part.is_word else None for part in side] for side in pieces]
    return words[0] == words[1] and all(
        one.is_word or _lists_agree(one.text.strip(" .,;:"), other.text.strip(" .,;:"), equal)
        for one, other in zip(*pieces, strict=True)
    )


_TWO_NUMBERS = re.compile(r"\b\d+\s+\d")
_PRIMES = re.compile(r"(?<=[A-Za-z])'+")
_ANGLE = re.compile(r"\\angle\s*\{?\s*([A-Z]{3})")
_SUM = re.compile(r"[^=]*[A-Za-z}\d]\s*[-+][^=]*[A-Za-z][^=]*=|[^=]*[A-Za-z][^=]*[-+][^=]*=")
_LABEL = re.compile(r"([A-Za-z](?:_\w|_\{\w+\})?)\s*=")


def _lists_agree(gold: str, answer: str, equal: Same) -> bool:
    """Compares texts without words, as math-verify does where it reads them right."""
    if any(map(_TWO_NUMBERS.search, (gold, answer))):  # it adds `5 6` up
        return False
    if sorted(_PRIMES.findall(gold)) != sorted(_PRIMES.findall(answer)):  # it drops the prime of f'(x)
        return False
    if any(
        one not in (other, other[::-1]) for one, other in zip(*(_ANGLE.findall(text) for text in (gold, answer)), strict=False)
    ):
        return False
    if "=" not in answer and _SUM.match(gold):  # it takes the 7 of `x + y = 7`
        return False
    items = split(gold), split(answer)
    labels = [[label[1] for label in map(_LABEL.match, side) if label] for side in items]
    are_named = [len(set(names)) == len(side) > 1 for names, side in zip(labels, items, strict=True)]
    if are_named[0] != are_named[1] and len(items[0]) == len(items[1]) and not (labels[0] and labels[1]):
        return all(map(equal, *items))  # `x = 1, y = 2` is `1, 2` in this order
    ratios = split(gold, ":"), split(answer, ":")
    if max(map(len, ratios)) > 2:  # it divides 1:2:3 twice
        first, other_first = ratios[0][0], ratios[1][0]
        return len(ratios[0]) == len(ratios[1]) and all(
            equal(rf"\frac{{{one}}}{{{first}}}", rf"\frac{{{other}}}{{{other_first}}}")
            for one, other in zip(*ratios, strict=True)
        )
    plain = [rising(re.sub(r"\\AND|\\OR", ",", text)).replace("%", r"\%") for text in (gold, answer)]
    if equal(*plain):
        return True
    items = split(plain[0]), split(plain[1])  # one may be what it cannot read, such as `k \in \mathbb{Z}`
    return len(items[0]) == len(items[1]) > 1 and match_all(
        *items, lambda one, other: squeezed(one) == squeezed(other) or equal(one, other)
    )
