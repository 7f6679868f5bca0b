"""Decontamination: what is shared is found however it is written, what is not stays, and each task is read once."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_ml.tasks.decontaminate import Overlap, decontaminate, normalise
from jaxrl_ml.types import Example, UserError

ENGLISH = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."
CHINESE = "娜塔莉亚在四月份向她的48个朋友出售了发夹，然后她在五月份出售了一半数量的发夹。娜塔莉亚一共出售了多少个发夹？"
THAI = "นาตาเลียขายกิ๊บติดผมให้เพื่อน 48 คนในเดือนเมษายน และเธอขายกิ๊บติดผมได้ครึ่งหนึ่งของจำนวนนั้นในเดือนพฤษภาคม"
HINDI = "नतालिया ने अप्रैल में अपने ४८ दोस्तों को क्लिप बेचीं और फिर मई में उसने उससे आधी संख्या में क्लिप बेचीं।"


def task(*texts):
    return [Example(f"{number}", "t", {"question": text}) for number, text in enumerate(texts)]


def kept(train, test, **options):
    subset, _ = decontaminate(task(*train), task(*test), **options)
    return [example.fields["question"] for example in subset]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 1 + 1?", "what  is\n1+1"),
        ("Ｗｈａｔ ｉｓ １＋１？", "What is 1+1?"),
        ("STRASSE 5", "straße ५"),
        ("It costs $1,200,300.", "it costs 1200300"),
        ("a well-known fact", "A well known fact!"),
        ("3 − 5", "3 - 5"),
        ("½ of it", "1/2 of it"),
        ("\\frac{1}{2}", "frac 1 2"),
        ("《你好》，世界！", "你好 世界"),
        ("e\u0301tude", "étude"),
    ],
)
def test_the_same_text_in_other_dress_is_exact(one, other):
    subset, report = decontaminate(task(one, "something else"), task(other))
    assert [example.id for example in subset] == ["1"]
    assert report.removed == {"exact": 1, "ngram": 0} and report.num_train == 2
    assert report.examples == (Overlap("0", "0", "exact", " ".join(normalise(other))),)
    assert str(report) == "removed 1 of 2 training examples: 1 exact, 0 by n-gram"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 3 + 5?", "What is 3 - 5?"),
        ("What is 3 * 5?", "What is 3 / 5?"),
        ("x < 5", "x > 5"),
        ("What is 12?", "What is 1 2?"),
        ("1,20", "120"),
        ("कि", "क"),  # marks are part of a letter
        ("What is 5?", "What is 6?"),
    ],
)
def test_other_maths_is_other_text(one, other):
    assert normalise(one) != normalise(other)
    assert kept([one], [other]) == [one]


def test_texts_without_a_word_are_nothing_in_common():
    assert kept(["", "?!", "$$"], ["...", ""]) == ["", "?!", "$$"]


@pytest.mark.parametrize("text", [ENGLISH, HINDI])
def test_thirteen_words_in_common_are_found_and_twelve_are_not(text):
    words = text.split()
    test = ["so first " + text + " and last"]
    for count, expected in ((12, 1), (13, 0)):
        for start in range(len(words) - count + 1):
            own = " ".join(("other words", *words[start : start + count], "more of them"))
            assert len(kept([own], test)) == expected, own


@pytest.mark.parametrize("text", [CHINESE, THAI])
def test_thirty_characters_in_common_are_found_and_twenty_nine_are_not(text):
    words = normalise(text)
    assert len(words) > 40
    other = {CHINESE: "今", THAI: "ฮ"}[text]
    for count, expected in ((29, 1), (30, 0)):
        own = other * 5 + " ".join(words[3 : 3 + count]) + other * 5
        assert len(kept([own], [text])) == expected


def test_lengths_are_settings():
    assert kept(["a b c d"], ["x b c y"], ngram=2) == []
    assert kept(["a b c d"], ["x b c y"], ngram=3) == ["a b c d"]
    assert kept(["天地玄黄"], ["天地宇宙"], ngram_chars=2) == []
    assert kept(["天地玄黄"], ["天地宇宙"], ngram_chars=3) == ["天地玄黄"]
    for lengths in ({"ngram": 0}, {"ngram_chars": -1}):
        with pytest.raises(UserError, match="must be at least 1"):
            decontaminate([], [], **lengths)


def test_the_report_names_both_sides_and_shows_a_few():
    train = task(*(f"problem {number}: {ENGLISH}" for number in range(50)), "a new problem")
    subset, report = decontaminate(train, task("nothing", "before it, " + ENGLISH))
    assert [example.id for example in subset] == ["50"]
    assert report.removed == {"exact": 0, "ngram": 50} and len(report.examples) == 20
    assert report.examples[0] == Overlap("0", "1", "ngram", "natalia sold clips to 48 of her friends in april and then she")


def test_another_text_can_be_compared():
    train = [Example("a", "t", {"prompt": "the same"}), Example("b", "t", {"prompt": "another"})]
    subset, _ = decontaminate(train, train[:1], text=lambda example: example.fields["prompt"])
    assert [example.id for example in subset] == ["b"]
    with pytest.raises(UserError, match="example 'a' has no text in fields"):
        decontaminate(train, [])


def test_each_task_is_read_once_and_kept_lazily():
    class Lazy:
        reads = 0

        def __len__(self):
            return 100

        def __getitem__(self, index):
            Lazy.reads += 1
            return Example(str(index), "t", {"question": f"number {index}"})

    subset, _ = decontaminate(Lazy(), task("number 7"))
    assert Lazy.reads == 100 and len(subset) == 99
    assert subset[7].id == "8" and Lazy.reads == 101


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(0, 2**32))
def test_agrees_with_comparing_every_pair(seed):
    rng = random.Random(seed)

    def text():
        return " ".join(rng.choices("abc", k=rng.randrange(1, 9)))

    train, test = [text() for _ in range(20)], [text() for _ in range(4)]

    def clash(one, other):
        one, other = one.split(), other.split()
        runs = [one[i : i + 4] for i in range(len(one) - 3)]
        return one == other or any(other[i : i + 4] in runs for i in range(len(other) - 3))

    assert kept(train, test, ngram=4) == [own for own in train if not any(clash(own, other) for other in test)]


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.text(max_size=200))
def test_any_text_with_a_word_is_found_in_itself(text):
    assert len(kept([text], [text])) == (not normalise(text))
