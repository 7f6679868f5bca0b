"""One decoder for Llama 3, Qwen2/2.5 and Qwen3: tokens in, hidden states and key/value caches out.

The layer is a linen module; the stack around it is three pure functions, the only forward passes of the library:

    prefill(params, tokens, positions, segments)          → hidden, cache     prompts, and packed sequences in SFT
    extend(params, tokens, positions, prompt, own, start) → hidden, cache     after a prompt: one token when decoding
    branch(params, prompts, mask, rows)                   → hidden of rows    both at once, layer by layer: score and update

Parameters are a plain pytree, {"embed", "layers", "final_norm"[, "lm_head"]}. `layers` is either one tree stacked on axis 0,
which is scanned (training, prefill: one compile for any depth), or a tuple of trees, one a layer, which is unrolled (decoding:
the only layout in which XLA writes the caches in place). Caches follow the same rule: stacked `[L, B, K, S, H]`, or a tuple.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl_ml.config import ModelConfig, RopeScaling
from jaxrl_ml.models.attention import attention, segment_mask
from jaxrl_ml.models.kernels import Causal, Kernel
from jaxrl_ml.models.lora import merge_layer
from jaxrl_ml.types import Params

Constrain = Callable[[jax.Array, tuple[str | None, ...]], jax.Array]
"""Pins an activation's sharding by logical axis names (`sharding.Layout.constrain`)."""


class KVCache(NamedTuple):
    """Keys (rotated) and values: stacked `[L, B, K, S, H]`, or a tuple of L `[B, K, S, H]`."""

    k: Any
    v: Any


class PromptCache(NamedTuple):
    """The cache of Q prompts without their last tokens (those are fed to `extend` first), stored once a prompt."""

    kv: KVCache
    mask: jax.Array  # bool [Q, P-1]


def unconstrained(x: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
    """The Constrain of a single device."""
    return x


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> jax.Array:
    """Rotary frequencies, f32 [H/2], in radians a position; with Llama 3's scaling of the long wavelengths.

    Source: RoFormer (arXiv 2104.09864) eq. 15; scaling as in the Llama 3.1 reference code (`apply_scaling`).
    """
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling is None:
        return frequencies
    wavelength = 2 * jnp.pi / frequencies
    old = scaling.original_max_position_embeddings
    smooth = (old / wavelength - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    smooth = jnp.clip(smooth, 0.0, 1.0)  # 0: long wavelengths, divided by the factor; 1: short ones, kept
    return (1 - smooth) * frequencies / scaling.factor + smooth * frequencies


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Applies rotary embedding to x [B, heads, c, H] with cos, sin f32 [B, c, H/2]; halves are paired, as in Hugging Face."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, None], sin[:, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def _param(module: nn.Module, name: str, names: tuple[str, ...], shape: tuple[int, ...], fan_in: int | None) -> jax.Array:
    """A float32 parameter with logical axis names: normal with std fan_in^-1/2, ones for norms (0), zeros for biases (None)."""
    if fan_in is None:
        init = nn.initializers.zeros_init()
    else:
        init = nn.initializers.normal(fan_in**-0.5) if fan_in else nn.initializers.ones_init()
    return module.param(name, nn.with_logical_partitioning(init, names), shape, jnp.float32)


def matmul(x: jax.Array, weight: jax.Array, context: int = 1) -> jax.Array:
    """x [B, c, D] @ weight [D, F], over B·c flat rows: on CPU the gradient of the batched product is ten times slower.

    With sequences split in `context` parts not flat: such a split of B·c cannot be told to XLA.
    """
    B, c, D = x.shape
    if context > 1:
        return jnp.einsum("bcd,df->bcf", x, weight.astype(x.dtype))
    return (x.reshape(B * c, D) @ weight.astype(x.dtype)).reshape(B, c, weight.shape[1])


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, computed in float32."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = _param(self, "scale", ("norm",), (x.shape[-1],), 0)
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return (wide * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


class Attention(nn.Module):
    """Projections, rotary embedding, cache write and attention of one layer."""

    config: ModelConfig
    dtype: Any
    constrain: Constrain
    kernel: Kernel | None
    context: int

    @nn.compact
    def __call__(self, x, cos, sin, mask, prompt, own, start):
        c = self.config
        D, N, K, H = c.embed_dim, c.num_heads, c.num_kv_heads, c.head_dim

        def project(name: str, heads: int, axis: str) -> jax.Array:
            weight = _param(self, name, ("embed", axis, "head_dim"), (D, heads, H), D)
            y = matmul(x, weight.reshape(D, heads * H), self.context).reshape(*x.shape[:2], heads, H).swapaxes(1, 2)
            if c.qkv_bias:
                bias = _param(self, f"{name}_bias", (axis, "head_dim"), (heads, H), None)
                y = y + bias.astype(self.dtype)[None, :, None]
            return self.constrain(y, ("rows", axis, "sequence", None))

        q, k, v = project("q", N, "heads"), project("k", K, "kv_heads"), project("v", K, "kv_heads")
        if c.qk_norm:
            q, k = RMSNorm(c.norm_eps, name="q_norm")(q), RMSNorm(c.norm_eps, name="k_norm")(k)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if own is not None:
            at = (0, 0, start, 0)
            k = jax.lax.dynamic_update_slice(own[0], k.astype(own[0].dtype), at)
            v = jax.lax.dynamic_update_slice(own[1], v.astype(own[1].dtype), at)
        attend = self.kernel if isinstance(mask, Causal) else attention
        out = attend(q, k, v, mask, prompt)
        weight = _param(self, "o", ("heads", "head_dim", "embed"), (N, H, D), N * H)
        out = out.swapaxes(1, 2).reshape(*x.shape[:2], N * H)
        return matmul(out, weight.reshape(N * H, D), self.context), (k, v)


class MLP(nn.Module):
    """SwiGLU."""

    config: ModelConfig
    dtype: Any
    constrain: Constrain
    context: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        D, F = self.config.embed_dim, self.config.mlp_dim
        gate = matmul(x, _param(self, "gate", ("embed", "mlp"), (D, F), D), self.context)
        up = matmul(x, _param(self, "up", ("embed", "mlp"), (D, F), D), self.context)
        hidden = self.constrain(nn.silu(gate) * up, ("rows", "sequence", "mlp"))
        return matmul(hidden, _param(self, "down", ("mlp", "embed"), (F, D), F), self.context)


class Block(nn.Module):
    """One pre-norm decoder layer: x [B, c, D] → x, (k, v)."""

    config: ModelConfig
    dtype: Any
    constrain: Constrain
    kernel: Kernel | None
    context: int

    @nn.compact
    def __call__(self, x, cos, sin, mask, prompt, own, start):
        eps = self.config.norm_eps
        attend = Attention(self.config, self.dtype, self.constrain, self.kernel, self.context, name="attention")
        attended, kv = attend(RMSNorm(eps, name="attention_norm")(x), cos, sin, mask, prompt, own, start)
        x = x + attended
        x = x + MLP(self.config, self.dtype, self.constrain, self.context, name="mlp")(RMSNorm(eps, name="mlp_norm")(x))
        return self.constrain(x, ("rows", "sequence", None)), kv


@dataclass(frozen=True)
class Transformer:
    """The decoder as pure functions of its parameters; hashable, so that jit can close over it."""

    config: ModelConfig
    dtype: Any = jnp.float32
    remat: str = "none"
    constrain: Constrain = unconstrained
    kernel: Kernel | None = None
    """What attends in whole sequences; None: the plain path, as in decoding."""
    context: int = 1
    """Parts that sequences are split in."""

    @property
    def block(self) -> Block:
        return Block(self.config, self.dtype, self.constrain, self.kernel, self.context)

    def init(self, key: jax.Array) -> Params:
        """Random float32 parameters, layers stacked."""
        c = self.config
        embed_key, layers_key, head_key = jax.random.split(key, 3)
        x = jnp.zeros((1, 1, c.embed_dim), self.dtype)
        angle = jnp.zeros((1, 1, c.head_dim // 2))
        mask = jnp.ones((1, 1, 1), bool)
        block = Block(c, self.dtype, unconstrained, None, 1)

        def init_layer(layer_key):
            return nn.unbox(block.init(layer_key, x, angle, angle, mask, None, None, 0)["params"])

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
        mask = jax.ShapeDtypeStruct((1, 1, 1), bool)
        block = Block(c, self.dtype, unconstrained, None, 1)
        boxed = jax.eval_shape(
            lambda *arrays: block.init(*arrays, None, None, 0)["params"], jax.random.key(0), x, angle, angle, mask
        )
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
        multiple of Q. Returns hidden states [B, c, D] of each set. As both parts use a layer's weights in one step of the scan,
        their gradients are added there: two passes would hold a gradient of all layers each.
        """
        segments = [mask.astype(jnp.int32), *(jnp.ones((1, t.shape[1]), jnp.int32) for t, _ in rows)]
        given = [(*self._angles(p), self._causal(s)) for (_, p), s in zip((prompts, *rows), segments, strict=True)]

        def layer(xs, layer_params):
            weights = {"params": merge_layer(layer_params)}
            first, cache = self.block.apply(weights, xs[0], *given[0], None, None, 0)
            others = zip(xs[1:], given[1:], strict=True)
            return (first, *(self.block.apply(weights, x, *own, (*cache, mask), None, 0)[0] for x, own in others)), None

        xs = tuple(self._embedded(params, tokens) for tokens, _ in (prompts, *rows))
        xs, _ = jax.lax.scan(self._rematerialised(layer), xs, params["layers"])
        return [self._normed(params, x) for x in xs[1:]]

    def _causal(self, segments: jax.Array) -> Causal | jax.Array:
        """What tokens of the segments see, as the kernel, or else the plain path, takes it."""
        return segment_mask(segments) if self.kernel is None else self.kernel.causal(segments)

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
            return self.block.apply({"params": merge_layer(layer_params)}, x, cos, sin, mask, shared, layer_own, start)

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
