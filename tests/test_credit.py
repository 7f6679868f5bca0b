"""Own credit for the language and for the thinking: the laws of the advantages, of the real update, and of a bandit."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_close
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tags import CODES, PATHS, W, prompts_allowing, some_allowed, trie

from jaxrl_ml.advantages import group_advantages
from jaxrl_ml.config import GRPOStage, LanguageConfig, LossConfig, SamplingConfig
from jaxrl_ml.credit import language_values, tag_mask, thinking_advantages
from jaxrl_ml.grpo import assemble
from jaxrl_ml.languages import tags
from jaxrl_ml.losses import aggregation_weights, apart_weights, policy_loss
from jaxrl_ml.types import Prompts, Rollout, Scores, Tags, UserError

KINDS = ["grpo", "dr_grpo", "rloo"]
EXACT = {"rtol": 1e-5, "atol": 1e-6}
OWN = LossConfig(
    language="own", language_coef=0.5, ratio="sequence", kl="k3", kl_coef=0.1, importance_cap=2.0, entropy_coef=0.0
)
CHOICE = LanguageConfig("constrained", CODES, "{code}")


# The advantages


def test_the_naive_language_advantage_changes_nothing() -> None:
    """Σ (r_i − r̄)·∇log π(l_i) = Σ_l n_l·(r̄_l − r̄)·∇log π(l): the values without pooling give every row's own gradient."""
    rng = np.random.default_rng(0)
    G, K = 8, 4
    rewards, language = rng.normal(size=3 * G), rng.integers(0, K, 3 * G)
    pi = rng.dirichlet(np.ones(K), 3)
    score = np.eye(K)[language] - np.repeat(pi, G, axis=0)  # of softmax logits
    rows = group_advantages(rewards, G, "dr_grpo")
    values = language_values(rows, language, K, G, 0.0)[np.arange(3 * G) // G, language]
    assert np.abs(values - rows).max() > 0.5
    by_row = (rows[:, None] * score).reshape(3, G, K).sum(1)
    by_language = (values[:, None] * score).reshape(3, G, K).sum(1)
    np.testing.assert_allclose(by_language, by_row, **EXACT)


def test_thinking_by_hand() -> None:
    """Languages 0 0 0 1 1 2: others of the own language, then three of the group for the row that is alone."""
    rewards, language = np.array([1.0, 0, 0, 1, 0, 1]), np.array([0, 0, 0, 1, 1, 2])
    plain = thinking_advantages(rewards, language, 6, "rloo", 0.0)
    np.testing.assert_allclose(plain, [1, -0.5, -0.5, 1, -1, 1 - 2 / 5], rtol=1e-6)
    pooled = thinking_advantages(rewards, language, 6, "rloo", 2.0)
    expected = [1 - (0 + 2 * 2 / 5) / 4, -(1 + 2 * 3 / 5) / 4, -(1 + 2 * 3 / 5) / 4]
    expected += [1 - (0 + 2 * 2 / 5) / 3, -(1 + 2 * 3 / 5) / 3, 1 - 2 / 5]
    np.testing.assert_allclose(pooled, expected, rtol=1e-6)
    np.testing.assert_allclose(thinking_advantages(rewards, language, 6, "dr_grpo", 2.0), 5 / 6 * pooled, rtol=1e-6)
    scaled = thinking_advantages(rewards, language, 6, "grpo", 2.0)
    np.testing.assert_allclose(scaled / pooled, np.full(6, scaled[0] / pooled[0]), rtol=1e-5)
    np.testing.assert_allclose((scaled**2).mean(), 1, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shrinkage", [0.0, 1.0, 9.0])
def test_one_language_is_no_distinction(kind, shrinkage) -> None:
    rewards = np.random.default_rng(1).normal(size=24)
    found = thinking_advantages(rewards, np.repeat([0, 3, -1], 8), 8, kind, shrinkage)
    np.testing.assert_allclose(found, group_advantages(rewards, 8, kind), **EXACT)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(KINDS), st.sampled_from([0.0, 0.5, 4.0]))
def test_neither_difficulty_nor_the_groups_beside_matter(seed: int, kind: str, shrinkage: float) -> None:
    rng = np.random.default_rng(seed)
    G, K = 6, 3
    rewards, language = rng.normal(size=4 * G), rng.integers(-1, K, 4 * G)
    harder = rewards + np.repeat(rng.normal(size=4) * 5, G)
    np.testing.assert_allclose(
        thinking_advantages(harder, language, G, kind, shrinkage),
        thinking_advantages(rewards, language, G, kind, shrinkage),
        rtol=1e-3,
        atol=1e-5,
    )
    values, same = (language_values(group_advantages(r, G, kind), language, K, G, shrinkage) for r in (harder, rewards))
    np.testing.assert_allclose(values, same, rtol=1e-3, atol=1e-5)
    alone = thinking_advantages(rewards[:G], language[:G], G, kind, shrinkage)
    np.testing.assert_array_equal(thinking_advantages(rewards, language, G, kind, shrinkage)[:G], alone)


def test_no_baseline_knows_its_row() -> None:
    """Hence no bias: a row's advantage grows as its reward does, whatever the pooling."""
    rng = np.random.default_rng(2)
    rewards, language = rng.normal(size=8), np.array([0, 0, 0, 1, 1, 2, 0, 1])
    for row in range(8):
        more = rewards + 3.0 * (np.arange(8) == row)
        for shrinkage in (0.0, 1.0, 4.0):
            change = thinking_advantages(more, language, 8, "rloo", shrinkage) - thinking_advantages(
                rewards, language, 8, "rloo", shrinkage
            )
            assert change[row] == pytest.approx(3, abs=1e-5)


def test_thinking_is_not_praised_for_an_easy_language() -> None:
    language = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    easy = np.where(language == 0, 1.0, 0.0)
    assert np.abs(thinking_advantages(easy, language, 8, "grpo", 0.0)).max() == 0
    partly = np.abs(thinking_advantages(easy, language, 8, "dr_grpo", 1.0)).max()
    assert 0 < partly < 0.3 * np.abs(group_advantages(easy, 8, "dr_grpo")).max()


def test_values_by_hand() -> None:
    """Two groups; language 1 is in one of them, language 2 in none, one row has no tag."""
    advantages, language = np.array([1.0, 3, -4, 2, -2, 5]), np.array([0, 0, 1, 0, 0, -1])
    found = language_values(advantages, language, 3, 3, 2.0)
    step = (1 + 3 + 2 - 2) / 4
    expected = [[(4 + 2 * step) / 4, -4, 0, 5], [(0 + 2 * step) / 4, -4, 0, 5]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(language_values(advantages, language, 3, 3, 0.0), [[2, -4, 0, 0], [0, 0, 0, 5]], rtol=1e-6)


def test_tokens_drawn_at_the_trie_are_the_tags() -> None:
    state = np.array([[1, 2, 3, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    for width in (2, 4, 6):
        expected = np.arange(width)[None] < np.array([[3], [1], [0]])
        np.testing.assert_array_equal(tag_mask(Tags(state, np.zeros(3)), width), expected)
        np.testing.assert_array_equal(tag_mask(Tags(jnp.asarray(state), jnp.zeros(3)), width), expected)


# Weights and ratios


def test_tags_are_averaged_apart() -> None:
    mask = jnp.asarray([[1, 1, 1, 1, 1, 1], [0, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]], bool)
    tag = jnp.asarray([[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]], bool)
    for kind in ("token", "sequence", "constant"):
        found = apart_weights(mask, tag, LossConfig(aggregation=kind, language_coef=0.3), 6)
        np.testing.assert_allclose(found[np.asarray(mask & tag)], 0.3 / 2, rtol=1e-6)  # of 2 tokens and of 1
        rest = np.where(tag, 0, found)
        np.testing.assert_allclose(rest, aggregation_weights(mask & ~tag, kind, 6), rtol=1e-6)


def test_a_sequence_ratio_is_the_tags_or_the_thinkings() -> None:
    log_ratio = np.log([[1.1, 1.1, 0.9, 0.95, 7.0]]).astype(np.float32)
    mask, tag = np.array([[True] * 4 + [False]]), np.array([[True, True, False, False, False]])
    zeros, ones = np.zeros_like(log_ratio), np.ones_like(log_ratio)
    _, stats = policy_loss(log_ratio, zeros, ones, jnp.asarray(mask), LossConfig(ratio="sequence"), jnp.asarray(tag))
    np.testing.assert_allclose(stats["policy/ratio"][0, :4], [1.1, 1.1, *[np.sqrt(0.9 * 0.95)] * 2], rtol=1e-5)


# The batch


def stage(mode: str = "constrained", group_size: int = 4, **loss: object) -> GRPOStage:
    language = LanguageConfig(mode, CODES, "{code}") if mode != "off" else LanguageConfig()
    sampling = SamplingConfig(max_completion_tokens=12)
    return GRPOStage(
        [], None, prompts_per_step=2, group_size=group_size, sampling=sampling, language=language, loss=LossConfig(**loss)
    )


def tagged_rollout() -> Rollout:
    """Two groups of four, a tag of two tokens, two languages a group; in the last row no tag but a word off the trie."""
    prompts = Prompts(np.zeros((2, 3), np.int32), np.ones((2, 3), bool), np.arange(2), np.ones((2, 4), bool))
    lengths = np.array([4, 9, 5, 6, 7, 12, 8, 3], np.int32)
    mask = np.arange(12)[None] < lengths[:, None]
    state = np.tile(np.array([1, 2, 0, 0], np.int32), (8, 1))
    state[7, 1] = 0
    language = np.array([0, 0, 1, 1, 0, 0, 1, -1], np.int32)
    return Rollout(prompts, mask.astype(np.int32), lengths, mask, -1.0 * mask, lengths == 12, Tags(state, language))


def bonus_scores(in_first: float = 0.2) -> Scores:
    """The first group is all wrong, with a bonus for language 0; the second has one right answer."""
    correct = np.array([0, 0, 0, 0, 1, 0, 0, 0], bool)
    bonus = np.array([in_first, in_first, 0, 0, 0, 0, 0, 0], np.float32)
    return Scores((correct + bonus).astype(np.float32), correct, language_rewards=bonus)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bonus_in_a_wrong_group_is_for_the_tag_alone(kind) -> None:
    rollout, first = tagged_rollout(), slice(0, 4)
    tag, mask = tag_mask(rollout.tags, 12), rollout.action_mask
    shared = assemble(rollout, bonus_scores(), stage(advantage=kind))
    assert (shared.advantages[first][mask[first]] != 0).all() and shared.language_values is None
    free = assemble(rollout, bonus_scores(), stage("free", advantage=kind, language="own"))
    np.testing.assert_allclose(free.advantages[first][~tag[first]], 0, atol=1e-6)
    assert (free.advantages[:2][tag[:2]] > 0).all() and (free.advantages[2:4][tag[2:4]] < 0).all()
    assert free.language_values is None
    forced = assemble(rollout, bonus_scores(), stage(advantage=kind, language="own"))
    np.testing.assert_array_equal(forced.advantages, np.where(tag, 0, free.advantages))
    np.testing.assert_array_equal(forced.language_values[np.arange(7) // 4, rollout.tags.language[:7]], free.advantages[:7, 0])
    assert forced.language_values.shape == (2, 4)
    assert forced.advantages.dtype == free.advantages.dtype == forced.language_values.dtype == np.float32


def test_a_small_bonus_does_not_outweigh_correctness() -> None:
    """Each normalised by its own spread they would weigh the same, whatever the bonus."""
    rollout = tagged_rollout()
    correct = np.array([1, 1, 1, 0, 1, 1, 1, 0], bool)  # language 1 is worth less
    bonus = np.where(rollout.tags.language == 1, 0.1, 0).astype(np.float32)
    values = assemble(rollout, Scores(correct + bonus, correct, language_rewards=bonus), stage(language="own")).language_values
    assert (values[:, 0] > values[:, 1]).all()


def test_filters_leave_the_tags_in() -> None:
    rollout = tagged_rollout()
    tag, mask = tag_mask(rollout.tags, 12), rollout.action_mask
    dropped = assemble(rollout, bonus_scores(), stage(language="own", filter="drop")).loss_mask
    np.testing.assert_array_equal(dropped[:4], (mask & tag)[:4])
    np.testing.assert_array_equal(dropped[4:], mask[4:])
    masked = assemble(rollout, bonus_scores(), stage(language="own", overlong="mask")).loss_mask
    np.testing.assert_array_equal(masked, mask & (rollout.lengths < 12)[:, None])


def test_mistakes_are_named() -> None:
    for mode in ("off", "forced"):
        with pytest.raises(UserError, match=f"loss.language=own needs language.mode free or constrained, not {mode}"):
            stage(mode, language="own")
    for name in ("language_coef", "language_shrinkage"):
        with pytest.raises(UserError, match=f"loss.{name}=-1.0 must not be negative"):
            LossConfig(**{name: -1.0})


# The update


@pytest.fixture(scope="module")
def allowed(one) -> np.ndarray:
    return some_allowed(one.Q)


@pytest.fixture(scope="module")
def constrained(one, allowed):
    """A batch without any advantage, whose reference is the policy itself: nothing has a gradient but what a test adds."""
    found = one.sample(prompts_allowing(one, allowed), trie=trie(), tag_width=W)
    return quiet(one, found, trie())._replace(language_values=np.zeros((one.Q, len(CODES)), np.float32))


def quiet(policy, rollout, its_trie):
    mask = rollout.action_mask
    return assemble(rollout, Scores(np.zeros(len(mask), np.float32), np.zeros(len(mask), bool)), stage())._replace(
        ref_logprobs=policy.score(rollout, trie=its_trie)
    )


@pytest.fixture(scope="module")
def own(one):
    return one.programs.update(one.stage(loss=OWN, language=CHOICE), one.sgd)


def values_of(policy) -> np.ndarray:
    return np.random.default_rng(4).normal(size=(policy.Q, len(CODES))).astype(np.float32)


def moved(policy, direction, scale: float):
    params = jax.tree.map(lambda p, d: p + scale * d, jax.device_get(policy.params), direction)
    return jax.device_put(params, policy.programs.param_shardings)


def dot(a, b) -> float:
    return sum(float((x.astype(np.float64) * y).sum()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def size(tree) -> float:
    return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def every_language(policy, rollout, allowed: np.ndarray) -> Rollout:
    """The rollout with language g of the config written into row g of each group, where the prompt allows it."""
    completions, states = rollout.completions.copy(), np.zeros((len(rollout.completions), W), np.int32)
    for row in range(len(completions)):
        node = tags.ROOT
        for t, token in enumerate(PATHS[CODES[row % policy.G]]):
            completions[row, t], states[row, t] = token, node
            node = trie().target[node, trie().tokens[node].tolist().index(token)]
    inside = np.zeros_like(rollout.action_mask)
    inside[:, :W] = states > 0
    inside &= allowed.reshape(-1)[:, None]
    return rollout._replace(completions=completions, action_mask=inside, tags=Tags(states, rollout.tags.language))


def test_the_gradient_of_all_actions_is_that_of_the_expected_value(one, own, constrained, allowed) -> None:
    """Against Σ_l π(l)·Q̂(l) with every language of every prompt written out and scored, along three directions."""
    values, choices = values_of(one), allowed.sum(1) > 1
    grads, _, metrics = one.update(constrained._replace(language_values=values), program=own, trie=trie())
    spelled = every_language(one, constrained.rollout, allowed)

    def expected_at(params) -> float:
        logprobs = one.score(spelled, params=params, trie=trie()).sum(1).reshape(one.Q, -1).astype(np.float64)
        pi = np.where(allowed, np.exp(logprobs), 0)
        np.testing.assert_allclose(pi.sum(1), 1, rtol=1e-4)
        return OWN.language_coef * float((pi * values).sum(1)[choices].mean())

    assert metrics["policy/loss"] == pytest.approx(-expected_at(one.params), rel=1e-4)
    rng = np.random.default_rng(5)
    noise = [jax.tree.map(lambda g: rng.normal(size=g.shape).astype(np.float32) * np.abs(g), grads) for _ in range(2)]
    for direction in (grads, *(jax.tree.map(np.add, grads, n) for n in noise)):
        h = 1e-2 / np.sqrt(dot(direction, direction))
        slope = (expected_at(moved(one, direction, -h)) - expected_at(moved(one, direction, h))) / (2 * h)
        assert slope == pytest.approx(dot(grads, direction), rel=1e-2)


def test_equal_values_teach_nothing(one, own, constrained) -> None:
    level = np.repeat(np.linspace(-2, 2, one.Q, dtype=np.float32)[:, None], len(CODES), axis=1)
    for values in (np.zeros_like(level), level):
        grads, _, _ = one.update(constrained._replace(language_values=values), program=own, trie=trie())
        assert size(grads) < 2e-6
    assert size(one.update(constrained._replace(language_values=values_of(one)), program=own, trie=trie())[0]) > 1e-2


def test_a_bonus_moves_tags_alone(one, own, constrained) -> None:
    """Nothing is right; languages earn unlike bonuses. The update is that of the tags, whatever the thinking's mask."""
    rollout = constrained.rollout
    bonus = (0.1 * rollout.tags.language).astype(np.float32)
    scores = Scores(bonus, np.zeros(len(bonus), bool), language_rewards=bonus)
    made = assemble(rollout, scores, stage(language="own"))
    batch = made._replace(ref_logprobs=constrained.ref_logprobs)
    assert (made.advantages == 0).all() and np.abs(made.language_values).max() > 0.5
    grads, _, _ = one.update(batch, program=own, trie=trie())
    tag = tag_mask(rollout.tags, one.C)
    alone, _, _ = one.update(batch._replace(loss_mask=batch.loss_mask & tag), program=own, trie=trie())
    assert size(alone) > 1e-3
    assert_trees_close(grads, alone, rtol=1e-4, atol=2e-6)


def lively(one, constrained):
    """A batch with everything in it."""
    rng, mask = np.random.default_rng(6), constrained.loss_mask
    learn = mask & (np.arange(len(mask)) % 7 != 3)[:, None]
    advantages = rng.normal(size=(len(mask), 1)).astype(np.float32) * (mask & ~tag_mask(constrained.rollout.tags, one.C))
    ref = constrained.ref_logprobs + np.where(mask, rng.normal(size=mask.shape, scale=0.1), 0).astype(np.float32)
    return constrained._replace(advantages=advantages, loss_mask=learn, ref_logprobs=ref, language_values=values_of(one))


def test_microbatches_and_the_mesh_change_nothing(one, eight, own, constrained) -> None:
    batch = lively(one, constrained)
    grads, _, metrics = one.update(batch, program=own, trie=trie())
    assert size(grads) > 0.1
    in_four = one.programs.update(one.stage(loss=OWN, language=CHOICE, num_microbatches=4), one.sgd)
    in_two = eight.programs.update(eight.stage(loss=OWN, language=CHOICE, num_microbatches=2), eight.sgd)
    for policy, program in ((one, in_four), (eight, in_two)):
        found, _, told = policy.update(batch, program=program, trie=trie())
        assert_trees_close(found, grads, rtol=1e-4, atol=2e-6)
        for name in metrics:
            np.testing.assert_allclose(told[name], metrics[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_sampled_tag_counts_the_same_beside_long_thinking(one, own) -> None:
    """Mode free: the tag's part of the gradient is coef · mean over rows of A·∇log π(its tokens), whatever follows."""
    watched = trie("free")
    rollout = one.sample(prompts_allowing(one, np.ones((one.Q, len(CODES)), bool)), trie=watched, tag_width=W)
    base = quiet(one, rollout, watched)
    tag, rng = tag_mask(rollout.tags, one.C) & rollout.action_mask, np.random.default_rng(7)
    of_tag = np.where(tag, rng.normal(size=(len(tag), 1)), 0).astype(np.float32)
    of_thinking = np.where(tag, 0, rng.normal(size=(len(tag), 1))).astype(np.float32)

    def gradient(advantages, mask):
        return one.update(base._replace(advantages=advantages, loss_mask=mask), program=own, trie=watched)[0]

    alone = gradient(of_tag, tag)
    both = gradient(of_tag + of_thinking, rollout.action_mask)
    thinking = gradient(of_thinking, rollout.action_mask & ~tag)
    assert_trees_close(both, jax.tree.map(np.add, alone, thinking), rtol=1e-4, atol=2e-6)

    def objective(params) -> float:
        logprobs = one.score(rollout, params=params, trie=watched).astype(np.float64)
        return OWN.language_coef * float((of_tag * logprobs).sum(1).mean())

    h = 1e-2 / np.sqrt(dot(alone, alone))
    slope = (objective(moved(one, alone, -h)) - objective(moved(one, alone, h))) / (2 * h)
    assert slope == pytest.approx(dot(alone, alone), rel=1e-2)


# The bandit


@pytest.fixture(scope="module")
def bandit():
    path = Path(__file__).resolve().parent.parent / "tools" / "language_credit.py"
    spec = importlib.util.spec_from_file_location("language_credit", path)
    module = importlib.util.module_from_spec(spec)
    __import__("sys").modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("world", ["equal lengths, exact rewards", "different lengths, 0/1 rewards"])
def test_own_credit_is_less_noisy_and_finds_the_best_language_sooner(bandit, world) -> None:
    setting = bandit.worlds()[world]
    arms = {arm.name: arm for arm in bandit.ARMS}
    shared, sampled, every = (arms[name] for name in ("shared", "own, sampled", "own, all actions"))
    noise = {arm: bandit.noise(setting, arm, bandit.Policy.fresh(), 300) for arm in (shared, sampled, every)}
    assert noise[every][0] < 0.6 * noise[shared][0] and noise[every][0] < noise[sampled][0] < noise[shared][0]
    assert noise[every][1] < 1.1 * noise[shared][1]
    runs = {arm: [bandit.learn(setting, arm, seed, 130) for seed in range(3)] for arm in noise}
    steps = {arm: np.median([bandit.steps_to_best(best) for best, _, _ in runs[arm]]) for arm in noise}
    assert max(steps[sampled], steps[every]) < (0.5 if "different" in world else 0.9) * steps[shared]
    rewards = {arm: np.mean([reward.mean() for _, reward, _ in runs[arm]]) for arm in noise}
    assert rewards[every] > rewards[shared] - 1e-3


def test_pooling_is_what_makes_the_tag_less_noisy(bandit) -> None:
    """The naive identity again, in its effect: without pooling the tag's gradient is as noisy as with shared credit."""
    setting = bandit.worlds()["equal lengths, exact rewards"]
    naive, shared = bandit.Arm("naive", kappa=0.0), bandit.Arm("shared", own=False)
    found = [bandit.noise(setting, arm, bandit.Policy.fresh(), 200)[0] for arm in (naive, shared)]
    assert found[0] == pytest.approx(found[1], rel=1e-3)
