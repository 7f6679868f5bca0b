"""The language action: the trie is the tags, and the sampler and the trainer agree on what it does."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_ml.config import LanguageConfig, LossConfig, SamplingConfig
from jaxrl_ml.languages import tags
from jaxrl_ml.types import Batch, Example, Tags, TagTrie, UserError

# Tags that share beginnings and have different lengths.
PATHS = {"aa": (1, 2, 9), "bb": (1, 2, 10, 3), "cc": (1, 4), "dd": (8, 12)}
CODES = tuple(PATHS)
W = 4


def config(mode: str = "constrained", languages: tuple[str, ...] = CODES) -> LanguageConfig:
    return LanguageConfig(mode, languages, "{code}")


def encode(texts: list[str]) -> list[list[int]]:
    return [list(PATHS[text]) for text in texts]


def trie(mode: str = "constrained") -> TagTrie:
    return tags.make_trie(config(mode), encode)


def prompts_allowing(policy, allowed: np.ndarray):
    return policy.prompts()._replace(allowed=allowed)


def some_allowed(Q: int) -> np.ndarray:
    """All, pairs and single languages."""
    table = np.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 1, 1]], bool)
    return table[np.arange(Q) % 4]


@pytest.fixture(scope="module")
def constrained(one):
    return one.sample(prompts_allowing(one, some_allowed(one.Q)), trie=trie(), tag_width=W)


def walk(rollout, row: int) -> str | None:
    tokens = tuple(rollout.completions[row, : rollout.lengths[row]].tolist())
    return next((code for code, path in PATHS.items() if tokens[: len(path)] == path), None)


@settings(max_examples=50, deadline=None)
@given(st.sets(st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple), min_size=1, max_size=6))
def test_the_trie_holds_the_tags_and_nothing_else(paths: set[tuple[int, ...]]) -> None:
    paths = sorted(paths)
    codes = tuple(f"l{i}" for i in range(len(paths)))
    clash = any(a != b and b[: len(a)] == a for a in paths for b in paths)
    setting = LanguageConfig("free", codes, "{code}")

    def encode(texts: list[str]) -> list[list[int]]:
        return [list(paths[int(text[1:])]) for text in texts]

    if clash:
        with pytest.raises(UserError, match="begin those of"):
            tags.make_trie(setting, encode)
        return
    found = tags.make_trie(setting, encode)
    spelled = {}

    def visit(node: int, before: tuple[int, ...]) -> None:
        for edge, token in enumerate(found.tokens[node].tolist()):
            if token < 0:
                assert not found.reach[node, edge].any()
                continue
            path = (*before, token)
            assert set(np.flatnonzero(found.reach[node, edge])) == {i for i, p in enumerate(paths) if p[: len(path)] == path}
            if found.target[node, edge] == 0:
                spelled[path] = int(found.language[node, edge])
            else:
                assert found.language[node, edge] == -1
                visit(int(found.target[node, edge]), path)

    visit(tags.ROOT, ())
    assert spelled == {path: i for i, path in enumerate(paths)}


def test_constrained_rows_start_with_an_allowed_tag(one, constrained) -> None:
    allowed = np.repeat(some_allowed(one.Q), one.G, axis=0)
    for row in range(one.Q * one.G):
        code = walk(constrained, row)
        assert code is not None and allowed[row, CODES.index(code)]
        assert constrained.tags.language[row] == CODES.index(code)
        states = constrained.tags.state[row]
        assert (states[: len(PATHS[code])] > 0).all() and (states[len(PATHS[code]) :] == 0).all()
    assert len(set(constrained.tags.language[np.arange(one.Q * one.G) // one.G % 4 == 0].tolist())) > 1, "some choice"


def test_a_choice_of_one_is_no_action(one, constrained) -> None:
    # cc or aa share their first token; a single language leaves nothing to choose; cc and dd part at once.
    expected = {(1, "aa"): [0, 1, 0], (1, "cc"): [0, 1], (2, "bb"): [0] * 4, (3, "cc"): [1, 0], (3, "dd"): [1, 0]}
    seen = set()
    for row in range(one.Q * one.G):
        case = (row // one.G % 4, walk(constrained, row))
        if case in expected:
            mask = constrained.action_mask[row]
            n = len(expected[case])
            assert mask[:n].tolist() == [bool(x) for x in expected[case]]
            np.testing.assert_array_equal(mask[n:], np.arange(n, one.C) < constrained.lengths[row])
            assert (constrained.sampler_logprobs[row, :n][~mask[:n]] == 0).all()
            seen.add(case)
    assert len(seen) >= 4


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_trainer_and_sampler_agree_on_every_tag_token(one, temperature: float) -> None:
    sampling = SamplingConfig(temperature=temperature)
    found = one.sample(prompts_allowing(one, some_allowed(one.Q)), sampling, trie=trie(), tag_width=W)
    scored = one.score(found, temperature=temperature, trie=trie())
    np.testing.assert_allclose(scored, found.sampler_logprobs, atol=2e-5)
    free = one.score(found._replace(tags=None), temperature=temperature)
    assert np.abs(free - scored)[:, 0][found.action_mask[:, 0]].min() > 0.1, "renormalising matters here"


def test_language_probabilities_sum_to_one(one) -> None:
    """Each row of a group is given another language; their probabilities are those of all there is."""
    allowed = np.ones((one.Q, 4), bool)
    given = one.sample(prompts_allowing(one, np.eye(4, dtype=bool)[np.arange(one.Q) % 4]), trie=trie(), tag_width=W)
    rows = np.arange(one.Q * one.G)
    completions, states = given.completions.copy(), np.zeros((len(rows), W), np.int32)
    for row in rows:
        path, node = PATHS[CODES[row % 4]], tags.ROOT
        for t, token in enumerate(path):
            completions[row, t], states[row, t] = token, node
            node = trie().target[node, trie().tokens[node].tolist().index(token)]
    rollout = given._replace(
        prompts=prompts_allowing(one, allowed),
        completions=completions,
        action_mask=np.ones_like(given.action_mask),
        tags=Tags(states, (rows % 4).astype(np.int32)),
    )
    logprobs = np.where(np.arange(W) < np.array([len(PATHS[c]) for c in CODES])[rows % 4][:, None], 1, 0)
    logprobs = (one.score(rollout, trie=trie())[:, :W] * logprobs).sum(1)
    np.testing.assert_allclose(np.exp(logprobs).reshape(one.Q, 4).sum(1), 1, rtol=1e-5)


def test_free_mode_changes_nothing_and_sees_the_tags(one) -> None:
    """Node 0's tags are made likely enough to be written, by a tiny trie of single tokens."""
    codes = tuple(f"l{i}" for i in range(12))
    watched = tags.make_trie(LanguageConfig("free", codes, "{code}"), lambda texts: [[int(t[1:])] for t in texts])
    allowed = np.ones((one.Q, 12), bool)
    allowed[:, 11] = False
    found = one.sample(prompts_allowing(one, allowed), trie=watched, tag_width=1)
    np.testing.assert_array_equal(found.completions, one.rollout.completions)
    np.testing.assert_array_equal(found.sampler_logprobs, one.rollout.sampler_logprobs)
    np.testing.assert_array_equal(found.action_mask, one.rollout.action_mask)
    first = found.completions[:, 0]
    np.testing.assert_array_equal(found.tags.language, np.where(first < 11, first, -1))
    assert (found.tags.language >= 0).any() and (found.tags.language < 0).any()
    np.testing.assert_allclose(one.score(found, trie=watched), one.score(one.rollout), atol=1e-6)


def test_forced_tags_are_never_trained(one) -> None:
    allowed = np.eye(4, dtype=bool)[np.arange(one.Q) % 4]
    found = one.sample(prompts_allowing(one, allowed), trie=trie("forced"), tag_width=W)
    for row in range(one.Q * one.G):
        code = CODES[row // one.G % 4]
        assert walk(found, row) == code
        assert not found.action_mask[row, : len(PATHS[code])].any()
    everywhere = np.arange(one.C)[None] < found.lengths[:, None]
    on_tags = everywhere & ~found.action_mask
    rng = np.random.default_rng(0)
    advantages = rng.normal(size=on_tags.shape).astype(np.float32)
    # Even a loss mask that asks for it teaches nothing on them.
    batch = Batch(found._replace(action_mask=everywhere), advantages, on_tags, found.sampler_logprobs, found.sampler_logprobs)
    program = one.programs.update(one.stage(loss=LossConfig()), one.sgd)
    grads, _, _ = one.update(batch, program=program, trie=trie("forced"))
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads)) < 1e-6


def test_gradient_is_that_of_the_renormalised_tag(one, constrained) -> None:
    """Along the gradient of the mean log-prob of the tags' tokens, that mean grows by the gradient's square norm."""
    mask = constrained.action_mask.copy()
    mask[:, W:] = False
    batch = Batch(constrained, mask.astype(np.float32), mask, None, None)
    program = one.programs.update(one.stage(loss=LossConfig()), one.sgd)
    grads, state, _ = one.update(batch, program=program, trie=trie())
    squared = sum(float((leaf.astype(np.float64) ** 2).sum()) for leaf in jax.tree.leaves(grads))

    def mean_at(scale: float) -> float:
        params = jax.tree.map(lambda p, g: p - scale * g, jax.device_get(one.params), grads)
        params = jax.device_put(params, one.programs.param_shardings)
        return float((one.score(constrained, params=params, trie=trie()) * mask).sum() / mask.sum())

    h = 1e-2 / np.sqrt(squared)
    np.testing.assert_allclose((mean_at(h) - mean_at(-h)) / (2 * h), squared, rtol=1e-2)


def test_the_mesh_changes_nothing(one, eight, constrained) -> None:
    found = eight.sample(prompts_allowing(one, some_allowed(one.Q)), trie=trie(), tag_width=W)
    np.testing.assert_array_equal(found.completions, constrained.completions)
    np.testing.assert_array_equal(found.tags.language, constrained.tags.language)
    np.testing.assert_allclose(eight.score(found, trie=trie()), constrained.sampler_logprobs, atol=2e-5)


def test_greedy_and_top_p_stay_on_the_tags(one) -> None:
    allowed = some_allowed(one.Q)
    for sampling in (SamplingConfig(temperature=0.0), SamplingConfig(top_p=0.1, top_k=3)):
        found = one.sample(prompts_allowing(one, allowed), sampling, trie=trie(), tag_width=W)
        for row in range(one.Q * one.G):
            assert allowed[row // one.G, CODES.index(walk(found, row))]


def test_allowed_languages_per_prompt() -> None:
    free = Example("1", "t")
    narrow = Example("2", "t", {"languages": ("cc",)})
    np.testing.assert_array_equal(tags.allowed_languages(config(), [free, narrow]), [[1, 1, 1, 1], [0, 0, 1, 0]])
    native = dataclasses.replace(free, language="dd")
    np.testing.assert_array_equal(tags.allowed_languages(config("forced"), [native, narrow]), [[0, 0, 0, 1], [0, 0, 1, 0]])
    np.testing.assert_array_equal(tags.allowed_languages(config("forced", ("bb",)), [native]), [[1]])
    for bad in (Example("3", "t", {"languages": ("xx",)}), Example("3", "t", {"languages": ()})):
        with pytest.raises(UserError, match="example '3' is to think in"):
            tags.allowed_languages(config(), [bad])


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="max_completion_tokens=4 leaves no room after a language tag of 4"):
        tags.language_action(config(), encode, 4)
    assert tags.language_action(LanguageConfig(), encode, 4) == (None, 0, None)
    for bad, message in (
        ({"mode": "free"}, "needs language.languages"),
        ({"languages": ("en",)}, "need language.mode"),
        ({"mode": "free", "languages": ("en", "en")}, "names en twice"),
        ({"mode": "free", "languages": ("en",), "tag": "<x>"}, "must have {code}"),
        ({"mode": "free", "languages": ("en",), "tag": ("a", "b")}, "has 2 texts"),
    ):
        with pytest.raises(UserError, match=message):
            LanguageConfig(**bad)


def test_kl_is_told_by_language(one, constrained) -> None:
    stage = one.stage(loss=LossConfig(kl="k3"), language=config(), num_microbatches=2)
    mask, scored = constrained.action_mask, one.score(constrained, trie=trie())
    noise = np.random.default_rng(0).normal(scale=0.3, size=mask.shape)
    difference = np.where(mask, noise, 0).astype(np.float32)
    batch = Batch(constrained, np.zeros_like(difference), mask, None, scored + difference)
    _, _, metrics = one.update(batch, program=one.programs.update(stage, one.sgd), trie=trie())
    estimate = np.expm1(difference) - difference
    assert metrics["policy/kl"] == pytest.approx(estimate[mask].mean(), rel=1e-4)
    for place, code in enumerate(CODES):
        own = mask & (constrained.tags.language == place)[:, None]
        assert metrics[f"language/tokens/{code}"] == own.sum() > 0
        assert metrics[f"language/kl/{code}"] == pytest.approx(estimate[own].mean(), rel=1e-4)


def test_a_tag_or_mark_that_decoding_would_lose_is_refused():
    from test_tokenizer import wrapped

    from jaxrl_ml.tokenizer import Tokenizer

    named = ["<think>", "</think>", "<answer>", "</answer>", "<lang_select>", "<de>"]
    ours = LanguageConfig("free", ("de", "en"))
    tags.check_decoding("grpo", ours, Tokenizer(wrapped("bytes", additional_special_tokens=named), [1]))
    tags.check_decoding("grpo", LanguageConfig(), Tokenizer(wrapped("bytes", pad_token="<de>"), [1]))

    def refused(config: LanguageConfig, tokenizer: Tokenizer, *texts: str) -> None:
        with pytest.raises(UserError) as caught:
            tags.check_decoding("grpo", config, tokenizer)
        assert "\n" not in str(caught.value)
        for text in ("grpo: ", *texts):
            assert text in str(caught.value)

    for change in ({"eos_token": "<de>"}, {"pad_token": "<de>"}, {"bos_token": "<de>"}):
        hf = wrapped("bytes")
        hf.add_special_tokens(change)
        refused(LanguageConfig("forced", ("de", "en"), "<{code}>"), Tokenizer(hf, [1]), "language.tag '<de>' is decoded as ''")
    marked = wrapped("bytes", additional_special_tokens=named)
    stop = marked.convert_tokens_to_ids("</answer>")
    refused(ours, Tokenizer(marked, [1, stop]), "rewards read </answer>, but </answer> is", "sampling.stop")
    refused(LanguageConfig(), Tokenizer(marked, [1, stop]), "rewards read </answer>")
    plain = wrapped("bytes")
    newline = plain("\n")["input_ids"][0]  # an ordinary token keeps its text, but completions end there
    refused(ours, Tokenizer(plain, [1, newline]), f"holds stop ids [{newline}], which end completions")
    refused(ours, Tokenizer(wrapped("pieces", additional_special_tokens=["<think>"]), [1]), "is decoded as")
