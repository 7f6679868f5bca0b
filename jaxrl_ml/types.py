"""The vocabulary of the library: the few record types that the stages hand to each other.

Letters (used as suffixes in the names of arrays, in this order):

    Q  prompts in a step          G  samples of a prompt         B = Q·G  rows; row b belongs to prompt b // G
    P  prompt width               C  completion width            S  length of a row's own cache
    V  vocabulary                 D  model width                 F  MLP width
    N  query heads                K  key/value heads             H  head dimension
    L  layers                     M  microbatches

Device records are named tuples, hence pytrees that need no import of jax: `--help` must not load it. Records nest and never
restate a field of what they hold. Rows of a group are adjacent, so `x.reshape(Q, G, ...)` is always the group view. A prompt
is stored once, `[Q, P]`, never once a row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    import jax
    import numpy as np

    Array = jax.Array | np.ndarray

Params = Any  # a plain pytree of arrays: {"embed", "layers", "final_norm"[, "lm_head"]}, layers stacked on axis 0, or
# `lora.Adapted` where an adapter is trained
Message = dict[str, str]  # {"role": ..., "content": ...}, as chat templates take them
HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # a lone surrogate, such as is left of an emoji that was cut in two


class UserError(Exception):
    """A mistake of the user's: its text is one line that names the offending value and the remedy."""


def one_line(error: Exception) -> str:
    """The text of an error, at most 200 characters without line breaks."""
    return " ".join(str(error).split())[:200].rstrip(".")


def require(condition: bool, message: str) -> None:
    """Raises UserError with `message` unless the condition holds."""
    if not condition:
        raise UserError(message)


@dataclass(frozen=True)
class Example:
    """One problem of a task, on the host.

    `id` is unique within its task, `task` names the task in metrics, `fields` is what prompt formats and rewards read,
    `answer` is the gold answer (None where the reward computes it), `language` is the prompt's, and `completion` is a
    demonstration for SFT, if the task has one.
    """

    id: str
    task: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    answer: Any = None
    language: str = "en"
    completion: str | None = None


class Prompts(NamedTuple):
    """Tokenised prompts of one step or chunk, left-padded."""

    tokens: Array  # int32 [Q, P]; column P-1 is the last prompt token of every row
    mask: Array  # bool [Q, P]; True on prompt tokens (never inferred from token ids: pad may equal EOS)
    index: Array  # uint32 [Q]; the prompt's place in its step: with it, noise does not depend on the batch split
    allowed: Array | None = None  # bool [Q, languages]; the thinking languages a prompt may choose from; None: no tags


class TagTrie(NamedTuple):
    """The allowed tags as a trie over tokens: node 0 is free text, node 1 the root; E edges a node, padded with token −1."""

    tokens: Array  # int32 [nodes, E]
    target: Array  # int32 [nodes, E]; the node that an edge leads to, 0 at the end of a tag
    language: Array  # int32 [nodes, E]; the language whose tag an edge completes, −1 for none
    reach: Array  # bool [nodes, E, languages]; the languages whose tags go over an edge
    constrains: Array  # bool []; whether a completion must start with an allowed tag


class Tags(NamedTuple):
    """The language action of B rows. Made by the sampler, never read off the tokens again."""

    state: Array  # int32 [B, W]; the trie node that each of the first W tokens was drawn at, W the longest tag; 0 is free text
    language: Array  # int32 [B]; the language of the tag that a row starts with, −1 for none


class Rollout(NamedTuple):
    """What the policy sampled for `prompts`, and what it thought of it."""

    prompts: Prompts
    completions: Array  # int32 [B, C]; right-padded
    lengths: Array  # int32 [B]; sampled tokens, the stop token included
    action_mask: Array  # bool [B, C]; True on every token the policy chose, EOS included; not where a trie left one choice
    sampler_logprobs: Array  # f32 [B, C]; of the distribution really sampled, zero outside action_mask
    truncated: Array  # bool [B]; the row hit the token limit without a stop
    tags: Tags | None = None  # None: mode off


@dataclass(frozen=True)
class Scores:
    """The verdict of a reward on B rows, on the host.

    `correct` is the raw verdict that filters read, `parts` are the named terms that make up `rewards` (logged one by one),
    `timeout` marks rows whose check was given up: not the same as wrong. `details` is what else the reward can tell of each
    row: logged as means, kept in evaluation records, no part of `rewards`. `language_rewards` is the share of `rewards` that is
    earned by the choice of the thinking language alone; with loss.language=own it never reaches the thinking. `languages` are
    places among the stage's, for rewards whose terms are statistics of all rows that chose a language (`StepReward`).
    `plain_rewards` is set where `correct` is a guess: the values of a reward that returned a plain array, of which 1 or more
    counts as correct. Rewards that return Scores leave it None.
    """

    rewards: np.ndarray  # f32 [B]
    correct: np.ndarray  # bool [B]
    parts: Mapping[str, np.ndarray] = field(default_factory=dict)  # {name: f32 [B]}
    timeout: np.ndarray | None = None  # bool [B]; None: no row timed out
    details: Mapping[str, np.ndarray] = field(default_factory=dict)  # {name: f32 [B]}
    language_rewards: np.ndarray | None = None  # f32 [B]; None: none
    languages: np.ndarray | None = None  # int32 [B]; −1 for rows that no statistic counts; None: there are none
    plain_rewards: np.ndarray | None = None  # f32 [B]; None: the reward itself says what is correct


class Batch(NamedTuple):
    """What one GRPO update learns from."""

    rollout: Rollout
    advantages: Array  # f32 [B, C]
    loss_mask: Array  # bool [B, C]; action_mask less the rows that filters or overlong masking leave out
    old_logprobs: Array | None = None  # f32 [B, C]; None: one update per rollout, the ratio's value is 1
    ref_logprobs: Array | None = None  # f32 [B, C]; None: no KL term
    language_values: Array | None = None  # f32 [Q, languages]; Â for all languages; None: tags learn from `advantages`, if any


class Packed(NamedTuple):
    """Demonstrations packed into rows of T tokens, for SFT. Column t of `targets` is the token after column t of `tokens`."""

    tokens: Array  # int32 [N, T]
    targets: Array  # int32 [N, T]
    loss_mask: Array  # bool [N, T]; True where the target is a completion token, EOS included
    segments: Array  # int32 [N, T]; 1, 2, … for the examples of a row, 0 for padding
    positions: Array  # int32 [N, T]; from 0 in every segment


class TrainState(NamedTuple):
    """What training changes. No functions, no configuration, no random state inside."""

    step: Array  # int32 []; updates applied in this stage, drives the learning-rate schedule
    params: Params
    opt_state: Any


PromptFormat = Callable[[Example], "str | list[Message]"]
"""Turns an example into a plain prompt, or into messages for the tokenizer's chat template."""

Reward = Callable[[Sequence[str], Sequence[Example]], "Scores | np.ndarray"]
"""Scores B completions against their B examples. A plain array r is read as Scores(rewards=r, correct=r >= 1): see
`rewards/combined.py`, which also combines several named rewards.

A completion whose prompt ends in `<think>` stands behind that mark, so that a reward can tell thinking from an answer."""


@runtime_checkable
class StepReward(Protocol):
    """A reward with terms that depend on all rows of a step, which no call sees where it has chunks, rounds or processes."""

    def __call__(self, texts: Sequence[str], examples: Sequence[Example]) -> Scores: ...

    def over_step(self, scores: Scores) -> Scores:
        """The scores of all rows of a step with these terms taken anew."""
        ...


Task = Sequence[Example]
"""Anything with `len(task)` and `task[i]`: a list, a dataset adapter, a generator that is deterministic by index."""


@dataclass(frozen=True)
class StepReport:
    """What one step of a stage has to tell; device values are fetched only after the next step is dispatched."""

    host: Mapping[str, float]
    device: Sequence[Mapping[str, Array]] = ()  # one mapping an update; logged as their mean
    samples: Sequence[Mapping[str, Any]] = ()  # records for samples.jsonl
    skipped: bool = False  # a non-finite reward: no update was made
    finished_s: Callable[[], float] | None = None  # its end on perf_counter's clock; None: fetching the metrics tells
