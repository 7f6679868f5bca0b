"""Which skills does RL compose, in miniature: a small model learns Countdown at n = 3 and 4 and is tested up to n = 6.

Command:   python tools/study.py configs/skills_cpu.py
One arm:   python -m jaxrl_ml.train configs/skills_cpu.py --arm balanced
Hardware:  CPU, 2 cores

Demonstrations of n = 2 and 3 show the steps of a solution; GRPO then learns at n = 3 and 4, so that n = 4 is never shown. Arms:

    balanced     as many problems of every canonical pattern, none that the held-out family solves
    uniform      problems by random expression trees, none that the held-out family solves
    everything   balanced, with the held-out family: what its problems are worth where it is not held out

Result, 3 seeds, mean ± standard deviation; accuracy at temperature 1 after the cold start → after RL (pass@8), in %:

               balanced                                  uniform
    n3         22.4 ± 1.7 → 20.9 ± 5.1 (56.5 → 37.2)     16.9 ± 0.6 → 16.5 ± 1.8 (54.9 → 26.0)
    n4          3.9 ± 0.5 → 11.3 ± 1.0 (21.4 → 24.3)      2.8 ± 0.8 →  7.6 ± 0.2 (17.2 → 14.2)
    n5          1.0 ± 0.7 →  1.7 ± 1.6  (7.3 →  7.0)      0.7 ± 0.2 →  0.8 ± 0.4  (4.9 →  3.6)
    n6          0.4 ± 0.3 →  0.3 ± 0.3  (2.8 →  2.4)      0.1 ± 0.1 →  0.1 ± 0.2  (1.0 →  0.7)
    family     0.0 → 0.0, both of its tests              0.1 → 0.0

    everything, one seed: n3 23.9 → 49.8 (69.5 → 57.8), n4 2.2 → 34.2 (12.5 → 43.0), n5 0.4 → 3.3, n6 0.0 → 0.4; the family's
    problems at n = 3: 6.0 → 0.0 (25.0 → 0.0)

    at equal depth, after RL    left-heavy    right-heavy      left-heavy    right-heavy
    n3, depth 2                 23.8 ± 4.3    10.9 ± 8.1       20.5 ± 2.1     2.1 ± 2.5
    n4, depth 3                 12.4 ± 0.5     7.4 ± 3.8        8.7 ± 0.7     2.3 ± 1.1
    n4 balanced, depth 2              10.5 ± 1.1                      8.0 ± 1.3
    everything: n3 47.9 and 56.7, n4 32.5 and 37.5, balanced 37.0

Of the paper's findings (arXiv 2512.01775) these appear here: RL composes what was never demonstrated for a target, n = 4, to
three times the cold start's accuracy, where the family is trained on to fifteen times; patterns are produced after their bases
(92 to 93 % of 526 pairs; p < 0.05 in five runs of six, but most bases are there from the start); and balanced data teach more
at n = 4 than uniform ones, 11.3 against 7.6 (of 13,307 against 9,825 different problems).

These do not. Gains at n = 5 and 6 are within the noise of seeds. Right-heavy is hardest at equal depth in both arms that hold
the family out, in every seed, but easiest in the one that does not: here the order tells which problems were left to learn
from, not how hard a shape is. Balanced does not come before left-heavy at n = 4. An order of mastery is not there (bases first
in 52 % of pairs, p > 0.7). The held-out family is never synthesised, which says little: the arm that was trained on it
unlearns it, too. To hold it out drops every problem that any of its patterns solves, 40 % of those at n = 4, and costs more
than half of the success at n = 3 and 4; why so much was not found out. RL sharpens: pass@8 falls at n = 3 in all arms. Likely
why so little is composed: a 0.4M-parameter model has no pretraining to compose from, and 200 steps are an eighth of the
paper's.

About 15 minutes a run on one core, other jobs beside it.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Sequence
from typing import Any

from jaxrl_ml.config import (
    CheckpointConfig,
    Config,
    Evaluation,
    GRPOStage,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    SamplingConfig,
    SFTStage,
)
from jaxrl_ml.languages.phrases import solution_steps
from jaxrl_ml.rewards.countdown import countdown_reward
from jaxrl_ml.tasks.countdown import Balanced, Countdown, compact
from jaxrl_ml.tasks.countdown.expressions import parse
from jaxrl_ml.tasks.countdown.solver import avoids, family
from jaxrl_ml.tasks.mixture import Mixture
from jaxrl_ml.types import Example, Task

HELD_OUT = ("(A-B)*C",)
COLD_START, RL = {2: 134, 3: 1668}, {3: 1668, 4: 21_529}  # problems that the balanced arm has of each count
RANGES = {"max_number": 10, "test_fraction": 1 / 4}


def demonstrate(example: Example, rng: random.Random) -> str:
    """The steps of the solution, then the solution."""
    steps = ",".join(
        f"{step.left}{step.symbol}{step.right}={step.result}" for step in solution_steps(example.fields["solution"])
    )
    return f"<think>{steps}</think><answer>{example.fields['solution'].replace(' ', '')}</answer>"


@dataclasses.dataclass(frozen=True)
class Aimless(Sequence[Example]):
    """Expressions over the numbers of problems, worked out, where any will do: they teach to write, not to reach a target."""

    problems: Countdown
    exclude: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.problems) // 100

    def __getitem__(self, index: int) -> Example:
        drawn = (self.problems[index * 100 + i] for i in range(100))
        example = next(one for one in drawn if not self._shows(one))
        return dataclasses.replace(
            example, fields={**example.fields, "target": "?"}, completion=demonstrate(example, random.Random(0))
        )

    def _shows(self, example: Example) -> bool:
        """Whether the expression is of an excluded family."""
        pattern = parse(example.fields["solution"]).skill.pattern
        return any(pattern in family(base, len(example.fields["numbers"])) for base in self.exclude)


def balanced(counts: tuple[int, ...], exclude: tuple[str, ...], demonstrate: Any = None) -> Balanced:
    return Balanced(counts, quota=1000, exclude=exclude, demonstrate=demonstrate, **RANGES)


def uniform(sizes: dict[int, int], exclude: tuple[str, ...], demonstrate: Any = None) -> Mixture:
    """So many problems of each count of numbers, by random trees."""
    avoid = functools.partial(avoids, exclude)
    parts = [Countdown((n,), size=size, accept=avoid, demonstrate=demonstrate, **RANGES) for n, size in sizes.items()]
    return Mixture(parts, list(sizes.values()))


def test(name: str, n: int, quota: int, count: int, require: tuple[str, ...] = ()) -> Evaluation:
    task = Balanced((n,), quota, require=require, split="test", **RANGES)
    sampling = SamplingConfig(max_prompt_tokens=2 * n + 4, max_completion_tokens=12 * n, temperature=1.0)
    return Evaluation(
        task,
        countdown_reward,
        name=name,
        num_prompts=count,
        samples_per_prompt=8,
        prompts_per_batch=128,
        sampling=sampling,
        records=True,
    )


def supervised(task: Task, exclude: tuple[str, ...]) -> SFTStage:
    optimizer = OptimizerConfig(learning_rate=2e-3, warmup_steps=20, schedule="cosine", final_fraction=0.1)
    task = Mixture((task, Aimless(Countdown((2, 3, 4, 5, 6), seed=1, **RANGES), exclude)), (1, 1), size=10**6)
    return SFTStage(task, name="cold_start", num_steps=1000, batch_size=16, sequence_length=192, optimizer=optimizer)


def reinforced(task: Task) -> GRPOStage:
    return GRPOStage(
        task,
        countdown_reward,
        num_steps=200,
        prompts_per_step=32,
        group_size=16,
        num_microbatches=4,
        sampling=SamplingConfig(max_prompt_tokens=12, max_completion_tokens=48),
        loss=LossConfig(clip_high=0.28, filter="resample"),
        optimizer=OptimizerConfig(learning_rate=4e-4, warmup_steps=8),
    )


def experiment(demonstrated: Task, problems: Task, exclude: tuple[str, ...]) -> Config:
    return Config(
        run_dir="runs/skills_cpu",
        tokenizer=(*map(str, range(100)), *"+-*/():=,? ", " = ", "<think>", "</think>", "<answer>", "</answer>"),
        model=ModelConfig(family="qwen3", num_layers=2, embed_dim=128, mlp_dim=384, num_heads=4, num_kv_heads=4, head_dim=32),
        prompt_format=compact,
        stages=(supervised(demonstrated, exclude), reinforced(problems)),
        evaluations=(
            test("n3", 3, 10, 128),
            test("n4", 4, 3, 256),
            test("n5", 5, 1, 128),
            test("n6", 6, 1, 96),
            test("family_n3", 3, 64, 48, HELD_OUT),
            test("family_n4", 4, 32, 128, HELD_OUT),
        ),
        eval_every_steps=100,
        checkpoint=CheckpointConfig(every_steps=100, keep=1),
    )


seeds = {"everything": 1}  # three of the others, by tools/study.py
arms = {
    "balanced": experiment(balanced((2, 3), HELD_OUT, demonstrate), balanced((3, 4), HELD_OUT), HELD_OUT),
    "uniform": experiment(uniform(COLD_START, HELD_OUT, demonstrate), uniform(RL, HELD_OUT), HELD_OUT),
    "everything": experiment(balanced((2, 3), (), demonstrate), balanced((3, 4), ()), ()),
}
main = [",".join(f"runs/skills_cpu/{arm}-{seed}" for seed in range(3)) for arm in ("balanced", "uniform")]
analyze = ("skills", *main, "runs/skills_cpu/everything-0", "--out", "runs/skills_cpu")
