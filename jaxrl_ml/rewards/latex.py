r"""Answers in one notation: `to_latex` writes any script in ASCII LaTeX, `tidy` takes off what surrounds an answer.

Both are pure and keep the meaning of a text. Their work is linear in its length: the text is hostile.
"""

from __future__ import annotations

import re
import unicodedata

from jaxrl_ml.rewards.answer_words import ANSWER, ANSWER_IS


class _Characters(dict[int, int | str]):
    """The ASCII LaTeX of each character. Entries are computed when a character is first seen."""

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
        elif decomposition.startswith("<font>"):  # mathematical letters, such as bold and italic ones
            character = unicodedata.normalize("NFKC", character)
        elif unicodedata.category(character) == "Zs":
            character = " "
        elif unicodedata.category(character) == "Cf":  # writing direction, joiners, soft hyphens
            character = ""
        self[code] = character
        return character


_CHARACTERS = _Characters(
    str.maketrans("−–‐‑﹣٫٬،、٪⁄∕’‘。।۔｡“”„«»「」『』′【】〔〕", "-----.,,,%//''....\"\"\"\"\"\"\"\"\"'[][]")
    | {
        ord(symbol): latex
        for symbol, latex in {
            "°": r"^\circ ", "℃": r"^\circ C", "℉": r"^\circ F", "∞": r"\infty ", "·": r"\cdot ", "⋅": r"\cdot ",
            "×": r"\times ", "÷": r"\div ", "±": r"\pm ", "≤": r"\le ", "≥": r"\ge ", "≦": r"\le ", "≧": r"\ge ",
            "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "≡": r"\equiv ", "∈": r"\in ", "∪": r"\cup ",
            "∩": r"\cap ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}",
            "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "…": r"\ldots ", "⋯": r"\ldots ", "″": "''", "π": r"\pi ",
            "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "‰": r"\text{ per mille}",
            "∨": r"\lor ", "∧": r"\land ",
        }.items()
    }
)  # fmt: skip
_RAISED = re.compile("[⁰¹²³ⁱ⁴-ⁿ]+")
_LOWERED = re.compile("[₀-₎]+")
_ROOT = re.compile(r"√\s?(\d+(?:\.\d+)?|[a-zA-Z])")
_ROOT_OF_BRACKET = re.compile(r"√\s?\(([^()]*)\)")
_REPEATED = re.compile("(\\d)([\u0307\u0305])")  # a digit under a dot or under a line


def to_latex(text: str) -> str:
    """The text with digits, punctuation and symbols of all scripts as ASCII and LaTeX. ASCII stays as it is."""
    if text.isascii():
        return text
    text = _RAISED.sub(lambda run: f"^{{{unicodedata.normalize('NFKC', run[0])}}}", text)
    text = _LOWERED.sub(lambda run: f"_{{{unicodedata.normalize('NFKC', run[0])}}}", text)
    text = _REPEATED.sub(lambda digit: rf"\{'dot' if digit[2] == chr(0x307) else 'overline'}{{{digit[1]}}}", text)
    text = _ROOT_OF_BRACKET.sub(r"\\sqrt{\1}", _ROOT.sub(r"\\sqrt{\1}", text))
    return unicodedata.normalize("NFC", text).translate(_CHARACTERS)


BRACES = re.compile(r"\\.|[{}]", re.DOTALL)


def balances(text: str) -> bool:
    """Whether every brace of a text has its partner."""
    depth = 0
    for brace in BRACES.findall(text):
        depth += {"{": 1, "}": -1}.get(brace, 0)
        if depth < 0:
            return False
    return depth == 0


_PLAIN = re.compile(r"-?\d+(?:\.\d+)?|-?\\frac\{-?\d+\}\{\d+\}")  # most answers: nothing to do
_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right)\s?\\([\[\]])", r"\1"),
        (r"\\(?:left|right)\s?\.|\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|!)(?![a-zA-Z])", ""),
        (r"(?:\\(?:text|mathord|mathrm))?\{([,:;.])\}", r"\1"),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\[dt]?binom\s*(?!\{)(\w)\s*(\w)", r"\\binom{\1}{\2}"),
        (r"\{\s*([^{}]+?)\s*\\choose(?![a-zA-Z])\s*([^{}]+?)\s*\}", r"\\binom{\1}{\2}"),
        (r"\{\s*([^{}]+?)\s*\\over(?![a-zA-Z])\s*([^{}]+?)\s*\}", r"\\frac{\1}{\2}"),
        (r"\\(?:operatorname\*?|mathrm|text)\s?\{(ln|log|sin|cos|tan|gcd|det)\}", r"\\\1 "),
        (r"\\math(?:rm|up)\s?\{([dei])\}|\{\\rm\s+([dei])\}", r" \1\2 "),  # Euler's number, upright
        (
            r"\(\s*\\begin\{(?:array|(?:small)?matrix)\}(?:\{[clr|]*\})?(.*?)\\end\{(?:array|(?:small)?matrix)\}\s*\)",
            r"\\begin{pmatrix}\1\\end{pmatrix}",
        ),
        (
            r"\[\s*\\begin\{(?:array|(?:small)?matrix)\}(?:\{[clr|]*\})?(.*?)\\end\{(?:array|(?:small)?matrix)\}\s*\]",
            r"\\begin{bmatrix}\1\\end{bmatrix}",
        ),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\sqrt\s*(\d|[a-z](?![a-z]))", r"\\sqrt{\1}"),
        (r"([\^_])\{(\w)\}(?!\w)", r"\1\2"),
        (r"\\([$%])", r"\1"),
        (r"\\(?:math(?:bf|it|sf|tt|cal|normal)|boldsymbol|bm|pmb|underline|emph)\s?\{((?:[^{}]|\{[^{}]*\})*)\}", r" \1 "),
        (r"\\(?:text(?:bf|it|rm|sf|tt|up|sl|normal)?|mathrm|mbox|hbox)\s?\{([^{}]*)\}", r"\\text{\1}"),
        (r"\\frac\{\s*(\\text\{[^{}]*\}(?:\^\{?\d\}?)?)\s*\}\{\s*(\\text\{[^{}]*\}(?:\^\{?\d\}?)?)\s*\}", r"\1/\2"),
        (r"\\(?:text)\{([^{}A-Za-z\u0080-\U0010ffff]*)\}", r" \1 "),
        (r"^\s*\\q?quad\s*|\s*\\q?quad\s*(?=$|,|\(|\\text|\\q?quad)|(?<=,)\s*\\q?quad\s*", " "),
        (r"\s*\\q?quad\s*", ", "),
        (r"(?<!\\)\\(?:[,;: ]|enspace|thinspace|medspace)|~", " "),
    )
)
_START = re.compile(
    rf"(?:\\text\{{\s*)?(?:(?:{'|'.join(ANSWER)})\s*\}}?\s*[:=]|(?:{'|'.join(ANSWER_IS)})\s*:?)\s*\}}?|(?:(?:=|\\approx(?![a-zA-Z]))\s*)+",
    re.IGNORECASE,
)
_WRAPPED = re.compile(
    r"""(?s: \*\*(?!\*)(?P<bold>[^*]+)\*\* | \*(?!\*)(?P<italic>[^*]+)\* | `(?P<code>[^`]+)` | "(?P<quoted>[^"]+)"
    | ''?(?P<single>[^']+)''? | \$\$?(?P<dollars>[^$]+)\$\$? | \\\((?P<inline>.+)\\\) | \\\[(?P<display>.+)\\\]
    | \\(?:boxed|fbox)\s?\{(?P<command>(?:[^{}]|\{[^{}]*\})*)\} | \{(?P<braces>(?:[^{}]|\{[^{}]*\})*)\} )""",
    re.VERBOSE,
)
_TEXT = re.compile(r"\\text\{([^{}]*)\}")


def tidy(latex: str) -> str:
    r"""The answer alone: without spacing commands, fonts, and what stands around it.

    Taken off, again and again: white space, full stops, commas and semicolons at the end, bold and quotation marks, dollars,
    braces, `\boxed`, `Answer:` in 20 languages, and a first `=`. A sign that has a meaning stays: `!`, `'`, `...`, brackets.
    Words keep one command, `\text`.
    """
    if _PLAIN.fullmatch(latex):
        return latex
    for pattern, replacement in _REWRITES:
        latex = pattern.sub(replacement, latex)
    before = None
    while before != latex and latex:
        before = latex
        latex = _without_end(latex).strip()
        if (start := _START.match(latex)) and balances(latex[start.end() :]):
            latex = latex[start.end() :].strip()
        if wrapped := _WRAPPED.fullmatch(latex):
            latex = next(filter(None, wrapped.groups()), "").strip()
    return latex


def _without_end(latex: str) -> str:
    """The text without the white space, line breaks, commas and single full stops that end it."""
    before = None
    while before != latex:
        before = latex
        latex = latex.rstrip().rstrip(",;:")
        if latex.endswith(r"\\"):
            latex = latex[:-2]
        elif latex.endswith(".") and not latex.endswith(".."):
            latex = latex[:-1]
    return latex


def flat(latex: str) -> str:
    r"""A tidy text with its words bare, `\text{ cm}` as ` cm `."""
    return _TEXT.sub(r" \1 ", latex) if "\\text" in latex else latex
