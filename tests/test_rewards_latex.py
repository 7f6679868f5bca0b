from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_ml.rewards.answer_words import ANSWER
from jaxrl_ml.rewards.latex import balances, flat, tidy, to_latex


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("x⁴", "x^{4}"), ("10⁻³", "10^{-3}"), ("10¹²", "10^{12}"), ("xⁿ⁺¹", "x^{n+1}"), ("a₁₀", "a_{10}"),
        ("1011₂", "1011_{2}"), ("0.2̇7̇", "0.\\dot{2}\\dot{7}"), ("𝐱=𝟓", "x=5"), ("５，０", "5,0"), ("x≤2", "x\\le 2"),
        ("√(x+1)", "\\sqrt{x+1}"), ("€5", "€5"),
    ],
)  # fmt: skip
def test_to_latex(text, latex):
    assert to_latex(text) == latex


@pytest.mark.parametrize(
    ("text", "alone"),
    [
        ("3+2\\sqrt{2}.", "3+2\\sqrt{2}"),
        ("**X**", "X"),
        ("$**X**$.", "X"),
        ("“5”".replace("“", '"').replace("”", '"'), "5"),
        ("\\mathbf{5-\\sqrt{3}}", "5-\\sqrt{3}"),
        ("\\text{5}", "5"),
        ("\\textbf{odd}", "\\text{odd}"),
        ("n \\textbf{ is odd}", "n \\text{ is odd}"),
        ("\\boxed{5}", "5"),
        ("\\left(1,2\\right)", "(1,2)"),
        ("\\quad 5 \\quad", "5"),
        ("x=1,\\quad y=2", "x=1, y=2"),
        ("x=1 \\quad y=2", "x=1, y=2"),
        ("5\\\\", "5"),
        ("= 5", "5"),
        ("The answer is 5.", "5"),
        ("\\text{Answer: }5", "5"),
        ("\\text{The answer is } 5", "5"),
        ("5!", "5!"),
        ("1, 2, 3, ...", "1, 2, 3, ..."),
        ("f'(x)", "f'(x)"),
        ("[1,2)", "[1,2)"),
        ("\\dfrac12", "\\frac{1}{2}"),
        ("\\sqrt2", "\\sqrt{2}"),
        ("x^{2}3", "x^{2}3"),
        ("5\\text{,}040", "5,040"),
        ("3{:}45", "3:45"),
        ("\\left[\\begin{array}{cc}1&2\\end{array}\\right]", "\\begin{bmatrix}1&2\\end{bmatrix}"),
        ("...", "..."),
        (".", ""),
    ],
)
def test_tidy(text, alone):
    assert tidy(text) == alone


@pytest.mark.parametrize("word", ANSWER)
def test_the_word_for_answer_is_dropped_in_every_language(word):
    assert tidy(f"{word}: x+1") == tidy(f"\\text{{{word}: }}x+1") == "x+1"


@settings(deadline=None, derandomize=True, max_examples=400)
@given(st.text(alphabet="\\{}$*\"'.,;: =abAnswer125^_()[]&!", max_size=40))
def test_tidy_is_idempotent_keeps_balance_and_never_grows_by_much(text):
    once = tidy(text)
    assert tidy(once) == once
    assert balances(once) or not balances(text)
    assert len(once) <= 2 * len(text) + 20


def test_flat():
    assert flat("5\\text{ cm}") == "5  cm " and flat("5") == "5"
