"""The language action: the tags of the allowed languages as a trie over tokens, and what the sampler and the losses do with it.

In: a `LanguageConfig` and a tokenizer; then, inside compiled programs, logits and trie states. Out: a `TagTrie`, masked logits,
the next states, and the supports over which a tag token's log-prob is normalised.

A row starts at the root (node 1). Where the trie constrains, its next token is one of the node's allowed children, drawn from
the policy renormalised over them, until a tag is complete and the row is free (node 0). Where it does not (mode `free`), the
trie only watches: a token off the tags frees the row, without a language. A node with one allowed child leaves no choice: its
probability is 1, its gradient is 0, and it is no action. So a forced tag is a constrained one with one allowed language, and is
never learnt from. Departure from ExpLang's code, whose tags are ordinary text: that is mode `free`, which recognises a tag only
by the tokens that the tokenizer itself would write it with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxrl_ml.config import LanguageConfig
from jaxrl_ml.languages.thinking import CLOSE, OPEN
from jaxrl_ml.types import Example, TagTrie, UserError, require

if TYPE_CHECKING:
    import jax

    from jaxrl_ml.tokenizer import Tokenizer

    Array = jax.Array | np.ndarray

ROOT = 1
_MARKS = (OPEN, CLOSE, "<answer>", "</answer>")  # of thinking, and of Countdown's answers
_MASKED = -1e30  # as in attention: not −inf, of which differences are not numbers


def make_trie(config: LanguageConfig, encode: Callable[[Sequence[str]], list[list[int]]]) -> TagTrie:
    """The trie of the config's tags, as numpy arrays; `encode` is the tokenizer's.

    Raises UserError where two languages share a tag, or one's tag is the beginning of another's: which was chosen could not be
    told.
    """
    paths = dict(zip(config.languages, map(tuple, encode(config.tags())), strict=True))
    for code, path in paths.items():
        for other, longer in paths.items():
            if code != other and longer[: len(path)] == path:
                raise UserError(f"language.tag: the tokens of {code}'s tag begin those of {other}'s; give tags that differ")
    nodes: list[dict[int, int]] = [{}, {}]  # of each node: token → child
    passing: list[dict[int, set[int]]] = [{}, {}]  # of each node: token → languages
    complete: dict[tuple[int, int], int] = {}
    for language, path in enumerate(paths.values()):
        node = ROOT
        for token in path[:-1]:
            passing[node].setdefault(token, set()).add(language)
            if token not in nodes[node]:
                nodes[node][token] = len(nodes)
                nodes.append({})
                passing.append({})
            node = nodes[node][token]
        nodes[node][path[-1]] = 0
        passing[node][path[-1]] = {language}
        complete[node, path[-1]] = language
    E = max(map(len, nodes))
    trie = TagTrie(
        tokens=np.full((len(nodes), E), -1, np.int32),
        target=np.zeros((len(nodes), E), np.int32),
        language=np.full((len(nodes), E), -1, np.int32),
        reach=np.zeros((len(nodes), E, len(paths)), bool),
        constrains=np.array(config.mode != "free"),
    )
    for node, children in enumerate(nodes):
        for edge, (token, child) in enumerate(sorted(children.items())):
            trie.tokens[node, edge] = token
            trie.target[node, edge] = child
            trie.language[node, edge] = complete.get((node, token), -1)
            trie.reach[node, edge, list(passing[node][token])] = True
    return trie


class LanguageAction(NamedTuple):
    """What a stage or an evaluation needs of its language config; all empty where the mode is off."""

    trie: TagTrie | None = None
    width: int = 0  # tokens of the longest tag
    allowed: Callable[[Sequence[Example]], np.ndarray] | None = None  # examples → bool [Q, languages]


def language_action(
    config: LanguageConfig, encode: Callable[[Sequence[str]], list[list[int]]], max_completion_tokens: int
) -> LanguageAction:
    """The config's action, its trie on the host. Raises UserError where no token would be left after the longest tag."""
    if config.mode == "off":
        return LanguageAction()
    width = max(map(len, encode(config.tags())))
    if width >= max_completion_tokens:
        raise UserError(
            f"sampling.max_completion_tokens={max_completion_tokens} leaves no room after a language tag of {width} tokens; "
            "raise it or shorten language.tag"
        )
    return LanguageAction(make_trie(config, encode), width, partial(allowed_languages, config))


def check_decoding(owner: str, config: LanguageConfig, tokenizer: Tokenizer) -> None:
    """Raises UserError where a decoded completion would lack its language tag, or the marks that rewards read.

    owner: the stage or evaluation, for the message. Decoding leaves out BOS, EOS, pad and stop ids.
    """
    tags = config.tags() if config.mode != "off" else ()
    ids = tokenizer.encode(tags)
    for tag, tokens, text in zip(tags, ids, tokenizer.decode(ids), strict=True):
        require(text == tag, f"{owner}: language.tag {tag!r} is decoded as {text!r}: no reward would find it; choose another")
        ends = set(tokens) & set(tokenizer.stop_ids)
        require(not ends, f"{owner}: language.tag {tag!r} holds stop ids {sorted(ends)}, which end completions; change it")
    for mark in _MARKS:
        lost = [text for text in tokenizer.dropped_texts if text in mark]
        require(
            not lost,
            f"{owner}: rewards read {mark}, but {', '.join(lost)} is the tokenizer's BOS, EOS, pad or stop id, which decoding "
            "leaves out; set another in the tokenizer's files. To end completions at a text, use sampling.stop",
        )


def allowed_languages(config: LanguageConfig, examples: Sequence[Example]) -> np.ndarray:
    """The languages that each prompt may choose from, bool [Q, languages].

    Raises UserError where a prompt allows none of the config's, names one that it has not, or, in mode forced, has no single
    one to be given.
    """
    places = {code: place for place, code in enumerate(config.languages)}
    allowed = np.zeros((len(examples), len(places)), bool)
    for row, example in enumerate(examples):
        codes = example.fields.get("languages", config.languages)
        if config.mode == "forced" and len(codes) > 1:
            codes = (example.language,)
        unknown = [code for code in codes if code not in places]
        if unknown or not codes:
            raise UserError(
                f"example {example.id!r} is to think in {', '.join(unknown) or 'no language'}, but language.languages is "
                f"{', '.join(config.languages)}; add it there or choose among them"
            )
        allowed[row, [places[code] for code in codes]] = True
    return allowed


def children(trie: TagTrie, state: Array, allowed: Array) -> tuple[Array, Array]:
    """The tokens int32 [..., E] that may follow at states [...], and which of them count, bool [..., E].

    allowed: bool [..., languages]. A free row has no children.
    """
    return trie.tokens[state], (trie.reach[state] & allowed[..., None, :]).any(-1)


def paths(trie: TagTrie, width: int) -> tuple[jax.Array, jax.Array]:
    """The tokens of every language's tag and the nodes they are drawn at, int32 [languages, width]; node 0 after its end."""
    import jax.numpy as jnp

    languages = trie.reach.shape[-1]
    each, node, path = jnp.arange(languages), jnp.full(languages, ROOT), []
    for _ in range(width):  # one edge of a node reaches a language; none of node 0 does
        edge = jnp.argmax(trie.reach[node, :, each], axis=1)
        path.append((trie.tokens[node, edge], node))
        node = jnp.where(node > 0, trie.target[node, edge], 0)
    tokens, states = (jnp.stack(column, axis=1) for column in zip(*path, strict=True))
    return tokens, states


def constrain_logits(trie: TagTrie, state: Array, allowed: Array, logits: jax.Array) -> jax.Array:
    """The logits f32 [B, V] with all but the allowed children at −1e30 in rows inside a tag, where the trie constrains."""
    import jax
    import jax.numpy as jnp

    def constrained(logits: jax.Array) -> jax.Array:
        tokens, valid = children(trie, state, allowed)
        rows = jnp.arange(logits.shape[0])[:, None]
        kept = jnp.take_along_axis(logits, jnp.maximum(tokens, 0), axis=-1)
        outside = jnp.where(valid, tokens, logits.shape[-1])  # dropped
        only = jnp.full_like(logits, _MASKED).at[rows, outside].set(kept, mode="drop")
        return jnp.where((state > 0)[:, None], only, logits)

    return jax.lax.cond(trie.constrains & (state > 0).any(), constrained, lambda logits: logits, logits)


def advance(trie: TagTrie, state: Array, language: Array, token: Array, allowed: Array) -> tuple[jax.Array, jax.Array]:
    """The states and languages int32 [B] after `token` [B]; a token off the trie frees the row without a language."""
    import jax.numpy as jnp

    tokens, valid = children(trie, state, allowed)
    taken = valid & (tokens == token[:, None])
    at = jnp.argmax(taken, axis=1)[:, None]
    on_trie = taken.any(1)

    def follow(table: Array) -> jax.Array:
        return jnp.take_along_axis(table[state], at, axis=1)[:, 0]

    return jnp.where(on_trie, follow(trie.target), 0), jnp.where(on_trie, follow(trie.language), language)


def is_choice(trie: TagTrie, state: Array, allowed: Array) -> Array:
    """Whether each token was the policy's to choose, bool [B, W], at states [B, W]; allowed bool [B, languages]."""
    _, valid = children(trie, state, allowed[:, None])
    return ~trie.constrains | (state == 0) | (valid.sum(-1) > 1)
