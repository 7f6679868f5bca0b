"""ExpLang at full size: Qwen3-4B chooses the language that it thinks about OpenR1-Math in. The paper's settings, and baselines.

Teacher:   python -m jaxrl_ml.coldstart configs/explang_qwen3_4b.py traces.jsonl --arm explang --teacher Qwen3-32B
Command:   python -m jaxrl_ml.train configs/explang_qwen3_4b.py --arm explang --init-from Qwen3-4B
Hardware:  eight accelerators of 80 GB, or a v5p slice; nothing here has run at this size: it is shape-checked in tests
Data:      open-r1/OpenR1-Math-220k from the hub, or a folder's parquet files

    explang      LoRA cold start on verified traces in 13 languages, merged; exploration, a quarter of the steps; exploitation
    own          the same with credit for the language apart from the thinking
    naive        GRPO on the model as it is, with KL throughout
    controlled   LoRA cold start on English traces of the same problems, no tags, then as naive

From the paper (arXiv 2602.21887): 256 prompts × 8, two updates a step, learning rate 1e-6, prompts to 2,048 and responses to
4,096 tokens, 200 steps, temperature 1; LoRA r=8, alpha=16, 1e-4 cosine, 82 steps of 32 sequences.

From the authors' code: exploitation is a run of its own. It starts from the weights at the end of exploration with a new
optimiser, and these weights are the reference of its KL (`reference="stage"`). The two baselines have one stage of RL, whose
reference is its start.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxrl_ml.config import (
    CheckpointConfig,
    ComputeConfig,
    Config,
    Evaluation,
    GRPOStage,
    LanguageConfig,
    LoRAConfig,
    LossConfig,
    MeshConfig,
    OptimizerConfig,
    SamplingConfig,
    SFTStage,
)
from jaxrl_ml.rewards.language import EXPLOITATION, EXPLORATION, ExpLangReward
from jaxrl_ml.rewards.maths import MathsReward
from jaxrl_ml.tasks.deferred import Deferred
from jaxrl_ml.tasks.maths import aime25, math500, openr1_math
from jaxrl_ml.tasks.maths_prompts import boxed
from jaxrl_ml.tasks.traces import from_jsonl

SEEN = ("en", "zh", "es", "fr", "de", "ja", "ru", "it", "pt", "ko", "ar", "th", "vi")
UNSEEN = ("id", "he", "ro", "sw")

problems = Deferred(openr1_math)
language = LanguageConfig("free", SEEN)
off = LanguageConfig()
sampling = SamplingConfig(max_prompt_tokens=2048, max_completion_tokens=4096, prompts_per_chunk=64)
answers = MathsReward(num_workers=8)
loss = LossConfig()
kl = LossConfig(kl="k3", kl_coef=0.001, reference="stage")


def cold_start(traces: str) -> SFTStage:
    return SFTStage(
        from_jsonl(traces),
        name="cold_start",
        num_steps=82,
        batch_size=32,
        sequence_length=8192,
        num_microbatches=4,
        lora=LoRAConfig(rank=8, alpha=16.0),
        optimizer=OptimizerConfig(learning_rate=1e-4, schedule="cosine", warmup_steps=8),
    )


def reinforced(name: str, num_steps: int, loss: LossConfig, reward: Any, language: LanguageConfig) -> GRPOStage:
    return GRPOStage(
        problems,
        reward,
        name=name,
        num_steps=num_steps,
        prompts_per_step=256,
        group_size=8,
        num_minibatches=2,
        num_microbatches=16,
        sampling=sampling,
        language=language,
        loss=loss,
    )


def experiment(stages: tuple[Any, ...], language: LanguageConfig) -> Config:
    benchmarks = {"math500": (Deferred(math500), 500), "aime25": (Deferred(aime25), 30)}
    evaluations = [
        Evaluation(
            task,
            answers,
            name=name,
            num_prompts=count,
            samples_per_prompt=12,
            prompts_per_batch=64,
            sampling=dataclasses.replace(sampling, temperature=0.1, top_p=0.9),
            language=language,
            unseen_languages=UNSEEN if language.languages else (),
        )
        for name, (task, count) in benchmarks.items()
    ]
    return Config(
        run_dir="runs/explang_qwen3_4b",
        init_from="Qwen3-4B",
        prompt_format=boxed,
        stages=stages,
        optimizer=OptimizerConfig(learning_rate=1e-6),
        compute=ComputeConfig(remat="full", logits_mib=512),
        mesh=MeshConfig(data=1, fsdp=8),
        evaluations=tuple(evaluations),
        eval_every_steps=50,
        checkpoint=CheckpointConfig(every_steps=25),
    )


def explang(credit: str) -> Config:
    explore, exploit = (dataclasses.replace(base, language=credit) for base in (loss, kl))
    rewards = (ExpLangReward(language, answers, weights, backend="lingua") for weights in (EXPLORATION, EXPLOITATION))
    stages = (
        cold_start("traces.jsonl"),
        reinforced("exploration", 50, explore, next(rewards), language),
        reinforced("exploitation", 150, exploit, next(rewards), language),
    )
    return experiment(stages, language)


arms = {
    "explang": explang("shared"),
    "own": explang("own"),
    "naive": experiment((reinforced("grpo", 200, kl, answers, off),), off),
    "controlled": experiment((cold_start("english.jsonl"), reinforced("grpo", 200, kl, answers, off)), off),
}
