"""Laws of the decoder: padding, packing, caches, causality, layouts, rematerialisation and meshes change no number."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_ml.config import MeshConfig, ModelConfig, RopeScaling
from jaxrl_ml.models.layers import rope_frequencies
from jaxrl_ml.models.transformer import KVCache, PromptCache, Transformer, unstack
from jaxrl_ml.sharding import SAMPLING, TRAINING, Layout, make_mesh

LLAMA = ModelConfig(vocab_size=48, num_layers=2, embed_dim=32, mlp_dim=48, num_heads=4, num_kv_heads=2, head_dim=8)
FAMILIES = {
    "llama": LLAMA,
    "qwen2": replace(LLAMA, family="qwen2"),
    "qwen3": replace(LLAMA, family="qwen3", head_dim=12, tie_embeddings=False),
}
Q, G, P, C = 2, 3, 6, 5
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiling is most of this file's time
TIGHT = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(params=FAMILIES)
def model(request):
    return Transformer(FAMILIES[request.param])


@pytest.fixture
def qwen3():
    """For laws that no family changes: the one with an untied head, a free head_dim and norms inside attention."""
    return Transformer(FAMILIES["qwen3"])


@lru_cache
def make_params(model: Transformer):
    """Random parameters in which norms and biases are not at their neutral values; made by numpy, which compiles nothing."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        return jnp.asarray((path[-1].key == "scale") + 0.2 * rng.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0)))


def positions_of(mask):
    return jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)


def batch(seed: int = 0):
    """Left-padded prompts [Q, P] with their mask, and completions [Q·G, C]."""
    rng = np.random.default_rng(seed)
    mask = np.arange(P)[None] >= np.array([[0], [3]])
    tokens = np.where(mask, rng.integers(2, 48, (Q, P)), 0)
    return jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(rng.integers(2, 48, (Q * G, C)))


def shared_hidden(model, params, tokens, mask, completions):
    """Hidden states [B, C, D] that predict the completions: prompts once, then all C tokens at a time."""
    positions = positions_of(mask)
    _, cache = model.prefill(params, tokens, positions, mask.astype(jnp.int32))
    prompt = PromptCache(jax.tree.map(lambda x: x[..., :-1, :], cache), mask[:, :-1])
    fed = jnp.concatenate([jnp.repeat(tokens[:, -1:], G, axis=0), completions[:, :-1]], axis=1)
    start = jnp.repeat(positions[:, -1:], G, axis=0)
    return model.extend(params, fed, start + jnp.arange(C)[None], prompt)[0]


def branched_hidden(model, params, tokens, mask, completions):
    """The same in one pass over the layers, beside rows that are of no account."""
    positions = positions_of(mask)
    fed = jnp.concatenate([jnp.repeat(tokens[:, -1:], G, axis=0), completions[:, :-1]], axis=1)
    rows = fed, jnp.repeat(positions[:, -1:], G, axis=0) + jnp.arange(C)[None]
    prompts = tokens[:, :-1], positions[:, :-1]
    return model.branch(params, prompts, mask[:, :-1], [(fed[:, :2], rows[1][:, :2]), rows])[1]


def repeated_hidden(model, params, tokens, mask, completions):
    """The same by the long way: every row with its own copy of the prompt, one causal pass."""
    rows = jnp.concatenate([jnp.repeat(tokens, G, axis=0), completions], axis=1)
    seen = jnp.concatenate([jnp.repeat(mask, G, axis=0), jnp.ones_like(completions, bool)], axis=1)
    return model.prefill(params, rows, positions_of(seen), seen.astype(jnp.int32))[0][:, P - 1 : -1]


@lru_cache
def logits_and_gradient(model, hidden_of=shared_hidden):
    """Logits [B, C, V] of the batch, and the gradient of a loss over all of them."""
    probe = np.random.default_rng(3).normal(size=(Q * G, C, model.config.vocab_size)).astype(np.float32)

    def loss(params):
        logits = model.logits(params, hidden_of(model, params, *batch()))
        return (jax.nn.log_softmax(logits) * probe).sum(), logits

    gradient, logits = jit(jax.grad(loss, has_aux=True))(make_params(model))
    return logits, gradient


def assert_gradients_equal(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.abs(b).max() > 0
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


def test_shared_prompt_equals_repeated_prompts_forward_and_backward(model):
    shared, gradient = logits_and_gradient(model)
    repeated, expected = logits_and_gradient(model, repeated_hidden)
    np.testing.assert_allclose(shared, repeated, **TIGHT)
    assert_gradients_equal(gradient, expected)


def test_one_pass_equals_prefill_and_extend_forward_and_backward(model):
    branched, gradient = logits_and_gradient(model, branched_hidden)
    shared, expected = logits_and_gradient(model)
    np.testing.assert_allclose(branched, shared, **TIGHT)
    assert_gradients_equal(gradient, expected)


def test_one_pass_holds_one_gradient_of_the_layers():
    """Two passes would hold one each until they are added."""
    model = Transformer(replace(LLAMA, num_layers=16), remat="full")
    params = jax.eval_shape(model.init, jax.random.key(0))
    layers = sum(leaf.size * 4 for leaf in jax.tree.leaves(params["layers"]))

    def temporaries(hidden_of):
        loss = jax.grad(lambda params: model.logits(params, hidden_of(model, params, *batch())).sum())
        return jax.jit(loss).lower(params).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(shared_hidden) - temporaries(branched_hidden) > 0.8 * layers


@pytest.mark.parametrize("remat", ["full", "dots"])
@pytest.mark.parametrize("hidden_of", [shared_hidden, branched_hidden])
def test_remat_leaves_gradients_alone(remat, hidden_of):
    model = Transformer(LLAMA)
    found = logits_and_gradient(replace(model, remat=remat), hidden_of)[1]
    assert_gradients_equal(found, logits_and_gradient(model, hidden_of)[1])


def test_padding_and_packing_change_nothing(qwen3):
    params, rng = make_params(qwen3), np.random.default_rng(1)
    one, two = rng.integers(2, 48, (2, 4))
    tokens = jnp.asarray([[*one, 0, 0, 0, 0], [7, 7, 7, *one, 7], [*one, *two], [*two, *one]])
    segments = jnp.asarray([[1] * 4 + [0] * 4, [0] * 3 + [1] * 4 + [0], [1] * 4 + [2] * 4, [3] * 4 + [1] * 4])
    positions = jnp.asarray([range(8), [0, 0, 0, 0, 1, 2, 3, 4], *[[0, 1, 2, 3] * 2] * 2])
    hidden, cache = jit(qwen3.prefill)(params, tokens, positions, segments)
    hidden, keys = np.asarray(hidden), np.asarray(cache.k)
    assert np.isfinite(hidden).all()
    for row, start in ((1, 3), (2, 0), (3, 4)):
        np.testing.assert_allclose(hidden[row, start : start + 4], hidden[0, :4], **TIGHT)
        np.testing.assert_allclose(keys[:, row, :, start : start + 4], keys[:, 0, :, :4], **TIGHT)
    np.testing.assert_allclose(hidden[3, :4], hidden[2, 4:], **TIGHT)


@pytest.mark.parametrize(
    ("family", "layout"), [("llama", "unrolled"), ("qwen2", "unrolled"), ("qwen3", "unrolled"), ("qwen3", "scanned")]
)
def test_decoding_with_caches_equals_one_pass(family, layout):
    """Token by token, then several at a time; the cache's unwritten columns hold rubbish that must not be seen."""
    model = Transformer(FAMILIES[family])
    params, (tokens, mask, completions) = make_params(model), batch()
    expected = logits_and_gradient(model, repeated_hidden)[0]
    L, B, S = model.config.num_layers, Q * G, C + 3
    own = KVCache(*[jnp.full((L, B, model.config.num_kv_heads, S, model.config.head_dim), 1e3)] * 2)
    if layout == "unrolled":
        params = {**params, "layers": unstack(params["layers"], L)}
        own = KVCache(unstack(own.k, L), unstack(own.v, L))
    _, cache = jit(model.prefill)(params, tokens, positions_of(mask), mask.astype(jnp.int32))
    prompt = PromptCache(jax.tree.map(lambda x: x[..., :-1, :], cache), mask[:, :-1])
    fed = jnp.concatenate([jnp.repeat(tokens[:, -1:], G, axis=0), completions[:, :-1]], axis=1)
    first = jnp.repeat(positions_of(mask)[:, -1:], G, axis=0)

    @jit
    def step(own, fed, positions, start):
        hidden, own = model.extend(params, fed, positions, prompt, own, start)
        return model.logits(params, hidden), own

    for i in range(C):
        logits, own = step(own, fed[:, i : i + 1], first + i, i)
        np.testing.assert_allclose(logits[:, 0], expected[:, i], **TIGHT)
    assert isinstance(own.k, tuple) == (layout == "unrolled")
    several, _ = step(own, fed[:, 2:], first + jnp.arange(2, C)[None], 2)
    np.testing.assert_allclose(several, expected[:, 2:], **TIGHT)


def test_no_gradient_flows_from_the_future(qwen3):
    params = make_params(qwen3)
    tokens = jnp.arange(8)[None] + 2  # every token once, so that a row of the embedding is a position

    def at(params, t):
        return qwen3.prefill(params, tokens, jnp.arange(8)[None], jnp.ones((1, 8), jnp.int32))[0][0, t] @ jnp.arange(32.0)

    gradient = jit(jax.grad(at))
    for t in (0, 3, 7):
        reach = np.abs(np.asarray(gradient(params, t)["embed"])).max(axis=1)[2:10]
        assert (reach[: t + 1] > 0).all()
        assert (reach[t + 1 :] == 0).all()


def test_every_parameter_has_axes_that_both_layouts_know(model):
    shapes, axes = jax.eval_shape(model.init, jax.random.key(0)), model.axes()
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    for rules in (TRAINING, SAMPLING):
        shardings = Layout(mesh, rules).tree(axes, shapes)
        assert jax.tree.structure(shardings) == jax.tree.structure(shapes)
    assert axes["layers"]["attention"]["q"] == ("layers", "embed", "heads", "head_dim")
    assert ("lm_head" in axes) == (not model.config.tie_embeddings)


def test_a_mesh_changes_nothing(model):
    layout = Layout(make_mesh(MeshConfig(data=1, fsdp=2, tensor=2), jax.devices()[:4]))
    meshed = replace(model, constrain=layout.constrain)
    params = jax.device_put(make_params(model), layout.tree(model.axes(), make_params(model)))
    logits = jit(lambda params, *data: meshed.logits(params, shared_hidden(meshed, params, *data)))
    sharded = logits(params, *layout.put_rows(batch()))
    assert len(sharded.sharding.device_set) == 4
    np.testing.assert_allclose(sharded, logits_and_gradient(model)[0], **TIGHT)


def test_bfloat16_computes_in_bfloat16_and_gives_float32_logits():
    model = Transformer(LLAMA, dtype=jnp.bfloat16)

    @jit
    def run(params):
        hidden = shared_hidden(model, params, *batch())
        return hidden, model.logits(params, hidden)

    hidden, logits = run(make_params(Transformer(LLAMA)))
    exact = np.asarray(logits_and_gradient(Transformer(LLAMA))[0])
    assert (hidden.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)
    assert 0 < np.abs(logits - exact).max() < 0.1 * np.abs(exact).max()


def test_llama3_frequencies_by_the_reference_code():
    scaling = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
    got = np.asarray(rope_frequencies(128, 500_000.0, scaling))
    for i, frequency in enumerate(got):
        plain = 500_000.0 ** (-2 * i / 128)
        wavelength = 2 * np.pi / plain
        if wavelength < 8192 / 4.0:
            expected = plain
        elif wavelength > 8192 / 1.0:
            expected = plain / 8.0
        else:
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            expected = (1 - smooth) * plain / 8.0 + smooth * plain
        assert frequency == pytest.approx(expected, rel=2e-6)
