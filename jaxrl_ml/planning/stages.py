"""The programs that a stage runs, with abstract arguments: shapes, dtypes and shardings, and no array of any size.

In: `Programs` on a mesh of real, fake or topology devices, and a stage. Out: `Planned`s, ready to be lowered. This file is the
only one of `planning` that knows how the stages call their programs.

1. Language tags are encoded as bytes, since there may be no tokenizer: they come out longer, a few tokens among thousands.
2. Decoding is planned at its dearest: all rows, none of them stopped, on the first grid, with the cache at its widest. So is
   prefill, which makes room for the widest cache at once instead of for its first tokens. The pieces that a run samples long
   completions by (`Programs.sample`) are not compiled one by one, and the memory that moving rows and growing the cache takes
   is not planned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl_ml import sampler
from jaxrl_ml.config import Config, GRPOStage, SFTStage, Stage
from jaxrl_ml.languages.tags import language_action
from jaxrl_ml.optimizer import make_optimizer
from jaxrl_ml.programs import Programs
from jaxrl_ml.types import Batch, Packed, Params, Prompts, Rollout, Tags, TagTrie


@dataclass(frozen=True)
class Planned:
    """One program of a stage."""

    name: str
    jitted: Any
    arguments: tuple
    runs: int  # times a step of the stage
    trips: int = 1  # turns of its loop that ends when the data says so: tokens, for decoding
    beside: int = 0  # bytes a device of what lives on it meanwhile, and is no argument

    def lower(self) -> Any:
        return self.jitted.lower(*self.arguments)


def device_bytes(tree: Any) -> int:
    """Bytes that a device holds of abstract arrays with shardings."""
    return sum(_leaf_bytes(leaf) for leaf in jax.tree.leaves(tree))


def _leaf_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    count = 1
    for size in leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape):
        count *= size
    return count * (8 if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize)


class _Shapes:
    """Makes abstract arrays on a layout."""

    def __init__(self, programs: Programs) -> None:
        self.layout = programs.layout

    def rows(self, dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self.layout.rows(len(shape)))

    def everywhere(self, dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self.layout.replicated)

    def like(self, tree: Any) -> Any:
        """Host arrays as abstract ones that every device has."""
        return jax.tree.map(lambda x: self.everywhere(x.dtype, *x.shape), tree)

    def prompts(self, count: int, stage: GRPOStage) -> Prompts:
        width, languages = stage.sampling.max_prompt_tokens, len(stage.language.languages)
        allowed = self.rows(jnp.bool_, count, languages) if languages else None
        tokens, mask = (self.rows(dtype, count, width) for dtype in (jnp.int32, jnp.bool_))
        return Prompts(tokens, mask, self.rows(jnp.uint32, count), allowed)

    def batch(self, stage: GRPOStage, tag_width: int) -> Batch:
        """What the step's updates learn from, of the widest bucket."""
        Q, C = stage.prompts_per_step, stage.sampling.max_completion_tokens
        B, row, cell = Q * stage.group_size, self.rows, self.rows(jnp.float32, Q * stage.group_size, C)
        mask = row(jnp.bool_, B, C)
        tags = Tags(row(jnp.int32, B, tag_width), row(jnp.int32, B)) if tag_width else None
        rollout = Rollout(self.prompts(Q, stage), row(jnp.int32, B, C), row(jnp.int32, B), mask, cell, row(jnp.bool_, B), tags)
        values = None
        if stage.loss.language == "own" and stage.language.mode == "constrained":
            values = row(jnp.float32, Q, len(stage.language.languages))
        old = cell if stage.updates_per_step > 1 else None
        return Batch(rollout, cell, mask, old, cell if stage.loss.kl != "none" else None, values)


def planned(programs: Programs, config: Config, stage: Stage) -> list[Planned]:
    """The programs of a step of the stage, in the order they run."""
    updates = stage.num_steps * (stage.updates_per_step if isinstance(stage, GRPOStage) else 1)
    optimizer = make_optimizer(config.optimizer_of(stage), updates)
    state, make = programs.state_shapes(optimizer, stage.lora), _Shapes(programs)
    if isinstance(stage, SFTStage):
        N, T = stage.batch_size, stage.sequence_length
        cell, mask = make.rows(jnp.int32, N, T), make.rows(jnp.bool_, N, T)
        packed = Packed(cell, cell, mask, cell, cell)
        return [Planned(f"{stage.name}/fit", programs.fit(stage, optimizer), (state, packed), 1)]
    action = language_action(stage.language, _bytes, stage.sampling.max_completion_tokens)
    trie = make.like(action.trie)
    scalar, batch = make.everywhere(jnp.float32), make.batch(stage, action.width)
    reference = programs.params_like() if stage.loss.kl != "none" and stage.lora is None else None
    held = device_bytes(state) + device_bytes(reference)  # all through a step
    params = programs.params_like() if reference is None else reference
    scores = (stage.updates_per_step > 1) + (stage.loss.kl != "none")
    found = [
        *_sampling(programs, make, stage, trie, action.width, state.params, held),
        Planned("score", programs.score(stage), (params, batch.rollout, scalar, trie), scores, 1, held - device_bytes(params)),
        Planned(
            "update",
            programs.update(stage, optimizer),
            (state, batch, make.everywhere(jnp.int32), scalar, trie),
            stage.updates_per_step,
            1,
            device_bytes(reference),
        ),
    ]
    return [Planned(f"{stage.name}/{p.name}", p.jitted, p.arguments, p.runs, p.trips, p.beside) for p in found if p.runs]


def _sampling(
    programs: Programs, make: _Shapes, stage: GRPOStage, trie: TagTrie | None, tag_width: int, params: Params, held: int
) -> list[Planned]:
    """Gathering the weights, and prefill and decoding of one chunk of prompts."""
    chunk, width = stage.sampling.prompts_per_chunk or stage.prompts_per_step, stage.sampling.max_completion_tokens
    runs = stage.prompts_per_step // chunk
    weights = jax.eval_shape(programs.gather, params)
    prompts = make.prompts(chunk, stage)
    seed_words = make.everywhere(jnp.uint32, 4)
    table = make.everywhere(jnp.int16, 2 + len("".join(stage.sampling.stop).encode()), programs.model.config.vocab_size)
    settings = make.like(sampler.settings_of(stage.sampling))
    begin = (weights, prompts, seed_words, table, stage.group_size, width, tag_width)
    state = programs.decoding_like(jax.eval_shape(lambda *arrays: programs.begin(*arrays, *begin[4:]), *begin[:4]))
    decode = (weights, state, table, settings, False, make.everywhere(jnp.int32), trie)
    return [
        Planned("gather", programs.gather, (params,), 1, 1, held - device_bytes(params)),
        Planned("prefill", programs.begin, begin, runs, 1, held),
        Planned("decode", programs.decode, decode, runs, width, held),
    ]


def _bytes(texts: Any) -> list[list[int]]:
    return [list(text.encode()) for text in texts]
