"""Configuration: frozen dataclasses and their validation. Imports neither jax nor anything heavy.

A config file is a Python file under `configs/` that binds `config = Config(...)`; tasks, rewards and prompt formats are passed
in as objects. `cli.py` reads it and applies overrides from the command line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from itertools import accumulate, pairwise, takewhile
from typing import Any

from jaxrl_ml.config.kinds import check_kinds
from jaxrl_ml.config.model import ComputeConfig, DistributedConfig, MeshConfig, ModelConfig, RopeScaling
from jaxrl_ml.config.stages import (
    GRPOStage,
    LanguageConfig,
    LoRAConfig,
    LossConfig,
    OptimizerConfig,
    SamplingConfig,
    SFTStage,
    Stage,
    check_rewards,
    check_stops,
)
from jaxrl_ml.types import require

__all__ = [
    "CheckpointConfig",
    "ComputeConfig",
    "Config",
    "DistributedConfig",
    "Evaluation",
    "GRPOStage",
    "LanguageConfig",
    "LoRAConfig",
    "LoggingConfig",
    "LossConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RopeScaling",
    "SFTStage",
    "SamplingConfig",
    "Stage",
]


@dataclass(frozen=True)
class Evaluation:
    """A fixed set of held-out problems, sampled and scored."""

    task: Any
    reward: Any
    """A function of texts and examples, or several by name with their weights, as in GRPOStage."""
    name: str = "test"
    correct: str | None = field(default=None, kw_only=True)
    """The name of the reward that decides what is correct; required where there are several."""
    num_prompts: int = 256
    """The task's first examples, in order."""
    samples_per_prompt: int = 1
    prompts_per_batch: int = 64
    sampling: SamplingConfig = SamplingConfig(temperature=0.0)
    language: LanguageConfig = LanguageConfig()
    unseen_languages: tuple[str, ...] = ()
    """Codes outside language.languages that `evaluate --languages unseen` has the model think in."""
    unseen_tags: tuple[str, ...] = ()
    """What a completion in each of them is made to start with; by default language.tag, which must then be one text."""
    records: bool = False
    """Whether a training run keeps every sample, in RUN/records/NAME-STEP.parquet; on Countdown its report shows skills."""

    def __post_init__(self) -> None:
        check_kinds(self, f"evaluation {self.name}")
        check_rewards(f"evaluation {self.name}", self.reward, self.correct)
        both = set(self.unseen_languages) & set(self.language.languages)
        require(
            not both,
            f"evaluation {self.name}: {', '.join(sorted(both))} in unseen_languages and language.languages; name each once",
        )
        require(
            len(self.unseen_tags) in (0, len(self.unseen_languages)) and all(self.unseen_tags),
            f"evaluation {self.name}: unseen_tags has {len(self.unseen_tags)} texts, or an empty one, for "
            f"{len(self.unseen_languages)} unseen_languages; give one each, or none",
        )
        for name in ("num_prompts", "samples_per_prompt", "prompts_per_batch"):
            value = getattr(self, name)
            require(value >= 1, f"evaluation {self.name}: {name}={value} must be at least 1")
        require(
            self.sampling.temperature > 0 or self.samples_per_prompt == 1,
            f"evaluation {self.name}: samples_per_prompt={self.samples_per_prompt} at temperature 0 repeats one answer; "
            "use 1, or a temperature over 0",
        )
        check_stops(f"evaluation {self.name}", self.sampling, self.language)


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save, and what to keep."""

    every_steps: int = 100
    keep: int = 2
    """Latest checkpoints kept, besides the best."""
    best_metric: str | None = None
    """An evaluation metric such as eval/test/accuracy (higher is better); its best checkpoint is kept too."""

    def __post_init__(self) -> None:
        check_kinds(self, "checkpoint")
        require(self.every_steps >= 1, f"checkpoint.every_steps={self.every_steps} must be at least 1")
        require(self.keep >= 1, f"checkpoint.keep={self.keep} must be at least 1")


@dataclass(frozen=True)
class LoggingConfig:
    """Where a run tells about itself, besides metrics.jsonl."""

    console: bool = True
    tensorboard: bool = True
    wandb_project: str | None = None
    samples_every_steps: int = 10
    """How often a few rollouts go to samples.jsonl."""
    samples_per_log: int = 4

    def __post_init__(self) -> None:
        check_kinds(self, "logging")
        require(
            self.samples_every_steps >= 1,
            f"logging.samples_every_steps={self.samples_every_steps} must be at least 1; samples_per_log=0 logs none",
        )
        require(self.samples_per_log >= 0, f"logging.samples_per_log={self.samples_per_log} must not be negative")


def _check_day(name: str, day: str) -> None:
    """Raises UserError unless the text is a day as ISO 8601 writes it: year-month-day."""
    try:
        valid = date.fromisoformat(day).isoformat() == day
    except ValueError:
        valid = False
    require(valid, f"{name}={day!r} is not a date; write it as year-month-day, such as 2026-11-30")


@dataclass(frozen=True)
class Config:
    """One experiment: stages to train, or evaluations alone, of models that are named on the command line."""

    stages: tuple[SFTStage | GRPOStage, ...] = ()
    run_dir: str = ""
    """Everything the run writes lies here, on local disk or in gs://; a run that was stopped goes on from here."""
    model: ModelConfig | None = None
    """The shape of a model that starts from random weights; None: that of init_from."""
    init_from: str | None = None
    """A Hugging Face folder, or a run folder, whose weights and tokenizer the run starts from."""
    tokenizer: str | tuple[str, ...] | None = None
    """A folder with a Hugging Face tokenizer, or the token texts of a small one; None: that of init_from."""
    add_tokens: tuple[str, ...] = ()
    """Texts to make one token each, such as the tags of languages: added to the tokenizer, and to the model's vocabulary as the
    mean of its tokens. The first stage must train all weights. A run that starts from this one names only further ones."""
    prompt_format: Any = None
    """Example → text or messages; None: the task's own `prompt` field as it is."""
    system_prompt: str | None = None
    chat_date: str | None = None
    """The day, such as 2026-11-30, that a chat template is given when it asks for today's date; None: the day on which the run
    began."""
    optimizer: OptimizerConfig = OptimizerConfig()
    compute: ComputeConfig = ComputeConfig()
    mesh: MeshConfig = MeshConfig()
    distributed: DistributedConfig = DistributedConfig()
    evaluations: tuple[Evaluation, ...] = ()
    eval_every_steps: int = 100
    """Steps of the run between evaluations; also before the first and after the last step of every stage."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
    max_nonfinite_steps: int = 5
    """Updates in a row skipped for a non-finite loss, gradient or reward before the run stops."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_kinds(self)
        require(
            bool(self.stages or self.evaluations), "the config has neither stages nor evaluations; give at least one of either"
        )
        for kind, names in (
            ("stage", [s.name for s in self.stages]),
            ("evaluation", [e.name for e in self.evaluations]),
        ):
            twice = {n for n in names if names.count(n) > 1}
            require(not twice, f"{kind} name {', '.join(sorted(twice))!r} is used twice; names must differ")
        for name in ("eval_every_steps", "max_nonfinite_steps"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        if self.chat_date is not None:
            _check_day("chat_date", self.chat_date)
        require(0 <= self.seed < 2**32, f"seed={self.seed} must be from 0 to {2**32 - 1}")
        if self.stages:
            self._check_training()

    def _check_training(self) -> None:
        require(self.num_steps >= 1, "the stages have no steps: give at least one SFTStage or GRPOStage with num_steps over 0")
        require(bool(self.run_dir), "run_dir='' must name the folder of the run, such as 'runs/first'")
        require(
            (self.model is None) != (self.init_from is None),
            f"model={'None' if self.model is None else 'set'} and init_from={self.init_from!r}: "
            "give exactly one, a model to start from random weights or a folder to start from",
        )
        require(
            self.tokenizer is not None or self.init_from is not None,
            "tokenizer=None needs init_from; give the folder of a tokenizer, or the token texts of a small one",
        )
        # LoRA leaves the vocabulary frozen, and rows that are equal cannot be told apart.
        require(
            not self.add_tokens or self._live_stages[0].lora is None,
            f"add_tokens={self.add_tokens} need a first stage with lora=None: an adapter does not train the rows of new tokens",
        )
        best = self.checkpoint.best_metric
        known = tuple(f"eval/{evaluation.name}/" for evaluation in self.evaluations) or ("eval/NAME/",)
        require(
            best is None or best.startswith(known),
            f"checkpoint.best_metric={best} is no metric of an evaluation; they begin with {' or '.join(known)}",
        )
        for before, stage in pairwise(self._live_stages):
            require(
                not stage.keep_optimizer or stage.lora == before.lora,
                f"{stage.name}.keep_optimizer=True needs lora={before.lora}, that of {before.name}, not {stage.lora}: "
                "moments belong to what is trained",
            )

    @property
    def num_steps(self) -> int:
        return sum(stage.num_steps for stage in self.stages)

    @property
    def _live_stages(self) -> list[Stage]:
        return [stage for stage in self.stages if stage.num_steps]

    def stage_of(self, step: int) -> Stage:
        """The stage that the run's step number `step`, from 1, belongs to."""
        ends = accumulate(stage.num_steps for stage in self.stages)
        return next(stage for stage, end in zip(self.stages, ends, strict=True) if step <= end)

    def adapter_start(self, stage: Stage) -> Stage:
        """The first of the stages in a row, up to `stage`, that train the adapter it trains (or, as it, all weights)."""
        live = self._live_stages
        upto = live[: [other.name for other in live].index(stage.name) + 1]
        return list(takewhile(lambda other: other.lora == stage.lora, reversed(upto)))[-1]

    def reference_stage(self, stage: GRPOStage) -> Stage:
        """The stage at whose start the KL reference of `stage` is taken."""
        if stage.loss.reference == "stage":
            return stage
        if stage.loss.reference == "run":
            return self._live_stages[0]
        return next(other for other in self._live_stages if isinstance(other, GRPOStage))

    def data_seed(self, stage: Stage) -> int:
        """Seeds the order of the stage's examples; stages differ, so that two on one task do not see the same steps."""
        return self.seed * len(self.stages) + self.place_of(stage)

    def place_of(self, stage: Stage) -> int:
        """The stage's place, told by its name: to compare tasks may cost much, or be no question of yes or no."""
        return [other.name for other in self.stages].index(stage.name)

    def optimizer_of(self, stage: Stage) -> OptimizerConfig:
        return stage.optimizer or self.optimizer
