"""Runs that do not learn say so: which steps count, when a warning is due, and what it tells the user to do."""

from __future__ import annotations

import itertools

import pytest

from jaxrl_ml.analysis.learning import (
    METRIC,
    PATIENCE,
    LearningWatch,
    cause_of_no_learning,
    learning_summary,
    plain_reward_warning,
)

LEARNS = {
    "reward/mean": 0.4,
    "reward/correct": 0.3,
    "rollout/mixed_groups": 0.5,
    "rollout/advantage_rows": 0.5,
    "rollout/learned_rows": 1.0,
    "rollout/truncated": 0.1,
    "policy/grad_norm": 0.2,
}
NOTHING = {"rollout/advantage_rows": 0.0, "rollout/mixed_groups": 0.0, "policy/grad_norm": 0.0}
SFT = {"sft/loss_tokens": 100.0, "sft/grad_norm": 0.5, "sft/loss": 1.0}
CAUSES = {
    "all wrong": (NOTHING | {"reward/correct": 0.0, "reward/mean": 0.0}, "no completion is right (mean reward 0)"),
    "all equal, below one": (
        NOTHING | {"reward/correct": 0.0, "reward/mean": 0.9, "reward/plain_max": 0.9, "reward/plain_min": 0.9},
        "no completion is right (mean reward 0.9, right from 1 on)",
    ),
    "cut off": (NOTHING | {"reward/correct": 0.0, "rollout/truncated": 0.97}, "97.0% were cut off: raise sampling.max_compl"),
    "all right": (NOTHING | {"reward/correct": 1.0}, "all completions are right: give harder problems"),
    "each group equal": (NOTHING, "the rewards are equal within each group: take problems of another difficulty"),
    "all left out": (NOTHING | {"rollout/learned_rows": 0.0, "rollout/truncated": 1.0}, "no row is left in the loss: 0.0%"),
    "no update": (
        {k: v for k, v in (LEARNS | NOTHING | {"reward/correct": 0.0}).items() if k != "policy/grad_norm"},
        "no completion is right",
    ),
    "zero gradient": ({"policy/grad_norm": 0.0}, "the gradient is exactly zero though rewards differ: check loss.clip_low"),
}


@pytest.mark.parametrize("name", CAUSES)
def test_a_step_that_teaches_nothing_says_why_and_what_to_do(name):
    changes, words = CAUSES[name]
    text = cause_of_no_learning(LEARNS | changes)
    assert text is not None and words in text and "\n" not in text


def test_steps_that_teach_something_have_no_cause():
    assert cause_of_no_learning(LEARNS) is None
    assert cause_of_no_learning(LEARNS | {"rollout/mixed_groups": 0.0}) is None, "shaped rewards teach, too"
    assert cause_of_no_learning(SFT) is None
    # With a KL term there is a gradient, but not one from rewards.
    assert cause_of_no_learning(LEARNS | NOTHING | {"policy/grad_norm": 0.3}) is not None


@pytest.mark.parametrize("changes", [{"sft/loss_tokens": 0.0}, {"sft/grad_norm": 0.0}])
def test_demonstrations_that_teach_nothing_are_a_cause(changes):
    assert "demonstrations" in cause_of_no_learning(SFT | changes)


def watched(steps, stage="grpo", **start):
    """The warnings after each step."""
    watch = LearningWatch(**start)
    return [watch.update(stage, metrics) for metrics in steps], watch


@pytest.mark.parametrize("stage", ["grpo", "sft"])
def test_warnings_come_after_5_10_20_and_40_steps_in_a_row(stage):
    step = LEARNS | CAUSES["all wrong"][0] if stage == "grpo" else SFT | {"sft/grad_norm": 0.0}
    warnings, watch = watched([step] * 50, stage)
    assert [i + 1 for i, texts in enumerate(warnings) if texts] == [PATIENCE, 2 * PATIENCE, 4 * PATIENCE, 8 * PATIENCE]
    assert watch.steps_without_learning == 50
    (text,) = warnings[2 * PATIENCE - 1]
    assert text.startswith(f"warning: {stage} has learnt nothing for 10 steps: ") and "\n" not in text


def test_a_step_that_learns_and_a_new_stage_start_the_count_again():
    nothing = LEARNS | CAUSES["all right"][0]
    warnings, watch = watched([nothing] * 4 + [LEARNS] + [nothing] * 4)
    assert not any(warnings) and watch.steps_without_learning == 4
    assert watch.update("another", nothing) == [] and watch.steps_without_learning == 1


def test_causes_that_alternate_are_counted_together():
    wrong, right = LEARNS | CAUSES["all wrong"][0], LEARNS | CAUSES["all right"][0]
    warnings, _ = watched([wrong, right] * 3)
    assert len(warnings[PATIENCE - 1]) == 1


def test_a_resumed_run_goes_on_counting():
    nothing = LEARNS | CAUSES["all wrong"][0]
    whole, watch = watched([nothing] * 12)
    for cut in range(1, 12):
        before, first = watched([nothing] * cut)
        after, second = watched([nothing] * (12 - cut), stage="grpo", steps_without_learning=first.steps_without_learning)
        assert second.steps_without_learning == 12 - cut, "another stage than the one it was stopped in"
        watch = LearningWatch("grpo", first.steps_without_learning)
        after = [watch.update("grpo", nothing) for _ in range(12 - cut)]
        assert before + after == whole and watch.steps_without_learning == 12


def test_shaped_rewards_without_a_mixed_group_are_told():
    step = LEARNS | {"rollout/mixed_groups": 0.0, "reward/correct": 0.0}
    warnings, watch = watched([step] * 10)
    assert [i + 1 for i, texts in enumerate(warnings) if texts] == [PATIENCE, 2 * PATIENCE]
    (text,) = warnings[PATIENCE - 1]
    assert "no group with both right and wrong completions for 5 steps (0.0% are right)" in text and "SFT on" in text
    assert watch.steps_without_learning == 0


def test_a_reward_of_0_9_is_told_once_a_stage():
    step = LEARNS | {"reward/correct": 0.0, "rollout/mixed_groups": 0.0, "reward/plain_min": 0.0, "reward/plain_max": 0.9}
    warnings, watch = watched([step] * 20)
    assert [i + 1 for i, texts in enumerate(warnings) if texts] == [PATIENCE]
    (text,) = warnings[PATIENCE - 1]
    assert "which are from 0 to 0.9: 1 or more counts as correct, so no completion is correct" in text
    assert "reward={'answer': (function, 1.0), 'format': (function, 0.2)}, correct='answer'" in text
    assert len([text for _ in range(PATIENCE) for text in watch.update("next", step)]) == 1


def test_a_reward_over_one_is_told_at_once_and_once_a_stage():
    step = LEARNS | {"reward/correct": 0.969, "reward/plain_min": 0.0, "reward/plain_max": 2.0}
    warnings, watch = watched([step] * 20)
    assert [len(texts) for texts in warnings] == [1] + [0] * 19
    assert "from 0 to 2: 1 or more counts as correct, so bonuses can make a wrong answer count as correct" in warnings[0][0]
    assert len(watch.update("next", step)) == 1


def test_a_reward_in_0_and_1_and_one_that_returns_scores_are_not_warned_of():
    plain = LEARNS | {"reward/plain_min": 0.0, "reward/plain_max": 1.0}
    scores = LEARNS | {"reward/correct": 0.2}
    warnings, _ = watched([plain, scores] * 20)
    assert not any(warnings)
    # Nobody is right for a few steps, and then somebody is.
    low = plain | {"reward/plain_max": 0.5}
    warnings, _ = watched(([low] * (PATIENCE - 1) + [plain]) * 5)
    assert not any(itertools.chain.from_iterable(warnings))


@pytest.mark.parametrize(
    ("low", "high", "warns"),
    [
        (0, 0, False),
        (0, 1, False),
        (1, 1, False),
        (-1, 1, False),
        (0, 0.9, True),
        (0.9, 0.9, True),
        (-1, 0, True),
        (0, 1.9, True),
        (1.5, 1.5, True),
        (0, float("inf"), True),
        (float("nan"), float("nan"), False),
    ],
)
def test_plain_rewards_that_do_not_fit_the_rule(low, high, warns):
    text = plain_reward_warning("evaluation test", low, high)
    assert (text is not None) == warns
    assert text is None or (text.startswith("warning: evaluation test: ") and "\n" not in text)


def test_the_summary_tells_of_stages_that_learnt_nothing_for_long():
    counts = {"sft": [0, 1, 0, 1, 2], "grpo": [1, 2, 3, 4, 5, 6, 0, 1], "late": [0, 0]}
    records = [{"step": i, "stage": stage, METRIC: float(n)} for stage, ns in counts.items() for i, n in enumerate(ns)]
    records.append({"step": 9, "stage": "sft", "eval/test/accuracy": 0.5})
    assert learning_summary(records) == ["warning: grpo learnt nothing in 7 of 8 steps, up to 6 in a row"]
    assert learning_summary([]) == learning_summary([{"step": 1, "stage": "old"}]) == []


def test_steps_without_any_reward_do_not_end_the_count_of_rewards_below_one():
    watch, warnings = LearningWatch(), []
    values = {"reward/plain_min": 0.0, "reward/correct": 0.0, "rollout/advantage_rows": 4}
    for step in range(8):
        warnings += watch.update("grpo", {**values, "reward/plain_max": 0.5 * (step % 2)})
    assert not any("no completion is correct" in text for text in warnings)  # four steps below one
    for high in (0.0, 0.5):
        warnings += watch.update("grpo", {**values, "reward/plain_max": high})
    assert sum("no completion is correct" in text for text in warnings) == 1
