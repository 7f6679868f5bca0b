"""Which skills does RL compose? Qwen2.5 on Countdown, balanced over patterns, in three sizes; SFT on bare answers beside it.

Command:   python -m jaxrl_ml.train configs/skills_qwen2p5.py --arm 1p5b --init-from Qwen2.5-1.5B
Arms:      1p5b, 3b, 7b, sft_1p5b, sft_3b, sft_7b
Hardware:  eight accelerators of 80 GB, or a slice like it; nothing here has run at this size: it is shape-checked in tests
Shows:     success by pattern, shape and balance over steps for n = 3 to 6, trained on 3 and 4 (`report.html`, section Skills)

From the authors' code (arXiv 2512.01775): numbers and targets in 1..99, up to 4,000 problems a pattern, 10 of each held out at
n = 3 and 4, 10 a pattern at n = 5 and 1 at n = 6; GRPO without the standard deviation, token mean, 256 prompts × 4, an update
a step, 1e-6, k3 against the start at 0.001, 1,024 tokens, 1,635 steps; evaluation every 50 steps at temperature 0.6 with 32
samples. Ours: rate, batch and length of the SFT baseline, which the paper does not tell; patterns are those of `patterns.py`.
"""

from __future__ import annotations

import random

from jaxrl_ml.config import (
    CheckpointConfig,
    ComputeConfig,
    Config,
    Evaluation,
    GRPOStage,
    LossConfig,
    MeshConfig,
    OptimizerConfig,
    SamplingConfig,
    SFTStage,
)
from jaxrl_ml.rewards.countdown import countdown_reward
from jaxrl_ml.tasks.countdown import Balanced, tinyzero
from jaxrl_ml.types import Example

SIZES = ("1p5b", "3b", "7b")
TESTS = {  # n: problems a pattern, problems
    3: (10, 180),
    4: (10, 960),
    5: (10, 5_580),
    6: (1, 3_491),
}


def bare(example: Example, rng: random.Random) -> str:
    """The answer without a thought."""
    return f"<answer> {example.fields['solution']} </answer>"


def evaluation(n: int) -> Evaluation:
    quota, count = TESTS[n]
    # Nothing is trained at n = 5 and 6, so there everything may be test.
    task = Balanced(num_numbers=(n,), quota=quota, split="test", test_fraction=1 / 16 if n < 5 else 1.0)
    return Evaluation(
        task,
        countdown_reward,
        name=f"n{n}",
        num_prompts=count,
        samples_per_prompt=32,
        prompts_per_batch=64,
        sampling=SamplingConfig(max_prompt_tokens=1024, max_completion_tokens=1024, temperature=0.6),
        records=n < 5,  # thousands of problems × 32 long samples every 50 steps would fill the disk
    )


def experiment(name: str, stage: SFTStage | GRPOStage) -> Config:
    return Config(
        run_dir=f"runs/skills_{name}",
        init_from="Qwen2.5-" + name.removeprefix("sft_").replace("p", ".").upper(),
        prompt_format=tinyzero,
        stages=(stage,),
        compute=ComputeConfig(remat="full", logits_mib=512),
        mesh=MeshConfig(data=1, fsdp=8),
        evaluations=tuple(map(evaluation, TESTS)),
        eval_every_steps=50,
        checkpoint=CheckpointConfig(every_steps=50),
    )


def reinforced() -> GRPOStage:
    return GRPOStage(
        Balanced(),
        countdown_reward,
        num_steps=1635,
        prompts_per_step=256,
        group_size=4,
        num_microbatches=8,
        sampling=SamplingConfig(max_prompt_tokens=1024, max_completion_tokens=1024, prompts_per_chunk=128),
        loss=LossConfig(advantage="dr_grpo", kl="k3", kl_coef=0.001),
        optimizer=OptimizerConfig(learning_rate=1e-6),
    )


def supervised() -> SFTStage:
    optimizer = OptimizerConfig(learning_rate=1e-5, schedule="cosine", warmup_steps=50)
    return SFTStage(
        Balanced(demonstrate=bare), num_steps=1635, batch_size=32, sequence_length=1024, num_microbatches=2, optimizer=optimizer
    )


arms = {size: experiment(size, reinforced()) for size in SIZES}
arms |= {f"sft_{size}": experiment(f"sft_{size}", supervised()) for size in SIZES}
