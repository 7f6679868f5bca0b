"""Versions of problems: pairing, budgets, order, and mistakes."""

from __future__ import annotations

from collections import Counter

import pytest

from jaxrl_ml.data import PromptRenderer, prompt_batches
from jaxrl_ml.languages.phrases import countdown_problem
from jaxrl_ml.tasks.countdown import Countdown
from jaxrl_ml.tasks.parallel import Parallel, WordProblems, by_language, stated_in
from jaxrl_ml.tokenizer import Tokenizer
from jaxrl_ml.types import Example, UserError

CODES = ("en", "de", "zh", "sw")
COUNTDOWN = stated_in(Countdown(size=12), CODES)
WORDS = {code: WordProblems(code, size=12) for code in CODES}


@pytest.mark.parametrize("versions", [COUNTDOWN, WORDS], ids=["countdown", "words"])
@pytest.mark.parametrize("x", [1, 2, 3, 4])
@pytest.mark.parametrize(("budget", "problems"), [("growing", lambda x: 12), ("fixed", lambda x: 12 // x)])
def test_every_problem_is_there_once_in_each_of_the_first_languages(versions, x, budget, problems) -> None:
    task = Parallel(versions, x, budget)
    examples = [task[i] for i in range(len(task))]
    assert len(examples) == problems(x) * x
    found = Counter(example.language for example in examples)
    assert found == dict.fromkeys(CODES[:x], problems(x))
    for first in range(0, len(examples), x):
        group = examples[first : first + x]
        assert len({example.id.split("-", 1)[1] for example in group}) == 1
        assert [example.id.split("-", 1)[0] for example in group] == [example.language for example in group] == list(CODES[:x])
        assert [example.task.rpartition("/")[2] for example in group] == list(CODES[:x])
        assert len({str(example.answer or example.fields["target"]) for example in group}) == 1
    assert len({example.id for example in examples}) == len(examples)


def test_a_step_holds_versions_together_or_apart() -> None:
    render = PromptRenderer(Tokenizer.from_vocabulary(tuple("0123456789:")), lambda example: example.id.rpartition("-")[2])
    for together in (True, False):
        task = Parallel(COUNTDOWN, 3, together=together)
        batches = prompt_batches(task, render, num_prompts=6, width=8, seed=0)
        steps = [next(batches)[0] for _ in range(2 * len(task) // 6)]
        batches.close()
        for epoch in (steps[: len(steps) // 2], steps[len(steps) // 2 :]):
            assert len({example.id for step in epoch for example in step}) == len(task)
        sizes = {Counter(example.id.split("-", 1)[1] for example in step).most_common()[-1][1] for step in steps}
        assert sizes == {3} if together else 1 in sizes


def test_splits_of_word_problems_share_nothing_and_solutions_are_right() -> None:
    train, test = ({WordProblems("en", 400, split)[i].fields["question"] for i in range(400)} for split in ("train", "test"))
    assert not train & test
    example = WordProblems("de", 5)[3]
    assert example.completion.endswith(f"</think>\n\\boxed{{{example.answer}}}")
    assert str(example.answer) in example.completion.partition("</think>")[0]


def test_translations_in_one_list_come_apart() -> None:
    rows = [Example(f"{code}-{i}", f"mgsm/{code}", answer=i, language=code) for code in CODES for i in range(3)]
    task = Parallel(by_language(rows), 2)
    assert [task[i].id for i in range(len(task))] == ["en-0", "de-0", "en-1", "de-1", "en-2", "de-2"]
    assert task[1] is rows[3]


def test_prompts_are_in_the_language() -> None:
    example = Parallel(COUNTDOWN, 3)[2]
    text = countdown_problem(example.language, example.fields["numbers"], example.fields["target"])
    assert any("一" <= character <= "鿿" for character in text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Parallel(COUNTDOWN, 0), "num_languages=0 must be in 1..4"),
        (lambda: Parallel(COUNTDOWN, 5), "num_languages=5 must be in 1..4"),
        (lambda: Parallel(COUNTDOWN, 2, "shrinking"), "budget='shrinking'"),
        (lambda: Parallel({"en": WORDS["en"], "de": WordProblems("de", 5)}, 1), "versions differ in size"),
        (lambda: Parallel({code: WordProblems(code, 1) for code in CODES}, 4, "fixed"), "too few for num_languages=4"),
        (lambda: Parallel({"en": WORDS["en"], "de": WordProblems("de", 12, seed=1)}, 2)[1], "problem 0 is 'train-0-0' in en"),
        (lambda: WordProblems("xx"), "language='xx'"),
        (lambda: WordProblems("en", size=0), "size=0"),
        (lambda: WordProblems("en", split="dev"), "split='dev'"),
    ],
)
def test_mistakes_are_named(make, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_indices_outside_are_refused() -> None:
    for index in (-1, 12):
        with pytest.raises(IndexError):
            Parallel(COUNTDOWN, 1)[index]
