"""The Parallel Scaling Law in miniature: RL on Countdown stated in X parallel languages, tested in languages it never saw.

Command:   python tools/study.py configs/parallel_cpu.py
One arm:   python -m jaxrl_ml.train configs/parallel_cpu.py --arm x2
Hardware:  CPU, 2 cores

All arms start from one pretrained model: problems stated in one of twelve languages, thought through in the same, untagged. RL
then has the first X of eight training languages, English first; four languages are in no arm's RL. The language of thinking is
asked for by the prompt's and paid for by the reward; the evaluation forces it by how its thinking starts. Arms:

    base         pretraining alone: what the transferability index compares with
    x1 … x8      growing budget, as in the paper: the same problems in each of X languages, once each
    fixed_x2, 4  fixed budget: as many examples, steps and tokens as x1 has

Result: accuracy in the four languages of no RL, 256 problems × 4 each, thinking forced, in % with 95 % intervals over problems
and, where there are three, runs; the pretrained model has 19.1. Figure: `parallel_cpu.svg`.

    X    growing               fixed
    1    22.3 (18.1 to 26.3)   the same three runs
    2    22.9 (19.0 to 27.0)   21.7 (18.2 to 25.4)
    3    26.5 (22.4 to 30.6)
    4    28.3 (23.7 to 33.1)   21.3 (17.5 to 25.4)
    6    24.0 (19.6 to 28.5)
    8    28.0 (23.5 to 32.6)

    law on X ≥ 2, growing: α = 0.219, β = 0.111 (0.03 to 0.19 over problems; −0.05 to 0.27 by how the points scatter), R² 0.38;
    as good as a + b·ln X (AICc −41.3, −41.4); leap f(2) − f(1) 0.7 points (−2.3 to 3.5); gap α − f(1) −0.4 (−3.6 to 2.9)
    fixed: β = −0.03 (−0.21 to 0.15); growing − fixed at X = 4: 7.0 points (3.2 to 10.7), at X = 2: 1.2 (−1.1 to 3.6)
    index (MTI), growing, X = 1, 2, 3, 4, 6, 8: 0.51, 0.71, 0.84, 0.79, 0.82, 0.82; at X = 1 its interval is −0.7 to 2.0

What it says. Accuracy in languages that were never trained grows with the number of training languages where the examples grow
with it, and not at all where their number is fixed: what looks like a law of languages is here one of steps. There is no First-
Parallel Leap and no gap. What is learnt in any language is learnt in all, from X = 1 on: here thinking in another language is
the same arithmetic between other words. One run each above X = 2, and the run at X = 6 ends below those at 3 and 4: seeds vary
by 2 points at X = 1 (20.2, 22.6, 24.1), so that β is not told from 0 by the points.

Off-target thinking is below 1 % in all languages together, but for 4.3 % at X = 4 and 9.5 % at X = 8, and there it is untrained
languages that give way: after its given opening, a third of the thinking in German is mostly French at X = 4, 84 % of that in
Swahili is in Spanish, French or others at X = 8. Longer RL in more languages costs the languages that it leaves out.

The 15 runs took 68 minutes on one core, other jobs beside them; their evaluations about 20 more.
"""

from __future__ import annotations

from typing import Any

from jaxrl_ml.config import (
    CheckpointConfig,
    Config,
    Evaluation,
    GRPOStage,
    LanguageConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    SamplingConfig,
    SFTStage,
)
from jaxrl_ml.languages.phrases import countdown_problem, pieces
from jaxrl_ml.rewards.consistency import ConsistencyReward
from jaxrl_ml.rewards.countdown import countdown_reward
from jaxrl_ml.tasks.countdown import Countdown
from jaxrl_ml.tasks.mixture import Mixture
from jaxrl_ml.tasks.parallel import InLanguage, Parallel, stated_in
from jaxrl_ml.tasks.traces import Traces
from jaxrl_ml.types import Example

TRAIN = ("en", "zh", "es", "ru", "ar", "hi", "fr", "th")
TEST = ("de", "sw", "ja", "te")
UNTAGGED = "<think>"
TRACE = ("countdown.first", "countdown.then", "countdown.done")
NUM_PROBLEMS, PROMPTS_PER_STEP = 960, 16


def state(example: Example) -> str:
    """The problem in the example's language."""
    return countdown_problem(example.language, example.fields["numbers"], example.fields["target"])


def vocabulary() -> tuple[str, ...]:
    """Numbers, operators, and the texts between the slots of the phrases, each a token: a trace is as long in any language."""
    tokens = [*map(str, range(100)), *"+-*/() ", " = ", " + ", " - ", " * ", " / ", ", ", UNTAGGED]
    tokens += ["</think>\n<answer> ", " </answer>", *pieces(("countdown.problem", *TRACE), TRAIN + TEST)]
    return tuple(dict.fromkeys(tokens))


problems = Countdown(num_numbers=(3,), max_number=20, size=NUM_PROBLEMS)
# Each language has problems of its own: the same ones in twelve languages would be learnt by heart.
demonstrated = [
    Traces(InLanguage(Countdown(num_numbers=(3,), max_number=20, size=720, seed=1 + i), code), (code,), UNTAGGED)
    for i, code in enumerate(TRAIN + TEST)
]
held_out = stated_in(Countdown(num_numbers=(3,), max_number=20, split="test"), TRAIN + TEST)
forced = LanguageConfig("forced", TRAIN + TEST, tuple(UNTAGGED + pieces(TRACE, (code,))[0] for code in TRAIN + TEST))
sampling = SamplingConfig(max_prompt_tokens=16, max_completion_tokens=48)


def pretraining() -> SFTStage:
    return SFTStage(
        Mixture(demonstrated, [1.0] * len(demonstrated)),
        name="pretraining",
        num_steps=600,
        batch_size=16,
        sequence_length=256,
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=20, schedule="cosine", final_fraction=0.1),
    )


def reinforced(num_languages: int, budget: str) -> GRPOStage:
    task = Parallel(stated_in(problems, TRAIN), num_languages, budget)
    return GRPOStage(
        task,
        ConsistencyReward(countdown_reward, TRAIN + TEST),
        num_steps=len(task) // PROMPTS_PER_STEP,
        prompts_per_step=PROMPTS_PER_STEP,
        group_size=16,
        num_microbatches=2,
        sampling=sampling,
        loss=LossConfig(clip_high=0.28),
        optimizer=OptimizerConfig(learning_rate=4e-4, warmup_steps=8),
    )


def experiment(stage: SFTStage | GRPOStage, **start: Any) -> Config:
    evaluation = Evaluation(
        Parallel(held_out, len(held_out)),
        ConsistencyReward(countdown_reward, TRAIN + TEST, language=forced),
        name="forced",
        num_prompts=len(held_out) * 64,
        samples_per_prompt=4,
        prompts_per_batch=256,
        sampling=sampling,
        language=forced,
    )
    return Config(
        run_dir="runs/parallel_cpu",
        prompt_format=state,
        stages=(stage,),
        evaluations=(evaluation,),
        eval_every_steps=120,
        checkpoint=CheckpointConfig(every_steps=120, keep=1),
        **start,
    )


model = ModelConfig(family="qwen3", num_layers=2, embed_dim=128, mlp_dim=384, num_heads=4, num_kv_heads=4, head_dim=32)
# What tools/study.py is to do: what to run first, how often, and then.
first = "base"  # which the others start from, by tools/study.py
seeds = {"x3": 1, "x4": 1, "x6": 1, "x8": 1, "fixed_x4": 1}  # three of the others
evaluate = ("--num-prompts", str(len(held_out) * 256))  # of each finished run, by tools/study.py
arms = {first: experiment(pretraining(), model=model, tokenizer=vocabulary())}
start = {"init_from": f"runs/parallel_cpu/{first}-0"}
arms |= {f"x{x}": experiment(reinforced(x, "growing"), **start) for x in (1, 2, 3, 4, 6, 8)}
arms |= {f"fixed_x{x}": experiment(reinforced(x, "fixed"), **start) for x in (2, 4)}


def runs(arm: str) -> str:
    return ",".join(f"runs/parallel_cpu/{arm}-{seed}" for seed in range(seeds.get(arm, 3)))


growing = [f"{x}={runs(f'x{x}')}" for x in (1, 2, 3, 4, 6, 8)]
fixed = [f"1={runs('x1')}", *(f"{x}={runs(f'fixed_x{x}')}" for x in (2, 4))]
analyze = ("scaling", "--growing", *growing, "--fixed", *fixed, "--base", f"runs/parallel_cpu/{first}-0")
analyze += ("--train", *TRAIN, "--test", *TEST, "--out", "runs/parallel_cpu")
