"""Attention against a plain float64 softmax, with and without a shared prompt, forward and backward."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_ml.models.attention import attention

B, Q, N, K, H = 6, 2, 4, 2, 8


def arrays(c: int, S: int, P: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    q, k, v = draw(B, N, c, H), draw(B, K, S, H), draw(B, K, S, H)
    mask = rng.random((B, c, S)) < 0.7
    mask[:, :, 0] = True
    prompt_mask = np.arange(P)[None] >= rng.integers(0, max(P, 1), (Q, 1))  # left padding
    return q, k, v, mask, draw(Q, K, P, H), draw(Q, K, P, H), prompt_mask


def reference(xp, q, k, v, mask, prompt_k, prompt_v, prompt_mask):
    """One softmax over the repeated prompt and the own keys, row by row, in the arrays' own precision."""
    G = B // Q
    k = xp.concatenate([xp.repeat(prompt_k, G, axis=0), k], axis=2)
    v = xp.concatenate([xp.repeat(prompt_v, G, axis=0), v], axis=2)
    seen = xp.broadcast_to(xp.repeat(prompt_mask, G, axis=0)[:, None], (B, mask.shape[1], prompt_mask.shape[1]))
    seen = xp.concatenate([seen, mask], axis=2)
    k, v = xp.repeat(k, N // K, axis=1), xp.repeat(v, N // K, axis=1)
    scores = xp.einsum("bnch,bnsh->bncs", q, k) / H**0.5
    scores = xp.where(seen[:, None], scores, -1e9)
    weights = xp.exp(scores - scores.max(-1, keepdims=True))
    return xp.einsum("bncs,bnsh->bnch", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize(("c", "S", "P"), [(5, 5, 7), (1, 9, 4), (3, 3, 0)])
def test_equals_float64_softmax(c, S, P):
    q, k, v, mask, *prompt = arrays(c, S, P)
    wide = [x.astype(np.float64) if x.dtype == np.float32 else x for x in (q, k, v, mask, *prompt)]
    expected = reference(np, *wide)
    got = attention(q, k, v, mask, tuple(map(jnp.asarray, prompt)))
    np.testing.assert_allclose(got, expected, atol=2e-6)
    if P == 0:
        np.testing.assert_allclose(attention(q, k, v, mask), expected, atol=2e-6)


def test_gradients_equal_those_of_a_plain_softmax():
    q, k, v, mask, prompt_k, prompt_v, prompt_mask = map(jnp.asarray, arrays(4, 4, 5))
    probe = jax.random.normal(jax.random.key(1), q.shape)

    def ours(q, k, v, prompt_k, prompt_v):
        return (attention(q, k, v, mask, (prompt_k, prompt_v, prompt_mask)) * probe).sum()

    def plain(q, k, v, prompt_k, prompt_v):
        return (reference(jnp, q, k, v, mask, prompt_k, prompt_v, prompt_mask) * probe).sum()

    got, expected = (jax.grad(f, argnums=range(5))(q, k, v, prompt_k, prompt_v) for f in (ours, plain))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)


def test_a_query_without_visible_keys_is_finite_and_disturbs_no_other():
    q, k, v, mask, *prompt = arrays(3, 3, 4)
    blind = mask.copy()
    blind[0, 1] = False
    got, usual = attention(q, k, v, blind), attention(q, k, v, mask)
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(np.delete(got, 0, axis=0), np.delete(usual, 0, axis=0))
    np.testing.assert_array_equal(got[0][:, [0, 2]], usual[0][:, [0, 2]])


def test_masked_keys_have_no_influence_and_no_gradient():
    q, k, v, mask, prompt_k, prompt_v, prompt_mask = map(jnp.asarray, arrays(3, 4, 6))
    mask = mask.at[:, :, 2].set(False)

    def total(k, prompt_k):
        return attention(q, k, v, mask, (prompt_k, prompt_v, prompt_mask)).sum()

    own, shared = jax.grad(total, argnums=(0, 1))(k, prompt_k)
    assert float(jnp.abs(own[:, :, 2]).max()) == 0.0
    hidden = ~np.asarray(prompt_mask)
    assert hidden.any()
    assert float(np.abs(np.asarray(shared).transpose(0, 2, 1, 3)[hidden]).max()) == 0.0
    assert float(total(k.at[:, :, 2].set(1e3), prompt_k)) == float(total(k, prompt_k))


def test_large_scores_do_not_overflow():
    q, k, v, mask, *prompt = arrays(3, 3, 4)
    got = attention(100 * q, 100 * k, v, mask, (100 * prompt[0], prompt[1], prompt[2]))
    assert np.isfinite(got).all()
    assert float(jnp.abs(got).max()) <= max(np.abs(v).max(), np.abs(prompt[1]).max()) + 1e-5
