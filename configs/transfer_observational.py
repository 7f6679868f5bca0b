"""What do released models transfer? MATH-500, AIME 2024 and 2025 and GPQA-Diamond in eleven languages; nothing is trained.

Command:   python -m jaxrl_ml.observe configs/transfer_observational.py Qwen2.5-7B Qwen2.5-7B-Instruct …
Then:      python -m jaxrl_ml.analyze transfer runs/transfer_observational/TRAINED --base runs/transfer_observational/BASE
           --train en --name '*'
Data:      benchmarks/{benchmark}/{language}.jsonl with the columns `question` and `answer`, for GPQA with the choices in the
           question and a letter as answer; rows of the same problems in the same order
Hardware:  an accelerator of 80 GB for 7B; nothing here has run at this size: it is shape-checked in tests
Shows:     a row for each model, benchmark and language: accuracy, its interval, and the off-target rate

As in the paper (arXiv 2510.02272) the thinking language is forced by how the thinking starts; its words are not known, ours
are in `phrases.OPENINGS`. Where a model does not end its thinking, as those that were not taught to will not, the answer is
looked for in all that it wrote: what is boxed last, else the last number.
"""

from __future__ import annotations

from jaxrl_ml.config import Config, Evaluation, LanguageConfig, SamplingConfig
from jaxrl_ml.languages.phrases import OPENINGS
from jaxrl_ml.rewards.consistency import ConsistencyReward
from jaxrl_ml.rewards.maths import MathsReward
from jaxrl_ml.tasks.deferred import Deferred
from jaxrl_ml.tasks.maths import parallel
from jaxrl_ml.tasks.maths_prompts import boxed_native

LANGUAGES = ("en", "fr", "de", "zh", "ja", "ru", "es", "sw", "bn", "te", "th")
BENCHMARKS = {
    "math500": (500, 1),
    "aime24": (30, 16),
    "aime25": (30, 16),
    "gpqa_diamond": (198, 4),
}  # problems, samples of each

forced = LanguageConfig("forced", LANGUAGES, tuple("<think>\n" + OPENINGS[code] for code in LANGUAGES))


def cell(benchmark: str, code: str) -> Evaluation:
    count, samples = BENCHMARKS[benchmark]
    return Evaluation(
        Deferred(parallel, ((code,), f"benchmarks/{benchmark}/{{language}}.jsonl", benchmark)),
        ConsistencyReward(MathsReward(num_workers=8, answer="last_number"), LANGUAGES, language=forced, unclosed="read"),
        name=f"{benchmark}-{code}",
        num_prompts=count,
        samples_per_prompt=samples,
        prompts_per_batch=64 // samples,
        sampling=SamplingConfig(temperature=0.6, top_p=0.95, max_prompt_tokens=2048, max_completion_tokens=8192),
        language=forced,
    )


config = Config(
    run_dir="runs/transfer_observational",
    prompt_format=boxed_native,
    evaluations=tuple(cell(benchmark, code) for benchmark in BENCHMARKS for code in LANGUAGES),
)
