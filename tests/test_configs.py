"""Configs that are too large to run here: read, built and shape-checked with abstract arrays; nothing is downloaded."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxrl_ml.cli import first_difference, load, resolved
from jaxrl_ml.config import Config, Evaluation, GRPOStage, ModelConfig, SFTStage
from jaxrl_ml.languages.tags import make_trie
from jaxrl_ml.optimizer import make_optimizer
from jaxrl_ml.planning.models import SHAPES
from jaxrl_ml.programs import Programs
from jaxrl_ml.sharding import make_mesh
from jaxrl_ml.tasks.countdown.expressions import parse
from jaxrl_ml.tasks.countdown.solver import avoids, family, solving_patterns
from jaxrl_ml.types import Batch, Example, Packed, Prompts, Rollout, Tags

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
QWEN3_4B = SHAPES["Qwen3-4B"]
QWEN2P5 = {arm: SHAPES[f"Qwen2.5-{size}"] for arm, size in (("1p5b", "1.5B"), ("3b", "3B"), ("7b", "7B"))}


def shape(dtype: type, *dims: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dims, dtype)


def grpo_batch(stage: GRPOStage, width: int) -> tuple[Batch, object]:
    """The abstract batch of a stage and its trie, tags of `width` tokens."""
    Q, G, P, C = (
        stage.prompts_per_step,
        stage.group_size,
        stage.sampling.max_prompt_tokens,
        stage.sampling.max_completion_tokens,
    )
    B, K = Q * G, len(stage.language.languages)
    trie = tags = allowed = None
    if K:
        trie = make_trie(stage.language, lambda texts: [[i, *range(1000, 999 + width)] for i, _ in enumerate(texts)])
        tags, allowed = Tags(shape(np.int32, B, width), shape(np.int32, B)), shape(bool, Q, K)
    prompts = Prompts(shape(np.int32, Q, P), shape(bool, Q, P), shape(np.uint32, Q), allowed)
    row, token = shape(np.int32, B), shape(np.float32, B, C)
    rollout = Rollout(prompts, shape(np.int32, B, C), row, shape(bool, B, C), token, shape(bool, B), tags)
    return Batch(rollout, token, shape(bool, B, C), token, token if stage.loss.kl != "none" else None), trie


def check_stages(config: Config, model: ModelConfig) -> dict[str, tuple]:
    """Traces every stage's update abstractly, on eight fake devices; the metrics' names by stage."""
    programs = Programs(model, config.compute, make_mesh(config.mesh, jax.devices()))
    found = {}
    for stage in config.stages:
        optimizer = make_optimizer(config.optimizer_of(stage), stage.num_steps)
        state = programs.state_shapes(optimizer, stage.lora)
        if isinstance(stage, SFTStage):
            leaf = shape(np.int32, stage.batch_size, stage.sequence_length)
            packed = Packed(leaf, leaf, shape(bool, *leaf.shape), leaf, leaf)
            out = jax.eval_shape(programs.fit(stage, optimizer), state, packed)
        else:
            batch, trie = grpo_batch(stage, width=12)
            scalar = shape(np.int32), shape(np.float32)
            out = jax.eval_shape(programs.update(stage, optimizer), state, batch, *scalar, trie)
        assert jax.tree.map(lambda x: x.shape, out[0]) == jax.tree.map(lambda x: x.shape, state)
        found[stage.name] = tuple(out[1])
    return found


@pytest.mark.parametrize("arm", ["explang", "own", "naive", "controlled"])
def test_explang_on_qwen3_4b(arm: str) -> None:
    config = load(CONFIGS / "explang_qwen3_4b.py", ["--arm", arm])
    assert sum(stage.num_steps for stage in config.stages if isinstance(stage, GRPOStage)) == 200
    found = check_stages(config, QWEN3_4B)
    last = list(found)[-1]
    assert {"policy/loss", "policy/kl", "policy/entropy"} <= set(found[last])
    for stage in config.stages:
        length = stage.sequence_length if isinstance(stage, SFTStage) else 2048 + 4096
        assert length <= QWEN3_4B.max_positions


@pytest.mark.parametrize("arm", ["1p5b", "3b", "7b", "sft_1p5b", "sft_3b", "sft_7b"])
def test_skills_on_qwen2p5(arm: str) -> None:
    config = load(CONFIGS / "skills_qwen2p5.py", ["--arm", arm])
    (found,) = check_stages(config, QWEN2P5[arm.removeprefix("sft_")]).values()
    assert ("sft/loss" if arm.startswith("sft") else "policy/kl") in found
    assert config.init_from == {"1p5b": "Qwen2.5-1.5B", "3b": "Qwen2.5-3B", "7b": "Qwen2.5-7B"}[arm.removeprefix("sft_")]
    assert [(e.name, e.num_prompts) for e in config.evaluations[:2]] == [("n3", 180), ("n4", 960)]
    assert sum(len(e.task) for e in config.evaluations[:2]) == 1140, "as published"


@pytest.mark.parametrize("arm", ["x1", "x2", "x4", "x8", "fixed_x2", "fixed_x4", "fixed_x8"])
def test_parallel_on_qwen2p5_7b(arm: str) -> None:
    config = load(CONFIGS / "parallel_qwen2p5_7b.py", ["--arm", arm])
    ((stage, found),) = check_stages(config, QWEN2P5["7b"]).items()
    assert stage == "grpo" and "policy/kl" in found
    (grpo,), x = config.stages, int(arm[-1])
    assert grpo.num_steps == 100 * (x if arm.startswith("x") else 1)
    check_trie(config.evaluations[0])


def check_trie(evaluation: Evaluation) -> None:
    """Every language that is asked for can be told from how its thinking is made to start."""
    trie = make_trie(evaluation.language, lambda texts: [list(text.encode()) for text in texts])
    assert trie.reach.shape[-1] == len(evaluation.language.languages) == 11


def test_the_observational_study_has_a_cell_for_each_benchmark_and_language() -> None:
    config = load(CONFIGS / "transfer_observational.py", [])
    assert len({evaluation.name for evaluation in config.evaluations}) == 44
    Programs(QWEN2P5["7b"], config.compute, make_mesh(config.mesh, jax.devices()))
    for evaluation in config.evaluations:
        check_trie(evaluation)
        assert evaluation.num_prompts >= 1 and evaluation.prompts_per_batch * evaluation.samples_per_prompt == 64
        assert evaluation.sampling.max_prompt_tokens + evaluation.sampling.max_completion_tokens <= 32_768


@pytest.mark.parametrize("arm", ["x1", "x2", "x3", "x4", "x6", "x8", "fixed_x2", "fixed_x4"])
def test_the_parallel_study_grows_or_keeps_its_budget(arm: str) -> None:
    config = load(CONFIGS / "parallel_cpu.py", ["--arm", arm])
    (cold,), (rl,) = load(CONFIGS / "parallel_cpu.py", ["--arm", "base"]).stages, config.stages
    x, growing = int(arm[-1]), arm.startswith("x")
    assert rl.num_steps == 60 * (x if growing else 1)
    assert len(rl.task) == rl.num_steps * rl.prompts_per_step, "one epoch"
    examples = [rl.task[i] for i in range(len(rl.task))]
    languages = Counter(example.language for example in examples)
    assert len(languages) == x and len(set(languages.values())) == 1
    assert set(languages) <= set(rl.reward.languages)
    (evaluation,) = config.evaluations
    tests = [evaluation.task[i] for i in range(evaluation.num_prompts)]
    unseen = {example.language for example in tests} - set(languages)
    assert {"de", "sw", "ja", "te"} <= unseen

    def asked(some: list[Example]) -> set[tuple]:
        return {(example.fields["numbers"], example.fields["target"]) for example in some}

    assert not asked(examples) & asked(tests)
    told = rl.reward([cold.task[i].completion for i in range(48)], [cold.task[i] for i in range(48)])
    np.testing.assert_allclose(told.rewards, 1.3, rtol=1e-6)


def test_the_skills_study_has_as_many_problems_of_a_count_uniform_as_balanced() -> None:
    balanced, uniform = (load(CONFIGS / "skills_cpu.py", ["--arm", arm]).stages for arm in ("balanced", "uniform"))
    wanted = Counter(balanced[1].task[i].task for i in range(len(balanced[1].task)))
    assert wanted == {f"countdown/{len(part[0].fields['numbers'])}": len(part) for part in uniform[1].task.tasks}
    demonstrated = [stage.task.tasks[0] for stage in (balanced[0], uniform[0])]
    assert len(demonstrated[0]) == len(demonstrated[1])


@pytest.mark.parametrize("arm", ["balanced", "uniform", "everything"])
def test_the_skills_study_holds_a_family_out(arm: str) -> None:
    config = load(CONFIGS / "skills_cpu.py", ["--arm", arm])
    cold, rl = config.stages
    step = len(cold.task) // 600
    shown = [cold.task[i] for i in range(0, len(cold.task), step)] + [rl.task[i] for i in range(300)]
    problems = [example for example in shown if example.fields["target"] != "?"]
    patterns = {parse(example.fields["solution"]).skill.pattern for example in shown}
    kept = all(avoids(("(A-B)*C",), e.fields["numbers"], e.fields["target"]) for e in problems)
    assert kept == (arm != "everything")
    families = frozenset().union(*(family("(A-B)*C", n) for n in (3, 4, 5, 6)))
    assert bool(patterns & families) == (arm == "everything")
    asked = {(tuple(sorted(e.fields["numbers"])), e.fields["target"]) for e in problems}
    for evaluation in config.evaluations:
        tests = [evaluation.task[i] for i in range(evaluation.num_prompts)]
        assert not asked & {(tuple(sorted(e.fields["numbers"])), e.fields["target"]) for e in tests}
        if evaluation.name.startswith("family"):
            assert all(solving_patterns(e.fields["numbers"], e.fields["target"]) <= families for e in tests)


@pytest.mark.parametrize("name", ["explang_cpu", "explang_qwen3_4b"])
def test_arms_differ_in_what_the_study_is_about_and_nothing_else(name: str) -> None:
    arms = {arm: load(CONFIGS / f"{name}.py", ["--arm", arm]) for arm in ("explang", "own", "naive", "controlled")}
    settings = {arm: resolved(config) for arm, config in arms.items()}
    for arm in settings:
        for field in ("stages", "evaluations"):
            settings[arm].pop(field)
    for arm in settings:
        assert first_difference(settings["explang"], settings[arm]) is None, arm
    rl = {arm: [s for s in config.stages if isinstance(s, GRPOStage)] for arm, config in arms.items()}
    assert len({sum(s.num_steps for s in stages) for stages in rl.values()}) == 1, "equal budgets, in steps"
    for stages in rl.values():
        for stage in stages:
            assert (stage.prompts_per_step, stage.group_size, stage.sampling) == (
                rl["naive"][0].prompts_per_step, rl["naive"][0].group_size, rl["naive"][0].sampling,
            )  # fmt: skip
    explore, exploit = rl["explang"]
    assert explore.num_steps * 3 == exploit.num_steps
    assert (explore.loss.kl, exploit.loss.kl, exploit.loss.kl_coef) == ("none", "k3", 0.001)
    assert arms["explang"].reference_stage(exploit) is exploit, "the authors' KL reference is the start of exploitation"
    assert exploit.keep_optimizer == (name == "explang_cpu")  # theirs starts afresh; the docstring of explang_cpu says so
    for shared, own in zip(rl["explang"], rl["own"], strict=True):
        differing = first_difference(resolved(shared), resolved(own))
        assert differing == ("loss.language", "shared", "own")
