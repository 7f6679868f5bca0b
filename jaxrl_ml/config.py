"""Configuration: frozen dataclasses and their validation. Imports neither jax nor anything heavy.

A config file is a Python file under `configs/` that binds `config = Config(...)`; tasks, rewards and prompt formats are passed
in as objects. `cli.py` reads it and applies overrides from the command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from jaxrl_ml.types import UserError


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


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
        for name in ("num_layers", "embed_dim", "mlp_dim", "num_heads", "num_kv_heads", "head_dim"):
            _require(getattr(self, name) >= 1, f"model.{name}={getattr(self, name)} must be at least 1")
        _require(
            self.num_heads % self.num_kv_heads == 0,
            f"model.num_heads={self.num_heads} must be a multiple of model.num_kv_heads={self.num_kv_heads}",
        )
        _require(self.head_dim % 2 == 0, f"model.head_dim={self.head_dim} must be even: rotary embedding turns pairs")


@dataclass(frozen=True)
class ComputeConfig:
    """How the model is computed."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Activations and matmuls; auto is bfloat16 on accelerators, float32 on CPU. Parameters and logits are float32."""
    remat: Literal["none", "full", "dots"] = "none"
    """What the backward pass recomputes: nothing, every layer, or all but the matmuls."""
    logprob_chunk_tokens: int = 1024
    """Tokens whose logits exist at a time in score and update."""


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; data = -1 takes what the other axes leave."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        _require(self.data == -1 or self.data >= 1, f"mesh.data={self.data}: give a positive number, or -1 for the rest")
        _require(self.fsdp >= 1, f"mesh.fsdp={self.fsdp}: give a positive number")
        _require(self.tensor >= 1, f"mesh.tensor={self.tensor}: give a positive number")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up, a schedule and clipping by global norm."""

    learning_rate: float = 1e-6
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up, over the rest of the stage."""
    final_fraction: float = 0.0
    """Where linear and cosine end, as a fraction of learning_rate."""
    warmup_steps: int = 0
    """Updates, not stage steps."""
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, f"optimizer.learning_rate={self.learning_rate} must be positive")
        _require(self.max_grad_norm > 0, f"optimizer.max_grad_norm={self.max_grad_norm} must be positive")


@dataclass(frozen=True)
class SamplingConfig:
    """How completions are drawn."""

    max_prompt_tokens: int = 64
    """Width of the prompt buffer; a longer prompt is an error, never cut."""
    max_completion_tokens: int = 64
    temperature: float = 1.0
    """0 is greedy (evaluation and generation only)."""
    top_k: int = 0
    """0 is off. Evaluation and generation only, as top_p and min_p."""
    top_p: float = 1.0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    """Texts that end a completion, besides the tokenizer's end-of-sequence ids."""
    prompts_per_chunk: int = 0
    """Prompts sampled at a time, so that scoring overlaps with sampling; 0: all of the step's."""

    def __post_init__(self) -> None:
        _require(self.max_prompt_tokens >= 1, f"sampling.max_prompt_tokens={self.max_prompt_tokens} must be at least 1")
        _require(
            self.max_completion_tokens >= 1,
            f"sampling.max_completion_tokens={self.max_completion_tokens} must be at least 1",
        )
        _require(self.temperature >= 0, f"sampling.temperature={self.temperature} must not be negative")
        _require(0 < self.top_p <= 1, f"sampling.top_p={self.top_p} must be in (0, 1]; 1 is off")
        _require(0 <= self.min_p < 1, f"sampling.min_p={self.min_p} must be in [0, 1); 0 is off")
        _require(self.top_k >= 0, f"sampling.top_k={self.top_k} must not be negative; 0 is off")
        _require(all(self.stop), "sampling.stop holds an empty text; remove it")

    @property
    def truncates(self) -> bool:
        """Whether top-k, top-p or min-p cut the distribution."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


@dataclass(frozen=True)
class LossConfig:
    """The GRPO family: every variant in one place. Formulas and sources: `advantages.py` and `losses.py`."""

    advantage: Literal["grpo", "dr_grpo", "rloo"] = "grpo"
    ratio: Literal["token", "sequence"] = "token"
    """sequence is GSPO."""
    objective: Literal["clip", "cispo"] = "clip"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    """Bound c > 1 on the ratio's effect where the advantage is negative; None is off."""
    aggregation: Literal["token", "sequence", "constant"] = "token"
    """Mean over the step's tokens, mean over rows of row means, or sum over tokens / (rows · max_completion_tokens)."""
    kl: Literal["none", "k1", "k2", "k3"] = "none"
    kl_coef: float = 0.001
    reference: Literal["run", "stage"] = "stage"
    """The KL's reference policy is the start of the run or of the stage."""
    entropy_coef: float = 0.0
    importance_cap: float | None = None
    """Cap of truncated importance sampling between the trainer's and the sampler's log-probs; None is off."""
    filter: Literal["none", "drop", "resample"] = "none"
    """Groups whose raw correctness does not vary: keep, drop, or draw other prompts in their place (dynamic sampling)."""
    max_attempts: int = 3
    """Rounds of sampling a step may take with filter=resample."""
    overlong: Literal["keep", "mask", "penalty"] = "keep"
    """Truncated rows: learn from them, mask their loss, or a soft length penalty over the last overlong_tokens."""
    overlong_tokens: int = 0

    def __post_init__(self) -> None:
        _require(0 < self.clip_low <= 1, f"loss.clip_low={self.clip_low} must be in (0, 1]; 1 is no lower bound")
        _require(self.clip_high > 0, f"loss.clip_high={self.clip_high} must be positive")
        _require(self.dual_clip is None or self.dual_clip > 1, f"loss.dual_clip={self.dual_clip} must be over 1, or None")
        _require(
            self.importance_cap is None or self.importance_cap > 0,
            f"loss.importance_cap={self.importance_cap} must be positive, or None",
        )
        _require(self.max_attempts >= 1, f"loss.max_attempts={self.max_attempts} must be at least 1")
        _require(
            self.overlong != "penalty" or self.overlong_tokens > 0,
            "loss.overlong=penalty needs loss.overlong_tokens: the length of the soft zone before the limit",
        )
        _require(
            self.objective != "cispo" or self.dual_clip is None,
            f"loss.dual_clip={self.dual_clip} has no meaning with loss.objective=cispo; set it to None",
        )


@dataclass(frozen=True)
class SFTStage:
    """Supervised fine-tuning on the task's demonstrations, packed, with the loss on completions."""

    task: Any
    name: str = "sft"
    num_steps: int = 100
    batch_size: int = 16
    """Packed sequences a step."""
    sequence_length: int = 256
    """Tokens of a packed sequence; a longer example is an error."""
    num_microbatches: int = 1
    optimizer: OptimizerConfig | None = None
    """None: the run's."""
    keep_optimizer: bool = False
    """Carry the moments over from the stage before instead of starting afresh."""

    def __post_init__(self) -> None:
        _require(self.num_steps >= 0, f"{self.name}.num_steps={self.num_steps} must not be negative; 0 leaves the stage out")
        for name in ("batch_size", "sequence_length", "num_microbatches"):
            _require(getattr(self, name) >= 1, f"{self.name}.{name}={getattr(self, name)} must be at least 1")
        _require(
            self.batch_size % self.num_microbatches == 0,
            f"{self.name}.batch_size={self.batch_size} must be a multiple of num_microbatches={self.num_microbatches}",
        )


@dataclass(frozen=True)
class GRPOStage:
    """Reinforcement learning from verifiable rewards."""

    task: Any
    reward: Any
    name: str = "grpo"
    num_steps: int = 100
    prompts_per_step: int = 32
    group_size: int = 8
    sampling: SamplingConfig = SamplingConfig()
    loss: LossConfig = LossConfig()
    num_minibatches: int = 1
    """Updates a pass over the step's prompts."""
    num_epochs: int = 1
    """Passes over the step's prompts."""
    num_microbatches: int = 1
    """Slices of an update that are computed one after the other, to save memory; the result does not change."""
    optimizer: OptimizerConfig | None = None
    """None: the run's."""
    keep_optimizer: bool = False
    """Carry the moments over from the stage before instead of starting afresh."""

    def __post_init__(self) -> None:
        n = self.name
        _require(self.num_steps >= 0, f"{n}.num_steps={self.num_steps} must not be negative; 0 leaves the stage out")
        for name in ("prompts_per_step", "num_minibatches", "num_epochs", "num_microbatches"):
            _require(getattr(self, name) >= 1, f"{n}.{name}={getattr(self, name)} must be at least 1")
        _require(
            self.group_size >= 2,
            f"{n}.group_size={self.group_size}: a group baseline needs at least 2 samples a prompt",
        )
        _require(
            not self.sampling.truncates,
            f"{n}.sampling: top_k={self.sampling.top_k}, top_p={self.sampling.top_p}, min_p={self.sampling.min_p} are for "
            "evaluation only: a truncated support moves with the policy and the ratio is undefined; use 0, 1.0 and 0.0",
        )
        _require(
            self.sampling.temperature > 0,
            f"{n}.sampling.temperature={self.sampling.temperature}: training must sample; use 1.0",
        )
        per_update = self.num_minibatches * self.num_microbatches
        _require(
            self.prompts_per_step % per_update == 0,
            f"{n}.prompts_per_step={self.prompts_per_step} must be a multiple of num_minibatches·num_microbatches={per_update}",
        )
        chunk = self.sampling.prompts_per_chunk
        _require(
            chunk == 0 or self.prompts_per_step % chunk == 0,
            f"{n}.sampling.prompts_per_chunk={chunk} must divide prompts_per_step={self.prompts_per_step}",
        )
        _require(
            self.loss.overlong_tokens <= self.sampling.max_completion_tokens,
            f"{n}.loss.overlong_tokens={self.loss.overlong_tokens} exceeds "
            f"sampling.max_completion_tokens={self.sampling.max_completion_tokens}",
        )

    @property
    def updates_per_step(self) -> int:
        return self.num_minibatches * self.num_epochs


Stage = SFTStage | GRPOStage


@dataclass(frozen=True)
class Evaluation:
    """A fixed set of held-out problems, sampled and scored."""

    task: Any
    reward: Any
    name: str = "test"
    num_prompts: int = 256
    """The task's first examples, in order."""
    samples_per_prompt: int = 1
    prompts_per_batch: int = 64
    sampling: SamplingConfig = SamplingConfig(temperature=0.0)

    def __post_init__(self) -> None:
        for field in ("num_prompts", "samples_per_prompt", "prompts_per_batch"):
            value = getattr(self, field)
            _require(value >= 1, f"evaluation {self.name}: {field}={value} must be at least 1")
        _require(
            self.sampling.temperature > 0 or self.samples_per_prompt == 1,
            f"evaluation {self.name}: samples_per_prompt={self.samples_per_prompt} at temperature 0 repeats one answer; "
            "use 1, or a temperature over 0",
        )


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save, and what to keep."""

    every_steps: int = 100
    keep: int = 2
    """Latest checkpoints kept, besides the best."""
    best_metric: str | None = None
    """An evaluation metric such as eval/test/accuracy (higher is better); its best checkpoint is kept too."""

    def __post_init__(self) -> None:
        _require(self.every_steps >= 1, f"checkpoint.every_steps={self.every_steps} must be at least 1")
        _require(self.keep >= 1, f"checkpoint.keep={self.keep} must be at least 1")


@dataclass(frozen=True)
class LoggingConfig:
    """Where a run tells about itself, besides metrics.jsonl."""

    console: bool = True
    tensorboard: bool = True
    wandb_project: str | None = None
    samples_every_steps: int = 10
    """How often a few rollouts go to samples.jsonl."""
    samples_per_log: int = 4


@dataclass(frozen=True)
class Config:
    """One experiment."""

    stages: tuple[SFTStage | GRPOStage, ...]
    run_dir: str
    """Everything the run writes lies here; a run that was stopped goes on from here."""
    model: ModelConfig | None = None
    """The shape of a model that starts from random weights; None: that of init_from."""
    init_from: str | None = None
    """A Hugging Face folder, or a run folder, whose weights and tokenizer the run starts from."""
    tokenizer: str | tuple[str, ...] | None = None
    """A folder with a Hugging Face tokenizer, or the token texts of a small one; None: that of init_from."""
    prompt_format: Any = None
    """Example → text or messages; None: the task's own `prompt` field as it is."""
    system_prompt: str | None = None
    optimizer: OptimizerConfig = OptimizerConfig()
    compute: ComputeConfig = ComputeConfig()
    mesh: MeshConfig = MeshConfig()
    evaluations: tuple[Evaluation, ...] = ()
    eval_every_steps: int = 100
    """Steps of the run between evaluations; also before the first and after the last step of every stage."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
    max_nonfinite_steps: int = 5
    """Updates in a row skipped for a non-finite loss, gradient or reward before the run stops."""
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.num_steps >= 1, "the stages have no steps: give at least one SFTStage or GRPOStage with num_steps over 0")
        for kind, names in (
            ("stage", [s.name for s in self.stages]),
            ("evaluation", [e.name for e in self.evaluations]),
        ):
            twice = {n for n in names if names.count(n) > 1}
            _require(not twice, f"{kind} name {', '.join(sorted(twice))!r} is used twice; names must differ")
        _require(
            (self.model is None) != (self.init_from is None),
            f"model={'None' if self.model is None else 'set'} and init_from={self.init_from!r}: "
            "give exactly one, a model to start from random weights or a folder to start from",
        )
        _require(
            self.tokenizer is not None or self.init_from is not None,
            "tokenizer=None needs init_from; give the folder of a tokenizer, or the token texts of a small one",
        )
        _require(self.eval_every_steps >= 1, f"eval_every_steps={self.eval_every_steps} must be at least 1")

    @property
    def num_steps(self) -> int:
        return sum(stage.num_steps for stage in self.stages)

    def data_seed(self, stage: Stage) -> int:
        """Seeds the order of the stage's examples; stages differ, so that two on one task do not see the same steps."""
        return self.seed * len(self.stages) + self.stages.index(stage)

    def optimizer_of(self, stage: Stage) -> OptimizerConfig:
        return stage.optimizer or self.optimizer
