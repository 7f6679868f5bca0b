"""Attention over a group's shared prompt and each row's own suffix, as one softmax.

In: queries, the rows' own keys and values, and optionally those of the prompts, stored once a prompt. Out: the mixed values.
Plain XLA on every platform; buffers are `[rows, heads, length, head_dim]`, the layout that decodes without a cache-sized copy.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Finite, so that a query without any visible key (left padding) gives garbage that nobody reads instead of NaN.
MASKED = -1e30


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    prompt: tuple[jax.Array, jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """Scaled dot-product attention with grouped queries (GQA), softmax in float32.

    q [B, N, c, H]; k, v [B, K, S, H] with N a multiple of K; mask bool [B or 1, c, S], True where a query sees an own key.
    prompt: (k [Q, K, P, H], v [Q, K, P, H], mask bool [Q, P]), attended to by rows b with b // (B / Q) == q.
    Returns [B, N, c, H] in q's dtype.
    """
    B, N, c, H = q.shape
    K = k.shape[1]
    R = N // K
    q = q * jnp.asarray(H**-0.5, q.dtype)
    own = jnp.einsum("bkxh,bksh->bkxs", q.reshape(B, K, R * c, H), k, preferred_element_type=jnp.float32)
    own = jnp.where(mask[:, None, None], own.reshape(B, K, R, c, k.shape[2]), MASKED)
    top = own.max(-1, keepdims=True, initial=MASKED)  # a prompt of one token prefills none
    if prompt is None:
        weights = jnp.exp(own - jax.lax.stop_gradient(top))
        mixed, total = _mix_own(weights, v), weights.sum(-1)
    else:
        prompt_k, prompt_v, prompt_mask = prompt
        Q = prompt_k.shape[0]
        G = B // Q
        # The rows of a group are folded into the query axis: one matmul a prompt, whatever the group size.
        folded = q.reshape(Q, G, K, R * c, H).swapaxes(1, 2).reshape(Q, K, G * R * c, H)
        shared = jnp.einsum("qkxh,qkph->qkxp", folded, prompt_k, preferred_element_type=jnp.float32)
        shared = jnp.where(prompt_mask[:, None, None], shared, MASKED)
        grouped_top = top.reshape(Q, G, K, R * c, 1).swapaxes(1, 2).reshape(Q, K, G * R * c, 1)
        # Both parts are shifted by one maximum, hence one softmax over (prompt, own).
        grouped_top = jax.lax.stop_gradient(jnp.maximum(shared.max(-1, keepdims=True, initial=MASKED), grouped_top))
        shared = jnp.exp(shared - grouped_top)
        top = grouped_top.reshape(Q, K, G, R * c, 1).swapaxes(1, 2).reshape(B, K, R, c, 1)
        weights = jnp.exp(own - top)
        shared_mixed = jnp.einsum(
            "qkxp,qkph->qkxh", shared.astype(prompt_v.dtype), prompt_v, preferred_element_type=jnp.float32
        )
        shared_mixed = shared_mixed.reshape(Q, K, G, R * c, H).swapaxes(1, 2).reshape(B, K, R, c, H)
        shared_total = shared.sum(-1).reshape(Q, K, G, R * c).swapaxes(1, 2).reshape(B, K, R, c)
        mixed, total = _mix_own(weights, v) + shared_mixed, weights.sum(-1) + shared_total
    return (mixed / total[..., None]).reshape(B, N, c, H).astype(q.dtype)


def segment_mask(segments: jax.Array) -> jax.Array:
    """What tokens of segments int32 [Q, P] see, bool [Q, P, P]: earlier ones of their own segment, where that is not 0."""
    causal = jnp.tril(jnp.ones((segments.shape[1],) * 2, bool))[None]
    return causal & (segments[:, :, None] == segments[:, None, :]) & (segments[:, None, :] > 0)


def _mix_own(weights: jax.Array, v: jax.Array) -> jax.Array:
    B, K, R, c, S = weights.shape
    flat = weights.reshape(B, K, R * c, S).astype(v.dtype)
    return jnp.einsum("bkxs,bksh->bkxh", flat, v, preferred_element_type=jnp.float32).reshape(B, K, R, c, v.shape[-1])
