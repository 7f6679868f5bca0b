"""From judged rollouts to the batch: baselines, filters, overlong rows, resampling rounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from jaxrl_ml.advantages import group_advantages
from jaxrl_ml.config import GRPOStage, LossConfig, SamplingConfig
from jaxrl_ml.grpo import Experience, Idle, assemble, describe, describe_languages, merge, select
from jaxrl_ml.types import Prompts, Rollout, Scores, Tags

Q, G, P, C = 4, 2, 5, 16


def stage(**loss: object) -> GRPOStage:
    sampling = SamplingConfig(max_prompt_tokens=P, max_completion_tokens=C)
    return GRPOStage([], None, prompts_per_step=Q, group_size=G, sampling=sampling, loss=LossConfig(**loss))


def experience(seed: int = 0, correct: list[int] | None = None) -> Experience:
    """Four groups of two: none right, one right, both right, one right; row 7 is cut off at the limit."""
    rng = np.random.default_rng(seed)
    lengths = np.array([3, 4, 5, 6, 2, 1, 4, 16], np.int32)
    mask = np.arange(C)[None] < lengths[:, None]
    verdicts = np.array([0, 0, 1, 0, 1, 1, 0, 1] if correct is None else correct, bool)
    prompts = Prompts(rng.integers(0, 9, (Q, P)).astype(np.int32), np.ones((Q, P), bool), np.arange(Q, dtype=np.uint32))
    tokens = rng.integers(0, 9, (Q * G, C)).astype(np.int32)
    rollout = Rollout(prompts, tokens, lengths, mask, np.where(mask, -1.0, 0.0).astype(np.float32), lengths == C)
    shaped = verdicts + 0.1 * np.arange(Q * G) % 0.3  # a bonus that also varies where nothing is right
    scores = Scores(shaped.astype(np.float32), verdicts, {"length": lengths.astype(np.float32)})
    scores = replace(scores, details={"check/row": np.arange(Q * G, dtype=np.float32)})
    return Experience([str(q) for q in range(Q)], rollout, [f"text {b}" for b in range(Q * G)], scores)


def test_advantages_lie_on_sampled_tokens_and_sum_to_zero_in_groups() -> None:
    found = experience()
    batch = assemble(found.rollout, found.scores, stage(advantage="dr_grpo"))
    assert batch.advantages.shape == (Q * G, C)
    assert (batch.advantages[~batch.rollout.action_mask] == 0).all()
    np.testing.assert_allclose(batch.advantages[:, 0].reshape(Q, G).sum(1), 0, atol=1e-6)
    np.testing.assert_allclose(batch.advantages[:, 0], group_advantages(found.scores.rewards, G, "dr_grpo"))
    assert (batch.loss_mask == batch.rollout.action_mask).all()


def test_filters_read_raw_correctness_not_the_shaped_reward() -> None:
    found = experience()
    assert (found.scores.rewards.reshape(Q, G).std(1) > 0).all(), "the bonus varies in every group"
    batch = assemble(found.rollout, found.scores, stage(filter="drop"))
    np.testing.assert_array_equal(batch.loss_mask.any(1), np.repeat([False, True, False, True], G))


def test_overlong_rows_are_masked_or_penalised() -> None:
    found = experience()
    masked = assemble(found.rollout, found.scores, stage(overlong="mask"))
    np.testing.assert_array_equal(masked.loss_mask.any(1), [True] * 7 + [False])
    penalised = assemble(found.rollout, found.scores, stage(overlong="penalty", overlong_tokens=4, advantage="dr_grpo"))
    plain = assemble(found.rollout, found.scores, stage(advantage="dr_grpo"))
    np.testing.assert_allclose((penalised.advantages - plain.advantages)[:, 0], [0] * 6 + [0.5, -0.5], atol=1e-6)


def test_width_is_the_bucket_of_the_longest_row() -> None:
    found = experience()
    assert assemble(found.rollout, found.scores, stage()).advantages.shape == (Q * G, 16)
    short = select(found, np.array([0, 1, 2]), G)
    assert assemble(short.rollout, short.scores, stage()).rollout.completions.shape == (3 * G, 8)


def test_select_takes_whole_groups() -> None:
    found = experience()
    picked = select(found, np.array([1, 3]), G)
    assert picked.ids == ["1", "3"]
    assert picked.texts == ["text 2", "text 3", "text 6", "text 7"]
    np.testing.assert_array_equal(picked.rollout.completions, found.rollout.completions[[2, 3, 6, 7]])
    np.testing.assert_array_equal(picked.rollout.prompts.tokens, found.rollout.prompts.tokens[[1, 3]])
    np.testing.assert_array_equal(picked.scores.parts["length"], [5, 6, 4, 16])
    np.testing.assert_array_equal(picked.scores.details["check/row"], [2, 3, 6, 7])


def test_merge_joins_rounds_in_order() -> None:
    first, second = experience(0), experience(1)
    both = merge([first, second])
    assert len(both.ids) == 2 * Q and both.rollout.completions.shape == (2 * Q * G, C)
    again = select(both, np.arange(Q, 2 * Q), G)
    np.testing.assert_array_equal(again.rollout.completions, second.rollout.completions)
    np.testing.assert_array_equal(again.scores.rewards, second.scores.rewards)
    np.testing.assert_array_equal(again.scores.details["check/row"], second.scores.details["check/row"])
    assert again.texts == second.texts


def test_describe_counts_what_happened() -> None:
    found = experience()
    metrics = describe(found, G)
    assert metrics["reward/correct"] == pytest.approx(4 / 8)
    assert metrics["rollout/mixed_groups"] == pytest.approx(2 / 4)
    assert metrics["rollout/sampled_tokens"] == found.rollout.lengths.sum()
    assert metrics["rollout/truncated"] == pytest.approx(1 / 8)
    assert metrics["rollout/length_tokens"] == pytest.approx(found.rollout.lengths.mean())
    assert metrics["reward/nonfinite"] == 0
    assert metrics["check/row"] == pytest.approx(3.5)


def test_a_reward_cannot_hide_a_metric_behind_a_name_of_its_own() -> None:
    found = experience()
    expected = describe(found, G)
    ones = np.ones(Q * G, np.float32)
    clash = replace(found.scores, parts={"correct": ones, "nonfinite": ones}, details={"rollout/truncated": ones})
    metrics = describe(found._replace(scores=clash), G)
    for name in ("reward/correct", "reward/nonfinite", "rollout/truncated"):
        assert metrics[name] == expected[name] != 1


def test_languages_are_told_apart() -> None:
    found = experience()
    chosen = np.array([0, 0, 2, 2, 0, -1, 2, 0], np.int32)
    tagged = found._replace(rollout=found.rollout._replace(tags=Tags(np.zeros((Q * G, 1), np.int32), chosen)))
    tagged = tagged._replace(scores=replace(tagged.scores, details={"language/compliant": np.array([1, 0] * 4, np.float32)}))
    metrics = describe_languages(("en", "de", "zh"), tagged)
    shares = {"none": 1 / 8, "en": 4 / 8, "de": 0, "zh": 3 / 8}
    assert {name: metrics[f"language/share/{name}"] for name in shares} == pytest.approx(shares)
    assert metrics["language/choice_entropy"] == pytest.approx(-sum(p * np.log(p) for p in shares.values() if p))
    assert metrics["language/correct/en"] == pytest.approx(found.scores.correct[[0, 1, 4, 7]].mean())
    assert metrics["language/reward/zh"] == pytest.approx(found.scores.rewards[[2, 3, 6]].mean())
    assert metrics["language/length_tokens/zh"] == pytest.approx(found.rollout.lengths[[2, 3, 6]].mean())
    assert metrics["language/compliant/en"] == pytest.approx(2 / 4)
    assert not any(name.endswith("/de") for name in metrics if "share" not in name), "what nobody chose has no mean"


def test_the_device_is_idle_from_the_last_arrival_until_it_is_given_something(monkeypatch):
    clock = iter([12.0, 31.0, 45.0])
    monkeypatch.setattr("jaxrl_ml.grpo.time.perf_counter", lambda: next(clock))
    idle = Idle()
    idle.paused()  # busy: the clock is not asked
    idle.began(10.0)  # another round of sampling follows
    idle.paused()
    idle.paused()
    idle.began(30.0)
    assert idle.ended() == 2.0 + 1.0
    idle.began(40.0)
    assert idle.ended() == 5.0
