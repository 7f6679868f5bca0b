#!/usr/bin/env python3
"""Shared or own credit for the thinking language, on a bandit where all is known: `tools/language_credit.py` (about a minute).

Prints a table and draws configs/language_credit.svg. The advantages are those of training (`jaxrl_ml/credit.py`), the ascent is
by hand: 8 prompts of 8 rows; 4 languages worth 0.65, 0.5, 0.45 and 0.3; thinking of 8 to 128 tokens that adds up to ±0.15;
token-mean aggregation; every step of the same norm. Noise is the gradient's variance over its squared mean, of each prompt's
language logits (uniform, and with 80 % on the best) and of the thinking's. Steps to best: until the best languages have 0.9 of
the probability, 251 where they never do; median [range] of 20 seeds. Then means ± 95 %: reward over the run, reward at its end,
skill at its end (the share of good tokens).

    different lengths, 0/1 rewards      tag  80 %  thinking  steps to best    reward    at the end    skill
      shared                           7.08  9.43    63.8    109 [93, 126]    0.646       0.703       0.701
      own, sampled, κ = 0              6.87  9.42    72.5     36 [30, 43]     0.661       0.699       0.666
      own, sampled                     4.01  5.63    63.1     34 [27, 43]     0.660       0.696       0.657
      own, all actions                 3.05  2.30    63.1     33 [27, 43]     0.665       0.708       0.700

What it shows, and what it does not:

1. With one best language it is found in a third to three quarters of the steps, soonest where lengths differ. That is the tag's
   own aggregation: without pooling (κ = 0) the tag's noise is that of `shared`, as the identity says, and it is as fast.
2. All actions with pooling make the tag's gradient 2 to 4 times less noisy with 0/1 rewards, 8 to 16 times with exact ones. It
   shows late: less of a step is noise of a choice already made, and more is left for the thinking.
3. The pooled baseline makes the thinking's gradient 3 times less noisy with exact rewards and changes nothing with 0/1 rewards;
   there the plain mean of the own language (κ = 0) is 14 to 22 % noisier than `shared`.
4. The price: at a fixed step norm, what moves the tag does not move the thinking. Over the run `own` earns more, or as much. At
   its end all actions have the reward and the skill of `shared`, while sampled has 0.02 to 0.04 less skill for as much reward
   (where prompts differ, 5, both have less skill for more reward).
   With language_coef = 1 reward and skill at the end are both below `shared` with 0/1 rewards: hence the default of 0.1.
5. κ is a bias. Where two prompts of eight have the values reversed, κ = 4 with all actions ends below `shared`: what was not
   tried for those prompts is valued as for the others. κ = 1 ends above it, hence that default; κ = 0 is best there.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from jaxrl_ml.advantages import group_advantages
from jaxrl_ml.analysis.plots import COLOURS, INK, PALE, to_svg
from jaxrl_ml.config import LossConfig
from jaxrl_ml.credit import language_values, thinking_advantages

Q, G, K, SLOTS = 8, 8, 4, 8  # prompts, rows a prompt, languages, logits of the thinking
KIND = "grpo"
STEP_NORM, STEPS = 0.15, 250
SKILL = 0.3  # what perfect thinking adds to the reward


@dataclass(frozen=True)
class World:
    """What each language is worth to each prompt, how long it thinks, and whether the reward is 0 or 1 with that mean."""

    values: np.ndarray  # [Q, K]
    lengths: np.ndarray  # int [K], multiples of SLOTS
    noisy: bool


@dataclass(frozen=True)
class Arm:
    """A way to give credit; the defaults are those of `LossConfig`."""

    name: str
    own: bool = True
    all_actions: bool = False
    kappa: float = LossConfig.language_shrinkage
    coef: float = LossConfig.language_coef


@dataclass
class Policy:
    """A language from logits that all prompts share plus logits of the prompt's own; then thinking tokens, good or bad."""

    shared: np.ndarray  # [K]
    own: np.ndarray  # [Q, K]
    thinking: np.ndarray  # [SLOTS]; token t is good with probability sigmoid(thinking[t % SLOTS])

    @classmethod
    def fresh(cls, shared: np.ndarray | None = None) -> Policy:
        return cls(np.zeros(K) if shared is None else shared, np.zeros((Q, K)), np.zeros(SLOTS))

    def languages(self) -> np.ndarray:
        """π(l) of each prompt [Q, K]."""
        logits = self.shared[None] + self.own
        weights = np.exp(logits - logits.max(1, keepdims=True))
        return weights / weights.sum(1, keepdims=True)

    def skill(self) -> np.ndarray:
        return 1 / (1 + np.exp(-self.thinking))

    def reward(self, world: World) -> float:
        """The expected reward."""
        return float((self.languages() * world.values).sum(1).mean() + SKILL * (self.skill().mean() - 0.5))


def gradient(world: World, arm: Arm, policy: Policy, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One step's gradient of the reward: for each prompt's language logits [Q, K], and the thinking's [SLOTS]; token-mean."""
    pi, good = policy.languages(), policy.skill()
    group = np.repeat(np.arange(Q), G)
    language = (rng.random((Q * G, 1)) > pi[group].cumsum(1)).sum(1).clip(0, K - 1)
    length = world.lengths[language]
    per_slot = length[:, None] // SLOTS
    counts = rng.binomial(per_slot, good[None], (Q * G, SLOTS))
    rewards = world.values[group, language] + SKILL * (counts.sum(1) / length - 0.5)
    if world.noisy:
        rewards = (rng.random(Q * G) < rewards).astype(float)

    advantages = group_advantages(rewards, G, KIND).astype(float)
    choice_score = (np.eye(K)[language] - pi[group]).reshape(Q, G, K)
    thinking_score = counts - per_slot * good[None]
    if not arm.own:  # the tag is one token among the row's
        tokens = (length + 1).sum()
        return (advantages.reshape(Q, G, 1) * choice_score).sum(1) / tokens, advantages @ thinking_score / tokens
    values = language_values(advantages, language, K, G, arm.kappa).astype(float)
    if arm.all_actions:
        values = values[:, :K]
        tag = pi * (values - (pi * values).sum(1, keepdims=True)) / Q
    else:
        tag = (values[group, language].reshape(Q, G, 1) * choice_score).sum(1) / (Q * G)
    thinking = thinking_advantages(rewards, language, G, KIND, arm.kappa).astype(float) @ thinking_score / length.sum()
    return arm.coef * tag, thinking


def learn(world: World, arm: Arm, seed: int, steps: int = STEPS) -> tuple[np.ndarray, np.ndarray, float]:
    """Ascends in steps of one norm; after each, the best languages' probability and the expected reward, and the last skill."""
    rng, policy = np.random.default_rng([seed, 1]), Policy.fresh()
    best, reward = np.zeros(steps), np.zeros(steps)
    for step in range(steps):
        tag, thinking = gradient(world, arm, policy, rng)
        moves = tag.sum(0), tag, thinking
        scale = STEP_NORM / (np.sqrt(sum((move**2).sum() for move in moves)) + 1e-12)
        policy.shared, policy.own, policy.thinking = (
            value + scale * move for value, move in zip((policy.shared, policy.own, policy.thinking), moves, strict=True)
        )
        best[step] = policy.languages()[np.arange(Q), world.values.argmax(1)].mean()
        reward[step] = policy.reward(world)
    return best, reward, float(policy.skill().mean())


def steps_to_best(best: np.ndarray) -> int:
    """The first step at which the best languages have 0.9 of the probability; one more than there are where they never do."""
    return int(np.argmax(best >= 0.9)) + 1 if (best >= 0.9).any() else len(best) + 1


def noise(world: World, arm: Arm, policy: Policy, draws: int = 1500) -> tuple[float, float]:
    """Variance over squared mean of the gradient, of the languages' logits and of the thinking's (unbiased in the mean)."""
    rng = np.random.default_rng(7)
    samples = [gradient(world, arm, policy, rng) for _ in range(draws)]
    found = []
    for part in zip(*samples, strict=True):
        gradients = np.stack([g.reshape(-1) for g in part])
        variance = gradients.var(0, ddof=1).sum()
        found.append(variance / max((gradients.mean(0) ** 2).sum() - variance / draws, 1e-12))
    return found[0], found[1]


def worlds() -> dict[str, World]:
    values = np.tile([0.65, 0.5, 0.45, 0.3], (Q, 1))
    reversed_ = np.where(np.arange(Q)[:, None] < Q * 3 // 4, values, values[:, ::-1])
    equal, different = np.full(K, 32), np.array([128, 32, 16, 8])
    return {
        "equal lengths, exact rewards": World(values, equal, False),
        "different lengths, exact rewards": World(values, different, False),
        "equal lengths, 0/1 rewards": World(values, equal, True),
        "different lengths, 0/1 rewards": World(values, different, True),
        "values reversed on 2 of 8 prompts": World(reversed_, different, True),
    }


ARMS = (
    Arm("shared", own=False),
    Arm("own, sampled, κ = 0", kappa=0.0),
    Arm("own, sampled"),
    Arm("own, all actions", all_actions=True),
    Arm("own, all, κ = 4", all_actions=True, kappa=4.0),
    Arm("own, all, coef 1", all_actions=True, coef=1.0),
)
DRAWN = [arm for arm in ARMS if arm.name in ("shared", "own, sampled", "own, all actions")]
SKEWED = np.log([0.8, 0.1, 0.06, 0.04])  # where the best language has been found


def row(world: World, arm: Arm, runs: list[tuple[np.ndarray, np.ndarray, float]]) -> str:
    """The arm's line of the table."""
    tag, thinking = noise(world, arm, Policy.fresh())
    late, _ = noise(world, arm, Policy.fresh(SKEWED))
    hits = [steps_to_best(best) for best, _, _ in runs]
    rewards = np.stack([reward for _, reward, _ in runs])
    columns = (rewards.mean(1), rewards[:, -1], np.array([skill for *_, skill in runs]))
    spreads = "  ".join(f"{x.mean():.3f} ± {1.96 * x.std(ddof=1) / len(x) ** 0.5:.3f}" for x in columns)
    return f"{tag:5.2f} {late:5.2f} {thinking:6.1f}  {np.median(hits):4.0f} [{min(hits)}, {max(hits)}]".ljust(36) + spreads


def figure(curves: dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray, float]]]) -> Figure:
    """A column for each world: the best languages' probability and the expected reward over steps: mean and range."""
    names = list(dict.fromkeys(world for world, _ in curves))
    drawn = Figure(figsize=(3.1 * len(names), 5.4), layout="constrained")
    all_axes = drawn.subplots(2, len(names), sharex=True, sharey="row")
    steps = np.arange(0, STEPS, 6)
    for (world, arm), runs in curves.items():
        column, colour = names.index(world), COLOURS[[a.name for a in DRAWN].index(arm)]
        for line, (axes, what) in enumerate(zip(all_axes[:, column], ("π(best language)", "expected reward"), strict=True)):
            values = np.stack([run[line] for run in runs])[:, steps]
            axes.fill_between(steps + 1, values.min(0), values.max(0), color=colour, alpha=0.12, linewidth=0)
            axes.plot(steps + 1, values.mean(0), color=colour, linewidth=1.8, label=arm)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=8, labelcolor=INK)
            if column == 0:
                axes.set_ylabel(what, color=INK, fontsize=9)
        all_axes[0, column].set_title(world, loc="left", fontsize=9, color=INK)
        all_axes[1, column].set_xlabel("step", color=PALE, fontsize=8)
    all_axes[0, 0].legend(fontsize=8, frameon=False, labelcolor=INK)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "configs" / "language_credit.svg")
    arguments = parser.parse_args()
    curves = {}
    print(f"{'':22}noise: tag, at 80 %, thinking; steps to best; reward over the run, at its end; skill".rstrip())
    for world_name, world in worlds().items():
        print(world_name)
        for arm in ARMS:
            runs = [learn(world, arm, seed) for seed in range(arguments.seeds)]
            if arm in DRAWN:
                curves[world_name, arm.name] = runs
            print(f"  {arm.name:20}{row(world, arm, runs)}", flush=True)
    arguments.out.write_text(to_svg(figure(curves)))


if __name__ == "__main__":
    main()
