from __future__ import annotations

import pytest

from jaxrl_ml.rewards.answer_words import BY_LANGUAGE, words_of
from jaxrl_ml.rewards.answers import judge
from jaxrl_ml.rewards.choices import read


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"), ("b", "B"), ("(B)", "B"), ("[B]", "B"), ("B.", "B"), ("**B**", "B"), ("e", None), ("J", "J"), ("K", None),
        ("E - text", "E"), ("B: text", "B"), ("B) 5 eV", "B"), ("(B) 5 eV", "B"), ("B. A dog", "B"), ("B, the second one", "B"),
        ("Ⓑ", "B"), ("⒝", "B"), ("𝐁", "B"), ("🅱", "B"), ("Ｂ", "B"), ("В", "B"), ("Β", "B"), ("с", "C"),
        ("ب", "B"), ("أ", "A"), ("ב", "B"), ("ข", "B"), ("খ", "B"), ("ख", "B"), ("나", "B"), ("イ", "B"), ("هـ", "E"),
        ("вариант B", "B"), ("选项B", "B"), ("B选项", "B"), ("ข้อ ข", "B"), ("l'option B", "B"),
        ("The correct answer is (B).", "B"), ("choice B is correct", "B"),
        ("A or B", None), ("A, B", None), ("(A) and (B)", None), ("B) or C)", None), ("AB", None), ("A dog", None),
        ("Bob", None), ("কি", None), ("not B", None), ("5", None), ("", None),
    ],
)  # fmt: skip
def test_read(text, letter):
    assert read(text) == letter


@pytest.mark.parametrize("language", BY_LANGUAGE)
def test_the_word_for_option_or_answer_may_stand_before_or_after_the_letter_in_every_language(language):
    for kind, word in words_of(language):
        if kind in ("option", "answer"):
            for text in (f"{word} B", f"{word.capitalize()}: (B)", f"\\text{{{word} B}}", f"B {word}", f"**{word} B.**"):
                assert judge("B", text) is True and judge("C", text) is False, text


def test_letters_of_other_scripts_count_where_the_gold_answer_is_a_choice_alone():
    assert judge("B", "В") is True and judge("B", "ب") is True
    assert judge("5", "В") is not True and judge("x", "ب") is not True
