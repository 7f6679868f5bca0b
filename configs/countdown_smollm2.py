"""Countdown with a Hugging Face model: a short cold start on two numbers, then ten steps of GRPO.

Start:     python -m jaxrl_ml.train configs/countdown_smollm2.py --init-from FOLDER
Folder:    SmolLM2-135M-Instruct; `tools/smollm2.py` makes it, or any other Llama, Qwen2 or Qwen3 folder with a chat template
Hardware:  CPU, 2 cores
"""

from __future__ import annotations

import random

from jaxrl_ml.config import (
    CheckpointConfig,
    Config,
    Evaluation,
    GRPOStage,
    LossConfig,
    OptimizerConfig,
    SamplingConfig,
    SFTStage,
)
from jaxrl_ml.rewards.countdown import countdown_reward
from jaxrl_ml.tasks.countdown import Countdown, chat
from jaxrl_ml.types import Example


def demonstrate(example: Example, rng: random.Random) -> str:
    """The solution, in the tags that the question asks for."""
    solution, target = example.fields["solution"], example.fields["target"]
    return f"<think> {solution} = {target} </think>\n<answer> {solution} </answer>"


sampling = SamplingConfig(max_prompt_tokens=129, max_completion_tokens=48)

config = Config(
    run_dir="runs/countdown_smollm2",
    init_from="smollm2",
    prompt_format=chat,
    stages=(
        SFTStage(
            Countdown(num_numbers=(2,), max_number=99, demonstrate=demonstrate),
            name="cold_start",
            num_steps=12,
            batch_size=2,
            sequence_length=384,
            optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=3),
        ),
        GRPOStage(
            Countdown(num_numbers=(2,), max_number=99),
            countdown_reward,
            num_steps=10,
            prompts_per_step=4,
            group_size=8,
            sampling=sampling,
            loss=LossConfig(advantage="dr_grpo", aggregation="token", kl="k3", kl_coef=0.001),
        ),
    ),
    optimizer=OptimizerConfig(learning_rate=5e-6),
    evaluations=(
        Evaluation(
            Countdown(num_numbers=(2,), max_number=99, split="test"),
            countdown_reward,
            num_prompts=16,
            prompts_per_batch=16,
            sampling=SamplingConfig(temperature=0.0, max_prompt_tokens=129, max_completion_tokens=48),
        ),
    ),
    checkpoint=CheckpointConfig(every_steps=100, keep=1),
)
