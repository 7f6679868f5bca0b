"""The Countdown reward against an oracle of its own, tables of nasty answers, and text made to be slow."""

from __future__ import annotations

import ast
import random
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from conftest import lines_run
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_ml.languages.thinking import answer_parts
from jaxrl_ml.rewards.countdown import MAX_ANSWER_CHARS, countdown_reward
from jaxrl_ml.tasks.countdown.generate import Countdown
from jaxrl_ml.types import Example, UserError


def problem(*numbers: int, target: int) -> Example:
    return Example(id="0", task="countdown", fields={"numbers": numbers, "target": target})


def reward(text: str, example: Example) -> float:
    return round(float(countdown_reward([text], [example]).rewards[0]), 6)


def answer(expression: str) -> str:
    return f"<think>hm</think> <answer>{expression}</answer>"


CORRECT = [
    "(1 + 2) * 8", "(1+2)*8", "8*(2+1)", " ( ( 1 + 2 ) ) * ( 8 ) ", "(1 + 2) * 8 = 24", "(1+2)*8=24", "(1 + 2) × 8",
    "8\n*\t(1\r\n+ 2)", "8 * (1 + 2)\n= 24\n", "(((((((8)))))))*(1+2)", "(2+1)×8 = 24",
]  # fmt: skip
WRONG = [
    "", " ", "24", "1 + 2 * 8", "(1 + 2) * 8 * 1", "(1 + 2) * 8 + 0", "(1 + 2) * 8 = 25", "24 = (1 + 2) * 8", "(1+2)*8=24=24",
    "(1+2)*8 = 24.0", "(1+2)*8 =", "=24", "(1 + 2) 8", "(1+2)(8)", "((1 + 2) * 8", "(1 + 2) * 8)", ")1 + 2( * 8", "()(1+2)*8",
    "(1+2)*8()", "(1 + 2) ** 8", "8//(1/2+1)", "-1 + 2 * 8", "+8*(1+2)", "8*(+1+2)", "8 -- 1 - 2", "(1+2)*8.0", "(01+2)*8",
    "(1+2)*08", "1 2 8", "12 + 8", "1 2 + 8", "(1+2)*8 # yes", "x = (1+2)*8", "(1+2)*８", "(1+2)*²8", "(1+2)*8\x1f", "\x1f",
    "(1+2)\x1f*8", "(1+2)*8\x00", "[1+2]*8", "(1,2)*8", "__import__('os')", "1+2*8+", "*1+2*8", "1+(2*8", "8/(1-2/2)",
    "44**19**36",
    "9" * 5000, "(" * 250 + "8" + ")" * 250, "8*(1+2)" + " " * MAX_ANSWER_CHARS, "(1+2)*8<answer", "\ud800", "(1+2)∗8",
    "1e1+2*8",
]  # fmt: skip
NONE = [
    "", "24", "(1+2)*8", "<answer>", "</answer>", "</answer>(1+2)*8<answer>", "<answer>(1+2)*8", "<answer>(1+2)*8</answer",
    "<Answer>(1+2)*8</Answer>", "<answer>(1+2)*8</answer> <answer>(1+2)*8", "< answer>(1+2)*8</answer>", "<answer" * 100,
]  # fmt: skip


@pytest.mark.parametrize("expression", CORRECT)
def test_correct_answers_get_one(expression):
    assert reward(answer(expression), problem(1, 2, 8, target=24)) == 1.0


@pytest.mark.parametrize("expression", WRONG)
def test_wrong_answers_get_a_tenth(expression):
    assert reward(answer(expression), problem(1, 2, 8, target=24)) == 0.1


@pytest.mark.parametrize("text", NONE)
def test_texts_without_an_answer_get_nothing(text):
    assert reward(text, problem(1, 2, 8, target=24)) == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer>1</answer><answer>8*(1+2)</answer>", 1.0),
        ("<answer>8*(1+2)</answer><answer>1</answer>", 0.1),
        ("<answer>8*(1+2)</answer> </answer>", 1.0),
        ("<answer><answer>8*(1+2)</answer></answer>", 1.0),
        ("<answer>8*(1+2)</answer> and then much more text", 1.0),
    ],
)
def test_the_last_answer_counts(text, expected):
    assert reward(text, problem(1, 2, 8, target=24)) == expected


@pytest.mark.parametrize(
    ("expression", "numbers", "target", "expected"),
    [
        ("8 / (3 - 8 / 3)", (3, 3, 8, 8), 24, 1.0),  # only right in exact fractions
        ("1 / 3 * 3", (1, 3, 3), 1, 1.0),
        ("3 - 8 + 4", (3, 4, 8), -1, 1.0),
        ("3 − 8 + 4 = −1", (3, 4, 8), -1, 1.0),
        ("8 ÷ 4 ÷ 2", (2, 4, 8), 1, 1.0),
        ("8 / (4 / 2)", (2, 4, 8), 4, 1.0),
        ("8 - (4 - 2)", (2, 4, 8), 6, 1.0),
        ("8 - 4 - 2", (2, 4, 8), 2, 1.0),
        ("1 / (2 - 2)", (1, 2, 2), 0, 0.1),
        ("5 / (1 / (2 - 2))", (1, 2, 2, 5), 0, 0.1),  # x / (1 / 0) is not 0
        ("0 / 0", (0, 0), 1, 0.1),
        ("5 + 5", (5, 5), 10, 1.0),
        ("5", (5, 5), 5, 0.1),
        ("7", (7,), 7, 1.0),
        ("999999999 * 999999998", (999999998, 999999999), 999999999 * 999999998, 1.0),
        ("999999999 * 999999998", (999999998, 999999999), 999999999 * 999999998 - 1, 0.1),  # equal as floats
    ],
)
def test_arithmetic_is_exact(expression, numbers, target, expected):
    assert reward(answer(expression), problem(*numbers, target=target)) == expected


RIGHT, OTHER = "<answer>(1+2)*8</answer>", "<answer>1</answer>"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"<think>{RIGHT}</think> none", 0.0),
        (f"<think>{RIGHT}", 0.0),
        (f"{RIGHT}</think> none", 0.0),
        (f"<think>hm</think>{RIGHT}", 1.0),
        (f"hm</think>{OTHER} so {RIGHT}", 1.0),
        (f"<think>{OTHER}</think> so the answer is {RIGHT}", 1.0),
        (f"<think>hm</think>{OTHER}<think>{RIGHT}</think>", 0.1),
        (f"<think>hm</think><think>{RIGHT}", 0.0),
        (f"hm /think>{RIGHT} <think>", 0.0),
        (RIGHT, 1.0),
    ],
)
def test_an_answer_in_thinking_is_none(text, expected):
    assert reward(text, problem(1, 2, 8, target=24)) == expected


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.lists(st.sampled_from(["<think>", "</think>", RIGHT, OTHER, "hm", "think>", " "]), max_size=7).map("".join))
def test_a_text_scores_what_its_answer_part_scores(text):
    (part,) = answer_parts([text])
    assert reward(text, problem(1, 2, 8, target=24)) == reward(part.replace("</think>", ""), problem(1, 2, 8, target=24))


def test_large_products_do_not_wrap_round():
    numbers = (999_999_999,) * 6
    value = 999_999_999**3
    assert reward(answer("999999999*999999999*999999999/999999999/999999999/999999999"), problem(*numbers, target=1)) == 1.0
    wrapped = (value + 2**63) % 2**64 - 2**63  # what int64 would make of the product
    assert reward(answer("999999999*999999999*999999999"), problem(*numbers[:3], target=wrapped)) == 0.1


def test_batch_equals_rows_and_parts_add_up():
    examples = [Countdown(num_numbers=(2, 3, 4), seed=3)[i] for i in range(60)]
    texts, rows = [], []
    for k, example in enumerate(examples):
        for expression in (example.fields["solution"], "1 + 1", CORRECT[k % len(CORRECT)], WRONG[k % len(WRONG)]):
            texts.append(answer(expression) if (k + len(texts)) % 7 else expression)
            rows.append(example)
    scores = countdown_reward(texts, rows)
    alone = [reward(text, example) for text, example in zip(texts, rows, strict=True)]
    assert np.allclose(scores.rewards, alone)
    assert {0.0, 0.1, 1.0} == set(alone)
    assert np.array_equal(scores.correct, scores.rewards == 1)
    assert np.array_equal(scores.parts["correct"] + scores.parts["format"], scores.rewards)
    assert scores.rewards.dtype == np.float32 and scores.correct.dtype == bool
    assert all(part.dtype == np.float32 for part in scores.parts.values())
    order = np.random.default_rng(0).permutation(len(texts))
    shuffled = countdown_reward([texts[i] for i in order], [rows[i] for i in order])
    assert np.array_equal(shuffled.rewards, scores.rewards[order])


def test_every_generated_solution_is_correct():
    task = Countdown(num_numbers=(2, 3, 4, 5, 6), max_number=99, seed=1)
    examples = [task[i] for i in range(1000)]
    assert countdown_reward([answer(e.fields["solution"]) for e in examples], examples).correct.all()


def test_empty_batch():
    scores = countdown_reward([], [])
    assert scores.rewards.shape == (0,) and scores.correct.shape == (0,)


@pytest.mark.parametrize(
    "fields",
    [
        {"target": 3}, {"numbers": (1, 2)}, {"numbers": (), "target": 3}, {"numbers": (1, -2), "target": 3},
        {"numbers": (1, 2.5), "target": 3}, {"numbers": (1, 2), "target": "3"}, {"numbers": (1, 10**9), "target": 3},
        {"numbers": (1, 2), "target": 2**64}, {"numbers": None, "target": 3}, {"numbers": ((1,), (2, 3)), "target": 3},
    ],
)  # fmt: skip
def test_broken_examples_raise_rather_than_score_zero(fields):
    good, broken = problem(1, 2, target=3), Example(id="broken", task="countdown", fields=fields)
    with pytest.raises(UserError, match="'broken'"):
        countdown_reward(["", ""], [good, broken])


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 texts for 1 examples"):
        countdown_reward(["", ""], [problem(1, target=1)])


def _oracle(expression: str, numbers: tuple[int, ...], target: int) -> bool:
    """Python's own parser and fractions: independent of what is tested."""
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
        result = _fraction(tree)
    except (SyntaxError, ZeroDivisionError):
        return False
    used = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return sorted(used) == sorted(numbers) and result == target


def _fraction(node: ast.AST) -> Fraction:
    match node:
        case ast.Constant(int(number)):
            return Fraction(number)
        case ast.BinOp(left, operation, right):
            x, y = _fraction(left), _fraction(right)
            match operation:
                case ast.Add():
                    return x + y
                case ast.Sub():
                    return x - y
                case ast.Mult():
                    return x * y
                case ast.Div():
                    return x / y
    raise SyntaxError(ast.dump(node))


def _random_expression(numbers: list[int], rng: random.Random) -> str:
    terms = [str(number) for number in numbers]
    while len(terms) > 1:
        left, right = terms.pop(rng.randrange(len(terms))), terms.pop(rng.randrange(len(terms)))
        term = f"{left}{rng.choice(['', ' '])}{rng.choice('+-*/')}{rng.choice(['', ' '])}{right}"
        terms.append(f"({term})" if rng.random() < 0.6 else term)
    return terms[0]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(0, 2**32), st.integers(0, 12))
def test_agrees_with_the_oracle_on_expressions(seed, top):
    rng = random.Random(seed)
    texts, examples, expected = [], [], []
    for _ in range(30):
        numbers = [rng.randint(0, top) for _ in range(rng.randint(1, 6))]
        expression = _random_expression(numbers, rng)
        try:  # half of the targets are what the expression gives, where that is whole
            target = rng.choice([rng.randint(-20, 20), _whole_value(expression)])
        except (ZeroDivisionError, ValueError):
            target = rng.randint(-3, 3)
        if rng.random() < 0.15:
            numbers[0] += 1
        texts.append(answer(expression))
        examples.append(problem(*numbers, target=target))
        expected.append(_oracle(expression, tuple(numbers), target))
    assert countdown_reward(texts, examples).correct.tolist() == expected


def _whole_value(expression: str) -> int:
    value = _fraction(ast.parse(expression, mode="eval").body)
    if value.denominator != 1:
        raise ValueError(expression)
    return int(value)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.lists(st.text(alphabet="0128 +-*/()=×−\n", max_size=14), min_size=1, max_size=20))
def test_agrees_with_the_oracle_on_noise(expressions):
    """Also on texts that are mostly malformed: correct exactly where Python's grammar, less its extras, says so."""
    example = problem(1, 2, target=3)
    verdicts = countdown_reward([answer(e) for e in expressions], [example] * len(expressions)).correct
    for expression, verdict in zip(expressions, verdicts, strict=True):
        plain = expression.replace("×", "*").replace("−", "-")
        left, equals, right = plain.partition("=")
        # A sign in front of an operand and powers are the parser's extras; the oracle refuses them. Lines may break anywhere.
        wanted = _oracle(left.replace("\n", " "), (1, 2), 3) and (not equals or right.strip() == "3")
        assert bool(verdict) == wanted, expression


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.lists(st.one_of(st.text(max_size=60), st.text(alphabet="<answer>/12+= ", max_size=60)), min_size=1, max_size=8))
def test_never_raises(texts):
    wrapped = [*texts, *map(answer, texts)]
    scores = countdown_reward(wrapped, [problem(1, 2, target=3)] * len(wrapped))
    assert set(np.round(scores.rewards.astype(float), 6)) <= {0.0, 0.1, 1.0}
    assert (scores.rewards[len(texts) :] > 0).all() or any("answer>" in text for text in texts)


@pytest.mark.parametrize(
    "unit",
    ["<answer>", "<answer", "</answer>", "<", "(", "<answer>1+2</answer>", "9", "<answer>(", "-"],
)
def test_work_does_not_grow_with_hostile_text(unit):
    """Beyond two substring searches a text costs the same however long it is: answers are cut off at a limit."""
    short, long = (f"<answer>{unit * (chars // len(unit))}</answer>" for chars in (20_000, 320_000))
    lines = [lines_run(partial(countdown_reward, [text] * 8, [problem(1, 2, target=3)] * 8)) for text in (short, long)]
    assert lines[1] <= lines[0]


def test_deep_and_long_answers_within_the_limit_are_right():
    deep = "(" * 250 + "1+2" + ")" * 250
    assert len(deep) < MAX_ANSWER_CHARS
    assert reward(answer(deep), problem(1, 2, target=3)) == 1.0
