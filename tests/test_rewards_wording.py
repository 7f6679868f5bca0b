from __future__ import annotations

import pytest

from jaxrl_ml.rewards.answer_words import AND, OR
from jaxrl_ml.rewards.wording import Part, Quantity, compound, has_words, parts, quantity, with_connectives


def test_parts():
    assert parts("\\text{Yes, for } n=4") == [Part(True, "yes"), Part(True, "for"), Part(False, "  n=4")]
    assert parts("5\\text{ hours}") == [Part(False, "5 "), Part(True, "hour")]
    assert parts("the number is prime") == [Part(True, "number"), Part(True, "prime")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("odd", True), ("\\text{odd}", True), ("5 km", True), ("偶数", True), ("sí", True), ("n \\text{ is odd}", True),
        ("red", True), ("red x + 1", False),
        ("xyz", False), ("\\sin x", False), ("sqrt(2)", False), ("lcm(2,3)", False), ("x_{max}", False), ("\\text{A}", False),
        ("\\operatorname{lcm}(2,3)", False), ("\\begin{pmatrix}1\\end{pmatrix}", False), ("α+β", False), ("abc", False),
    ],
)  # fmt: skip
def test_words_are_no_products_of_variables(text, expected):
    assert has_words(text) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5\\sqrt{2}\\text{ cm}^2", Quantity("5\\sqrt{2}", ("cm^2",))),
        ("60 \\text{ miles per hour}", Quantity("60", ("mile", "per", "hour"))),
        ("12\\text{ red apples}", Quantity("12", ("red", "apple"))),
        ("12\\text{ dozen}", None),
        ("12\\text{ or more}", None),
        ("x\\text{ apples}", None),
        ("n\\text{ is odd}", None),
        ("5", None),
        ("km m", None),
    ],
)
def test_quantity(text, expected):
    assert quantity(text) == expected


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("5\\text{ hours } 20\\text{ minutes}", ["5", "20"]),
        ("5 h 20 min", ["5", "20"]),
        ("5小时20分钟", ["5", "20"]),
        ("5 Stunden und 20 Minuten", ["5", "20"]),
        ("35^\\circ 20' 15''", ["35", "20", "15"]),
        ("3 ft 4 in", ["3", "4"]),
        ("3 cm, 4 cm", None),
        ("5 hours", None),
        ("5 apples 3", None),
    ],
)
def test_compound(text, values):
    quantities = compound(text)
    assert (None if quantities is None else [quantity.value for quantity in quantities]) == values


@pytest.mark.parametrize(("words", "command"), [(AND, "\\AND"), (OR, "\\OR")])
def test_and_and_or_of_any_language_connect_numbers(words, command):
    for word in words:
        if word not in ("&", "ו-", "as well as"):
            for text in (f"2 {word} 3", f"2 \\text{{ {word} }} 3"):
                assert with_connectives(text).replace(" ", "") == f"2{command}3", text
    assert with_connectives("2y 3") == "2y 3" and with_connectives("x y") == "x y"
