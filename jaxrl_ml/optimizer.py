"""The optimiser: optax AdamW behind warm-up, schedule and clipping."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from jaxrl_ml.config import OptimizerConfig
from jaxrl_ml.types import Params


def learning_rate_schedule(config: OptimizerConfig, num_updates: int) -> optax.Schedule:
    """The learning rate by number of updates applied, over a stage of num_updates."""
    rest = max(1, num_updates - config.warmup_steps)
    peak, end = config.learning_rate, config.learning_rate * config.final_fraction
    match config.schedule:
        case "constant":
            after = optax.constant_schedule(peak)
        case "linear":
            after = optax.linear_schedule(peak, end, rest)
        case "cosine":
            after = optax.cosine_decay_schedule(peak, rest, alpha=config.final_fraction)
    if config.warmup_steps == 0:
        return after
    # The first update already moves: warm-up counts from 1/warmup_steps.
    warmup = optax.linear_schedule(peak / config.warmup_steps, peak, max(1, config.warmup_steps - 1))
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """optax.clip_by_global_norm as one product a leaf, which XLA fuses into what reads it: optax's choice between the gradient
    and its quotient keeps both in memory, a second gradient of the whole model.
    """

    def clipped(gradient: Params, _: Params | None) -> Params:
        factor = jnp.minimum(1.0, max_norm / optax.tree.norm(gradient))  # 1 for a norm of 0, and for max_norm=inf
        return jax.tree.map(lambda leaf: leaf * factor, gradient)

    return optax.stateless(clipped)


def make_optimizer(config: OptimizerConfig, num_updates: int) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW; weight decay spares norms and biases (the stacked layers make them 2-D or 3-D)."""

    def decayed(params: Params) -> Params:
        def is_matrix(path: tuple, _: jax.Array) -> bool:
            name = path[-1].key
            return name != "scale" and not name.endswith("_bias")

        return jax.tree_util.tree_map_with_path(is_matrix, params)

    return optax.chain(
        clip_by_global_norm(config.max_grad_norm),
        optax.adamw(
            learning_rate_schedule(config, num_updates),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decayed,
            mu_dtype=jnp.float32,
        ),
    )


def carry_moments(fresh: optax.OptState, old: optax.OptState) -> optax.OptState:
    """`fresh` with Adam's moments (and their count) of `old`; the learning-rate schedule starts anew."""
    return jax.tree.map(
        lambda new, before: before if isinstance(new, optax.ScaleByAdamState) else new,
        fresh,
        old,
        is_leaf=lambda node: isinstance(node, optax.ScaleByAdamState),
    )
