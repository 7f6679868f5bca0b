"""Whether two sympy numbers or equations are equal; numbers exactly, or to a relative tolerance where one is a decimal.

Only the verifier's process imports this module, since it imports sympy.
"""

from __future__ import annotations

from collections.abc import Callable

import sympy
from sympy.core.relational import Relational
from sympy.functions.elementary.trigonometric import TrigonometricFunction

TOLERANCE = sympy.Rational(1, 10**6)
"""How far, relative to the gold answer, a decimal may be from it (as `number.RELATIVE_TOLERANCE`)."""
_DIGITS, _ENOUGH, _MAX_DIGITS = 30, 100, 5000


def equal(gold: object, answer: object) -> bool | None:
    """Whether two numbers are equal; None where either is no finite number.

    Numbers without decimals are compared exactly. Irrational numbers are evaluated until 100 digits agree or differ. Where
    either has a decimal and neither is an integer, they may differ by TOLERANCE times the gold answer.
    """
    gold, answer = (_with_imaginary_unit(value) for value in (gold, answer))
    if not all(isinstance(value, sympy.Expr) and not value.free_symbols for value in (gold, answer)):
        return None
    of_percent = _percentage(gold), _percentage(answer)
    if (of_percent[0] is None) != (of_percent[1] is None):  # 9 stands for 9 %, but 0.5 not for 0.5 %
        bare = [
            value if percentage is None else percentage for value, percentage in zip((gold, answer), of_percent, strict=True)
        ]
        lenient = all(value.is_Integer for value in bare) or (of_percent[0] is not None and abs(bare[0]) >= 1)
        if lenient and bare[0] == bare[1]:
            return True
    rounded = any(value.atoms(sympy.Float) for value in (gold, answer))
    gold, answer = (_exact(value) for value in (gold, answer))
    if gold == answer and gold.is_finite:
        return True
    if gold.is_Rational and answer.is_Rational:
        distance, size = abs(gold - answer), abs(gold)
    else:
        size = abs(gold.evalf(_DIGITS))
        if not (size.is_Number and size.is_finite):
            return None
        digits = _DIGITS + _ENOUGH + 2 * (abs(int(sympy.log(size, 10))) if size else 0)
        distance = abs((gold - answer).evalf(_DIGITS, maxn=digits)) if digits < _MAX_DIGITS else sympy.nan
        if not (distance.is_Number and distance.is_finite):
            return None
        if distance == 0 or (size and distance * 10**_ENOUGH <= min(size, 1 / size)):
            return True
    if not rounded or gold.is_integer or answer.is_integer:
        return bool(distance == 0)
    return bool(distance <= size * TOLERANCE)


def equations_equal(solve_and_compare: Callable[..., bool], gold: Relational, answer: Relational, *precision: int) -> bool:
    """Whether two relations have the same solutions: math-verify's comparison, where it can tell.

    It solves both and compares the lists, but sympy finds none where there are no real ones or it knows no method, so that any
    two such equations would be equal; and of a periodic function it finds some only.
    """
    if isinstance(gold, sympy.Eq) and isinstance(answer, sympy.Eq):
        sides = [equation.lhs - equation.rhs for equation in (gold, answer)]
        if all(side.free_symbols for side in sides):
            ratio = sympy.cancel(sides[0] / sides[1])
            if not ratio.free_symbols and ratio.is_finite and ratio.is_zero is False:
                return True
        if any(side.has(TrigonometricFunction) or not sympy.solve(side, side.free_symbols) for side in sides):
            return False
    return solve_and_compare(gold, answer, *precision)


def _with_imaginary_unit(value: object) -> object:
    """The value with the symbol i, where it is the only one, as the imaginary unit."""
    symbols = value.free_symbols if isinstance(value, sympy.Expr) else ()
    return value.xreplace(dict.fromkeys(symbols, sympy.I)) if {symbol.name for symbol in symbols} == {"i"} else value


def _percentage(value: sympy.Expr) -> sympy.Expr | None:
    """The 50 of `50\\%`, which latex2sympy keeps as a product; None where there is no percent sign."""
    hundredth = sympy.UnevaluatedExpr(sympy.Rational(1, 100))
    return value.args[0] if value.is_Mul and len(value.args) == 2 and value.args[1] == hundredth else None


def _exact(value: sympy.Expr) -> sympy.Expr:
    """The number with its decimals as the fractions that they were written as."""
    return value.xreplace({number: sympy.Rational(str(number)) for number in value.atoms(sympy.Float)}).doit()
