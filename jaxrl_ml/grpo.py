"""A stage of reinforcement learning: one step, from prompts to the update.

In: a `TrainState` and the number of the step. Out: the next `TrainState` and a `StepReport`. The body of `GRPO.step` is the
library in ten lines: prompts → weights → rollouts and scores (overlapped) → batch → old and reference log-probs → updates.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl_ml import data, processes, storage
from jaxrl_ml.advantages import group_advantages, learning_rows, mixed_groups, overlong_penalty
from jaxrl_ml.config import Config, GRPOStage, Stage
from jaxrl_ml.credit import language_values, tag_mask, thinking_advantages
from jaxrl_ml.languages.tags import check_decoding, language_action
from jaxrl_ml.models import lora
from jaxrl_ml.optimizer import make_optimizer
from jaxrl_ml.programs import Programs, StepEnd
from jaxrl_ml.rewards.combined import reward_of
from jaxrl_ml.sampler import settings_of
from jaxrl_ml.sharding import Layout
from jaxrl_ml.tokenizer import Tokenizer
from jaxrl_ml.types import Batch, Example, Params, Rollout, Scores, StepReport, StepReward, TrainState, UserError

MUCH_MEMORY = 2**28  # bytes
SAMPLING_PURPOSE = 1  # the second word of the sampling seed; evaluation has its own


class Experience(NamedTuple):
    """Judged rollouts on the host; rows of a group adjacent."""

    ids: list[str]  # Q, those of the examples
    rollout: Rollout  # numpy
    texts: list[str]  # B
    scores: Scores


class Idle:
    """How long in a step the device has nothing to do: from when all that was asked of it has come back until the next."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._total = 0.0

    def began(self, now: float) -> None:
        self._since = now

    def paused(self) -> None:
        """The device is given something."""
        if self._since is not None:
            self._total += time.perf_counter() - self._since
            self._since = None

    def ended(self) -> float:
        """The same, at the end of a step; returns the step's seconds."""
        self.paused()
        total, self._total = self._total, 0.0
        return total


class GRPO:
    """One GRPO stage of a run. reference: the KL's; None: the frozen weights below the adapter, or no KL."""

    def __init__(
        self, config: Config, stage: GRPOStage, programs: Programs, tokenizer: Tokenizer, reference: Params | None
    ) -> None:
        self.config, self.stage, self.programs, self.tokenizer, self.reference = config, stage, programs, tokenizer, reference
        self.layout = programs.layout
        _check_shards(stage, self.layout.row_shards)
        self.layout.check_length(f"{stage.name}.sampling.max_completion_tokens", stage.sampling.max_completion_tokens)
        self.reward = reward_of(stage.name, stage)
        self.optimizer = make_optimizer(config.optimizer_of(stage), stage.num_steps * stage.updates_per_step)
        action = language_action(stage.language, tokenizer.encode, stage.sampling.max_completion_tokens)
        check_decoding(stage.name, stage.language, tokenizer)
        self.trie, self.tag_width = self.layout.put(action.trie), action.width
        block, blocks = self.layout.block
        self.batches = data.prompt_batches(
            stage.task,
            data.PromptRenderer(tokenizer, config.prompt_format, config.system_prompt),
            num_prompts=stage.prompts_per_step,
            width=stage.sampling.max_prompt_tokens,
            seed=config.data_seed(stage),
            block=block,
            blocks=blocks,
            allowed=action.allowed,
        )
        table = tokenizer.stop_table(stage.sampling.stop, programs.model.config.vocab_size)
        self.stop_table = self.layout.put(table)
        self.settings = self.layout.put(settings_of(stage.sampling))
        self.minibatches = [self.layout.put(np.int32(i)) for i in range(stage.num_minibatches)]
        self._update = programs.update(stage, self.optimizer)
        self._score = programs.score(stage)
        self._idle = Idle()

    def step(self, state: TrainState, step: int) -> tuple[TrainState, StepReport]:
        """One step of the stage; `step` counts over the whole run and seeds the step's noise."""
        stage, temperature = self.stage, self.settings.temperature
        started = time.perf_counter()
        experience, host = self._collect(self.programs.gather(state.params), step)
        host["time/rollout_s"] = time.perf_counter() - started
        return_freed_pages(state.params)
        batch = assemble(experience.rollout, experience.scores, stage)
        host["rollout/learned_rows"] = float(batch.loss_mask.any(1).mean())
        learning = learning_rows(batch.advantages, batch.loss_mask, batch.language_values)
        host["rollout/advantage_rows"] = float(learning.mean())
        samples = self._sample_records(experience, batch, step)
        learn = learning_minibatches(batch.loss_mask, stage.num_minibatches, stage.group_size)
        if host["reward/nonfinite"] or not learn.any():
            return state, StepReport(host, (), samples, host["reward/nonfinite"] > 0, StepEnd(()).time_s)
        batch = self.layout.put_rows(self.layout.own_rows(batch))
        host["time/host_exposed_s"] = self._idle.ended()
        if stage.updates_per_step > 1:
            batch = batch._replace(old_logprobs=self._score(state.params, batch.rollout, temperature, self.trie))
        if stage.loss.kl != "none":
            reference = lora.frozen(state.params) if self.reference is None else self.reference
            batch = batch._replace(ref_logprobs=self._score(reference, batch.rollout, temperature, self.trie))
        metrics = []
        for minibatch in list(compress(self.minibatches, learn)) * stage.num_epochs:
            state, update_metrics = self._update(state, batch, minibatch, temperature, self.trie)
            metrics.append(update_metrics)
        return state, StepReport(host, metrics, samples, finished_s=StepEnd(metrics).time_s)

    def _collect(self, weights: Params, step: int) -> tuple[Experience, dict[str, float]]:
        """The whole step's experience; with filter=resample, rounds of other prompts until enough groups are mixed."""
        stage = self.stage
        attempts = stage.loss.max_attempts if stage.loss.filter == "resample" else 1
        rounds, mixed, judge_s = [], 0, 0.0
        for attempt in range(attempts):
            own, seconds = self._rollouts(weights, step, attempt)
            found = everyones(own, self.layout)
            rounds.append(found)
            judge_s += seconds
            mixed += mixed_groups(found.scores.correct, stage.group_size).sum()
            if mixed >= stage.prompts_per_step:
                break
        experience = merge(rounds)
        if isinstance(self.reward, StepReward):
            with jax.transfer_guard("allow"):
                experience = experience._replace(scores=self.reward.over_step(experience.scores))
        # Told of all that was sampled, before any of it is selected: the policy's own success, not that of mixed groups.
        host = describe(experience, stage.group_size) | {"time/judge_s": judge_s, "rollout/attempts": float(len(rounds))}
        if self.trie is not None:
            host |= describe_languages(stage.language.languages, experience)
        if len(rounds) > 1:
            preferred = np.argsort(~mixed_groups(experience.scores.correct, stage.group_size), kind="stable")
            experience = select(experience, np.sort(preferred[: stage.prompts_per_step]), stage.group_size)
        return experience, host

    def _rollouts(self, weights: Params, step: int, attempt: int) -> tuple[Experience, float]:
        """One round: this process's prompts, sampled chunk by chunk while the chunk before is judged on the host."""
        stage = self.stage
        _, blocks = self.layout.block
        examples, prompts = next(self.batches)
        waiting = len(examples) * stage.group_size
        chunk = (stage.sampling.prompts_per_chunk or stage.prompts_per_step) // blocks
        seed_words = self.layout.put(np.array([self.config.seed, SAMPLING_PURPOSE, step, attempt], np.uint32))
        seconds = 0.0

        def sample_chunk(i: int) -> tuple[list[Example], Rollout]:
            part = slice(i * chunk, (i + 1) * chunk)
            self._idle.paused()
            rollout = self.programs.sample(
                weights,
                self.layout.put_rows(jax.tree.map(lambda leaf: leaf[part], prompts)),
                seed_words,
                self.stop_table,
                self.settings,
                self.trie,
                truncates=False,
                group_size=stage.group_size,
                width=stage.sampling.max_completion_tokens,
                tag_width=self.tag_width,
            )
            return examples[part], rollout

        def judge(examples: list[Example], rollout: Rollout) -> Experience:
            nonlocal seconds, waiting
            rollout = processes.local_rows(rollout)
            started = time.perf_counter()
            waiting -= len(rollout.lengths)
            if not waiting:
                self._idle.began(started)
            texts = data.decode_rows(self.tokenizer, rollout.completions, rollout.lengths)
            with jax.transfer_guard("allow"):  # of the user's own: a reward may be a model in jax
                scored = data.scored_texts(self.tokenizer, rollout.prompts, texts)
                scores = data.score_rows(self.reward, scored, examples, stage.group_size)
            seconds += time.perf_counter() - started
            return Experience([example.id for example in examples], rollout, texts, scores)

        return merge(list(data.experience(sample_chunk, len(examples) // chunk, judge))), seconds

    def _sample_records(self, experience: Experience, batch: Batch, step: int) -> list[dict[str, Any]]:
        """The step's first rows for the sample log, one of each of the first groups."""
        logging, G = self.config.logging, self.stage.group_size
        if step % logging.samples_every_steps:
            return []
        records = []
        for q in range(min(logging.samples_per_log, len(experience.ids))):
            row = q * G + q % G
            prompts = experience.rollout.prompts
            records.append(
                {
                    "id": experience.ids[q],
                    "prompt": self.tokenizer.decode([prompts.tokens[q][prompts.mask[q]].tolist()])[0],
                    "completion": experience.texts[row],
                    "reward": float(experience.scores.rewards[row]),
                    "parts": {name: float(part[row]) for name, part in experience.scores.parts.items()},
                    "correct": bool(experience.scores.correct[row]),
                    "truncated": bool(experience.rollout.truncated[row]),
                    "advantage": float(batch.advantages[row, experience.rollout.lengths[row] - 1]),
                    "length": int(experience.rollout.lengths[row]),
                }
            )
        return records

    def close(self) -> None:
        self.batches.close()


def return_freed_pages(params: Params) -> None:
    """Gives the memory of freed arrays back to the system, on CPU, where the C library is glibc and the model is not small.

    It keeps that of the sampling weights, which are many and small, and the update takes a large piece beside it: on
    SmolLM2-135M a peak of 4.3 GB instead of 3.3, for 1 % of a step.
    """
    if jax.default_backend() == "cpu" and sum(leaf.nbytes for leaf in jax.tree.leaves(params)) > MUCH_MEMORY:
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def everyones(experience: Experience, layout: Layout) -> Experience:
    """The experience of all processes, in the order of the prompts: what follows is decided alike everywhere."""
    leaves, structure = jax.tree.flatten(experience.rollout)
    found = layout.gather_blocks((experience.ids, leaves, experience.texts, vars(experience.scores)))
    return merge([Experience(ids, structure.unflatten(own), texts, Scores(**scores)) for ids, own, texts, scores in found])


def merge(rounds: list[Experience]) -> Experience:
    """Several experiences as one."""
    if len(rounds) == 1:
        return rounds[0]

    def join(values: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(values)

    scores = [r.scores for r in rounds]
    timeouts = [np.zeros(len(s.rewards), bool) if s.timeout is None else s.timeout for s in scores]
    return Experience(
        [name for r in rounds for name in r.ids],
        jax.tree.map(lambda *leaves: join(list(leaves)), *(r.rollout for r in rounds)),
        [text for r in rounds for text in r.texts],
        Scores(
            join([s.rewards for s in scores]),
            join([s.correct for s in scores]),
            _join_columns([s.parts for s in scores]),
            join(timeouts),
            _join_columns([s.details for s in scores]),
            None if scores[0].language_rewards is None else join([s.language_rewards for s in scores]),
            None if scores[0].languages is None else join([s.languages for s in scores]),
            None if any(s.plain_rewards is None for s in scores) else join([s.plain_rewards for s in scores]),
        ),
    )


def _join_columns(tables: list[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The columns that all tables have, each table's under the one before."""
    return {name: np.concatenate([t[name] for t in tables]) for name in tables[0] if all(name in t for t in tables)}


def select(experience: Experience, groups: np.ndarray, group_size: int) -> Experience:
    """The experience of the groups numbered int [Q']."""
    rows = (groups[:, None] * group_size + np.arange(group_size)).reshape(-1)
    rollout, scores = experience.rollout, experience.scores
    picked = jax.tree.map(lambda leaf: leaf[rows], rollout._replace(prompts=None))
    return Experience(
        [experience.ids[q] for q in groups],
        picked._replace(prompts=jax.tree.map(lambda leaf: leaf[groups], rollout.prompts)),
        [experience.texts[b] for b in rows],
        Scores(**jax.tree.map(lambda column: column[rows], vars(scores))),
    )


def assemble(rollout: Rollout, scores: Scores, stage: GRPOStage) -> Batch:
    """The batch to learn from, on the host, trimmed to the width bucket of its longest row.

    Filters read raw correctness; the overlong penalty is added to the reward before the baseline is taken (DAPO). With
    loss.language=own (`credit.py`) filters leave the tags in: what a language is worth shows between groups as well.
    """
    loss, limit, G = stage.loss, stage.sampling.max_completion_tokens, stage.group_size
    rewards = scores.rewards
    if loss.overlong == "penalty":
        rewards = rewards + overlong_penalty(rollout.lengths, limit, loss.overlong_tokens)
    advantages = group_advantages(rewards, G, loss.advantage)
    rollout = data.trim(rollout, data.completion_width(rollout.lengths, limit))
    mask = rollout.action_mask
    learn = np.ones((len(rewards), 1), bool)
    if loss.filter != "none":
        learn &= np.repeat(mixed_groups(scores.correct, G), G)[:, None]
    per_token, values = advantages[:, None], None
    if loss.language == "own":
        learn = learn | tag_mask(rollout.tags, mask.shape[1])
        content = rewards if scores.language_rewards is None else rewards - scores.language_rewards
        per_token, values = _own_advantages(rollout, advantages, content, stage)
    if loss.overlong == "mask":
        learn = learn & ~rollout.truncated[:, None]
    return Batch(rollout, per_token * mask, mask & learn, language_values=values)


def learning_minibatches(loss_mask: np.ndarray, num_minibatches: int, group_size: int) -> np.ndarray:
    """Which minibatches (`update.split_prompts`) of loss_mask bool [B, C] have a token to learn from, bool [num_minibatches].

    Without one there is no gradient, but the optimiser would go on by its momentum.
    """
    return loss_mask.any(1).reshape(-1, num_minibatches, group_size).any((0, 2))


def _own_advantages(
    rollout: Rollout, advantages: np.ndarray, content: np.ndarray, stage: GRPOStage
) -> tuple[np.ndarray, np.ndarray | None]:
    """Advantages f32 [B, C] with loss.language=own, and the values f32 [Q, languages] where a tag learns from all actions.

    advantages: those of all the rewards; content: the rewards without those of the language; both [B].
    """
    loss, G, language = stage.loss, stage.group_size, rollout.tags.language
    values = language_values(advantages, language, rollout.prompts.allowed.shape[1], G, loss.language_shrinkage)
    thinking = thinking_advantages(content, language, G, loss.advantage, loss.language_shrinkage)
    tag = tag_mask(rollout.tags, rollout.action_mask.shape[1])
    if stage.language.mode == "constrained":
        return np.where(tag, np.float32(0), thinking[:, None]), values[:, :-1]
    of_choice = values[np.arange(len(language)) // G, language]  # no tag is −1: the last column
    return np.where(tag, of_choice[:, None], thinking[:, None]), None


def describe(experience: Experience, group_size: int) -> dict[str, float]:
    """The host's metrics of what was sampled; none of a reward's own takes the name of another."""
    scores, rollout = experience.scores, experience.rollout
    timeout = 0.0 if scores.timeout is None else float(scores.timeout.mean())
    metrics = {
        "reward/mean": float(scores.rewards.mean()),
        "reward/correct": float(scores.correct.mean()),
        "reward/timeout": timeout,
        "reward/nonfinite": float((~np.isfinite(scores.rewards)).sum()),
        "rollout/sampled_tokens": float(rollout.lengths.sum()),
        "rollout/length_tokens": float(rollout.lengths.mean()),
        "rollout/truncated": float(rollout.truncated.mean()),
        "rollout/mixed_groups": float(mixed_groups(scores.correct, group_size).mean()),
    }
    if scores.plain_rewards is not None:
        metrics["reward/plain_max"] = float(scores.plain_rewards.max())
        metrics["reward/plain_min"] = float(scores.plain_rewards.min())
    own = {f"reward/{name}": float(part.mean()) for name, part in scores.parts.items()}
    own |= {name: float(detail.mean()) for name, detail in scores.details.items()}
    return own | metrics


def describe_languages(codes: tuple[str, ...], experience: Experience) -> dict[str, float]:
    """What was chosen among the thinking languages, and how each fared.

    Shares (of none too), their entropy in nats, and for every language that was chosen the means of reward, correctness, length
    and of the reward's `language/…` details.
    """
    scores, rollout = experience.scores, experience.rollout
    chosen = rollout.tags.language
    shares = np.array([(chosen == place).mean() for place in range(-1, len(codes))])
    present = shares[shares > 0]
    metrics = {f"language/share/{code}": float(share) for code, share in zip(("none", *codes), shares, strict=True)}
    metrics["language/choice_entropy"] = float(-(present * np.log(present)).sum())
    columns = {"reward": scores.rewards, "correct": scores.correct, "length_tokens": rollout.lengths}
    columns |= {
        name.removeprefix("language/"): values for name, values in scores.details.items() if name.startswith("language/")
    }
    for place, code in enumerate(codes):
        rows = chosen == place
        if rows.any():
            metrics |= {f"language/{name}/{code}": float(values[rows].mean()) for name, values in columns.items()}
    return metrics


def _check_shards(stage: GRPOStage, shards: int) -> None:
    """Refuses step sizes that the mesh cannot split."""
    sizes = {
        "prompts_per_step / (num_minibatches·num_microbatches)": stage.prompts_per_step
        // (stage.num_minibatches * stage.num_microbatches),
        "sampling.prompts_per_chunk": stage.sampling.prompts_per_chunk or stage.prompts_per_step,
    }
    for name, size in sizes.items():
        if size % shards:
            raise UserError(
                f"{stage.name}: {name} = {size} cannot be split over {shards} row shards (mesh data·fsdp); "
                f"make it a multiple of {shards}"
            )


def reference_folder(run_dir: str | Path, start: Stage) -> Path:
    """Where the KL reference that was taken at the start of a stage is kept."""
    return storage.at(run_dir) / "reference" / start.name
