"""What a reward function returns as checked `Scores`, and several named rewards as one.

In: completions and their examples. Out: `Scores`.

A plain array r says nothing of what is correct. It is read as `correct = r >= 1`: this file is the only one with that rule. The
values are kept in `Scores.plain_rewards`, so that the run can warn where the rule does not fit them (`analysis/learning.py`).

Several named rewards are added up, and the one that `correct` names decides what is correct and what timed out:

    reward={"answer": (MathsReward(), 1.0), "format": (boxed, 0.2)}, correct="answer"

The weighted terms are the `parts` of the result, logged as `reward/answer` and `reward/format`: they add up to the reward, as
those of all our rewards do. (TRL logs its reward functions before weighting.) The values before weighting are `details`, logged
as `unweighted/answer` and `unweighted/format`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxrl_ml.config import Evaluation, GRPOStage
from jaxrl_ml.types import Example, Reward, Scores, StepReward, UserError, one_line, require


def reward_of(owner: str, stage: GRPOStage | Evaluation) -> Reward:
    """The reward of a stage or an evaluation as one function; it is a `StepReward` where any of its rewards is one.

    Raises UserError where the reward cannot be called.
    """
    reward = stage.reward
    if not isinstance(reward, Mapping):
        require(callable(reward), f"{owner}: reward={reward!r:.60} cannot be called; give a function of texts and examples")
        return reward
    terms = {name: term if isinstance(term, tuple) else (term, 1.0) for name, term in reward.items()}
    depends_on_step = any(isinstance(function, StepReward) for function, _ in terms.values())
    kind = CombinedStepReward if depends_on_step else CombinedReward
    return kind(terms, stage.correct or next(iter(terms)))


def as_scores(result: Any, num_rows: int, owner: str) -> Scores:
    """Converts the result of the reward `owner` for B = num_rows texts into Scores with checked columns.

    A plain array r becomes Scores(rewards=r, correct=r >= 1, plain_rewards=r). Rewards that are not finite are kept for the
    caller to count. Raises UserError where a column does not have one value a text.
    """

    def column(label: str, values: Any, allowed: str, dtype: type) -> np.ndarray:
        try:
            values = np.asarray(values)
        except ValueError as error:  # lists of unequal lengths
            raise UserError(
                f"{owner} returned {label} that are no array ({one_line(error)}); return one number per text"
            ) from error
        if values.shape != (num_rows,) or values.dtype.kind not in allowed:
            raise UserError(
                f"{owner} returned {label} of shape {values.shape} and type {values.dtype} for {num_rows} texts; "
                f"return one {'bool' if dtype is bool else 'number'} per text"
            )
        with np.errstate(over="ignore"):
            return values.astype(dtype)

    def optional(label: str, values: Any, allowed: str, dtype: type) -> np.ndarray | None:
        return None if values is None else column(label, values, allowed, dtype)

    if not isinstance(result, Scores):
        rewards = column("rewards", result, "biuf", np.float32)
        return Scores(rewards=rewards, correct=rewards >= 1, plain_rewards=rewards)
    for label, columns in (("parts", result.parts), ("details", result.details)):
        require(isinstance(columns, Mapping), f"{owner} returned {label}={columns!r:.40}; give a mapping of names to arrays")
    for label in ("step", "stage"):  # keys of every line of metrics.jsonl
        require(label not in result.details, f"{owner} has a detail {label!r}, which no metric can be called; rename it")
    return Scores(
        rewards=column("rewards", result.rewards, "biuf", np.float32),
        correct=column("correct", result.correct, "b", bool),
        parts={name: column(f"part {name!r}", values, "biuf", np.float32) for name, values in result.parts.items()},
        timeout=optional("timeout", result.timeout, "b", bool),
        details={name: column(f"detail {name!r}", values, "biuf", np.float32) for name, values in result.details.items()},
        language_rewards=optional("language_rewards", result.language_rewards, "biuf", np.float32),
        languages=optional("languages", result.languages, "i", np.int32),
        plain_rewards=optional("plain_rewards", result.plain_rewards, "biuf", np.float32),
    )


@dataclass(frozen=True)
class CombinedReward:
    """The weighted sum of named rewards: `CombinedReward({"answer": (MathsReward(), 1.0), "format": (boxed, 0.2)}, "answer")`.

    rewards: functions of texts and examples, each with its weight; a negative weight makes a penalty, and 0 only logs.
    correct: the name of the reward whose `correct`, `timeout` and `plain_rewards` the result has.
    """

    rewards: Mapping[str, tuple[Reward, float]]
    correct: str

    def __call__(self, texts: Sequence[str], examples: Sequence[Example]) -> Scores:
        """Scores B completions.

        `parts` are the weighted rewards and add up to `rewards`. `details` are, for each NAME: `unweighted/NAME`, its values;
        `unweighted/NAME/PART`, its parts; `correct/NAME` and `timeout/NAME` where it returns Scores and another decides;
        `language_rewards/NAME` where it has them; and its own details, under their own names, or as `NAME/DETAIL` where that
        is taken. `language_rewards` are the weighted sum. Raises UserError for a reward that does not return one value a text,
        and where two rewards return `languages`.
        """
        members = {}
        for name, (function, _) in self.rewards.items():
            called = getattr(function, "__qualname__", type(function).__qualname__)
            members[name] = as_scores(function(texts, examples), len(texts), f"reward {name!r} ({called})")
        counting = [name for name, scores in members.items() if scores.languages is not None]
        require(
            len(counting) <= 1,
            f"the rewards {', '.join(counting)} all count rows by thinking language (Scores.languages); name one of them",
        )
        details = {label: values for name, scores in members.items() for label, values in self._columns(name, scores).items()}
        for name, scores in members.items():
            for label, values in scores.details.items():
                details[f"{name}/{label}" if label in details else label] = values
        return self._total(
            {name: scores.rewards for name, scores in members.items()},
            details,
            dataclasses.replace(members[self.correct], languages=members[counting[0]].languages if counting else None),
        )

    def _columns(self, name: str, scores: Scores) -> dict[str, np.ndarray]:
        """The details that keep the Scores of one reward, other than its own details."""
        columns = {f"unweighted/{name}": scores.rewards}
        columns |= {f"unweighted/{name}/{part}": values for part, values in scores.parts.items()}
        if scores.language_rewards is not None:
            columns[f"language_rewards/{name}"] = scores.language_rewards
        says_what_is_correct = scores.plain_rewards is None or isinstance(self.rewards[name][0], StepReward)
        if name != self.correct and says_what_is_correct:
            columns[f"correct/{name}"] = scores.correct.astype(np.float32)
            if scores.timeout is not None:
                columns[f"timeout/{name}"] = scores.timeout.astype(np.float32)
        return columns

    def _total(self, rewards: Mapping[str, np.ndarray], details: Mapping[str, np.ndarray], verdict: Scores) -> Scores:
        """The combined Scores; `verdict` has the columns of the reward that decides what is correct."""
        weights = {name: np.float32(weight) for name, (_, weight) in self.rewards.items()}
        with np.errstate(invalid="ignore", over="ignore"):  # the caller counts rewards that are not finite
            # A weight of 0 keeps even NaN out of the sum.
            parts = {
                name: rewards[name] * weight if weight else np.zeros_like(rewards[name]) for name, weight in weights.items()
            }
            total = np.sum(list(parts.values()), axis=0)
        by_language = [
            weight * details[f"language_rewards/{name}"]
            for name, weight in weights.items()
            if f"language_rewards/{name}" in details
        ]
        return dataclasses.replace(
            verdict,
            rewards=total,
            parts=parts,
            details=details,
            language_rewards=np.sum(by_language, axis=0) if by_language else None,
        )


class CombinedStepReward(CombinedReward):
    """A CombinedReward of which some reward has terms that depend on all rows of a step (`types.StepReward`)."""

    def over_step(self, scores: Scores) -> Scores:
        """The scores of all rows of a step, with those terms taken anew."""
        details = dict(scores.details)
        for name, (function, _) in self.rewards.items():
            if not isinstance(function, StepReward):
                continue
            before = self._member(name, scores)
            after = function.over_step(before)
            for label, values in after.details.items():
                if values is not before.details.get(label):
                    details[f"{name}/{label}" if f"{name}/{label}" in details else label] = values
            details |= self._columns(name, after)
            if name == self.correct:
                scores = dataclasses.replace(scores, correct=after.correct, timeout=after.timeout)
        return self._total({name: details[f"unweighted/{name}"] for name in self.rewards}, details, scores)

    def _member(self, name: str, scores: Scores) -> Scores:
        """The Scores of one reward, read from the combined ones; its details are among those of all rewards."""
        details, decides = scores.details, name == self.correct
        timeout = scores.timeout if decides else details.get(f"timeout/{name}")
        prefix = f"unweighted/{name}/"
        return Scores(
            rewards=details[f"unweighted/{name}"],
            correct=scores.correct if decides else details[f"correct/{name}"] > 0,
            parts={label.removeprefix(prefix): values for label, values in details.items() if label.startswith(prefix)},
            timeout=None if timeout is None else timeout > 0,
            details={
                **details,
                **{label.removeprefix(f"{name}/"): v for label, v in details.items() if label.startswith(f"{name}/")},
            },
            language_rewards=details.get(f"language_rewards/{name}"),
            languages=scores.languages,
        )
