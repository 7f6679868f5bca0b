"""Configuration: every mistake is one line with value and remedy, overrides are strict, and nothing heavy is imported."""

from __future__ import annotations

import gc
import json
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxrl_ml import train
from jaxrl_ml.cli import (
    check_folder,
    first_difference,
    load,
    load_run,
    resolved,
    run_command,
    source_files,
    write_folder,
    write_resolved,
)
from jaxrl_ml.config import (
    CheckpointConfig,
    ComputeConfig,
    Config,
    Evaluation,
    GRPOStage,
    LanguageConfig,
    LoggingConfig,
    LoRAConfig,
    LossConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    SamplingConfig,
    SFTStage,
)
from jaxrl_ml.types import UserError

MODEL = ModelConfig(vocab_size=48)
SFT, GRPO = SFTStage(None), GRPOStage(None, None)
CONFIG = Config(stages=(SFT, GRPO), run_dir="runs/x", model=MODEL, tokenizer=("a", "b"))

STOPS, TAGS = SamplingConfig(stop=("\n",)), LanguageConfig("constrained", ("de",), "<{code}>\n")

MISTAKES = {
    "day": (lambda: replace(CONFIG, chat_date="30.11.2026"), "chat_date='30.11.2026'", "such as 2026-11-30"),
    "week": (lambda: replace(CONFIG, chat_date="2026-W49-1"), "chat_date='2026-W49-1'", "such as 2026-11-30"),
    "no such day": (lambda: replace(CONFIG, chat_date="2026-02-29"), "chat_date='2026-02-29'", "such as 2026-11-30"),
    "no day": (lambda: replace(CONFIG, chat_date=20261130), "chat_date=20261130", "must be a text or None"),
    "heads": (lambda: ModelConfig(num_heads=6, num_kv_heads=4), "num_heads=6", "multiple of model.num_kv_heads=4"),
    "no kv heads": (lambda: ModelConfig(num_kv_heads=0), "model.num_kv_heads=0", "at least 1"),
    "head dim": (lambda: ModelConfig(head_dim=7), "model.head_dim=7", "must be even"),
    "theta": (lambda: ModelConfig(rope_theta=0.0), "model.rope_theta=0.0", "positive"),
    "norm eps": (lambda: ModelConfig(norm_eps=-1.0), "model.norm_eps=-1.0", "positive"),
    "chunk": (lambda: SamplingConfig(prompts_per_chunk=-4), "prompts_per_chunk=-4", "0: all"),
    "alpha": (lambda: LoRAConfig(alpha=math.inf), "lora.alpha=inf", "finite"),
    "mesh data": (lambda: MeshConfig(data=0), "mesh.data=0", "-1 for the rest"),
    "mesh fsdp": (lambda: MeshConfig(fsdp=0), "mesh.fsdp=0", "positive"),
    "mesh tensor": (lambda: MeshConfig(tensor=-2), "mesh.tensor=-2", "positive"),
    "rate": (lambda: OptimizerConfig(learning_rate=0.0), "learning_rate=0.0", "positive"),
    "norm": (lambda: OptimizerConfig(max_grad_norm=0.0), "max_grad_norm=0.0", "positive"),
    "infinite rate": (lambda: OptimizerConfig(learning_rate=math.inf), "learning_rate=inf", "finite"),
    "eps": (lambda: OptimizerConfig(eps=0.0), "eps=0.0", "positive"),
    "warm-up": (lambda: OptimizerConfig(warmup_steps=-5), "warmup_steps=-5", "not be negative"),
    "final": (lambda: OptimizerConfig(final_fraction=-0.1), "final_fraction=-0.1", "not be negative"),
    "decay": (lambda: OptimizerConfig(weight_decay=math.nan), "weight_decay=nan", "finite"),
    "b1": (lambda: OptimizerConfig(b1=-0.1), "b1=-0.1", "[0, 1)"),
    "b2": (lambda: OptimizerConfig(b2=1.0), "b2=1.0", "[0, 1)"),
    "prompt width": (lambda: SamplingConfig(max_prompt_tokens=0), "max_prompt_tokens=0", "at least 1"),
    "width": (lambda: SamplingConfig(max_completion_tokens=0), "max_completion_tokens=0", "at least 1"),
    "temperature": (lambda: SamplingConfig(temperature=-1.0), "temperature=-1.0", "not be negative"),
    "top_p": (lambda: SamplingConfig(top_p=0.0), "top_p=0.0", "1 is off"),
    "min_p": (lambda: SamplingConfig(min_p=1.0), "min_p=1.0", "0 is off"),
    "top_k": (lambda: SamplingConfig(top_k=-1), "top_k=-1", "0 is off"),
    "stop": (lambda: SamplingConfig(stop=("x", "")), "sampling.stop", "remove it"),
    "clip low": (lambda: LossConfig(clip_low=1.5), "clip_low=1.5", "(0, 1]"),
    "clip high": (lambda: LossConfig(clip_high=0.0), "clip_high=0.0", "positive"),
    "dual clip": (lambda: LossConfig(dual_clip=0.5), "dual_clip=0.5", "over 1, or None"),
    "dual cispo": (lambda: LossConfig(objective="cispo", dual_clip=3.0), "dual_clip=3.0", "set it to None"),
    "cap": (lambda: LossConfig(importance_cap=0.0), "importance_cap=0.0", "positive, or None"),
    "attempts": (lambda: LossConfig(max_attempts=0), "max_attempts=0", "at least 1"),
    "penalty": (lambda: LossConfig(overlong="penalty"), "loss.overlong=penalty", "needs loss.overlong_tokens"),
    "sft steps": (lambda: replace(SFT, num_steps=-1), "sft.num_steps=-1", "0 leaves the stage out"),
    "sft slices": (lambda: replace(SFT, num_microbatches=3), "sft.batch_size=16", "multiple of num_microbatches=3"),
    "sft no slices": (lambda: replace(SFT, num_microbatches=0), "sft.num_microbatches=0", "at least 1"),
    "grpo steps": (lambda: replace(GRPO, num_steps=-1), "grpo.num_steps=-1", "0 leaves the stage out"),
    "group": (lambda: replace(GRPO, group_size=1), "grpo.group_size=1", "at least 2"),
    "grpo no slices": (lambda: replace(GRPO, num_minibatches=0), "grpo.num_minibatches=0", "at least 1"),
    "grpo no epochs": (lambda: replace(GRPO, num_epochs=0), "grpo.num_epochs=0", "at least 1"),
    "grpo no prompts": (lambda: replace(GRPO, prompts_per_step=0), "grpo.prompts_per_step=0", "at least 1"),
    "top_k in training": (lambda: replace(GRPO, sampling=SamplingConfig(top_k=5)), "top_k=5", "use 0, 1.0 and 0.0"),
    "top_p in training": (lambda: replace(GRPO, sampling=SamplingConfig(top_p=0.9)), "top_p=0.9", "use 0, 1.0 and 0.0"),
    "min_p in training": (lambda: replace(GRPO, sampling=SamplingConfig(min_p=0.1)), "min_p=0.1", "use 0, 1.0 and 0.0"),
    "greedy training": (lambda: replace(GRPO, sampling=SamplingConfig(temperature=0.0)), "temperature=0.0", "use 1.0"),
    "slices": (
        lambda: replace(GRPO, num_minibatches=3, num_microbatches=2),
        "grpo.prompts_per_step=32",
        "multiple of num_minibatches·num_microbatches=6",
    ),
    "chunks": (
        lambda: replace(GRPO, sampling=SamplingConfig(prompts_per_chunk=5)),
        "prompts_per_chunk=5",
        "divide prompts_per_step=32",
    ),
    "overlong zone": (
        lambda: replace(GRPO, loss=LossConfig(overlong="penalty", overlong_tokens=65)),
        "overlong_tokens=65",
        "max_completion_tokens=64",
    ),
    "no such choice": (lambda: LossConfig(filter="dropp"), "loss.filter='dropp'", "one of none, drop, resample"),
    "text for texts": (lambda: SamplingConfig(stop="</answer>"), "sampling.stop='</answer>'", "a tuple (of a text)"),
    "no comma": (
        lambda: replace(CONFIG, stages=replace(GRPO, task=["\n"] * 9_000)),
        "stages=GRPOStage(",
        "one item alone is written (item,)",
    ),
    "half a step": (lambda: replace(GRPO, num_steps=2.5), "grpo.num_steps=2.5", "a whole number"),
    "number as text": (lambda: OptimizerConfig(learning_rate="1e-6"), "learning_rate='1e-6'", "a number"),
    "truth as number": (lambda: replace(CONFIG, seed=True), "seed=True", "a whole number"),
    "evaluation size": (lambda: Evaluation(None, None, num_prompts=0), "num_prompts=0", "at least 1"),
    "greedy pass@k": (lambda: Evaluation(None, None, samples_per_prompt=4), "samples_per_prompt=4", "use 1, or"),
    "checkpoint period": (lambda: CheckpointConfig(every_steps=0), "every_steps=0", "at least 1"),
    "checkpoint keep": (lambda: CheckpointConfig(keep=0), "keep=0", "at least 1"),
    "best": (
        lambda: replace(CONFIG, evaluations=(Evaluation(None, None),), checkpoint=CheckpointConfig(best_metric="eval/tset/x")),
        "best_metric=eval/tset/x",
        "begin with eval/test/",
    ),
    "best of none": (lambda: replace(CONFIG, checkpoint=CheckpointConfig(best_metric="x")), "best_metric=x", "eval/NAME/"),
    "sample period": (lambda: LoggingConfig(samples_every_steps=0), "samples_every_steps=0", "samples_per_log=0"),
    "samples": (lambda: LoggingConfig(samples_per_log=-1), "samples_per_log=-1", "not be negative"),
    "patience": (lambda: replace(CONFIG, max_nonfinite_steps=0), "max_nonfinite_steps=0", "at least 1"),
    "negative seed": (lambda: replace(CONFIG, seed=-1), "seed=-1", "from 0 to 4294967295"),
    "large seed": (lambda: replace(CONFIG, seed=2**32), "seed=4294967296", "from 0 to 4294967295"),
    "logits": (lambda: ComputeConfig(logits_mib=math.inf), "logits_mib=inf", "finite"),
    "kl": (lambda: LossConfig(kl_coef=-0.1), "kl_coef=-0.1", "not be negative"),
    "pooling": (lambda: LossConfig(language_shrinkage=math.inf), "language_shrinkage=inf", "finite"),
    "entropy": (lambda: LossConfig(entropy_coef=math.nan), "entropy_coef=nan", "finite"),
    "stop in a tag": (lambda: replace(GRPO, sampling=STOPS, language=TAGS), "grpo: sampling.stop='\\n'", "tag '<de>\\n'"),
    "stop in a tag of an evaluation": (
        lambda: Evaluation(None, None, sampling=STOPS, language=TAGS),
        "evaluation test: sampling.stop='\\n'",
        "change one",
    ),
    "nothing": (Config, "neither stages nor evaluations", "at least one"),
    "no steps": (lambda: replace(CONFIG, stages=(replace(SFT, num_steps=0),)), "the stages have no steps", "at least one"),
    "no folder": (lambda: replace(CONFIG, run_dir=""), "run_dir=''", "must name the folder"),
    "stage twice": (lambda: replace(CONFIG, stages=(SFT, SFT)), "'sft' is used twice", "must differ"),
    "evaluation twice": (lambda: replace(CONFIG, evaluations=(Evaluation(None, None),) * 2), "'test'", "must differ"),
    "two starts": (lambda: replace(CONFIG, init_from="x"), "init_from='x'", "exactly one"),
    "no start": (lambda: replace(CONFIG, model=None), "model=None", "exactly one"),
    "no tokenizer": (lambda: replace(CONFIG, tokenizer=None), "tokenizer=None", "give the folder"),
    "evaluation period": (lambda: replace(CONFIG, eval_every_steps=0), "eval_every_steps=0", "at least 1"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_names_its_value_and_the_remedy(name):
    build, value, remedy = MISTAKES[name]
    with pytest.raises(UserError) as error:
        build()
    text = str(error.value)
    assert value in text and remedy in text and "\n" not in text and len(text) < 250


CONFIG_FILE = textwrap.dedent(
    '''
    """An experiment."""
    from jaxrl_ml.config import *


    class Problems(list):
        pass


    def reward(texts, examples):
        return [float(len(text)) for text in texts]


    config = Config(
        stages=(SFTStage(Problems()), GRPOStage(Problems([1]), reward)),
        run_dir="runs/x",
        model=ModelConfig(vocab_size=48),
        tokenizer=("a", "b"),
        evaluations=(Evaluation(Problems(), reward),),
    )
    '''
)


@pytest.fixture
def config_file(tmp_path) -> Path:
    path = tmp_path / "experiment.py"
    path.write_text(CONFIG_FILE)
    return path


def test_overrides_reach_every_depth_and_leave_the_rest(config_file):
    plain = load(config_file)
    overrides = "--optimizer.learning-rate 3e-6 --seed 7 --stages.1.loss.kl k3 --stages.1.group-size 4 --mesh.fsdp 2"
    changed = load(config_file, f"{overrides} --stages.1.loss.importance-cap 2.5 --logging.no-console".split())
    assert changed.optimizer.learning_rate == 3e-6
    assert (changed.seed, changed.mesh.fsdp, changed.logging.console) == (7, 2, False)
    assert changed.stages[1].loss == LossConfig(kl="k3", importance_cap=2.5)
    assert changed.stages[1].group_size == 4
    assert changed.stages[0].num_steps == plain.stages[0].num_steps
    assert changed.stages[1].task == [1]  # objects pass through
    assert changed.stages[1].reward(["abc"], []) == [3.0]
    back = replace(
        changed,
        optimizer=plain.optimizer,
        seed=0,
        mesh=plain.mesh,
        logging=plain.logging,
        stages=(changed.stages[0], plain.stages[1]),
    )
    assert resolved(back) == resolved(plain)


@pytest.mark.parametrize(
    "override",
    [
        "--optimizer.learning-rat 3e-6",
        "--nonsense",
        "--seed x",
        "--stages.1.loss.kl k9",
        "--stages.7.num-steps 3",
        "--optimizer.learning-rate",
    ],
)
def test_an_unknown_or_malformed_override_ends_the_process(config_file, override, capsys):
    with pytest.raises(SystemExit) as stop:
        load(config_file, override.split())
    assert stop.value.code not in (0, None)
    assert override.split()[0].lstrip("-") in "".join(capsys.readouterr())


def test_an_override_that_breaks_a_law_is_a_user_error(config_file):
    with pytest.raises(UserError, match="top_k=5"):
        load(config_file, ["--stages.1.sampling.top-k", "5"])
    with pytest.raises(UserError, match="prompts_per_step=33"):
        load(config_file, ["--stages.1.prompts-per-step", "33", "--stages.1.num-minibatches", "2"])


OBJECTS = """
from collections.abc import Sequence
from dataclasses import dataclass
from jaxrl_ml.config import Config, Evaluation
from jaxrl_ml.types import Example

class Own(Sequence):
    def __init__(self, tasks: Sequence[Sequence[Example]], path: str, weight: float = 1.0):
        self.tasks = tasks
    def __len__(self):
        return 7
    def __getitem__(self, index):
        return self.tasks[0][index]

class Judge:
    def __init__(self, folder: str):
        self.folder = folder
    def __call__(self, texts, examples):
        return [0.0 for _ in texts]

@dataclass(frozen=True)
class Wrapped(Sequence):
    task: Sequence[Example]
    factor: int = 2
    def __len__(self):
        return self.factor * len(self.task)
    def __getitem__(self, index):
        return self.task[index // self.factor]

config = Config(evaluations=(
    Evaluation(Own([[]], "p"), Judge("f")),
    Evaluation([Own([[]], "q")], Judge, name="second"),
    Evaluation(Wrapped(Wrapped([Example("1", "t")])), Judge, name="third"),
))
"""


def test_objects_of_any_class_pass_through_the_command_line(tmp_path, capsys):
    path = tmp_path / "own.py"
    path.write_text(OBJECTS)
    config = load(path, ["--evaluations.0.num-prompts", "5", "--evaluations.2.task.factor", "3"])
    first, second, third = config.evaluations
    assert (len(third.task), third.task.task.factor, third.task[5].id) == (6, 2, "1"), "fields of a task that is a dataclass"
    assert (len(first.task), first.reward.folder, first.num_prompts) == (7, "f", 5)
    assert len(second.task[0]) == 7 and second.reward.__name__ == "Judge"
    with pytest.raises(SystemExit):
        load(path, ["--evaluations.0.task", "x"])
    assert "evaluations.0.task" in "".join(capsys.readouterr())


def test_an_arm_is_chosen_by_name_and_remembered_by_the_run(tmp_path):
    path = tmp_path / "config.py"
    one = "Config(evaluations=(Evaluation(None, None, num_prompts={}),))"
    head = "from jaxrl_ml.config import Config, Evaluation\n"
    path.write_text(head + f"arms = {{'small': {one.format(2)}, 'large': {one.format(9)}}}\n")
    assert load(path, ["--arm", "large", "--seed", "4"]).evaluations[0].num_prompts == 9
    (tmp_path / "overrides.json").write_text(json.dumps(["--seed", "4", "--arm", "small"]))
    assert (load_run(tmp_path).evaluations[0].num_prompts, load_run(tmp_path).seed) == (2, 4)
    for overrides, message in (([], "choose one with --arm small|large"), (["--arm"], "only small, large")):
        with pytest.raises(UserError, match=re.escape(message)):
            load(path, overrides)
    path.write_text(head + f"config = {one.format(3)}\n")
    with pytest.raises(UserError, match="--arm small: .* has no arms"):
        load(path, ["--arm", "small"])


def test_a_config_of_evaluations_alone_is_not_trained(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OBJECTS)
    with pytest.raises(UserError, match="has no stages to train; it is for python -m jaxrl_ml.evaluate"):
        train.main([str(path)])


def test_a_missing_file_and_a_file_without_config_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="no config file"):
        load(tmp_path / "none.py")
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(UserError, match="must bind `config`"):
        load(tmp_path / "empty.py")
    with pytest.raises(UserError, match="not a run folder"):
        load_run(tmp_path)


def test_a_run_folder_gives_the_config_with_its_overrides(config_file, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.py").write_text(config_file.read_text())
    (run / "overrides.json").write_text(json.dumps(["--seed", "5"]))
    assert load_run(run).seed == 5
    for text in ("{", "5"):
        (run / "overrides.json").write_text(text)
        with pytest.raises(UserError, match="overrides.json cannot be read .*; restore it"):
            load_run(run)
    (run / "overrides.json").unlink()
    with pytest.raises(UserError, match="overrides.json cannot be read .*; restore it"):
        load_run(run)


def test_resolved_is_json_and_tells_what_differs(config_file, tmp_path):
    config = load(config_file)
    data = json.loads(json.dumps(resolved(config)))
    assert data["type"] == "Config"
    assert [stage["type"] for stage in data["stages"]] == ["SFTStage", "GRPOStage"]
    assert data["stages"][1]["reward"].endswith(".reward")
    assert data["stages"][1]["sampling"]["max_completion_tokens"] == 64
    write_resolved(config, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == data
    assert first_difference(data, data) is None
    changed = replace(config, stages=(config.stages[0], replace(config.stages[1], loss=LossConfig(kl="k1"))))
    found = first_difference(data, json.loads(json.dumps(resolved(changed))))
    assert found == ("stages.1.loss.kl", "none", "k1")
    path, old, new = first_difference(data, resolved(replace(config, stages=config.stages[:1])))
    assert (path, len(old), len(new)) == ("stages", 2, 1)


def test_the_day_of_a_run_may_not_change_but_need_not_be_named(tmp_path):
    def check(recorded: str | None, chosen: str | None) -> None:
        config = replace(CONFIG, run_dir=str(tmp_path / "run"), chat_date=chosen)
        (tmp_path / "run/checkpoints/1").mkdir(parents=True, exist_ok=True)
        write_resolved(replace(config, chat_date=recorded), tmp_path / "run")
        check_folder(config)

    for recorded, chosen in (("2026-11-30", None), ("2026-11-30", "2026-11-30"), (None, None), (None, "2026-11-30")):
        check(recorded, chosen)
    with pytest.raises(
        UserError, match="holds a run with chat_date='2026-11-30', not '2026-12-01'; use that value, or another"
    ):
        check("2026-11-30", "2026-12-01")
    old = json.loads((tmp_path / "run/config.json").read_text())
    del old["chat_date"]  # a run of an earlier version
    (tmp_path / "run/config.json").write_text(json.dumps(old))
    check_folder(replace(CONFIG, run_dir=str(tmp_path / "run")))
    check_folder(replace(CONFIG, run_dir=str(tmp_path / "run"), chat_date="2026-12-01"))


NAMED_REWARDS = """
import functools
from dataclasses import dataclass
from types import MappingProxyType
from jaxrl_ml.config import *
from jaxrl_ml.rewards.countdown import countdown_reward

def reward(texts, examples, factor=1.0):
    return [factor * len(text) for text in texts]

@dataclass(frozen=True)
class Judge:
    strict: bool = False
    def __call__(self, texts, examples):
        return [0.0 for _ in texts]

class Other:
    def __init__(self, path: str):
        self.path = path
    def __call__(self, texts, examples):
        return [0.0 for _ in texts]

rewards = {"answer": (countdown_reward, 1.0), "judge": (Judge(), 0.5), "other": (Other("p"), -1.0), "bare": reward,
           "part": functools.partial(reward, factor=2.0), "count": (len, 1), "class": (Judge, 0.1)}
arms = {name: Config(
    stages=(GRPOStage([1], rewards, correct="answer"),), run_dir="runs/x", model=ModelConfig(vocab_size=48),
    tokenizer=("a", "b"), evaluations=(Evaluation([1], MappingProxyType(rewards), correct=name),),
) for name in ("answer", "judge")}
"""


def test_named_rewards_pass_through_the_command_line(tmp_path, capsys):
    path = tmp_path / "named.py"
    path.write_text(NAMED_REWARDS)
    overrides = ["--arm", "judge", "--stages.0.reward.judge.1", "0.25", "--stages.0.reward.other.1", "-3"]
    overrides += ["--stages.0.group-size", "4"]
    stage, plain = load(path, overrides).stages[0], load(path, ["--arm", "judge"]).stages[0]
    assert {name: term[1] for name, term in stage.reward.items() if isinstance(term, tuple)} == {
        "answer": 1.0,
        "judge": 0.25,
        "other": -3,
        "count": 1,
        "class": 0.1,
    }
    assert list(stage.reward) == list(plain.reward) and stage.group_size == 4 and stage.correct == "answer"
    assert stage.reward["bare"](["abc"], []) == [3.0] and stage.reward["part"](["abc"], []) == [6.0]
    assert stage.reward["other"][0].path == "p"
    assert load(path, [*overrides, "--stages.0.reward.judge.0.strict"]).stages[0].reward["judge"][0].strict
    assert load(path, [*overrides, "--stages.0.correct", "bare"]).stages[0].correct == "bare"
    for override, message in (("nan", "the weight nan of 'judge' must be finite"), ("inf", "must be finite")):
        with pytest.raises(UserError, match=message):
            load(path, ["--arm", "judge", "--stages.0.reward.judge.1", override])
    with pytest.raises(UserError, match="correct='none' is none of its rewards"):
        load(path, ["--arm", "judge", "--stages.0.correct", "none"])
    with pytest.raises(SystemExit) as stop:
        load(path, ["--arm", "judge", "--help"])
    assert stop.value.code == 0 and "--stages.0.reward.judge.1" in capsys.readouterr().out


def test_named_rewards_are_resolved_with_their_weights(tmp_path):
    path = tmp_path / "named.py"
    path.write_text(NAMED_REWARDS)
    data = json.loads(json.dumps(resolved(load(path, ["--arm", "judge"]))))
    for owner, correct in ((data["stages"][0], "answer"), (data["evaluations"][0], "judge")):
        assert owner["correct"] == correct
        assert owner["reward"]["answer"] == ["jaxrl_ml.rewards.countdown.countdown_reward", 1.0]
        assert owner["reward"]["judge"] == [{"type": "Judge", "strict": False}, 0.5]
    changed = json.loads(json.dumps(resolved(load(path, ["--arm", "judge", "--stages.0.reward.judge.1", "2"]))))
    assert first_difference(data, changed) == ("stages.0.reward.judge.1", 0.5, 2)


@pytest.fixture
def own_modules(tmp_path, monkeypatch) -> Path:
    """A config file, with a reward in a module beside it, which takes something from two others."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.startswith("beside_")]:
        monkeypatch.delitem(sys.modules, name)
    folder = tmp_path
    (folder / "beside_reward.py").write_text(
        "import beside_deep\nfrom beside_package import part\ndef reward(t, e): return t\n"
    )
    (folder / "beside_deep.py").write_text("import beside_reward  # in a circle\nvalue = 1\n")
    (folder / "beside_package").mkdir()
    (folder / "beside_package" / "__init__.py").write_text("")
    (folder / "beside_package" / "part.py").write_text("x = 1\n")
    (folder / "beside_unused.py").write_text("")
    path = folder / "own.py"
    path.write_text("import numpy, beside_reward\nfrom jaxrl_ml.config import *\n"
                    "config = Config(evaluations=(Evaluation([1], {'r': (beside_reward.reward, 1.0)}),))\n")  # fmt: skip
    return path


def test_the_users_code_is_what_a_config_takes_it_from(tmp_path, own_modules):
    path = own_modules
    config = load(path)
    expected = {"config.py": "own.py", "beside_reward": "beside_reward.py", "beside_deep": "beside_deep.py",
                "beside_package": "beside_package/__init__.py", "beside_package.part": "beside_package/part.py"}  # fmt: skip
    found = source_files(config, path)
    assert {name: file.relative_to(tmp_path).as_posix() for name, file in found.items()} == expected
    other = tmp_path / "other.py"  # another config that was read since
    other.write_text(path.read_text())
    load(other)
    assert source_files(config, path) == found
    assert source_files(replace(config, evaluations=(Evaluation([1], len),)), path) == {"config.py": path}


@pytest.mark.parametrize("digests", ["kept", "lost", "damaged"])
def test_code_that_changed_since_is_noted_and_kept(tmp_path, own_modules, digests):
    path = own_modules
    config = replace(load(path), run_dir=str(tmp_path / "run"))
    run = tmp_path / "run"
    assert write_folder(config, path, []) is None
    path.write_text(path.read_text() + "# before the first checkpoint\n")
    assert write_folder(config, path, []) is None, "nothing was trained with the code before"
    (run / "checkpoints" / "4").mkdir(parents=True)
    assert write_folder(config, path, []) is None
    if digests != "kept":
        (run / "sources.json").unlink()
    if digests == "damaged":
        (run / "sources.json").write_text("{")
    first = path.read_text()
    path.write_text(first + "# other\n")
    (tmp_path / "beside_deep.py").write_text("value = 2\n")
    note = write_folder(config, path, [])
    assert "\n" not in note and str(path) in note
    (kept,) = run.glob("config-*.py")
    assert kept.read_text() == first and f"(before: {kept})" in note and (run / "config.py").read_text() == path.read_text()
    assert (str(tmp_path / "beside_deep.py") in note) == (digests == "kept")
    assert write_folder(config, path, []) is None, "told once"
    (tmp_path / "beside_package" / "part.py").write_text("x = 2\n")
    note = write_folder(config, path, [])
    assert str(tmp_path / "beside_package" / "part.py") in note and str(path) not in note
    # A run that is started from its own copy, in which something was changed.
    (run / "config.py").write_text(first + "# edited in place\n")
    assert f"{run / 'config.py'}." in write_folder(config, run / "config.py", [])


def test_a_stage_may_have_an_optimizer_of_its_own():
    own = OptimizerConfig(learning_rate=0.5)
    config = replace(
        CONFIG, stages=(replace(SFT, optimizer=own, num_steps=3), replace(GRPO, num_steps=4, num_minibatches=2, num_epochs=3))
    )
    assert config.optimizer_of(config.stages[0]) == own
    assert config.optimizer_of(config.stages[1]) == config.optimizer
    assert config.num_steps == 7
    assert config.stages[1].updates_per_step == 6


def test_stages_are_told_apart_by_name_whatever_their_tasks_are():
    tasks = [np.arange(3), np.arange(3)]  # neither equal nor not
    config = replace(CONFIG, stages=tuple(replace(GRPO, task=task, name=f"s{i}") for i, task in enumerate(tasks)), seed=5)
    assert [config.data_seed(stage) for stage in config.stages] == [10, 11]


def test_a_user_error_is_one_line_and_status_two(capsys):
    def main():
        raise UserError("loss.kl=x: use k1")

    with pytest.raises(SystemExit) as stop:
        run_command(main)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: loss.kl=x: use k1\n"
    for status, code in ((None, 0), (0, 0), (3, 3)):
        with pytest.raises(SystemExit) as stop:
            run_command(lambda status=status: status)
        assert stop.value.code == code


def test_an_interruption_is_not_lost_in_the_garbage_collector():
    def interrupted(phase: str, _: dict) -> None:
        if phase == "start":
            signal.raise_signal(signal.SIGINT)

    def main() -> None:
        gc.callbacks.append(interrupted)
        gc.collect()
        gc.callbacks.remove(interrupted)
        for _ in range(1000):
            time.sleep(0.01)

    with pytest.raises(SystemExit) as stop:
        run_command(main)
    assert stop.value.code == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def python(*args: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, env=environment, check=False)


def test_config_and_help_import_nothing_heavy(config_file):
    script = textwrap.dedent(
        f"""
        import sys
        from jaxrl_ml.cli import load
        try:
            load({str(config_file)!r}, ["--help"])
        except SystemExit as stop:
            assert stop.code == 0
        heavy = {{"jax", "numpy", "transformers", "flax", "optax", "orbax", "grain", "datasets", "torch"}} & set(sys.modules)
        assert heavy <= {{"numpy"}}, heavy
        """
    )
    done = python("-c", script)
    assert done.returncode == 0, done.stderr
    assert "--optimizer.learning-rate" in done.stdout
    assert "--stages.1.loss.kl" in done.stdout
