from __future__ import annotations

import unicodedata
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxrl_ml.rewards.number import CURRENCY, RELATIVE_TOLERANCE, Number, equal, read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.\\overline{27}", Fraction(3, 11)),
        ("0.1\\overline{6}", Fraction(1, 6)),
        ("0.\\dot{1}4285\\dot{7}", Fraction(1, 7)),
        ("2.\\bar{3}", Fraction(7, 3)),
        ("0,(3)", Fraction(1, 3)),
        ("0.333\\ldots", Fraction(1, 3)),
        ("-0.1666...", Fraction(-1, 6)),
        ("0.12\\ldots", None),
        ("1.6\\times10^{-19}", Fraction(16, 10**20)),
        ("1.6 \\cdot 10^3", 1600),
        ("1.6e-19", Fraction(16, 10**20)),
        ("1E3", 1000),
        ("10^{-7}", Fraction(1, 10**7)),
        ("10^{401}", None),
        ("2^{10}", None),
        ("2e", None),
        ("5.", None),
        ("5 6", None),
        ("12\\text{ cm}", 12),
        ("€12.50", Fraction(25, 2)),
        ("1" * 81, None),
    ],
)
def test_numbers_are_read_exactly_or_not_at_all(text, value):
    number = read(text)
    assert (None if number is None else number.value) == value


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [
        ("0.33", "\\frac{1}{3}", False),
        ("\\frac{1}{3}", "0.333333", True),
        ("\\frac{1}{3}", "0.33333", False),
        ("\\frac{1}{3}", "\\frac{333333}{1000000}", False),
        ("0.0000123", "0.0000118", False),
        ("42", "42.0000001", False),
        ("42.0000001", "42", False),
        ("9\\%".replace("\\", ""), "9", True),
        ("12.5%", "12.5", True),
        ("0.5", "0.5%", False),
        ("0.5%", "0.5", False),
        ("50%", "0.5", True),
        ("15 km", "15 m", False),
        ("15 km", "15 километров", True),
        ("15 km/h", "15 м/с", False),
        ("15 km", "15", True),
        ("$15", "€15", False),
        ("$15", "15 dollars", True),
        ("¥15", "15元", True),
    ],
)
def test_equal(gold, answer, expected):
    assert equal(read(gold), read(answer)) is expected


@settings(deadline=None, derandomize=True)
@given(st.fractions(max_denominator=10**6), st.fractions(max_denominator=10**6), st.booleans(), st.booleans())
def test_only_decimals_that_are_no_integers_have_a_tolerance_and_it_is_relative_to_the_gold_answer(x, y, first, second):
    near = y * RELATIVE_TOLERANCE / 10**6  # so that some differences are below the tolerance
    for gold, other in ((x, x + x * near), (x, x + y), (x * near, x)):
        assume(gold)
        verdict = equal(Number(gold, "", decimal=first), Number(other, "", decimal=second))
        exact = not (first or second) or 1 in (gold.denominator, other.denominator)
        assert verdict is (gold == other if exact else abs(gold - other) <= abs(gold) * RELATIVE_TOLERANCE)


def test_every_sign_of_money_is_one():
    signs = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) == "Sc"]
    assert len(signs) > 60 and all(CURRENCY.fullmatch(sign) for sign in signs)
    others = [chr(code) for code in range(0x20000) if unicodedata.category(chr(code)) not in ("Sc", "Cn")]
    assert not any(map(CURRENCY.fullmatch, others))


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("7 thousand", 7000, ()),
        ("7万元", 70000, ("元",)),
        ("1,5 Millionen Euro", 1_500_000, ("Euro",)),
        ("7千米", 7, ("千米",)),
        ("7 miles", 7, ("miles",)),
        ("18 đô la", 18, ("đô la",)),
        ("30^\\circ", 30, ("°",)),
        ("25^\\circ C", 25, ("°C",)),
        ("5 km^2", 5, ("km^2",)),
        ("60 km/h", 60, ("km", "h")),
        ("RM 18.00", 18, ()),
    ],
)
def test_units_and_multiples(text, value, unit):
    number = read(text)
    assert number is not None and number.value == value and number.unit == unit
