"""Laws of the sampler: greedy is argmax, log-probs are the scorer's, stops are trained, rows do not see their neighbours."""

from __future__ import annotations

import os
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, Policy

from jaxrl_ml import sampler
from jaxrl_ml.config import ComputeConfig, MeshConfig, SamplingConfig
from jaxrl_ml.config.model import BLOCK, block_size
from jaxrl_ml.models import hf
from jaxrl_ml.models.attention import MASKED
from jaxrl_ml.programs import Programs
from jaxrl_ml.sampler import settings_of
from jaxrl_ml.sharding import make_mesh
from jaxrl_ml.tokenizer import Tokenizer
from jaxrl_ml.types import Prompts

GREEDY = SamplingConfig(temperature=0.0)


def take(prompts: Prompts, order) -> Prompts:
    """Some prompts in some order; each keeps its index, hence its noise."""
    return jax.tree.map(lambda x: np.asarray(x)[order], prompts)


def assert_same_rows(found, expected, rows=slice(None), tolerance=1e-5):
    np.testing.assert_array_equal(found.completions, expected.completions[rows])
    np.testing.assert_array_equal(found.lengths, expected.lengths[rows])
    np.testing.assert_array_equal(found.truncated, expected.truncated[rows])
    np.testing.assert_allclose(found.sampler_logprobs, expected.sampler_logprobs[rows], atol=tolerance)


def stop_at(row, policy) -> int | None:
    """The index of the token that ends a row, by the rule's words instead of its table."""
    previous = None
    for t, token in enumerate(row):
        if token in policy.STOP_IDS or (previous in policy.FIRST and token in policy.SECOND):
            return t
        previous = token
    return None


def lively(policy):
    """The policy's parameters with larger layers: a small tied model at its start only repeats itself."""
    return policy.params | {"layers": jax.tree.map(lambda leaf: 4 * leaf, policy.params["layers"])}


def test_greedy_is_the_argmax_of_full_uncached_passes(one):
    params = lively(one)
    found = one.sample(sampling=GREEDY, params=params)
    assert np.mean(found.completions[:, 1:4] != found.completions[:, :3]) > 0.5
    prompts, C, model = one.prompts(), one.C, one.programs.model
    tokens = np.pad(prompts.tokens, ((0, 0), (0, C)))
    mask = np.pad(prompts.mask, ((0, 0), (0, C)), constant_values=True)
    positions = np.asarray(sampler.prompt_positions(jnp.asarray(mask)))

    @jax.jit
    def forward(params, tokens):
        hidden, _ = model.prefill(params, tokens, positions, mask.astype(np.int32))
        return model.logits(params, hidden).argmax(-1)

    for t in range(C):
        tokens[:, one.P + t] = forward(params, tokens)[:, one.P + t - 1]
    completions = found.completions.reshape(one.Q, one.G, C)
    for q in range(one.Q):
        expected = tokens[q, one.P :]
        end = stop_at(expected, one)
        length = C if end is None else end + 1
        for g in range(one.G):
            assert found.lengths[q * one.G + g] == length
            np.testing.assert_array_equal(completions[q, g, :length], expected[:length])
    np.testing.assert_array_equal(found.sampler_logprobs, 0)


@pytest.mark.parametrize("family", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen2", "qwen3"))])
def test_greedy_is_transformers_generate_token_for_token(one, family, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    config = replace(TINY, family=family)
    policy = one if family == "llama" else Policy(MeshConfig(), 1, config)
    params = lively(policy)
    hf.save_params(tmp_path / "hf", params, config, "float32", Tokenizer.from_vocabulary(list("abc")))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    table = np.array([[0], [1], [2]], np.int16).repeat(policy.V, axis=1)
    table[:, policy.STOP_IDS] = 2
    found = policy.sample(sampling=GREEDY, table=table, params=params)
    for q, (tokens, mask) in enumerate(zip(*policy.prompts()[:2], strict=True)):
        prompt = torch.from_numpy(tokens[mask].astype(np.int64))[None]
        stops = list(policy.STOP_IDS)
        out = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),  # else it takes tokens that equal the padding's for padding
            do_sample=False,
            max_new_tokens=policy.C,
            eos_token_id=stops,
            pad_token_id=0,
        )
        row = q * policy.G
        assert out[0, prompt.shape[1] :].tolist() == found.completions[row, : found.lengths[row]].tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampler_logprobs_are_the_scorers(one, temperature):
    found = one.sample(sampling=SamplingConfig(temperature=temperature))
    scored = one.score(found, temperature=temperature)
    np.testing.assert_allclose(found.sampler_logprobs, scored, atol=1e-5)
    np.testing.assert_array_equal(scored[~found.action_mask], 0)
    assert np.abs(scored - one.score(found, temperature=1.5)).max() > 0.1  # the temperature is in it


def test_rows_end_at_the_first_stop_and_the_stop_token_is_an_action(one):
    found = one.rollout
    ends = [stop_at(row, one) for row in found.completions]
    np.testing.assert_array_equal(found.lengths, [one.C if end is None else end + 1 for end in ends])
    np.testing.assert_array_equal(found.truncated, [end is None for end in ends])
    np.testing.assert_array_equal(found.action_mask, np.arange(one.C)[None] < found.lengths[:, None])
    np.testing.assert_array_equal(found.sampler_logprobs != 0, found.action_mask)
    np.testing.assert_array_equal(found.completions[~found.action_mask], 0)
    last = [row[end] for row, end in zip(found.completions, ends, strict=True) if end is not None]
    kinds = {*(t for t in last if t in one.STOP_IDS), *("string" for t in last if t in one.SECOND)}
    assert kinds == {*one.STOP_IDS, "string"}  # the sample has every kind of end
    assert found.truncated.any()


def test_the_automaton_is_not_only_a_last_token(one):
    """A token of SECOND without one of FIRST before it does not stop, wherever the row is."""
    found = one.rollout
    survived = [t for row, n in zip(found.completions, found.lengths, strict=True) for t in row[: n - 1]]
    assert set(survived) & set(one.SECOND)
    assert not set(survived) & set(one.STOP_IDS)


def test_the_stop_token_is_trained(one, batch):
    rollout = batch.rollout
    stopped = ~rollout.truncated
    only_stops = rollout.action_mask & (np.arange(one.C)[None] == rollout.lengths[:, None] - 1) & stopped[:, None]
    scored = one.score(rollout)
    on_policy = batch._replace(
        loss_mask=only_stops, advantages=np.ones_like(batch.advantages), old_logprobs=scored, ref_logprobs=scored
    )
    _, state, metrics = one.update(on_policy)
    assert metrics["policy/grad_norm"] > 0.1
    gain = one.score(rollout, params=state.params) - scored
    assert gain[only_stops].mean() > 0.1


def test_a_row_does_not_depend_on_its_batch(one):
    prompts = one.prompts()
    order = np.array([3, 1, 7, 0, 2, 6, 5, 4])
    permuted = one.sample(take(prompts, order))
    rows = (order[:, None] * one.G + np.arange(one.G)).reshape(-1)
    assert_same_rows(permuted, one.rollout, rows)
    for part in range(2):
        chunk = one.sample(take(prompts, np.arange(4) + 4 * part))
        assert_same_rows(chunk, one.rollout, slice(16 * part, 16 * part + 16))
    assert_same_rows(one.sample(take(prompts, [5])), one.rollout, slice(20, 24))


def test_a_row_does_not_depend_on_the_mesh(one, eight, cube):
    for mesh in (eight, cube):
        assert_same_rows(mesh.rollout, one.rollout)


def test_left_padding_changes_nothing(one):
    assert_same_rows(one.sample(one.prompts(width=one.P + 5)), one.rollout)


def test_samples_of_a_group_and_equal_prompts_at_other_places_differ(one):
    prompts = one.prompts()
    same = Prompts(np.repeat(prompts.tokens[2:3], 8, axis=0), np.repeat(prompts.mask[2:3], 8, axis=0), prompts.index)
    found = one.sample(same, table=one.stop_table() * 0 + np.array([[0], [0], [2]], np.int16))
    assert len({row.tobytes() for row in found.completions}) == one.Q * one.G


@pytest.mark.parametrize("place", range(4), ids=["seed", "purpose", "step", "attempt"])
def test_every_seed_word_changes_the_noise(one, place):
    words = [0, 1, 2, 3]
    words[place] += 1
    found = one.sample(words=tuple(words))
    assert (found.completions[:, 0] != one.rollout.completions[:, 0]).mean() > 0.5
    np.testing.assert_array_equal(one.sample().completions, one.rollout.completions)


def test_decoding_stops_when_every_row_has_stopped_and_in_pieces_gives_the_same(one):
    programs, table = one.programs, one.put(one.stop_table())
    words, settings = one.put(np.arange(4, dtype=np.uint32)), one.put(sampler.settings_of(SamplingConfig()))
    prompts = one.put_rows(one.prompts())

    def pieces(table, *ends):
        state = programs.begin(one.weights, prompts, words, table, one.G, one.C)
        for end in ends:
            state = programs.decode(one.weights, state, table, settings, False, one.put(np.int32(end)))
        return state

    state = pieces(table, 3, 4, one.C)
    np.testing.assert_array_equal(state.completions, one.rollout.completions)
    np.testing.assert_allclose(state.logprobs, one.rollout.sampler_logprobs, atol=1e-6)
    at_once = pieces(one.put(np.full((3, one.V), 2, np.int16)), one.C)
    assert int(at_once.position) == 1
    np.testing.assert_array_equal(at_once.lengths, 1)


@pytest.mark.parametrize(
    "mesh",
    [pytest.param(MeshConfig(data=1), marks=pytest.mark.slow), MeshConfig(data=2, fsdp=2, tensor=2)],
    ids=["one", "cube"],
)
def test_a_cache_that_grows_changes_nothing(one, mesh, monkeypatch):
    expected, greedy = one.rollout, one.sample(sampling=GREEDY)  # before the patch: they are of a cache that does not grow
    monkeypatch.setattr(sampler, "FIRST_WIDTH", 2)
    growing = Policy(mesh, int(np.prod([mesh.data, mesh.fsdp, mesh.tensor])))
    assert sampler.cache_widths(growing.C) == [2, 4, 8, 12]
    assert_same_rows(growing.sample(), expected)
    np.testing.assert_array_equal(growing.sample(sampling=GREEDY).completions, greedy.completions)


@pytest.mark.parametrize("C", [1, 127, 128, 129, 4096, 5000])
def test_widths_of_the_cache_double_up_to_the_completion(C):
    widths = sampler.cache_widths(C)
    assert widths[-1] == C and sorted(set(widths)) == widths
    assert all(after <= 2 * before for before, after in zip(widths, widths[1:], strict=False))
    assert len(widths) <= 1 + max(0, np.ceil(np.log2(C / sampler.FIRST_WIDTH)))


@pytest.mark.parametrize("V", [49_152, 128_256, 151_936, 152_064])
def test_blocks_of_real_vocabularies_stay_whole_on_eight_devices(V):
    assert 16 <= block_size(V) <= BLOCK
    assert V % (8 * block_size(V)) == 0


@pytest.mark.parametrize("V", [1, 48, 117, 50_257])
def test_blocks_of_other_vocabularies_are_as_large_as_may_be(V):
    assert block_size(V) == min(BLOCK, V)


def test_top_k_of_one_is_greedy_and_certain(one):
    found, greedy = one.sample(sampling=SamplingConfig(top_k=1)), one.sample(sampling=GREEDY)
    np.testing.assert_array_equal(found.completions, greedy.completions)
    np.testing.assert_allclose(found.sampler_logprobs, 0, atol=1e-6)


def test_a_prompt_of_one_token_in_a_buffer_of_one(one):
    model, params = one.programs.model, one.params
    prompts = Prompts(jnp.array([[3], [4]]), jnp.ones((2, 1), bool), jnp.arange(2, dtype=jnp.uint32))
    segments = jnp.ones((2, 1), jnp.int32)

    @jax.jit
    def both(params):
        cache = sampler.prefill_prompts(model, params, prompts)
        extended, _ = model.extend(params, prompts.tokens, segments - 1, cache)
        return extended, model.prefill(params, prompts.tokens, segments - 1, segments)[0]

    extended, whole = both(params)
    np.testing.assert_allclose(extended, whole, atol=1e-5)


LOGITS = np.random.default_rng(0).normal(scale=2.0, size=(1, 8)).astype(np.float32)


def drawn(sampling: SamplingConfig, count: int):
    """`count` independent draws from one distribution: tokens and their log-probs."""
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(7), i))(jnp.arange(count))
    settings = sampler.settings_of(sampling)
    logits = jnp.repeat(jnp.asarray(LOGITS), count, axis=0)
    return jax.device_get(jax.jit(sampler.draw, static_argnums=3)(logits, keys, settings, sampling.truncates))


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingConfig(),
        SamplingConfig(temperature=0.6),
        SamplingConfig(temperature=1.7, top_k=5),
        SamplingConfig(top_p=0.8),
        SamplingConfig(min_p=0.1),
    ],
    ids=["plain", "cold", "top_k", "top_p", "min_p"],
)
def test_draws_follow_the_softmax_of_what_is_left(sampling):
    count = 20_000
    tokens, logprobs = drawn(sampling, count)
    scaled = LOGITS[0] / sampling.temperature
    probs = np.exp(scaled - scaled.max())
    probs /= probs.sum()
    order = np.argsort(-probs)
    before = np.cumsum(probs[order]) - probs[order]
    kept = np.zeros(8, bool)
    kept[order] = (
        (np.arange(8) < (sampling.top_k or 8)) & (before < sampling.top_p) & (probs[order] >= sampling.min_p * probs.max())
    )
    assert kept.all() != sampling.truncates
    probs = np.where(kept, probs, 0) / probs[kept].sum()
    counts = np.bincount(tokens, minlength=8)
    assert (counts[~kept] == 0).all()
    chi2 = ((counts - count * probs)[kept] ** 2 / (count * probs[kept])).sum()
    assert chi2 < 24.3  # 99.9 % quantile at 7 degrees of freedom
    np.testing.assert_allclose(logprobs, np.log(probs[tokens]), atol=1e-5)


def test_draws_among_many_blocks_follow_the_softmax_and_never_take_what_is_masked():
    V, count = 3 * BLOCK - 5, 20_000
    rng = np.random.default_rng(0)
    logits = rng.normal(size=V).astype(np.float32)
    logits[rng.random(V) < 0.5] = MASKED
    logits[:BLOCK] = MASKED  # a whole block
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(7), i))(jnp.arange(count))
    settings = sampler.settings_of(SamplingConfig())
    draw = jax.jit(lambda keys: sampler.draw(jnp.tile(logits, (count, 1)), keys, settings, False))
    tokens, logprobs = jax.device_get(draw(keys))
    expected = np.where(logits > MASKED, logits - np.log(np.exp(logits.astype(np.float64)).sum()), -np.inf)
    np.testing.assert_allclose(logprobs, expected[tokens], atol=1e-5)
    groups = np.arange(V) % 20  # of about 13 tokens each, over all blocks
    counts, probs = np.bincount(groups[tokens], minlength=20), np.bincount(groups, np.exp(expected))
    assert ((counts - count * probs) ** 2 / (count * probs)).sum() < 43.8  # 99.9 % quantile at 19 degrees of freedom


def test_inversion_takes_no_place_of_weight_zero_at_either_end():
    weights = jnp.array([[0.0, 3.0, 0.0, 1.0, 0.0]] * 4)
    uniform = jnp.array([0.0, 0.7499, 0.7501, 1 - 2**-23])
    np.testing.assert_array_equal(sampler._invert(weights, uniform), [1, 1, 3, 3])
    np.testing.assert_array_equal(sampler._invert(jnp.zeros((1, 3)), uniform[:1]), [0])


@pytest.mark.parametrize("top_k", [0, 1, 5, 100])
@pytest.mark.parametrize(("top_p", "min_p"), [(1.0, 0.0), (0.7, 0.0), (1.0, 0.05), (0.9, 0.02), (0.01, 0.5)])
def test_supports_are_hugging_faces(top_k, top_p, min_p):
    torch = pytest.importorskip("torch")
    from transformers.generation import logits_process as hf

    logits = np.random.default_rng(1).normal(scale=2.0, size=(6, 40)).astype(np.float32)
    logits[:, 17] = logits[:, 3]  # a tie
    scores = torch.from_numpy(logits.copy())
    steps = [hf.TopKLogitsWarper(top_k)] if top_k else []
    steps += [hf.TopPLogitsWarper(top_p)] if top_p < 1 else []
    steps += [hf.MinPLogitsWarper(min_p)] if min_p else []
    for step in steps:
        scores = step(None, scores)
    settings = sampler.settings_of(SamplingConfig(top_k=top_k, top_p=top_p, min_p=min_p))
    found = np.asarray(sampler.truncate(jnp.asarray(logits), settings))
    expected = np.isfinite(scores.numpy())
    expected[:, 3] = expected[:, 17] = expected[:, 3] | expected[:, 17]  # whole ties stay
    np.testing.assert_array_equal(found > MASKED, expected)
    np.testing.assert_array_equal(found[expected], logits[expected])


def test_ties_with_the_kth_logit_stay_as_in_hugging_face():
    logits = jnp.array([[2.0, 1.0, 3.0, 1.0, 0.0, 1.0]])
    settings = sampler.settings_of(SamplingConfig(top_k=3))
    np.testing.assert_array_equal(sampler.truncate(logits, settings)[0] > MASKED, [1, 1, 1, 1, 0, 1])
    # top-p then sees the mass of all three ties: before the first of them it is .77 of the rest; with one of them, .91.
    both = replace(SamplingConfig(top_k=3), top_p=0.8)
    np.testing.assert_array_equal(sampler.truncate(logits, sampler.settings_of(both))[0] > MASKED, [1, 1, 1, 1, 0, 1])


@pytest.mark.parametrize(
    ("sampling", "kept", "theirs"),
    [
        ({"top_k": 2}, [1, 1, 1, 1], 4),  # the logits that equal the second stay
        ({"top_k": 1}, [1, 0, 0, 0], 1),
        ({"min_p": 0.5}, [1, 1, 1, 1], 4),
        ({"min_p": 0.625}, [1, 0, 0, 0], 1),
        ({"top_p": 0.3}, [1, 0, 0, 0], 1),
        ({"top_p": 0.5}, [1, 1, 1, 1], 2),  # the whole tie, where Hugging Face keeps one of three
        ({"top_p": 0.7}, [1, 1, 1, 1], 3),
        ({"top_p": 0.5, "top_k": 3}, [1, 1, 1, 1], 2),
        ({"top_p": 0.5, "min_p": 0.5}, [1, 1, 1, 1], 2),
    ],
)
def test_ties_stay_together_which_in_hugging_face_top_p_divides(sampling, kept, theirs):
    torch = pytest.importorskip("torch")
    from transformers.generation import logits_process as hf

    logits = np.array([[1.0, 0.0, 0.0, 0.0]], np.float32) * np.float32(np.log(2))  # 40 %, and three times 20 %
    settings = sampler.settings_of(SamplingConfig(**sampling))
    np.testing.assert_array_equal(sampler.truncate(jnp.asarray(logits), settings)[0] > MASKED, kept)
    scores = torch.from_numpy(logits.copy())
    makers = {"top_k": hf.TopKLogitsWarper, "top_p": hf.TopPLogitsWarper, "min_p": hf.MinPLogitsWarper}
    for name, make in makers.items():
        scores = make(sampling[name])(None, scores) if name in sampling else scores
    assert int(torch.isfinite(scores).sum()) == theirs


def test_huge_logits_draw_and_score_finitely():
    logits = jnp.array([[1e30, -1e30, 0.0, 1e4]])
    keys = jax.random.split(jax.random.key(0), 1)
    for sampling in (SamplingConfig(), SamplingConfig(top_p=0.5, temperature=0.1), GREEDY):
        token, logprob = sampler.draw(logits, keys, sampler.settings_of(sampling), sampling.truncates)
        assert int(token[0]) == 0
        assert float(logprob[0]) == 0.0


SMOLLM2 = os.environ.get("JAXRL_ML_SMOLLM2")


@pytest.mark.slow
@pytest.mark.skipif(SMOLLM2 is None, reason="make a folder with `python tools/smollm2.py OUT`, and set JAXRL_ML_SMOLLM2=OUT")
def test_greedy_on_smollm2_is_transformers_generate_token_for_token():
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    tokenizer = Tokenizer.from_folder(SMOLLM2)
    questions = ("What is the capital of France?", "Write a short poem about a lighthouse.")
    prompts = tokenizer.encode_prompts([[{"role": "user", "content": question}] for question in questions])
    programs = Programs(hf.read_config(SMOLLM2), ComputeConfig(), make_mesh(MeshConfig(), jax.devices()[:1]))
    layout = programs.layout
    weights = programs.gather(hf.load_params(SMOLLM2, programs.model, programs.param_shardings))
    width, new = max(map(len, prompts)), 32
    tokens = np.array([[7] * (width - len(ids)) + ids for ids in prompts], np.int32)
    mask = np.array([[False] * (width - len(ids)) + [True] * len(ids) for ids in prompts])
    rollout = programs.sample(
        weights,
        layout.put_rows(Prompts(tokens, mask, np.arange(2, dtype=np.uint32))),
        layout.put(np.zeros(4, np.uint32)),
        layout.put(tokenizer.stop_table((), programs.model.config.vocab_size)),
        layout.put(settings_of(GREEDY)),
        truncates=False,
        group_size=1,
        width=new,
    )
    model = AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float32)
    for row, ids in enumerate(prompts):
        prompt = torch.tensor([ids])
        out = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=new)
        length = int(rollout.lengths[row])
        assert out[0, len(ids) :].tolist() == np.asarray(rollout.completions)[row, :length].tolist()
