"""Hand-written problems and step-by-step solutions in parallel: numbers in, the same text in any of 20 languages out.

`texts/{language}.toml` holds a language's phrases. A phrase with the same id means the same in every language and has the same
slots; digits and operators are ASCII everywhere. `ids` lists them: `answer`, `countdown.*`, and for each word problem its
`question` and one sentence a step, named after the step's result. To add a language, translate one file and add it to `NAMES`.

Two families are built from them, as texts for prompts and for demonstrations:

* Countdown, with traces that go straight to the target or fail first: `solution_steps`, `countdown_thinking`.
* Arithmetic word problems whose values are drawn once and told in as many languages as needed: `draw`, `word_problem`.

No phrase inflects a word by a number's value. Where a language would (Romanian takes *de* from 20 on), the range of that slot
lies on one side, so ranges lie within 2..19 or 20..99; languages with more classes (Russian, Arabic) name the quantity and then
give the number. Equations are computed, never given: a trace may fail to reach its target, but no line of it is false.
"""

from __future__ import annotations

import functools
import operator
import random
import re
import string
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from jaxrl_ml.types import UserError

NAMES: dict[str, tuple[str, str]] = {
    "en": ("English", "English"),
    "zh": ("中文", "Chinese"),
    "es": ("Español", "Spanish"),
    "fr": ("Français", "French"),
    "de": ("Deutsch", "German"),
    "ja": ("日本語", "Japanese"),
    "ru": ("Русский", "Russian"),
    "it": ("Italiano", "Italian"),
    "pt": ("Português", "Portuguese"),
    "ko": ("한국어", "Korean"),
    "ar": ("العربية", "Arabic"),
    "th": ("ไทย", "Thai"),
    "vi": ("Tiếng Việt", "Vietnamese"),
    "id": ("Bahasa Indonesia", "Indonesian"),
    "he": ("עברית", "Hebrew"),
    "ro": ("Română", "Romanian"),
    "sw": ("Kiswahili", "Swahili"),
    "bn": ("বাংলা", "Bengali"),
    "te": ("తెలుగు", "Telugu"),
    "hi": ("हिन्दी", "Hindi"),
}
"""Own name and English name of each language, by ISO 639-1 code: ExpLang's 13 seen and 4 unseen ones, then three more."""

LANGUAGES: tuple[str, ...] = tuple(NAMES)

OPENINGS: dict[str, str] = {
    "en": "Okay, let me think about this step by step.",
    "zh": "好的，让我一步一步地思考这个问题。",
    "es": "De acuerdo, voy a pensarlo paso a paso.",
    "fr": "D'accord, je vais y réfléchir étape par étape.",
    "de": "Gut, ich denke Schritt für Schritt darüber nach.",
    "ja": "では、この問題を順を追って考えてみます。",
    "ru": "Хорошо, давайте подумаем над этим шаг за шагом.",
    "it": "Va bene, ci ragiono un passo alla volta.",
    "pt": "Certo, vou pensar nisso passo a passo.",
    "ko": "좋아요, 이 문제를 차근차근 생각해 보겠습니다.",
    "ar": "حسنًا، سأفكر في هذه المسألة خطوة بخطوة.",
    "th": "เอาล่ะ มาคิดเรื่องนี้ทีละขั้นตอนกัน",
    "vi": "Được rồi, tôi sẽ suy nghĩ về bài này từng bước một.",
    "id": "Baiklah, saya akan memikirkan soal ini langkah demi langkah.",
    "he": "טוב, אחשוב על זה צעד אחר צעד.",
    "ro": "Bine, mă voi gândi la asta pas cu pas.",
    "sw": "Sawa, nitafikiri kuhusu swali hili hatua kwa hatua.",
    "bn": "ঠিক আছে, আমি এটা নিয়ে ধাপে ধাপে চিন্তা করব।",
    "te": "సరే, నేను దీని గురించి దశలవారీగా ఆలోచిస్తాను.",
    "hi": "ठीक है, मैं इस पर कदम दर कदम सोचूँगा।",
}
"""What thinking in each language can be made to start with."""

MAX_EXPRESSION_CHARS = 512
"""A longer expression is refused; bounds the size of the numbers computed."""

_TEXTS = Path(__file__).with_name("texts")
_OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
_PRECEDENCE = {"(": 0, "+": 1, "-": 1, "*": 2, "/": 2}


class Step(NamedTuple):
    """One operation on two exact numbers; as text it is a true equation, such as `3 * 4 = 12` or `3 - (7/2) = -1/2`."""

    left: Fraction | int
    symbol: str  # one of + - * /
    right: Fraction | int

    @property
    def result(self) -> Fraction:
        return _OPERATIONS[self.symbol](Fraction(self.left), self.right)

    def __str__(self) -> str:
        left, right = (str(x) if x >= 0 and x.denominator == 1 else f"({x})" for x in (self.left, self.right))
        return f"{left} {self.symbol} {right} = {self.result}"


class WordProblem(NamedTuple):
    """A word problem in one language."""

    question: str
    thinking: str  # one sentence an operation, then the answer's
    answer: int


@dataclass(frozen=True)
class _Story:
    """What a word problem is about, apart from its words."""

    ranges: Mapping[str, tuple[int, int]]  # of the question's slots, both ends included
    steps: tuple[str, ...]  # `result = left symbol right`, over slots, earlier results and whole numbers


_STORIES = {
    "buying": _Story(
        {"count": (2, 9), "pen": (2, 9), "book": (10, 19)},
        ("pens = count * pen", "total = pens + book"),
    ),
    "sharing": _Story(
        {"sacks": (2, 12), "kilos": (20, 60), "families": (2, 9)},
        ("rice = sacks * kilos", "share = rice / families"),
    ),
    "train": _Story(
        {"hours": (2, 9), "speed": (40, 99), "new_hours": (2, 9), "new_speed": (40, 99)},
        ("first = hours * speed", "second = new_hours * new_speed", "total = first + second"),
    ),
    "tank": _Story(
        {"full": (50, 99), "rate": (2, 9), "hours": (2, 9)},
        ("out = rate * hours", "left = full - out"),
    ),
    "hall": _Story(
        {"rows": (4, 12), "seats": (6, 19), "taken": (20, 60)},
        ("all = rows * seats", "free = all - taken"),
    ),
    "ages": _Story(
        {"age": (4, 17), "gap": (20, 34)},
        ("father = age + gap", "grandfather = 2 * father"),
    ),
    "savings": _Story(
        {"start": (20, 60), "weeks": (2, 12), "weekly": (2, 9), "spent": (5, 19)},
        ("added = weeks * weekly", "sum = start + added", "left = sum - spent"),
    ),
    "fence": _Story(
        {"length": (20, 40), "width": (5, 19), "price": (2, 9)},
        ("sides = length + width", "around = 2 * sides", "cost = around * price"),
    ),
    "average": _Story(
        {"monday": (2, 19), "tuesday": (2, 19), "wednesday": (2, 19)},
        ("two_days = monday + tuesday", "three_days = two_days + wednesday", "average = three_days / 3"),
    ),
    "boxes": _Story(
        {"boxes": (2, 9), "weight": (20, 99), "more": (10, 19)},
        ("each = weight / boxes", "total = each * more"),
    ),
    "bus": _Story(
        {"start": (20, 60), "off": (2, 19), "on": (2, 19), "fare": (2, 9)},
        ("stay = start - off", "now = stay + on", "paid = now * fare"),
    ),
    "farm": _Story(
        {"cows": (5, 19), "cow": (10, 19), "goats": (5, 19), "goat": (2, 5), "can": (6, 12)},
        ("cow_milk = cows * cow", "goat_milk = goats * goat", "milk = cow_milk + goat_milk", "cans = milk / can"),
    ),
}

WORD_PROBLEMS: tuple[str, ...] = tuple(_STORIES)


def ids() -> tuple[str, ...]:
    """The ids of all phrases; every language has all of them."""
    return tuple(_templates("en"))


def phrase(id: str, language: str, **slots: object) -> str:
    """One phrase with its slots filled by `str`.

    Raises UserError for an unknown id or language, and KeyError for a slot that is not given.
    """
    templates = _templates(language)
    if id not in templates:
        raise UserError(f"id={id!r} is no phrase; ids() lists them")
    return templates[id].format(**slots)


def pieces(ids: Sequence[str], languages: Sequence[str]) -> tuple[str, ...]:
    """The texts around the slots of phrases, language by language: as tokens, they make a trace as long in any language."""
    texts = (_templates(code)[id] for code in languages for id in ids)
    return tuple(dict.fromkeys(piece for text in texts for piece, *_ in string.Formatter().parse(text) if piece))


def countdown_problem(language: str, numbers: Sequence[int], target: int) -> str:
    """Countdown's statement: reach the target with each number exactly once and + - * /."""
    return phrase("countdown.problem", language, numbers=", ".join(map(str, numbers)), target=target)


def countdown_thinking(language: str, steps: Sequence[Step], target: int, failed: Sequence[Sequence[Step]] = ()) -> str:
    """A Countdown trace: one sentence a step, then whether the result is the target, too small or too big.

    `failed` are attempts to tell first, in order. Each attempt is judged by its last result, so a trace does not claim what is
    not so. Raises ValueError for an attempt without steps.
    """
    sentences: list[str] = []
    for attempt in (*failed, steps):
        if not attempt:
            raise ValueError("an attempt has no steps")
        for place, step in enumerate(attempt):
            opening = "again" if sentences else "first"
            sentences.append(phrase(f"countdown.{'then' if place else opening}", language, equation=step))
        value = attempt[-1].result
        verdict = "done" if value == target else "too_small" if value < target else "too_big"
        sentences.append(phrase(f"countdown.{verdict}", language, value=value))
    return _joined(sentences)


def solution_steps(expression: str) -> tuple[Step, ...]:
    """The operations of an expression such as `(3 + 4) * 2` in the order of evaluation, by Dijkstra's shunting yard.

    An expression has ASCII whole numbers, + - * /, parentheses and white space; a single number has no steps. Raises UserError
    for anything else, for a division by zero, and for more than MAX_EXPRESSION_CHARS characters.
    """
    steps: list[Step] = []
    operands: list[Fraction] = []
    operators: list[str] = []

    def apply_down_to(precedence: int) -> None:
        while operators and _PRECEDENCE[operators[-1]] >= precedence:
            right, left = operands.pop(), operands.pop()
            steps.append(Step(left, operators.pop(), right))
            operands.append(steps[-1].result)

    def wrong(problem: str) -> UserError:
        shown = expression if len(expression) <= 60 else f"{expression[:57]}..."
        return UserError(f"expression {shown!r} {problem}; give whole numbers, + - * / and parentheses")

    if len(expression) > MAX_EXPRESSION_CHARS:
        raise wrong(f"has more than {MAX_EXPRESSION_CHARS} characters")
    operators.append("(")  # the whole is read as if in parentheses
    after_operand = False
    try:
        for token in (*re.findall(r"[0-9]+|\S", expression), ")"):
            if not operators or after_operand != (token in _OPERATIONS or token == ")"):
                raise wrong("is malformed")
            if token in _OPERATIONS:
                apply_down_to(_PRECEDENCE[token])
                operators.append(token)
                after_operand = False
            elif token == ")":
                apply_down_to(1)
                operators.pop()
            elif token == "(":
                operators.append(token)
            elif token.isascii() and token.isdigit():
                operands.append(Fraction(token))
                after_operand = True
            else:
                raise wrong("is malformed")
    except ZeroDivisionError:
        raise wrong("divides by zero") from None
    if operators:
        raise wrong("has an open parenthesis")
    return tuple(steps)


def draw(id: str, rng: random.Random) -> dict[str, int]:
    """Values of a word problem for which every step's result is a positive whole number.

    The same generator state gives the same values in every Python: only `random()` is drawn from. Raises UserError for an
    unknown id.
    """
    story = _story(id)
    while True:  # at least one draw in ten will do, in every story
        values = {name: low + int(rng.random() * (high - low + 1)) for name, (low, high) in story.ranges.items()}
        if _is_whole(_solve(story, values)):
            return values


def word_problem(id: str, language: str, values: Mapping[str, int]) -> WordProblem:
    """The word problem of `values` (from `draw`) in one language; its meaning and answer are the same in all.

    Raises UserError for an unknown id or language and where a value or a result is no positive whole number, and KeyError for
    a value that is missing.
    """
    story = _story(id)
    if min(values.values(), default=0) < 1 or not _is_whole(steps := _solve(story, values)):
        raise UserError(f"values={dict(values)} of {id!r} make a result that is no positive whole number; take them from draw")
    thinking = [phrase(f"{id}.{name}", language, equation=step) for name, step in steps.items()]
    answer = int(list(steps.values())[-1].result)
    return WordProblem(
        question=phrase(f"{id}.question", language, **values),
        thinking=_joined([*thinking, phrase("answer", language, answer=answer)]),
        answer=answer,
    )


def _story(id: str) -> _Story:
    if id not in _STORIES:
        raise UserError(f"id={id!r} is no word problem; give one of {', '.join(_STORIES)}")
    return _STORIES[id]


def _solve(story: _Story, values: Mapping[str, int]) -> dict[str, Step]:
    """The steps of a story for its values, by the names of their results."""
    known = {name: Fraction(value) for name, value in values.items()}
    steps = {}
    for line in story.steps:
        name, _, left, symbol, right = line.split()
        left, right = (Fraction(word) if word.isdigit() else known[word] for word in (left, right))
        steps[name] = Step(left, symbol, right)
        known[name] = steps[name].result
    return steps


def _is_whole(steps: Mapping[str, Step]) -> bool:
    """Whether every result is a positive whole number."""
    return all(step.result > 0 and step.result.denominator == 1 for step in steps.values())


def _joined(sentences: Sequence[str]) -> str:
    """Sentences in a row; the ideographic full stop carries its own space."""
    return " ".join(sentences).replace("。 ", "。")


@functools.cache
def _templates(language: str) -> dict[str, str]:
    """The phrases of a language by id."""
    if language not in NAMES:
        raise UserError(f"language={language!r} has no phrases; give one of {', '.join(LANGUAGES)}")
    tables = tomllib.loads((_TEXTS / f"{language}.toml").read_text(encoding="utf-8"))
    templates = {}
    for name, table in tables.items():
        templates |= {name: table} if isinstance(table, str) else {f"{name}.{key}": text for key, text in table.items()}
    return templates
