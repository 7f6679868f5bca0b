"""Multiple choice: the text of an answer in, the letter A to J that it chooses out, or None.

A letter may be of any script that looks alike (Cyrillic В, Greek Β, full-width, circled or bold B), or take the same place in
the row of letters that its script numbers choices by (أ ب ج د, ก ข ค ง, 가 나 다 라). It may stand in brackets, beside the word
for option or answer in any of 20 languages, and before the text of the choice, separated from it by a sign: `C) 5 eV`,
`E - text`. An answer that names two letters, or denies one
(`A) is wrong`), chooses none.
"""

from __future__ import annotations

import re
import unicodedata

from jaxrl_ml.rewards.answer_words import AND, ANSWER, ANSWER_IS, OPTION

_LETTERS = "ABCDEFGHIJ"
_ROWS = (
    "أبجدهو", "اب", "אבגדהוזחטי", "กขคงจ", "কখগঘঙ", "कखगघङ", "가나다라마바사아자차", "アイウエオ", "ㄱㄴㄷㄹㅁㅂㅅㅇㅈㅊ",
)  # fmt: skip
"""How scripts without look-alikes of Latin letters number choices."""
_LOOK_ALIKES = {"А": "A", "В": "B", "С": "C", "Е": "E", "Н": "H", "І": "I", "Ј": "J", "а": "a", "с": "c", "Α": "A", "Β": "B",
                "Ε": "E", "Η": "H", "Ι": "I", "ϲ": "c", "Ϲ": "C"}  # fmt: skip
_ALIKE = (
    {ord(letter): place for row in _ROWS for letter, place in zip(row, _LETTERS, strict=False)}
    | {ord(letter): latin for letter, latin in _LOOK_ALIKES.items()}
    | {start + i: letter for start in (0x1F130, 0x1F150, 0x1F170) for i, letter in enumerate(_LETTERS)}  # 🄰 🅐 🅰
)
_COMPATIBLE = [unicodedata.normalize("NFKC", word) for word in (*ANSWER_IS, *OPTION, *ANSWER)]
_ALL_WORDS = "|".join(re.escape(word) + r"\b" * word[-1].isascii() for word in _COMPATIBLE)
_LEADING = re.compile(
    rf"(?:l'|(?:the|la|le|die|der|correct|right)\s+)*(?:{_ALL_WORDS})\s*(?:[:=]|is\b|[是为為])?\s*(?=\S)", re.IGNORECASE
)
_TRAILING = re.compile(rf"\s*(?:{_ALL_WORDS}|is (?:the )?(?:correct|right)(?: \w+)?)\s*", re.IGNORECASE)
_LETTER = r"(?P<letter>[A-Da-d]|[E-J])(?![A-Za-z])"
_ALONE = re.compile(rf"[\[(]?\s*{_LETTER}\s*[\])]?")
_BRACKETED = re.compile(rf"[\[(]\s*{_LETTER}\s*[\])](?P<text>.*)", re.DOTALL)
_WITH_TEXT = re.compile(rf"{_LETTER}\s*(?:[).:,]|-+(?=\s|[^\x00-\x7f])|/\s)(?P<text>.*)", re.DOTALL)
_ANY_LETTER = re.compile(r"(?<![A-Za-z\\])[A-J](?![A-Za-z])(?! [a-z])")  # no article: `B. A dog`
_DENIED = re.compile(
    r"\s*(?:is\s+)?(?:not|wrong|false|incorrect)\b.*|\s*(?:and\s+|or\s+|the answer is\s+)?(?P<other>[a-j])\W*",
    re.IGNORECASE | re.DOTALL,
)
_FIRST = re.compile(r"([\[(]?\s*)(\S)(?![^\W\d_])")


_AND = "|".join(map(re.escape, AND))
_SEPARATOR = re.compile(rf"\s*[,;、&]\s*(?:(?:{_AND})\s+)?|\s+(?:{_AND})\s+", re.IGNORECASE)
_LISTED = re.compile(rf"(?P<bracket>[\[(])?\s*{_LETTER}\s*(?(bracket)[\])])")


def read_several(text: str) -> set[str] | None:
    """The letters that a list such as `A, C` or `B and D` chooses; None for a single choice and for any other text."""
    items = _SEPARATOR.split(text.strip().removesuffix("."))
    letters = [_LISTED.fullmatch(item.strip()) for item in items]
    return {letter["letter"].upper() for letter in letters} if len(items) > 1 and all(letters) else None


def read(text: str) -> str | None:
    """The letter that a tidy, flat text chooses, in upper case."""
    text = unicodedata.normalize("NFKC", text).replace("\u0640", "").strip()  # without the stroke that stretches Arabic
    while leading := _LEADING.match(text):
        text = text[leading.end() :]
    text = text.replace("**", "").strip().removesuffix(".").strip()
    first = _FIRST.match(text)
    if first and not unicodedata.category(text[first.end() : first.end() + 1] or " ").startswith("M"):
        text = first[1] + first[2].translate(_ALIKE) + text[first.end() :]
    if match := _ALONE.fullmatch(text):
        return match["letter"].upper()
    if (match := _ALONE.match(text)) and _TRAILING.fullmatch(text, match.end()):  # `B option`
        return match["letter"].upper()
    match = _BRACKETED.fullmatch(text) or _WITH_TEXT.fullmatch(text)
    if match is None or set(_ANY_LETTER.findall(match["text"])) - {match["letter"].upper()}:
        return None
    denied = _DENIED.fullmatch(match["text"])
    if denied and (denied["other"] or "").upper() != match["letter"].upper():
        return None
    return match["letter"].upper()
