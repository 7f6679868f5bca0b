r"""The front of the maths reward: texts in; their answers, exact verdicts, or pairs of LaTeX for the verifier out. Pure.

`extract` finds the answer in a text. `judge` compares it with the gold answer: identical texts, numbers and choices are decided
here, exactly; anything else comes back as the pair that math-verify is to compare. Nothing is ever guessed: what is not read
as a number from its first character to its last goes to the verifier.

Verdicts are math-verify's (a number is equal in any form, units and currencies are dropped, `50\%` is 0.5 and also 50),
with these departures, all of them towards how numbers are written outside English and outside LaTeX:

1. Digits and punctuation of any script are read (`٣٫٥`, `３，５`), as are ½, √, ∞, ·, ° and raised and lowered signs (`x⁻¹²`).
2. `3,5` against a single number is 3.5, not the list 3, 5. Against another list it stays a list.
3. Thousands may be set off as in `1 000`, `1\,000`, `1.000.000`, `1.000,5` and `12,34,567`.
4. One separator before exactly three digits is read the American way (`3,500` is 3500, `1.234` is 1.234) and, in an answer,
   also the other way: `3,500` is right where the gold answer is 3.5, `1.234` where it is 1234. `3,000` is never 3.
5. `1 1/2` is a mixed number (math-verify reads 1).
6. A full stop or `**` around the answer, a currency sign, and units such as `km/h`, `cm^2`, `dollars`, `часов` or `個`
   (`units.py`) are dropped; per cent is read in words, too.
7. A choice, A to J, may be followed by its text: `C) 5 eV`.
8. In brackets `;` parts numbers as `,` does: `[1,5; 2)` is from 1.5 to 2 (of intervals math-verify knows `,` alone).

The text is hostile: no step costs more than its length, and numbers are computed with only when they are short.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from fractions import Fraction
from typing import Literal, NamedTuple

from jaxrl_ml.rewards.units import LEADING, PERCENT, UNITS
from jaxrl_ml.tasks.maths import MAX_ANSWER_CHARS  # a longer answer is wrong: bounds a row's work, here and in the verifier

_MAX_NUMBER_CHARS = 80  # a longer number, with its decoration, is left to the verifier
_MAX_FLOAT_DIGITS = 15  # beyond, math-verify's floats round
_NEAR = Fraction(2, 10**6)  # math-verify compares decimals to six places: what is this near, it shall decide

_BOX = re.compile(r"(?s:.)?\\(?:boxed|fbox)\s{0,8}\{")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_LAST_NUMBER = re.compile(
    r"""(?<!_)(?<!_\{)(?<!\d)(?:(?<![\w.,)}])[-+])?  # no index; a sign, where it is no subtraction
    (?:\\?\$)?(?:\d+\ \d+/\d+ | \d*\\[dt]?frac\{-?\d+\}\{-?\d+\} | (?:\d[\d.,]*|\.\d[\d.,]*)(?:\s?/\s?\d+)?)(?:\s?\\?%)?""",
    re.VERBOSE,
)


def extract(text: str, form: Literal["boxed", "last_number"] = "boxed") -> str | None:
    r"""The answer that a text gives, as it stands there; None where it gives none.

    It stands in the last `\boxed{...}` or `\fbox{...}` whose braces balance, or in the last closed `<answer>...</answer>`,
    whichever begins later; "last_number" takes the last number of a text without either. At most MAX_ANSWER_CHARS + 1
    characters are returned, so that an answer that is too long shows it.
    """
    box, answer = _last_box(text), None
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, end) if end >= 0 else -1
    if start >= 0 and (box is None or start > box[0]):
        answer = text[start + len("<answer>") : end]
    elif box is not None:
        answer = box[1]
    elif form == "last_number":
        answer = _last_number(text)
    return answer and answer[: MAX_ANSWER_CHARS + 1]


def _last_box(text: str) -> tuple[int, str] | None:
    """Where the last balanced box begins and what it holds; the start of that, over MAX_ANSWER_CHARS, where that is long."""
    position = len(text)
    while (position := text.rfind("box", 0, position)) >= 0:
        opening = _BOX.match(text, max(0, position - 2))
        if opening is None:
            continue
        depth, limit = 1, opening.end() + MAX_ANSWER_CHARS + 1
        for brace in _BRACES.finditer(text, opening.end(), limit):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if not depth:
                return position, text[opening.end() : brace.start()]
        if limit < len(text):  # else it is never closed: that can be so for the few near the end only
            return position, text[opening.end() : limit]
    return None


def _last_number(text: str) -> str | None:
    tail = to_latex(text[-MAX_ANSWER_CHARS - 1 :])
    numbers = list(_LAST_NUMBER.finditer(tail))
    if not numbers:
        return None
    if numbers[-1].start() == 0 and len(text) > MAX_ANSWER_CHARS:  # it may begin further to the left
        return tail
    return numbers[-1][0].rstrip(".,")


class _Characters(dict[int, int | str]):
    """How each character is written in ASCII LaTeX; filled as characters are met."""

    def __missing__(self, code: int) -> int | str:
        character = chr(code)
        digit, decomposition = unicodedata.decimal(character, None), unicodedata.decomposition(character)
        if digit is not None:
            character = str(digit)
        elif 0xFF01 <= code <= 0xFF5E:  # the full-width forms of ASCII
            character = chr(code - 0xFEE0)
        elif decomposition.startswith("<fraction>") and not decomposition.endswith("2044"):
            top, _, bottom = "".join(chr(int(part, 16)) for part in decomposition.split()[1:]).partition("\u2044")
            character = rf"\frac{{{top}}}{{{bottom}}}"
        elif unicodedata.category(character) == "Zs":
            character = " "
        elif unicodedata.category(character) == "Sc":  # of currencies
            character = r"\$"
        elif unicodedata.category(character) == "Cf":  # marks of writing direction, joiners, soft hyphens
            character = ""
        self[code] = character
        return character


_CHARACTERS = _Characters(
    str.maketrans("−–‐‑﹣٫٬،、٪⁄∕’。।۔", "-----.,,,%//'...")
    | {
        ord("°"): r"^\circ ",
        ord("℃"): r"^\circ C",
        ord("℉"): r"^\circ F",
        ord("∞"): r"\infty ",
        ord("·"): r"\cdot ",
        ord("⋅"): r"\cdot ",
    }
)
_RAISED = re.compile("[⁰¹²³ⁱ⁴-ⁿ]+")
_LOWERED = re.compile("[₀-₎]+")
_ROOT = re.compile(r"√\s?(\d+(?:\.\d+)?|[a-zA-Z])")


def to_latex(text: str) -> str:
    """The text with digits, punctuation and symbols of all scripts as ASCII and LaTeX; ASCII is left as it is."""
    if text.isascii():
        return text
    text = _RAISED.sub(lambda run: f"^{{{unicodedata.normalize('NFKC', run[0])}}}", text)
    text = _LOWERED.sub(lambda run: f"_{{{unicodedata.normalize('NFKC', run[0])}}}", text)
    return _ROOT.sub(r"\\sqrt{\1}", unicodedata.normalize("NFC", text).translate(_CHARACTERS))


class Number(NamedTuple):
    """A number as it was written."""

    value: Fraction  # of `50%`, 50
    latex: str  # as math-verify reads it
    percent: bool = False
    whole: bool = False  # without decimal point and fraction bar
    listlike: bool = False  # `3,5`, which may be two numbers
    other: Fraction | None = None  # the less likely reading, in an answer


def judge(gold: str, answer: str) -> bool | tuple[str, str]:
    """Whether the answer is right; where that takes algebra, the (gold, answer) in LaTeX for the verifier.

    Both are what stood in the box; an answer that is empty, too long, or whose braces do not balance is wrong.
    """
    if len(answer) > MAX_ANSWER_CHARS:
        return False
    gold, answer = to_latex(gold).strip(), to_latex(answer).strip()
    if not answer or len(answer) > MAX_ANSWER_CHARS or not _balances(answer):
        return False
    if gold == answer:
        return True
    golden, given = _read(gold), _read(_ASSIGNMENT.sub("", answer))
    if isinstance(golden, str) and given is None and (chosen := _CHOSEN.fullmatch(_tidied(answer))):
        given = chosen[1]
    match golden, given:
        case Number(), Number() if not (golden.listlike and given.listlike):
            verdict = _equal(golden, given)
            return (golden.latex, given.latex) if verdict is None else verdict
        case (str(), str()):
            return golden == given
        case (str(), Number()) | (Number(), str()):
            return False
    return _with_commas(gold), _with_commas(answer)


def _with_commas(text: str) -> str:
    """The text with `,` for each `;` in brackets; where there are such, the commas within a number are decimal ones."""

    def replaced(inner: re.Match[str]) -> str:
        return _INNER_COMMA.sub(".", inner[0]).replace(";", ",") if ";" in inner[0] else inner[0]

    return _BRACKETED.sub(replaced, text) if ";" in text else text


def _balances(text: str) -> bool:
    depth = 0
    for brace in _BRACES.findall(text):
        depth += {"{": 1, "}": -1}.get(brace, 0)
        if depth < 0:
            return False
    return depth == 0


def _equal(gold: Number, answer: Number) -> bool | None:
    """Exact equality; None where the numbers are so near that rounding decides."""
    gold_value, value = gold.value / (100 if gold.percent else 1), answer.value / (100 if answer.percent else 1)
    if gold_value == value or answer.other is not None and gold.value == answer.other and gold.percent == answer.percent:
        return True
    if gold.value == answer.value and gold.whole and answer.whole:  # 9 is taken for 9 %
        return True
    return None if abs(gold_value - value) <= _NEAR else False


_TIDY = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\left(?![a-z])|\\right(?![a-z])|\\displaystyle|\\!", ""),
        (r"\\[,;: ]|~", " "),
        (r"\{,\}", ","),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\([$%])", r"\1"),
        (r"\\(?:text(?:bf|it|rm|normal)?|math(?:rm|bf|it)|mbox)\s?\{([^{}\\]*)\}", r" \1 "),
        (r"^\s*(?:\$|\*\*|\\\()(.*?)(?:\$|\*\*|\\\))\.?\s*$", r"\1"),
        (r"\.\s*$", ""),
        (r"^\s*\{([^{}]*)\}\s*$", r"\1"),
    )
)
_ASSIGNMENT = re.compile(r"^[a-zA-Z]\s?=(?!.*=)")  # `x = 3` is 3, where the gold answer is a number
_BRACKETED = re.compile(r"(?<=[(\[])[^()\[\]]*+(?=[)\]])")
_INNER_COMMA = re.compile(r"(?<=\d),(?=\d)")
_CHOICE = re.compile(r"\s*\(?\s*([A-Da-d]|[E-J])\s*\)?\s*")
_CHOSEN = re.compile(r"\s*\(?\s*([A-J])\s*[).:](?!.*(?<![A-Za-z])[A-J](?![A-Za-z])).*", re.DOTALL)  # no other beside it
_UNITS, _LEADING = {None, *UNITS}, {None, *LEADING}
_WORD = r"[^\x00-\x21\x23-\x40\[-`{-~]+"  # ASCII letters, all beyond ASCII, and the quotes of Hebrew abbreviations
_DECORATION = re.compile(
    rf"\s*(?P<sign>[+-]?)\s*(?:(?P<leading>{_WORD})\.?)?\s*(?:\$\s*)?(?P<inner>[+-]?\s*[\d.\\].*?)\s*"
    rf"(?:(?P<percent>%|{'|'.join(PERCENT)})|\$|\^\{{?\\circ\s?\}}?\s?[CF]?|"
    rf"(?:de\s)?(?P<unit>{_WORD})(?:/(?P<per>{_WORD}))?(?:\^\{{?[23]\}}?)?)?\s*"
)
_FRACTION = re.compile(
    r"(?:(?P<whole>\d+)\s?)?\\frac\s?(?P<top>\{\s?-?\d+\s?\}|\d)\s?(?P<bottom>\{\s?-?\d+\s?\}|\d)"
    r"|(?:(?P<whole_>\d+)\s)?(?P<top_>\d+)\s?/\s?(?P<bottom_>\d+)"
)
_AMERICAN = re.compile(r"[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?|[1-9]\d?(?:,\d{2})+,\d{3}(?:\.\d+)?")
_EUROPEAN = re.compile(r"[1-9]\d{0,2}(?:\.\d{3}){2,}|[1-9]\d{0,2}(?:\.\d{3})+,\d+")
_SPACED = re.compile(r"[1-9]\d{0,2}(?:[ ']\d{3})+(?:[.,]\d+)?")
_PLAIN = re.compile(r"\d+(?:\.\d+)?|\.\d+")
_COMMA = re.compile(r"\d+,\d+")


def _tidied(latex: str) -> str:
    """The text without what changes its looks alone."""
    for pattern, replacement in _TIDY:
        latex = pattern.sub(replacement, latex)
    return latex


@functools.lru_cache(maxsize=2**16)
def _read(latex: str) -> Number | str | None:
    """The number or choice (a capital letter) that stands there, and nothing else; None for everything else."""
    if len(latex) > _MAX_NUMBER_CHARS:
        return None
    latex = _tidied(latex)
    if choice := _CHOICE.fullmatch(latex):
        return choice[1].upper()
    decorated = _DECORATION.fullmatch(latex)
    if decorated is None:
        return None
    if decorated["leading"] not in _LEADING or decorated["unit"] not in _UNITS or decorated["per"] not in _UNITS:
        return None
    inner = decorated["inner"]
    if inner[0] in "+-" and decorated["sign"]:
        return None
    sign = decorated["sign"] or (inner[0] if inner[0] in "+-" else "")
    inner = inner.lstrip("+-").strip()
    # math-verify knows no percentages of fractions.
    number = _decimal(inner) or (None if decorated["percent"] else _fraction(inner))
    if number is None:
        return None
    flip, minus = (-1, "-") if sign == "-" else (1, "")
    return number._replace(
        value=flip * number.value,
        latex=minus + number.latex + (r"\%" if decorated["percent"] else ""),
        percent=bool(decorated["percent"]),
        other=None if number.other is None else flip * number.other,
    )


def _fraction(text: str) -> Number | None:
    r"""`\frac{3}{4}`, `3/4`, `1\frac{3}{4}` or `1 3/4`."""
    match = _FRACTION.fullmatch(text)
    if match is None:
        return None
    whole, *parts = (match[name] or match[f"{name}_"] for name in ("whole", "top", "bottom"))
    top, bottom = (int(part.strip("{} ")) for part in parts)
    if not bottom or whole and (top < 0 or bottom < 0):
        return None
    value = int(whole or 0) + Fraction(top, bottom)
    return Number(value, rf"\frac{{{value.numerator}}}{{{value.denominator}}}")


def _decimal(text: str) -> Number | None:
    listlike, other = False, None
    if _AMERICAN.fullmatch(text):
        plain = text.replace(",", "")
        if text.count(",") == 1 and "." not in text and not text.endswith(",000"):
            other = Fraction(text.replace(",", "."))
    elif _EUROPEAN.fullmatch(text):
        plain = text.replace(".", "").replace(",", ".")
    elif _SPACED.fullmatch(text):
        plain = text.replace(" ", "").replace("'", "").replace(",", ".")
    elif _PLAIN.fullmatch(text):
        plain = text
        if re.fullmatch(r"[1-9]\d{0,2}\.\d{3}", text):
            other = Fraction(text.replace(".", ""))
    elif _COMMA.fullmatch(text):
        plain, listlike = text.replace(",", "."), True
    else:
        return None
    whole = "." not in plain
    if not whole and len(plain) > _MAX_FLOAT_DIGITS:
        return None
    return Number(Fraction(plain), plain, whole=whole, listlike=listlike, other=other)
