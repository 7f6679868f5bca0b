"""How a completion is read: a table of hostile texts, and that nothing of a text is lost."""

from __future__ import annotations

from functools import partial

import pytest
from conftest import lines_run
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_ml.config import LanguageConfig
from jaxrl_ml.languages.thinking import Completion, answer_parts, from_answer, is_answer, opened_by, parse, with_openings

CONFIG = LanguageConfig("free", ("en", "zh", "he"))


def tag(code: str) -> str:
    return f"<lang_select>\n{code}\n</lang_select>\n<think>\n"


def read(text: str, config: LanguageConfig = CONFIG) -> Completion:
    (completion,) = parse([text], config)
    return completion


EN, ZH = tag("en"), tag("zh")
DIGITS = "7" * 100_000
RIGHT_TO_LEFT, COMBINING = "\u202eשלום\u202c \u200fعدد\u2069", "e\u0301\u0316" * 40 + "\u0301"
# text → code, thinking, answer part
TABLE = {
    "the usual form": (f"{ZH}二加三\n</think>\n答案 5", "zh", "二加三\n", "\n答案 5"),
    "nothing": ("", "", "", ""),
    "white space only": (" \n", "", "", " \n"),
    "only a tag": (EN, "en", "", ""),
    "empty thinking": (f"{EN}</think>5", "en", "", "5"),
    "blank thinking": (f"{EN}\n </think>5", "en", "\n ", "5"),
    "unclosed thinking": (f"{EN}so <answer>5</answer>", "en", "so <answer>5</answer>", ""),
    "half a closing mark": (f"{EN}so</think", "en", "so</think", ""),
    "another spelling of the closing mark": (f"{EN}so</THINK>5", "en", "so</THINK>5", ""),
    "a tag inside the thinking": (f"{EN}so {ZH}二</think>5", "en", f"so {ZH}二", "5"),
    "two tags": (f"{EN}{ZH}二</think>5", "en", f"{ZH}二", "5"),
    "two completions": (f"{EN}so</think>5{ZH}二</think>6", "en", "so", f"5{ZH}二</think>6"),
    "a tag in the answer only": (f"5 {EN}so</think>6", "", "\nso", "6"),
    "nested thinking": (f"{EN}a<think>b</think>c</think>5", "en", "a<think>b", "c</think>5"),
    "nested tags": ("<lang_select>\n" + EN + "\nen\n</lang_select>\n<think>\nso</think>5", "",
                    "\n\nen\n</lang_select>\n<think>\nso", "5"),
    "an unknown language": (f"{tag('xx')}so</think>5", "", "\nso", "5"),
    "an unknown language, unclosed": (f"{tag('xx')}so", "", "\nso", ""),
    "a known code within a longer one": (f"{tag('zh-TW')}二</think>5", "", "\n二", "5"),
    "upper case": (f"{tag('EN')}so</think>5", "", "\nso", "5"),
    "no code": (f"{tag('')}so</think>5", "", "\nso", "5"),
    "the template itself": (f"{tag('{code}')}so</think>5", "", "\nso", "5"),
    "a space before the tag": (f" {EN}so</think>5", "", "\nso", "5"),
    "a byte order mark before the tag": (f"\ufeff{EN}so</think>5", "", "\nso", "5"),
    "white space left out": (EN.replace("\n", "") + "so</think>5", "", "so", "5"),
    "other line ends": (EN.replace("\n", "\r\n") + "so</think>5", "", "\r\nso", "5"),
    "a zero-width joiner in the code": (tag("e\u200dn") + "so</think>5", "", "\nso", "5"),
    "half a tag": ("<lang_select>\nen\n</lang_select>", "", "", "<lang_select>\nen\n</lang_select>"),
    "no tag": ("<think>so</think>5", "", "so", "5"),
    "no tag, unclosed": ("well <think>so \\boxed{5}", "", "so \\boxed{5}", ""),
    "no tag, opened by the prompt": ("so</think>5 <think>", "", "so", "5 <think>"),
    "no thinking": ("the answer is 5", "", "", "the answer is 5"),
    "right to left": (f"{tag('he')}{RIGHT_TO_LEFT}</think>{RIGHT_TO_LEFT}", "he", RIGHT_TO_LEFT, RIGHT_TO_LEFT),
    "right to left before the tag": (f"\u202e{EN}so</think>5", "", "\nso", "5"),
    "combining characters": (f"{EN}{COMBINING}</think>{COMBINING}", "en", COMBINING, COMBINING),
    "a mark on the last character of the tag": (f"{EN}\u0301so</think>5", "en", "\u0301so", "5"),
    "a mark on the closing mark": (f"{EN}so</think>\u03015", "en", "so", "\u03015"),
    "100 kB of digits": (EN + DIGITS, "en", DIGITS, ""),
    "100 kB of digits, closed": (f"{EN}{DIGITS}</think>{DIGITS}", "en", DIGITS, DIGITS),
    "100 kB of digits, no tag": (DIGITS, "", "", DIGITS),
    "lone surrogates and zeros": (f"{EN}\ud800\x00</think>\udfff", "en", "\ud800\x00", "\udfff"),
    "many tags": (EN * 1000, "en", EN * 999, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_every_text_has_a_reading(name):
    text, *parts = TABLE[name]
    assert read(text) == tuple(parts)


def test_a_batch_is_read_row_by_row():
    texts = [row[0] for row in TABLE.values()]
    assert parse(texts, CONFIG) == [read(text) for text in texts]
    assert parse([], CONFIG) == []


@pytest.mark.parametrize("order", [("<a>", "<a><b>"), ("<a><b>", "<a>")])
def test_one_text_a_language_and_the_longer_tag_counts(order):
    codes = tuple("short" if text == "<a>" else "long" for text in order)
    config = LanguageConfig("free", codes, order)
    assert read("<a>so</think>5", config) == ("short", "so", "5")
    assert read("<a><b>so</think>5", config) == ("long", "so", "5")
    assert read("<b>so</think>5", config) == ("", "<b>so", "5")


def test_without_languages_there_are_no_tags():
    assert read(f"{EN}so</think>5", LanguageConfig()) == ("", "\nso", "5")


MARKS = st.sampled_from([EN, ZH, tag("xx"), "<think>", "</think>", "<lang_select>\n", "en\n", "\u202e", "\u0301", "so ", "7"])


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.one_of(st.text(max_size=60), st.lists(MARKS, max_size=8).map("".join)))
def test_parts_make_up_the_text(text):
    code, thinking, answer = read(text)
    assert "</think>" not in thinking
    close = "</think>" if "</think>" in text else ""
    if code:
        assert tag(code) + thinking + close + answer == text
    else:
        assert not text.startswith((EN, ZH, tag("he")))
        assert text.endswith(thinking + close + answer) and (answer == text or "<think>" in text or close)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.sampled_from(CONFIG.languages), st.text(max_size=40), st.text(max_size=40))
def test_what_is_written_is_read(code, thinking, answer):
    assert read(f"{tag(code)}{thinking}</think>{answer}") == (code, thinking, answer)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("5", "5"),
        ("<think>4</think>5", "5"),
        ("4</think>5", "5"),
        ("<think>4", ""),
        ("4 <think>5", ""),
        ("<think>4</think>5<think>6</think>7", "5 7"),
        ("<think>4</think>5<think>6", "5 "),
        ("4</think>5</think>6", "6"),
        ("<think>3<think>4</think>5</think>6", "6"),
        ("<think>4</think>5<think>6</think>7</think>8", "8"),
    ],
)
def test_a_reward_of_answers_reads_no_thinking(text, answer):
    assert answer_parts([text]) == [answer]


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.lists(MARKS, max_size=8).map("".join), st.lists(MARKS, max_size=8).map("".join))
def test_what_a_reward_of_answers_reads(text, rest):
    (part,) = answer_parts([text])
    assert answer_parts([from_answer(text)]) == answer_parts([f"</think>{text}"])
    assert answer_parts([f"<think>{text}"]) == ([""] if "</think>" not in text else [part])
    kept = "#" in answer_parts([f"{text}#{rest}"])[0]
    assert is_answer(f"{text}#{rest}", len(text)) is kept


def test_thinking_that_the_prompt_opened_stands_before_the_completion():
    assert opened_by("<|assistant|>\n<think>\n") == "<think>\n" and opened_by("<think>") == "<think>"
    assert opened_by("<think></think>\n\n") == opened_by("write <think> first") == opened_by("") == ""
    completions = ["a</think>5", "b", "c", "d"]
    assert with_openings(["1 <think>\n", "2"], completions) == ["<think>\na</think>5", "<think>\nb", "c", "d"]
    assert with_openings(["1", "2"], completions) == completions and with_openings([], []) == []


def test_a_tag_without_a_mark_of_its_own_may_follow_one():
    config = LanguageConfig("constrained", ("de", "en"), ("<de>", "<en>"))
    assert read("<think>\n<de>so</think>5", config) == ("de", "so", "5")
    assert read("<de>so</think>5", config) == ("de", "so", "5")
    assert read("well <think><de>so</think>5", config) == ("", "<de>so", "5")
    assert read(f"<think>{EN}so</think>5") == ("", f"{EN}so", "5")  # its mark is its own


@pytest.mark.parametrize("unit", [EN, "<think>", "</think>", "<", "</think", "7", "\u0301"])
def test_work_does_not_grow_with_the_text(unit):
    """Beyond substring searches, a text costs the same however long it is; were those quadratic, this would take hours."""
    lines = []
    for chars in (1_000, 2_000_000):
        lines.append(lines_run(partial(read, unit * (chars // len(unit)))))
    assert lines[0] == lines[1]
