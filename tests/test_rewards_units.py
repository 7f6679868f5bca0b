from __future__ import annotations

from fractions import Fraction

import pytest

from jaxrl_ml.rewards.units import differ, totals


@pytest.mark.parametrize(
    ("unit", "other", "expected"),
    [
        ("km", "m", True),
        ("km", "километров", False),
        ("km", "km/h", True),
        ("km/h", "km per hour", False),
        ("km^2", "km", True),
        ("km^2", "square km", False),
        ("cm^2", "平方厘米", False),
        ("m^2", "m^3", True),
        ("$", "€", True),
        ("$", "dollars", False),
        ("°", "rad", True),
        ("°C", "°F", True),
        ("%", "km", True),
        ("apples", "oranges", True),
        ("apples", "units", False),
        ("", "km", False),
    ],
)
def test_differ_is_symmetric(unit, other, expected):
    sides = [tuple(text.replace("/", " ").split()) for text in (unit, other)]
    assert differ(*sides) is differ(*sides[::-1]) is expected


def test_a_quantity_in_several_units_has_a_total_in_each_scale_that_has_them_all():
    def total(*parts: tuple[int | str, str]) -> dict[int, Fraction]:
        return totals([(Fraction(value), unit) for value, unit in parts])

    assert total((3, "hours"), (20, "minutes")) == total((200, "Minuten")) == total(("10/3", "h"))
    assert not total((3, "hours"), (20, "cm")) and not total((3, "apples"))
    assert total((2, "dollars"), (50, "cents")).items() & total(("2.5", "$")).items()
    assert not total(("2.5", "€")).items() & total(("2.5", "$")).items()
