r"""Extracts answers from texts and compares them with the gold answers. Pure functions.

`extract` finds the answer in a text. `judge` compares it with the gold answer. It decides identical texts, numbers and choices
itself, exactly. It returns every other pair for the verifier process, which compares words, signs and structure
(`agreement.py`) and leaves the algebra to math-verify.

Verdicts are math-verify's (a number is equal in any form, a unit or a currency beside one number may be left out, `50\%` is 0.5
and also 50), with these departures. The first twelve accept what math-verify refuses:

1. Digits and punctuation of any script are read (`٣٫٥`, `３，５`), as are ½, √, ∞, ·, ° and raised and lowered signs (`x⁻¹²`).
2. `3,5` against a single number is 3.5, not the list 3, 5. Against another list it stays a list.
3. Thousands may be set off as in `1 000`, `1\,000`, `1.000.000`, `1.000,5`, `5\text{,}040` and `12,34,567`, and be a word, as
   millions may: `7 thousand`, `7万`.
4. One separator before exactly three digits is read the American way (`3,500` is 3500, `1.234` is 1.234) and, in an answer,
   also the other way: `3,500` is right where the gold answer is 3.5, `1.234` where it is 1234. `3,000` is never 3.
5. `1 1/2` is a mixed number (math-verify reads 1), `0.\overline{27}`, `0.\dot{3}` and `0.(3)` repeat, `1.6e-19` is a number.
6. What surrounds an answer is dropped, whatever the answer is: full stops, bold and quotation marks, dollars, `Answer:`, units
   such as `km/h`, `cm^2`, `dollars`, `часов` or `個` (`units.py`). Per cent is read in words, too.
7. A choice, A to J, may be written in any script and notation, with its text or the word for *option* beside it
   (`choices.py`).
8. In brackets `;` parts numbers as `,` does: `[1,5; 2)` is from 1.5 to 2 (of intervals math-verify knows `,` alone).
9. Several boxes that only a comma, *and* or *or*, in any of our languages, parts from each other are one answer, a list:
   `\boxed{2} und \boxed{3}`. Of other boxes the last one counts.
10. A number in another base is its digits and its base: `52_8`, `(52)_8` and `52_{\text{eight}}` are the same.
11. An inequality in one variable and the set of its solutions are the same, whichever way round it is written.
12. Other forms of the same: `x \equiv 3 \pmod 7` and `x = 7k + 3`; `f(x) = x + 1` and `f(n) = n + 1`; `k\pi` and `n\pi` for
    integers k and n; 3 hours 20 minutes and 200 minutes; yes, no, odd, even, true, false and *no solution* in any language.

The others refuse what math-verify accepts, since it reads less than the text says or computes less exactly:

13. Moduli, bases, ellipses, comparison signs, branches of a `cases` environment, primes and all words that are no units must
    agree; a quantity in two units may not lose a part; of two units each must mean the same.
14. Integers, fractions and exact expressions are compared exactly, decimals to a relative 1e-6 of the gold answer
    (math-verify: six decimal places). A decimal is never near enough to an integer: 41.9999999 is not 42.
15. An answer that leaves a sum, product, integral, limit, derivative, determinant, gcd, extremum or floor to be computed is
    wrong, unless the gold answer has the same operator: the question itself would be paid. Derivatives, gcds and double
    factorials of letters are compared as symbols.
16. An equation equals neither its right side alone nor the list of its roots; a name (`x = 3`) may be left out. Two equations
    agree if one is a multiple of the other, or if both have solutions and the same ones. (math-verify calls any two without
    real solutions equal.) A false equation, such as `3 = 5`, is wrong.
17. The names of values count: `x = 2, y = 3` is (2, 3) and not (3, 2). A value that the gold answer lists twice must be listed
    twice. 9:30 is a time, not the ratio 3:10.

The text is hostile: every step is linear in its length, and only short numbers are computed with.
"""

from __future__ import annotations

import functools
import re
from typing import Literal

from jaxrl_ml.rewards import choices, number
from jaxrl_ml.rewards.answer_words import AND, OR
from jaxrl_ml.rewards.latex import BRACES, balances, flat, tidy, to_latex
from jaxrl_ml.rewards.units import CURRENCIES
from jaxrl_ml.tasks.maths import MAX_ANSWER_CHARS  # a longer answer is wrong: bounds a row's work, here and in the verifier

_BOX = re.compile(r"(?s:.)?\\(?:boxed|fbox)\s{0,8}\{")
_BETWEEN_BOXES = 40  # characters: what joins two boxes is short
_NUMBER = r"""
    (?: \d+\ \d+/\d+
      | \d*\\[dtc]?frac\s?(?:\d\s?\d|\d\{-?\d+\}|\{-?\d+\}\d|\{(?:[^{}]|\{[^{}]*\})*\}\s?\{(?:[^{}]|\{[^{}]*\})*\})
      | [1-9]\d{0,2}(?:[ ']\d{3})+(?!\d)(?:[.,]\d+)? | (?:\d[\d.,]*|\.\d[\d.,]*)(?:\s?/\s?\d+)? )
    (?:[eE][+-]?\d{1,3}(?![\w.]*\w))?  # 1.5e3
    (?:\s?(?:\\times|\\cdot)\s*10)? (?:\s?\^\s?(?:\{-?\d+\}|\d))?  # a power is part of its number
"""
_ROOT_OR_PI = r"\\sqrt(?:\[\d\])?\{\d+\} | \\pi(?![a-z])"
_LAST_NUMBER = re.compile(
    rf"""(?<![\^_\dA-Za-z\u00c0-\u024f\u0370-\u04ff])(?<![\^_]\{{)(?<![\^_]-)(?<![\^_]\{{-)(?<!\d[.,])(?!(?<=\n)\d{{1,2}}[.)]\s+\S)
    (?:(?<![\w.,)}}])[-+])? (?:\\?{number.CURRENCY.pattern})?  # a sign, where it is no subtraction
    (?: {_NUMBER} (?:\s?(?:{_ROOT_OR_PI}))? | {_ROOT_OR_PI} ) (?:\s?\\?%)?""",
    re.VERBOSE,
)


_IN_BRACES = r"\{(?:[^{}]|\{[^{}]*\})*\}"
_ATTACHED = re.compile(  # what belongs to a letter, as in `a_{n+1}`, `x^{ 2 }` and `m s-2`, and powers that are no numbers
    rf"(?<=[A-Za-z)\]])\s?[\^_]\s?(?:{_IN_BRACES}|-?\w)|\d[\d.]*\s?\^\s?(?!\{{\s*-?\d+\s*\}}){_IN_BRACES}|(?<![\d.][eE])(?<=[A-Za-z])-\d+(?![\d.])"
)


def extract(text: str, form: Literal["boxed", "last_number"] = "boxed") -> str | None:
    r"""The answer that a text gives, as it stands there; None where it gives none.

    It stands in the last `\boxed{...}` or `\fbox{...}` whose braces balance, together with the boxes that it is joined to, or
    in the last closed `<answer>...</answer>`, whichever begins later. "last_number" takes the last number of a text without
    either. At most MAX_ANSWER_CHARS + 1 characters are returned, so that an answer that is too long shows it.
    """
    box, answer = _last_box(text), None
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, end) if end >= 0 else -1
    if start >= 0 and (box is None or start > box[0]):
        answer = text[start + len("<answer>") : end]
    elif box is not None:
        answer = _with_joined_boxes(text, *box)
    elif form == "last_number":
        answer = _last_number(text)
    return answer and answer[: MAX_ANSWER_CHARS + 1]


def _last_box(text: str, end: int | None = None) -> tuple[int, str] | None:
    """Where the last balanced box before `end` begins, and what it holds: at most MAX_ANSWER_CHARS + 1 characters of it."""
    position = len(text) if end is None else end
    while (position := text.rfind("box", 0, position)) >= 0:
        opening = _BOX.match(text, max(0, position - 2))
        if opening is None:
            continue
        depth, limit = 1, opening.end() + MAX_ANSWER_CHARS + 1
        for brace in BRACES.finditer(text, opening.end(), limit):
            if brace[0] == "{":
                depth += 1
            elif brace[0] == "}":
                depth -= 1
                if not depth:
                    return position, text[opening.end() : brace.start()]
        if limit < len(text):  # else it is never closed: that can be so for the few near the end only
            return position, text[opening.end() : limit]
    return None


_FORMATTING = re.compile(r"[\s$*]|\\[()\[\],;! ]|\\q?quad(?![a-z])|\\text\s?\{([^{}]*)\}")
_JOINS = re.compile(rf"(?:[,;،、，]|(?:[,;،、，])?(?:{'|'.join(map(re.escape, (*AND, *OR)))}))".replace(r"\ ", ""))


def _with_joined_boxes(text: str, start: int, content: str) -> str:
    """The contents of a box and of the boxes that it is joined to, separated by commas; one content where all are the same."""
    contents = [content]
    while sum(map(len, contents)) + len(contents) <= MAX_ANSWER_CHARS:
        opening = text.rfind("\\", 0, start)
        near = text.find("}", max(0, opening - _BETWEEN_BOXES - 1), opening) >= 0  # the end of a box
        before = _last_box(text, opening) if near else None
        if before is None:
            break
        between = text[text.index("{", before[0]) + len(before[1]) + 2 : opening]
        if len(between) > _BETWEEN_BOXES or not _JOINS.fullmatch(_FORMATTING.sub(r"\1", between).replace(" ", "").casefold()):
            break
        start, content = before
        contents.append(content)
    if len(contents) == 1:
        return content
    values = [content.strip(" .") for content in reversed(contents)]
    return ", ".join(values) if len(set(values)) > 1 else content


def _last_number(text: str) -> str | None:
    tail = to_latex(text[-MAX_ANSWER_CHARS - 1 :]).replace("{,}", ",")
    numbers = list(_LAST_NUMBER.finditer(_ATTACHED.sub(lambda part: " " * len(part[0]), tail)))
    if not numbers:
        return None
    if numbers[-1].start() == 0 and len(text) > MAX_ANSWER_CHARS:  # it may begin further to the left
        return tail
    return numbers[-1][0].rstrip(".,")


@functools.lru_cache(maxsize=2**12)  # the answers of a group, and of later steps, are often the same
def judge(gold: str, answer: str) -> bool | tuple[str, str]:
    """Whether the answer is right; where words or algebra decide, the (gold, answer) in LaTeX for the verifier.

    Both are what stood in the box. An answer that is empty, too long, or whose braces do not balance is wrong.
    """
    if len(answer) > MAX_ANSWER_CHARS:
        return False
    gold, answer = to_latex(gold), to_latex(answer)
    if len(answer) > MAX_ANSWER_CHARS or not balances(answer):
        return False
    gold, answer = tidy(gold), tidy(answer)
    if gold == answer or not answer:
        return bool(answer)
    choice = choices.read(flat(gold))
    several = choices.read_several(flat(gold))
    if several and (chosen_ones := choices.read_several(flat(answer))):
        return several == chosen_ones
    if choice is not None and (chosen := choices.read(_ASSIGNMENT.sub("", flat(answer)))) is not None:
        return chosen == choice
    golden = None if _AMBIGUOUS.search(gold) else number.read(gold)
    given = number.read(answer)
    if golden is not None and given is None:
        given = number.read(_ASSIGNMENT.sub("", answer))
    if golden is not None and given is not None and not (golden.listlike and given.listlike):
        return number.equal(golden, given)
    if choice is not None and given is not None:
        return False
    if golden is None and _LETTERS.search(answer):  # it may be no unit that stands beside a number
        given = None
    return _for_verifier(gold, golden), _for_verifier(answer, given)


_ASSIGNMENT = re.compile(r"^\s*[a-zA-Z]\s?=(?!.*=)")  # `x = 3` is 3, where the gold answer is a number
_LETTERS = re.compile(r"(?<!\\)\b[A-Za-z]")
_AMBIGUOUS = re.compile(r"\d[A-Za-z]$")  # `2m` may be metres or a product
_BRACKETED = re.compile(r"(?<=[(\[])[^()\[\]]*+(?=[)\]])")
_INNER_COMMA = re.compile(r"(?<=\d),(?=\d)")


def _for_verifier(text: str, read: number.Number | None) -> str:
    """The text as math-verify reads it: of a number its plain form, of another text `,` for each `;` in brackets.

    Where a bracket has a `;`, the commas within its numbers are decimal ones.
    """

    def replaced(inner: re.Match[str]) -> str:
        return _INNER_COMMA.sub(".", inner[0]).replace(";", ",") if ";" in inner[0] else inner[0]

    if read is not None and not read.listlike:
        unit, power, exponent = "/".join(CURRENCIES.get(unit, unit) for unit in read.unit).partition("^")
        return read.latex + (rf"\text{{ {unit}}}{power}{exponent}" if unit.replace("/", "").isalpha() else "")
    text = number.CURRENCY.sub("", text)
    return _BRACKETED.sub(replaced, text) if ";" in text else text
