"""The optimiser against closed forms."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_ml.config import OptimizerConfig
from jaxrl_ml.optimizer import carry_moments, clip_by_global_norm, learning_rate_schedule, make_optimizer


def rates(num_updates, **changes):
    schedule = learning_rate_schedule(OptimizerConfig(learning_rate=8.0, **changes), num_updates)
    return [float(schedule(i)) for i in range(num_updates)]


def test_warmup_starts_above_zero_and_reaches_the_peak():
    np.testing.assert_allclose(rates(7, warmup_steps=4), [2, 4, 6, 8, 8, 8, 8])
    np.testing.assert_allclose(rates(3, warmup_steps=1), [8, 8, 8])
    np.testing.assert_allclose(rates(3, warmup_steps=0), [8, 8, 8])


def test_decays_start_at_the_peak_after_the_warmup_and_head_for_the_final_fraction():
    np.testing.assert_allclose(rates(6, warmup_steps=2, schedule="linear", final_fraction=0.5), [4, 8, 8, 7, 6, 5], rtol=1e-6)
    found = rates(6, warmup_steps=2, schedule="cosine", final_fraction=0.25)
    expected = [4, 8, *(8 * (0.25 + 0.75 * (1 + np.cos(np.pi * i / 4)) / 2) for i in range(4))]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


PARAMS = {
    "embed": jnp.full((2, 2), 2.0),
    "layers": {
        "attention": {"q": jnp.full((2, 2), 2.0), "q_bias": jnp.full((2, 1), 2.0), "q_norm": {"scale": jnp.full((2, 2), 2.0)}}
    },
    "final_norm": {"scale": jnp.full(2, 2.0)},
}


def test_weight_decay_spares_norms_and_biases():
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, weight_decay=0.5), 10)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = optimizer.update(zeros, optimizer.init(PARAMS), PARAMS)
    attention = updates["layers"]["attention"]
    for decayed in (updates["embed"], attention["q"]):
        np.testing.assert_allclose(decayed, -0.1 * 0.5 * 2.0, rtol=1e-6)
    for spared in (attention["q_bias"], attention["q_norm"]["scale"], updates["final_norm"]["scale"]):
        np.testing.assert_array_equal(spared, 0)


def test_gradients_are_clipped_by_their_global_norm():
    # eps is large, so that Adam is nearly linear in the gradient and the clip shows.
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1.0, max_grad_norm=1.0, eps=1e6), 10)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}

    def step(a, b):
        updates, _ = optimizer.update({"a": jnp.array([a]), "b": jnp.array([b])}, optimizer.init(params), params)
        return float(updates["a"][0]), float(updates["b"][0])

    np.testing.assert_allclose(step(30.0, 40.0), step(0.6, 0.8), rtol=1e-4)
    np.testing.assert_allclose(np.array(step(0.06, 0.08)) * 10, step(0.6, 0.8), rtol=1e-4)


@pytest.mark.parametrize(
    ("max_norm", "size", "expected"), [(math.inf, 3.0, 3.0), (1.0, 0.0, 0.0), (1.0, 0.5, 0.5), (1.0, 8.0, 1.0)]
)
def test_clipping_scales_what_is_too_long_and_nothing_else(max_norm, size, expected):
    clip = clip_by_global_norm(max_norm)
    clipped, _ = clip.update({"a": jnp.full(1, size)}, clip.init(None))
    assert float(clipped["a"][0]) == expected


def test_first_adam_step_is_the_learning_rate_against_the_sign():
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.01), 10)
    grads = jax.tree.map(lambda x: -0.001 * jnp.ones_like(x), PARAMS)
    updates, _ = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["embed"], 0.01, rtol=1e-3)


@pytest.mark.parametrize("keep", [True, False])
def test_a_stage_border_restarts_the_schedule_and_may_keep_the_moments(keep):
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=4)
    optimizer = make_optimizer(config, 10)
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    old = optimizer.init(PARAMS)
    for _ in range(6):
        _, old = optimizer.update(ones, old, PARAMS)
    state = carry_moments(optimizer.init(PARAMS), old) if keep else optimizer.init(PARAMS)
    adam, schedule = optax.tree_utils.tree_get(state, "mu"), state[1][-1].count
    assert int(schedule) == 0
    assert float(adam["embed"].max()) == pytest.approx(float(old[1][0].mu["embed"].max()) if keep else 0.0)
    updates, _ = optimizer.update(ones, state, PARAMS)
    np.testing.assert_allclose(updates["embed"], -0.25, rtol=1e-4)  # the warm-up's first rate
