"""The bench's own arithmetic: what work needs, the ideal of a long tail, lengths set through the stop table."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import bench_decode
import bench_limit
import bench_logprob
import bench_policy
import bench_timing

from jaxrl_ml.config import ModelConfig
from jaxrl_ml.models.transformer import PromptCache, Transformer, unstack

CONFIG = ModelConfig(vocab_size=512, num_layers=2, embed_dim=128, mlp_dim=384, num_heads=4, num_kv_heads=2, head_dim=32)


def counted(function, *shapes) -> float:
    """XLA's count, which has the element-wise operations too."""
    return jax.jit(function).lower(*shapes).compile().cost_analysis()["flops"]


def test_operations_of_a_pass_are_those_that_xla_counts():
    """Layers unrolled, for XLA counts the body of a scan once; plain attention mixes masked pairs too."""
    model, Q, G, P, c = Transformer(CONFIG), 2, 3, 24, 16
    B = Q * G
    params = jax.eval_shape(model.init, jax.random.key(0))
    params = {**params, "layers": jax.eval_shape(lambda layers: unstack(layers, CONFIG.num_layers), params["layers"])}
    ids = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)  # noqa: E731

    found = counted(lambda p, t: model.prefill(p, t, t, t), params, ids(Q, P))
    assert found == pytest.approx(bench_limit.forward_flops(CONFIG, Q * P, Q * P * P, 0), rel=0.1)

    cache = jax.eval_shape(lambda p, t: model.prefill(p, t, t, t)[1], params, ids(Q, P))
    prompt = PromptCache(cache, jax.ShapeDtypeStruct((Q, P), jnp.bool_))
    found = counted(lambda p, t, c: model.logits(p, model.extend(p, t, t, c)[0]), params, ids(B, c), prompt)
    assert found == pytest.approx(bench_limit.forward_flops(CONFIG, B * c, B * c * (P + c), B * c), rel=0.1)


def test_needs_count_a_prompt_once_and_only_what_a_token_sees():
    one = ModelConfig(vocab_size=8, num_layers=1, embed_dim=2, mlp_dim=1, num_heads=1, num_kv_heads=1, head_dim=2)
    layer, pair, logits = 4 * 4 + 3 * 2, 4, 2 * 8  # multiply-adds
    need = bench_limit.needs(one, prompts=1, group=2, new=2, width=4)
    assert need["prefill"].flops == 2 * (3 * layer + (1 + 2 + 3) * pair)
    assert need["score"].flops == 2 * ((3 + 4) * layer + (6 + 2 * (4 + 5)) * pair + 4 * logits)
    assert need["update"].flops == 3 * need["score"].flops
    assert need["decode"].flops == 2 * (2 * layer + 2 * (3 + 1) * pair + 2 * logits)
    assert need["prefill"].bytes == 4 * layer + 4 * 2 * 2 * 3


def test_the_ideal_computes_live_rows_only():
    """Lengths 1, 2 and 4 after the first token: 2 rows, then 1, then 1; a number of rows in between is interpolated."""
    assert bench_decode.ideal_seconds([1, 2, 4], {1: 1.0, 2: 1.5, 4: 2.0}, first=10.0) == 10.0 + 1.5 + 1.0 + 1.0
    assert bench_decode.ideal_seconds([2, 2, 2], {1: 1.0, 2: 1.5, 4: 2.0}, first=0.0) == 1.75
    assert bench_decode.ideal_seconds([1, 1], {1: 1.0, 2: 1.5}, first=3.0) == 3.0


@pytest.mark.parametrize("tokens", [1, 2])
def test_lengths_are_set_through_the_stop_table(one, tokens):
    policy = bench_policy.Policy.__new__(bench_policy.Policy)
    policy.config = one.programs.model.config
    rollout = one.sample(table=policy.stop_after(tokens, 2))
    np.testing.assert_array_equal(rollout.lengths, tokens)
    assert not rollout.truncated.any()


def test_a_share_of_the_tokens_ends_a_row():
    policy = bench_policy.Policy.__new__(bench_policy.Policy)
    policy.config = CONFIG
    table = policy.stop_on(1 / 64, states=5)
    assert table.shape == policy.stop_after(3, 5).shape
    assert (table[0] == 5).sum() == CONFIG.vocab_size / 64 and set(np.unique(table[:-1])) == {0, 5}


def test_both_sides_of_the_log_prob_row_compute_the_same(monkeypatch):
    B, C, D, V = 2, 6, 8, 32
    keys = jax.random.split(jax.random.key(0), 3)
    arrays = jax.random.normal(keys[0], (B, C, D)), jax.random.normal(keys[1], (V, D)), jnp.arange(B * C).reshape(B, C)
    weights = jax.random.normal(keys[2], (B, C))
    sides = [
        bench_logprob.gradients(of, 0.5)(*arrays, weights)
        for of in (bench_logprob.sliced_logprobs, bench_logprob.dense_logprobs)
    ]
    bench_logprob.agree(*sides)
    wrong = jax.tree.map(lambda x: 1.01 * x, sides[1])
    with pytest.raises(AssertionError, match="differ by 0.01"):
        bench_logprob.agree(sides[0], wrong)


def test_a_row_shows_median_and_range():
    row = bench_timing.Row("work", "1 s", "2 s", [3.0, 1.0, 2.5], "≥ 2")
    assert row.markdown() == "| work | 1 s | 2 s | 2.50 (1.00 to 3.00) | ≥ 2 |  |"
    assert row.markdown().count("|") == bench_timing.HEADER.splitlines()[0].count("|")


def test_sides_take_turns():
    order = []
    bench_timing.interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b"] * 3  # one to warm up


def test_the_time_of_others_is_what_is_not_our_own():
    before = bench_timing.Busy(everybody=100.0, own=10.0)
    assert bench_timing.Busy(110.0, 20.0).others(before) == 0
    assert bench_timing.Busy(120.0, 15.0).others(before) == 0.75
    assert bench_timing.Busy(110.0, 21.0).others(before) == 0  # the clocks tick apart
    now = bench_timing.Busy.now()
    assert now.everybody >= now.own >= 0
