"""ExpLang in miniature: a small model chooses the language that it thinks about Countdown in. Four arms and a planted control.

Command:   python tools/study.py configs/explang_cpu.py
One arm:   python -m jaxrl_ml.train configs/explang_cpu.py --arm own
Hardware:  CPU, 2 cores

Problems are stated in English; traces think in six seen languages of four scripts, templated (`languages/phrases.py`). All arms
start from one pretraining, untagged traces in the seen and two unseen languages: a model from random weights cannot otherwise
think in them. Then, as in the paper:

    explang      cold start on tagged traces; exploration, a quarter of the steps, with the diversity reward and without KL;
                 exploitation with the grouped pass and KL
    own          the same with credit for the language apart from the thinking (loss.language=own)
    naive        GRPO on the pretrained model, no cold start, no tags
    controlled   cold start on English traces of the same problems, no tags; then GRPO
    planted      own, but all traces before RL that are not in Russian belong to another problem, and half of the pretraining is
                 in Russian: it is truly better, and a method that works must find it

Result, 3 seeds, mean ± standard deviation. 256 held-out problems × 8 at temperature 1, in %:

               before RL    after RL    pass@8       before RL: the cold start, for naive the pretraining
    explang    18.7 ± 1.1   30.0 ± 2.9  44.9 ± 2.8
    own        18.7 ± 1.1   30.5 ± 1.7  46.9 ± 0.4
    naive      17.2 ± 1.5   26.6 ± 3.7  42.1 ± 4.3   160 steps of RL as all, but none of a cold start
    controlled 20.6 ± 1.9   32.7 ± 1.4  46.9 ± 1.4
    planted     0.8 ± 0.2   23.8 ± 6.1  30.0 ± 1.6

Then by `evaluate --languages self en multi unseen`, 128 problems × 8, accuracy (share of thinking in the language that was
chosen or given):

               self          en            multi         unseen
    explang    28.8 (99.8)   28.5 (99.9)   27.8 (99.4)   27.7 (10.6)
    own        30.0 (98.3)   29.2 (92.7)   28.5 (89.2)   28.9  (4.5)
    controlled 30.4 (99.8)   30.4 (99.9)   23.9 (39.4)   22.5 (49.6)
    planted    24.0 (99.6)    1.0 (90.5)    4.9 (77.8)    0.3 (10.8)

What it says. A language that is truly better is found in every seed: Russian is 13 to 20 % of the choices through exploration,
47 to 63 % after ten steps of exploitation, over 93 % after fifteen, and all of them at the end. Where none is better, choosing
gains nothing: English alone ends 2.7 points higher, most of which it has from a cold start that shows English six times as
often; every language is a translation of the same templates here, so there is nothing to choose for. Shares then drift: Chinese
dies in all six runs, Arabic ends at 92 % in one, for no reason in their accuracy. explang against own: no difference. Forced
into an unseen language both think in a seen one (compliance 5 to 11 %), at no loss of accuracy.

Budget, each of explang, own, controlled: 760 steps, 2.3M generated tokens, 1.46e13 FLOPs; naive 1.33e13. 11 to 19 minutes a run
on one core, with other jobs beside it.

Departures from the paper and its code: tags are one token and constrained; exploitation goes on with the optimiser's moments,
where theirs starts with a new optimiser; a group is 16 samples, a step 32 prompts. The KL's reference is the start of
exploitation, as in their code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
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
from jaxrl_ml.rewards.countdown import countdown_reward
from jaxrl_ml.rewards.language import EXPLOITATION, EXPLORATION, ExpLangReward
from jaxrl_ml.tasks.countdown import Countdown
from jaxrl_ml.tasks.traces import Traces
from jaxrl_ml.types import Example

SEEN = ("en", "zh", "es", "ru", "ar", "hi")
UNSEEN = ("de", "sw")
PLANTED = "ru"
UNTAGGED = "<think>"
TRACE = ("countdown.first", "countdown.then", "countdown.done")


@dataclasses.dataclass(frozen=True)
class Mismatched(Sequence):
    """Traces of which those not in PLANTED are each about another problem: they teach to write, not to solve."""

    traces: Traces

    def __len__(self) -> int:
        return len(self.traces)

    def __getitem__(self, index: int) -> Example:
        example, turn = self.traces[index], len(self.traces.languages)
        if example.fields["languages"] == (PLANTED,):
            return example
        return dataclasses.replace(example, completion=self.traces[(index + turn) % len(self)].completion)


def state(example: Example) -> str:
    """The problem in English."""
    return countdown_problem("en", example.fields["numbers"], example.fields["target"])


def vocabulary() -> tuple[str, ...]:
    """Numbers, operators, and the texts between the slots of the phrases, each a token: a trace is as long in any language."""
    tokens = [*map(str, range(100)), *"+-*/() ", " = ", " + ", " - ", " * ", " / ", ", ", UNTAGGED]
    tokens += ["</think>\n<answer> ", " </answer>", *(f"<{code}>" for code in SEEN)]
    tokens += pieces(("countdown.problem",), ("en",)) + pieces(TRACE, SEEN + UNSEEN)
    return tuple(dict.fromkeys(tokens))


def opening(code: str) -> str:
    """What untagged thinking in a language starts with: by this it can be made to, where no tag is known to the model."""
    return UNTAGGED + pieces(TRACE, (code,))[0]


problems = Countdown(num_numbers=(3,), max_number=20)
held_out = dataclasses.replace(problems, split="test")
demonstrated = dataclasses.replace(problems, size=len(SEEN + UNSEEN) * 720, seed=1)
language = LanguageConfig("constrained", SEEN, "<{code}>")
sampling = SamplingConfig(max_prompt_tokens=12, max_completion_tokens=48)
rl = OptimizerConfig(learning_rate=4e-4, warmup_steps=8)
loss = LossConfig(clip_high=0.28, entropy_coef=0.005)
kl = dataclasses.replace(loss, kl="k3", kl_coef=0.001)


def traces(codes: tuple[str, ...], tag: str, planted: bool = False) -> Sequence[Example]:
    """Templated traces, every problem in one of the languages; planted: only those in PLANTED solve theirs."""
    found = Traces(demonstrated, codes, tag)
    return Mismatched(found) if planted else found


def supervised(name: str, task: Sequence[Example], num_steps: int) -> SFTStage:
    optimizer = OptimizerConfig(learning_rate=2e-3, warmup_steps=20, schedule="cosine", final_fraction=0.1)
    return SFTStage(task, name=name, num_steps=num_steps, batch_size=16, sequence_length=256, optimizer=optimizer)


def reinforced(name: str, num_steps: int, loss: LossConfig, reward: Any, language: LanguageConfig) -> GRPOStage:
    return GRPOStage(
        problems,
        reward,
        name=name,
        num_steps=num_steps,
        prompts_per_step=32,
        group_size=16,
        num_microbatches=4,
        sampling=sampling,
        language=language,
        loss=loss,
        optimizer=rl,
        keep_optimizer=name == "exploitation",
    )


def experiment(stages: tuple[Any, ...], language: LanguageConfig, planted: bool = False) -> Config:
    """language: of the evaluation; the stages have their own. planted: half of the pretraining is in PLANTED."""
    codes = tuple(code for pair in zip(SEEN + UNSEEN, (PLANTED,) * 8, strict=True) for code in pair)
    pretraining = supervised("pretraining", traces(codes if planted else SEEN + UNSEEN, UNTAGGED, planted), 480)
    evaluation = Evaluation(
        held_out,
        countdown_reward,
        name="self",
        num_prompts=256,
        samples_per_prompt=8,
        prompts_per_batch=128,
        sampling=dataclasses.replace(sampling, temperature=1.0),
        language=language,
        unseen_languages=UNSEEN,
        unseen_tags=tuple(map(opening, UNSEEN)),
    )
    return Config(
        run_dir="runs/explang_cpu",
        tokenizer=vocabulary(),
        model=ModelConfig(family="qwen3", num_layers=2, embed_dim=128, mlp_dim=384, num_heads=4, num_kv_heads=4, head_dim=32),
        prompt_format=state,
        stages=(pretraining, *stages),
        evaluations=(evaluation,),
        eval_every_steps=40,
        checkpoint=CheckpointConfig(every_steps=80, keep=1),
    )


def explang(credit: str, planted: bool = False) -> Config:
    explore, exploit = (dataclasses.replace(base, language=credit) for base in (loss, kl))
    stages = (
        supervised("cold_start", traces(SEEN, "<{code}>", planted), 120),
        reinforced("exploration", 40, explore, ExpLangReward(language, countdown_reward, EXPLORATION), language),
        reinforced("exploitation", 120, exploit, ExpLangReward(language, countdown_reward, EXPLOITATION), language),
    )
    return experiment(stages, language, planted)


evaluate = ("--languages", "self", "en", "multi", "unseen", "--num-prompts", "128")  # of each finished run, by tools/study.py
off = LanguageConfig()
watched = LanguageConfig("free", SEEN, tuple(map(opening, SEEN)))  # nothing is masked: which language was it, and forced ones
arms = {
    "explang": explang("shared"),
    "own": explang("own"),
    "naive": experiment((reinforced("grpo", 160, kl, countdown_reward, off),), watched),
    "controlled": experiment(
        (supervised("cold_start", traces(("en",), UNTAGGED), 120), reinforced("grpo", 160, kl, countdown_reward, off)),
        watched,
    ),
    "planted": explang("own", planted=True),
}
