from __future__ import annotations

import pytest

from jaxrl_ml.rewards.operators import restates, with_symbols


@pytest.mark.parametrize(
    "question",
    [
        "\\sum_{k=1}^{100} k", "\\int_0^1 x\\,dx", "\\iint xy", "\\oint f", "\\lim_{n\\to\\infty} a_n", "\\prod_{k} k",
        "\\gcd(9,12)", "gcd(9, 12)", "\\operatorname{lcm}(4,6)", "lcm(4,6)", "\\max(1,3)", "\\lfloor 3.7 \\rfloor",
        "\\lceil 2.1 \\rceil", "\\det A", "\\begin{vmatrix}1&2\\\\3&4\\end{vmatrix}", "\\frac{d}{dx} x^2",
        "\\frac{\\partial}{\\partial x} xy", "1, \\sum_{k} k", "x = \\sum_{k} k",
    ],
)  # fmt: skip
def test_a_question_is_no_answer_unless_the_gold_answer_asks_the_same(question):
    assert restates("5", question) and not restates(question, "5") and not restates(question, question)


@pytest.mark.parametrize(
    "answer",
    ["5", "\\sum_{k} k = 5", "x_{\\max} = 5", "S_{max}", "2\\sqrt{2}", "\\frac{d}{2}", "\\binom{5}{2}", "5!", "\\text{max} 5"],
)
def test_an_answer_is_no_question(answer):
    assert not restates("5", answer)


def test_the_same_term_is_the_same_symbol_in_both_texts():
    assert with_symbols("\\gcd(m, n)", "1") == ("\\Xi_{1}", "1")
    assert with_symbols("\\gcd(m, n)", "2\\operatorname{gcd}(n,m)") == ("\\Xi_{1}", "2\\Xi_{1}")
    gold, answer = with_symbols("\\frac{dy}{dx}", "\\frac{dx}{dy}+\\frac{\\partial f}{\\partial x}")
    assert gold == "\\Xi_{1}" and answer == "\\Xi_{2}+\\Xi_{3}"
    assert with_symbols("\\gcd(9, 12)", "n!") == ("\\gcd(9, 12)", "n!")


def test_double_factorials_of_numbers_are_computed():
    assert with_symbols("5!!", "8!!") == ("15", "384") and with_symbols("n!!", "100!!") == ("\\Xi_{1}", "\\Xi_{2}")
