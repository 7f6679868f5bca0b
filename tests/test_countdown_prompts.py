"""The prompt formats of Countdown."""

from __future__ import annotations

import pytest

from jaxrl_ml.tasks.countdown.prompts import chat, compact, tinyzero
from jaxrl_ml.types import Example

EXAMPLE = Example(id="0", task="countdown/4", fields={"numbers": (19, 36, 55, 7), "target": 65, "solution": "secret"})


def test_question_is_tinyzeros_word_for_word():
    assert tinyzero(EXAMPLE) == (
        "Using the numbers 19, 36, 55 and 7, create an equation that equals 65. You can use basic arithmetic operations "
        "(+, -, *, /) and each number can only be used once. Show your work in <think> </think> tags. And return the final "
        "answer in <answer> </answer> tags, for example <answer> (1 + 2) / 3 </answer>."
    )


def test_chat_is_the_same_question_from_the_user():
    assert chat(EXAMPLE) == [{"role": "user", "content": tinyzero(EXAMPLE)}]


def test_compact_is_numbers_and_target():
    assert compact(EXAMPLE) == "19 36 55 7 = 65:"


@pytest.mark.parametrize(("numbers", "listed"), [((5,), "numbers 5, create"), ((5, 6), "numbers 5 and 6, create")])
def test_short_lists_read_as_english(numbers, listed):
    assert listed in tinyzero(Example(id="0", task="countdown", fields={"numbers": numbers, "target": 65}))


@pytest.mark.parametrize("prompt_format", [tinyzero, chat, compact])
def test_prompts_do_not_tell_the_solution(prompt_format):
    assert "secret" not in str(prompt_format(EXAMPLE))
