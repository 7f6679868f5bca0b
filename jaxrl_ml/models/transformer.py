"""One decoder for Llama 3, Qwen2/2.5 and Qwen3: tokens in, hidden states and key/value caches out.

The layer (layers.py) is a linen module; the stack around it is three pure functions, the only forward passes of the library:

    prefill(params, tokens, positions, segments)          → hidden, cache     prompts, and packed sequences in SFT
    extend(params, tokens, positions, prompt, own, start) → hidden, cache     after a prompt: one token when decoding
    branch(params, prompts, mask, rows)                   → hidden of rows    both at once, layer by layer: score and update

Parameters are a plain pytree, {"embed", "layers", "final_norm"[, "lm_head"]}. `layers` is either one tree stacked on axis 0,
which is scanned (training, prefill: one compile for any depth), or a tuple of trees, one a layer, which is unrolled (decoding:
the only layout in which XLA writes the caches in place). Caches follow the same rule: stacked `[L, B, K, S, H]`, or a tuple.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl_ml.config import ModelConfig
from jaxrl_ml.models.attention import segment_mask
from jaxrl_ml.models.kernels import Causal, Kernel, Local, on_one_device, plain
from jaxrl_ml.models.layers import Block, Constrain, RMSNorm, rope_frequencies, unattended, unconstrained
from jaxrl_ml.models.lora import merge_layer
from jaxrl_ml.types import Params


class KVCache(NamedTuple):
    """Keys (rotated) and values: stacked `[L, B, K, S, H]`, or a tuple of L `[B, K, S, H]`."""

    k: Any
    v: Any


class PromptCache(NamedTuple):
    """The cache of Q prompts without their last tokens (those are fed to `extend` first), stored once a prompt."""

    kv: KVCache
    mask: jax.Array  # bool [Q, P-1]


@dataclass(frozen=True)
class Transformer:
    """The decoder as pure functions of its parameters; hashable, so that jit can close over it."""

    config: ModelConfig
    dtype: Any = jnp.float32
    remat: str = "none"
    constrain: Constrain = unconstrained
    kernel: Kernel | None = None
    """What attends in whole sequences; None: the plain path, as in decoding."""
    local: Local = on_one_device
    """How the plain path is run."""
    context: int = 1
    """Parts that sequences are split in."""

    @property
    def block(self) -> Block:
        return Block(self.config, self.dtype, self.constrain, self.context)

    def init(self, key: jax.Array) -> Params:
        """Random float32 parameters, layers stacked."""
        c = self.config
        embed_key, layers_key, head_key = jax.random.split(key, 3)
        x = jnp.zeros((1, 1, c.embed_dim), self.dtype)
        angle = jnp.zeros((1, 1, c.head_dim // 2))
        block = Block(c, self.dtype, unconstrained, 1)

        def init_layer(layer_key):
            return nn.unbox(block.init(layer_key, x, angle, angle, unattended)["params"])

        std = c.embed_dim**-0.5
        params = {
            "embed": std * jax.random.normal(embed_key, (c.vocab_size, c.embed_dim)),
            "layers": jax.vmap(init_layer)(jax.random.split(layers_key, c.num_layers)),
            "final_norm": {"scale": jnp.ones(c.embed_dim)},
        }
        if not c.tie_embeddings:
            params["lm_head"] = std * jax.random.normal(head_key, (c.vocab_size, c.embed_dim))
        return params

    def axes(self) -> Params:
        """The logical axis names of every parameter: a tree like the parameters', with tuples of names as leaves."""
        c = self.config
        x = jax.ShapeDtypeStruct((1, 1, c.embed_dim), self.dtype)
        angle = jax.ShapeDtypeStruct((1, 1, c.head_dim // 2), jnp.float32)
        block = Block(c, self.dtype, unconstrained, 1)
        boxed = jax.eval_shape(lambda *arrays: block.init(*arrays, unattended)["params"], jax.random.key(0), x, angle, angle)
        layers = jax.tree.map(lambda box: ("layers", *box.names), boxed, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned))
        axes = {"embed": ("vocab", "embed"), "layers": layers, "final_norm": {"scale": ("norm",)}}
        if not c.tie_embeddings:
            axes["lm_head"] = ("vocab", "embed")
        return axes

    def prefill(
        self, params: Params, tokens: jax.Array, positions: jax.Array, segments: jax.Array
    ) -> tuple[jax.Array, KVCache]:
        """Causal forward pass over tokens int32 [Q, P] from nothing.

        positions int32 [Q, P]; segments int32 [Q, P]: a token sees earlier tokens of its own segment (0 is padding).
        Returns hidden states [Q, P, D] (after the final norm) and the cache, each leaf `[L, Q, K, P, H]`.
        """
        return self._forward(params, tokens, positions, self._causal(segments), None, None, 0)

    def extend(
        self,
        params: Params,
        tokens: jax.Array,
        positions: jax.Array,
        prompt: PromptCache,
        own: KVCache | None = None,
        start: jax.Array | int = 0,
    ) -> tuple[jax.Array, KVCache]:
        """Forward pass over c further tokens int32 [B, c] of each row, after the row's prompt and its own cache.

        positions int32 [B, c]. own: buffers of length S of which columns below `start` are filled; the new keys and values
        are written at `start`. Without own the tokens are the rows' first. Returns hidden states [B, c, D] and own's successor.
        """
        c = tokens.shape[1]
        length = c if own is None else jax.tree.leaves(own)[0].shape[-2]
        mask = (jnp.arange(length)[None, :] <= start + jnp.arange(c)[:, None])[None]
        return self._forward(params, tokens, positions, mask, prompt, own, start)

    def branch(
        self,
        params: Params,
        prompts: tuple[jax.Array, jax.Array],
        mask: jax.Array,
        rows: Sequence[tuple[jax.Array, jax.Array]],
    ) -> list[jax.Array]:
        """What `extend` gives after `prefill`, for layers that are stacked, in one pass over them.

        prompts: tokens and positions int32 [Q, P]; mask bool [Q, P]; rows: sets of rows, tokens and positions int32 [B, c], B a
        multiple of Q. Returns hidden states [B, c, D] of each set. A prompt and its rows go through a layer as one sequence and
        part only where they attend: each weight has one product, and one gradient that is summed over devices. Sequences that
        are split over devices go apart: their parts would not stay where they are.
        """
        sets, Q = [prompts, *rows], mask.shape[0]
        segments = [mask.astype(jnp.int32), *(jnp.ones((1, tokens.shape[1]), jnp.int32) for tokens, _ in rows)]
        seen = [self._causal(s) for s in segments]
        if self.context > 1:
            return self._branch_apart(params, sets, mask, seen)
        shapes = [tokens.shape for tokens, _ in sets]

        def attend(q, k, v):
            first, *others = zip(*(_apart(x.swapaxes(1, 2), shapes) for x in (q, k, v)), strict=True)
            (q, k, v), *others = ([x.swapaxes(1, 2) for x in part] for part in (first, *others))
            out = [self._attend(q, k, v, seen[0])]
            out += [self._attend(*own, s, (k, v, mask)) for own, s in zip(others, seen[1:], strict=True)]
            return _together([x.swapaxes(1, 2) for x in out], Q).swapaxes(1, 2), None

        tokens, positions = (_together(list(part), Q) for part in zip(*sets, strict=True))
        angles = self._angles(positions)

        def layer(x, layer_params):
            return self.block.apply({"params": merge_layer(layer_params)}, x, *angles, attend)

        x, _ = jax.lax.scan(self._rematerialised(layer), self._embedded(params, tokens), params["layers"])
        return [self.constrain(x, ("rows", None, None)) for x in _apart(self._normed(params, x), shapes)[1:]]

    def _branch_apart(self, params: Params, sets: Sequence[tuple], mask: jax.Array, seen: Sequence) -> list[jax.Array]:
        """`branch` with a pass of its own through each layer for the prompts and for each set of rows."""
        angles = [self._angles(positions) for _, positions in sets]

        def layer(xs, layer_params):
            weights = {"params": merge_layer(layer_params)}
            first, (k, v) = self.block.apply(
                weights, xs[0], *angles[0], lambda q, k, v: (self._attend(q, k, v, seen[0]), (k, v))
            )
            others = [
                self.block.apply(weights, x, *own, lambda *qkv, s=s: (self._attend(*qkv, s, (k, v, mask)), None))[0]
                for x, own, s in zip(xs[1:], angles[1:], seen[1:], strict=True)
            ]
            return (first, *others), None

        xs = tuple(self._embedded(params, tokens) for tokens, _ in sets)
        xs, _ = jax.lax.scan(self._rematerialised(layer), xs, params["layers"])
        return [self._normed(params, x) for x in xs[1:]]

    def _attend(self, q, k, v, seen: Causal | jax.Array, prompt: tuple | None = None) -> jax.Array:
        return self.kernel(q, k, v, seen, prompt) if isinstance(seen, Causal) else plain(self.local, q, k, v, seen, prompt)

    def _causal(self, segments: jax.Array) -> Causal | jax.Array:
        """What tokens of the segments see, as the kernel, or else the plain path, takes it."""
        return segment_mask(segments) if self.kernel is None else Causal(segments)

    def _angles(self, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        frequencies = rope_frequencies(self.config.head_dim, self.config.rope_theta, self.config.rope_scaling)
        angles = positions.astype(jnp.float32)[..., None] * frequencies[None, None]
        return jnp.cos(angles), jnp.sin(angles)

    def _embedded(self, params: Params, tokens: jax.Array) -> jax.Array:
        # Gathered over fsdp first: a lookup whose result is split along embed cannot be moved to rows without a full copy.
        table = self.constrain(params["embed"], ("vocab", None))
        x = jnp.take(table, tokens, axis=0).astype(self.dtype)
        return self.constrain(x, ("rows", "sequence", None))

    def _normed(self, params: Params, x: jax.Array) -> jax.Array:
        return RMSNorm(self.config.norm_eps).apply({"params": params["final_norm"]}, x)

    def _forward(self, params, tokens, positions, mask, prompt, own, start):
        cos, sin = self._angles(positions)
        prompt_kv, prompt_mask = (None, None) if prompt is None else prompt

        def layer(x, slices):
            layer_params, layer_prompt, layer_own = slices
            shared = None if layer_prompt is None else (*layer_prompt, prompt_mask)

            def attend(q, k, v):
                if layer_own is not None:
                    k, v = (
                        jax.lax.dynamic_update_slice(buffer, new.astype(buffer.dtype), (0, 0, start, 0))
                        for buffer, new in zip(layer_own, (k, v), strict=True)
                    )
                return self._attend(q, k, v, mask, shared), (k, v)

            return self.block.apply({"params": merge_layer(layer_params)}, x, cos, sin, attend)

        x, layers = self._embedded(params, tokens), params["layers"]
        if isinstance(layers, tuple):
            caches = []
            for i, layer_params in enumerate(layers):
                pick = [None if kv is None else KVCache(kv.k[i], kv.v[i]) for kv in (prompt_kv, own)]
                x, kv = layer(x, (layer_params, *pick))
                caches.append(kv)
            cache = KVCache(tuple(k for k, _ in caches), tuple(v for _, v in caches))
        else:
            x, kv = jax.lax.scan(self._rematerialised(layer), x, (layers, prompt_kv, own))
            cache = KVCache(*kv)
        return self._normed(params, x), cache

    def _rematerialised(self, layer):
        match self.remat:
            case "none":
                return layer
            case "full":
                return jax.checkpoint(layer, prevent_cse=False)
            case "dots":
                policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
                return jax.checkpoint(layer, prevent_cse=False, policy=policy)
        raise ValueError(f"unknown remat {self.remat!r}")

    def head(self, params: Params) -> jax.Array:
        """The output matrix [V, D]: the embedding where tied."""
        return params["embed" if self.config.tie_embeddings else "lm_head"]

    def logits(self, params: Params, hidden: jax.Array) -> jax.Array:
        """float32 logits [B, c, V] of hidden states [B, c, D]."""
        head = self.head(params).astype(self.dtype)
        logits = jnp.einsum("bcd,vd->bcv", hidden, head, preferred_element_type=jnp.float32)
        return self.constrain(logits, ("rows", None, "vocab"))


def _together(sets: Sequence[jax.Array], Q: int) -> jax.Array:
    """Arrays [Q·g, c, …] of the rows of Q prompts, as one [Q, Σ g·c, …]."""
    return jnp.concatenate([x.reshape(Q, x.shape[0] // Q * x.shape[1], *x.shape[2:]) for x in sets], axis=1)


def _apart(x: jax.Array, shapes: Sequence[tuple[int, int]]) -> list[jax.Array]:
    """The inverse of `_together`, of arrays of the shapes [Q·g, c]."""
    ends = list(itertools.accumulate(B // x.shape[0] * c for B, c in shapes))
    parts = jnp.split(x, ends[:-1], axis=1)
    return [part.reshape(*shape, *x.shape[2:]) for part, shape in zip(parts, shapes, strict=True)]


def extend_vocabulary(tables: Params, first: int, count: int, size: int) -> Params:
    """The tables of a vocabulary, `embed` [V, D] and, untied, `lm_head` [V, D], at `size` ≥ V rows, with `count` new tokens.

    The new tokens, ids `first` and on, and all ids from V on, get the mean of rows 0 … first − 1, those of the old tokens; the
    others keep theirs to the bit. Rows that the model kept in reserve beyond its tokenizer were never a token's: they are not
    counted in the mean, and are overwritten only where a new token takes them. Before training, a new token's logit is the mean
    of the old tokens' logits in every context, so that n new rows take at most n / (first + n) of the probability.
    Source: Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models". Departure: no noise around the mean,
    so that a choice among new tokens starts uniform; gradients tell the rows apart.
    """

    def extended(table: jax.Array) -> jax.Array:
        V = table.shape[0]
        ids = jnp.arange(size)[:, None]
        new = ((ids >= first) & (ids < first + count)) | (ids >= V)
        return jnp.where(new, table[:first].mean(0, keepdims=True), jnp.pad(table, ((0, size - V), (0, 0))))

    return jax.tree.map(extended, tables)


def unstack(tree: Any, length: int) -> tuple:
    """Splits a tree stacked on axis 0 into a tuple of `length` trees."""
    return tuple(jax.tree.map(operator.itemgetter(i), tree) for i in range(length))
