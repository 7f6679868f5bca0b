from __future__ import annotations

import pytest

from jaxrl_ml.rewards.structure import (
    bases_agree,
    branches_agree,
    congruences_agree,
    ellipses_agree,
    family,
    match_all,
    renamed,
    split,
    squeezed,
    system_as_list,
)


def same(gold: str, answer: str) -> bool:
    return squeezed(gold) == squeezed(answer)


def test_split_leaves_brackets_whole():
    assert split("(1,2), \\{3,4\\}; x") == ["(1,2)", "\\{3,4\\}", "x"]
    assert split("1 \\AND 2 \\OR 3") == ["1", "2", "3"] and split(" , ") == []


def test_squeezed_parts_only_letters_from_letters_and_digits_from_digits():
    assert squeezed("x + 1 ,2") == "x+1,2" and squeezed("1 2") != squeezed("12") and squeezed("\\pi r") == "\\pi r"
    assert squeezed("\\text{No  Solution}") == "no solution"


def test_match_all_pairs_every_item_once():
    assert match_all("aab", "aba", lambda one, other: one == other)
    assert not match_all("aab", "abb", lambda one, other: one == other) and not match_all("a", "aa", lambda one, other: True)


def test_what_lacks_the_structure_is_left_to_others():
    for compare in (branches_agree, congruences_agree, bases_agree, ellipses_agree):
        assert compare("x+1", "1+x", same) is None


def test_one_side_with_a_structure_is_wrong():
    golds = {
        branches_agree: "\\begin{cases}1&x\\\\2&y\\end{cases}",
        congruences_agree: "x \\equiv 1 \\pmod 3",
        bases_agree: "12_3",
        ellipses_agree: "1, x, \\ldots",
    }
    for compare, text in golds.items():
        assert compare(text, text, same) is True and compare(text, "1", same) is False and compare("1", text, same) is False


def test_a_system_is_a_list_and_branches_are_none():
    assert system_as_list("\\begin{cases}x&=1\\\\y=2\\end{cases}") == "x=1, y=2"
    for text in ("\\begin{cases}1&x>0\\\\2&x<0\\end{cases}", "\\begin{cases}x=1 \\text{ if } y\\\\x=2\\end{cases}", "x=1"):
        assert system_as_list(text) == text


def test_a_digit_that_its_base_has_not_is_no_other_number():
    assert bases_agree("18_8", "20_8", same) is False and bases_agree("18_8", "18_8", same) is True


def test_series():
    assert ellipses_agree("2, 4, \\ldots, 10", "2,4,6,8,10", same) and not ellipses_agree("2, 4, \\ldots, 10", "2,4,6,10", same)
    assert ellipses_agree("1, \\ldots, 5", "1, 2, \\ldots, 5", same) and not ellipses_agree(
        "a_1, \\ldots, a_n", "a_1, a_n", same
    )
    assert not ellipses_agree("1, 2, \\ldots, 10^{9}", "1, 2", same)


@pytest.mark.parametrize(
    ("text", "values", "letter"),
    [
        ("k\\pi, k \\in \\mathbb{Z}", "k\\pi", "k"),
        ("2n+1 (n\\in\\mathbb{Z})", "2n+1", "n"),
        ("n\\pi \\text{ for any integer } n", "n\\pi", "n"),
        ("\\pi m \\text{ where } m \\text{ is an integer}", "\\pi m", "m"),
        ("x+1, k \\in \\mathbb{Z}", None, None),
        ("k\\pi", None, None),
    ],
)
def test_family(text, values, letter):
    assert family(text) == (None if values is None else (values, letter))


def test_renamed_leaves_commands():
    assert renamed("n\\pi + \\sin n", "n", "k") == "k\\pi + \\sin k"
