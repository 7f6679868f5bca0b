r"""Separates the words of an answer, in tidy LaTeX, from its mathematics.

A *word* stands in `\text{...}`, or is a bare run of letters that is no product of variables: four letters or more (three in a
text of letters alone), letters that are not Latin, or a short word or unit that everybody writes (`km`, `odd`). Functions
(`sqrt`, `lcm`) and commands are mathematics. Words are casefolded, and a plural `s` is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from jaxrl_ml.rewards.answer_words import AND, ARTICLES, CHANGING, FUNCTIONS, MODIFIERS, OR, PHRASES, SHORT
from jaxrl_ml.rewards.units import UNITS

_LETTERS = r"[A-Za-zªµºÀ-\u02af\u0300-\U0010ffff]+"
_TOKEN = re.compile(
    rf"""\\text\s?\{{(?P<text>[^{{}}]*)\}}
    | (?P<math>\\(?:begin|end)\{{[^{{}}]*\}} | \\operatorname\*?\{{[^{{}}]*\}} | \\mathbb\s?\{{?[A-Z]\}}? | \\[A-Za-z]+ | \\.
        | _\{{[^{{}}]*\}} | _. )
    | (?P<letters>{_LETTERS}(?:['-]{_LETTERS})*) | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
_ONLY_LETTERS = re.compile(r"[A-Za-z\s,.;'-]+")
_IN_TEXT = re.compile(rf"{_LETTERS}(?:['-]{_LETTERS})*|.", re.DOTALL)
_SI = frozenset("NJWVCTΩ")
"""Units of one letter that count in `\\text` alone."""
_KNOWN = frozenset(unit.casefold() for unit in (*UNITS, *_SI)) | MODIFIERS
_CHANGING = CHANGING | {word.casefold() for word in (*AND, *OR)}


class Part(NamedTuple):
    """A word, or the mathematics between words."""

    is_word: bool
    text: str


def parts(text: str) -> list[Part]:
    """The words of a text and the mathematics between them, in order. White space and punctuation between words are dropped."""
    pieces: list[Part] = []
    shortest = 3 if _ONLY_LETTERS.fullmatch(text) else 4
    for token in _TOKEN.finditer(text):
        if token["text"] is not None:
            runs = [run[0] for run in _IN_TEXT.finditer(token["text"])]
            count = sum(run[0].isalpha() for run in runs)
            pieces += [Part(_is_word_in_text(run, count), run) for run in runs]
        elif token["letters"] is not None:
            pieces.append(Part(_is_bare_word(token["letters"], shortest), token["letters"]))
        else:
            pieces.append(Part(False, token[0]))
    merged: list[Part] = []
    for piece in pieces:
        if piece.is_word:
            merged.append(Part(True, _stem(piece.text)))
        elif merged and not merged[-1].is_word:
            merged[-1] = Part(False, merged[-1].text + piece.text)
        else:
            merged.append(piece)
    kept = [part for part in merged if part.is_word or part.text.strip(" .,;:")]
    return [part for part in kept if not part.is_word or len(kept) == 1 or part.text not in ARTICLES]


def _is_word_in_text(run: str, count: int) -> bool:
    """Whether a run within `\\text` is a word; a letter that stands there alone is one where it is a unit."""
    return run[0].isalpha() and (len(run) > 1 or count > 1 or not run.isascii() or run in UNITS or run in _SI)


def _is_bare_word(letters: str, shortest: int) -> bool:
    """Whether a run of letters outside of `\\text` is a word. ASCII ones are from `shortest` letters on, or where known."""
    folded = letters.casefold()
    if not letters.isascii():
        return len(letters) > 1 or not "\u0370" <= letters <= "\u03ff"  # a Greek letter alone is a symbol
    long = len(letters) >= 4 or (len(letters) >= shortest and not set(folded).isdisjoint("eiou"))  # abc is a product
    return folded not in FUNCTIONS and (long or folded in SHORT)


def _stem(word: str) -> str:
    """The word casefolded, without the `s` of an English plural."""
    folded = word.casefold()
    is_plural = len(folded) > 3 and folded.isascii() and folded.endswith("s") and not folded.endswith("ss")
    return folded[:-1] if is_plural else folded


def has_words(text: str) -> bool:
    """Whether a text has a word."""
    return any(part.is_word for part in parts(text))


def joined(pieces: Sequence[Part]) -> str:
    r"""The LaTeX of parts, words in `\text`."""
    return "".join(rf"\text{{ {part.text} }}" if part.is_word else part.text for part in pieces)


_AND, _OR = (frozenset(word.casefold() for word in words) for words in (AND, OR))
_SHORT_CONNECTIVES = "|".join(sorted(word for word in _AND | _OR if word.isascii() and word.isalpha() and len(word) <= 3))
_BETWEEN_NUMBERS = re.compile(rf"(?<=[\d)}}])\s+({_SHORT_CONNECTIVES})\s+(?=[-\d\\(])", re.IGNORECASE)
_RELATION = re.compile(r"[<>=]|\\(?:le|ge|ne|in|equiv)(?![a-zA-Z])")
_IN_TEXT_ALONE = re.compile(rf"\\text\{{\s*({_SHORT_CONNECTIVES})\s*\}}", re.IGNORECASE)


def with_connectives(text: str) -> str:
    r"""The text with *and* and *or* of any language, between mathematics, as the commands `\AND` and `\OR`.

    Short Latin ones (Spanish `y`, Indonesian `dan`) count in `\text` and between two numbers. Elsewhere they are variables. The
    signs ∧ and ∨ count between equations and inequalities; in logic they are operators.
    """
    if _RELATION.search(text):
        text = re.sub(r"\\lor(?![a-zA-Z])", r"\\OR", re.sub(r"\\land(?![a-zA-Z])", r"\\AND", text))
    for pattern in (_BETWEEN_NUMBERS, _IN_TEXT_ALONE):
        text = pattern.sub(lambda word: r" \AND " if word[1].casefold() in _AND else r" \OR ", text)
    pieces = parts(text)
    between = range(1, len(pieces) - 1)
    for i in between:
        after_unit = i > 1 and pieces[i - 1].is_word and not pieces[i - 2].is_word  # `3 cm and 4 cm`
        if pieces[i].is_word and not pieces[i + 1].is_word and (after_unit or not pieces[i - 1].is_word):
            command = r"\AND " if pieces[i].text in _AND else r"\OR " if pieces[i].text in _OR else None
            if command:
                pieces[i] = Part(False, f" {command}")
    return joined(pieces) if any(not pieces[i].is_word and pieces[i].text in (r" \AND ", r" \OR ") for i in between) else text


def in_english(text: str) -> str:
    r"""The text as `\text{no solution}` or the like, where it is a phrase of `answer_words.PHRASES`."""
    phrase = " ".join(re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).split()).rstrip(" .!。।").casefold()
    return rf"\text{{{PHRASES[phrase]}}}" if phrase in PHRASES else text


_POWER_OR_SLASH = re.compile(r"\s*(?:\^\s?\{?(?P<power>-?[1-3])\}?\s*|/|\\cdot|\*)*\s*")
_LETTER = re.compile(r"(?<![\\A-Za-z])[A-Za-z](?![A-Za-z])")


class Quantity(NamedTuple):
    """Mathematics with the unit beside it: `5\\text{ cm}^2`."""

    value: str
    unit: tuple[str, ...] = ()  # its words, with their powers: `cm^2`


def quantity(text: str) -> Quantity | None:
    """The quantity that a text is; None where there is no unit after its value, or something else beside it.

    Units are those of `units.py`. Beside a number one or two other words count as one (12 red apples), unless they change the
    number (12 dozen, 12 or more).
    """
    pieces = parts(text)
    if len(pieces) < 2 or pieces[0].is_word or not pieces[1].is_word:
        return None
    value, words, unit = pieces[0].text.strip(), [], []
    for part in pieces[1:]:
        if part.is_word:
            words.append(part.text)
            unit.append(part.text)
        elif power := _POWER_OR_SLASH.fullmatch(part.text):
            unit[-1] += f"^{power['power']}" if power["power"] else ""
        else:
            return None
    known = all(word in _KNOWN or word + "s" in _KNOWN for word in words)
    changing = any(word in _CHANGING or word + "s" in _CHANGING for word in words)
    noun = len(words) <= 2 and not changing and not _LETTER.search(value)
    return Quantity(value, tuple(unit)) if known or noun else None


_PART = re.compile(
    rf"(?P<value>\d[\d.]*)\s*(?P<unit>\^\{{?\\circ\s?\}}?|''|'|\"|{_LETTERS}\.?)\s*(?:,|\\AND|(?:{'|'.join(AND)})(?=\s))?\s*"
)
_SIGNS = ("°", "'", "''", '"', "in")  # of degrees and feet, minutes and inches


def compound(text: str) -> list[Quantity] | None:
    r"""The parts of a quantity in two units or more, such as 5 hours 20 minutes or `30^\circ 15'`; None for another text."""
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).strip()
    values, units, end = [], [], 0
    while match := _PART.match(text, end):
        values.append(match["value"])
        units.append("°" if match["unit"].startswith("^") else match["unit"].rstrip(".").casefold())
        end = match.end()
    if end < len(text) or len(values) < 2 or len(set(units)) < len(units):
        return None
    known = all(unit in _KNOWN or unit in _SIGNS for unit in units)
    return [Quantity(value, (unit,)) for value, unit in zip(values, units, strict=True)] if known else None
