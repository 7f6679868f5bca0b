"""The phrases: complete and alike in every language, true in every equation, and recognised as their language."""

from __future__ import annotations

import ast
import operator
import random
import re
import subprocess
import sys
import unicodedata
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_ml.languages import detect
from jaxrl_ml.languages.phrases import (
    LANGUAGES,
    MAX_EXPRESSION_CHARS,
    NAMES,
    OPENINGS,
    WORD_PROBLEMS,
    Step,
    countdown_problem,
    countdown_thinking,
    draw,
    ids,
    phrase,
    pieces,
    solution_steps,
    word_problem,
)
from jaxrl_ml.tasks.countdown import Countdown
from jaxrl_ml.types import UserError

SCRIPTS = {
    "zh": {"CJK"}, "ja": {"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"}, "ko": {"HANGUL"}, "ru": {"CYRILLIC"},
    "ar": {"ARABIC"}, "he": {"HEBREW"}, "th": {"THAI"}, "hi": {"DEVANAGARI"}, "bn": {"BENGALI"}, "te": {"TELUGU"},
}  # fmt: skip
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
NUMBER = r"(?:[0-9]+|\(-?[0-9]+(?:/[0-9]+)?\))"
EQUATION = re.compile(rf"({NUMBER}) ([-+*/]) ({NUMBER}) = (-?[0-9]+(?:/[0-9]+)?)")


def template(id: str, language: str) -> tuple[str, frozenset[str]]:
    """A phrase without its slots, and their names."""
    names = set()
    while True:
        try:
            text = phrase(id, language, **dict.fromkeys(names, "\0"))
        except KeyError as missing:
            names |= set(missing.args)
        else:
            return text.replace("\0", ""), frozenset(names)


def equations(text: str) -> list[str]:
    """The equations of a text, each checked."""
    found = list(EQUATION.finditer(text))
    assert len(found) == text.count("=")
    for match in found:
        left, symbol, right, result = (part.strip("()") for part in match.groups())
        assert OPERATIONS[symbol](Fraction(left), Fraction(right)) == Fraction(result), match[0]
    return [match[0] for match in found]


def expression(rng: random.Random, count: int) -> str:
    return Countdown(num_numbers=(count,), max_number=20, max_target=200)[int(rng.random() * 10**9)].fields["solution"]


def all_texts(seed: int, fillings: int) -> tuple[list[str], list[str], list[str]]:
    """Problems, traces, and the language of each, for every language and several random fillings of every id."""
    problems, traces, languages = [], [], []
    for n in range(fillings):
        rng = random.Random(seed + n)
        values = {id: draw(id, rng) for id in WORD_PROBLEMS}
        numbers = [int(2 + rng.random() * 98) for _ in range(2 + n % 4)]
        attempts = [solution_steps(expression(rng, len(numbers))) for _ in range(1 + n % 5)]
        target = int(attempts[-1][-1].result) + (n % 7 == 0)
        for language in LANGUAGES:
            told = [word_problem(id, language, values[id]) for id in WORD_PROBLEMS]
            problems += [problem.question for problem in told] + [countdown_problem(language, numbers, target)]
            traces += [problem.thinking for problem in told]
            traces += [countdown_thinking(language, attempts[-1], target, attempts[:-1])]
            languages += [language] * (len(told) + 1)
    return problems, traces, languages


def test_names_are_those_of_the_detector() -> None:
    assert len(LANGUAGES) == 20 and set(LANGUAGES) == set(detect.LANGUAGES)
    assert len(set(sum(NAMES.values(), ()))) == 2 * len(LANGUAGES) - 1  # only English calls itself so


def test_openings_are_in_their_languages() -> None:
    assert set(OPENINGS) == set(LANGUAGES)
    assert detect.Detector(LANGUAGES)(list(OPENINGS.values())).code.tolist() == list(OPENINGS)
    assert all("<" not in text and text == text.strip() for text in OPENINGS.values())
    ordered = sorted(OPENINGS.values())
    assert not any(b.startswith(a) for a, b in zip(ordered, ordered[1:], strict=False)), "which was given must be told"


def test_pieces_fill_up_to_phrases() -> None:
    found = pieces(("countdown.first", "countdown.done"), LANGUAGES)
    assert len(set(found)) == len(found) and all(found)
    for code in LANGUAGES:
        before, _, after = phrase("countdown.first", code, equation="\0").partition("\0")
        assert {before, after} - {""} <= set(found)
    assert pieces(("countdown.first",), ("en", "de")) == ("First we have ", ".", "Zuerst ")


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_phrase_is_there_with_the_same_slots(language: str) -> None:
    for id in ids():
        assert template(id, language)[1] == template(id, "en")[1], id
    for id in WORD_PROBLEMS:
        steps = [name for name in ids() if name.startswith(f"{id}.") and not name.endswith(".question")]
        assert 2 <= len(steps) <= 4
        assert word_problem(id, language, draw(id, random.Random(0))).thinking.count("=") == len(steps)  # each is used


def test_no_language_has_phrases_that_english_lacks() -> None:
    from jaxrl_ml.languages.phrases import _templates

    assert {language: set(_templates(language)) - set(ids()) for language in LANGUAGES} == dict.fromkeys(LANGUAGES, set())


@pytest.mark.parametrize("language", LANGUAGES)
def test_words_are_in_one_script_and_clean(language: str) -> None:
    scripts = SCRIPTS.get(language, {"LATIN"})
    for id in ids():
        text, _ = template(id, language)
        assert unicodedata.is_normalized("NFC", text) and text.isprintable(), id
        for character in text:
            kind = unicodedata.category(character)[0]
            assert kind != "N", (id, character)  # digits come from slots alone
            if kind in "LM":
                assert unicodedata.name(character).split()[0] in scripts, (id, character)
        filled = phrase(id, language, **dict.fromkeys(template(id, language)[1], "7"))
        assert filled == " ".join(filled.split()), id
        assert language == "th" or filled[-1] in ".?。？।؟", id


@pytest.mark.parametrize("id", WORD_PROBLEMS)
def test_word_problems_are_the_same_in_every_language(id: str) -> None:
    rng = random.Random(3)
    for _ in range(20):
        values = draw(id, rng)
        english = word_problem(id, "en", values)
        for language in LANGUAGES:
            problem = word_problem(id, language, values)
            assert problem.answer == english.answer > 0
            assert equations(problem.thinking) == equations(english.thinking)
            assert re.findall("[0-9]+", problem.thinking)[-1] == str(problem.answer)
            assert equations(problem.thinking)[-1].endswith(f"= {problem.answer}")
            assert sorted(re.findall("[0-9]+", problem.question)) == sorted(map(str, values.values()))


def test_a_literal_word_problem() -> None:
    values = {"count": 3, "pen": 4, "book": 12}
    english = word_problem("buying", "en", values)
    assert english.question == (
        "A pen costs 4 euros and a book costs 12 euros. How many euros do 3 pens and the book cost together?"
    )
    assert english.thinking == "The price of the pens: 3 * 4 = 12. Together with the book: 12 + 12 = 24. So the answer is 24."
    assert (
        word_problem("buying", "zh", values).thinking == "这些笔的价钱：3 * 4 = 12。加上这本书：12 + 12 = 24。所以答案是 24。"
    )


def test_draws_depend_on_the_generator_alone() -> None:
    assert draw("farm", random.Random(0)) == {"cows": 9, "cow": 17, "goats": 18, "goat": 4, "can": 9}
    for id in WORD_PROBLEMS:
        assert draw(id, random.Random(5)) == draw(id, random.Random(5))
        assert len({tuple(draw(id, random.Random(seed)).values()) for seed in range(300)}) > 120  # of 300


def test_draws_are_positive_whole_frequent_and_never_straddle_twenty() -> None:
    """Romanian counts take `de` from 20 to 99: a slot stays on one side, or a template would be wrong half of the time."""

    class Counting(random.Random):
        count = 0

        def random(self) -> float:
            self.count += 1
            return super().random()

    for id in WORD_PROBLEMS:
        rng = Counting(1)
        draws = [draw(id, rng) for _ in range(300)]
        assert rng.count <= 10 * sum(map(len, draws))
        for name in draws[0]:
            values = [values[name] for values in draws]
            assert 2 <= min(values) <= max(values) <= 19 or 20 <= min(values) <= max(values) <= 99, (id, name)
        for values in draws:
            results = [equation.split("= ")[1] for equation in equations(word_problem(id, "en", values).thinking)]
            assert all(result.isdigit() and int(result) > 0 for result in results)


@pytest.mark.parametrize("language", LANGUAGES)
def test_countdown_traces_tell_every_step_and_only_what_is_so(language: str) -> None:
    rng = random.Random(1)
    for n in range(60):
        attempts = [solution_steps(expression(rng, 2 + (n + k) % 4)) for k in range(1 + n % 4)]
        target = int(attempts[-1][-1].result) + rng.choice((0, 0, 1, -1))
        trace = countdown_thinking(language, attempts[-1], target, attempts[:-1])
        assert equations(trace) == [str(step) for attempt in attempts for step in attempt]
        expected = []
        for attempt in attempts:
            value = attempt[-1].result
            verdict = "done" if value == target else "too_small" if value < target else "too_big"
            expected.append(phrase(f"countdown.{verdict}", language, value=value))
        places = [trace.find(sentence) for sentence in expected]
        assert all(place > 0 for place in places) and trace.endswith(expected[-1])
        assert trace.startswith(phrase("countdown.first", language, equation=attempts[0][0]))
        problem = countdown_problem(language, (3, 70, 25), target)
        assert sorted(re.findall("-?[0-9]+", problem)) == sorted(["3", "70", "25", str(target)])
        assert all(symbol in problem for symbol in "+-*/")


def test_a_literal_search_trace() -> None:
    failed = [solution_steps("3 + 4 + 2"), solution_steps("(3 + 4) * 2")]
    assert countdown_thinking("en", solution_steps("2 * 3 + 4"), 10, failed) == (
        "First we have 3 + 4 = 7. Then this makes 7 + 2 = 9. But 9 is too small. "
        "Another way: 3 + 4 = 7. Then this makes 7 * 2 = 14. But 14 is too big. "
        "Another way: 2 * 3 = 6. Then this makes 6 + 4 = 10. The target 10 is reached."
    )
    with pytest.raises(ValueError, match="no steps"):
        countdown_thinking("en", (), 3)


@pytest.mark.parametrize("backend", ["py3langid", "lingua"])
def test_every_text_is_recognised(backend: str) -> None:
    """Every problem, every trace and, harder, every sentence of a trace, among all the languages and their look-alikes."""
    pytest.importorskip(backend)
    detector = detect.Detector(LANGUAGES, backend=backend)
    problems, traces, languages = all_texts(seed=0, fillings=10)
    sentences, of_sentences = [], []
    for language in LANGUAGES:
        for id in ids():
            if not id.endswith((".question", ".problem")):
                sentences.append(phrase(id, language, **dict.fromkeys(template(id, language)[1], "3 * 4 = 12")))
                of_sentences.append(language)
    for texts, expected in ((problems, languages), (traces, languages), (sentences, of_sentences)):
        found = detector(texts)
        wrong = [text for text, code, language in zip(texts, found.code, expected, strict=True) if code != language]
        assert wrong == []
        assert [text for text, share in zip(texts, found.switched, strict=True) if share] == []


def oracle(text: str) -> Fraction:
    """The value of an expression by Python's own grammar."""

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.BinOp):
            symbol = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}[type(node.op)]
            return OPERATIONS[symbol](value(node.left), value(node.right))
        assert isinstance(node, ast.Constant) and type(node.value) is int
        return Fraction(node.value)

    return value(ast.parse(text.strip(), mode="eval").body)


EXPRESSIONS = st.recursive(
    st.integers(0, 99).map(str),
    lambda inner: st.builds(
        lambda left, space, symbol, right, outer: outer.format(f"{left}{space}{symbol}{space}{right}"),
        inner, st.sampled_from(["", " "]), st.sampled_from("+-*/"), inner, st.sampled_from(["{}", "({})", "( {} )"]),
    ),
    max_leaves=8,
)  # fmt: skip


@settings(deadline=None, derandomize=True, max_examples=300)
@given(EXPRESSIONS)
def test_steps_compute_the_expression(text: str) -> None:
    try:
        expected = oracle(text)
    except ZeroDivisionError:
        with pytest.raises(UserError, match="divides by zero"):
            solution_steps(text)
        return
    steps = solution_steps(text)
    assert len(steps) == sum(text.count(symbol) for symbol in "+-*/")
    assert [str(step) for step in steps] == equations(" ".join(map(str, steps)))
    # Every operand is a number of the expression, or the result of an earlier step that no other has used.
    at_hand = [Fraction(number) for number in re.findall("[0-9]+", text)]
    for step in steps:
        at_hand.remove(step.left)
        at_hand.remove(step.right)
        at_hand.append(step.result)
    assert at_hand == [expected]


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.one_of(st.text(max_size=40), st.text(alphabet="0128 +-*/()=.\n²３", max_size=14)))
def test_any_other_text_is_refused_in_one_line(text: str) -> None:
    try:
        steps = solution_steps(text)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert re.fullmatch(r"[\s0-9+*/()-]+", text) and len(steps) == sum(map(text.count, "+-*/"))


@pytest.mark.parametrize(
    "text",
    ["", " ", "()", "1 2", "1 +", "+ 1", "-1", "(1", "1)", ")1(", "1 ** 2", "1 // 2", "2(3)", "(2)3", "1.5", "1 = 1", "x",
     "²", "３", "1\x00", "(1 + 2))", "((1 + 2)", "1" * (MAX_EXPRESSION_CHARS + 1), "(" * 10**6],
)  # fmt: skip
def test_malformed_expressions_are_refused(text: str) -> None:
    with pytest.raises(UserError) as error:
        solution_steps(text)
    assert len(str(error.value)) < 200


def test_solutions_of_countdown_reach_their_targets() -> None:
    task = Countdown(num_numbers=(2, 3, 4, 5, 6), max_number=99)
    for index in range(300):
        fields = task[index].fields
        steps = solution_steps(fields["solution"])
        assert steps[-1].result == fields["target"] and len(steps) == len(fields["numbers"]) - 1
        end = phrase("countdown.done", "sw", value=fields["target"])
        assert countdown_thinking("sw", steps, fields["target"]).endswith(end)
    assert solution_steps("7") == ()


def test_steps_show_what_is_not_a_whole_number_in_parentheses() -> None:
    assert str(Step(3, "-", Fraction(7, 2))) == "3 - (7/2) = -1/2"
    assert str(Step(-2, "/", 4)) == "(-2) / 4 = -1/2"
    assert str(Step(1, "/", 3)) == "1 / 3 = 1/3"  # exact, also from int


def test_mistakes_are_named() -> None:
    for mistake, message in (
        (lambda: phrase("answer", "xx", answer=1), "language='xx'.* en, zh"),
        (lambda: phrase("answr", "en", answer=1), "id='answr'"),
        (lambda: draw("selling", random.Random(0)), "id='selling'.*buying"),
        (lambda: word_problem("selling", "en", {}), "id='selling'.*buying"),
        (lambda: word_problem("sharing", "en", {"sacks": 2, "kilos": 5, "families": 3}), "values=.*families.*draw"),
        (lambda: word_problem("sharing", "en", {"sacks": 2, "kilos": 5, "families": 0}), "values=.*families.*draw"),
        (lambda: word_problem("tank", "en", {"full": 50, "rate": 10, "hours": 5}), "values=.*draw"),
        (lambda: word_problem("tank", "en", {}), "values=.*draw"),
    ):
        with pytest.raises(UserError, match=message):
            mistake()
    with pytest.raises(KeyError, match="answer"):
        phrase("answer", "en")


def test_import_is_cheap() -> None:
    program = "import sys, jaxrl_ml.languages.phrases; assert not {'numpy', 'jax', 'py3langid'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
