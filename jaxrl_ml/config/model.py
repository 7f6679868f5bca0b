"""The model's shape, how it is computed, and on which devices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from jaxrl_ml.config.kinds import check_kinds
from jaxrl_ml.types import require


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's rotary scaling (`rope_type: llama3`); field names are Hugging Face's."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the decoder: read from a Hugging Face `config.json` by `models/hf.py`, or written in a config file."""

    family: Literal["llama", "qwen2", "qwen3"] = "llama"
    """qwen2 has biases on q, k and v; qwen3 normalises q and k; llama has neither."""
    vocab_size: int = 0
    """0: the size of the tokenizer's vocabulary."""
    num_layers: int = 2
    embed_dim: int = 128
    mlp_dim: int = 384
    num_heads: int = 4
    num_kv_heads: int = 4
    head_dim: int = 32
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-6
    tie_embeddings: bool = True
    max_positions: int = 2048

    @property
    def qkv_bias(self) -> bool:
        return self.family == "qwen2"

    @property
    def qk_norm(self) -> bool:
        return self.family == "qwen3"

    def __post_init__(self) -> None:
        check_kinds(self, "model")
        for name in ("num_layers", "embed_dim", "mlp_dim", "num_heads", "num_kv_heads", "head_dim"):
            require(getattr(self, name) >= 1, f"model.{name}={getattr(self, name)} must be at least 1")
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"model.num_heads={self.num_heads} must be a multiple of model.num_kv_heads={self.num_kv_heads}",
        )
        for name in ("rope_theta", "norm_eps"):
            require(0 < getattr(self, name) < math.inf, f"model.{name}={getattr(self, name)} must be positive and finite")
        require(self.head_dim % 2 == 0, f"model.head_dim={self.head_dim} must be even: rotary embedding turns pairs")


COLUMNS = 128
"""Of the vocabulary, that a slice has a multiple of, as narrower products fill no vector unit; slices are otherwise even."""


BLOCK = 256
"""Tokens of the vocabulary that one is drawn among at a time, at most."""


def block_size(vocab_size: int) -> int:
    """Tokens drawn among at a time: a power of two up to BLOCK of which an eighth of a vocabulary has a whole number.

    So blocks stay where up to eight devices split a real vocabulary, and depend on it alone. BLOCK where none is 16 or more.
    """
    even = vocab_size & -vocab_size  # the largest power of two that divides it
    return min(BLOCK, even // 8) if even >= 8 * 16 else min(BLOCK, vocab_size)


@dataclass(frozen=True)
class ComputeConfig:
    """How the model is computed."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Activations and matmuls; auto is bfloat16 on accelerators, float32 on CPU. Parameters and logits are float32."""
    remat: Literal["none", "full", "dots"] = "dots"
    """What the backward pass recomputes: nothing, every layer, or all but the matmuls."""
    attention: Literal["auto", "plain", "splash", "cudnn"] = "auto"
    """Of whole sequences, in prefill, score and update: plain XLA, or a kernel that holds no array of queries × keys × heads.
    auto is splash on TPU, cudnn on NVIDIA GPUs in bfloat16, plain on CPU. splash on CPU is emulated, for tests: very slow."""
    sampling_weights: Literal["gathered", "split"] = "gathered"
    """In sampling. gathered: whole over fsdp, which splits rows; split: over fsdp as over tensor, if they are too large."""
    logits_mib: float = 64
    """Logits that exist at a time in score and update, MiB a device: the vocabulary is cut in slices that keep to it."""

    def __post_init__(self) -> None:
        check_kinds(self, "compute")
        require(0 < self.logits_mib < math.inf, f"compute.logits_mib={self.logits_mib} must be more than 0, and finite")

    def slice_width(self, tokens: float, size: int) -> int:
        """How many of its `size` columns of the vocabulary a device takes at a time for so many tokens."""
        slices = math.ceil(size / max(1, int(self.logits_mib * 2**18 / tokens)))
        return min(size, math.ceil(size / slices / COLUMNS) * COLUMNS)


@dataclass(frozen=True)
class DistributedConfig:
    """The processes that a run is spread over; `processes.py` finds those of a SLURM step or a TPU slice by itself."""

    coordinator: str | None = None
    """HOST:PORT of process 0, as all processes reach it; goes with the next two."""
    num_processes: int | None = None
    process_id: int | None = None
    detect: bool = False
    """Have jax look for the other processes where nothing here or in the environment tells of them: on Cloud TPU VMs."""
    timeout_s: int = 100
    """A process that is not heard of for so long is lost, and the others stop."""

    def __post_init__(self) -> None:
        check_kinds(self, "distributed")
        given = [getattr(self, name) is not None for name in ("coordinator", "num_processes", "process_id")]
        require(
            all(given) or not any(given),
            f"distributed.coordinator={self.coordinator}, num_processes={self.num_processes}, process_id={self.process_id}: "
            "give all three, or none",
        )
        if self.coordinator is not None:
            host, _, port = self.coordinator.rpartition(":")
            require(bool(host) and port.isdecimal(), f"distributed.coordinator={self.coordinator} must be HOST:PORT")
            require(
                0 <= self.process_id < self.num_processes,
                f"distributed.process_id={self.process_id} must be 0 to num_processes - 1 = {self.num_processes - 1}",
            )
        require(self.timeout_s >= 1, f"distributed.timeout_s={self.timeout_s} must be at least 1")


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; data = -1 takes what the other axes leave."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1
    """Parts that a long sequence's activations are split into when learning; in sampling it adds to tensor."""

    def __post_init__(self) -> None:
        check_kinds(self, "mesh")
        require(self.data == -1 or self.data >= 1, f"mesh.data={self.data}: give a positive number, or -1 for the rest")
        require(self.fsdp >= 1, f"mesh.fsdp={self.fsdp}: give a positive number")
        require(self.tensor >= 1, f"mesh.tensor={self.tensor}: give a positive number")
        # Completions come in widths that are multiples of 8 (`data.completion_width`).
        require(self.context in (1, 2, 4, 8), f"mesh.context={self.context}: give 1, 2, 4 or 8")
