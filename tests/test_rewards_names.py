from __future__ import annotations

import pytest

from jaxrl_ml.rewards.names import assignments, in_order, is_equation, members, named, of_one_letter, untupled


def test_named():
    assert named("x = 3") == ("x", "3") and named("3") == ("", "3") and named("(a = 1)") == ("", "(a = 1)")
    assert named("x = y = 3") == ("x=y", "3")


@pytest.mark.parametrize("name", ["x", "x_1", "f(2)", "AB", "\\angle ABC", "|AB|", "\\sin x", "a_{n+1}", "\\Xi_{1}", "f'(x)"])
def test_names_of_values_are_no_equations(name):
    assert not is_equation(name)


@pytest.mark.parametrize("side", ["x+y", "y^2", "xy", "|x|", "2x", "\\frac{x}{a}", "a - 1"])
def test_sides_of_equations_are_no_names(side):
    assert is_equation(side)


@pytest.mark.parametrize(("name", "expected"), [("2x", True), ("x^2", True), ("x", False), ("a^2+b^2", False), ("f(x)", False)])
def test_without_a_name_in_the_gold_answer_an_answer_may_have_any_but_of_one_variable(name, expected):
    assert is_equation(name, of_one_variable=True) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(x, y) = (1, 2)", "x = 1, y = 2"),
        ("(x_1,x_2)=(f(1),-2)", "x_1 = f(1), x_2 = -2"),
        ("(x, y) = (1, 2, 3)", None),
        ("(x, y) = (1, 2) + (3, 4)", None),
        ("(1, 2) = (x, y)", None),
        ("f(x, y) = (1, 2)", None),
    ],
)
def test_untupled(text, expected):
    assert untupled(text) == (text if expected is None else expected)


def test_assignments_have_a_name_each():
    assert assignments(["x = 1", "y = 2"]) == {"x": "1", "y": "2"}
    assert assignments(["x_{1} = 1", "x_2 = 2"]) == {"x_1": "1", "x_2": "2"}
    for items in (["x = 1"], ["x = 1", "2"], ["x = 1", "x = 2"], ["x = 1", "y = z = 2"], ["2x = 1", "y = 2"]):
        assert assignments(items) is None


def test_values_stand_in_the_order_of_the_alphabet_where_their_names_follow_each_other():
    assert in_order({"y": "2", "x": "1"}) == ["1", "2"] and in_order({"c": "3", "a": "1", "b": "2"}) == ["1", "2", "3"]
    assert in_order({"m": "1", "b": "2"}) == ["1", "2"] and in_order({"x_2": "1", "x_1": "2"}) == ["1", "2"]


def test_indices_of_one_letter_tell_roots_apart():
    assert of_one_letter({"x_1": "1", "x_2": "2"}) and not of_one_letter({"x": "1", "y": "2"})


def test_members():
    assert members("(1, (2, 3))") == ["1", "(2, 3)"] and members("\\{1, 2\\}") == ["1", "2"] and members("1, 2") is None
