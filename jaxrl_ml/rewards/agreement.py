r"""Whether two answers say the same, whatever math-verify makes of them: two tidy texts of LaTeX in, a verdict out.

math-verify reads less than a text says: of `n \equiv 2 \pmod{7}` it reads 2, of `52_8` it reads 52, and it drops words. So
`agree` takes answers apart first and compares the parts:

* branches, congruences, numbers in another base and lists with an ellipsis (`structure.py`);
* inequalities in one variable and intervals, as sets of real numbers (`real_sets.py`);
* quantities in two units, such as 5 hours 20 minutes, number by number;
* words, which must be equal, except for one unit beside one quantity, which may be left out (`wording.py`);
* named values, such as `x = 1, y = 2`, name by name.

What has no such part goes to `equal(gold, answer)`, which is math-verify's comparison. That computes, so an answer is refused
first where it restates the question, as `\int_0^1 x^2 dx` does for `\frac13`. All this runs in the verifier's process.
"""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction
from functools import partial
from math import gcd

from jaxrl_ml.rewards import number, structure
from jaxrl_ml.rewards.answer_words import IF
from jaxrl_ml.rewards.names import COMMAND, NAME, assignments, in_order, is_equation, members, named, of_one_letter, untupled
from jaxrl_ml.rewards.operators import restates, with_symbols
from jaxrl_ml.rewards.real_sets import real_sets_agree, rising
from jaxrl_ml.rewards.structure import Same, match_all, split, squeezed
from jaxrl_ml.rewards.units import differ, totals
from jaxrl_ml.rewards.wording import Quantity, compound, has_words, in_english, parts, quantity, with_connectives

_ANY = r"(?:all|any|every|each)(?: (?:real|numbers?|constants?|values?|of))*"
_DEGREES = r"(\d+(?:\.\d+)?)\s*\^\{?\\circ\s?\}?\s*"
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
        (r"\\log_(?:e|\{\s*e\s*\})(?![a-zA-Z])", r"\\ln "),
        (r"(?<![\\a-zA-Z{])(sin|cos|tan|log|ln)(?![a-zA-Z])", r"\\\1 "),
        (rf"\\(sin|cos|tan|cot|sec|csc)\s*(?:{_DEGREES}|[({{]\s*{_DEGREES}[)}}])", r"\\\1(\\frac{\2\3\\pi}{180})"),
        (r"\\text\{\s*([\dA-F]+)\s*\}(?=\s*_)", r"\1"),
        (r"\\langle(?![a-zA-Z])", "("),
        (r"\\rangle(?![a-zA-Z])", ")"),
        (r"\\\{\s*(\([^(){}]*\))\s*\\\}", r"\1"),  # a set of one pair
        (r"\\varnothing|\\\{\s*\\\}", r"\\emptyset "),
        (r"\^\{?\\prime\s?\\prime\}?", "''"),
        (r"\^\{?\\prime\}?", "'"),
        (r"(?<![\\a-zA-Z])(?:infinity|inf)(?![a-zA-Z])", r"\\infty "),
        (r"(?<=\d) i(?![a-zA-Z])", "i"),  # math-verify takes the i of `2 i` for another one than that of `2i`
        (r"(?<![\d}])(?<![\d}]\s)\\text\{\s*([A-Z])\s*\}", r"\1"),
        (r"(\\log_(?:\{[^{}]*\}|\d))\s*\{([^{}]*)\}", r"\1(\2)"),
        (r"(?<=[\s{])([ap])\.\s?m(?![a-z])\.?", r"\1m"),
        (r"(?<=\d)\s*\\text\{\s*to\s*\}\s*(?=\d)", ":"),
        (r"^\s*[a-zA-Z]\s*:\s*(?=[a-z]\s*=)", ""),  # the name of a line
        (r"^\s*\\text\{\s*(?:for|for all|all|any)\s*\}(?=\s*[a-z]\s*[<>=\\])", ""),
        (rf"(?<=\S)[,;]?\s*(?:\\text\{{)?[\s,]*(?<![A-Za-z])for {_ANY}\s*\}}?\s*[a-z]\s*$", ""),
    )
)


def agree(gold: str, answer: str, equal: Same) -> bool:
    """Whether the answer says what the gold answer says. `equal` compares LaTeX without words, the gold answer first."""
    gold, answer = (in_english(untupled(_spelt(text))) for text in (gold, answer))
    if squeezed(gold) == squeezed(answer):
        return True
    if restates(gold, answer):
        return False
    gold, answer = with_symbols(gold, answer)
    same = partial(agree, equal=equal)
    families = structure.family(gold), structure.family(answer)
    if all(families):
        (gold, letter), (answer, other) = families
        return same(gold, structure.renamed(answer, other, letter))
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
    if "\\equiv" in text and not structure.is_modular(text):  # an identity
        text = text.replace("\\equiv", "=")
    return _BRACES.sub(lambda inner: re.sub(r"\\AND|\\OR", ",", inner[0]), text) if "\\AND" in text or "\\OR" in text else text


_BRACES = re.compile(r"\\\{[^{}<>]*\\\}")  # of a set of members; of a set of solutions they join conditions


def _compounds_agree(gold: str, answer: str, equal: Same) -> bool | None:
    golds, answers = compound(gold), compound(answer)
    if golds is None and answers is None:
        return None
    if golds is None or answers is None or len(golds) != len(answers):  # 3 hours 20 minutes are 200 minutes
        sides = totals(_with_units(gold, golds)), totals(_with_units(answer, answers))
        return any(sides[0][scale] == sides[1][scale] for scale in sides[0].keys() & sides[1].keys())
    return all(_quantities_agree(one, other, equal) for one, other in zip(golds, answers, strict=True))


def _with_units(text: str, parts: list[Quantity] | None) -> list[tuple[Fraction, str]]:
    """The numbers and units of a quantity in one or several units."""
    if parts is None:
        read = number.read(text)
        return [(read.value, read.unit[0])] if read and len(read.unit) == 1 else [(Fraction(0), "")]
    return [(Fraction(part.value.rstrip(".")), part.unit[0]) for part in parts]


def _quantities_agree(gold: Quantity, answer: Quantity, equal: Same) -> bool:
    return not differ(gold.unit, answer.unit) and _lists_agree(gold.value, answer.value, equal)


def _signs_agree(gold: str, answer: str, equal: Same) -> bool | None:
    """False if primes, indices, transposes, angles or the case of letters differ, which math-verify ignores; else None."""
    if any(map(_TWO_NUMBERS.search, (gold, answer))):  # it adds `5 6` up
        return False
    if bool(named(gold)[0]) != bool(named(answer)[0]):  # if only one side has a name, compare the values
        gold, answer = named(gold)[1], named(answer)[1]
    for pattern in (_PRIMES, _INDEX, _TRANSPOSED, _NABLA):
        if sorted(pattern.findall(gold)) != sorted(pattern.findall(answer)):
            return False
    angles = _ANGLE.findall(gold), _ANGLE.findall(answer)
    if any(one not in (other, other[::-1]) for one, other in zip(*angles, strict=False)):  # it multiplies A, B and C
        return False
    letters = [
        set(_LETTER.findall(COMMAND.sub(" ", "".join(part.text for part in parts(text) if not part.is_word))))
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
    words = [[(part.text, "if")[part.text in IF] if part.is_word else None for part in side] for side in pieces]
    return words[0] == words[1] and all(
        one.is_word or _lists_agree(one.text.strip(" .,;:"), other.text.strip(" .,;:"), equal)
        for one, other in zip(*pieces, strict=True)
    )


_ARITHMETIC = re.compile(r"\\(?:frac|sqrt|cdot|times|div|pm|pi)(?![a-zA-Z])")
_DERIVATIVE = re.compile(r"\\frac\s*\{\s*d|\\partial|'")
_TWO_NUMBERS = re.compile(r"\b\d+\s+\d")
_PRIMES = re.compile(r"'+")
_INDEX = re.compile(r"(?<=[\d)}\]])\s*_\s*(?:\{[^{}]*\}|\w)")
_TRANSPOSED = re.compile(r"\^\s*\{?\s*(?:T|\\top|\\intercal|\\text\{\s*T\s*\})(?![A-Za-z])")
_NABLA = re.compile(r"\\nabla\s*\\(?:cdot|times)")
_LETTER = re.compile(r"[A-Za-z]")
_ANGLE = re.compile(r"\\angle\s*\{?\s*([A-Z]{3})")
_PLUS_MINUS, _MINUS_PLUS = re.compile(r"\\pm(?![a-zA-Z])"), re.compile(r"\\mp(?![a-zA-Z])")
_SET = re.compile(r"\\pm|\\[{}]|\\mathbb|\\(?:cup|cap|setminus|emptyset)(?![a-zA-Z])")
_TIME = re.compile(r"0?(\d{1,2}):([0-5]\d)")


def _lists_agree(gold: str, answer: str, equal: Same) -> bool:
    """Compares texts without words, as math-verify does where it reads them right."""
    items = split(gold), split(answer)
    for text, others in ((gold, items[1]), (answer, items[0])):
        if "\\pm" in text and len(others) == 1 and others[0].startswith("("):  # math-verify takes (-1, 1) for both
            return False
    items = tuple([value for item in side for value in _both_signs(item)] for side in items)
    counts = len(items[0]), len(items[1])
    if counts == (1, 1):
        return _values_agree(items[0][0], items[1][0], equal)
    by_name = assignments(items[0]), assignments(items[1])
    if any(by_name):
        return _named_values_agree(items, by_name, equal)
    if _is_equation_beside_values(*items) or _is_equation_beside_values(*reversed(items)):
        return False
    if len(set(map(squeezed, items[0]))) == counts[0]:  # of a set, each member counts once, however often it is named
        items = items[0], list({squeezed(item): item for item in items[1]}.values())
        counts = counts[0], len(items[1])
    if counts[0] == counts[1]:
        return match_all(*_without_common(*items), partial(_values_agree, equal=equal))
    if min(counts) > 1 and not _SET.search(gold + answer) or "\\infty" in gold + answer:
        return False  # math-verify drops what a list has twice, and takes `0, \infty` for an interval
    return equal(*(", ".join(side) for side in items))


def _named_values_agree(items: tuple[list[str], list[str]], by_name: tuple[dict | None, dict | None], equal: Same) -> bool:
    """Compares two lists, at least one of which names every value: by name if both have the same names, and else in order."""
    same = partial(_values_agree, equal=equal)
    golds, answers = by_name
    if golds and answers and golds.keys() == answers.keys():
        return all(same(golds[name], answers[name]) for name in golds)
    if golds and answers and not (of_one_letter(golds) and of_one_letter(answers)):
        return False
    values = [list(names.values()) if names else side for names, side in zip(by_name, items, strict=True)]
    if any(names and of_one_letter(names) for names in by_name):
        return _lists_agree(*(", ".join(side) for side in values), equal)
    if any(named(item)[0] for side, names in zip(items, by_name, strict=True) if not names for item in side):
        return False
    others = [members(side[0]) or side if len(side) == 1 else side for side in values]
    if answers:
        others[1] = in_order(answers)
    orders = [others[0], in_order(golds)] if golds else [others[0]]  # `y = 2, x = 1` is (1, 2), and (y, x) = (2, 1) is (2, 1)
    return any(len(order) == len(others[1]) and all(map(same, order, others[1])) for order in orders)


def _both_signs(item: str) -> list[str]:
    r"""The two values of `2 \pm \sqrt{3}`; one of any other text."""
    if len(_PLUS_MINUS.findall(item)) != 1:
        return [item]
    return [_PLUS_MINUS.sub(sign, _MINUS_PLUS.sub(other, item)) for sign, other in ("+-", "-+")]


def _without_common(golds: list[str], answers: list[str]) -> tuple[list[str], list[str]]:
    """Both lists without the items that are the same text in both, as often as they are in both."""
    common = Counter(map(squeezed, golds)) & Counter(map(squeezed, answers))

    def rest(items: list[str]) -> list[str]:
        left, kept = Counter(common), []
        for item in items:
            text = squeezed(item)
            if left[text] > 0:
                left[text] -= 1
            else:
                kept.append(item)
        return kept

    return rest(golds), rest(answers)


def _is_equation_beside_values(items: list[str], others: list[str]) -> bool:
    """Whether one list contains an equation in one variable, such as `x^2 = 4`, and the other contains no `=`."""
    if any("=" in item for item in others):
        return False
    return any(is_equation(named(item)[0], of_one_variable=True) for item in items if "=" in item)


def _values_agree(gold: str, answer: str, equal: Same) -> bool:
    """Compares two texts that are no lists; a name may stand before one of them, as in `x = 3` or `f(2) = 3`."""
    if squeezed(gold) == squeezed(answer):
        return True
    (name, value), (other_name, other_value) = named(gold), named(answer)
    if name and not other_name:
        return not is_equation(name) and _values_agree(value, answer, equal)
    if other_name and not name:
        sides = split(other_name, "=")
        values = [side for side in sides if not _LETTER.search(_ARITHMETIC.sub("", side))]
        other_name = "=".join(side for side in sides if side not in values)
        if not all(equal(side, other_value) for side in values) or _stands_in(other_name, other_value):
            return False
        return not is_equation(other_name, of_one_variable=True) and _values_agree(gold, other_value, equal)
    if name and squeezed(name) == squeezed(other_name):
        return _values_agree(value, other_value, equal)
    if name and (renamed := _with_argument_of(name, other_name, other_value)):
        return _values_agree(value, renamed, equal)
    if name and (all(map(NAME.fullmatch, (name, other_name))) or _DERIVATIVE.search(gold + answer)):  # it solves f(0) = 1
        return False
    ratios = split(gold, ":"), split(answer, ":")
    if time := _time(gold):
        return time == _time(answer)
    if max(map(len, ratios)) > 2:  # math-verify divides 1:2:3 twice
        first, other_first = ratios[0][0], ratios[1][0]
        return len(ratios[0]) == len(ratios[1]) and all(
            equal(rf"\frac{{{one}}}{{{first}}}", rf"\frac{{{other}}}{{{other_first}}}")
            for one, other in zip(*ratios, strict=True)
        )
    if "\\AND" in gold + answer or "\\OR" in gold + answer:  # within brackets, where they part nothing
        return False
    return equal(*(rising(text).replace("%", r"\%") for text in (gold, answer)))


def _stands_in(name: str, value: str) -> bool:
    """Whether a variable is said to be something that has it, as in `x = x^2`."""
    return len(name) == 1 and re.search(rf"(?<![a-zA-Z\\]){name}(?![a-zA-Z_])", value) is not None


def _time(text: str) -> tuple[int, int] | None:
    """The time of day that `9:30` is. None for a ratio: that is written in lowest terms, and without a zero before a digit."""
    match = _TIME.fullmatch(text.strip())
    if match is None:
        return None
    hours, minutes = int(match[1]), int(match[2])
    return (hours, minutes) if hours < 25 and (minutes < 10 or gcd(hours, minutes) > 1) else None


def _with_argument_of(name: str, other_name: str, value: str) -> str | None:
    """The value of `f(n) = ...` with n as the x of a name `f(x)`; None for other names."""
    match, other = (re.fullmatch(r"([A-Za-z])\(([a-z])\)", text.strip()) for text in (name, other_name))
    if not (match and other and match[1] == other[1]) or re.search(rf"(?<![a-zA-Z\\]){match[2]}(?![a-zA-Z])", value):
        return None
    return structure.renamed(value, other[2], match[2])
