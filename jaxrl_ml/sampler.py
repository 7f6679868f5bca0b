"""Rollouts: each prompt is prefilled once, its cache is shared by its group, and the group is decoded in jitted loops.

A token attends over the whole buffer of its row's cache, so the buffer starts at FIRST_WIDTH tokens and doubles when full: what
a token costs grows with what has been generated, and no token of a group that stops early attends over the longest completion.

In: sampling weights (layers unstacked), `Prompts`, a draw (which noise), a stop table, the sampling settings as data, and the
trie of the language tags where there is one. Out: a `Rollout`. The stop token is part of the completion: it is sampled, has a
log-prob, and is in `action_mask`; so is the language tag.

Row b's noise at position t is folded from (seed, purpose, step, attempt, prompt index, sample, t): the same row draws the same
noise whatever else is in the batch, however the step is split, and whatever the mesh.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_ml import compaction
from jaxrl_ml.compaction import Grid
from jaxrl_ml.config import SamplingConfig
from jaxrl_ml.config.model import block_size
from jaxrl_ml.languages import tags
from jaxrl_ml.models.attention import MASKED
from jaxrl_ml.models.transformer import KVCache, PromptCache, Transformer
from jaxrl_ml.types import Params, Prompts, Rollout, Tags, TagTrie

FIRST_WIDTH = 128


class Settings(NamedTuple):
    """The sampling settings that are data: changing one recompiles nothing."""

    temperature: jax.Array  # f32 []; 0 is greedy
    top_k: jax.Array  # int32 []; 0 is off
    top_p: jax.Array  # f32 []
    min_p: jax.Array  # f32 []


class Decoding(NamedTuple):
    """The state of a decoding group between tokens."""

    position: jax.Array  # int32 []; tokens decoded so far
    token: jax.Array  # int32 [B]; the last token of each row, not yet in its cache
    stop_state: jax.Array  # int16 [B]; state of the stop automaton
    own: KVCache  # tuples of [B, K, S, H], S ≤ C, of which `position` columns are filled
    prompt: PromptCache
    prompt_lengths: jax.Array  # int32 [B]
    keys: jax.Array  # [B] random keys
    completions: jax.Array  # int32 [B, C]
    logprobs: jax.Array  # f32 [B, C]
    lengths: jax.Array  # int32 [B]
    tag_state: jax.Array | None  # int32 [B]; the trie node of each row's next token; None: no tags
    tags: Tags | None
    allowed: jax.Array | None  # bool [B, languages]; None: no tags
    stopped: compaction.Stopped | None = None  # None while every row has its cell: after a move B is that of the cells

    @property
    def written(self) -> tuple:
        """What a rollout is made of."""
        return self.completions, self.logprobs, self.lengths, self.stop_state, self.tags


def settings_of(config: SamplingConfig) -> Settings:
    """The data part of a sampling config, on the host."""
    import numpy as np

    return Settings(np.float32(config.temperature), np.int32(config.top_k), np.float32(config.top_p), np.float32(config.min_p))


def prompt_positions(mask: jax.Array) -> jax.Array:
    """Positions int32 [Q, P] of left-padded prompts: 0 at the first prompt token (and in the padding)."""
    return jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0).astype(jnp.int32)


def prefill_prompts(model: Transformer, params: Params, prompts: Prompts) -> PromptCache:
    """The cache of all prompt tokens but the last, which is the first token that `extend` is fed."""
    mask = prompts.mask[:, :-1]
    _, kv = model.prefill(params, prompts.tokens[:, :-1], prompt_positions(mask), mask.astype(jnp.int32))
    return PromptCache(kv, mask)


def truncate(logits: jax.Array, settings: Settings) -> jax.Array:
    """Sets the logits [B, V] outside top-k, then top-p, then min-p to −1e30: the order of Hugging Face's processors.

    Equal logits are kept or dropped together, by each of the three. So it is in Hugging Face for top-k, which keeps all logits
    that equal the k-th, and for min-p. There top-p differs: of equal logits at the edge of the nucleus it keeps only as many as
    reach the mass, whichever its sort puts first; here all of them stay, so that the result does not depend on a sort.
    Nucleus sampling: arXiv 1904.09751; min-p: arXiv 2407.01082.
    """
    V = logits.shape[-1]
    ordered = jnp.sort(logits, axis=-1, descending=True)
    rank = jnp.arange(V)[None]
    last = jnp.where(settings.top_k > 0, jnp.minimum(settings.top_k, V), V) - 1
    ordered = jnp.where(ordered >= jnp.take(ordered, last[None], axis=-1), ordered, MASKED)  # ties with the k-th stay
    probs = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probs, axis=-1) - probs
    # A token is kept while the mass before it is short of top_p; the first one always is.
    keep = (before < settings.top_p) & (probs >= settings.min_p * probs[:, :1]) & (ordered > MASKED)
    cutoff = jnp.min(jnp.where(keep | (rank == 0), ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= cutoff, logits, MASKED)


def draw(logits: jax.Array, keys: jax.Array, settings: Settings, truncates: bool) -> tuple[jax.Array, jax.Array]:
    """One token int32 [B] and its log-prob f32 [B] from logits f32 [B, V], under the settings; greedy rows have log-prob 0.

    By inversion, in two steps: a block of `block_size` tokens, then a token in it. It takes two random numbers a row and one
    pass over the logits, where the largest of logits + Gumbel noise takes one a token, which costs more than a small model's
    layers.
    """
    V = logits.shape[-1]
    size = block_size(V)

    def greedy() -> tuple[jax.Array, jax.Array]:
        return jnp.argmax(logits, axis=-1), jnp.zeros(logits.shape[:1])

    def sampled() -> tuple[jax.Array, jax.Array]:
        scaled = logits / settings.temperature
        if truncates:
            scaled = truncate(scaled, settings)
        shifted = scaled - scaled.max(-1, keepdims=True)
        blocks = jnp.pad(shifted, ((0, 0), (0, -V % size)), constant_values=MASKED).reshape(len(keys), -1, size)
        totals = jnp.exp(blocks).sum(-1)
        uniform = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)
        block = _invert(totals, uniform[:, 0])
        weights = jnp.exp(jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0])
        token = block * size + _invert(weights, uniform[:, 1])
        return token, jnp.take_along_axis(shifted, token[:, None], axis=-1)[:, 0] - jnp.log(totals.sum(-1))

    token, logprob = jax.lax.cond(settings.temperature == 0, greedy, sampled)
    return token.astype(jnp.int32), logprob


def _invert(weights: jax.Array, uniform: jax.Array) -> jax.Array:
    """The places [B] at which the running sums of weights [B, n] ≥ 0 pass uniform [B] < 1 of the total.

    Never a place of weight 0, whatever the sums' rounding, if there is another.
    """
    reached = jnp.cumsum(weights, axis=-1)
    passed = (reached > (uniform * reached[:, -1])[:, None]) & (weights > 0)
    return jnp.argmax(jnp.where(passed.any(-1, keepdims=True), passed, weights), axis=-1)


def begin(
    model: Transformer,
    params: Params,
    prompts: Prompts,
    seed_words: jax.Array,
    stop_table: jax.Array,
    G: int,
    C: int,
    W: int = 0,
    S: int | None = None,
) -> Decoding:
    """Prefills the prompts and sets up the group's decoding of C tokens, with room for the first S in the cache, or for all.

    seed_words: uint32 [4], (seed, purpose, step, attempt); stop_table: int16 [states, V] (`Tokenizer.stop_table`); W: tokens of
    the longest language tag, 0 where there are none.
    """
    Q = prompts.tokens.shape[0]
    B = Q * G
    prompt = prefill_prompts(model, params, prompts)
    key = jax.random.key(seed_words[0])
    for word in range(1, 4):
        key = jax.random.fold_in(key, seed_words[word])
    by_prompt = jax.vmap(lambda i: jax.random.fold_in(key, i))(prompts.index)
    keys = jax.vmap(lambda k: jax.vmap(lambda g: jax.random.fold_in(k, g))(jnp.arange(G)))(by_prompt).reshape(B)
    c = model.config
    buffer = jnp.zeros((B, c.num_kv_heads, C if S is None else S, c.head_dim), model.dtype)
    buffer = model.constrain(buffer, ("rows", "kv_heads", None, None))
    own = KVCache(*(tuple(buffer for _ in range(c.num_layers)) for _ in range(2)))
    return Decoding(
        position=jnp.zeros((), jnp.int32),
        token=jnp.repeat(prompts.tokens[:, -1], G),
        stop_state=jnp.zeros(B, stop_table.dtype),
        own=own,
        prompt=prompt,
        prompt_lengths=jnp.repeat(prompts.mask.sum(1, dtype=jnp.int32), G),
        keys=keys,
        completions=jnp.zeros((B, C), jnp.int32),
        logprobs=jnp.zeros((B, C), jnp.float32),
        lengths=jnp.zeros(B, jnp.int32),
        tag_state=jnp.full(B, tags.ROOT, jnp.int32) if W else None,
        tags=Tags(jnp.zeros((B, W), jnp.int32), jnp.full(B, -1, jnp.int32)) if W else None,
        allowed=jnp.repeat(prompts.allowed, G, axis=0) if W else None,
    )


def cache_widths(C: int) -> list[int]:
    """The widths that the cache of a completion of at most C tokens goes through."""
    widths = [min(FIRST_WIDTH, C)]
    while widths[-1] < C:
        widths.append(min(2 * widths[-1], C))
    return widths


def grown(model: Transformer, state: Decoding, S: int) -> Decoding:
    """The state with room for S tokens in the cache."""

    def padded(buffer: jax.Array) -> jax.Array:
        return jnp.pad(buffer, ((0, 0), (0, 0), (0, S - buffer.shape[2]), (0, 0)))

    return state._replace(own=_constrained(model, jax.tree.map(padded, state.own)))


def move(model: Transformer, state: Decoding, stopped: int, shards: int, old: Grid, new: Grid) -> Decoding:
    """The rows that go on, moved from grid `old` to `new`, on which they must fit; `stopped` is the last stop state."""
    live = (state.stop_state != stopped).reshape(shards, *old)
    line, cell, filled = jax.vmap(partial(compaction.choose, new=new))(live)
    rows = len(state.token) // shards if state.stopped is None else len(state.stopped.written[0]) // shards
    row = jnp.tile(jnp.arange(rows), shards) if state.stopped is None else state.stopped.row
    written = compaction.put_by(state.written, state.stopped, shards)
    rest = state._replace(position=None, prompt=None, stopped=None)  # what there is of every cell
    rest, row = compaction.take((rest, row), cell, shards)
    kv, mask = compaction.take(state.prompt, line, shards)
    filled = filled.reshape(-1)
    return rest._replace(
        position=state.position,
        own=_constrained(model, rest.own),
        prompt=PromptCache(_constrained(model, kv), mask),
        stop_state=jnp.where(filled, rest.stop_state, stopped).astype(rest.stop_state.dtype),
        stopped=compaction.Stopped(jnp.where(filled, row, rows), written),
    )


def _constrained(model: Transformer, cache: KVCache) -> KVCache:
    return jax.tree.map(lambda buffer: model.constrain(buffer, ("rows", "kv_heads", None, None)), cache)


def decode(
    model: Transformer,
    params: Params,
    state: Decoding,
    stop_table: jax.Array,
    settings: Settings,
    truncates: bool,
    until: jax.Array | int,
    trie: TagTrie | None = None,
    enough: Callable[[jax.Array], jax.Array] | None = None,
) -> Decoding:
    """Decodes until every row has stopped or `until` tokens are there, for which the cache must have room.

    trie: the language tags. enough: of the stop states [B], whether so many rows have stopped that the others should move.
    """
    stopped = stop_table.shape[0] - 1

    def unfinished(state: Decoding) -> jax.Array:
        on = (state.position < until) & ~jnp.all(state.stop_state == stopped)
        return on if enough is None else on & ~enough(state.stop_state)

    def step(state: Decoding) -> Decoding:
        t = state.position
        positions = (state.prompt_lengths - 1 + t)[:, None]
        hidden, own = model.extend(params, state.token[:, None], positions, state.prompt, state.own, t)
        logits = model.logits(params, hidden)[:, 0]
        if trie is not None:
            logits = tags.constrain_logits(trie, state.tag_state, state.allowed, logits)
        noise_keys = jax.vmap(lambda key: jax.random.fold_in(key, t))(state.keys)
        token, logprob = draw(logits, noise_keys, settings, truncates)
        active = state.stop_state != stopped
        token, logprob = jnp.where(active, token, 0), jnp.where(active, logprob, 0.0)
        if trie is not None:
            states = state.tags.state.at[:, t].set(state.tag_state, mode="drop")  # beyond the longest tag every row is free
            tag_state, language = tags.advance(trie, state.tag_state, state.tags.language, token, state.allowed)
            tag_state = jnp.where(active, tag_state, 0)
            state = state._replace(tag_state=tag_state, tags=Tags(states, jnp.where(active, language, state.tags.language)))
        return state._replace(
            position=t + 1,
            token=token,
            stop_state=jnp.where(active, stop_table[state.stop_state, token], state.stop_state),
            own=own,
            completions=jax.lax.dynamic_update_slice(state.completions, token[:, None], (0, t)),
            logprobs=jax.lax.dynamic_update_slice(state.logprobs, logprob[:, None], (0, t)),
            lengths=state.lengths + active,
        )

    return jax.lax.while_loop(unfinished, step, state)


def finish(
    prompts: Prompts,
    written: tuple,
    stopped: compaction.Stopped | None,
    stop_table: jax.Array,
    trie: TagTrie | None,
    shards: int,
) -> Rollout:
    """The rollout of a decoded group, from what its state has of these names."""
    completions, logprobs, lengths, stop_state, found = compaction.put_by(written, stopped, shards)
    B, C = completions.shape
    action_mask = jnp.arange(C)[None] < lengths[:, None]
    if trie is not None:
        allowed = jnp.repeat(prompts.allowed, B // prompts.allowed.shape[0], axis=0)
        W = found.state.shape[1]
        action_mask &= jnp.pad(tags.is_choice(trie, found.state, allowed), ((0, 0), (0, C - W)), constant_values=True)
    return Rollout(
        prompts=prompts,
        completions=completions,
        lengths=lengths,
        action_mask=action_mask,
        sampler_logprobs=logprobs,
        truncated=stop_state != stop_table.shape[0] - 1,
        tags=found,
    )
