"""`python tools/bench.py logprob`: log-probs and entropies at a large vocabulary, against the dense computation.

Both sides give the same values and the gradients of the states and of the head. The dense one holds the logits of all tokens;
ours recomputes them, which makes 4/3 of the operations.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from bench_timing import Row, interleaved, own_peak, ratios

from jaxrl_ml.config import ComputeConfig
from jaxrl_ml.losses import Slicing, token_logprobs

B, C, D, V = 8, 128, 896, 151_936  # 1,024 tokens; width and vocabulary of Qwen2.5-0.5B


def dense_logprobs(hidden: jax.Array, head: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`token_logprobs` at temperature 1 with all logits at once."""
    logprobs = jax.nn.log_softmax(jnp.einsum("bcd,vd->bcv", hidden, head), axis=-1)
    chosen = jnp.take_along_axis(logprobs, targets[..., None], axis=-1)[..., 0]
    return chosen, -(jnp.exp(logprobs) * logprobs).sum(-1)


def sliced_logprobs(hidden: jax.Array, head: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`token_logprobs` at temperature 1, at the default memory."""
    one = jnp.ones((), jnp.float32)
    return token_logprobs(hidden, head, targets, one, Slicing(ComputeConfig()))


def gradients(logprobs_of: Callable[..., Any], entropy_coef: float) -> Callable[..., Any]:
    """(hidden, head, targets, weights [B, C]) → (weighted loss, (log-probs, entropies)), gradients of hidden and head."""

    def loss(hidden, head, targets, weights):
        logprobs, entropy = logprobs_of(hidden, head, targets)
        return (weights * (logprobs + entropy_coef * entropy)).sum(), (logprobs, entropy)

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)


def logprob(repeats: int) -> list[Row]:
    """Time and temporaries of the loss's head, without and with an entropy bonus."""
    keys = jax.random.split(jax.random.key(0), 4)
    hidden, head = jax.random.normal(keys[0], (B, C, D)), jax.random.normal(keys[1], (V, D)) * D**-0.5
    arrays = hidden, head, jax.random.randint(keys[2], (B, C), 0, V), jax.random.normal(keys[3], (B, C))
    rows = []
    for coefficient, name in ((0.0, "log-probs and entropies"), (0.01, "the same with an entropy bonus")):
        sides = {
            side: jax.jit(gradients(of, coefficient)).lower(*arrays).compile()
            for side, of in (("ours", sliced_logprobs), ("dense", dense_logprobs))
        }
        agree(*(side(*arrays) for side in sides.values()))
        temporaries = {side: program.memory_analysis().temp_size_in_bytes for side, program in sides.items()}
        runs = {side: lambda run=program: jax.block_until_ready(run(*arrays)) for side, program in sides.items()}
        seconds = interleaved(runs, repeats, time.perf_counter)
        work = f"(e) {name}, forwards and backwards, {B * C:,} tokens, V = {V:,}, D = {D}"
        ours, dense = (f"{statistics.median(seconds[side]):.2f} s" for side in ("ours", "dense"))
        rows.append(Row(f"{work}: time", ours, f"dense {dense}", ratios(seconds["ours"], seconds["dense"]), "≤ 1.35"))
        ours, dense = (f"{temporaries[side] / 1e9:.3f} GB" for side in ("ours", "dense"))
        share = [temporaries["ours"] / temporaries["dense"]]
        rows.append(Row(f"{work}: temporaries", ours, f"dense {dense}", share, "≤ 0.125", own_peak()))
    return rows


def agree(ours: Any, dense: Any) -> None:
    """Both sides compute the same, or their times say nothing."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(dense), strict=True):
        error = float(jnp.abs(a - b).max() / jnp.abs(b).max())
        assert error < 1e-3, f"the two computations differ by {error:.1g} of the largest value"
