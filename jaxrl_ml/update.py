"""What one update computes: log-probs of a rollout, the GRPO loss over microbatches, the SFT loss, the guarded optimiser step.

In: a `TrainState` and a `Batch` (or `Packed`). Out: the next `TrainState` and metrics. Both losses run through the sampler's
own layer: a prompt is computed once per group, forwards and backwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrl_ml.config import LossConfig
from jaxrl_ml.credit import tag_mask
from jaxrl_ml.languages.tags import children, paths
from jaxrl_ml.losses import (
    Slicing,
    aggregation_weights,
    apart_weights,
    importance_weights,
    kl_estimate,
    policy_loss,
    token_logprobs,
)
from jaxrl_ml.models import lora
from jaxrl_ml.models.transformer import Transformer
from jaxrl_ml.sampler import prompt_positions
from jaxrl_ml.types import Batch, Packed, Params, Prompts, Rollout, Tags, TagTrie, TrainState

Metrics = dict[str, jax.Array]


def hidden_states(model: Transformer, params: Params, prompts: Prompts, rollouts: Sequence[Rollout]) -> list[jax.Array]:
    """The states [B, C, D] that each of the rollouts' completion tokens is predicted from; all are of the same prompts."""
    tokens, mask = prompts.tokens[:, :-1], prompts.mask[:, :-1]
    spare = -mask.shape[1] % model.context  # columns in front, so that all parts of a split prompt are as long
    if spare:
        tokens, mask = (jnp.pad(x, ((0, 0), (spare, 0))) for x in (tokens, mask))
    rows = []
    for rollout in rollouts:
        B, C = rollout.completions.shape
        G = B // prompts.tokens.shape[0]
        first = jnp.repeat(prompts.tokens[:, -1:], G, axis=0)
        starts = jnp.repeat(prompts.mask.sum(1, dtype=jnp.int32) - 1, G)
        positions = starts[:, None] + jnp.arange(C, dtype=jnp.int32)[None]
        rows.append((jnp.concatenate([first, rollout.completions[:, :-1]], axis=1), positions))
    return model.branch(params, (tokens, prompt_positions(mask)), mask, rows)


def rollout_logprobs(
    model: Transformer,
    params: Params,
    rollout: Rollout,
    hidden: jax.Array,
    temperature: jax.Array,
    trie: TagTrie | None,
    slicing: Slicing,
) -> tuple[jax.Array, jax.Array]:
    """Log-probs and entropies f32 [B, C] of the completions at the sampling temperature, zero outside `action_mask`.

    hidden: the rollout's `hidden_states`. Those of a constrained language tag are renormalised over the trie, as they were
    sampled.
    """
    prompts, completions = rollout.prompts, rollout.completions
    B, C = completions.shape
    G = B // prompts.tokens.shape[0]
    head = model.head(params)

    def of(columns: slice, support: tuple | None = None) -> tuple[jax.Array, jax.Array]:
        h, targets = hidden[:, columns], completions[:, columns]
        return token_logprobs(h, head, targets, temperature, slicing, support)

    if trie is None:
        logprobs, entropy = of(slice(None))
    else:  # tags lie in the first columns
        W = min(rollout.tags.state.shape[1], C)
        allowed = jnp.repeat(prompts.allowed, G, axis=0)[:, None]
        tokens, valid = children(trie, rollout.tags.state[:, :W], allowed)
        parts = [of(slice(W), (tokens, valid & trie.constrains)), *([of(slice(W, None))] if W < C else [])]
        logprobs, entropy = (jnp.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    mask = rollout.action_mask
    return jnp.where(mask, logprobs, 0.0), jnp.where(mask, entropy, 0.0)


def every_tag(prompts: Prompts, trie: TagTrie, width: int) -> Rollout:
    """A rollout of nothing but tags, of at most `width` tokens: every prompt with every language's."""
    tokens, states = (jnp.tile(column, (prompts.allowed.shape[0], 1)) for column in paths(trie, width))
    inside = states > 0
    lengths = inside.sum(1)
    return Rollout(
        prompts, jnp.where(inside, tokens, 0), lengths, inside, jnp.zeros(inside.shape), lengths > width, Tags(states, lengths)
    )


def language_logprobs(
    model: Transformer,
    params: Params,
    written: Rollout,
    hidden: jax.Array,
    temperature: jax.Array,
    trie: TagTrie,
    slicing: Slicing,
) -> jax.Array:
    """Log-probs f32 [Q, languages] of the whole tag of each language, −1e30 where a prompt does not allow it.

    written: `every_tag`; hidden: its states. Where the trie constrains, they are renormalised over it, and a prompt's
    probabilities sum to 1.
    """
    allowed = written.prompts.allowed
    logprobs, _ = rollout_logprobs(model, params, written, hidden, temperature, trie, slicing)
    return jnp.where(allowed, logprobs.sum(1).reshape(allowed.shape), -1e30)


def score(
    model: Transformer,
    num_microbatches: int,
    slicing: Slicing,
    params: Params,
    rollout: Rollout,
    temperature: jax.Array,
    trie: TagTrie | None = None,
) -> jax.Array:
    """Log-probs f32 [B, C] of a rollout under `params`, one microbatch after the other."""
    Q = rollout.prompts.tokens.shape[0]

    def one(microbatch: Rollout) -> jax.Array:
        (hidden,) = hidden_states(model, params, microbatch.prompts, [microbatch])
        return rollout_logprobs(model, params, microbatch, hidden, temperature, trie, slicing)[0]

    return merge_prompts(jax.lax.map(one, split_prompts(rollout, Q, num_microbatches)), Q)


def grpo_loss(
    model: Transformer,
    config: LossConfig,
    slicing: Slicing,
    params: Params,
    batch: Batch,
    weights: jax.Array,
    temperature: jax.Array,
    trie: TagTrie | None = None,
    languages: tuple[str, ...] = (),
) -> tuple[jax.Array, Metrics]:
    """The weighted sum of per-token losses of a (micro)batch, and sums of its per-token statistics, of the KL by language too.

    A token's loss is the policy's, times its importance weight, plus kl_coef · KL, minus entropy_coef · entropy. So KL and
    entropy bonus are aggregated as the policy's loss is, by `weights` f32 [B, C]: with aggregation=token a mean over tokens,
    otherwise over rows. With language values, also −Σ_l π(l)·Â(l) of every prompt, weighted as its rows' choices: the
    all-action loss of the tags (`credit.py`, iii).
    """
    prompts, rollouts = batch.rollout.prompts, [batch.rollout]
    if batch.language_values is not None:
        rollouts.append(every_tag(prompts, trie, batch.rollout.tags.state.shape[1]))
    hidden = hidden_states(model, params, prompts, rollouts)
    logprobs, entropy = rollout_logprobs(model, params, batch.rollout, hidden[0], temperature, trie, slicing)
    old = jax.lax.stop_gradient(logprobs) if batch.old_logprobs is None else batch.old_logprobs
    tag = tag_mask(batch.rollout.tags, logprobs.shape[1]) if config.language == "own" else None
    loss, stats = policy_loss(logprobs, old, batch.advantages, batch.loss_mask, config, tag)
    sampler = batch.rollout.sampler_logprobs
    if config.importance_cap is not None:
        loss = loss * importance_weights(old, sampler, config.importance_cap)
    if config.kl != "none":
        kl = kl_estimate(logprobs, batch.ref_logprobs, config.kl)
        loss = loss + config.kl_coef * kl
        stats["policy/kl"] = kl
    if config.entropy_coef:
        loss = loss - config.entropy_coef * entropy
    stats |= {"policy/entropy": entropy, "policy/sampler_gap": jnp.abs(old - sampler)}
    mask = batch.loss_mask.astype(jnp.float32)
    sums = {name: (value * mask).sum() for name, value in jax.lax.stop_gradient(stats).items()}
    if config.kl != "none":
        for place, code in enumerate(languages):
            chose = mask * (batch.rollout.tags.language == place)[:, None]
            sums |= {f"language/kl/{code}": (stats["policy/kl"] * chose).sum(), f"language/tokens/{code}": chose.sum()}
    total = (loss * weights).sum()
    if batch.language_values is not None:
        choices = language_logprobs(model, params, rollouts[1], hidden[1], temperature, trie, slicing)
        # A row counts as much as any one token of its tag does.
        counts = jnp.where(tag, weights, 0.0).max(1).reshape(choices.shape[0], -1).sum(1)
        total -= (counts[:, None] * jnp.exp(choices) * batch.language_values).sum()
    return total, sums


def split_prompts(tree: Any, num_prompts: int, parts: int) -> Any:
    """Splits every leaf [Q·n, …] into [parts, Q/parts·n, …] over prompts, never through a group.

    Part m takes prompts m, m + parts, …: each part has prompts of every shard of the mesh.
    """

    def split(leaf: jax.Array) -> jax.Array:
        rows = leaf.shape[0] // num_prompts
        strided = leaf.reshape(num_prompts // parts, parts, rows, *leaf.shape[1:])
        return jnp.moveaxis(strided, 1, 0).reshape(parts, num_prompts // parts * rows, *leaf.shape[1:])

    return jax.tree.map(split, tree)


def merge_prompts(leaf: jax.Array, num_prompts: int) -> jax.Array:
    """The inverse of `split_prompts` for one leaf [parts, Q/parts·n, …]."""
    parts = leaf.shape[0]
    grouped = leaf.reshape(parts, num_prompts // parts, -1, *leaf.shape[2:])
    return jnp.moveaxis(grouped, 0, 1).reshape(-1, *leaf.shape[2:])


def accumulate(
    loss_of: Callable[[Any], tuple], zeros: Params, microbatches: Any, parts: int
) -> tuple[jax.Array, Metrics, Params]:
    """Sums loss, statistics and gradients over microbatches stacked on axis 0; `loss_of` gives ((loss, stats), gradients)."""
    if parts == 1:
        (loss, stats), grads = loss_of(jax.tree.map(lambda leaf: leaf[0], microbatches))
        return loss, stats, grads

    def step(grads, microbatch):
        (loss, stats), more = loss_of(microbatch)
        return jax.tree.map(jnp.add, grads, more), (loss, stats)

    grads, (losses, stats) = jax.lax.scan(step, zeros, microbatches)
    return losses.sum(), jax.tree.map(lambda x: x.sum(0), stats), grads


def apply_gradients(
    optimizer: optax.GradientTransformation, state: TrainState, loss: jax.Array, grads: Params, kind: str
) -> tuple[TrainState, Metrics]:
    """One optimiser step, skipped as a whole where the loss or a gradient is not finite; metrics are named `kind/…`."""
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm) & jnp.isfinite(loss)

    def apply(before: TrainState) -> TrainState:
        updates, opt_state = optimizer.update(grads, before.opt_state, before.params)
        return TrainState(before.step + 1, optax.apply_updates(before.params, updates), opt_state)

    # A branch, not a choice leaf by leaf: with that, XLA keeps a copy of both moments to choose from.
    before = state._replace(params=lora.trained(state.params))
    kept = jax.lax.cond(finite, apply, lambda before: before, before)
    kept = kept._replace(params=lora.with_trained(state.params, kept.params))
    return kept, {f"{kind}/loss": loss, f"{kind}/grad_norm": norm, f"{kind}/nonfinite": (~finite).astype(jnp.float32)}


def grpo_update(
    model: Transformer,
    optimizer: optax.GradientTransformation,
    config: LossConfig,
    num_minibatches: int,
    num_microbatches: int,
    max_width: int,
    slicing: Slicing,
    languages: tuple[str, ...],
    state: TrainState,
    batch: Batch,
    minibatch: jax.Array,
    temperature: jax.Array,
    trie: TagTrie | None = None,
) -> tuple[TrainState, Metrics]:
    """One GRPO update on minibatch number `minibatch` (int32 []) of the step's batch; formulas in `losses.py`.

    languages: the codes of the thinking languages, which metrics are named by.
    """
    Q = batch.rollout.prompts.tokens.shape[0]
    if num_minibatches > 1:
        batch = jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, minibatch, keepdims=False), split_prompts(batch, Q, num_minibatches)
        )
        Q //= num_minibatches
    if config.language == "own":
        tag = tag_mask(batch.rollout.tags, batch.loss_mask.shape[1])
        weights = apart_weights(batch.loss_mask, tag, config, max_width)
    else:
        weights = aggregation_weights(batch.loss_mask, config.aggregation, max_width)
    microbatches = split_prompts((batch, weights), Q, num_microbatches)

    trained = lora.trained(state.params)

    def loss_of(microbatch):
        def loss(trained):
            params = lora.with_trained(state.params, trained)
            return grpo_loss(model, config, slicing, params, *microbatch, temperature, trie, languages)

        return jax.value_and_grad(loss, has_aux=True)(trained)

    zeros = jax.tree.map(jnp.zeros_like, trained)
    loss, sums, grads = accumulate(loss_of, zeros, microbatches, num_microbatches)
    new_state, metrics = apply_gradients(optimizer, state, loss, grads, "policy")
    for code in languages if config.kl != "none" else ():
        metrics[f"language/tokens/{code}"] = of_language = sums.pop(f"language/tokens/{code}")
        metrics[f"language/kl/{code}"] = sums.pop(f"language/kl/{code}") / jnp.maximum(of_language, 1)
    tokens = jnp.maximum(batch.loss_mask.sum(), 1)
    return new_state, metrics | {name: total / tokens for name, total in sums.items()}


def sft_update(
    model: Transformer,
    optimizer: optax.GradientTransformation,
    num_microbatches: int,
    slicing: Slicing,
    state: TrainState,
    batch: Packed,
) -> tuple[TrainState, Metrics]:
    """One SFT update: the mean negative log-likelihood of the batch's completion tokens, in nats a token."""
    trained = lora.trained(state.params)
    count = jnp.maximum(batch.loss_mask.sum(), 1)
    microbatches = split_prompts(batch, batch.tokens.shape[0], num_microbatches)

    def loss_of(packed: Packed):
        def loss(trained):
            params = lora.with_trained(state.params, trained)
            hidden, _ = model.prefill(params, packed.tokens, packed.positions, packed.segments)
            one = jnp.ones((), jnp.float32)
            logprobs, entropy = token_logprobs(hidden, model.head(params), packed.targets, one, slicing)
            mask = packed.loss_mask.astype(jnp.float32)
            return -(logprobs * mask).sum() / count, {"sft/entropy": (entropy * mask).sum()}

        return jax.value_and_grad(loss, has_aux=True)(trained)

    zeros = jax.tree.map(jnp.zeros_like, trained)
    loss, sums, grads = accumulate(loss_of, zeros, microbatches, num_microbatches)
    new_state, metrics = apply_gradients(optimizer, state, loss, grads, "sft")
    return new_state, metrics | {name: total / count for name, total in sums.items()}
