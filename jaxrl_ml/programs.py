"""The compiled programs, side by side: the only file with jax.jit.

    init     key → params                          random weights, sharded for training
    extend   params → params                       with rows for added tokens, at the start of a run
    adapt    params → params                       under a new adapter (LoRA), where a stage trains one
    merge    params → params                       without the adapter: it is added to the weights
    moments  params → opt_state                    the optimiser's start
    gather   params → weights                      sampling layout and dtype, layers unstacked; once a step
    sample   weights, prompts → Rollout            prefill and decode in one program; in pieces, where rows may move
    begin, decode                                  the same, to stream tokens as they come
    score    params, rollout → log-probs           for old and reference policies
    update   TrainState, Batch → TrainState        GRPO, donated
    fit      TrainState, Packed → TrainState       SFT, donated

Shapes are static and few (widths are bucketed by the host); settings and step numbers are data: a steady-state step compiles
nothing. Each is lowered for one mesh, with the outputs' shardings pinned.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial, update_wrapper
from pathlib import PurePath
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from jaxrl_ml import compaction, sampler, update
from jaxrl_ml.config import ComputeConfig, GRPOStage, LoRAConfig, ModelConfig, SFTStage
from jaxrl_ml.losses import Slicing
from jaxrl_ml.models import lora
from jaxrl_ml.models.kernels import Kernel, on_one_device
from jaxrl_ml.models.transformer import Transformer, extend_vocabulary, unstack
from jaxrl_ml.sharding import BETWEEN, SAMPLING, SPLIT_SAMPLING, TRAINING, Layout
from jaxrl_ml.types import Params, Prompts, Rollout, Tags, TagTrie, TrainState, require

_CACHE_SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",  # jax changes it when it opens a cache
)


@contextmanager
def compilation_cache(folder: PurePath) -> Iterator[None]:
    """Keeps compiled programs in `folder` inside the context, so that a repeated run starts in seconds.

    A cache that the user has set up is left alone. On leaving, jax's settings are as they were.
    """
    if jax.config.jax_compilation_cache_dir is not None:
        yield
        return
    before = {name: getattr(jax.config, name) for name in _CACHE_SETTINGS}
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        jax_cache.reset_cache()  # jax would go on using the open one


def _jit(function: Callable[..., Any], **options: Any) -> Any:
    """`jax.jit` of a function of this library, in which arrays of different ranks do not broadcast (rank promotion).

    The rule holds while the function is traced, in whatever thread that is. It is no setting of the process, because rewards
    and tasks of a user may use jax too.
    """

    def strict(*args: Any, **kwargs: Any) -> Any:
        with jax.numpy_rank_promotion("raise"):
            return function(*args, **kwargs)

    return jax.jit(update_wrapper(strict, function), **options)


def resolve_dtype(name: str) -> Any:
    """The compute dtype: auto is bfloat16 on accelerators and float32 on CPU, where bfloat16 is emulated."""
    if name == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jnp.dtype(name)


def resolve_kernel(name: str, dtype: Any, layout: Layout, config: ModelConfig) -> Kernel | None:
    """The attention kernel of a layout's devices, None for the plain path.

    auto is splash on TPU and cuDNN's on GPU where they take the model, plain elsewhere. Raises UserError where a kernel that is
    asked for does not run.
    """
    platform, heads, kv_heads = layout.mesh.devices.flat[0].platform, config.num_heads, config.num_kv_heads
    half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16) and config.head_dim % 8 == 0 and config.head_dim <= 128
    parts = layout.parts("kernel_heads")
    fits = heads % parts == 0 and (kv_heads % parts == 0 or parts % kv_heads == 0)
    runs = {"plain": True, "splash": platform in ("tpu", "cpu") and fits, "cudnn": platform == "gpu" and half and fits}
    if name == "auto":
        own = {"tpu": "splash", "gpu": "cudnn"}.get(platform, "plain")
        name = own if runs[own] else "plain"
    if name == "plain":
        return None
    need = {"splash": "a TPU", "cudnn": "a GPU, 16-bit arithmetic, a head_dim that is a multiple of 8 up to 128"}[name]
    require(
        runs[name],
        f"compute.attention={name} needs {need}, and heads that divide by {parts} devices; here are {platform}, "
        f"{jnp.dtype(dtype)}, head_dim={config.head_dim}, {heads} heads, {kv_heads} kv_heads: use auto",
    )
    return Kernel(name, layout.local, interpret=platform == "cpu")


class Programs:
    """The programs of one model on one mesh."""

    def __init__(self, config: ModelConfig, compute: ComputeConfig, mesh: jax.sharding.Mesh) -> None:
        self.layout = Layout(mesh, TRAINING)
        token_parts = self.layout.row_shards * self.layout.parts("sequence")
        self._slicing = Slicing(compute, token_parts, self.layout.parts("vocab"), self.layout.constrain)
        dtype = resolve_dtype(compute.dtype)
        self.sampling_layout = sampling = Layout(mesh, SPLIT_SAMPLING if compute.sampling_weights == "split" else SAMPLING)
        kernel, sampling_kernel = (
            resolve_kernel(compute.attention, dtype, layout, config) for layout in (self.layout, sampling)
        )
        parts = self.layout.parts("sequence")
        local = self.layout.local if parts > 1 else on_one_device
        self.model = Transformer(config, dtype, compute.remat, self.layout.constrain, kernel, local, parts)
        # Fewer key/value heads than devices would be repeated for each token.
        own = mesh.size > 1 and config.num_kv_heads % sampling.parts("kv_heads") == 0
        local = sampling.local if own else on_one_device
        self.sampling_model = Transformer(config, dtype, "none", sampling.constrain, sampling_kernel, local)
        self.param_shapes = jax.eval_shape(self.model.init, jax.random.key(0))
        self.param_shardings = self.layout.tree(self.model.axes(), self.param_shapes)
        weights = jax.eval_shape(self._to_sampling, self.param_shapes)
        axes = self.model.axes()
        layer_axes = jax.tree.map(lambda names: names[1:], axes["layers"], is_leaf=lambda leaf: isinstance(leaf, tuple))
        weight_shardings = sampling.tree({**axes, "layers": (layer_axes,) * config.num_layers}, weights)

        self.init = _jit(self.model.init, out_shardings=self.param_shardings)
        self._merge = _jit(lora.merged, out_shardings=self.param_shardings)
        self.gather = _jit(self._to_sampling, out_shardings=weight_shardings)
        rows = self.layout.rows
        plain = Rollout(Prompts(rows(2), rows(2), rows(1)), rows(2), rows(1), rows(2), rows(2), rows(1))
        tagged = plain._replace(prompts=plain.prompts._replace(allowed=rows(2)), tags=Tags(rows(2), rows(1)))
        self._rollout_shardings = {False: plain, True: tagged}
        self._sample, self._sample_tagged = (
            _jit(self._sample_all, static_argnums=(6, 7, 8, 9), out_shardings=shardings) for shardings in (plain, tagged)
        )
        self._pieces: dict[Any, dict[Any, Any]] = {}
        self.begin = _jit(partial(sampler.begin, self.sampling_model), static_argnums=(4, 5, 6))
        self.decode = _jit(partial(sampler.decode, self.sampling_model), static_argnums=(4,), donate_argnums=(1,))

    def _to_sampling(self, params: Params) -> Params:
        def cast(path: tuple, leaf: jax.Array) -> jax.Array:
            return leaf if path[-1].key == "scale" else leaf.astype(self.model.dtype)

        weights = jax.tree_util.tree_map_with_path(cast, lora.merged(params))
        if self.layout.mesh.shape["context"] > 1:
            between = Layout(self.layout.mesh, BETWEEN).tree(self.model.axes(), weights)
            weights = jax.lax.with_sharding_constraint(weights, between)
        return {**weights, "layers": unstack(weights["layers"], self.model.config.num_layers)}

    def _sample_all(self, weights, prompts, seed_words, stop_table, settings, trie, truncates, G, C, W) -> Rollout:
        model, widths = self.sampling_model, sampler.cache_widths(C)
        state = sampler.begin(model, weights, prompts, seed_words, stop_table, G, C, W, widths[0])
        for width in widths:
            state = sampler.grown(model, state, width)
            state = sampler.decode(model, weights, state, stop_table, settings, truncates, width, trie)
        return sampler.finish(prompts, state.written, None, stop_table, trie, self.layout.row_shards)

    def sample(
        self,
        weights: Params,
        prompts: Prompts,
        seed_words: Any,
        stop_table: Any,
        settings: sampler.Settings,
        trie: TagTrie | None = None,
        **static: Any,
    ) -> Rollout:
        """Samples `group_size` completions of at most `width` tokens a prompt; `truncates`: top-k, top-p or min-p are on.

        seed_words uint32 [4] is (seed, purpose, step, attempt); all arrays on the device. With a trie, `tag_width` is the
        length of its longest tag, and the prompts tell which languages they allow.
        """
        order = (static["truncates"], static["group_size"], static["width"], static.get("tag_width", 0))
        given = (weights, prompts, seed_words, stop_table, settings, trie)
        if order[2] > sampler.FIRST_WIDTH and len(self._grids(prompts, order[1])) > 1:
            return self._sample_in_pieces(given, order)
        program = self._sample if trie is None else self._sample_tagged
        return program(*given, *order)

    def _grids(self, prompts: Prompts, G: int) -> list[compaction.Grid]:
        return compaction.grids(prompts.tokens.shape[0] // self.sampling_layout.row_shards, G)

    def _sample_in_pieces(self, given: tuple, order: tuple) -> Rollout:
        """As `_sample_all`, but rows that go on are moved together in between; waits for each piece."""
        weights, prompts, seed_words, stop_table, settings, trie = given
        key = (order, tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves((prompts, stop_table, trie))))
        if key not in self._pieces:
            self._pieces[key] = self._compile_pieces(given, order)
        pieces, grids, grid, width = self._pieces[key], self._grids(prompts, order[1]), 0, 0
        state = pieces["begin"](weights, prompts, seed_words, stop_table)
        while True:
            state, position, live = pieces["decode", grid, width](weights, state, stop_table, settings, trie)
            position, live = jax.device_get((position, live))
            if not live.any() or position == order[2]:
                return pieces["finish", grid](prompts, state.written, state.stopped, stop_table, trie)
            if grid + 1 < len(grids) and compaction.fits(live, grids[grid + 1]):
                state = pieces["move", grid, width](state)
                grid += 1
            else:
                state = pieces["grow", grid, width](state)
                width += 1

    def _compile_pieces(self, given: tuple, order: tuple) -> dict[Any, Any]:
        """Every piece of sampling: all are compiled before the first is needed, so that no later step compiles."""
        weights, prompts, seed_words, stop_table, settings, trie = given
        truncates, G, C, W = order
        model, layout, stopped = self.sampling_model, self.sampling_layout, stop_table.shape[0] - 1
        grids, widths, shards = self._grids(prompts, G), sampler.cache_widths(C), layout.row_shards
        lowered, states = {}, {}

        def lower(name: Any, function: Any, *arguments: Any, told: int = 0, donate: tuple = ()) -> Any:
            """Lowers a piece that gives a state, and `told` small values besides; returns what the state is like."""
            shapes = jax.eval_shape(function, *arguments)
            like = self.decoding_like(shapes[0] if told else shapes)
            pinned = (_shardings(like), *[layout.replicated] * told) if told else _shardings(like)
            lowered[name] = _jit(function, out_shardings=pinned, donate_argnums=donate).lower(*arguments)
            return like

        def decode(grid: int, width: int, weights, state, stop_table, settings, trie):
            def live(stop_state):
                return compaction.live_rows(stop_state, stopped, shards, grids[grid])

            last = grid + 1 == len(grids)
            enough = None if last else lambda stop_state: compaction.fits(live(stop_state), grids[grid + 1])
            state = sampler.decode(model, weights, state, stop_table, settings, truncates, widths[width], trie, enough)
            return state, state.position, live(state.stop_state)

        def begin(weights, prompts, seed_words, stop_table):
            return sampler.begin(model, weights, prompts, seed_words, stop_table, G, C, W, widths[0])

        states[0, 0] = lower("begin", begin, weights, prompts, seed_words, stop_table)
        for grid in range(len(grids)):
            for width in range(len(widths)):
                state = states[grid, width]
                lower(("decode", grid, width), partial(decode, grid, width), weights, state, stop_table, settings, trie,
                      told=2, donate=(1,))  # fmt: skip
                if width + 1 < len(widths):
                    grow = partial(sampler.grown, model, S=widths[width + 1])
                    states[grid, width + 1] = lower(("grow", grid, width), grow, state)
                if grid + 1 < len(grids):
                    move = partial(sampler.move, model, stopped=stopped, shards=shards, old=grids[grid], new=grids[grid + 1])
                    states[grid + 1, width] = lower(("move", grid, width), move, state)
            finish = _jit(partial(sampler.finish, shards=shards), out_shardings=self._rollout_shardings[trie is not None])
            lowered["finish", grid] = finish.lower(prompts, state.written, state.stopped, stop_table, trie)
        with ThreadPoolExecutor() as pool:
            return dict(zip(lowered, pool.map(lambda piece: piece.compile(), lowered.values()), strict=True))

    def decoding_like(self, shapes: sampler.Decoding) -> sampler.Decoding:
        """The decoding state of these shapes with its shardings: caches by rows and heads, the others by rows."""
        layout = self.sampling_layout

        def place(shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            match len(shape.shape):
                case 0:
                    sharding = layout.replicated
                case 4:
                    sharding = layout.sharding(("rows", "kv_heads", None, None), shape.shape)
                case rank:
                    sharding = layout.rows(rank)
            return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

        return jax.tree.map(place, shapes)

    def extend(self, params: Params, first: int, count: int) -> Params:
        """`params`, of as many rows as there were, with those of `count` tokens added at id `first`: see extend_vocabulary."""
        tables = {name: params[name] for name in ("embed", "lm_head") if name in params}
        bound = partial(extend_vocabulary, first=first, count=count, size=self.model.config.vocab_size)
        shardings = {name: self.param_shardings[name] for name in tables}
        return {**params, **_jit(bound, out_shardings=shardings)(tables)}

    def adapt(self, params: Params, config: LoRAConfig, key: jax.Array) -> Params:
        """`params` under a new adapter, drawn from `key`, that changes nothing yet."""
        like = lora.adapter_like(self.params_like(), config.rank)
        draw = _jit(partial(lora.init_adapter, like), out_shardings=_shardings(like))
        return lora.attach(params, draw(key), config)

    def merge(self, params: Params) -> Params:
        """Plain parameters: with the adapter added to the weights, if there is one."""
        return self._merge(params) if lora.is_adapted(params) else params

    def params_like(self, adapter: LoRAConfig | None = None) -> Params:
        """The abstract parameters, shardings included, under the adapter of a stage that trains one."""
        like = jax.tree.map(
            lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
            self.param_shapes,
            self.param_shardings,
        )
        return like if adapter is None else lora.attach(like, lora.adapter_like(like, adapter.rank), adapter)

    def state_shapes(self, optimizer: optax.GradientTransformation, adapter: LoRAConfig | None = None) -> TrainState:
        """The abstract TrainState, shardings included: what a checkpoint is restored into."""
        step = jax.ShapeDtypeStruct((), jnp.int32, sharding=self.layout.replicated)
        params = self.params_like(adapter)
        return TrainState(step, params, self._moment_shapes(optimizer, params))

    def _moment_shapes(self, optimizer: optax.GradientTransformation, params: Params) -> Any:
        """Moments lie where their parameters do."""
        trained = lora.trained(params)
        return optax.tree_utils.tree_map_params(
            optimizer,
            lambda moment, param: jax.ShapeDtypeStruct(moment.shape, moment.dtype, sharding=param.sharding),
            jax.eval_shape(optimizer.init, trained),
            trained,
            transform_non_params=lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.layout.replicated),
        )

    def moments(self, optimizer: optax.GradientTransformation, params: Params) -> Any:
        """The optimiser's initial state for what is trained of `params`."""
        shardings = _shardings(self._moment_shapes(optimizer, params))
        return _jit(optimizer.init, out_shardings=shardings)(lora.trained(params))

    def score(self, stage: GRPOStage) -> Any:
        """(params, rollout, temperature, trie) → log-probs f32 [B, C]."""
        parts = stage.num_minibatches * stage.num_microbatches
        return _jit(partial(update.score, self.model, parts, self._slicing), out_shardings=self.layout.rows(2))

    def update(self, stage: GRPOStage, optimizer: optax.GradientTransformation) -> Any:
        """(state, batch, minibatch, temperature, trie) → (state, metrics); the state is donated."""
        bound = partial(
            update.grpo_update,
            self.model,
            optimizer,
            stage.loss,
            stage.num_minibatches,
            stage.num_microbatches,
            stage.sampling.max_completion_tokens,
            self._slicing,
            stage.language.languages,
        )
        state = _shardings(self.state_shapes(optimizer, stage.lora))
        return _jit(bound, donate_argnums=(0,), out_shardings=(state, self.layout.replicated))

    def fit(self, stage: SFTStage, optimizer: optax.GradientTransformation) -> Any:
        """(state, packed batch) → (state, metrics); the state is donated."""
        bound = partial(update.sft_update, self.model, optimizer, stage.num_microbatches, self._slicing)
        state = _shardings(self.state_shapes(optimizer, stage.lora))
        return _jit(bound, donate_argnums=(0,), out_shardings=(state, self.layout.replicated))


def _shardings(shapes: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, shapes)


class StepEnd(threading.Thread):
    """Notes when the device has finished a step: a thread waits for `arrays`, which the step returns, so the loop need not.

    For steps after which the host fetches the metrics long after the device is done, as in GRPO: there the next rollout comes
    first. Without arrays the step is finished already.
    """

    def __init__(self, arrays: Any) -> None:
        super().__init__()
        self._arrays = jax.tree.leaves(arrays)
        self._time_s = time.perf_counter()
        if self._arrays:
            self.start()

    def run(self) -> None:
        with suppress(Exception):  # the loop meets the same error when it fetches the arrays
            jax.block_until_ready(self._arrays)
        self._time_s = time.perf_counter()

    def time_s(self) -> float:
        """The time at which the step was finished, on the clock of `time.perf_counter`; waits for it."""
        if self._arrays:
            self.join()
        return self._time_s
