r"""Answers with a structure of their own: branches, congruences, numbers in another base, lists with an ellipsis.

Each `..._agree` compares two tidy texts of LaTeX and returns a verdict, or None where neither has its structure. A text that
has it never equals one that has not. `same(gold_part, answer_part)` compares two parts as `agreement.agree` does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from jaxrl_ml.rewards.answer_words import IF, OTHERWISE
from jaxrl_ml.rewards.wording import joined, parts

Same = Callable[[str, str], bool]
"""Whether two texts are equal, the gold answer's first."""


def squeezed(text: str) -> str:
    """The text without spaces, except between two letters or two digits; its words as `wording.parts` gives them."""
    pieces = parts(text)
    if any(piece.is_word for piece in pieces):
        return " ".join(piece.text if piece.is_word else _without_spaces(piece.text) for piece in pieces)
    return _without_spaces(re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text))


def _without_spaces(text: str) -> str:
    return re.sub(r"(?<![^\W\d_]) (?!\d)|(?<!\d) (?![^\W\d_])", "", " ".join(text.split()))


def split(text: str, separators: str = r"[,;]|\\AND|\\OR") -> list[str]:
    """The parts of a text between separators (a pattern) that stand outside of all brackets; none is blank."""
    items, depth, start = [], 0, 0
    for match in re.finditer(rf"[(\[{{]|[)\]}}]|{separators}", text):
        if match[0] in "([{":
            depth += 1
        elif match[0] in ")]}":
            depth -= 1
        elif depth <= 0:
            items.append(text[start : match.start()])
            start = match.end()
    return [item.strip() for item in (*items, text[start:]) if item.strip()]


def match_all(golds: Sequence, answers: Sequence, same: Callable[..., bool]) -> bool:
    """Whether the items can be paired, in any order, so that each pair is the same and none is left."""
    left = list(answers)
    for gold in golds:
        place = next((i for i, answer in enumerate(left) if same(gold, answer)), None)
        if place is None:
            return False
        del left[place]
    return not left


# Branches and systems

_ENVIRONMENT = re.compile(r"(?:\\\{|\\lbrace)?\s*\\begin\{(cases|array|aligned)\}(?:\{[^{}]*\})?(.*?)\\end\{\1\}", re.DOTALL)


def _rows(text: str) -> list[str] | None:
    """The rows of the first environment of a text, None where it has none."""
    match = _ENVIRONMENT.search(text)
    return [row.strip(" ,;.") for row in match[2].split(r"\\") if row.strip(" ,;.")] if match else None


def system_as_list(text: str) -> str:
    """The text with a system of equations as a list of them. Rows with conditions, and those of a matrix, stay."""
    match = _ENVIRONMENT.search(text)
    if match is None:
        return text
    rows = [re.sub(r"&\s*(?==)|(?<==)\s*&", "", row) for row in _rows(text)]
    if any("&" in row or _branch(row)[1] for row in rows) or not all("=" in row for row in rows):
        return text
    return f"{text[: match.start()]}{', '.join(rows)}{text[match.end() :]}"


def _branch(row: str) -> tuple[str, str]:
    """The value and the condition of a row."""
    value, _, condition = row.partition("&")
    if not condition:
        pieces = parts(row)
        place = next((i for i, part in enumerate(pieces) if part.is_word and part.text in IF | OTHERWISE), len(pieces))
        value, condition = joined(pieces[:place]), joined(pieces[place:])
    pieces = [part for part in parts(condition) if not (part.is_word and part.text in IF)]
    if any(part.is_word and part.text in OTHERWISE for part in pieces):
        return value.strip(" ,;"), r"\text{otherwise}"
    return value.strip(" ,;"), joined(pieces).strip(" ,;")


def branches_agree(gold: str, answer: str, same: Same) -> bool | None:
    """Compares `cases` environments by value and condition, in any order; the name before them may be left out."""
    rows, others = _rows(gold), _rows(answer)
    if rows is None and others is None:
        return None
    if rows is None or others is None or len(rows) != len(others):
        return False
    before, after = zip(*(_around_environment(text) for text in (gold, answer)), strict=True)
    is_named = before[0] == before[1] or ("" in before and max(before).endswith("="))  # a name may be left out
    branches = [_branch(row) for row in rows], [_branch(row) for row in others]
    return bool(is_named and after[0] == after[1]) and match_all(
        *branches, lambda one, other: same(one[0], other[0]) and same(one[1], other[1])
    )


def _around_environment(text: str) -> tuple[str, str]:
    """What stands before and after the first environment of a text."""
    match = _ENVIRONMENT.search(text)
    return squeezed(text[: match.start()]), squeezed(text[match.end() :])


# Families of values with an integer

_Z = r"\\in\s*\\mathbb\s?\{?Z\}?"
_FAMILY = re.compile(
    rf"[,;(]*\s*(?:(?:\\text\{{)?[\s,]*(?:for|where|with)\s*(?:any|all|every|some|each)?\s*\}}?)?\s*(?P<member>[a-z])\s*{_Z}\s*\)?\s*$"
    r"|[,;(]*\s*(?:\\text\{)?[\s,]*(?:for|where|with)\s*(?:any|all|every|some|each|an)?\s*integers?\s*\}?\s*(?P<integer>[a-z])\s*\)?\s*$"
    r"|[,;(]*\s*(?:\\text\{)?[\s,]*where\s*\}?\s*(?P<letter>[a-z])\s*(?:\\text\{)?\s*is an(?:y)? integer\s*\}?\s*\)?\s*$"
)


def family(text: str) -> tuple[str, str] | None:
    r"""The values of `k\pi, k \in \mathbb{Z}` and the letter of their integer; None for another text."""
    match = _FAMILY.search(text)
    if match is None:
        return None
    letter, values = match[match.lastgroup], text[: match.start()].rstrip(" ,;(")
    return (values, letter) if re.search(rf"(?<![a-zA-Z]){letter}", values) else None


def renamed(text: str, letter: str, other: str) -> str:
    """The text with another letter for a variable."""
    return re.sub(rf"(\\[a-zA-Z]+)|{letter}", lambda found: found[1] or other, text)


# Congruences

_MOD = re.compile(r"\\text\{\s*(\(?)\s*mod(?:ulo)?\s*([^{}]*)\}|\\[pb]?mod(?![a-zA-Z])|(?<![\\a-zA-Z])mod(?:ulo)?(?![a-zA-Z])")
_CONGRUENCE = re.compile(
    r"(?:(?P<name>[^\\]*?)\\equiv)?(?P<residue>(?:[^\\]|\\(?!mod|equiv))*)(?:\\mod\s*(?P<modulus>\{[^{}]*\}|[^{},)\s]+)\s*\)?\s*)?"
)


_PROGRESSION = re.compile(
    r"(?:(?P<name>[a-zA-Z])\s*=\s*)?(?:(?P<first>\d+)\s*[a-z]\s*(?P<after>[+-]\s*\d+)?|(?P<before>-?\d+)\s*\+\s*(?P<last>\d+)\s*[a-z])"
)


def _congruences(text: str) -> list[tuple[str, list[str], str]] | None:
    r"""The name, residues and modulus of each congruence `n \equiv 1, 5 \pmod 6` of a list; None for another text.

    A modulus belongs to all residues before it. Congruences with the same name and modulus are merged. `n = 6k + 1` is one.
    """
    if progression := _PROGRESSION.fullmatch((family(text) or (text,))[0].strip()):
        modulus = progression["first"] or progression["last"]
        residue = (progression["after"] or progression["before"] or "0").replace(" ", "").removeprefix("+")
        return [(progression["name"] or "", [residue], modulus)]
    text = _MOD.sub(lambda mod: f"{mod[1] or ''}\\mod {mod[2] or ''}", text)
    text = re.sub(r"\(\s*(?=\\mod)", " ", text)
    congruences: dict[tuple[str, str], list[str]] = {}
    name, residues = "", []
    for match in map(_CONGRUENCE.fullmatch, split(text.strip(" ."))):
        if match is None or residues and match["name"] and match["name"].strip() != name:
            return None
        name = (match["name"] or name).strip()
        residues.append(match["residue"].strip())
        if match["modulus"]:
            congruences.setdefault((name, match["modulus"].strip("{} ")), []).extend(residues)
            name, residues = "", []
    return None if residues else [(name, values, modulus) for (name, modulus), values in congruences.items()] or None


def is_modular(text: str) -> bool:
    """Whether a text names a modulus."""
    return _MOD.search(text) is not None


def congruences_agree(gold: str, answer: str, same: Same) -> bool | None:
    """Compares congruences by modulus and by residues modulo it; a name may be left out."""
    if not any("\\equiv" in text or is_modular(text) for text in (gold, answer)):
        return None
    golds, answers = _congruences(gold), _congruences(answer)
    if golds is None or answers is None:
        return False

    def one_agrees(one: tuple[str, list[str], str], other: tuple[str, list[str], str]) -> bool:
        names = squeezed(one[0]), squeezed(other[0])
        if not (names[0] == names[1] or "" in names) or not same(one[2], other[2]):
            return False
        residues = [_residues(values, one[2]) for values in (one[1], other[1])]
        return match_all(one[1], other[1], same) if None in residues else residues[0] == residues[1]

    return match_all(golds, answers, one_agrees)


def _residues(values: Sequence[str], modulus: str) -> set[int] | None:
    """The residues as integers from 0; None where one of them or the modulus is no integer."""
    signed = [re.fullmatch(r"(\\pm|[+-]?)\s*(\d{1,18})", value) for value in values]
    if not re.fullmatch(r"0*[1-9]\d{0,17}", modulus) or not all(signed):
        return None
    signs = {"\\pm": (1, -1), "-": (-1,)}
    return {sign * int(match[2]) % int(modulus) for match in signed for sign in signs.get(match[1], (1,))}


# Numbers in another base

_NAMES = "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_BASE_OF_NAME = {name: base for base, name in enumerate(_NAMES.split(), 2)} | {"twenty": 20, "thirty-six": 36}
_BASE = r"(?:base|basis|базе|основании)"
_IN_BASE = re.compile(
    r"(?<![\w.])\(?\s*(?P<digits>\d[\dA-Fa-f]*(?:[ ,][\dA-Fa-f]+)*|[A-F][\dA-F]+)\s*\)?\s*"
    r"(?:_\s?(?:\{(?P<braced>(?:[^{}]|\{[^{}]*\})*)\}|(?P<digit>\d))"
    rf"|(?:\\text\{{|\(|\s)*(?:in|en|zur|em|na|в|по)?\s*{_BASE}[\s}}-]*(?P<named>[a-z0-9-]+)[\s)}}]*)"
)


def bases_agree(gold: str, answer: str, same: Same) -> bool | None:
    r"""Compares texts with numbers in another base, such as `52_8`, `(52)_8` or `52_{\text{eight}}`: the bases must agree."""
    texts, bases = zip(*(_in_base_ten(text) for text in (gold, answer)), strict=True)
    return None if bases == ([], []) else bases[0] == bases[1] and same(*texts)


def _in_base_ten(text: str) -> tuple[str, list[int]]:
    """The text with its numbers in another base written in base ten, and their bases."""
    bases: list[int] = []

    def convert(match: re.Match[str]) -> str:
        name = re.sub(rf"\\text|[{{}}()\s]|{_BASE}", "", match["braced"] or match["digit"] or match["named"] or "")
        base = int(name) if name.isdecimal() and len(name) < 3 else _BASE_OF_NAME.get(name, 0)
        digits = re.sub(r"[ ,]", "", match["digits"])
        if not 2 <= base <= 36 or digits[0] in "ABCDEF" and base < 11:
            return match[0]
        bases.append(base)
        return str(int(digits, base if max(int(digit, 36) for digit in digits) < base else 36))

    return _IN_BASE.sub(convert, text), bases


# Ellipses


def ellipses_agree(gold: str, answer: str, same: Same) -> bool | None:
    """Compares lists and sums with an ellipsis item by item. A series of integers may be written out."""
    has_ellipsis = ["\\ldots" in text for text in (gold, answer)]
    if not any(has_ellipsis):
        return None
    items = [split(text.strip("{}\\()[] "), r"[,;+=]|\\AND") for text in (gold, answer)]
    series = [_series(texts) for texts in items]
    if None not in series:
        return series[0] == series[1]
    signs = [re.sub(r"[^()\[\]+=]", "", text) for text in (gold, answer)]
    if not all(has_ellipsis) or signs[0] != signs[1] or len(items[0]) != len(items[1]):
        return False
    return all(one == other if "\\ldots" in one + other else same(one, other) for one, other in zip(*items, strict=True))


def _series(items: Sequence[str]) -> list[int] | None:
    r"""The integers of `1, 3, \ldots, 9` or `1, 3, 5, 7, 9`; None for other items, and for more than 100."""
    shown = [item for item in items if item != r"\ldots"]
    if len(shown) < 2 or not all(re.fullmatch(r"-?\d{1,9}", item) for item in shown):
        return None
    numbers = [int(item) for item in shown]
    if len(shown) == len(items):
        return numbers
    step = numbers[1] - numbers[0] if len(numbers) > 2 else 1
    if items[-2] != r"\ldots" or len(items) > len(shown) + 1 or not step or not 0 <= (numbers[-1] - numbers[0]) // step < 100:
        return None
    series = list(range(numbers[0], numbers[-1] + step, step))
    return series if series[-1] == numbers[-1] and series[: len(numbers) - 1] == numbers[:-1] else None
