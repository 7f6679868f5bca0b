"""draft"""

from jaxrl_ml.config import Config, Evaluation, GRPOStage, ModelConfig, OptimizerConfig, SamplingConfig, SFTStage
from jaxrl_ml.rewards.countdown import countdown_reward
from jaxrl_ml.tasks.countdown import Countdown, compact


def demonstrate(example, rng):
    return f"<answer>{example.fields['solution'].replace(' ', '')}</answer>"


train = Countdown(num_numbers=(3,), max_number=10, max_target=99)
config = Config(
    run_dir="runs/countdown_cpu",
    tokenizer=(*"0123456789+-*/()=: ", "<answer>", "</answer>"),
    model=ModelConfig(num_layers=2, embed_dim=128, mlp_dim=384, num_heads=4, num_kv_heads=4, head_dim=32),
    prompt_format=compact,
    stages=(
        SFTStage(
            Countdown(demonstrate=demonstrate),
            name="cold_start",
            num_steps=200,
            batch_size=16,
            sequence_length=128,
            optimizer=OptimizerConfig(learning_rate=1.5e-3),
        ),
        GRPOStage(
            train,
            countdown_reward,
            num_steps=40,
            prompts_per_step=96,
            group_size=8,
            sampling=SamplingConfig(max_prompt_tokens=17, max_completion_tokens=24, prompts_per_chunk=48),
        ),
    ),
    optimizer=OptimizerConfig(learning_rate=3e-4, warmup_steps=8),
    evaluations=(
        Evaluation(
            Countdown(split="test"),
            countdown_reward,
            name="n3",
            num_prompts=256,
            prompts_per_batch=64,
            sampling=SamplingConfig(temperature=0.0, max_prompt_tokens=17, max_completion_tokens=24),
        ),
    ),
)
