"""A deferred task is made once, when it is needed, and is the task that was asked for."""

from __future__ import annotations

import pytest

from jaxrl_ml.cli import resolved
from jaxrl_ml.tasks.deferred import Deferred
from jaxrl_ml.types import Example, UserError

made = []


def numbers(count: int, *, prefix: str = "") -> list[Example]:
    made.append(count)
    if count < 0:
        raise UserError(f"count={count}")
    return [Example(f"{prefix}{i}", "t") for i in range(count)]


def test_nothing_is_made_before_it_is_looked_at_and_then_once() -> None:
    made.clear()
    task = Deferred(numbers, (3,), {"prefix": "n"})
    assert not made
    assert resolved(task)["arguments"] == [3] and not made
    assert [example.id for example in task] == ["n0", "n1", "n2"] and len(task) == 3
    assert task[-1].id == "n2" and made == [3]


def test_what_goes_wrong_in_the_making_is_raised_at_the_look() -> None:
    task = Deferred(numbers, (-1,))
    for look in (len, lambda task: task[0]):
        with pytest.raises(UserError, match="count=-1"):
            look(task)
