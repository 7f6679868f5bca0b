"""Mixtures: exact shares over every prefix, parts in order, nothing that depends on the size."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_ml.tasks.mixture import Mixture, Subset
from jaxrl_ml.types import Example, UserError


class Part:
    """A task that is its index, however long."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Example:
        assert 0 <= index < self.size
        return Example(id=str(index), task=self.name)


def parts(*sizes):
    return [Part(str(number), size) for number, size in enumerate(sizes)]


def drawn(mixture, count):
    examples = [mixture[i] for i in range(count)]
    return np.array([int(example.task) for example in examples]), [int(example.id) for example in examples]


weights = st.lists(
    st.one_of(st.integers(1, 60), st.sampled_from([0.1, 0.7, np.float32(0.25), 1 / 3, 2.5])), min_size=1, max_size=7
)


@settings(deadline=None, derandomize=True, max_examples=80)
@given(weights)
def test_every_prefix_is_within_one_of_its_share(weights):
    tasks, count = parts(*[10**6] * len(weights)), 500
    order, _ = drawn(Mixture(tasks, weights, size=count), count)
    exact = [Fraction(float(weight)).limit_denominator(1000) for weight in weights]
    for part, weight in enumerate(exact):
        counts = np.cumsum(order == part)
        due = np.arange(1, count + 1) * float(weight / sum(exact))
        assert np.abs(counts - due).max() < 1 + 1e-9


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5)), min_size=1, max_size=5))
def test_each_part_is_walked_in_order_and_wraps_round(pairs):
    sizes, weights = zip(*pairs, strict=True)
    order, ids = drawn(Mixture(parts(*sizes), weights, size=200), 200)
    for part, size in enumerate(sizes):
        own = [i for i, where in zip(ids, order, strict=True) if where == part]
        assert own == [turn % size for turn in range(len(own))]


@settings(deadline=None, derandomize=True, max_examples=40)
@given(weights, st.integers(1, 10**12))
def test_an_index_gives_the_same_example_whatever_the_size(weights, index):
    short, long = (Mixture(parts(*[7] * len(weights)), weights, size=size) for size in (index + 1, 10**13))
    assert short[index] == long[index]


def test_shares_are_exact_far_out():
    weights, far = (0.7, 0.2, 0.1), 10**12
    order = [int(Mixture(parts(3, 3, 3), weights, size=far + 1000)[far + i].task) for i in range(1000)]
    assert np.bincount(order).tolist() == [700, 200, 100]


def test_weights_without_a_short_pattern_keep_their_shares():
    weights = np.sqrt([2.0, 3.0, 5.0, 7.0, 11.0])
    order, _ = drawn(Mixture(parts(*[9] * 5), weights.tolist(), size=20_000), 20_000)
    assert np.abs(np.bincount(order) - 20_000 * weights / weights.sum()).max() < 1.5


def test_size_is_that_of_the_parts_together_by_default():
    tasks = parts(3, 10**9)
    mixture = Mixture(tasks, (1, 1))
    assert len(mixture) == 10**9 + 3
    assert mixture[len(mixture) - 1].task == "0"  # 0 1 0 1 …
    assert len(list(Mixture(parts(2, 1), (2, 1)))) == 3


@pytest.mark.parametrize(
    ("tasks", "weights", "size", "message"),
    [
        ([], [], None, "0 tasks and 0 weights"),
        (parts(1), [1, 2], None, "1 tasks and 2 weights"),
        (parts(1, 0), [1, 1], None, "task 1 is empty"),
        (parts(1, 1), [1, 0], None, "weight 0 of task 1"),
        (parts(1, 1), [-1, 1], None, "weight -1 of task 0"),
        (parts(1, 1), [float("nan"), 1], None, "weight nan of task 0"),
        (parts(1, 1), [float("inf"), 1], None, "weight inf of task 0"),
        (parts(1, 1), [1, 1e-9], None, "weight 1e-09 of task 1 is below"),
        (parts(1), [1], 0, "size=0"),
    ],
)
def test_what_cannot_be_mixed_is_named(tasks, weights, size, message):
    with pytest.raises(UserError, match=message):
        Mixture(tasks, weights, size)


def test_indices_outside_are_refused():
    for task in (Mixture(parts(2), [1]), Subset(Part("0", 5), [4, 1])):
        assert len(task) == 2
        for index in (-1, 2):
            with pytest.raises(IndexError, match=f"{index} is outside 0..1"):
                task[index]


def test_a_subset_is_its_indices_in_order():
    assert [example.id for example in Subset(Part("0", 5), [4, 1, 1])] == ["4", "1", "1"]
    assert list(Subset(Part("0", 5), [])) == []
