"""GRPO steps of tunix on CPU: `python tunix_step.py PROMPTS GROUP NEW_TOKENS MODEL_DIR`; fixed lengths, fp32, no KL."""

from __future__ import annotations

import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from prompt import QUESTION, STEPS, report, reward
from transformers import AutoTokenizer
from tunix.models.llama3 import model as llama
from tunix.models.llama3 import params as loader
from tunix.rl import rl_cluster
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rollout import base_rollout

SMOLLM2 = {
    "num_layers": 30,
    "vocab_size": 49152,
    "embed_dim": 576,
    "hidden_dim": 1536,
    "num_heads": 9,
    "head_dim": 64,
    "num_kv_heads": 3,
    "rope_theta": 100000,
    "norm_eps": 1e-5,
    "weight_tying": True,
}


class Prompts:
    """As many steps' prompts as there are steps; notes when each is asked for."""

    def __init__(self, text: str, count: int) -> None:
        self.text, self.count = text, count

    def __iter__(self):
        for _ in range(STEPS):
            yield {"prompts": np.array([self.text] * self.count), "answer": np.array(["x"] * self.count)}

    def __len__(self) -> int:
        return STEPS


def main() -> None:
    prompts, group, new_tokens, folder = *map(int, sys.argv[1:4]), sys.argv[4]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = llama.ModelConfig(**SMOLLM2, remat_config=llama.RematConfig.NONE)
    mesh = Mesh(np.array(jax.devices()).reshape(1, 1), ("fsdp", "tp"))
    with mesh:
        model = loader.create_model_from_safe_tensors(folder, config, mesh, dtype=jnp.float32)
    text = tokenizer.apply_chat_template([{"role": "user", "content": QUESTION}], add_generation_prompt=True, tokenize=False)
    training = rl_cluster.RLTrainingConfig(
        actor_optimizer=optax.adamw(1e-6),
        eval_every_n_steps=10**6,
        max_steps=STEPS,
        mini_batch_size=prompts,
        train_micro_batch_size=prompts,
        metrics_logging_options=None,
        checkpoint_root_directory=tempfile.mkdtemp(),
    )
    width = 128
    rollout = base_rollout.RolloutConfig(
        max_tokens_to_generate=new_tokens,
        max_prompt_length=width,
        kv_cache_size=width + new_tokens + 8,
        temperature=1.0,
        top_p=1.0,
        top_k=None,
        eos_tokens=[49151],  # which is never sampled, as good as
    )
    role = rl_cluster.Role
    cluster = rl_cluster.RLCluster(
        actor=model,
        reference=None,
        tokenizer=tokenizer,
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh={role.ACTOR: mesh, role.REFERENCE: mesh, role.ROLLOUT: mesh},
            training_config=training,
            rollout_config=rollout,
        ),
    )
    generate: list[float] = []
    ends: list[float] = []
    starts: list[float] = []
    sample, update = cluster.generate, cluster.update_actor

    def timed_sample(*arguments, **options):
        starts.append(time.perf_counter())
        found = sample(*arguments, **options)
        jax.block_until_ready(jax.tree.leaves(found))
        generate.append(time.perf_counter() - starts[-1])
        return found

    def timed_update(*arguments, **options):
        found = update(*arguments, **options)
        jax.block_until_ready(jax.tree.leaves(jax.tree.map(lambda leaf: leaf, cluster.actor_trainer.model)))
        ends.append(time.perf_counter())
        return found

    cluster.generate, cluster.update_actor = timed_sample, timed_update
    learner = GRPOLearner(
        rl_cluster=cluster,
        algo_config=GRPOConfig(num_generations=group, beta=0.0, num_iterations=1),
        reward_fns=lambda prompts, completions, **_: [reward(text) for text in completions],
    )
    with mesh:
        learner.train(Prompts(text, prompts))
    # Sampling may run ahead of the update before it, so a step is from one update's end to the next one's.
    steps = [ends[0] - starts[0], *(after - before for before, after in zip(ends, ends[1:], strict=False))]
    report(step=steps, generate=generate, update=[step - part for step, part in zip(steps, generate, strict=True)])


if __name__ == "__main__":
    main()
