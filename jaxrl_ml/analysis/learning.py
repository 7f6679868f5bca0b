"""Warnings about a run that does not learn, or that counts the wrong completions as correct.

In: the metrics of one step after the other, as `metrics.jsonl` has them. Out: sentences for the user. A run that learns nothing
is no error, and ends with status 0: without a warning it can go on for hours. Three things are watched:

1. Steps from which nothing is learnt: all rewards of each group are equal, no row is left in the loss, or the gradient is zero.
2. Steps in which no group has both right and wrong completions, so that only other parts of the reward are learnt.
3. Rewards that return a plain array whose values do not fit the rule "1 or more is correct" (`Scores.plain_rewards`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

PATIENCE = 5  # steps in a row before the first warning; the next ones follow after 10, 20, 40, …
METRIC = "train/steps_without_learning"
_MOSTLY = 0.5  # the share of truncated completions from which they are the likely cause
_NAMED = "reward={'answer': (function, 1.0), 'format': (function, 0.2)}, correct='answer'"


class LearningWatch:
    """Reads the metrics of each step and returns what to warn of.

    stage, steps_without_learning: where a resumed run was. Only this count survives a resume: it is one of the metrics.
    """

    def __init__(self, stage: str = "", steps_without_learning: int = 0) -> None:
        self.steps_without_learning = steps_without_learning
        self._enter(stage)

    def _enter(self, stage: str) -> None:
        self._stage = stage
        self._steps_without_mixed_group = self._steps_below_one = 0
        self._plain_warned: set[str] = set()

    def update(self, stage: str, metrics: Mapping[str, float]) -> list[str]:
        """Counts one step of `stage`, which was no step with non-finite values, and returns the warnings that are due."""
        if stage != self._stage:
            self._enter(stage)
            self.steps_without_learning = 0
        cause = cause_of_no_learning(metrics)
        self.steps_without_learning = self.steps_without_learning + 1 if cause else 0
        texts = [text for text in (self._plain(stage, metrics), self._unmixed(stage, metrics, cause)) if text]
        if _due(self.steps_without_learning):
            texts.append(f"warning: {stage} has learnt nothing for {self.steps_without_learning} steps: {cause}")
        return texts

    def _plain(self, stage: str, metrics: Mapping[str, float]) -> str | None:
        """The warning about a plain reward, once a stage for either way in which it does not fit."""
        low, high = metrics.get("reward/plain_min", 1.0), metrics.get("reward/plain_max", 1.0)
        below = _never_correct(low, high)
        if high >= 1:
            self._steps_below_one = 0
        elif below:  # a step whose rewards are all 0 says nothing and does not end the count
            self._steps_below_one += 1
        kind = "over" if high > 1 else "below"
        if kind in self._plain_warned or (kind == "below" and (not below or self._steps_below_one < PATIENCE)):
            return None
        self._plain_warned.add(kind)
        return plain_reward_warning(stage, low, high)

    def _unmixed(self, stage: str, metrics: Mapping[str, float], cause: str | None) -> str | None:
        """The warning about steps that learn, but not from right and wrong completions."""
        plain_below = metrics.get("reward/plain_max", 1.0) < 1  # `_plain` warns of this one
        unmixed = cause is None and metrics.get("rollout/mixed_groups", 1.0) == 0 and not plain_below
        self._steps_without_mixed_group = self._steps_without_mixed_group + 1 if unmixed else 0
        if not _due(self._steps_without_mixed_group):
            return None
        return (
            f"warning: {stage} has had no group with both right and wrong completions for {self._steps_without_mixed_group} "
            f"steps ({metrics['reward/correct']:.1%} are right), and learns from other parts of the reward only: "
            + (_remedy(metrics) or "take problems of another difficulty, a larger group_size or a higher temperature")
        )


def _due(steps: int) -> bool:
    """Whether a warning is due after so many steps in a row: after 5, 10, 20, 40, …"""
    times, rest = divmod(steps, PATIENCE)
    return rest == 0 and times > 0 and times & (times - 1) == 0


def cause_of_no_learning(metrics: Mapping[str, float]) -> str | None:
    """Why a step taught the policy nothing, and what to do; None where it did teach something."""
    if metrics.get("sft/loss_tokens") == 0:
        return "no token of its demonstrations is in the loss: check that Example.completion holds texts to learn"
    if metrics.get("sft/grad_norm") == 0:
        return "the gradient is exactly zero: check that the demonstrations hold texts that the model does not write already"
    if metrics.get("rollout/advantage_rows") == 0:
        remedy = _remedy(metrics)
        if remedy is not None:
            return remedy
        if metrics.get("rollout/learned_rows") == 0:
            return (
                f"no row is left in the loss: {metrics['rollout/mixed_groups']:.1%} of the groups have both right and wrong "
                f"completions (loss.filter leaves out the others), and {metrics['rollout/truncated']:.1%} of the completions "
                "were cut off (loss.overlong=mask leaves these out): raise sampling.max_completion_tokens, or change "
                "loss.filter and loss.overlong"
            )
        return (
            "the rewards are equal within each group: take problems of another difficulty, a larger group_size or a higher "
            "sampling.temperature"
        )
    if metrics.get("policy/grad_norm") == 0:
        return "the gradient is exactly zero though rewards differ: check loss.clip_low, loss.clip_high and loss.overlong"
    return None


def _remedy(metrics: Mapping[str, float]) -> str | None:
    """What to do where all completions are wrong, or all are right; None where neither holds."""
    if metrics.get("reward/correct") == 1:
        return "all completions are right: give harder problems"
    if metrics.get("reward/correct") != 0:
        return None
    plain = ", right from 1 on" if "reward/plain_max" in metrics else ""
    text = (
        f"no completion is right (mean reward {metrics['reward/mean']:.3g}{plain}): read what the policy writes with "
        "`python -m jaxrl_ml.samples RUN` and compare it with the format that the reward expects; start with SFT on "
        "demonstrations, easier problems, or a larger group_size"
    )
    if metrics.get("rollout/truncated", 0.0) > _MOSTLY:
        text += f"; {metrics['rollout/truncated']:.1%} were cut off: raise sampling.max_completion_tokens"
    return text


def _never_correct(low: float, high: float) -> bool:
    """Whether plain rewards from `low` to `high` say something, but call no completion correct."""
    return high < 1 and (low, high) != (0, 0)


def plain_reward_warning(owner: str, low: float, high: float) -> str | None:
    """What to say of plain rewards from `low` to `high`: None where "1 or more is correct" may be what was meant."""
    if high > 1:
        counted = "so bonuses can make a wrong answer count as correct"
    elif _never_correct(low, high):
        counted = "so no completion is correct"
    else:
        return None
    return (
        f"warning: {owner}: what is correct is read from plain rewards, which are from {low:.3g} to {high:.3g}: 1 or more "
        f"counts as correct, {counted}. Accuracy and filters read this. Return 1 for a right answer, or Scores(rewards, "
        f"correct); what else is rewarded can have a name of its own: {_NAMED}"
    )


def learning_summary(records: Sequence[Mapping[str, object]]) -> list[str]:
    """A sentence for each stage of a run that learnt nothing for PATIENCE steps in a row or longer."""
    counts: dict[str, list[float]] = {}
    for record in records:
        if METRIC in record:
            counts.setdefault(str(record["stage"]), []).append(float(record[METRIC]))
    return [
        f"warning: {stage} learnt nothing in {sum(count > 0 for count in steps):,} of {len(steps):,} steps, "
        f"up to {max(steps):,.0f} in a row"
        for stage, steps in counts.items()
        if max(steps) >= PATIENCE
    ]
