from __future__ import annotations

import unicodedata
from fractions import Fraction
from functools import partial

import pytest
from conftest import lines_run
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_ml.languages.phrases import NAMES
from jaxrl_ml.rewards.answer_words import AND
from jaxrl_ml.rewards.answers import MAX_ANSWER_CHARS, extract, judge
from jaxrl_ml.rewards.latex import tidy, to_latex
from jaxrl_ml.rewards.units import PERCENT, words_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\\boxed{5}", "5"),
        ("\\boxed {5}", "5"),
        ("\\fbox{5}", "5"),
        ("\\\\boxed{5}", "5"),
        ("\\boxed{\\frac{1}{2}} and more", "\\frac{1}{2}"),
        ("\\boxed{1} then \\boxed{2}", "2"),
        ("\\boxed{1} then \\boxed{2", "1"),
        ("\\boxed{1} then \\boxed{2}}", "2"),
        ("\\boxed{\\{1,2\\}}", "\\{1,2\\}"),
        ("\\boxed{\\{1}", "\\{1"),
        ("\\boxed{a\\boxed{b}c}", "b"),
        ("\\boxed{}", ""),
        ("\\boxed5", None),
        ("xbox{5}", None),
        ("5", None),
        ("", None),
        ("<answer>5</answer>", "5"),
        ("<answer>4</answer><answer>5</answer>", "5"),
        ("<answer>4</answer><answer>5", "4"),
        ("<answer>5", None),
        ("5</answer>", None),
        ("</answer><answer>", None),
        ("\\boxed{4} <answer>5</answer>", "5"),
        ("<answer>4</answer> \\boxed{5}", "5"),
        ("<answer>x = \\boxed{5}</answer>", "5"),
        ("<answer>4</answer> \\boxed{5", "4"),
        ("\\boxed{2} and \\boxed{3}", "2, 3"),
        ("\\boxed{2}, \\boxed{3}", "2, 3"),
        ("$\\boxed{2}$, $\\boxed{3}$, and $\\boxed{4}$.", "2, 3, 4"),
        ("\\boxed{2}\\text{ y }\\boxed{3}", "2, 3"),
        ("\\(\\boxed{2}\\) und \\(\\boxed{3}\\)", "2, 3"),
        ("\\boxed{2}、\\boxed{3}", "2, 3"),
        ("\\boxed{2} or \\boxed{3}", "2, 3"),
        ("\\boxed{5}, \\boxed{5}", "5"),
        ("\\boxed{2.} and \\boxed{3.}", "2, 3"),
        ("\\boxed{2}. No: \\boxed{3}", "3"),
        ("\\boxed{2} \\boxed{3}", "3"),
        ("\\boxed{2} and then \\boxed{3}", "3"),
        ("\\boxed{2} and" + " " * 60 + "\\boxed{3}", "3"),
        ("\\boxed{2} and \\boxed{3", "2"),
    ],
)
def test_extract(text, expected):
    assert extract(text) == expected
    assert extract(text, "last_number") == expected or expected is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("so it is 42.", "42"),
        ("3, then 4, then 5", "5"),
        ("7 - 5", "5"),
        ("7-5", "5"),
        ("x = -5", "-5"),
        ("costs $12.50.", "$12.50"),
        ("it is -€5", "-€5"),
        ("in all 3½.", "3\\frac{1}{2}"),
        ("3\\frac{1}{2}", "3\\frac{1}{2}"),
        ("so 1011₂", "1011"),
        ("so 1011_{2}", "1011"),
        ("12 cm²", "12"),
        ("12 m^{2}", "12"),
        ("12 m^2", "12"),
        ("12 s^{-1}", "12"),
        ("12 см2", "12"),
        ("10^{3}", "10^{3}"),
        ("3.2 × 10^5 cells", "3.2 \\times  10^5"),
        ("\\frac13", "\\frac13"),
        ("H2O", None),
        ("7 is a_{n+1} = 2^{n-1}", "7"),
        ("7 of n^{2n+10}", "7"),
        ("7 x^{ 2 } and x^{1/2}", "7"),
        ("12 m s-2", "12"),
        ("1.6e-19 C", "1.6e-19"),
        ("5.0e3 m", "5.0e3"),
        ("\\frac{\\sqrt{3}}{2}", "\\frac{\\sqrt{3}}{2}"),
        ("\\frac{x}{3}", "\\frac{x}{3}"),
        ("5 moles of H_2O and CO2", "5"),
        ("3\\sqrt{2}", "3\\sqrt{2}"),
        ("2\\pi", "2\\pi"),
        ("共5个", "5"),
        ("1 234 567 €", "1 234 567"),
        ("it is 1{,}234 of them", "1,234"),
        ("in all 42\n1. a check", "42"),
        ("so 1a₁₂ = 7 in base_{12}", "7"),
        ("a_1 is 7", "7"),
        ("1,234 in all", "1,234"),
        ("about 12.5%.", "12.5%"),
        ("1 1/2 cups", "1 1/2"),
        ("that is -\\frac{1}{2}", "-\\frac{1}{2}"),
        ("٣٫٥", "3.5"),
        ("no number", None),
    ],
)
def test_last_number(text, expected):
    assert extract(text, "last_number") == expected


@pytest.mark.parametrize("wrap", ["\\boxed{%s}", "\\boxed{%s", "<answer>%s</answer>"])
@pytest.mark.parametrize("long", ["5" + " " * 1000 + "6", "5" + " " * 1000, "5" * 10**6, "\\!" * 500 + "5"])
def test_an_answer_that_is_too_long_is_wrong_and_not_cut_to_a_right_one(wrap, long):
    assert judge("5", extract(wrap % long) or "") is False


@pytest.mark.parametrize("word", AND)
def test_boxes_joined_by_and_in_any_language_are_one_answer(word):
    assert extract(f"\\boxed{{2}} {word} $\\boxed{{3}}$.") == "2, 3"


def test_a_last_number_that_is_too_long_is_wrong():
    answer = extract("x = " + "7" * 10**6, "last_number")
    assert len(answer) > MAX_ANSWER_CHARS and judge("7" * 1000, answer) is False


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [
        ("1000", "1,000", True),
        ("1000", "1.000", True),
        ("1", "1.000", True),
        ("1", "1,000", False),
        ("3", "3,000", False),
        ("3.5", "3,500", True),
        ("3500", "3,500", True),
        ("3.5", "35", False),
        ("1.234", "1234", False),
        ("1234", "1.234", True),
        ("3,5", "3.5", True),
        ("3.5", "3,5", True),
        ("1/2", "0,5", True),
        ("-1.5", "-1\\frac{1}{2}", True),
        ("-1.5", "-1 1/2", True),
        ("50\\%", "50", True),
        ("0.5", "50\\%", True),
        ("50", "0.5", False),
        ("A", "a", True),
        ("A", "(B)", False),
        ("A", "5", False),
        ("5", "A", ("5", "A")),
        ("C", "C) 42 eV", True),
        ("C", "\\text{(C)}\\ x+1", True),
        ("C", "B) 42 eV", False),
        ("C", "C) 1, D) 2", ("C", "C) 1, D) 2")),
        ("C", "A. C", ("C", "A. C")),
        ("C", "C. A", ("C", "C. A")),
        ("C", "CD", ("C", "CD")),
        ("H", "(H).", True),
        ("e", "E", ("e", "E")),
        ("3", "x=3", True),
        ("3", "x=4", False),
        ("5", "5}", False),
        ("5", "{5", False),
        ("5", "  ", False),
        ("\\pi", " \\pi", True),
        ("10" * 30, "10" * 30 + ".0", True),
        ("1/3", "0,333333", True),
        ("1/3", "0,33333", False),
        ("3,5", "5,3", ("3,5", "5,3")),
        ("x=3", "y=3", ("x=3", "y=3")),
        ("5", "5/0", ("5", "5/0")),
        ("5", "5\\text{ million}", False),
        ("5000000", "5\\text{ million}", True),
        ("70000", "7万元", True),
        ("7000", "7千米", False),
        ("7", "7千米", True),
        ("\\sqrt{2}", "√2+0", ("\\sqrt{2}", "\\sqrt{2}+0")),
        ("[1.5,2)", "[1,5; 2)", ("[1.5,2)", "[1.5, 2)")),
        ("(1,2)", "(1;2), (3,4)", ("(1,2)", "(1,2), (3,4)")),
        ("\\{1;2\\}", "1,2;3", ("\\{1;2\\}", "1,2;3")),
    ],
)
def test_judge(gold, answer, expected):
    assert judge(gold, answer) == expected


@pytest.mark.parametrize("code", NAMES)
def test_a_number_with_a_unit_of_any_language_is_that_number(code):
    units = [unit for _, unit in words_of(code)]
    assert len(set(units)) == len(units) >= 20
    for unit in units:
        for text in (f"12 {unit}", f"12{unit}", f"12\\ {unit}.", f"12\\,\\text{{{unit}}}", f"12 {unit}²"):
            assert judge("12", text) is True and judge("13", text) is False, text
        for text in (f"12 {unit} 3", f"12 {unit} {unit}", f"{unit}{unit} 12"):
            assert judge("12", text) == ("12", tidy(to_latex(text)))


SCALES = """
    thousand million dozen 万 千 百 億 亿 半 割 打 만 천 억 백 тысяч тысячи тыс млн миллион миллиона пол
    mil millón millones docena mille million millions douzaine tausend Tausend Million
    Millionen Dutzend mila milione milioni milhão milhões dúzia ألف آلاف مليون พัน
    หมื่น แสน ล้าน โหล nghìn ngàn triệu trăm ribu juta lusin אלף אלפים מיליון mii milioane
    elfu laki milioni dazeni হাজার লাখ কোটি ডজন వేలు లక్షలు కోట్లు हज़ार लाख करोड़
    दर्जन x π i Viertel Drittel Billionen nicht falsch etwa tercios cuartos billones decenas veintena tiers quarts
    centaines dizaine vingtaines environ terzi quarti centinaia decine circa terços trilhões dezenas трети четверти
    триллионов сотен неверно примерно triliun sepertiga trilioane sferturi nusu অর্ধেক సగం आधा तिहाई
"""


def test_words_that_change_a_number_are_no_units():
    """Thousands, millions, dozens and halves, in the languages that have units."""
    for word in SCALES.split():
        assert judge("12", f"12 {word}") is not True, word


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("12", "saa 12"),
        ("500", "Rp 500"),
        ("500", "R$ 500"),
        ("20", "20 de ore"),
        ("60", "60 км/ч"),
        ("5", "5 יום"),
        ("7", "7।"),
    ],
)
def test_what_stands_around_a_number(gold, answer):
    assert judge(gold, answer) is True and judge("8", answer) is False


@pytest.mark.parametrize("word", PERCENT)
def test_per_cent_in_words_is_per_cent(word):
    for gold, expected in (("12.5\\%", True), ("0.125", True), ("12", False)):
        assert judge(gold, f"12.5 {word}") is judge(gold, f"12.5\\text{{ {word}}}.") is expected


def test_any_currency_sign_is_dropped():
    signs = [char for char in map(chr, range(0x10FFFF)) if unicodedata.category(char) == "Sc"]
    assert len(signs) > 50
    for sign in signs:
        assert judge("12", f"{sign}12") is judge("12", f"12 {sign}") is judge("-12", f"-{sign} 12") is True


@pytest.mark.parametrize(
    ("text", "latex"),
    [("x⁴", "x^{4}"), ("10⁻³", "10^{-3}"), ("10¹²", "10^{12}"), ("xⁿ⁺¹", "x^{n+1}"), ("a₁₀", "a_{10}"), ("1011₂", "1011_{2}")],
)
def test_raised_and_lowered_signs(text, latex):
    assert to_latex(text) == latex


FORMS = (
    lambda x: str(x),
    lambda x: f"\\frac{{{x.numerator}}}{{{x.denominator}}}",
    lambda x: f"\\dfrac{{{3 * x.numerator}}}{{{3 * x.denominator}}}",
    lambda x: f"$ {x} $",
    lambda x: f"{x}\\text{{ cm}}",
    lambda x: f"x = {x}",
    lambda x: ("-" if x < 0 else "") + "{}\\frac{{{}}}{{{}}}".format(*divmod(abs(x.numerator), x.denominator), x.denominator),
)


@settings(deadline=None, derandomize=True)
@given(st.fractions(max_denominator=50), st.fractions(max_denominator=50), st.sampled_from(FORMS[:5]), st.sampled_from(FORMS))
def test_fractions_are_equal_exactly_where_their_values_are(x, y, form, other):
    assert judge(form(x), other(x)) is True
    assert judge(form(x), other(y)) in ([True] if x == y else [False])


@settings(deadline=None, derandomize=True)
@given(st.decimals(-(10**6), 10**6, places=4), st.sampled_from("0０٠०০๐౦"))
def test_decimals_in_any_script_and_grouping(x, zero):
    """`१,२३४.५०००` for 1234.5, also with European and with thin-space separators; a first digit more is another number."""
    american = f"{x:,.4f}"
    swapped = american.translate(str.maketrans(",.", ".,"))
    for text in (american, swapped, american.replace(",", "\u202f"), american.replace(",", "'")):
        native = "".join(chr(ord(zero) + int(c)) if c.isdecimal() else c for c in text)
        assert judge(f"{x:f}", native) is True
        assert judge(str(Fraction(x)), "1" + native.lstrip("-")) is not True


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.text(max_size=80), st.one_of(st.text(max_size=80), st.text(alphabet="{}\\boxed0,./%$ ", max_size=120)))
def test_nothing_raises_and_identical_texts_are_right(gold, answer):
    for form in ("boxed", "last_number"):
        found = extract(answer, form)
        assert found is None or len(found) <= MAX_ANSWER_CHARS + 1
    verdict = judge(gold, answer)
    assert isinstance(verdict, bool) or all(isinstance(part, str) for part in verdict)
    assert judge("1" + gold, "1" + gold) is True or gold.count("{") + gold.count("}")


def judge_in_each_form(text: str) -> None:
    for form in ("boxed", "last_number"):
        judge("5", extract(text, form) or "")


@pytest.mark.parametrize(
    "unit",
    ["\\boxed{", "\\boxed{5}", "box", "\\boxed", "{", "}", "<answer>", "</answer>", "9", "1 ", "-", "\\frac{", "٣", "$", "1,"],
)
def test_work_is_linear_in_hostile_text(unit):
    short, long = (unit * (chars // len(unit)) for chars in (10_000, 80_000))
    to_latex(unit)
    lines = [lines_run(partial(judge_in_each_form, text)) for text in (short, long)]
    assert lines[1] <= 9 * lines[0] + 100
