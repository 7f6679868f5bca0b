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
    )
)


def agree(gold: str, answer: str, equal: Same) -> bool:
    """Whether the answer says what the gold answer says. `equal` compares LaTeX without words, the gold answer first."""
    gold, answer = _spelt(gold), _spelt(answer)
    (label, gold), (other_label, answer) = _label(gold), _label(answer)
    if label != other_label and (label or "=" in gold) and (other_label or "=" in answer):
        return False
    if squeezed(gold) == squeezed(answer):
        return True
    same = partial(agree, equal=equal)
    structures = structure.branches_agree, structure.congruences_agree, structure.bases_agree, structure.ellipses_agree
    for compare in structures:
        verdict = compare(gold, answer, same)
        if verdict is not None:
            return verdict
    for compare in (_compounds_agree, _signs_agree, real_sets_agree, _words_agree):
        verdict = compare(gold, answer, equal)
        if verdict is not None:
            return verdict
    return _lists_agree(gold, answer, equal)


def _spelt(text: str) -> str:
    """The text with one spelling of each sign, systems as lists, and *and* and *or* as commands."""
    for pattern, replacement in _SPELLING:
        text = pattern.sub(replacement, text)
    text = with_connectives(structure.system_as_list(text))
    return _BRACES.sub(lambda inner: re.sub(r"\\AND|\\OR", ",", inner[0]), text) if "\\AND" in text or "\\OR" in text else text


_BRACES = re.compile(r"\\\{[^{}]*\\\}")


def _label(text: str) -> tuple[str, str]:
    """The variables that a tuple is named by, as in `(x, y) = (1, 2)`, "" for none, and the rest of the text."""
    match = re.match(r"(\(\s*[a-z](?:\s*,\s*[a-z])+\s*\))\s*=\s*(?=\()", text)
    return (squeezed(match[1]), text[match.end() :]) if match else ("", text)


def _compounds_agree(gold: str, answer: str, equal: Same) -> bool | None:
    golds, answers = compound(gold), compound(answer)
    if golds is None and answers is None:
        return None
    if golds is None or answers is None or len(golds) != len(answers):
        return False
    return all(_quantities_agree(one, other, equal) for one, other in zip(golds, answers, strict=True))


def _quantities_agree(gold: Quantity, answer: Quantity, equal: Same) -> bool:
    return _units_agree(gold, answer) and _lists_agree(gold.value, answer.value, equal)


def _units_agree(gold: Quantity, answer: Quantity) -> bool:
    """Whether one has no unit, or both units may mean the same. Five apples are not five oranges."""
    if gold.is_known and answer.is_known or not gold.unit or not answer.unit:
        return not differ(gold.unit, answer.unit)
    return gold.unit == answer.unit


def _signs_agree(gold: str, answer: str, equal: Same) -> bool | None:
    """False where signs differ that math-verify drops or reads otherwise; None where they agree."""
    if any(map(_TWO_NUMBERS.search, (gold, answer))):  # it adds `5 6` up
        return False
    for pattern in (_PRIMES, _INDEX, _TRANSPOSED):
        if sorted(pattern.findall(gold)) != sorted(pattern.findall(answer)):
            return False
    angles = _ANGLE.findall(gold), _ANGLE.findall(answer)
    if any(one not in (other, other[::-1]) for one, other in zip(*angles, strict=False)):  # it multiplies A, B and C
        return False
    letters = [
        set(_LETTER.findall(_COMMAND.sub(" ", "".join(part.text for part in parts(text) if not part.is_word))))
        for text in (gold, answer)
    ]
    if any(letter.swapcase() in letters[0] - letters[1] for letter in letters[1] - letters[0]):  # it takes E for e
        return False
    return None


def _words_agree(gold: str, answer: str, equal: Same) -> bool | None:
    """Compares texts with words; None where neither has one."""
    if not has_words(gold) and not has_words(answer):
        return None
    texts = split(gold), split(answer)
    items = [[quantity(text) or Quantity(text) for text in side] for side in texts]
    if not any(has_words(item.value) for side in items for item in side):
        if len(items[0]) == len(items[1]) and all(any(item.unit for item in side) for side in items):
            return match_all(*items, partial(_quantities_agree, equal=equal))
        return _lists_agree(*(", ".join(item.value for item in side) for side in items), equal)
    if len(texts[0]) == len(texts[1]) > 1:
        return match_all(*texts, partial(agree, equal=equal))
    pieces = parts(gold), parts(answer)
    words = [[part.text if part.is_word else None for part in side] for side in pieces]
    return words[0] == words[1] and all(
        one.is_word or _lists_agree(one.text.strip(" .,;:"), other.text.strip(" .,;:"), equal)
        for one, other in zip(*pieces, strict=True)
    )


_NAME = re.compile(r"[A-Za-z]'*(?:_\w|_\{\w+\})?(?:\([^()]*\))?")
_DERIVATIVE = re.compile(r"\\frac\s*\{\s*d|\\partial|'")
_COMMAND = re.compile(r"\\[A-Za-z]+|\\.")
_TWO_NUMBERS = re.compile(r"\b\d+\s+\d")
_PRIMES = re.compile(r"'+")
_INDEX = re.compile(r"(?<=[\d)}\]])\s*_\s*(?:\{[^{}]*\}|\w)")
_TRANSPOSED = re.compile(r"\^\s*\{?\s*(?:T|\\top|\\intercal|\\text\{\s*T\s*\})(?![A-Za-z])")
_LETTER = re.compile(r"[A-Za-z]")
_ANGLE = re.compile(r"\\angle\s*\{?\s*([A-Z]{3})")
_LABEL = re.compile(r"([A-Za-z](?:_\w|_\{\w+\})?)\s*=")


def _lists_agree(gold: str, answer: str, equal: Same) -> bool:
    """Compares texts without words, as math-verify does where it reads them right."""
    items = split(gold), split(answer)
    if len(items[0]) == len(items[1]) == 1:
        return _values_agree(items[0][0], items[1][0], equal)
    labels = [[label[1] for label in map(_LABEL.match, side) if label] for side in items]
    are_named = [len(set(names)) == len(side) > 1 for names, side in zip(labels, items, strict=True)]
    if are_named[0] != are_named[1] and len(items[0]) == len(items[1]) and not (labels[0] and labels[1]):
        return all(_values_agree(one, other, equal) for one, other in zip(*items, strict=True))  # `x=1, y=2` is `1, 2`
    if any(_is_equation(_named(item)[0], of_one_variable=True) for item in items[1] if "=" in item and "=" not in gold):
        return False
    if equal(*(", ".join(side) for side in items)):
        return True
    return len(items[0]) == len(items[1]) and match_all(*items, partial(_values_agree, equal=equal))


def _values_agree(gold: str, answer: str, equal: Same) -> bool:
    """Compares two texts that are no lists; a name may stand before one of them, as in `x = 3` or `f(2) = 3`."""
    if squeezed(gold) == squeezed(answer):
        return True
    (name, value), (other_name, other_value) = _named(gold), _named(answer)
    if name and not other_name:
        return not _is_equation(name) and _values_agree(value, answer, equal)
    if other_name and not name:
        return not _is_equation(other_name, of_one_variable=True) and _values_agree(gold, other_value, equal)
    if name and squeezed(name) == squeezed(other_name):
        return _values_agree(value, other_value, equal)
    if name and (all(map(_NAME.fullmatch, (name, other_name))) or _DERIVATIVE.search(gold + answer)):  # it solves f(0) = 1
        return False
    ratios = split(gold, ":"), split(answer, ":")
    if max(map(len, ratios)) > 2:  # math-verify divides 1:2:3 twice
        first, other_first = ratios[0][0], ratios[1][0]
        return len(ratios[0]) == len(ratios[1]) and all(
            equal(rf"\frac{{{one}}}{{{first}}}", rf"\frac{{{other}}}{{{other_first}}}")
            for one, other in zip(*ratios, strict=True)
        )
    if "\\AND" in gold + answer or "\\OR" in gold + answer:  # within brackets, where they part nothing
        return False
    return equal(*(rising(text).replace("%", r"\%") for text in (gold, answer)))


def _named(text: str) -> tuple[str, str]:
    """What stands before the last `=` of a text, "" where there is none, and what follows."""
    sides = split(text, "=")
    return "=".join(sides[:-1]), sides[-1] if sides else ""


def _is_equation(name: str, of_one_variable: bool = False) -> bool:
    """Whether what stands before `=` is no name of a value but a side of an equation: `x + y`, or of one variable `2x`."""
    bare = _COMMAND.sub(" ", name)
    variables = set(re.findall(r"[A-Za-z]", bare))
    if of_one_variable:
        return len(variables) == 1 and bare == name and _NAME.fullmatch(name) is None
    return bool(variables) and re.search(r"[\w)}]\s*[-+]", name) is not None
