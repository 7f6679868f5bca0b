"""RL post-training of language models in JAX: prompts → rollout → scores → batch → update → evaluate → export."""

__version__ = "0.1.0"
