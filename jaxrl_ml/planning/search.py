"""Which mesh and how many microbatches: every choice worked out, ranked, and what to change where something does not fit.

In: a model, a stage, a topology. Out: `Choice`s, fastest first. Choices that the mesh, the model's sizes or the stage's counts
do not allow are left out, by the rules of `sharding.Layout` and of `grpo`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jaxrl_ml.config import ComputeConfig, GRPOStage, MeshConfig, ModelConfig, SFTStage, Stage
from jaxrl_ml.planning.roofline import estimates
from jaxrl_ml.planning.topology import Topology
from jaxrl_ml.planning.work import Estimate, step_seconds

_CONTEXTS = (1, 2, 4, 8)  # devices that a sequence is split over
_WORTH_SPLITTING = 1.1  # sequences are split where that is worked out to save a tenth: less is not known so well
_AMPLE = 0.8  # of a chip's memory: what is worked out may be a fifth too low


class Choice(NamedTuple):
    """A mesh and a number of microbatches, worked out."""

    mesh: MeshConfig
    microbatches: int
    estimates: list[Estimate]
    step_s: float

    @property
    def memory(self) -> float:
        """Bytes that the largest program takes, with what lives beside it."""
        return max(e.memory.total for e in self.estimates)


def meshes(c: ModelConfig, num_devices: int, length: int = 1, sampling_weights: str = "gathered") -> Iterator[MeshConfig]:
    """The meshes of so many devices that the model's sizes, and `length` tokens of a row, can be split over."""
    for tensor in _divisors(num_devices):
        for context in (n for n in _CONTEXTS if num_devices // tensor % n == 0 and length % n == 0):
            rest = num_devices // tensor // context
            for fsdp in _divisors(rest):
                mesh = MeshConfig(rest // fsdp, fsdp, tensor, context)
                if splits(c, mesh, sampling_weights):
                    yield mesh


def row_length(stage: Stage) -> int:
    """Tokens of a row, which mesh.context must divide."""
    return stage.sequence_length if isinstance(stage, SFTStage) else stage.sampling.max_completion_tokens


def splits(c: ModelConfig, mesh: MeshConfig, sampling_weights: str = "gathered") -> bool:
    """Whether the model's sizes can be split over the mesh, by the rules of `sharding`."""
    parts = mesh.tensor * mesh.context * (mesh.fsdp if sampling_weights == "split" else 1)  # in sampling
    few = c.num_kv_heads < parts and parts % c.num_kv_heads == 0
    whole = any(size % parts for size in (c.num_heads, c.mlp_dim, c.vocab_size)) or (c.num_kv_heads % parts and not few)
    return not whole and c.embed_dim % (mesh.fsdp * mesh.context) == 0


def microbatch_counts(stage: Stage, shards: int) -> list[int]:
    """The numbers of microbatches that rows split over `shards` allow; none where the stage cannot be split so at all."""
    if isinstance(stage, SFTStage):
        return [n for n in _divisors(stage.batch_size) if stage.batch_size // n % shards == 0]
    if (stage.sampling.prompts_per_chunk or stage.prompts_per_step) % shards:
        return []
    prompts = stage.prompts_per_step // stage.num_minibatches
    return [n for n in _divisors(prompts) if prompts // n % shards == 0]


def choices(c: ModelConfig, compute: ComputeConfig, stage: Stage, topology: Topology) -> list[Choice]:
    """Every mesh on which the stage is worked out to fit, with its best number of microbatches, the fastest first; where it
    fits on none, the choice that takes the least memory.
    """
    limit, found, least = topology.chip.memory, [], []

    def rank(choice: Choice, then: float) -> tuple[float, float, int, float]:
        """What is as fast within a few per cent is told apart by memory beyond `_AMPLE`, by parts of a sequence, by `then`."""
        seconds = choice.step_s * (1 if choice.mesh.context == 1 else _WORTH_SPLITTING)
        return float(f"{seconds:.1e}"), max(_AMPLE, choice.memory / limit), choice.mesh.context, then

    for mesh in meshes(c, topology.num_devices, row_length(stage), compute.sampling_weights):
        counts = []
        for count in microbatch_counts(stage, mesh.data * mesh.fsdp):
            worked_out = estimates(c, compute, mesh, dataclasses.replace(stage, num_microbatches=count))
            counts.append(Choice(mesh, count, worked_out, step_seconds(worked_out, topology.chip)))
        least += counts
        fitting = [choice for choice in counts if choice.memory <= limit]
        if fitting:
            found.append(min(fitting, key=lambda choice: rank(choice, choice.microbatches)))
    return sorted(found, key=lambda choice: rank(choice, choice.memory)) or sorted(least, key=lambda choice: choice.memory)[:1]


def remedies(
    c: ModelConfig, compute: ComputeConfig, stage: Stage, number: int, mesh: MeshConfig, topology: Topology, over: Estimate
) -> list[str]:
    """What to change so that the program `over` fits: each change alone that is worked out to be enough, then the best mesh.

    number: the stage's place in the config, for the flags. The estimate is scaled by how far it was off for the program.
    """
    limit = topology.chip.memory

    def of(compute: ComputeConfig, mesh: MeshConfig, stage: Stage) -> Estimate | None:
        return next((e for e in estimates(c, compute, mesh, stage) if e.name == over.name), None)

    before = of(compute, mesh, stage)
    scale = over.memory.peak / before.memory.peak
    found = []
    changes = [*_changes(c, compute, stage, number, mesh)]
    if over.name.endswith(("/score", "/update")) and isinstance(stage, GRPOStage):
        changes += _in_parts(c, compute, stage, number, mesh)
    for text, *changed in changes:
        after = of(*changed)
        if after is not None and after.memory.peak * scale + after.memory.beside <= limit:
            found.append(f"{text} (worked out: {(after.memory.peak * scale + after.memory.beside) / 2**30:.1f} GiB)")
    best = choices(c, compute, stage, topology)
    if best and best[0].memory * max(1.0, scale) <= limit:
        found.append(f"{flags(best[0], number)} (worked out: {best[0].memory * max(1.0, scale) / 2**30:.1f} GiB)")
    return found or [f"more chips, or a chip with more memory: no mesh of {topology.name} is worked out to fit"]


def flags(choice: Choice, number: int) -> str:
    """A choice as overrides of a config."""
    return f"{mesh_flags(choice.mesh)} --stages.{number}.num-microbatches {choice.microbatches}"


def mesh_flags(mesh: MeshConfig) -> str:
    return f"--mesh.data {mesh.data} --mesh.fsdp {mesh.fsdp} --mesh.tensor {mesh.tensor} --mesh.context {mesh.context}"


def _changes(
    c: ModelConfig, compute: ComputeConfig, stage: Stage, number: int, mesh: MeshConfig
) -> Iterator[tuple[str, ComputeConfig, MeshConfig, Stage]]:
    """Single changes that lower a program's memory, the least intrusive first."""
    for count in microbatch_counts(stage, mesh.data * mesh.fsdp):
        if count > stage.num_microbatches:
            yield (
                f"--stages.{number}.num-microbatches {count}",
                compute,
                mesh,
                dataclasses.replace(stage, num_microbatches=count),
            )
    default = ComputeConfig().logits_mib
    if compute.logits_mib > default:
        yield f"--compute.logits-mib {default}", dataclasses.replace(compute, logits_mib=default), mesh, stage
    if compute.remat != "full":
        yield "--compute.remat full", dataclasses.replace(compute, remat="full"), mesh, stage
    if isinstance(stage, GRPOStage):
        sampling, shards = stage.sampling, mesh.data * mesh.fsdp
        chunk = sampling.prompts_per_chunk or stage.prompts_per_step
        for size in reversed(_divisors(chunk)):
            if size < chunk and size % shards == 0:
                changed = dataclasses.replace(sampling, prompts_per_chunk=size)
                yield (
                    f"--stages.{number}.sampling.prompts-per-chunk {size}",
                    compute,
                    mesh,
                    dataclasses.replace(stage, sampling=changed),
                )
        half = dataclasses.replace(sampling, max_completion_tokens=sampling.max_completion_tokens // 2)
        text = f"--stages.{number}.sampling.max-completion-tokens {half.max_completion_tokens}"
        yield text, compute, mesh, dataclasses.replace(stage, sampling=half)
        if compute.sampling_weights != "split" and mesh.fsdp > 1 and splits(c, mesh, "split"):
            yield "--compute.sampling-weights split", dataclasses.replace(compute, sampling_weights="split"), mesh, stage
    whole = dataclasses.replace(mesh, data=1, fsdp=mesh.data * mesh.fsdp)
    if mesh.data > 1 and splits(c, whole):
        yield f"--mesh.data 1 --mesh.fsdp {whole.fsdp}", compute, whole, stage


def _in_parts(
    c: ModelConfig, compute: ComputeConfig, stage: GRPOStage, number: int, mesh: MeshConfig
) -> Iterator[tuple[str, ComputeConfig, MeshConfig, Stage]]:
    """Sequences over some of the devices that rows are over, in more microbatches than these allow: for long completions."""
    allowed = microbatch_counts(stage, mesh.data * mesh.fsdp)
    for context in _CONTEXTS[1:]:
        whole = mesh.context * context
        if mesh.fsdp % context or whole > _CONTEXTS[-1] or row_length(stage) % whole:
            continue
        parts = dataclasses.replace(mesh, fsdp=mesh.fsdp // context, context=whole)
        if not splits(c, parts, compute.sampling_weights):
            continue
        for count in microbatch_counts(stage, parts.data * parts.fsdp):
            if count > max(allowed, default=0):
                changed = dataclasses.replace(stage, num_microbatches=count)
                yield f"{mesh_flags(parts)} --stages.{number}.num-microbatches {count}", compute, parts, changed


def _divisors(n: int) -> Sequence[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
