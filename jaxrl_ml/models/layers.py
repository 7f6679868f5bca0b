"""One decoder layer as linen modules: norms, projections, rotary embedding, MLP. What attends to what is told from outside.

In: states [B, c, D], the angles of their positions, and an `Attend`. Out: states, and what the Attend keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl_ml.config import ModelConfig, RopeScaling

Constrain = Callable[[jax.Array, tuple[str | None, ...]], jax.Array]
"""Pins an activation's sharding by logical axis names (`sharding.Layout.constrain`)."""


Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]
"""Attention of one layer (see `Attention`)."""


def unconstrained(x: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
    """The Constrain of a single device."""
    return x


def unattended(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, Any]:
    """The Attend of a layer of which only the parameters are wanted."""
    return q, None


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
    """Projections, rotary embedding and attention of one layer.

    attend: q [B, N, c, H], k, v [B, K, c, H] → out like q, and what is to be kept of keys and values.
    """

    config: ModelConfig
    dtype: Any
    constrain: Constrain
    context: int

    @nn.compact
    def __call__(self, x: jax.Array, cos: jax.Array, sin: jax.Array, attend: Attend) -> tuple[jax.Array, Any]:
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
        out, kept = attend(rotate(q, cos, sin), rotate(k, cos, sin), v)
        weight = _param(self, "o", ("heads", "head_dim", "embed"), (N, H, D), N * H)
        out = out.swapaxes(1, 2).reshape(*x.shape[:2], N * H)
        return matmul(out, weight.reshape(N * H, D), self.context), kept


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
    """One pre-norm decoder layer: x [B, c, D] → x, and what `attend` keeps (see `Attention`)."""

    config: ModelConfig
    dtype: Any
    constrain: Constrain
    context: int

    @nn.compact
    def __call__(self, x: jax.Array, cos: jax.Array, sin: jax.Array, attend: Attend) -> tuple[jax.Array, Any]:
        eps, given = self.config.norm_eps, (self.config, self.dtype, self.constrain, self.context)
        attended, kept = Attention(*given, name="attention")(RMSNorm(eps, name="attention_norm")(x), cos, sin, attend)
        x = x + attended
        x = x + MLP(*given, name="mlp")(RMSNorm(eps, name="mlp_norm")(x))
        return self.constrain(x, ("rows", "sequence", None)), kept
