"""`python tools/bench.py limit --model HF_DIR`: what the machine can do, what the model's work needs, and the share achieved.

The work is (a): 2 prompts × 4 samples, 122-token prompts, 32 new tokens. Operations are those that the result needs, counted by
hand: a multiply-add is two, nothing that is computed again counts, attention only over what a token sees, and a prompt is
computed once for its group. Prefill, score and update are held against the rate of a large square product; decoding, whose
products have few rows, against the products of one token step alone, those with the caches among them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from bench_policy import PROMPT_TOKENS, Policy
from bench_step import WORK
from bench_timing import Row, in_turn, own_peak, ratios, seconds_of, shortest

from jaxrl_ml import doctor, sampler
from jaxrl_ml.config import GRPOStage, ModelConfig, OptimizerConfig, SamplingConfig
from jaxrl_ml.optimizer import make_optimizer
from jaxrl_ml.types import Batch, TrainState

DECODE_GRIDS = ((2, 4), (4, 8))
SHORT, LONG = 16, 80  # tokens; decoding is timed between them


class Need(NamedTuple):
    """What some work needs at least."""

    flops: float
    bytes: float


def layer_weights(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of a layer's matrices."""
    D, F, N, K, H = config.embed_dim, config.mlp_dim, config.num_heads * config.head_dim, config.num_kv_heads, config.head_dim
    return {"q": (D, N), "k": (D, K * H), "v": (D, K * H), "o": (N, D), "gate": (D, F), "up": (D, F), "down": (F, D)}


def forward_flops(config: ModelConfig, tokens: int, pairs: int, predicted: int) -> float:
    """Of a forward pass: `tokens` go through the layers, each mixes `pairs` of query and key, `predicted` have logits."""
    layer = sum(a * b for a, b in layer_weights(config).values())
    attention = 2 * config.num_heads * config.head_dim  # the score and the mixing of one pair
    return 2 * (config.num_layers * (tokens * layer + pairs * attention) + predicted * config.embed_dim * config.vocab_size)


def needs(config: ModelConfig, prompts: int, group: int, new: int, width: int = PROMPT_TOKENS) -> dict[str, Need]:
    """Of the parts of a GRPO step in float32; "decode" is one token of all rows, half-way through the completion.

    Bytes: every weight once a pass, the cache that is written or read, and in the update also the gradients, written and read,
    and weights and both moments, read and written.
    """
    rows, before = prompts * group, width - 1  # the last token of a prompt is the first to be extended
    layers = config.num_layers * sum(a * b for a, b in layer_weights(config).values())
    head = config.embed_dim * config.vocab_size
    cache = 4 * 2 * config.num_layers * config.num_kv_heads * config.head_dim  # a token's
    own = prompts * before * (before + 1) // 2
    extended = rows * (new * before + new * (new + 1) // 2)
    prefill = forward_flops(config, prompts * before, own, 0)
    score = forward_flops(config, prompts * before + rows * new, own + extended, rows * new)
    decode = forward_flops(config, rows, rows * (before + new // 2), rows)
    weights = layers + head * (1 if config.tie_embeddings else 2)
    return {
        "prefill": Need(prefill, 4 * layers + cache * prompts * before),
        "decode": Need(decode, 4 * (layers + head) + cache * (prompts * before + rows * (new // 2 + 1))),
        "score": Need(score, 4 * (layers + head)),
        "update": Need(3 * score, 4 * (layers + head) * 2 + 4 * weights * 8),
    }


def read_rate() -> float:
    """Bytes/s of reading a buffer of 256 MiB, far more than the caches hold."""
    x = jnp.ones(2**26)
    return x.nbytes / shortest(lambda: jnp.sum(x))


def products_seconds(weights: tuple[jax.Array, ...], x: jax.Array, axis: int) -> float:
    """Seconds of multiplying x [B, inputs] by each of the weights, one after the other; `axis`: that of their inputs."""

    @jax.jit
    def chain(x, weights):
        found = []
        for weight in weights:
            y = jax.lax.dot_general(x, weight, (((1,), (axis,)), ((), ())))
            found.append(y)
            x = x + 1e-9 * y[:, :1]  # the next one waits
        return found

    return shortest(lambda: chain(x, weights), 3)


def step_products(config: ModelConfig) -> Callable[[int], float]:
    """Rows B → seconds of all products of one token step alone, of each kind in the faster of both layouts of its weights.

    Every layer has weights of its own, as in the model: none is found in a cache because it was just used.
    """
    kinds: dict[tuple[int, int], int] = {}
    for shape in layer_weights(config).values():
        kinds[shape] = kinds.get(shape, 0) + config.num_layers
    kinds[config.embed_dim, config.vocab_size] = 1
    layouts = {
        shape: [tuple(jnp.full(s, 1e-2) for _ in range(count)) for s in (shape, shape[::-1])] for shape, count in kinds.items()
    }

    def seconds(B: int) -> float:
        return sum(
            min(products_seconds(weights, jnp.ones((B, shape[0])), axis) for axis, weights in enumerate(both))
            for shape, both in layouts.items()
        )

    return seconds


def attention_seconds(config: ModelConfig, prompts: int, group: int, width: int) -> float:
    """Seconds of the products of one token's attention alone, of all layers: with the prompts' caches and the rows' own.

    Each layer has caches of its own, of `width` tokens a row, all of which decoding multiplies with.
    """
    K, H, L = config.num_kv_heads, config.head_dim, config.num_layers
    heads, rows = config.num_heads // K, prompts * group
    shapes = ((prompts, K, group * heads, PROMPT_TOKENS - 1), (rows, K, heads, width))

    @jax.jit
    def chain(q, layers):
        for caches in layers:
            for (B, _, x, _), (k, v) in zip(shapes, caches, strict=True):
                scores = jnp.einsum("bkxh,bksh->bkxs", q.reshape(B, K, x, H), k)
                q = q + 1e-9 * jnp.einsum("bkxs,bksh->bkxh", scores, v).reshape(q.shape)  # the next one waits
        return q

    layers = [[tuple(jnp.full((B, K, S, H), 1e-2) for _ in range(2)) for B, _, _, S in shapes] for _ in range(L)]
    return shortest(lambda: chain(jnp.ones((rows, K, heads, H)), layers), 3)


def own_shapes_rate(config: ModelConfig, tokens: int, predicted: int) -> tuple[float, float]:
    """FLOP/s of the products of an update alone, forwards and backwards: of all of them, and of the fastest.

    `tokens` go through the layers; their matrices are timed once and counted for all layers.
    """
    shapes = [(tokens, *shape, config.num_layers) for shape in layer_weights(config).values()]
    shapes.append((predicted, config.embed_dim, config.vocab_size, 1))
    flops, seconds, best = 0.0, 0.0, 0.0
    for T, a, b, count in shapes:
        x, w, y = jnp.ones((T, a)), jnp.full((a, b), 1e-2), jnp.ones((T, b))
        contracted = ((x, w, 1, 0), (y, w, 1, 1), (x, y, 0, 0))  # the output, the gradients of the input and of the weight
        for left, right, i, j in contracted:
            multiply = jax.jit(partial(jax.lax.dot_general, dimension_numbers=(((i,), (j,)), ((), ()))))
            took = shortest(lambda multiply=multiply, left=left, right=right: multiply(left, right), 3)
            best = max(best, 2 * T * a * b / took)
            flops, seconds = flops + count * 2 * T * a * b, seconds + count * took
    return flops / seconds, best


def train_programs(policy: Policy, work: tuple[int, int, int]) -> dict[str, Callable[[], Any]]:
    """Calls of `score` and `update` on a rollout of the work; the update goes on from its own result."""
    prompts, group, new = work
    programs = policy.programs
    stage = GRPOStage(
        None, None, prompts_per_step=prompts, group_size=group, sampling=SamplingConfig(max_completion_tokens=new)
    )
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-6), 100)
    rollout = jax.device_get(policy.sampler(prompts, group, new)(policy.stop_after(new, new)))
    advantages = np.where(np.arange(prompts * group) % 2, 1, -1)[:, None] * rollout.action_mask.astype(np.float32)
    batch = policy.layout.put_rows(Batch(rollout, advantages.astype(np.float32), rollout.action_mask))
    first, one = policy.layout.put(np.int32(0)), policy.layout.put(np.float32(1))
    score, update = programs.score(stage), programs.update(stage, optimizer)
    copy = jax.tree.map(jnp.copy, policy.params)
    states = [TrainState(first, copy, programs.moments(optimizer, copy))]

    def updated() -> TrainState:
        state, _ = update(states.pop(), batch, first, one, None)
        states.append(jax.block_until_ready(state))
        return state

    return {"score": lambda: jax.block_until_ready(score(policy.params, batch.rollout, one, None)), "update": updated}


def limit(model: str, repeats: int) -> list[Row]:
    """Rates of the machine, and how much of them the parts of a GRPO step reach."""
    policy, work = Policy(model), WORK["a"]
    prompts, group, new = work
    where, config, device = policy.prompts(prompts), policy.config, jax.devices()[0]
    need = needs(config, prompts, group, new)
    own_rate = partial(own_shapes_rate, config, prompts * (PROMPT_TOKENS - 1) + prompts * group * new, prompts * group * new)
    prefill = jax.jit(partial(_prefill, policy.programs.sampling_model))
    runs = {"prefill": lambda: jax.block_until_ready(prefill(policy.weights, where)), **train_programs(policy, work)}
    alone = step_products(config)
    measures: dict[str, Callable[[], Any]] = {
        "matmul": lambda: doctor.matmul_rate("float32", device),
        "copy": lambda: doctor.copy_rate(device),
        "read": read_rate,
        "own": own_rate,
        **{name: partial(shortest, run, 2) for name, run in runs.items()},
    }
    for grid in DECODE_GRIDS:
        rows = grid[0] * grid[1]
        measures[f"decode {rows}"] = token_seconds(policy, *grid)
        measures[f"alone {rows}"] = partial(alone, rows)
        measures[f"attention {rows}"] = partial(attention_seconds, config, *grid, LONG)
    measures["matmul again"] = measures["matmul"]
    found = in_turn(measures, repeats)
    # A limit is the most that the machine can do: what else it was busy with for a moment does not count.
    found["matmul"] = [max(pair) for pair in zip(found["matmul"], found.pop("matmul again"), strict=True)]
    return [*_rate_rows(found), *(_share_row(name, need[name], found) for name in runs), *_decode_rows(config, found)]


def _prefill(model: Any, weights: Any, prompts: Any) -> Any:
    mask = prompts.mask[:, :-1]
    return model.prefill(weights, prompts.tokens[:, :-1], sampler.prompt_positions(mask), mask.astype(jnp.int32))


def token_seconds(policy: Policy, prompts: int, group: int, width: int = LONG) -> Callable[[], float]:
    """A measure of the seconds that one token of all rows takes, drawing and stopping included, from the SHORT-th on."""
    sample = policy.sampler(prompts, group, width)
    tables = [policy.stop_after(tokens, LONG) for tokens in (SHORT, LONG)]
    for table in tables:
        sample(table)
    return lambda: np.diff([seconds_of(partial(sample, table)) for table in tables])[0] / (LONG - SHORT)


def _rate_rows(found: dict[str, list[Any]]) -> list[Row]:
    rate, fastest = ([each[i] for each in found["own"]] for i in (0, 1))
    square = f"square {statistics.median(found['matmul']) / 1e9:.0f} GFLOP/s"
    copy, read = (statistics.median(found[name]) / 1e9 for name in ("copy", "read"))
    return [
        Row(
            "limit: float32 products of (a)'s update alone, its fastest",
            _gflops(fastest),
            square,
            ratios(fastest, found["matmul"]),
        ),
        Row("limit: all products of (a)'s update alone", _gflops(rate), square, ratios(rate, found["matmul"])),
        Row("limit: copy, fresh pages", f"{copy:.1f} GB/s", f"read {read:.1f} GB/s", ratios(found["copy"], found["read"])),
    ]


def _gflops(rates: list[float]) -> str:
    return f"{statistics.median(rates) / 1e9:.0f} GFLOP/s"


def _share_row(name: str, need: Need, found: dict[str, list[Any]]) -> Row:
    seconds = statistics.median(found[name])
    shares = [need.flops / s / rate for s, rate in zip(found[name], found["matmul"], strict=True)]
    own = statistics.median(need.flops / s / rate for s, (rate, _) in zip(found[name], found["own"], strict=True))
    return Row(
        f"limit: {name} of (a), {need.flops / 1e9:.1f} GFLOP, {need.bytes / 1e9:.2f} GB",
        f"{seconds:.3f} s, {need.flops / seconds / 1e9:.0f} GFLOP/s",
        f"square product; {own:.2f} of its own products' rate",
        shares,
        "" if name == "score" else "≥ 0.6",
        own_peak() if name == "update" else "",
    )


def _decode_rows(config: ModelConfig, found: dict[str, list[Any]]) -> list[Row]:
    rows = []
    for prompts, group in DECODE_GRIDS:
        B = prompts * group
        need = needs(config, prompts, group, SHORT + LONG)["decode"]
        step, weights, attention = (found[f"{name} {B}"] for name in ("decode", "alone", "attention"))
        alone = [a + b for a, b in zip(weights, attention, strict=True)]
        share = f"{statistics.median(attention) * 1e3:.1f} of them attention's"
        rows.append(
            Row(
                f"limit: decode, a token of {B} rows, {need.flops / 1e9:.1f} GFLOP, {need.bytes / 1e9:.2f} GB",
                f"{statistics.median(step) * 1e3:.1f} ms",
                f"its products alone {statistics.median(alone) * 1e3:.1f} ms, {share}",
                ratios(alone, step),
                "≥ 0.8",
            )
        )
    return rows
