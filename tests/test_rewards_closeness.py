from __future__ import annotations

import pytest
import sympy

from jaxrl_ml.rewards.closeness import equal


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [
        ("1/3", "0.333333", True),
        ("1/3", "0.33333", False),
        ("sqrt(2)", "1.41421356", True),
        ("sqrt(2)", "1.414", False),
        ("sqrt(2)*sqrt(3)", "sqrt(6)", True),
        ("pi", "355/113", False),
        ("1e-9*pi", "2e-9*pi", False),
        ("1 - 2**(-60)", "1 - 2**(-61)", False),
        ("10**100", "10**100 + 1", False),
        ("1/factorial(2004)", "10**(-40)", False),
        ("3", "3.0000001", False),
        ("3", "3.0", True),
        ("exp(I*pi)", "-1", True),
        ("oo", "oo", None),
        ("x", "1", None),
    ],
)
def test_equal(gold, answer, expected):
    assert equal(sympy.sympify(gold), sympy.sympify(answer)) is expected


def test_the_symbol_i_alone_is_the_imaginary_unit():
    i, x = sympy.Symbol("i", real=True), sympy.Symbol("x")
    assert equal(i**2, sympy.Integer(-1)) is True and equal(i + x, x + i) is None


def test_matrices_and_other_objects_are_left_to_math_verify():
    assert equal(sympy.Matrix([1]), sympy.Matrix([1])) is None and equal("a", "a") is None
