"""The Parallel Scaling Law at full size: Qwen2.5-7B-Instruct on the same maths problems in one to eight languages.

Command:   python -m jaxrl_ml.train configs/parallel_qwen2p5_7b.py --arm x2 --init-from Qwen2.5-7B-Instruct
Arms:      x1, x2, x4, x8: growing budget, as in the paper; fixed_x2, fixed_x4, fixed_x8: as many examples as x1 has
Hardware:  eight accelerators of 80 GB, or a slice like it; nothing here has run at this size: it is shape-checked in tests
Data:      parallel/{language}.jsonl, one file a language, rows of the same problems in the same order with `question` and
           `answer`; tests: MATH-500 in eleven languages, likewise in math500/{language}.jsonl
Shows:     accuracy in three languages that no arm trains in; `python -m jaxrl_ml.analyze scaling` fits the law

From the paper (arXiv 2510.02272): GRPO, reward of accuracy, format and language consistency, thinking forced by a prefix at the
evaluation. Its rates, batches, weights and training languages could not be had: those are ours.
"""

from __future__ import annotations

from jaxrl_ml.config import (
    CheckpointConfig,
    ComputeConfig,
    Config,
    Evaluation,
    GRPOStage,
    LanguageConfig,
    LossConfig,
    MeshConfig,
    OptimizerConfig,
    SamplingConfig,
)
from jaxrl_ml.languages.phrases import OPENINGS
from jaxrl_ml.rewards.consistency import ConsistencyReward
from jaxrl_ml.rewards.maths import MathsReward
from jaxrl_ml.tasks.deferred import Deferred
from jaxrl_ml.tasks.maths import parallel
from jaxrl_ml.tasks.maths_prompts import boxed_native
from jaxrl_ml.tasks.parallel import Parallel, by_language

TRAIN = ("en", "fr", "zh", "es", "de", "ja", "ru", "bn")
TEST = ("sw", "te", "th")
SYSTEM = "Think in the language of the question, between <think> and </think>. Then give the answer."
NUM_PROBLEMS, PROMPTS_PER_STEP = 12_800, 128  # of the files, that many or more

answers = MathsReward(num_workers=8)
forced = LanguageConfig("forced", TRAIN + TEST, tuple("<think>\n" + OPENINGS[code] for code in TRAIN + TEST))


def problems(num_languages: int, budget: str) -> Parallel:
    rows = parallel(TRAIN[:num_languages], "parallel/{language}.jsonl", "parallel")
    return Parallel(by_language(rows), num_languages, budget)


def experiment(num_languages: int, budget: str) -> Config:
    sampling = SamplingConfig(max_prompt_tokens=1024, max_completion_tokens=3072, prompts_per_chunk=64)
    stage = GRPOStage(
        Deferred(problems, (num_languages, budget)),
        ConsistencyReward(answers, TRAIN + TEST),
        num_steps=NUM_PROBLEMS // PROMPTS_PER_STEP * (num_languages if budget == "growing" else 1),
        prompts_per_step=PROMPTS_PER_STEP,
        group_size=8,
        num_microbatches=16,
        sampling=sampling,
        loss=LossConfig(kl="k3", kl_coef=0.001),
        optimizer=OptimizerConfig(learning_rate=1e-6),
    )
    evaluation = Evaluation(
        Deferred(parallel, (TRAIN + TEST, "math500/{language}.jsonl", "math500")),
        ConsistencyReward(answers, TRAIN + TEST, language=forced),
        name="math500",
        num_prompts=500 * len(TRAIN + TEST),
        prompts_per_batch=64,
        sampling=SamplingConfig(temperature=0.6, max_prompt_tokens=1024, max_completion_tokens=3072),
        language=forced,
    )
    return Config(
        run_dir=f"runs/parallel_qwen2p5_7b_{budget}_x{num_languages}",
        init_from="Qwen2.5-7B-Instruct",
        prompt_format=boxed_native,
        system_prompt=SYSTEM,
        stages=(stage,),
        compute=ComputeConfig(remat="full", logits_mib=512),
        mesh=MeshConfig(data=1, fsdp=8),
        evaluations=(evaluation,),
        eval_every_steps=100,
        checkpoint=CheckpointConfig(every_steps=50),
    )


arms = {f"x{x}": experiment(x, "growing") for x in (1, 2, 4, 8)}
arms |= {f"fixed_x{x}": experiment(x, "fixed") for x in (2, 4, 8)}
