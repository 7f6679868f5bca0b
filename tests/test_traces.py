"""Templated traces are right, true, in their language and the same every time; files of traces read back."""

from __future__ import annotations

import json
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_ml.config import LanguageConfig
from jaxrl_ml.languages.detect import Detector
from jaxrl_ml.languages.phrases import LANGUAGES
from jaxrl_ml.languages.thinking import parse
from jaxrl_ml.rewards.countdown import countdown_reward
from jaxrl_ml.tasks.countdown import Countdown
from jaxrl_ml.tasks.traces import UNTAGGED, Traces, from_jsonl
from jaxrl_ml.types import Example, UserError

PROBLEMS = Countdown(num_numbers=(3, 4), max_number=20, size=400)
EQUATION = re.compile(r"(\(?-?\d+(?:/\d+)?\)?) ([-+*/]) (\(?-?\d+(?:/\d+)?\)?) = (-?\d+(?:/\d+)?)")


def test_every_trace_is_correct_and_in_its_language() -> None:
    traces = Traces(PROBLEMS, LANGUAGES, failed=2)
    examples = [traces[i] for i in range(len(traces))]
    assert countdown_reward([e.completion for e in examples], examples).correct.all()
    read = parse([e.completion for e in examples], LanguageConfig("free", LANGUAGES))
    codes = [LANGUAGES[i % len(LANGUAGES)] for i in range(len(traces))]
    assert [c.code for c in read] == codes == [e.fields["languages"][0] for e in examples]
    assert all(c.answer == f"\n<answer> {e.fields['solution']} </answer>" for c, e in zip(read, examples, strict=True))
    found = Detector(LANGUAGES)([c.thinking for c in read]).code
    assert (found == codes).mean() > 0.97


def test_no_line_of_a_trace_is_false_and_failures_use_the_same_numbers() -> None:
    traces = Traces(PROBLEMS, ("en", "te"), failed=3)
    attempts = Counter()
    for example in (traces[i] for i in range(200)):
        numbers, target = example.fields["numbers"], example.fields["target"]
        equations = EQUATION.findall(example.completion)
        operations = len(numbers) - 1
        assert len(equations) % operations == 0 and equations
        attempts[len(equations) // operations] += 1
        for start in range(0, len(equations), operations):
            pool = Counter(map(Fraction, numbers))
            for left, symbol, right, result in equations[start : start + operations]:
                a, b, c = (Fraction(text.strip("()")) for text in (left, right, result))
                assert c == {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}[symbol]
                pool.subtract([a, b])
                assert min(pool.values()) >= 0, "a number that is not there is used"
                pool[c] += 1
            assert (+pool).total() == 1
            assert (pool[Fraction(target)] == 1) == (start + operations == len(equations)), "all but the last attempt fail"
    assert attempts.keys() == {1, 2, 3, 4} and min(attempts.values()) > 30


def test_a_trace_is_a_function_of_index_and_seed() -> None:
    traces = Traces(PROBLEMS, ("en", "zh", "sw"), failed=2)
    assert [traces[i] for i in (5, 3, 5)] == [Traces(PROBLEMS, ("en", "zh", "sw"), failed=2)[i] for i in (5, 3, 5)]
    other = Traces(PROBLEMS, ("en", "zh", "sw"), failed=2, seed=1)
    assert any(traces[i] != other[i] for i in range(10))
    assert Traces(PROBLEMS, ("en",)) == Traces(PROBLEMS, ("en",), seed=0)
    plain = [Traces(PROBLEMS, ("en",), seed=seed)[7] for seed in (0, 1)]
    assert plain[0] == plain[1], "without failures there is nothing to draw"
    assert [example.id for example in traces][:4] == ["en/train-0-0", "zh/train-0-1", "sw/train-0-2", "en/train-0-3"]
    assert len(list(traces)) == len(traces) == 400
    with pytest.raises(IndexError):
        traces[400]


def test_tags_go_where_they_are_told() -> None:
    solved = Example("0", "countdown", {"numbers": (2, 3), "target": 6, "solution": "2 * 3"})

    def completion(**settings) -> str:
        return Traces([solved], ("en",), **settings)[0].completion

    rest = completion(tag="")
    assert rest.endswith("</think>\n<answer> 2 * 3 </answer>") and "2 * 3 = 6" in rest
    assert completion() == "<lang_select>\nen\n</lang_select>\n<think>\n" + rest
    assert completion(tag="<{code}>") == "<en>" + rest
    assert completion(tag=UNTAGGED) == "<think>\n" + rest
    pair = Traces([solved, solved], ("en", "de"), tag=("A", "B"))
    assert [pair[i].completion[0] for i in (0, 1)] == ["A", "B"]


def test_a_problem_without_a_wrong_expression_has_no_failure() -> None:
    stuck = Example("0", "countdown", {"numbers": (0, 0), "target": 0, "solution": "0 + 0"})
    assert Traces([stuck], ("en",), failed=5)[0].completion == Traces([stuck], ("en",))[0].completion


@settings(deadline=None, derandomize=True, max_examples=80)
@given(st.lists(st.integers(0, 10**9 - 1), min_size=2, max_size=8), st.integers(0, 2**32))
def test_any_numbers_make_a_trace(numbers: list[int], seed: int) -> None:
    fields = {"numbers": tuple(numbers), "target": sum(numbers), "solution": " + ".join(map(str, numbers))}
    example = Traces([Example("0", "countdown", fields)], ("ar",), failed=3, seed=seed)[0]
    assert countdown_reward([example.completion], [example]).correct.all()


def test_mistakes_are_named() -> None:
    for settings_, words in (
        ({"languages": ()}, "languages=\\(\\)"),
        ({"languages": ("en", "tlh")}, "'tlh'"),
        ({"languages": ("en", "de"), "tag": ("x",)}, "1 texts for 2 languages"),
        ({"failed": -1}, "failed=-1"),
        ({"seed": -1}, "seed=-1"),
    ):
        with pytest.raises(UserError, match=words):
            Traces(**{"task": PROBLEMS, "languages": ("en",)} | settings_)
    with pytest.raises(UserError, match="example 'x' has not the fields"):
        Traces([Example("x", "t", {"numbers": (1, 2), "target": 3})], ("en",))[0]


GOOD = {
    "id": "en/1", "language": "en", "task": "countdown/2", "prompt_language": "en", "answer": None,
    "fields": {"numbers": [1, 2], "target": 3, "solution": "1 + 2"}, "completion": "\n<think>\n…</think>\n", "provenance": {},
}  # fmt: skip


def written(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_files_read_back_to_examples(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", GOOD, {**GOOD, "id": "de/1", "language": "de", "prompt_language": "fr", "answer": "3"})
    first, second = from_jsonl(str(path))
    fields = {"numbers": (1, 2), "target": 3, "solution": "1 + 2", "languages": ("en",)}
    assert first == Example("en/1", "countdown/2", fields, None, "en", "\n<think>\n…</think>\n")
    assert (second.fields["languages"], second.language, second.answer) == (("de",), "fr", "3")
    both = from_jsonl(path, written(tmp_path / "b.jsonl", {**GOOD, "id": "x"}))
    assert [e.id for e in both] == ["en/1", "de/1", "x"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"completion": " "}, "completion=' ' must be text"),
        ({"completion": 3}, "completion=3"),
        ({"fields": [1]}, "fields=\\[1\\] must be an object"),
        ({"id": None}, "id is empty"),
        ({"language": 3}, "language=3 must be text"),
        ({"id": "en/1"}, "used already"),
    ],
)
def test_broken_files_are_named_by_line(tmp_path: Path, change: dict, words: str) -> None:
    path = written(tmp_path / "a.jsonl", GOOD, {**GOOD, "id": "2", **change})
    with pytest.raises(UserError, match=f"a.jsonl, line 2: .*{words}"):
        from_jsonl(path)[0]
    with pytest.raises(UserError, match="no problems"):
        len(from_jsonl(written(tmp_path / "none.jsonl")))


def test_a_file_is_read_when_it_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "later.jsonl"
    task = from_jsonl(path)
    with pytest.raises(UserError, match="later.jsonl"):
        len(task)
    written(path, GOOD)
    assert len(task) == 1 and task[0].id == "en/1"
