"""GRPO steps of jaxrl_ml on CPU: `python jaxrl_step.py PROMPTS GROUP NEW_TOKENS MODEL_DIR`; fixed lengths, fp32, no KL."""

from __future__ import annotations

import sys
import time

import jax
import numpy as np
from prompt import QUESTION, STEPS, report, reward

from jaxrl_ml import pretrained
from jaxrl_ml.config import Config, GRPOStage, OptimizerConfig, SamplingConfig
from jaxrl_ml.grpo import GRPO
from jaxrl_ml.models.transformer import Transformer
from jaxrl_ml.programs import Programs
from jaxrl_ml.sharding import make_mesh
from jaxrl_ml.types import Example, Message, TrainState


def rewards(texts: list[str], examples: list[Example]) -> np.ndarray:
    return np.array([reward(text) for text in texts], np.float32)


def ask(example: Example) -> list[Message]:
    return [{"role": "user", "content": QUESTION}]


def main() -> None:
    prompts, group, new_tokens, folder = *map(int, sys.argv[1:4]), sys.argv[4]
    tokenizer = pretrained.read_tokenizer(folder)
    task = [Example(id=str(i), task="bench") for i in range(64)]
    sampling = SamplingConfig(max_prompt_tokens=122, max_completion_tokens=new_tokens)
    stage = GRPOStage(task, rewards, num_steps=STEPS, prompts_per_step=prompts, group_size=group, sampling=sampling)
    config = Config(
        run_dir="unused", init_from=folder, prompt_format=ask, stages=(stage,), optimizer=OptimizerConfig(learning_rate=1e-6)
    )
    programs = Programs(pretrained.read_model_config(folder), config.compute, make_mesh(config.mesh))
    model = Transformer(programs.model.config)
    shardings = programs.layout.tree(model.axes(), jax.eval_shape(model.init, jax.random.key(0)))
    params = pretrained.load_params(folder, model, shardings)
    runner = GRPO(config, stage, programs, tokenizer, None)
    runner.stop_table = programs.layout.put(np.zeros((2, programs.model.config.vocab_size), np.int16))  # nothing stops
    state = TrainState(programs.layout.put(np.int32(0)), params, programs.moments(runner.optimizer, params))
    del params
    steps, generate = [], []
    for step in range(STEPS):
        started = time.perf_counter()
        state, told = runner.step(state, step)
        jax.block_until_ready(state)
        steps.append(time.perf_counter() - started)
        generate.append(told.host["time/rollout_s"])
        assert told.host["rollout/sampled_tokens"] == prompts * group * new_tokens
    runner.close()
    report(step=steps, generate=generate, update=[step - part for step, part in zip(steps, generate, strict=True)])


if __name__ == "__main__":
    main()
