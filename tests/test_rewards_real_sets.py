from __future__ import annotations

import pytest

from jaxrl_ml.rewards.real_sets import RealSet, read, real_sets_agree, rising
from jaxrl_ml.rewards.structure import squeezed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x > 5", RealSet("x", "(5,\\infty)")),
        ("> 5", RealSet("", "(5,\\infty)")),
        ("5 \\ge x > 1", RealSet("x", "(1,5]")),
        ("x \\in [1, 5[", RealSet("x", "[1,5)")),
        ("x < 1 \\OR x > 2", RealSet("x", "(-\\infty,1)\\cup(2,\\infty)")),
        ("x > 1 \\AND x \\le 2", RealSet("x", "(1,\\infty)\\cap(-\\infty,2]")),
        ("|x| \\ge 2", RealSet("x", "(-\\infty,-(2)]\\cup[2,\\infty)")),
        ("\\{x \\mid x > 2\\}", RealSet("x", "(2,\\infty)")),
        ("\\mathbb{R}", RealSet("", "(-\\infty,\\infty)")),
        ("\\text{all real numbers}", RealSet("", "(-\\infty,\\infty)")),
        ("(1,2)", RealSet("", "(1,2)", is_pair=True)),
        ("(1,2]", RealSet("", "(1,2]")),
        ("x < 1 \\OR y > 2", None),
        ("x < 1, x > 2", None),
        ("x + y < 2", None),
        ("a < b < c", None),
        ("5", None),
    ],
)
def test_read(text, expected):
    assert read(text) == expected


def test_two_pairs_are_left_to_others_and_variables_must_agree():
    def equal(gold: str, answer: str) -> bool:
        return squeezed(gold) == squeezed(answer)

    assert real_sets_agree("(1,2)", "(1,2)", equal) is None and real_sets_agree("(1,2)", "1<x<2", equal) is True
    assert real_sets_agree("x>1", "y>1", equal) is False and real_sets_agree("x>1", ">1", equal) is True


def test_rising():
    assert rising("c > b \\ge a").split() == ["a", "\\le", "b", "<", "c"] and rising("a < b > c") == "a < b > c"
