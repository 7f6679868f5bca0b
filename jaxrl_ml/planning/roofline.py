"""What a stage's programs take on a device, worked out from sizes alone: no compiler, no jax, microseconds.

In: a model's shape, the compute settings, a mesh, a stage. Out: an `Estimate` for each of the stage's programs. FLOPs,
arguments, outputs and the volume of collectives follow from the code; temporaries and bytes of memory have the constants below,
fitted to what XLA compiled for 8 H100 at two configs. `compute.attention` is taken as plain unless it is splash, which is taken
for TPU: auto is settled by `topology.attention_on`.

`tests/test_planning.py` compares them with compiled programs, on CPU. The six plans of `tools/plans.py`, compiled for H100, v5e
and v5p, have of what is worked out: FLOPs 1.00, but 1.18 where XLA for H100 rematerialised an update by itself; memory with
what lives beside 0.73 to 1.39, mostly 0.95 to 1.07; sent 0.86 to 1.43; bytes of decoding 1.08 to 1.34, of scores and updates
0.68 to 0.87 on H100 and 1.9 to 4.5 on TPU, where XLA takes products with gathered weights in parts that it adds up in memory;
the step's time 0.97 to 1.22. Collectives called: gathering and prefill 0.72 to 1.00; decoding 1.0 where only rows are split,
2.0 with language tags, 1.2 over a tensor axis; scores and updates 0.65 to 0.76 on H100, and 5 to 12 on TPU, which gathers by
permutes between neighbours.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from jaxrl_ml.config import ComputeConfig, GRPOStage, MeshConfig, ModelConfig, SFTStage, Stage
from jaxrl_ml.config.model import block_size
from jaxrl_ml.planning.work import Estimate, Memory, Work


class _Attends(NamedTuple):
    """What a layer's attention takes beyond its inputs and outputs."""

    backward: int  # products of the gradient; forwards there are two
    passes: dict[str, int]  # how often what is written out is passed over
    held: dict[str, float]  # how much of it is there at once


# The plain path writes out scores in float32; splash the keys and values, the prompt's repeated for every row, and computes the
# scores again for dq (three products) and for dk and dv (four).
_PLAIN = _Attends(4, {"forward": 7, "update": 24}, {"forward": 1.0, "update": 2.0})
_SPLASH = _Attends(3 + 4, {"forward": 3, "update": 12}, {"forward": 2.0, "update": 4.0})
# How often a layer's activations are passed over: as wide as the MLP, or as the model.
_WIDE_PASSES, _NARROW_PASSES = {"forward": 5, "update": 20}, {"forward": 12, "update": 48}
_DRAWING = 7  # all-reduces over the tensor axis that drawing a token takes
_MATRICES = 7  # of a layer
_HEAD_PASSES = {"forward": 1, "update": 2}  # of log-probs: forwards, and backwards, where logits come again


def splash_block(queries: int) -> int:
    """As `kernels.Kernel` has it, which imports jax."""
    return 128 if queries <= 128 else 256 if queries <= 256 else 512


def layer_matrices(c: ModelConfig) -> int:
    """Elements of the matrices of a layer."""
    return 2 * c.embed_dim * c.head_dim * (c.num_heads + c.num_kv_heads) + 3 * c.embed_dim * c.mlp_dim


def num_params(c: ModelConfig) -> int:
    """Parameters of the model."""
    return round(_local(c, 1, 1).total)


class _Local(NamedTuple):
    """Parameters on one device."""

    layers: float  # matrices
    tables: float  # embedding and head
    small: float  # norms and biases

    @property
    def total(self) -> float:
        return self.layers + self.tables + self.small


def _kv_split(c: ModelConfig, tensor: int) -> int:
    """Devices that key/value heads are split over: fewer heads than the tensor axis are replicated."""
    return 1 if c.num_kv_heads < tensor else tensor


def _local(c: ModelConfig, fsdp: int, tensor: int) -> _Local:
    D, H, kv = c.embed_dim, c.head_dim, _kv_split(c, tensor)
    layer = (2 * D * H * c.num_heads + 3 * D * c.mlp_dim) / tensor + 2 * D * H * c.num_kv_heads / kv
    bias = H * (c.num_heads / tensor + 2 * c.num_kv_heads / kv) if c.qkv_bias else 0
    small = c.num_layers * (2 * D + bias + (2 * H if c.qk_norm else 0)) + D
    tables = c.vocab_size * D * (1 if c.tie_embeddings else 2) / tensor
    return _Local(c.num_layers * layer / fsdp, tables / fsdp, small)


def estimates(c: ModelConfig, compute: ComputeConfig, mesh: MeshConfig, stage: Stage) -> list[Estimate]:
    """The programs of a step of the stage, in the order they run; the mesh with `data` given."""
    model = _Model(c, compute, mesh)
    if isinstance(stage, SFTStage):
        tokens = stage.batch_size * stage.sequence_length
        trained = _Rows(stage.batch_size, stage.sequence_length, 0, 0, 0, tokens, stage.num_microbatches)
        state, cells = model.state_bytes(stage), 17 * tokens / model.row_shards
        return [Estimate(f"{stage.name}/fit", *model.pass_over(trained, "update", state, cells, stage), 1)]
    sampling = model
    if compute.sampling_weights == "split":  # over fsdp as over tensor
        sampling = _Model(c, compute, MeshConfig(mesh.data, 1, mesh.fsdp * mesh.tensor * mesh.context))
    elif mesh.context > 1:
        sampling = _Model(c, compute, MeshConfig(mesh.data, mesh.fsdp, mesh.tensor * mesh.context))
    return [replace(e, name=f"{stage.name}/{e.name}") for e in _reinforced(model, sampling, stage) if e.runs]


class _Rows(NamedTuple):
    """What one pass of score, update or fit goes over, on all devices."""

    rows: int
    width: int
    prompts: int
    prompt_width: int  # without the last token
    shared: int  # prompt tokens that a row attends to
    head_tokens: int  # of which log-probs are taken
    microbatches: int


def _reinforced(model: _Model, sampling: _Model, stage: GRPOStage) -> list[Estimate]:
    s, Q, G = stage.sampling, stage.prompts_per_step, stage.group_size
    P, C, chunk = s.max_prompt_tokens - 1, s.max_completion_tokens, s.prompts_per_chunk or Q
    kl, state = stage.loss.kl != "none", model.state_bytes(stage)
    reference = 4 * model.local.total if kl and stage.lora is None else 0.0
    held, scores = state + reference, (stage.updates_per_step > 1) + kl
    rollout = Q * (5 * (P + 1) + 9 * G * C) / model.row_shards  # tokens and masks, and the sampler's log-probs
    batch = rollout + Q * G * C * (5 + 4 * scores) / model.row_shards
    whole = _Rows(Q * G, C, Q, P, P, Q * G * C, stage.num_minibatches * stage.num_microbatches)
    n = stage.num_minibatches
    part = _Rows(Q * G // n, C, Q // n, P, P, Q * G * C // n, stage.num_microbatches)
    update, score = model.pass_over(part, "update", state, batch, stage), model.pass_over(whole, "forward", 0.0, rollout, stage)
    return [
        model.gather(held, sampling),
        sampling.prefill(chunk, G, P, C, Q // chunk, held),
        sampling.decode(chunk, G, P, C, Q // chunk, held),
        Estimate("score", score[0], score[1]._replace(beside=held - 4 * model.local.total), scores),
        Estimate("update", update[0], update[1]._replace(beside=reference), stage.updates_per_step),
    ]


class _Scores(NamedTuple):
    """Attention of a layer on a device."""

    pairs: float  # of a head's query and a key, that are multiplied
    written: float  # bytes that it writes out

    def plus(self, other: _Scores) -> _Scores:
        return _Scores(self.pairs + other.pairs, self.written + other.written)


class _Model:
    """A model on a mesh."""

    def __init__(self, c: ModelConfig, compute: ComputeConfig, mesh: MeshConfig) -> None:
        self.c, self.compute, self.tensor, self.context = c, compute, mesh.tensor, mesh.context
        self.fsdp = mesh.fsdp * mesh.context  # what weights are split over
        self.data, self.attends = mesh.data, _SPLASH if compute.attention == "splash" else _PLAIN
        self.row_shards, self.span = mesh.data * mesh.fsdp, self.fsdp * mesh.tensor
        self.wide = 4 if compute.dtype == "float32" else 2
        self.local = _local(c, self.fsdp, mesh.tensor)
        self.gathered = _local(c, 1, mesh.tensor)

    def state_bytes(self, stage: Stage) -> float:
        """Parameters and the optimiser's two moments, float32."""
        trained = self._adapter(stage.lora.rank) if stage.lora else self.local.total
        return 4 * (self.local.total + 2 * trained + (trained if stage.lora else 0))

    def _adapter(self, rank: int) -> float:
        c, f, t = self.c, self.fsdp, self.tensor
        D, heads, kv = c.embed_dim, c.num_heads * c.head_dim / t, c.num_kv_heads * c.head_dim / _kv_split(c, t)
        pairs = 2 * (D / f + heads) + 2 * (D / f + kv) + 3 * (D / f + c.mlp_dim / t)
        return c.num_layers * rank * pairs

    def _layer_flops(self, tokens: float) -> float:
        """Matrix products of all layers on tokens a device."""
        return 2 * tokens * self.gathered.layers

    def _score_elements(self, rows: float, queries: float, keys: float) -> float:
        """Attention scores of a layer on a device."""
        return rows * self.c.num_heads / self.tensor * queries * keys

    def _scores(self, rows: float, queries: int, shared: int) -> _Scores:
        """Of rows that attend to themselves and to `shared` tokens of a prompt; with splash, context is over heads here."""
        if self.attends is _PLAIN:
            pairs = self._score_elements(rows, self._part(queries), queries + shared)
            return _Scores(pairs, 4 * pairs)
        block = splash_block(queries)
        queries, shared = (math.ceil(tokens / block) * block for tokens in (queries, shared))
        # What a block has in the future is skipped with the whole block.
        pairs = self._score_elements(rows, queries, shared + (queries + block) / 2) / self.context
        return _Scores(pairs, self._cache(rows, queries + shared, self.context) / self.c.num_layers)

    def _part(self, tokens: int) -> float:
        """Tokens of a sequence on a device, some of them to fill it up."""
        return math.ceil(tokens / self.context)

    def _cache(self, rows: float, width: float, more: int = 1) -> float:
        """Bytes of keys and values; heads over `more` devices than tensor."""
        c = self.c
        return 2 * self.wide * c.num_layers * rows * c.num_kv_heads / _kv_split(c, self.tensor * more) * width * c.head_dim

    def gather(self, held: float, sampling: _Model) -> Estimate:
        read, whole = 4 * self.local.total, sampling.gathered
        made = self.wide * (whole.layers + whole.tables) + 4 * whole.small
        f, x, layers, tables = self.fsdp, self.context, self.wide * self.local.layers, self.wide * self.local.tables
        tables_calls = 1 if self.c.tie_embeddings else 2
        work, calls = Work(0.0, read + 2 * made), _MATRICES * self.c.num_layers + tables_calls
        if self.compute.sampling_weights == "split":
            work.send("all-to-all", f, self.span, (layers + tables) * (f - 1) / f, calls)
        else:  # what context splits is moved to heads, MLP and vocabulary first
            work.send("all-to-all", x, x * self.tensor, (layers + tables) * (x - 1) / x, _MATRICES + tables_calls)
            work.send("all-gather", f // x, self.span, (layers + tables) * (f // x - 1), calls)
        spare = made * (0.9 if self.attends is _SPLASH else 1 / 8)  # TPU gathers into buffers of their own
        return Estimate("gather", work, Memory(read, made, spare, read + made + spare, held - read), 1)

    def _weights(self) -> float:
        return self.wide * self.gathered.total

    def prefill(self, chunk: int, G: int, P: int, C: int, runs: int, held: float) -> Estimate:
        q, c = chunk / self.row_shards, self.c
        scores = self._scores(q, P, 0)
        made = self._cache(q, P) + self._cache(q * G, C) + 8 * q * G * C
        hidden = q * P * self.wide * (2 * c.mlp_dim / self.tensor + 6 * c.embed_dim)
        work = self._forward(q * P, scores, self._weights() + made)
        # Of the last layer only keys and values are used: the rest of it is not computed, nor is the head.
        unused = 2 * c.embed_dim * c.head_dim * c.num_heads / self.tensor + 3 * c.embed_dim * c.mlp_dim / self.tensor
        work.flops += self._layer_flops(q * P) - 2 * q * P * unused + 4 * scores.pairs * c.head_dim * (c.num_layers - 1)
        self._add_sums(work, q * P, 2 * c.num_layers - 1)
        temporaries = scores.written * self.attends.held["forward"] + hidden
        arguments = self._weights() - self.wide * (unused + (0 if c.tie_embeddings else self._head()))
        return Estimate("prefill", work, Memory(arguments, made, temporaries, arguments + made + temporaries, held), runs)

    def decode(self, chunk: int, G: int, P: int, C: int, runs: int, held: float) -> Estimate:
        c, rows = self.c, chunk * G / self.row_shards
        caches = self._cache(chunk / self.row_shards, P) + self._cache(rows, C)
        logits = rows * c.vocab_size / self.tensor
        read = self.wide * (self.gathered.layers + c.vocab_size * c.embed_dim / self.tensor)
        flops = (
            self._layer_flops(rows)
            + 2 * logits * c.embed_dim
            + 4 * self._score_elements(rows, 1, P + C) * c.head_dim * c.num_layers
        )
        work, token = Work(), Work(flops, read + caches + 6 * 4 * logits)
        self._add_sums(token, rows, 2 * c.num_layers + 1)
        # And the block that a token is drawn from; then all shards of rows are asked whether any row goes on.
        token.send("all-reduce", self.tensor, self.tensor, self._summed(4 * rows * block_size(c.vocab_size)), _DRAWING)
        token.send("all-reduce", self.row_shards, self.row_shards * self.tensor, 0.0, 1)
        work.add(token, C)
        arguments = self._weights() + caches + 8 * rows * C
        temporaries, made = 4 * 4 * logits, caches + 8 * rows * C
        return Estimate("decode", work, Memory(arguments, made, temporaries, arguments + temporaries, held), runs)

    def _add_sums(self, work: Work, tokens: float, count: float, calls: float | None = None) -> None:
        """All-reduces over tensor of the activations of tokens a device, `count` times; calls: where not as many."""
        payload = tokens * self.c.embed_dim * self.wide * count
        work.send("all-reduce", self.tensor, self.tensor, self._summed(payload), count if calls is None else calls)

    def _summed(self, payload: float) -> float:
        """Bytes that a device sends to sum so many over the tensor axis."""
        return payload * 2 * (self.tensor - 1) / self.tensor

    def _forward(self, tokens: float, scores: _Scores, weights: float, kind: str = "forward") -> Work:
        """Bytes of passing over tokens a device through all layers; scores of a layer."""
        c = self.c
        wide = tokens * self.wide * c.mlp_dim / self.tensor * _WIDE_PASSES[kind]
        narrow = tokens * self.wide * c.embed_dim * _NARROW_PASSES[kind]
        return Work(0.0, c.num_layers * (wide + narrow + scores.written * self.attends.passes[kind]) + weights)

    def pass_over(self, rows: _Rows, kind: str, state: float, cells: float, stage: Stage) -> tuple[Work, Memory]:
        """score ("forward"), update or fit: all microbatches of one run."""
        c, R, M, update = self.c, self.row_shards, rows.microbatches, kind == "update"
        width, head_tokens = self._part(rows.width), rows.head_tokens / R / self.context
        tokens = (rows.rows * width + rows.prompts * self._part(rows.prompt_width)) / R
        own = self._scores(rows.rows / R, rows.width, rows.shared)
        held = own.written
        if self.attends is _PLAIN and not update:  # the scores of the row's own keys are done with before the prompt's come
            held = 4 * self._score_elements(rows.rows / R, width, max(rows.width, rows.shared))
        scores = own.plus(self._scores(rows.prompts / R, rows.prompt_width, 0)) if rows.prompts else own
        slices, at_once = self._slices(head_tokens / M)
        logits = M * slices * at_once  # the last slice overlaps the one before
        work = self._forward(tokens, scores, 0.0, kind)
        work.flops = self._pass_flops(tokens, scores.pairs, logits, update)
        # Two a layer and one of the embedding; the update computes one again, and has two and a half as large for gradients.
        sums = 2 * c.num_layers + 1
        self._add_sums(work, tokens, 3 * sums if update else sums, M * (5 * c.num_layers + 1 if update else sums))
        self._add_sequences(work, tokens, M, kind, 2 if rows.prompts else 1)
        self._add_gathers(work, M, slices, kind, 2 if rows.prompts and self.context > 1 else 1)
        by_hidden = (
            self._summed(4 * head_tokens * c.embed_dim) if update else 0.0
        )  # the gradient by what log-probs are taken of
        work.send("all-reduce", self.tensor, self.tensor, by_hidden, M * (2 * slices + update))  # and a slice's maximum and sum
        by_hidden = slices * head_tokens * c.embed_dim if update else 0  # added to, slice by slice
        work.bytes += (
            4 * logits * (4 if update else 2) * 2 + M * 2 * self.wide * self._head() * _HEAD_PASSES[kind] + 8 * by_hidden
        )
        work.bytes += M * self._weights() * (4 if update else 1) + (3 * state if update else 0)
        if update:  # gradients in float32: zeroed, written and added up, those of the embedding before they are scattered too
            work.bytes += M * 4 * (5 * self.local.total + 5 * self._head())
        if update and self.attends is _SPLASH and self.fsdp > 2:
            # TPU multiplies a matrix's gradient two shards at a time, sending meanwhile: one factor is read for each pair.
            across = 2 * c.head_dim * (c.num_heads / self.tensor + c.num_kv_heads / _kv_split(c, self.tensor))
            again = (self.fsdp / 2 - 1) * (across + 3 * c.mlp_dim / self.tensor)
            work.bytes += c.num_layers * tokens * self.wide * again
        arguments = (state if update else 4 * self.local.total) + cells
        temporaries = self._temporaries(tokens / M, held / M, at_once, M, kind, stage)
        made = state if update else 4 * rows.rows * rows.width / R
        return work, Memory(arguments, made, temporaries, arguments + (0 if update else made) + temporaries)

    def _head(self) -> float:
        """Elements of the output matrix on a device, gathered over fsdp."""
        return self.c.vocab_size * self.c.embed_dim / self.tensor

    def _slices(self, tokens: float) -> tuple[int, float]:
        """In how many slices the log-probs of tokens a device are taken, and the logits of one (`losses.Slicing`)."""
        size = self.c.vocab_size // self.tensor
        width = self.compute.slice_width(tokens, size)
        return math.ceil(size / width), tokens * width

    def _pass_flops(self, tokens: float, pairs: float, logits: float, update: bool) -> float:
        c = self.c
        layers, attention = self._layer_flops(tokens), 4 * pairs * c.head_dim * c.num_layers
        head = 2 * logits * c.embed_dim
        if not update:
            return layers + attention + head
        down = 2 * tokens * c.embed_dim * c.mlp_dim / self.tensor * c.num_layers
        again = {"none": 0.0, "dots": attention, "full": layers - down + attention}[self.compute.remat]
        # Chunks of the head are computed again whatever remat says.
        return 3 * layers + (1 + self.attends.backward / 2) * attention + again + 4 * head

    def _add_gathers(self, work: Work, M: int, slices: int, kind: str, apart: int) -> None:
        """The collectives of the weights, layers, embedding and head, a microbatch.

        apart: 2 where sequences are split, and prompts and rows go through a layer's attention apart: gradients of a layer too.
        """
        f, d, L, update = self.fsdp, self.data, self.c.num_layers, kind == "update"
        head = table = self._head() / f
        passes = (2 if self.compute.remat == "full" else 1) if update else 1
        gathered = self.wide * (self.local.layers * passes + head * _HEAD_PASSES[kind]) + 4 * table
        calls = passes * L * (_MATRICES + 4 * (apart - 1)) + slices * _HEAD_PASSES[kind] + 1
        work.send("all-gather", f, self.span, M * gathered * (f - 1), M * calls)
        if update:
            scattered = apart * self.wide * self.local.layers + 4 * (table + head)
            work.send("reduce-scatter", f, self.span, M * scattered * (f - 1), M * (apart * L * _MATRICES + 2))
            work.send("all-reduce", d, d * self.span, 4 * M * self.local.total * 2 * (d - 1) / d, M * (L * _MATRICES + 2))

    def _add_sequences(self, work: Work, tokens: float, M: int, kind: str, apart: int) -> None:
        """The collectives of attention over sequences that are split: each device gathers the others' keys and values, or with
        splash trades its tokens, of all heads, for all tokens of some; `apart` times a layer.
        """
        c, x, update = self.c, self.context, kind == "update"
        forth, back, sent, calls = "all-gather", "reduce-scatter", self._cache(tokens, 1) * (x - 1), 2
        if self.attends is _SPLASH:
            queries = self.wide * tokens * c.num_heads * c.head_dim * c.num_layers / self.tensor
            forth = back = "all-to-all"
            sent, calls = (self._cache(tokens, 1) + 2 * queries) * (x - 1) / x, 4  # and what comes out, as large as the queries
        again, calls = update and self.compute.remat != "none", M * c.num_layers * apart * calls
        work.send(forth, x, x * self.tensor, sent * (1 + again), calls * (1 + again))
        if update:
            work.send(back, x, x * self.tensor, sent, calls)

    def _temporaries(self, tokens: float, written: float, logits: float, M: int, kind: str, stage: Stage) -> float:
        """Bytes held in the pass over a microbatch, of tokens a device; written: by a layer's attention; logits: of a slice."""
        c, update = self.c, kind == "update"
        trained = self._adapter(stage.lora.rank) if stage.lora else self.local.total
        layer = self.wide * (self.gathered.layers / c.num_layers * 2 + tokens * (2 * c.mlp_dim / self.tensor + 4 * c.embed_dim))
        wide = max(written * self.attends.held[kind] + layer, 4 * 3 * logits)
        # Gathered: the embedding in float32; in an update its gradient, float32, before it is scattered.
        tables = self._head() * (8 if update else 4) if self.fsdp > 1 else 0.0
        if not update:
            return wide + tables
        saved = {"full": 1, "dots": 8, "none": 16}[self.compute.remat]
        kept = saved * c.num_layers * tokens * c.embed_dim * self.wide
        if self.compute.remat == "none":
            kept += c.num_layers * written
        return wide + tables + kept + 4 * trained * (2 if M > 1 else 1)
