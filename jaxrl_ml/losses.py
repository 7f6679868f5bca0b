"""Token log-probabilities without a B×T×V array, per-token policy losses, KL estimators, and the one aggregation.

Everything is [B, C] and un-reduced until `aggregation_weights`, whose denominators are those of the whole update: neither
microbatches nor hosts change the loss.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_ml.config import ComputeConfig, LossConfig
from jaxrl_ml.models.attention import MASKED
from jaxrl_ml.models.layers import Constrain, unconstrained

MAX_LOG_RATIO = 20.0  # of log-ratios, either way: exp of more is meaningless and would overflow sums


class Slicing(NamedTuple):
    """How logits are kept few: the vocabulary is cut in slices, one after the other, and the tokens are not."""

    compute: ComputeConfig  # how many logits there may be on a device
    token_parts: int = 1  # that the mesh splits tokens in
    parts: int = 1  # and the vocabulary: a slice has as many columns of each
    constrain: Constrain = unconstrained


def token_logprobs(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    temperature: jax.Array,
    slicing: Slicing,
    support: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities and entropies, in nats, of the distribution softmax(hidden · head / temperature), in float32.

    hidden [B, C, D], head [V, D], targets int32 [B, C]; returns two f32 [B, C]. Logits exist for one slice of the vocabulary at
    a time, forwards and backwards (they are computed again for the gradient). support: tokens int32 [B, C, E] and which of
    them count, bool [B, C, E]; the distribution is renormalised over those, where there are any.
    """
    tokens = targets[..., None]
    if support is None:
        logprobs, entropy = _logprobs_at(hidden, head, tokens, temperature, slicing)
        return logprobs[..., 0], entropy
    among, valid = support
    found, entropy = _logprobs_at(hidden, head, jnp.concatenate([tokens, among], axis=-1), temperature, slicing)
    total, entropy = _renormalised(found[..., 1:], valid, entropy)
    return found[..., 0] - total, entropy


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _logprobs_at(
    hidden: jax.Array, head: jax.Array, tokens: jax.Array, temperature: jax.Array, slicing: Slicing
) -> tuple[jax.Array, jax.Array]:
    """Log-probs f32 [B, C, K] of K tokens each, int32 [B, C, K], and entropies f32 [B, C]; those of no token say nothing.

    Sums over the vocabulary are kept relative to the largest logit so far (Milakov and Gimelshein, arXiv 1805.02867, alg. 3).
    With z the logits over the temperature, p = softmax(z) and H the entropy, the gradient by z is
    Σ_k g_k·1[token k] − p·(Σ_k g_k + g_entropy·(log p + H)); there is none by the temperature. A slice of the head's gradient
    is whole when it is written: head and gradient are gathered from devices, or summed over them, once.
    """
    return _forward(hidden, head, tokens, temperature, slicing)[0]


class _Slice(NamedTuple):
    """A slice of the vocabulary: a column of each part's, from `start` on."""

    start: jax.Array  # int32 []
    head: jax.Array  # [parts, width, D], in the dtype of the states
    ids: jax.Array  # int32 [parts, width]; V for a column that the slice before had: the last one overlaps it
    logits: jax.Array  # f32 [B, C, parts, width], over the temperature; −1e30 for such a column


def _over_slices(step: Any, carry: Any, hidden: jax.Array, head: jax.Array, temperature: jax.Array, slicing: Slicing) -> Any:
    """The last carry of `step(carry, slice)`, over all slices."""
    V, D = head.shape
    size, constrain = V // slicing.parts, slicing.constrain
    width = slicing.compute.slice_width(hidden.shape[0] * hidden.shape[1] / slicing.token_parts, size)
    columns = head.reshape(slicing.parts, size, D)

    def one(carry: Any, number: jax.Array) -> tuple[Any, None]:
        start = jnp.minimum(number * width, size - width)
        part = constrain(jax.lax.dynamic_slice_in_dim(columns, start, width, axis=1), ("vocab", None, "embed"))
        part = constrain(part.astype(hidden.dtype), ("vocab", None, None))  # gathered slice by slice, in their dtype
        logits = jnp.einsum("bcd,pwd->bcpw", hidden, part, preferred_element_type=jnp.float32) / temperature
        column = start + jnp.arange(width)
        new = (column >= number * width)[None]
        ids = jnp.where(new, jnp.arange(slicing.parts)[:, None] * size + column[None], V)
        logits = constrain(jnp.where(new[None, None], logits, MASKED), ("rows", "sequence", "vocab", None))
        return step(carry, _Slice(start, part, ids, logits)), None

    return jax.lax.scan(one, carry, jnp.arange(-(-size // width)))[0]


def _forward(hidden, head, tokens, temperature, slicing):
    def step(carry, part: _Slice):
        top, total, mean, chosen = carry
        highest = jnp.maximum(top, part.logits.max((-1, -2)))
        shifted = part.logits - highest[..., None, None]
        weights = jnp.exp(shifted)
        scale = jnp.exp(top - highest)
        mean = scale * (mean + total * (top - highest)) + (weights * shifted).sum((-1, -2))
        total = scale * total + weights.sum((-1, -2))
        own = tokens[..., None, None] == part.ids[None, None, None]
        return highest, total, mean, chosen + jnp.where(own, part.logits[:, :, None], 0.0).sum((-1, -2))

    zero = jnp.zeros(tokens.shape[:2], jnp.float32)
    start = zero + MASKED, zero, zero, jnp.zeros(tokens.shape, jnp.float32)
    top, total, mean, chosen = _over_slices(step, start, hidden, head, temperature, slicing)
    log_total = jnp.log(total)
    entropy, normaliser = log_total - mean / total, top + log_total
    return (chosen - normaliser[..., None], entropy), (hidden, head, tokens, temperature, normaliser, entropy)


def _backward(slicing, kept, gradients):
    hidden, head, tokens, temperature, normaliser, entropy = kept
    by_logprobs, by_entropy = gradients
    constrain, V, D = slicing.constrain, *head.shape

    def step(carry, part: _Slice):
        by_hidden, by_head = carry
        log_p = part.logits - normaliser[..., None, None]
        own = tokens[..., None, None] == part.ids[None, None, None]
        pulled = jnp.where(own, by_logprobs[..., None, None], 0.0).sum(2)
        push = by_logprobs.sum(-1)[..., None, None] + by_entropy[..., None, None] * (log_p + entropy[..., None, None])
        by_logits = ((pulled - jnp.exp(log_p) * push) / temperature).astype(hidden.dtype)
        by_logits = constrain(by_logits, ("rows", "sequence", "vocab", None))
        more = jnp.einsum("bcpw,pwd->bcd", by_logits, part.head, preferred_element_type=jnp.float32)
        by_hidden = by_hidden + constrain(more, ("rows", "sequence", None))
        more = jnp.einsum("bcd,bcpw->pwd", hidden, by_logits, preferred_element_type=jnp.float32)
        more = constrain(more, ("vocab", None, "embed"))
        more += jax.lax.dynamic_slice_in_dim(by_head, part.start, more.shape[1], axis=1)  # not zero where slices overlap
        return by_hidden, jax.lax.dynamic_update_slice_in_dim(by_head, more, part.start, axis=1)

    by_head = constrain(jnp.zeros((slicing.parts, V // slicing.parts, D), jnp.float32), ("vocab", None, "embed"))
    carry = jnp.zeros(hidden.shape, jnp.float32), by_head
    by_hidden, by_head = _over_slices(step, carry, hidden, head, temperature, slicing)
    return by_hidden.astype(hidden.dtype), by_head.reshape(V, D).astype(head.dtype), None, jnp.zeros_like(temperature)


_logprobs_at.defvjp(_forward, _backward)


def _renormalised(logprobs: jax.Array, valid: jax.Array, entropy: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The log-prob of the valid tokens of each place together, and the entropy over them; 0 and `entropy` where none is."""
    kept = jnp.where(valid, logprobs, MASKED)
    narrow = valid.any(-1)
    total = jax.nn.logsumexp(kept, axis=-1)
    own = jnp.where(valid, kept - total[..., None], 0.0)
    own_entropy = -jnp.where(valid, jnp.exp(own) * own, 0.0).sum(-1)
    return jnp.where(narrow, total, 0.0), jnp.where(narrow, own_entropy, entropy)


def aggregation_weights(mask: jax.Array, kind: str, max_width: int) -> jax.Array:
    """Weights f32 [B, C] under which sum(weights · loss) is the aggregate over the tokens of `mask` bool [B, C].

    - token: mean over all tokens (DAPO, arXiv 2503.14476).
    - sequence: mean over rows of the rows' means (GRPO, arXiv 2402.03300, eq. 3).
    - constant: sum over tokens / (rows · max_width), so that no length is favoured (Dr. GRPO, arXiv 2503.20783).

    Rows without a token in the mask, such as those that a filter leaves out, are not counted among the rows, also by constant:
    leaving rows out makes the weights of the remaining rows larger. The policy's loss, the KL and the entropy bonus of a token
    have the same weight (`update.grpo_loss`).
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

    log r is cut at ±20: r lies between exp(−20) and exp(20), and beyond them the loss of clip has no gradient. That of cispo
    has, as the gradient does not go through r.

    A cap c below 1 + high acts inside the trust region, too: where A < 0 and c < r < 1 + high the loss is −c·A and has no
    gradient. TRL's `delta` leaves that region alone, as it caps r only in the unclipped term.

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

    With d = ref_logprobs − logprobs: k1 = −d, k2 = d²/2, k3 = exp(d) − d − 1. d is cut at ±20, and there is no gradient beyond:
    a token that is 20 nats from the reference is not drawn back to it. As an on-policy loss k1 has no gradient in expectation,
    k2 has that of KL(policy‖reference), k3 that of KL(reference‖policy).
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

    The difference is cut at ±20, so a weight lies between exp(−20) and exp(20). They correct for a sampler whose arithmetic
    differs from the trainer's (Yao et al. 2025, "truncated importance sampling").
    """
    difference = jnp.clip(old_logprobs - sampler_logprobs, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    return jax.lax.stop_gradient(jnp.minimum(jnp.exp(difference), cap))
