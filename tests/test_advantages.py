"""Advantages against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from jaxrl_ml.advantages import group_advantages, learning_rows, mixed_groups, overlong_penalty

REWARDS = np.array([1.0, 0.0, 0.0, 2.0, 2.0, 2.0])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # mean 1/3, std (ddof 0) √2/3 = 0.4714045, plus 1e-4
        ("grpo", [1.4139137, -0.7069568, -0.7069568]),
        ("dr_grpo", [2 / 3, -1 / 3, -1 / 3]),
        ("rloo", [1.0, -0.5, -0.5]),  # 1 − mean(0, 0), 0 − mean(1, 0)
    ],
)
def test_by_hand(kind, expected):
    found = group_advantages(REWARDS, 3, kind)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [*expected, 0, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo"])
def test_groups_sum_to_zero_and_do_not_see_each_other(kind):
    rewards = np.random.default_rng(0).normal(size=24)
    found = group_advantages(rewards, 4, kind)
    np.testing.assert_allclose(found.reshape(6, 4).sum(1), 0, atol=1e-6)
    other = rewards.copy()
    other[4:] += 7 * np.arange(20)
    np.testing.assert_array_equal(group_advantages(other, 4, kind)[:4], found[:4])


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo"])
def test_a_group_of_equal_rewards_teaches_nothing_whatever_their_size(kind):
    np.testing.assert_allclose(group_advantages(np.full(8, 1e6 + 0.1), 8, kind), 0, atol=1e-6)


def test_grpo_advantages_do_not_depend_on_the_rewards_scale():
    rewards = np.random.default_rng(0).normal(size=8)
    np.testing.assert_allclose(group_advantages(rewards, 8, "grpo"), group_advantages(100 * rewards, 8, "grpo"), rtol=1e-3)


def test_only_raw_correctness_makes_a_group_mixed():
    correct = np.array([True, True, False, False, True, False])
    np.testing.assert_array_equal(mixed_groups(correct, 2), [False, False, True])


def test_overlong_penalty_is_linear_over_the_last_tokens():
    found = overlong_penalty(np.array([0, 12, 14, 15, 16]), limit=16, zone=4)
    np.testing.assert_allclose(found, [0, 0, -0.5, -0.75, -1.0])


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo"])
@pytest.mark.parametrize("size", [3, 5, 7, 8])
@pytest.mark.parametrize("value", [0.0, 0.1, 0.9, 100.1])
def test_equal_rewards_teach_no_row_whatever_the_rounding(kind, size, value):
    advantages = group_advantages(np.float32([value] * size + [value] * (size - 1) + [value + 1e-3]), size, kind)[:, None]
    mask = np.ones((2 * size, 1), bool)
    assert learning_rows(advantages, mask).tolist() == [False] * size + [True] * size
    assert not learning_rows(advantages, np.arange(2 * size)[:, None] < size).any(), "the loss does not read the others"


def test_a_row_learns_from_the_values_of_all_languages_too():
    advantages, mask = np.zeros((4, 3)), np.array([[True] * 3, [False] * 3] * 2)
    values = np.array([[0.0, 0.0], [0.0, -0.5]])
    assert learning_rows(advantages, mask, values).tolist() == [False, False, True, False]
