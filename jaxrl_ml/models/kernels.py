"""Attention of whole sequences by a kernel of the platform's: splash attention on TPU, cuDNN's on NVIDIA GPUs.

In: what `attention.attention` takes, with a mask that is told by segments instead of written out. Out: what it gives, for every
query that is no padding. No array of queries × keys × heads is held, forwards or backwards. One token at a time (decoding), and
the CPU, keep to the plain path.

A row's own keys follow its prompt's, which are repeated for the rows of a group here: keys and values, no more; the layers
below and above compute a prompt once. One softmax over both comes by itself, with the kernel's own gradient (splash can return
the log-sum-exp of a part of the keys, but not with gradients).

Splash is a Pallas kernel of jax.experimental: it skips blocks of keys in the future, and takes segments as data. cuDNN's is
`jax.nn.dot_product_attention`, which takes them as a bias, rows × queries × keys in 16 bits; plain scores are larger by twice
the number of heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_ml.models.attention import attention

Names = tuple[str | None, ...]
Local = Callable[..., jax.Array]
"""(function, names, *arrays): the function on every device's own part of the arrays (`sharding.Layout.local`)."""


class Causal(NamedTuple):
    """Queries that see the keys up to their own of their own segment: what a kernel takes in place of a mask."""

    segments: jax.Array  # int32 [B or 1, c]; 0 is padding, whose results are garbage that nobody reads


def on_one_device(function: Callable[..., jax.Array], names: tuple[Names, ...], *arrays: jax.Array) -> jax.Array:
    """The Local of a single device."""
    return function(*arrays)


def plain(
    local: Local,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    prompt: tuple[jax.Array, jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """`attention.attention` on every device's own rows and heads, or own queries and all keys of sequences that are split.

    Left to itself XLA regroups sums of the softmax across heads of other devices: compiled for v5e, a token of Qwen2.5-7B with
    heads over four devices had ten collectives a layer for that.
    """
    queries, keys = ("rows", "heads", "sequence", None), ("rows", "kv_heads", None, None)
    seen = ("rows" if mask.shape[0] > 1 else None, "sequence", None)
    shared = () if prompt is None else prompt
    return local(
        lambda q, k, v, mask, *shared: attention(q, k, v, mask, shared or None),
        (queries, keys, keys, seen, *(keys, keys, ("rows", None))[: len(shared)]),
        *(q, k, v, mask, *shared),
    )


@dataclass(frozen=True)
class Kernel:
    """A kernel, and how it is run on a mesh; hashable, so that jit can close over it."""

    name: Literal["splash", "cudnn"]
    local: Local = on_one_device
    interpret: bool = False
    """Emulated in XLA operations, which is slow, but runs on the CPU."""

    def __call__(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        causal: Causal,
        prompt: tuple[jax.Array, jax.Array, jax.Array] | None = None,
    ) -> jax.Array:
        """Attention [B, N, c, H] of whole sequences; q, k, v and prompt as in `attention.attention`, own keys of length c.

        After a prompt the own tokens are one segment.
        """
        B, _, c, _ = q.shape
        if c == 0:  # a prompt of one token prefills none
            return q
        rows, seen = ("rows", "kernel_heads", None, None), ("rows", None)
        keys = ("rows", "kernel_kv_heads", None, None)
        if prompt is None or prompt[0].shape[2] == 0:
            segments = jnp.broadcast_to(causal.segments, (B, c))
            return self.local(self._alone, (rows, keys, keys, seen), q, k, v, segments)
        return self.local(self._after_prompt, (rows, keys, keys, keys, keys, seen), q, k, v, *prompt)

    def _alone(self, q, k, v, segments):
        return self._attend(q, k, v, segments, segments)

    def _after_prompt(self, q, k, v, prompt_k, prompt_v, prompt_mask):
        B, _, c, _ = q.shape
        G, P = B // prompt_mask.shape[0], prompt_mask.shape[1]
        before = -P % self._block(c)  # so that the own keys start with a block
        prompt_k, prompt_v, prompt_mask = _pad(before, 0, prompt_k, prompt_v, prompt_mask)
        k, v = (jnp.concatenate([jnp.repeat(shared, G, axis=0), own], axis=2) for shared, own in ((prompt_k, k), (prompt_v, v)))
        own = jnp.ones((B, c), jnp.int32)
        return self._attend(q, k, v, own, jnp.concatenate([jnp.repeat(prompt_mask, G, axis=0).astype(jnp.int32), own], axis=1))

    def _block(self, c: int) -> int:
        if self.name == "cudnn":
            return 8
        return 128 if c <= 128 else 256 if c <= 256 else 512

    def _attend(self, q, k, v, q_segments, k_segments):
        """q [B, N, c, H] over k, v [B, K, S, H], S ≥ c, the last c keys being the queries' own."""
        c = q.shape[2]
        q, k, v, q_segments, k_segments = _pad(0, -c % self._block(c), q, k, v, q_segments, k_segments)
        run = _cudnn if self.name == "cudnn" else _splash
        return run(self, q, k, v, q_segments, k_segments)[:, :, :c]


def _pad(before: int, after: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Lengthens sequences [B, K, S, H] and [B, S] by zeros."""

    def padded(x: jax.Array) -> jax.Array:
        widths = [(0, 0)] * x.ndim
        widths[min(2, x.ndim - 1)] = (before, after)
        return jnp.pad(x, widths)

    return tuple(padded(x) for x in arrays)


def _splash(kernel: Kernel, q, k, v, q_segments, k_segments):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    (_, N, c, H), S, block = q.shape, k.shape[2], kernel._block(q.shape[2])
    sizes = {f"block_{name}": block for name in ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")}
    mask = splash.MultiHeadMask([splash.CausalMask((c, S), offset=S - c)] * N)
    one_row = splash.make_splash_mha(
        mask, block_sizes=splash.BlockSizes(**sizes), head_shards=1, q_seq_shards=1, interpret=kernel.interpret
    )
    return jax.vmap(one_row)(q * jnp.asarray(H**-0.5, q.dtype), k, v, splash.SegmentIds(q_segments, k_segments))


def _cudnn(kernel: Kernel, q, k, v, q_segments, k_segments):
    c, S = q.shape[2], k.shape[2]
    mask = jnp.tril(jnp.ones((c, S), bool), S - c)[None] & (q_segments[:, :, None] == k_segments[:, None])
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    implementation = "xla" if kernel.interpret else "cudnn"
    return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], implementation=implementation).swapaxes(1, 2)
