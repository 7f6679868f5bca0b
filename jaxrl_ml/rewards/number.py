r"""Numbers as answers write them: a text in, its exact value out, or None where the text is not one number from end to end.

Read are integers, decimals, fractions, mixed numbers, percentages, repeating decimals (`0.\overline{27}`, `0.\dot{3}`,
`0.(3)`), powers of ten (`1.6\times10^{-19}`, `1.6e-19`) and thousands or millions in words (`7 million`, `7万`), with thousands
set off as any country does, a currency or a unit beside them (`units.py`). `equal` compares two of them.

The text is hostile: it is short, every expression matches in linear time, and exponents are bounded.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from fractions import Fraction
from typing import NamedTuple

from jaxrl_ml.rewards.answer_words import MULTIPLIERS
from jaxrl_ml.rewards.latex import flat
from jaxrl_ml.rewards.units import LEADING, PERCENT, UNITS, differ

MAX_CHARS = 80
"""A longer text is not read as a number."""
RELATIVE_TOLERANCE = Fraction(1, 10**6)
"""How far, relative to the gold answer, a decimal may be from it."""
_MAX_EXPONENT = 400


class Number(NamedTuple):
    """A number as it was written."""

    value: Fraction  # of `50%`, 50
    latex: str  # as math-verify reads it
    percent: bool = False
    decimal: bool = False  # written with a decimal point: a rounded value, perhaps
    whole: bool = False  # written without decimal point and fraction bar
    listlike: bool = False  # `3,5`, which may be two numbers
    other: Fraction | None = None  # the less likely reading, in an answer
    unit: tuple[str, ...] = ()  # the words of its unit


def equal(gold: Number, answer: Number) -> bool:
    """Whether two numbers are the same, as exactly as they are written.

    Where one is a decimal and neither is an integer, they may differ by RELATIVE_TOLERANCE. A unit that only one has counts for
    nothing; two units must not mean different things.
    """
    if differ(*(number.unit or ("%",) * number.percent for number in (gold, answer))):
        return False
    gold_value, value = gold.value / (100 if gold.percent else 1), answer.value / (100 if answer.percent else 1)
    if gold_value == value or answer.other is not None and gold.value == answer.other and gold.percent == answer.percent:
        return True
    if gold.value == answer.value and gold.percent != answer.percent:  # 9 stands for 9 %, but 0.5 not for 0.5 %
        return (gold.whole and answer.whole) or (gold.percent and abs(gold.value) >= 1)
    if 1 in (gold_value.denominator, value.denominator) or not (gold.decimal or answer.decimal):
        return False
    return abs(gold_value - value) <= abs(gold_value) * RELATIVE_TOLERANCE


def _longest_first(words: Iterable[str]) -> str:
    return "|".join(sorted(words, key=lambda word: (-len(word), word)))


_NO_MULTIPLES = [unit for unit in UNITS if unit.startswith(tuple(MULTIPLIERS))]  # 千米 is a kilometre
_UNITS, _LEADING = {None, *UNITS}, {None, *LEADING}
_WORD = r"[^\x00-\x21\x23-\x40\[-`{-~]+"  # ASCII letters, all beyond ASCII, and the quotes of Hebrew abbreviations
_SIGNS = "$¢-¥֏؋߾߿৲৳৻૱௹฿៛₠-\u20c1꠸﷼﹩＄￠￡￥￦\U00011fdd-\U00011fe0\U0001e2ff\U0001ecb0"  # the category Sc
CURRENCY = re.compile(f"[{_SIGNS}]")
_DECORATION = re.compile(
    rf"\s*(?P<sign>[+-]?)\s*(?:(?P<leading>(?![{_SIGNS}]){_WORD})\.?)?\s*(?:(?P<before>[{_SIGNS}])\s*)?"
    rf"(?P<inner>[+-]?\s*[\d.\\].*?)\s*(?:(?!{_longest_first(_NO_MULTIPLES)})(?P<times>{_longest_first(MULTIPLIERS)})(?![A-Za-z\u00c0-\u024f\u0400-\u04ff])\s*)?"
    rf"(?:(?P<percent>%|{'|'.join(PERCENT)})|(?P<after>[{_SIGNS}])|(?P<degree>\^\{{?\\circ\s?\}}?\s?[CF]?)|"
    rf"(?<![\\A-Za-z])(?:de\s)?(?:\(\s*)?(?P<unit>{_longest_first(unit for unit in UNITS if ' ' in unit)}|{_WORD})(?:\s*\))?"
    rf"(?:/(?P<per>{_WORD}))?(?:\^\{{?(?P<power>[23])\}}?)?)?\s*"
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
_SCIENTIFIC = re.compile(
    r"(?:(?P<mantissa>[\d.,]+)\s*(?:\\times|\\cdot|\*)\s*)?10\s?\^\s?(?:\{\s?(?P<braced>[+-]?\s?\d{1,3})\s?\}|(?P<digit>\d))"
    r"|(?P<mantissa_>[\d.]+)[eE](?P<exponent>[+-]?\d{1,3})"
)
_REPEATING = re.compile(
    r"(?P<whole>\d*)[.,](?P<once>\d*?)(?:\\(?:overline|bar)\s?(?:\{(?P<line>\d+)\}|(?P<lined>\d))|\((?P<brackets>\d+)\)"
    r"|\\dot\s?(?:\{(?P<dot>\d)\}|(?P<dotted>\d))(?:(?P<between>\d*)\\dot\s?\{?(?P<last>\d)\}?)?"
    r"|(?P<shown>\d{1,8}?)(?P=shown){2,}(?:\\[lc]?dots|\.\.\.))"
)


@functools.lru_cache(maxsize=2**16)
def read(latex: str) -> Number | None:
    """The number that a tidy text is, with its unit; None where it is anything else, or more than that."""
    latex = flat(latex)
    decorated = _DECORATION.fullmatch(latex) if len(latex) <= MAX_CHARS else None
    if decorated is None:
        return None
    if decorated["leading"] not in _LEADING or decorated["unit"] not in _UNITS or decorated["per"] not in _UNITS:
        return None
    inner = decorated["inner"]
    if inner[0] in "+-" and decorated["sign"]:
        return None
    sign = decorated["sign"] or (inner[0] if inner[0] in "+-" else "")
    inner = inner.lstrip("+-").strip()
    number = _decimal(inner) or _fraction(inner) or _scientific(inner) or _repeating(inner)
    if number is None:
        return None
    if times := MULTIPLIERS.get(decorated["times"]):
        number = _exactly(number.value * times, number.decimal)
        number = number._replace(decimal=number.value.denominator > 1, whole=number.value.denominator == 1)
    flip, minus = (-1, "-") if sign == "-" else (1, "")
    unit, degree, power = (decorated[part] for part in ("unit", "degree", "power"))
    unit = decorated["before"] or decorated["after"] or unit or (degree and "°" + degree[-1] * (degree[-1] in "CF"))
    words = [word for word in (unit, decorated["per"]) if word]
    if power:
        words[-1] += f"^{power}"
    return number._replace(
        value=flip * number.value,
        latex=minus + number.latex + (r"\%" if decorated["percent"] else ""),
        percent=bool(decorated["percent"]),
        other=None if number.other is None else flip * number.other,
        unit=tuple(words),
    )


def _exactly(value: Fraction, decimal: bool = False) -> Number:
    return Number(value, rf"\frac{{{value.numerator}}}{{{value.denominator}}}", decimal=decimal)


def _fraction(text: str) -> Number | None:
    r"""`\frac{3}{4}`, `3/4`, `1\frac{3}{4}` or `1 3/4`."""
    match = _FRACTION.fullmatch(text)
    if match is None:
        return None
    whole, *parts = (match[name] or match[f"{name}_"] for name in ("whole", "top", "bottom"))
    top, bottom = (int(part.strip("{} ")) for part in parts)
    if not bottom or whole and (top < 0 or bottom < 0):
        return None
    return _exactly(int(whole or 0) + Fraction(top, bottom))


def _decimal(text: str) -> Number | None:
    """A number in digits, with the separators of any country."""
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
    return Number(Fraction(plain), plain, decimal=not whole, whole=whole, listlike=listlike, other=other)


def _scientific(text: str) -> Number | None:
    r"""`1.6\times10^{-19}`, `10^{-7}` or `1.6e-19`."""
    match = _SCIENTIFIC.fullmatch(text)
    if match is None:
        return None
    exponent = int((match["braced"] or match["digit"] or match["exponent"]).replace(" ", ""))
    mantissa = _decimal(match["mantissa"] or match["mantissa_"] or "1")
    if mantissa is None or abs(exponent) > _MAX_EXPONENT:
        return None
    return _exactly(mantissa.value * Fraction(10) ** exponent, mantissa.decimal)


def _repeating(text: str) -> Number | None:
    r"""`0.\overline{27}`, `0.1\dot{6}`, `0.\dot{1}4285\dot{7}`, `0.(3)` or `0.333\ldots`."""
    match = _REPEATING.fullmatch(text)
    if match is None:
        return None
    whole, once = match["whole"] or "0", match["once"]
    first = match["dot"] or match["dotted"]
    block = match["line"] or match["lined"] or match["brackets"] or match["shown"]
    if block is None:
        block = first + (match["between"] or "") + (match["last"] or "")
    shift = 10 ** len(once)
    return _exactly(Fraction(int(whole + once), shift) + Fraction(int(block), shift * (10 ** len(block) - 1)))
