"""A policy on a folder's weights, for the rows that run the library itself: programs, prompts, and draws of a set length."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))

from prompt import QUESTION

from jaxrl_ml import pretrained
from jaxrl_ml.config import ComputeConfig, MeshConfig, SamplingConfig
from jaxrl_ml.data import PromptRenderer, make_prompts
from jaxrl_ml.programs import Programs
from jaxrl_ml.sampler import settings_of
from jaxrl_ml.sharding import make_mesh
from jaxrl_ml.types import Example, Prompts, Rollout

PROMPT_TOKENS = 122
UNIFORM = 1e6  # a temperature at which all tokens are as likely, to three digits


class Policy:
    """The model of a Hugging Face folder on this machine's devices."""

    def __init__(self, folder: str) -> None:
        self.programs = Programs(pretrained.read_model_config(folder), ComputeConfig(), make_mesh(MeshConfig()))
        self.layout, self.config = self.programs.layout, self.programs.model.config
        self.params = pretrained.load_params(folder, self.programs.model, self.programs.param_shardings)
        self._render = PromptRenderer(pretrained.read_tokenizer(folder), lambda _: [{"role": "user", "content": QUESTION}])

    @cached_property
    def weights(self) -> Any:
        return self.programs.gather(self.params)

    def prompts(self, count: int) -> Prompts:
        """The same question `count` times, on the devices."""
        examples = [Example(id=str(i), task="bench") for i in range(count)]
        return self.layout.put_rows(make_prompts(examples, self._render, width=PROMPT_TOKENS))

    def sampler(self, prompts: int, group: int, width: int, temperature: float = 1.0) -> Callable[[np.ndarray], Rollout]:
        """Draws the same rollout at every call, of prompts × group rows, until the stop table given ends them."""
        where = self.prompts(prompts)
        words = self.layout.put(np.array([0, 1, 2, 3], np.uint32))
        settings = self.layout.put(settings_of(SamplingConfig(temperature=temperature)))
        static = {"truncates": False, "group_size": group, "width": width, "tag_width": 0}

        def sample(table: np.ndarray) -> Rollout:
            table = self.layout.put(table)
            return jax.block_until_ready(self.programs.sample(self.weights, where, words, table, settings, None, **static))

        return sample

    def stop_after(self, tokens: int, states: int) -> np.ndarray:
        """The stop table int16 [states + 1, V] by which every row ends after `tokens` ≤ states tokens, whichever they are.

        One shape for all lengths: a program is compiled once and timed at any of them.
        """
        following = np.minimum(np.arange(states + 1) + 1, states).astype(np.int16)
        following[tokens - 1 :] = states
        return np.repeat(following[:, None], self.config.vocab_size, axis=1)

    def stop_on(self, share: float, states: int) -> np.ndarray:
        """The stop table of the same shape by which any of a `share` of all tokens ends a row.

        At the temperature UNIFORM lengths are geometric, of mean 1 / share.
        """
        ids = np.random.default_rng(0).permutation(self.config.vocab_size)[: round(share * self.config.vocab_size)]
        table = np.zeros((states + 1, self.config.vocab_size), np.int16)
        table[:, ids] = table[-1] = states
        return table
