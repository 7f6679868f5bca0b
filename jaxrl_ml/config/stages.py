"""The stages of a run: optimiser, sampling, loss, and the two kinds of stage that they make up."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxrl_ml.config.kinds import check_kinds
from jaxrl_ml.types import require


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
        check_kinds(self, "optimizer")
        for name in ("learning_rate", "eps"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"optimizer.{name}={value} must be positive and finite")
        for name in ("warmup_steps", "final_fraction", "weight_decay"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"optimizer.{name}={value} must not be negative, and finite")
        for name in ("b1", "b2"):
            require(0 <= getattr(self, name) < 1, f"optimizer.{name}={getattr(self, name)} must be in [0, 1)")
        require(self.max_grad_norm > 0, f"optimizer.max_grad_norm={self.max_grad_norm} must be positive; inf does not clip")


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
        check_kinds(self, "sampling")
        require(self.max_prompt_tokens >= 1, f"sampling.max_prompt_tokens={self.max_prompt_tokens} must be at least 1")
        require(
            self.max_completion_tokens >= 1,
            f"sampling.max_completion_tokens={self.max_completion_tokens} must be at least 1",
        )
        require(self.temperature >= 0, f"sampling.temperature={self.temperature} must not be negative")
        require(0 < self.top_p <= 1, f"sampling.top_p={self.top_p} must be in (0, 1]; 1 is off")
        require(0 <= self.min_p < 1, f"sampling.min_p={self.min_p} must be in [0, 1); 0 is off")
        require(self.top_k >= 0, f"sampling.top_k={self.top_k} must not be negative; 0 is off")
        require(all(self.stop), "sampling.stop holds an empty text; remove it")
        require(
            self.prompts_per_chunk >= 0, f"sampling.prompts_per_chunk={self.prompts_per_chunk} must not be negative; 0: all"
        )

    @property
    def truncates(self) -> bool:
        """Whether top-k, top-p or min-p cut the distribution."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


@dataclass(frozen=True)
class LanguageConfig:
    """The thinking language as the first action of a completion (ExpLang, arXiv 2602.21887). Arrays: `languages/tags.py`."""

    mode: Literal["off", "free", "constrained", "forced"] = "off"
    """free: ordinary tokens, recognised where the policy writes a tag. constrained: the first tokens are an allowed tag, drawn
    from the policy renormalised over the allowed ones. forced: the tag is given, not learnt from."""
    languages: tuple[str, ...] = ()
    """Codes that may be chosen; a prompt may allow fewer, with a field `languages`. forced: the one that is given, or several,
    of which each prompt is given its own, `Example.language`."""
    tag: str | tuple[str, ...] = "<lang_select>\n{code}\n</lang_select>\n<think>\n"
    """What a completion in a language starts with: one text with {code} in it, or one text a language."""

    def __post_init__(self) -> None:
        check_kinds(self, "language")
        on = self.mode != "off"
        require(on or not self.languages, f"language.languages={self.languages} need language.mode free, constrained or forced")
        require(not on or bool(self.languages), f"language.mode={self.mode} needs language.languages, such as ('en', 'de')")
        twice = {code for code in self.languages if self.languages.count(code) > 1}
        require(not twice, f"language.languages names {', '.join(sorted(twice))} twice")
        if isinstance(self.tag, str):
            require("{code}" in self.tag, f"language.tag={self.tag!r} must have {{code}} where the language's code goes")
        else:
            require(
                len(self.tag) == len(self.languages) and all(self.tag),
                f"language.tag has {len(self.tag)} texts, or an empty one, for {len(self.languages)} languages; give one each",
            )

    def tags(self) -> tuple[str, ...]:
        """The text of each language's tag."""
        if isinstance(self.tag, str):
            return tuple(self.tag.replace("{code}", code) for code in self.languages)
        return self.tag


def check_stops(name: str, sampling: SamplingConfig, language: LanguageConfig) -> None:
    """Raises UserError where a completion would end within its language tag."""
    for stop in sampling.stop:
        for tag in language.tags() if language.mode != "off" else ():
            require(
                stop not in tag, f"{name}: sampling.stop={stop!r} ends a completion within language.tag {tag!r}; change one"
            )


RESERVED_REWARD_NAMES = ("mean", "correct", "timeout", "nonfinite", "plain_max", "plain_min")  # reward/… of every stage


def check_rewards(owner: str, reward: Any, correct: str | None) -> None:
    """Raises UserError where the rewards of a stage or an evaluation, or their names, make no sense.

    reward: one function, or a mapping from names to functions or pairs (function, weight). correct: the name of the reward that
    decides what is correct; required where there are several.
    """
    if not isinstance(reward, Mapping):
        require(
            correct is None,
            f"{owner}.correct={correct!r} names one of several rewards, and {owner}.reward is one function: leave correct out, "
            f"or give reward={{{correct!r}: (function, 1.0), …}}",
        )
        return
    require(bool(reward), f"{owner}.reward={{}} names no reward; give a function, or {{'answer': (function, 1.0), …}}")
    for name, term in reward.items():
        require(
            isinstance(name, str) and re.fullmatch(r"[\w-]+", name) is not None,
            f"{owner}.reward: the name {name!r:.60} must be a word of letters, digits, _ and -",
        )
        require(name not in RESERVED_REWARD_NAMES, f"{owner}.reward: reward/{name} is a metric of every stage; rename {name!r}")
        function, weight = term if isinstance(term, tuple) and len(term) == 2 else (term, 1.0)
        is_number = isinstance(weight, numbers.Real) and not isinstance(weight, bool)
        require(
            callable(function) and is_number,
            f"{owner}.reward: {name!r} is {term!r:.60}; give a function of texts and examples, or (function, weight)",
        )
        require(abs(weight) < 1e38, f"{owner}.reward: the weight {weight!s:.20} of {name!r} must be finite, and below 1e38")
    names = ", ".join(reward)
    require(
        correct is not None or len(reward) == 1,
        f"{owner}.correct=None: name the reward that decides what is correct, one of {names}",
    )
    require(correct is None or correct in reward, f"{owner}.correct={correct!r} is none of its rewards, which are {names}")


@dataclass(frozen=True)
class LossConfig:
    """The GRPO family: every variant in one place. Formulas and sources: `advantages.py`, `credit.py` and `losses.py`."""

    advantage: Literal["grpo", "dr_grpo", "rloo"] = "grpo"
    language: Literal["shared", "own"] = "shared"
    """Credit for the choice of the thinking language: the row's advantage for all its tokens (ExpLang), or each its own."""
    language_coef: float = 0.1
    """own: weight of the tags' loss, a mean over rows whatever the aggregation, against the thinking's."""
    language_shrinkage: float = 1.0
    """own: rows by which a language's mean in a group is drawn to its mean in the step, or, for the thinking's baseline, to the
    group's; 0 does not pool."""
    ratio: Literal["token", "sequence"] = "token"
    """sequence is GSPO."""
    objective: Literal["clip", "cispo"] = "clip"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    """Bound c > 1 on the ratio's effect where the advantage is negative; None is off. A c below 1 + clip_high acts inside the
    trust region, too, where TRL does not apply it."""
    aggregation: Literal["token", "sequence", "constant"] = "token"
    """Mean over an update's tokens, mean over rows of row means, or sum over tokens / (rows · max_completion_tokens). Rows
    without a token in the loss are not counted."""
    kl: Literal["none", "k1", "k2", "k3"] = "none"
    """Estimator of the KL loss. Its log-ratios, as those of the policy's loss, are cut at ±20, without gradient beyond."""
    kl_coef: float = 0.001
    reference: Literal["run", "rl", "stage"] = "stage"
    """The KL's reference policy is the start of the run, of its first GRPO stage, or of the stage, as ExpLang's is."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus, which is aggregated over tokens as the policy's loss is."""
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
        check_kinds(self, "loss")
        require(0 < self.clip_low <= 1, f"loss.clip_low={self.clip_low} must be in (0, 1]; 1 is no lower bound")
        for name in ("language_coef", "language_shrinkage", "kl_coef"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"loss.{name}={value} must not be negative, and finite")
        require(math.isfinite(self.entropy_coef), f"loss.entropy_coef={self.entropy_coef} must be finite")
        require(self.clip_high > 0, f"loss.clip_high={self.clip_high} must be positive")
        require(self.dual_clip is None or self.dual_clip > 1, f"loss.dual_clip={self.dual_clip} must be over 1, or None")
        require(
            self.importance_cap is None or self.importance_cap > 0,
            f"loss.importance_cap={self.importance_cap} must be positive, or None",
        )
        require(self.max_attempts >= 1, f"loss.max_attempts={self.max_attempts} must be at least 1")
        require(
            self.overlong != "penalty" or self.overlong_tokens > 0,
            "loss.overlong=penalty needs loss.overlong_tokens: the length of the soft zone before the limit",
        )
        require(
            self.objective != "cispo" or self.dual_clip is None,
            f"loss.dual_clip={self.dual_clip} has no meaning with loss.objective=cispo; set it to None",
        )


@dataclass(frozen=True)
class LoRAConfig:
    """Trains a low-rank adapter on the layers' matrices instead of the weights (Hu et al.). Arrays: `models/lora.py`.

    Stages in a row with equal LoRAConfigs train one adapter. It is merged into the weights before a stage that has another or
    none, which goes on from the merged weights.
    """

    rank: int = 8
    alpha: float = 16.0
    """The matrices are W + alpha / rank · A·B."""

    def __post_init__(self) -> None:
        check_kinds(self, "lora")
        require(self.rank >= 1, f"lora.rank={self.rank} must be at least 1; lora=None trains all weights")
        require(0 < self.alpha < math.inf, f"lora.alpha={self.alpha} must be positive and finite")


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
    lora: LoRAConfig | None = None
    """None: all weights are trained."""
    optimizer: OptimizerConfig | None = None
    """None: the run's."""
    keep_optimizer: bool = False
    """Carry the moments over from the stage before instead of starting afresh."""

    def __post_init__(self) -> None:
        check_kinds(self, str(self.name))
        require(self.num_steps >= 0, f"{self.name}.num_steps={self.num_steps} must not be negative; 0 leaves the stage out")
        for name in ("batch_size", "sequence_length", "num_microbatches"):
            require(getattr(self, name) >= 1, f"{self.name}.{name}={getattr(self, name)} must be at least 1")
        require(
            self.batch_size % self.num_microbatches == 0,
            f"{self.name}.batch_size={self.batch_size} must be a multiple of num_microbatches={self.num_microbatches}",
        )


@dataclass(frozen=True)
class GRPOStage:
    """Reinforcement learning from verifiable rewards."""

    task: Any
    reward: Any
    """A function of texts and examples, or several by name, each with its weight (1.0 where there is none):
    {"answer": (function, 1.0), "format": (function, 0.2)}. Their weighted sum is what is learnt from."""
    name: str = "grpo"
    correct: str | None = field(default=None, kw_only=True)
    """The name of the reward that decides what is correct; required where there are several."""
    num_steps: int = 100
    prompts_per_step: int = 32
    group_size: int = 8
    sampling: SamplingConfig = SamplingConfig()
    language: LanguageConfig = LanguageConfig()
    loss: LossConfig = LossConfig()
    num_minibatches: int = 1
    """Updates a pass over the step's prompts."""
    num_epochs: int = 1
    """Passes over the step's prompts."""
    num_microbatches: int = 1
    """Slices of an update that are computed one after the other, to save memory; the result does not change."""
    lora: LoRAConfig | None = None
    """None: all weights are trained."""
    optimizer: OptimizerConfig | None = None
    """None: the run's."""
    keep_optimizer: bool = False
    """Carry the moments over from the stage before instead of starting afresh."""

    def __post_init__(self) -> None:
        check_kinds(self, str(self.name))
        n = self.name
        check_rewards(n, self.reward, self.correct)
        require(self.num_steps >= 0, f"{n}.num_steps={self.num_steps} must not be negative; 0 leaves the stage out")
        for name in ("prompts_per_step", "num_minibatches", "num_epochs", "num_microbatches"):
            require(getattr(self, name) >= 1, f"{n}.{name}={getattr(self, name)} must be at least 1")
        require(
            self.group_size >= 2,
            f"{n}.group_size={self.group_size}: a group baseline needs at least 2 samples a prompt",
        )
        require(
            not self.sampling.truncates,
            f"{n}.sampling: top_k={self.sampling.top_k}, top_p={self.sampling.top_p}, min_p={self.sampling.min_p} are for "
            "evaluation only: a truncated support moves with the policy and the ratio is undefined; use 0, 1.0 and 0.0",
        )
        require(
            self.sampling.temperature > 0,
            f"{n}.sampling.temperature={self.sampling.temperature}: training must sample; use 1.0",
        )
        per_update = self.num_minibatches * self.num_microbatches
        require(
            self.prompts_per_step % per_update == 0,
            f"{n}.prompts_per_step={self.prompts_per_step} must be a multiple of num_minibatches·num_microbatches={per_update}",
        )
        chunk = self.sampling.prompts_per_chunk
        require(
            chunk == 0 or self.prompts_per_step % chunk == 0,
            f"{n}.sampling.prompts_per_chunk={chunk} must divide prompts_per_step={self.prompts_per_step}",
        )
        check_stops(n, self.sampling, self.language)
        require(
            self.loss.language == "shared" or self.language.mode in ("free", "constrained"),
            f"{n}.loss.language=own needs language.mode free or constrained, not {self.language.mode}",
        )
        require(
            self.loss.overlong_tokens <= self.sampling.max_completion_tokens,
            f"{n}.loss.overlong_tokens={self.loss.overlong_tokens} exceeds "
            f"sampling.max_completion_tokens={self.sampling.max_completion_tokens}",
        )

    @property
    def updates_per_step(self) -> int:
        return self.num_minibatches * self.num_epochs


Stage = SFTStage | GRPOStage
