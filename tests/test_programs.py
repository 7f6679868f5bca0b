"""Laws of the compiled programs: a steady step compiles nothing, copies nothing to or from the host, and donates its state."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, Policy
from jax import monitoring
from jax.experimental.compilation_cache import compilation_cache as jax_cache
from jax.sharding import PartitionSpec

from jaxrl_ml import sampler
from jaxrl_ml.config import MeshConfig, OptimizerConfig, SamplingConfig
from jaxrl_ml.optimizer import make_optimizer
from jaxrl_ml.programs import _jit, compilation_cache, resolve_dtype
from jaxrl_ml.types import Batch, TrainState


class Compilations:
    """Counts what XLA compiles."""

    def __init__(self) -> None:
        self.count = 0
        monitoring.register_event_duration_secs_listener(self._on_event)

    def _on_event(self, name: str, duration: float, **_: object) -> None:
        self.count += name == "/jax/core/compile/backend_compile_duration"


@pytest.fixture(scope="module")
def compilations():
    return Compilations()


@pytest.fixture(scope="module")
def trainer(eight):
    """The programs of a step with two minibatches and AdamW, on eight devices."""
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3, warmup_steps=2), 10)
    update = eight.programs.update(eight.stage(num_minibatches=2), optimizer)
    return update, optimizer


def fresh_state(policy, optimizer) -> TrainState:
    params = policy.copy(policy.params)
    return TrainState(policy.put(np.int32(0)), params, policy.programs.moments(optimizer, params))


def grpo_step(policy, update, state, number: int):
    """A whole step with other prompts, noise, temperature and advantages each time; everything stays on the device."""
    rng = np.random.default_rng(number)
    temperature = np.float32(0.8 + 0.1 * number)
    prompts = policy.prompts()._replace(tokens=rng.integers(0, policy.V, (policy.Q, policy.P), np.int32))
    weights = policy.programs.gather(state.params)
    settings = policy.put(sampler.settings_of(SamplingConfig(temperature=float(temperature))))
    words = policy.put(np.array([0, 0, number, 0], np.uint32))
    static = {"truncates": False, "group_size": policy.G, "width": policy.C}
    table = policy.put(policy.stop_table())
    rollout = policy.programs.sample(weights, policy.put_rows(prompts), words, table, settings, **static)
    temperature = policy.put(temperature)
    old = policy._score(state.params, rollout, temperature)
    advantages = policy.put_rows(rng.normal(size=rollout.completions.shape).astype(np.float32))
    batch = Batch(rollout, advantages, rollout.action_mask, old, old)
    for minibatch in range(2):
        state, metrics = update(state, batch, policy.put(np.int32(minibatch)), temperature)
    return state, metrics


def test_a_steady_step_compiles_nothing_and_transfers_nothing_unasked(eight, trainer, compilations):
    update, optimizer = trainer
    state, first = grpo_step(eight, update, fresh_state(eight, optimizer), 0)
    before = compilations.count
    with jax.transfer_guard("disallow"):
        for number in range(1, 4):
            state, metrics = grpo_step(eight, update, state, number)
    assert compilations.count == before
    assert update._cache_size() == 1
    assert int(state.step) == 8
    assert float(metrics["policy/loss"]) != float(first["policy/loss"])
    assert float(metrics["policy/sampler_gap"]) < 1e-5
    jax.jit(lambda x: x * number)(jnp.ones(number))
    assert compilations.count > before  # the counter counts


def test_the_state_is_donated(one, batch):
    state = TrainState(one.put(np.int32(0)), one.copy(one.params), one.sgd.init(one.params))
    one._update(state, one.put_rows(batch), one.put(np.int32(0)), one.put(np.float32(1)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_each_minibatch_learns_from_its_own_prompts_only(eight, trainer, batch):
    update, optimizer = trainer
    owner = np.arange(eight.Q * eight.G) // eight.G % 2  # minibatch m takes prompts m, m + 2, …

    def loss(minibatch, advantages):
        changed = batch._replace(advantages=advantages, loss_mask=batch.rollout.action_mask)
        rest = eight.put(np.int32(minibatch)), eight.put(np.float32(1))
        _, metrics = update(fresh_state(eight, optimizer), eight.put_rows(changed), *rest)
        return float(metrics["policy/loss"])

    for minibatch in range(2):
        base = loss(minibatch, batch.advantages)
        for changed in range(2):
            other = loss(minibatch, batch.advantages + 1 * (owner == changed)[:, None].astype(np.float32))
            assert (abs(other - base) > 0.1) == (changed == minibatch)


def test_moments_lie_where_their_parameters_do(eight, trainer):
    _, optimizer = trainer
    state = fresh_state(eight, optimizer)
    adam = state.opt_state[1][0]
    for moment in (adam.mu, adam.nu):
        same = jax.tree.map(lambda m, p: m.sharding == p.sharding and m.dtype == jnp.float32, moment, state.params)
        assert all(jax.tree.leaves(same))
    shapes = jax.tree.map(
        lambda x, s: (x.shape, x.dtype, x.sharding) == (s.shape, s.dtype, s.sharding),
        state,
        eight.programs.state_shapes(optimizer),
    )
    assert all(jax.tree.leaves(shapes))


def test_gathered_weights_are_the_parameters_unstacked(one, eight):
    for policy in (one, eight):
        weights, params = jax.device_get((policy.weights, policy.params))
        for i, layer in enumerate(weights["layers"]):
            for found, stacked in zip(jax.tree.leaves(layer), jax.tree.leaves(params["layers"]), strict=True):
                np.testing.assert_array_equal(found, stacked[i])
        np.testing.assert_array_equal(weights["embed"], params["embed"])
    assert "fsdp" not in str([leaf.sharding.spec for leaf in jax.tree.leaves(eight.weights)])


def test_auto_computes_in_float32_on_cpu():
    assert resolve_dtype("auto") == jnp.float32
    assert resolve_dtype("bfloat16") == jnp.bfloat16


def test_sampling_may_split_the_weights_over_the_axis_that_training_shards_them_by(one):
    """fsdp 4 in training is tensor 4 in sampling: rules differ, axes do not. The same tokens come out."""
    split = Policy(MeshConfig(fsdp=4), 8, compute=replace(Policy.COMPUTE, sampling_weights="split"))
    assert split.params["embed"].sharding.spec == PartitionSpec("tensor", "fsdp")
    for leaf in jax.tree.leaves(split.weights):
        whole = leaf.ndim == 1 or TINY.num_kv_heads in leaf.shape  # norms; key/value heads are fewer than 4
        assert np.prod(leaf.sharding.shard_shape(leaf.shape)) * (1 if whole else 4) == leaf.size
    found = split.sample()
    np.testing.assert_array_equal(found.completions, one.rollout.completions)
    np.testing.assert_allclose(found.sampler_logprobs, one.rollout.sampler_logprobs, atol=1e-5)


def test_ranks_do_not_broadcast_in_our_programs_whatever_the_users_setting_and_in_any_thread():
    def add(x, y):
        return x + y

    shapes = jax.ShapeDtypeStruct((3, 4), np.float32), jax.ShapeDtypeStruct((4,), np.float32)
    with jax.numpy_rank_promotion("allow"):
        assert jax.jit(add).lower(*shapes).out_info.shape == (3, 4)
        with pytest.raises(ValueError, match="rank"):
            _jit(add).lower(*shapes)
        assert (jnp.ones((3, 4)) + jnp.ones(4)).shape == (3, 4), "the user's own code, afterwards"
    with ThreadPoolExecutor() as pool:
        assert isinstance(pool.submit(_jit(partial(add)).lower, *shapes).exception(), ValueError)
    jitted = _jit(partial(lambda k, x, n: k * x * n, 2), static_argnums=(1,))
    assert jitted(jnp.ones(3), 5).tolist() == [10, 10, 10]


def test_a_cache_of_compiled_programs_is_used_inside_its_context_alone(tmp_path):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        jax_cache.reset_cache()
        without = dict(jax.config.values)
        for number, error in enumerate((None, RuntimeError("broken"))):
            try:
                with compilation_cache(tmp_path / "cache"):
                    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "cache")
                    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
                    jax.jit(partial(lambda n, x: x * 3 + n, 7 + number))(jnp.ones(11))
                    if error is not None:
                        raise error
            except RuntimeError as raised:
                assert raised is error
            assert dict(jax.config.values) == without
        kept = len(list((tmp_path / "cache").iterdir()))
        assert kept >= 2
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.jit(lambda x: x * 3 + 9)(jnp.ones(11))
        assert len(list((tmp_path / "cache").iterdir())) == kept
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        jax_cache.reset_cache()
