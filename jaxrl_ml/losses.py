"""Token log-probabilities without a B×T×V array, per-token policy losses, KL estimators, and the one aggregation.

Everything is [B, C] and un-reduced until `aggregation_weights`, whose denominators are those of the whole update: neither
microbatches nor hosts change the loss.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl_ml.config import LossConfig

MAX_LOG_RATIO = 20.0  # exp of more is meaningless and would overflow sums


def token_logprobs(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    temperature: jax.Array,
    chunk_tokens: int,
    constrain: Any,
    support: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities and entropies, in nats, of the distribution softmax(hidden @ head / temperature), in float32.

    hidden [B, C, D], head [D, V], targets int32 [B, C]; returns two f32 [B, C]. Logits exist for about `chunk_tokens` tokens
    at a time, forwards and backwards (they are computed again for the gradient). support: tokens int32 [B, C, E] and which of
    them count, bool [B, C, E]; the distribution is renormalised over those, where there are any.
    """
    B, C, D = hidden.shape
    width = max(1, min(C, chunk_tokens // B))
    chunks = -(-C // width)
    padding = chunks * width - C
    # Chunks are cut along C: the rows stay where the mesh has them.
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0))).reshape(B, chunks, width, D).swapaxes(0, 1)
    targets, support = jax.tree.map(
        lambda x: (
            jnp.pad(x, ((0, 0), (0, padding), *((0, 0),) * (x.ndim - 2))).reshape(B, chunks, width, *x.shape[2:]).swapaxes(0, 1)
        ),
        (targets, support),
    )

    def chunk(carry, slices):
        h, t, within = slices
        if within is None:
            return carry, _chunk_logprobs(h, head, t, temperature, constrain)
        (plain, entropy), (*_, top, log_total, _) = _chunk_forward(h, head, t, temperature, constrain)
        shifted = _logits(h, head, temperature, constrain) - jax.lax.stop_gradient(top)[..., None]
        narrow_total, entropy = _renormalised(shifted, *within, log_total, entropy)
        return carry, (plain + log_total - narrow_total, entropy)

    if support is not None:  # few columns, and rules that JAX may differentiate
        chunk = jax.checkpoint(chunk, prevent_cse=False)
    _, (logprobs, entropy) = jax.lax.scan(chunk, None, (hidden, targets, support))
    return tuple(x.swapaxes(0, 1).reshape(B, chunks * width)[:, :C] for x in (logprobs, entropy))


def _logits(hidden: jax.Array, head: jax.Array, temperature: jax.Array, constrain: Any) -> jax.Array:
    # Cast here, chunk by chunk: the head's gradient is summed over the chunks in float32.
    logits = jnp.einsum("bcd,dv->bcv", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)
    return constrain(logits / temperature, ("rows", None, "vocab"))


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _chunk_logprobs(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, temperature: jax.Array, constrain: Any
) -> tuple[jax.Array, jax.Array]:
    """Log-probs and entropies f32 [B, c] of one chunk: as JAX would differentiate it, with one array of logits instead of four.

    With z the logits over the temperature, p = softmax(z), H the entropy and y the target, the gradient by z is
    g_logprob·(1[y] − p) − g_entropy·p·(log p + H), in one pass over logits that are computed again. None by the temperature.
    """
    return _chunk_forward(hidden, head, targets, temperature, constrain)[0]


def _chunk_forward(hidden, head, targets, temperature, constrain):
    logits = _logits(hidden, head, temperature, constrain)
    top = jax.lax.stop_gradient(logits.max(-1))
    shifted = logits - top[..., None]
    weights = jnp.exp(shifted)
    total = weights.sum(-1)
    log_total = jnp.log(total)
    entropy = log_total - (weights * shifted).sum(-1) / total
    logprobs = jnp.take_along_axis(shifted, targets[..., None], axis=-1)[..., 0] - log_total
    return (logprobs, entropy), (hidden, head, targets, temperature, top, log_total, entropy)


def _chunk_backward(constrain, kept, gradients):
    hidden, head, targets, temperature, top, log_total, entropy = kept
    by_logprob, by_entropy = (g[..., None] for g in gradients)
    log_p = _logits(hidden, head, temperature, constrain) - top[..., None] - log_total[..., None]
    own = jnp.arange(log_p.shape[-1])[None, None] == targets[..., None]
    by_logits = by_logprob * own - jnp.exp(log_p) * (by_logprob + by_entropy * (log_p + entropy[..., None]))
    by_logits = constrain((by_logits / temperature).astype(hidden.dtype), ("rows", None, "vocab"))
    by_hidden = jnp.einsum("bcv,dv->bcd", by_logits, head.astype(hidden.dtype), preferred_element_type=jnp.float32)
    by_head = jnp.einsum("bcd,bcv->dv", hidden, by_logits, preferred_element_type=jnp.float32)
    return by_hidden.astype(hidden.dtype), by_head.astype(head.dtype), None, jnp.zeros_like(temperature)


_chunk_logprobs.defvjp(_chunk_forward, _chunk_backward)


def _renormalised(
    logits: jax.Array, tokens: jax.Array, valid: jax.Array, log_total: jax.Array, entropy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The log-normaliser and entropy over the valid tokens of each place; those given, over all tokens, where none is valid."""
    kept = jnp.where(valid, jnp.take_along_axis(logits, jnp.maximum(tokens, 0), axis=-1), -1e30)
    narrow = valid.any(-1)
    own_total = jax.nn.logsumexp(kept, axis=-1)
    logprobs = jnp.where(valid, kept - own_total[..., None], 0.0)
    own_entropy = -jnp.where(valid, jnp.exp(logprobs) * logprobs, 0.0).sum(-1)
    return jnp.where(narrow, own_total, log_total), jnp.where(narrow, own_entropy, entropy)


def aggregation_weights(mask: jax.Array, kind: str, max_width: int) -> jax.Array:
    """Weights f32 [B, C] under which sum(weights · loss) is the aggregate over the tokens of `mask` bool [B, C].

    - token: mean over all tokens (DAPO, arXiv 2503.14476).
    - sequence: mean over rows of the rows' means (GRPO, arXiv 2402.03300, eq. 3); rows without tokens do not count.
    - constant: sum over tokens / (rows · max_width), so that no length is favoured (Dr. GRPO, arXiv 2503.20783).
    """
    mask = mask.astype(jnp.float32)
    match kind:
        case "token":
            return mask / jnp.maximum(mask.sum(), 1.0)
        case "sequence":
            lengths = mask.sum(1, keepdims=True)
            return mask / jnp.maximum(lengths, 1.0) / jnp.maximum((lengths > 0).sum(), 1)
        case "constant":
            rows = jnp.maximum((mask.sum(1) > 0).sum(), 1)
            return mask / (rows * max_width)
    raise ValueError(f"unknown aggregation {kind!r}")


def apart_weights(mask: jax.Array, tag: jax.Array, config: LossConfig, max_width: int) -> jax.Array:
    """Weights f32 [B, C] that aggregate the tags' tokens apart from the others (loss.language=own), tag bool [B, C].

    The others as `aggregation_weights` has it. The tags: language_coef times the mean, over rows with a token of the tag in the
    mask, of the sum over those tokens: what a choice counts depends neither on the tag's length nor on the thinking's.
    """
    others = aggregation_weights(mask & ~tag, config.aggregation, max_width)
    tag = mask & tag
    return others + config.language_coef * tag / jnp.maximum(tag.any(1).sum(), 1)


def policy_loss(
    logprobs: jax.Array,
    old_logprobs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    config: LossConfig,
    tag: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Per-token policy loss f32 [B, C] and per-token statistics, from the policy's log-probs and those it sampled with.

    With r = exp(logprobs − old_logprobs), or for ratio=sequence the row's r = exp(mean over its tokens of the difference)
    (GSPO, arXiv 2507.18071, eq. 7), and A the advantage:

    - clip: −min(r·A, clip(r, 1 − low, 1 + high)·A) (PPO; separate bounds as DAPO); where A < 0 and dual_clip = c, at most
      −c·A (Ye et al., arXiv 1912.09729, eq. 5).
    - cispo: −stop_gradient(clip(r, 1 − low, 1 + high))·A·logprobs (MiniMax-M1, arXiv 2506.13585, eq. 4).

    tag bool [B, C]: tokens that are an action of their own, and with ratio=sequence have a ratio of their own.
    """
    log_ratio = jnp.where(mask, logprobs - old_logprobs, 0.0)
    if config.ratio == "sequence":
        whole = _row_mean(log_ratio, mask if tag is None else mask & ~tag)
        log_ratio = whole if tag is None else jnp.where(tag, _row_mean(log_ratio, mask & tag), whole)
    ratio = jnp.exp(jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    clipped = jnp.clip(ratio, 1 - config.clip_low, 1 + config.clip_high)
    if config.objective == "cispo":
        loss = -jax.lax.stop_gradient(clipped) * advantages * logprobs
        bound = ratio != clipped
    else:
        loss = -jnp.minimum(ratio * advantages, clipped * advantages)
        bound = ratio * advantages > clipped * advantages
        if config.dual_clip is not None:
            loss = jnp.where(advantages < 0, jnp.minimum(loss, -config.dual_clip * advantages), loss)
    return loss, {"policy/ratio": ratio, "policy/clip_fraction": bound.astype(jnp.float32)}


def _row_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean over the tokens of `mask` in each row, at every token of it."""
    lengths = jnp.maximum(mask.sum(1, keepdims=True), 1)
    return jnp.broadcast_to(jnp.where(mask, x, 0.0).sum(1, keepdims=True) / lengths, mask.shape)


def kl_estimate(logprobs: jax.Array, ref_logprobs: jax.Array, kind: str) -> jax.Array:
    """Per-token estimate f32 [B, C] of KL(policy‖reference) on the policy's own samples (Schulman 2020, "Approximating KL").

    With d = ref_logprobs − logprobs: k1 = −d, k2 = d²/2, k3 = exp(d) − d − 1; |d| is cut at 20. As an on-policy loss k1 has no
    gradient in expectation, k2 has that of KL(policy‖reference), k3 that of KL(reference‖policy).
    """
    d = jnp.clip(ref_logprobs - logprobs, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    match kind:
        case "k1":
            return -d
        case "k2":
            return d * d / 2
        case "k3":
            return jnp.expm1(d) - d
    raise ValueError(f"unknown kl {kind!r}")


def importance_weights(old_logprobs: jax.Array, sampler_logprobs: jax.Array, cap: float) -> jax.Array:
    """Truncated importance weights f32 [B, C]: min(exp(trainer's old log-prob − sampler's), cap), without gradient.

    They correct for a sampler whose arithmetic differs from the trainer's (Yao et al. 2025, "truncated importance sampling").
    """
    difference = jnp.clip(old_logprobs - sampler_logprobs, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    return jax.lax.stop_gradient(jnp.minimum(jnp.exp(difference), cap))
