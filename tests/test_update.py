"""Laws of one update: it equals the plain computation, however it is cut up, and refuses what is not finite."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import assert_trees_close
from jax.sharding import PartitionSpec

from jaxrl_ml.config import ComputeConfig, LossConfig, OptimizerConfig, SFTStage
from jaxrl_ml.losses import Slicing, aggregation_weights, policy_loss
from jaxrl_ml.optimizer import make_optimizer
from jaxrl_ml.types import Batch, Packed, TrainState
from jaxrl_ml.update import apply_gradients, grpo_loss, hidden_states, merge_prompts, rollout_logprobs, split_prompts

TIGHT = {"rtol": 1e-4, "atol": 2e-6}


@pytest.fixture(scope="module")
def result(one, batch):
    """Gradients, state and metrics of the batch on one device, in one piece."""
    return one.update(batch)


def assert_metrics_close(found, expected):
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_shared_prompts_equal_repeated_ones_without_a_cache(one, batch, result):
    """The whole loss again, plainly: every row with its own prompt, one forward pass, dense log-probs, formulas in line."""
    rollout, model, G, P = batch.rollout, one.programs.model, one.G, one.P
    prompts = rollout.prompts
    tokens = np.concatenate([np.repeat(prompts.tokens, G, axis=0), rollout.completions], axis=1)
    mask = np.concatenate([np.repeat(prompts.mask, G, axis=0), np.ones_like(rollout.completions, bool)], axis=1)
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0).astype(np.int32)

    def loss(params, config=one.LOSS):
        hidden, _ = model.prefill(params, tokens, positions, mask.astype(np.int32))
        logp = jax.nn.log_softmax(model.logits(params, hidden)[:, P - 1 : -1])
        entropy = -(jnp.exp(logp) * logp).sum(-1)
        logp = jnp.take_along_axis(logp, rollout.completions[..., None], axis=-1)[..., 0]
        ratio = jnp.exp(logp - batch.old_logprobs)
        clipped = jnp.clip(ratio, 1 - config.clip_low, 1 + config.clip_high)
        policy = -jnp.minimum(ratio * batch.advantages, clipped * batch.advantages)
        policy *= np.minimum(np.exp(batch.old_logprobs - rollout.sampler_logprobs), config.importance_cap)
        d = batch.ref_logprobs - logp
        per_token = policy + config.kl_coef * (jnp.exp(d) - d - 1) - config.entropy_coef * entropy
        return jnp.where(batch.loss_mask, per_token, 0).sum() / batch.loss_mask.sum()

    value, expected = jax.jit(jax.value_and_grad(loss))(one.params)
    grads, _, metrics = result
    np.testing.assert_allclose(metrics["policy/loss"], value, rtol=1e-5)
    np.testing.assert_allclose(metrics["policy/grad_norm"], optax.tree.norm(expected), rtol=1e-4)
    assert metrics["policy/grad_norm"] > 0.1
    assert_trees_close(grads, expected, **TIGHT)


def test_four_microbatches_equal_one_and_need_no_old_logprobs(one, batch):
    """One update per rollout needs no old log-probs: the ratio's value is 1 and its gradient is there."""
    program = one.programs.update(one.stage(num_microbatches=4), one.sgd)
    grads, _, metrics = one.update(batch._replace(old_logprobs=None), program=program)
    expected = one.update(batch._replace(old_logprobs=one.score(batch.rollout)))
    assert_trees_close(grads, expected[0], **TIGHT)
    assert_metrics_close(metrics, expected[2])


def test_eight_devices_equal_one(one, eight, batch, result):
    np.testing.assert_allclose(eight.score(batch.rollout), one.score(batch.rollout), atol=1e-5)
    grads, state, metrics = eight.update(batch)
    assert_trees_close(grads, result[0], **TIGHT)
    assert_metrics_close(metrics, result[2])
    assert state.params["embed"].sharding.spec == PartitionSpec("tensor", "fsdp")


def test_random_weights_do_not_depend_on_the_mesh(one, eight):
    assert_trees_close(eight.params, one.params, rtol=0, atol=1e-7)


def test_nothing_outside_the_loss_mask_changes_the_update(one, batch, result):
    rollout, out = batch.rollout, ~batch.loss_mask
    rng = np.random.default_rng(3)
    # Rows that are left out may hold anything; columns after the end of a row as well.
    completions = np.where(out, rng.integers(0, one.V, out.shape), rollout.completions).astype(np.int32)
    changed = Batch(
        rollout._replace(completions=completions, sampler_logprobs=np.where(out, -3, rollout.sampler_logprobs)),
        np.where(out, 50, batch.advantages),
        batch.loss_mask,
        np.where(out, -9, batch.old_logprobs),
        np.where(out, -1, batch.ref_logprobs),
    )
    grads, _, metrics = one.update(changed)
    assert (completions != rollout.completions).sum() > 50
    assert_trees_close(grads, result[0], **TIGHT)
    assert_metrics_close(metrics, result[2])


def test_several_updates_a_rollout_move_the_ratio_from_one(one, batch):
    scored = one.score(batch.rollout)
    fixed = batch._replace(old_logprobs=scored, ref_logprobs=scored)
    grads, _, first = one.update(fixed)
    moved = jax.tree.map(lambda p, g: p - 0.3 * g, one.params, grads)
    _, _, second = one.update(fixed, params=moved)
    assert first["policy/ratio"] == pytest.approx(1, abs=1e-5)
    assert first["policy/clip_fraction"] == 0
    assert first["policy/kl"] == pytest.approx(0, abs=1e-5)
    assert second["policy/clip_fraction"] > 0
    assert second["policy/kl"] > 1e-3
    assert second["policy/loss"] < first["policy/loss"]


def test_entropy_bonus_raises_entropy(one, batch):
    scored = one.score(batch.rollout)
    quiet = batch._replace(advantages=np.zeros_like(batch.advantages), old_logprobs=scored, ref_logprobs=scored)
    params = one.params
    entropies = []
    for _ in range(4):  # nothing but the bonus has a gradient
        _, state, metrics = one.update(quiet, params=params)
        params = state.params
        entropies.append(metrics["policy/entropy"])
    assert np.all(np.diff(entropies) > 1e-5)
    assert quiet.loss_mask.any()


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_entropy_bonus_is_aggregated_as_the_policys_loss(one, batch, aggregation):
    """Two coefficients: the gradient's difference is that of the entropies, weighted as the policy's loss of each token is."""
    mask, C = batch.loss_mask, one.C
    rows, lengths = (mask.sum(1) > 0).sum(), np.maximum(mask.sum(1, keepdims=True), 1)
    weights = {"token": mask / mask.sum(), "sequence": mask / lengths / rows, "constant": mask / (rows * C)}[aggregation]
    model, slicing, temperature = one.programs.model, Slicing(ComputeConfig()), jnp.ones(())

    @jax.jit
    def losses(params):
        (hidden,) = hidden_states(model, params, batch.rollout.prompts, [batch.rollout])
        logprobs, entropy = rollout_logprobs(model, params, batch.rollout, hidden, temperature, None, slicing)
        config = LossConfig(aggregation=aggregation, entropy_coef=0.3)
        used = aggregation_weights(jnp.asarray(mask), aggregation, C)
        with_bonus, _ = grpo_loss(model, config, slicing, params, batch, used, temperature)
        without, _ = grpo_loss(model, replace(config, entropy_coef=0.0), slicing, params, batch, used, temperature)
        policy, _ = policy_loss(logprobs, batch.old_logprobs, batch.advantages, jnp.asarray(mask), config)
        return with_bonus - without, -0.3 * (weights * entropy).sum(), without, (weights * policy).sum()

    bonus, expected_bonus, policy, expected_policy = losses(one.params)
    assert abs(expected_bonus) > 0.01
    np.testing.assert_allclose(bonus, expected_bonus, rtol=1e-4)
    np.testing.assert_allclose(policy, expected_policy, rtol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_loss_skips_the_whole_update(one, batch, bad):
    advantages = batch.advantages.copy()
    row = np.flatnonzero(batch.loss_mask.any(1))[0]
    advantages[row, 0] = -bad
    _, state, metrics = one.update(batch._replace(advantages=advantages))
    assert metrics["policy/nonfinite"] == 1
    assert int(state.step) == 0
    assert_trees_close(state.params, one.params, rtol=0, atol=0)
    _, state, metrics = one.update(batch)
    assert metrics["policy/nonfinite"] == 0
    assert int(state.step) == 1


@pytest.mark.parametrize(("loss", "grad", "steps"), [(1.0, 2.0, 1), (np.nan, 2.0, 0), (1.0, np.inf, 0), (np.inf, np.nan, 0)])
def test_moments_and_step_are_kept_where_the_update_is_skipped(loss, grad, steps):
    optimizer = optax.adam(0.1)
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    state = TrainState(jnp.int32(0), params, optimizer.init(params))
    grads = {"a": jnp.ones(2), "b": jnp.array([1.0, grad, 1.0])}
    new, metrics = apply_gradients(optimizer, state, jnp.float32(loss), grads, "policy")
    assert int(new.step) == steps == 1 - float(metrics["policy/nonfinite"])
    assert int(new.opt_state[0].count) == steps
    same = [np.array_equal(a, b) for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(state), strict=True)]
    assert not any(same) if steps else all(same)


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_splitting_and_merging_are_inverses_and_keep_groups(parts):
    Q, G = 8, 3
    rows = np.arange(Q * G * 2).reshape(Q * G, 2)
    split = split_prompts({"prompts": np.arange(Q), "rows": rows}, Q, parts)
    np.testing.assert_array_equal(merge_prompts(split["rows"], Q), rows)
    np.testing.assert_array_equal(merge_prompts(split["prompts"], Q), np.arange(Q))
    assert split["rows"].shape == (parts, Q // parts * G, 2)
    owners = np.asarray(split["rows"])[:, ::G, 0] // (2 * G)
    np.testing.assert_array_equal(owners, split["prompts"])  # rows go with their prompt
    assert sorted(np.asarray(split["prompts"]).reshape(-1)) == list(range(Q))  # each prompt once
    if parts <= 4:  # of two shards [0, Q/2) and [Q/2, Q), every part has as many prompts
        np.testing.assert_array_equal((np.asarray(split["prompts"]) < Q // 2).sum(1), Q // parts // 2)


def examples(V: int):
    rng = np.random.default_rng(5)
    return [rng.integers(0, V, n, np.int32) for n in (4, 7, 3, 9, 5, 6, 8, 4, 7, 5, 3, 9, 6, 6, 2, 10)]


def packed_pairs(V: int, T: int = 20) -> Packed:
    """Sixteen examples of which the first two tokens are the prompt, packed by twos into eight rows."""
    rows = {name: np.zeros((8, T), np.int32) for name in Packed._fields}
    for i, tokens in enumerate(examples(V)):
        n = len(tokens) - 1
        row, start = i // 2, 0 if i % 2 == 0 else len(examples(V)[i - 1]) - 1
        at = (row, slice(start, start + n))
        rows["tokens"][at], rows["targets"][at] = tokens[:-1], tokens[1:]
        rows["loss_mask"][at] = np.arange(n) >= 1
        rows["segments"][at], rows["positions"][at] = i % 2 + 1, np.arange(n)
    return Packed(**rows | {"loss_mask": rows["loss_mask"].astype(bool)})


def test_sft_is_plain_cross_entropy_and_packing_does_not_leak(one):
    """Each example in a row of its own against two a row."""
    alone = examples(one.V)
    lengths = np.array([len(tokens) for tokens in alone])
    tokens = np.array([np.pad(tokens, (0, 10 - len(tokens))) for tokens in alone])
    positions = np.repeat(np.arange(9)[None], 16, axis=0)
    counted = (np.arange(1, 10)[None] >= 2) & (np.arange(1, 10)[None] < lengths[:, None])
    model = one.programs.model

    def loss(params):
        hidden, _ = model.prefill(params, tokens[:, :-1], positions, np.ones_like(positions))
        logp = jax.nn.log_softmax(model.logits(params, hidden))
        logp = jnp.take_along_axis(logp, tokens[:, 1:, None], axis=-1)[..., 0]
        return -jnp.where(counted, logp, 0).sum() / counted.sum()

    value, expected = jax.jit(jax.value_and_grad(loss))(one.params)
    grads, state, metrics = one.fit(packed_pairs(one.V))
    np.testing.assert_allclose(metrics["sft/loss"], value, rtol=1e-5)
    assert_trees_close(grads, expected, **TIGHT)
    assert 0 < metrics["sft/entropy"] < np.log(one.V)
    assert int(state.step) == 1


def test_sft_in_microbatches_on_eight_devices_equals_one(one, eight):
    packed = packed_pairs(one.V)
    expected = one.fit(packed)
    program = eight.programs.fit(SFTStage(None, batch_size=8, num_microbatches=2), eight.sgd)
    grads, _, metrics = eight.fit(packed, program=program)
    assert_trees_close(grads, expected[0], **TIGHT)
    assert_metrics_close(metrics, expected[2])


def test_the_optimiser_keeps_no_second_gradient_and_no_second_moments():
    optimizer = make_optimizer(OptimizerConfig(), 10)
    params = {name: jnp.ones((64, 64)) for name in "abcd"}
    state = TrainState(jnp.int32(0), params, optimizer.init(params))

    @partial(jax.jit, donate_argnums=0)
    def apply(state, grads):
        return apply_gradients(optimizer, state, jnp.float32(0), grads, "policy")

    memory = apply.lower(state, params).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= 3 * 4 * 64 * 64 * 4  # parameters and both moments
    assert memory.temp_size_in_bytes < 64 * 64 * 4  # not one leaf
