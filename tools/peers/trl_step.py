"""GRPO steps of TRL on CPU: `python trl_step.py PROMPTS GROUP NEW_TOKENS MODEL_DIR`; fixed lengths, fp32, no KL, no remat."""

from __future__ import annotations

import sys
import tempfile
import time

from datasets import Dataset
from prompt import QUESTION, STEPS, report, reward
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer


def rewards(completions, **_):
    return [reward(completion[0]["content"]) for completion in completions]


def timed(owner, name: str, seconds: list[float]) -> None:
    """Has the method note how long it takes."""
    inner = getattr(owner, name)

    def outer(*arguments, **options):
        started = time.perf_counter()
        found = inner(*arguments, **options)
        seconds.append(time.perf_counter() - started)
        return found

    setattr(owner, name, outer)


def main() -> None:
    prompts, group, new_tokens, folder = *map(int, sys.argv[1:4]), sys.argv[4]
    settings = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        fp16=False,
        per_device_train_batch_size=prompts * group,
        num_generations=group,
        max_completion_length=new_tokens,
        max_steps=STEPS,
        learning_rate=1e-6,
        beta=0.0,
        report_to=[],
        save_strategy="no",
        temperature=1.0,
        top_k=0,
        generation_kwargs={"min_new_tokens": new_tokens},
        gradient_checkpointing=False,
        model_init_kwargs={"dtype": "float32"},
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=folder,
        reward_funcs=rewards,
        args=settings,
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": QUESTION}]} for _ in range(64)]),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    steps: list[float] = []
    generate: list[float] = []
    optimise: list[float] = []
    timed(trainer, "training_step", steps)
    timed(trainer, "_generate_single_turn", generate)
    trainer.create_optimizer()
    timed(trainer.optimizer, "step", optimise)
    trainer.train()
    steps = [step + last for step, last in zip(steps, optimise, strict=True)]
    report(step=steps, generate=generate, update=[step - part for step, part in zip(steps, generate, strict=True)])


if __name__ == "__main__":
    main()
