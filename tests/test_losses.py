"""Losses against numbers worked out by hand, exact expectations, and dense log-softmax; and the memory that they take."""

from __future__ import annotations

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_ml import update
from jaxrl_ml.config import ComputeConfig, GRPOStage, LossConfig, MeshConfig, ModelConfig, SamplingConfig
from jaxrl_ml.config import model as model_config
from jaxrl_ml.losses import Slicing, aggregation_weights, importance_weights, kl_estimate, policy_loss, token_logprobs
from jaxrl_ml.programs import Programs
from jaxrl_ml.sharding import make_mesh
from jaxrl_ml.types import Batch, Prompts, Rollout

RATIO = np.array([[1.5, 1.1, 0.5], [1.5, 0.9, 0.5]])
OLD = np.array([[-1.0, -2.0, -0.5], [-0.3, -1.2, -2.2]])
LOGPROBS = OLD + np.log(RATIO)
ADVANTAGES = np.array([[1.0, 1.0, 1.0], [-2.0, -2.0, -2.0]])
ALL = np.ones((2, 3), bool)
FIVE = np.array([[True, True, True], [True, True, False]])
BOUNDS = {"clip_low": 0.2, "clip_high": 0.3}


def run(config: LossConfig, mask=ALL, weights=None):
    """Per-token losses, their statistics, and the gradient of their weighted sum over the mask."""
    weights = mask if weights is None else weights

    def total(logprobs):
        loss, stats = policy_loss(logprobs, jnp.float32(OLD), jnp.float32(ADVANTAGES), jnp.asarray(mask), config)
        return (loss * weights).sum(), (loss, stats)

    grads, (loss, stats) = jax.grad(total, has_aux=True)(jnp.float32(LOGPROBS))
    return np.asarray(loss), jax.device_get(stats), np.asarray(grads)


def test_clip_takes_the_pessimistic_side_for_either_sign_of_the_advantage():
    loss, stats, grads = run(LossConfig(**BOUNDS))
    np.testing.assert_allclose(loss, [[-1.3, -1.1, -0.5], [3.0, 1.8, 1.6]], rtol=1e-5)
    np.testing.assert_allclose(grads, [[0, -1.1, -0.5], [3.0, 1.8, 0]], rtol=1e-5)
    np.testing.assert_array_equal(stats["policy/clip_fraction"], [[1, 0, 0], [0, 0, 1]])
    np.testing.assert_allclose(stats["policy/ratio"], RATIO, rtol=1e-5)


def test_dual_clip_bounds_only_negative_advantages():
    loss, _, grads = run(LossConfig(**BOUNDS, dual_clip=1.2))
    np.testing.assert_allclose(loss, [[-1.3, -1.1, -0.5], [2.4, 1.8, 1.6]], rtol=1e-5)
    np.testing.assert_allclose(grads, [[0, -1.1, -0.5], [0, 1.8, 0]], rtol=1e-5)


def trl_delta(ratio: np.ndarray, advantages: np.ndarray, low: float, high: float, delta: float) -> np.ndarray:
    """TRL's two-sided clipping: `delta` caps the ratio in the unclipped term only."""
    clipped = np.clip(ratio, 1 - low, 1 + high)
    return -np.minimum(np.minimum(ratio, delta) * advantages, clipped * advantages)


def test_a_dual_clip_inside_the_trust_region_acts_there_which_trls_does_not():
    """r = 1.2 is inside 1 ± 0.3, above c = 1.1; the advantage is −2."""
    config = LossConfig(clip_low=0.3, clip_high=0.3, dual_clip=1.1)
    logprobs, old, advantages = np.log([[1.2, 1.05, 1.6]]), np.zeros((1, 3)), np.full((1, 3), -2.0)

    def total(x):
        loss, _ = policy_loss(x, jnp.float32(old), jnp.float32(advantages), jnp.ones((1, 3), bool), config)
        return loss.sum(), loss

    grads, loss = jax.grad(total, has_aux=True)(jnp.float32(logprobs))
    np.testing.assert_allclose(loss, [[2.2, 2.1, 2.2]], rtol=1e-5)
    np.testing.assert_allclose(grads, [[0, 2.1, 0]], rtol=1e-5)
    np.testing.assert_allclose(trl_delta(np.exp(logprobs), advantages, 0.3, 0.3, 1.1), [[2.4, 2.1, 2.6]], rtol=1e-5)
    for wide in (1.3, 3.0):  # from 1 + high on the two agree
        loss, _ = policy_loss(
            jnp.float32(logprobs),
            jnp.float32(old),
            jnp.float32(advantages),
            jnp.ones((1, 3), bool),
            replace(config, dual_clip=wide),
        )
        np.testing.assert_allclose(loss, trl_delta(np.exp(logprobs), advantages, 0.3, 0.3, wide), rtol=1e-5)


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_log_ratios_are_cut_and_have_no_gradient_beyond(ratio):
    """The sign of the advantage is such that clipping to 1 ± 0.2 does not bind; the last row is just within the cut."""
    logprobs = jnp.array([[25.0, 25.0], [-25.0, -25.0], [19.0, 19.0], [-19.0, -19.0]])
    advantages = jnp.array([[-1.0], [1.0], [-1.0], [1.0]]) * jnp.ones((4, 2))
    mask = jnp.ones((4, 2), bool)

    def total(x, config):
        loss, stats = policy_loss(x, jnp.zeros((4, 2)), advantages, mask, config)
        return loss.sum(), (loss, stats)

    grads, (loss, stats) = jax.grad(total, has_aux=True)(logprobs, LossConfig(ratio=ratio))
    expected = np.exp([[20.0], [-20.0], [19.0], [-19.0]]) * np.ones((4, 2))
    np.testing.assert_allclose(stats["policy/ratio"], expected, rtol=1e-5)
    np.testing.assert_allclose(loss, -expected * advantages, rtol=1e-5)
    np.testing.assert_array_equal(grads[:2], np.zeros((2, 2)))
    assert (np.abs(grads[2:]) > 0).all()
    cispo, _ = jax.grad(total, has_aux=True)(logprobs, LossConfig(ratio=ratio, objective="cispo"))
    np.testing.assert_allclose(cispo, -np.array([[1.2], [0.8], [1.2], [0.8]]) * advantages, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "values"), [("k1", [20, -20]), ("k2", [200, 200]), ("k3", [np.exp(-20) + 19, np.exp(20) - 21])]
)
def test_kl_estimates_are_cut_and_have_no_gradient_beyond(kind, values):
    logprobs, ref = jnp.array([25.0, -25.0]), jnp.zeros(2)
    np.testing.assert_allclose(kl_estimate(logprobs, ref, kind), values, rtol=1e-5)
    slope = jax.grad(lambda x: kl_estimate(x, ref, kind).sum())
    np.testing.assert_array_equal(slope(logprobs), [0, 0])
    assert (np.abs(slope(logprobs * 0.76)) > 0).all()


def test_cispo_keeps_the_gradient_of_clipped_tokens():
    loss, stats, grads = run(LossConfig(**BOUNDS, objective="cispo"))
    clipped = np.array([[1.3, 1.1, 0.8], [1.3, 0.9, 0.8]])
    np.testing.assert_allclose(loss, -clipped * ADVANTAGES * LOGPROBS, rtol=1e-5)
    np.testing.assert_allclose(grads, [[-1.3, -1.1, -0.8], [2.6, 1.8, 1.6]], rtol=1e-5)
    np.testing.assert_array_equal(stats["policy/clip_fraction"], [[1, 0, 1], [1, 0, 1]])


def test_sequence_ratio_is_the_geometric_mean_over_the_rows_tokens():
    # (1.5 · 1.1 · 0.5)^(1/3) and (1.5 · 0.9)^(1/2): the third token of row 1 is masked.
    weights = np.array([[1 / 3] * 3, [1 / 2, 1 / 2, 0]])
    loss, stats, grads = run(LossConfig(ratio="sequence", **BOUNDS), FIVE, weights)
    np.testing.assert_allclose(stats["policy/ratio"][:, 0], [0.937889, 1.161895], rtol=1e-5)
    np.testing.assert_allclose(loss, [[-0.937889] * 3, [2.323790] * 3], rtol=1e-5)
    np.testing.assert_allclose(grads, [[-0.312630] * 3, [1.161895, 1.161895, 0]], rtol=1e-5)
    # Inside bounds of 0.05 row 0 is pessimistic already, and row 1 is not bound by the upper one: A < 0.
    tight = run(LossConfig(ratio="sequence", clip_low=0.05, clip_high=0.05), FIVE, weights)
    np.testing.assert_allclose(tight[0], loss, rtol=1e-5)


@pytest.mark.parametrize("objective", ["clip", "cispo"])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_zero_advantage_has_zero_gradient(objective, ratio):
    config = LossConfig(objective=objective, ratio=ratio)
    grads = jax.grad(lambda x: policy_loss(x, jnp.float32(OLD), jnp.zeros((2, 3)), jnp.asarray(FIVE), config)[0].sum())
    np.testing.assert_array_equal(grads(jnp.float32(LOGPROBS)), np.zeros((2, 3)))


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_on_policy_gradient_is_the_policy_gradient(ratio):
    logprobs = jnp.float32(OLD)
    weights = aggregation_weights(jnp.asarray(FIVE), "sequence", 3)
    config = LossConfig(ratio=ratio)

    def total(x):
        return (policy_loss(x, logprobs, jnp.float32(ADVANTAGES), jnp.asarray(FIVE), config)[0] * weights).sum()

    np.testing.assert_allclose(jax.grad(total)(logprobs), -ADVANTAGES * weights, atol=1e-6)


def test_aggregation_by_hand():
    mask = jnp.array([[True, True, False], [True, False, False], [False, False, False]])
    token, sequence, constant = (np.asarray(aggregation_weights(mask, k, 4)) for k in ("token", "sequence", "constant"))
    np.testing.assert_allclose(token, [[1 / 3, 1 / 3, 0], [1 / 3, 0, 0], [0, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(sequence, [[1 / 4, 1 / 4, 0], [1 / 2, 0, 0], [0, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(constant, [[1 / 8, 1 / 8, 0], [1 / 8, 0, 0], [0, 0, 0]], rtol=1e-6)
    for kind in ("token", "sequence", "constant"):
        np.testing.assert_array_equal(aggregation_weights(jnp.zeros((2, 3), bool), kind, 4), np.zeros((2, 3)))


def test_kl_estimates_by_hand():
    logprobs, ref = jnp.array([[-1.0, -2.0]]), jnp.array([[-1.5, -1.0]])
    np.testing.assert_allclose(kl_estimate(logprobs, ref, "k1"), [[0.5, -1.0]], rtol=1e-6)
    np.testing.assert_allclose(kl_estimate(logprobs, ref, "k2"), [[0.125, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(kl_estimate(logprobs, ref, "k3"), [[0.10653066, 0.71828183]], rtol=1e-6)


@pytest.fixture
def two_policies():
    return jax.random.normal(jax.random.key(0), (6,)), jax.nn.log_softmax(jax.random.normal(jax.random.key(1), (6,)))


def exact_kls(logits, ref):
    logp = jax.nn.log_softmax(logits)
    return (jnp.exp(logp) * (logp - ref)).sum(), (jnp.exp(ref) * (ref - logp)).sum()


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_expected_gradient_of_each_kl_estimate(two_policies, kind):
    logits, ref = two_policies
    p = jax.nn.softmax(logits)  # enumerates the samples; no gradient through it, as in an on-policy loss
    found = jax.grad(lambda x: (p * kl_estimate(jax.nn.log_softmax(x), ref, kind)).sum())(logits)
    forward, reverse = (jax.grad(lambda x, i=i: exact_kls(x, ref)[i])(logits) for i in range(2))
    expected = {"k1": jnp.zeros(6), "k2": forward, "k3": reverse}[kind]
    assert jnp.abs(forward - reverse).max() > 0.05  # the three are told apart
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_k1_and_k3_are_unbiased_values(two_policies, kind):
    logits, ref = two_policies
    value = (jax.nn.softmax(logits) * kl_estimate(jax.nn.log_softmax(logits), ref, kind)).sum()
    np.testing.assert_allclose(value, exact_kls(logits, ref)[0], rtol=1e-5)


def test_importance_weights_are_capped_and_carry_no_gradient():
    old, sampled = jnp.log(jnp.array([[0.2, 0.5, 0.9]])), jnp.log(jnp.array([[0.4, 0.5, 0.1]]))
    np.testing.assert_allclose(importance_weights(old, sampled, 2.0), [[0.5, 1.0, 2.0]], rtol=1e-5)
    np.testing.assert_array_equal(jax.grad(lambda x: importance_weights(x, sampled, 2.0).sum())(old), np.zeros((1, 3)))


def test_importance_weights_are_cut_at_exp_20():
    found = importance_weights(jnp.array([25.0, -25.0]), jnp.zeros(2), np.inf)
    np.testing.assert_allclose(found, np.exp([20.0, -20.0]), rtol=1e-5)


@pytest.mark.parametrize("kind", ["sequence", "constant"])
def test_rows_without_tokens_are_not_counted(kind):
    full, rows = np.ones((2, 3), bool), np.zeros((2, 3), bool)
    with_empty = aggregation_weights(jnp.asarray(np.concatenate([full, rows])), kind, 3)
    np.testing.assert_allclose(with_empty[:2], aggregation_weights(jnp.asarray(full), kind, 3), rtol=1e-6)
    np.testing.assert_array_equal(with_empty[2:], rows)


def dense(hidden, head, targets, temperature, support=None):
    logits = hidden.astype(jnp.float32) @ head.T / temperature
    if support is not None:
        tokens, valid = support
        among = (jax.nn.one_hot(tokens, len(head)) * valid[..., None]).sum(-2) > 0
        logits = jnp.where(among | ~valid.any(-1, keepdims=True), logits, -1e9)
    logp = jax.nn.log_softmax(logits, axis=-1)
    chosen = jnp.take_along_axis(logp, targets[..., None], axis=-1)[..., 0]
    return chosen, -(jnp.exp(logp) * logp).sum(-1)


def slices(tokens: int, width: int, parts: int = 1) -> Slicing:
    """Slices of `width` columns of each part, for so many tokens."""
    return Slicing(ComputeConfig(logits_mib=tokens * width / 2**18), parts=parts)


@pytest.fixture
def any_width(monkeypatch):
    monkeypatch.setattr(model_config, "COLUMNS", 1)


@pytest.mark.parametrize("support", [False, True], ids=["all", "support"])
@pytest.mark.parametrize(("width", "parts"), [(1, 1), (5, 1), (6, 1), (12, 1), (99, 1), (1, 3), (3, 3), (2, 4)])
def test_logprobs_and_entropy_in_slices_equal_dense_ones(width, parts, support, any_width):
    keys = jax.random.split(jax.random.key(0), 5)
    hidden, head = jax.random.normal(keys[0], (3, 7, 8)), jax.random.normal(keys[1], (12, 8))
    targets = jax.random.randint(keys[2], (3, 7), 0, 12)
    pull = jax.random.normal(keys[3], (2, 3, 7))
    others = jax.random.permutation(keys[4], jnp.broadcast_to(jnp.arange(12), (3, 7, 12)), axis=-1, independent=True)[..., :4]
    others = jnp.concatenate([targets[..., None], jnp.where(others == targets[..., None], -1, others)], axis=-1)
    valid = (others >= 0) & (jnp.arange(7) % 2 == 0)[None, :, None]  # nothing counts at every other place
    within = (others, valid) if support else None

    def value(of):
        def total(h, w):
            out = jnp.stack(of(h, w))
            return (out * pull).sum(), out

        return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(hidden, head)

    how = slices(21, width, parts)
    found = how.compute.slice_width(21, 12 // parts)
    assert found <= width and -(-12 // parts // found) == -(-12 // parts // width)
    (_, found), grads = value(lambda h, w: token_logprobs(h, w, targets, jnp.float32(0.7), how, within))
    (_, expected), expected_grads = value(lambda h, w: dense(h, w, targets, 0.7, within))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for a, b in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_gradients_do_not_lose_precision_with_many_slices_in_bfloat16(any_width):
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (1, 32, 16)).astype(jnp.bfloat16)
    head = 0.1 * jax.random.normal(keys[1], (512, 16))
    targets = jax.random.randint(keys[2], (1, 32), 0, 512)

    def gradients(of):
        return jax.jit(jax.grad(lambda h, w: of(h, w)[1].mean(), argnums=(0, 1)))(hidden, head)

    exact = gradients(lambda h, w: dense(h, w, targets, 1.0))
    for width in (512, 1):
        found = gradients(lambda h, w, width=width: token_logprobs(h, w, targets, jnp.float32(1), slices(32, width)))
        for a, b in zip(found, exact, strict=True):
            a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
            assert np.linalg.norm(a - b) / np.linalg.norm(b) < 0.004


def test_extreme_logits_stay_finite(any_width):
    hidden = jnp.array([[[1e4, 0.0], [-1e4, 1e4], [0.0, 0.0]]])
    head = jnp.array([[1.0, 0.0], [-1.0, 3.0], [0.5, -3.0], [0.0, 0.1]])
    targets = jnp.array([[1, 2, 0]])

    def total(h, w):
        logprobs, entropy = token_logprobs(h, w, targets, jnp.float32(0.5), slices(3, 1))
        loss = [
            policy_loss(logprobs, jnp.zeros((1, 3)), sign * jnp.ones((1, 3)), jnp.ones((1, 3), bool), config)[0].sum()
            for sign in (1, -1)
            for config in (LossConfig(), LossConfig(objective="cispo"), LossConfig(ratio="sequence"))
        ]
        kl = [kl_estimate(logprobs, jnp.zeros((1, 3)), kind).sum() for kind in ("k1", "k2", "k3")]
        weights = importance_weights(logprobs, jnp.zeros((1, 3)), 2.0)
        return sum(loss) + sum(kl) + entropy.sum() + weights.sum()

    value, grads = jax.value_and_grad(total, argnums=(0, 1))(hidden, head)
    assert all(np.isfinite(x).all() for x in (value, *grads))


V, B, C = 151_936, 16, 64


def update_memory() -> tuple[int, int]:
    """The bytes of temporaries and the largest array (elements) of the compiled update at a real vocabulary; nothing is run."""
    model = ModelConfig(vocab_size=V, num_layers=1, embed_dim=8, mlp_dim=8, num_heads=2, num_kv_heads=1, head_dim=4)
    programs = Programs(model, ComputeConfig(logits_mib=36), make_mesh(MeshConfig(), jax.devices()[:1]))
    loss = LossConfig(kl="k3", entropy_coef=0.01)
    stage = GRPOStage(None, None, prompts_per_step=4, group_size=4, loss=loss, sampling=SamplingConfig(max_completion_tokens=C))
    optimizer = optax.sgd(1.0)

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype)

    prompts = Prompts(array(jnp.int32, 4, 4), array(bool, 4, 4), array(jnp.uint32, 4))
    tokens, numbers, mask = array(jnp.int32, B, C), array(jnp.float32, B, C), array(bool, B, C)
    rollout = Rollout(prompts, tokens, array(jnp.int32, B), mask, numbers, array(bool, B))
    batch = Batch(rollout, numbers, mask, numbers, numbers)
    rest = array(jnp.int32), array(jnp.float32)
    compiled = programs.update(stage, optimizer).lower(programs.state_shapes(optimizer), batch, *rest).compile()
    shapes = set(re.findall(r"\b(?:f32|bf16|s32|pred)\[([\d,]+)\]", compiled.as_text()))
    return compiled.memory_analysis().temp_size_in_bytes, max(int(np.prod([int(n) for n in s.split(",")])) for s in shapes)


def test_no_array_of_all_logits_exists_in_the_compiled_update():
    temporaries, largest = update_memory()
    assert largest <= 36 * 2**18 or largest == V * 8  # a slice of the vocabulary for all 1,024 tokens, or the head
    assert temporaries < B * C * V * 4 / 4


def test_the_memory_test_sees_full_logits(monkeypatch):
    def full(hidden, head, targets, temperature, slicing, support):
        return dense(hidden, head, targets, temperature)

    monkeypatch.setattr(update, "token_logprobs", full)
    temporaries, largest = update_memory()
    assert largest >= B * C * V
    assert temporaries > B * C * V * 4
