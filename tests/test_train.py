"""The whole loop on a tiny model: stages, resuming after TERM and KILL, meshes, faults, and objects of the user's own."""

from __future__ import annotations

import datetime
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxrl_ml import convert, evaluate, generate, pretrained, tokenizer
from jaxrl_ml import train as train_module
from jaxrl_ml.analysis.learning import LearningWatch
from jaxrl_ml.checkpoint import load_reference
from jaxrl_ml.config import MeshConfig
from jaxrl_ml.models.transformer import Transformer
from jaxrl_ml.pretrained import load_params, read_model_config
from jaxrl_ml.programs import StepEnd
from jaxrl_ml.sharding import Layout, make_mesh
from jaxrl_ml.tokenizer import Tokenizer
from jaxrl_ml.train import Reporter, main
from jaxrl_ml.types import StepReport, UserError

CONFIG = """
import os, signal
from pathlib import Path
import numpy as np
from jaxrl_ml.config import *
from jaxrl_ml.rewards.countdown import countdown_reward
from jaxrl_ml.tasks.countdown import Countdown, compact

calls = 0

def reward(texts, examples):
    global calls
    calls += 1
    fault, _, at = os.environ.get("FAULT", "").partition("@")
    if fault in ("SIGTERM", "SIGINT", "SIGKILL") and calls == int(at):
        os.kill(os.getpid(), getattr(signal, fault))
    if fault == "nan" and calls >= int(at):
        return np.full(len(texts), np.nan)
    scores = countdown_reward(texts, examples)
    # Some reward for length, and "correct" by its parity, so that the groups of an untrained model differ.
    lengths = np.array([len(t) for t in texts])
    return type(scores)(scores.rewards + (lengths % 7).astype(np.float32) / 10, lengths % 2 == 0, scores.parts)

def demonstrate(example, rng):
    fault, _, at = os.environ.get("FAULT", "").partition("@")
    if fault == "SFT-SIGKILL" and example.id.endswith(at):
        os.kill(os.getpid(), signal.SIGKILL)
    return f"<answer>{example.fields['solution'].replace(' ', '')}</answer>"

small = SamplingConfig(max_prompt_tokens=17, max_completion_tokens=8, prompts_per_chunk=8)
config = Config(
    run_dir="unset",
    tokenizer=(*"0123456789+-*/()=: ", "<answer>", "</answer>"),
    model=ModelConfig(family="qwen3", num_layers=2, embed_dim=32, mlp_dim=64, num_heads=4, num_kv_heads=2, head_dim=8),
    prompt_format=compact,
    stages=(
        SFTStage(Countdown(demonstrate=demonstrate), name="cold_start", num_steps=4, batch_size=8, sequence_length=64),
        GRPOStage(
            Countdown(), reward, num_steps=5, prompts_per_step=16, group_size=2, num_minibatches=2, sampling=small,
            loss=LossConfig(kl="k3", importance_cap=2.0, filter="resample", max_attempts=2),
        ),
    ),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=2),
    evaluations=(Evaluation(Countdown(split="test"), countdown_reward, num_prompts=8, prompts_per_batch=8, records=True,
                            sampling=SamplingConfig(temperature=0.0, max_prompt_tokens=17, max_completion_tokens=8)),),
    eval_every_steps=3,
    checkpoint=CheckpointConfig(every_steps=2),
    logging=LoggingConfig(console=False, tensorboard=False, samples_every_steps=2),
)
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: first)


def run(path: Path, run_dir: Path, *overrides: str) -> int:
    return main([str(path), "--run-dir", str(run_dir), *overrides])


def records(run_dir: Path, *, tolerate: tuple[str, ...] = ("time/", "rate/")) -> list[dict]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(tolerate)} for line in lines]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    (folder / "tiny.py").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        first = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda *_: first)
        assert run(folder / "tiny.py", folder / "run") == 0
    return folder / "run"


def test_run_writes_what_it_promises(uninterrupted: Path) -> None:
    found = records(uninterrupted)
    assert [r["step"] for r in found if "policy/loss" in r or "sft/loss" in r] == list(range(1, 10))
    assert [r["step"] for r in found if "eval/test/accuracy" in r] == [0, 3, 4, 6, 9]
    assert {r["stage"] for r in found} == {"cold_start", "grpo"}
    for name in ("config.py", "config.json", "overrides.json", "model.json", "samples.jsonl", "report.html"):
        assert (uninterrupted / name).stat().st_size > 0
    assert json.loads((uninterrupted / "config.json").read_text())["optimizer"]["learning_rate"] == 1e-3


def test_steps_learn_from_new_prompts_and_new_noise(uninterrupted: Path) -> None:
    steps = [r for r in records(uninterrupted) if "policy/loss" in r]
    assert len({r["policy/entropy"] for r in steps}) == len(steps)
    assert all(r["policy/sampler_gap"] < 1e-4 for r in steps)


@pytest.mark.parametrize("call", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_sigterm_saves_and_resumes_bit_for_bit(
    config_file: Path, tmp_path: Path, uninterrupted: Path, one_device: None, monkeypatch: pytest.MonkeyPatch, capsys, call: int
) -> None:
    monkeypatch.setenv("FAULT", f"SIGTERM@{call}")
    assert run(config_file, tmp_path / "run") == 75
    assert "resume with: python -m jaxrl_ml.train" in capsys.readouterr().out
    monkeypatch.setenv("FAULT", "")
    assert run(config_file, tmp_path / "run") == 0
    assert records(tmp_path / "run") == records(uninterrupted)
    assert (tmp_path / "run/samples.jsonl").read_text() == (uninterrupted / "samples.jsonl").read_text()


@pytest.mark.parametrize("fault", [pytest.param("SFT-SIGKILL@9", marks=pytest.mark.slow), "SIGKILL@7"])
def test_sigkill_resumes_bit_for_bit(
    config_file: Path, tmp_path: Path, uninterrupted: Path, one_device: None, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    # The same devices as here: how many there are changes how the CPU splits a sum.
    program = (
        "import sys, jax; first = jax.devices()[:1]; jax.devices = lambda *_: first\n"
        "from jaxrl_ml.train import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", program, str(config_file), "--run-dir", str(tmp_path / "run")]
    killed = subprocess.run(command, env=os.environ | {"FAULT": fault}, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert run(config_file, tmp_path / "run") == 0
    assert records(tmp_path / "run") == records(uninterrupted)
    samples = [{p.name: p.read_bytes() for p in (at / "records").iterdir()} for at in (tmp_path / "run", uninterrupted)]
    assert len(samples[0]) >= 4 and samples[0] == samples[1]


def test_eight_devices_give_the_result_of_one(config_file: Path, tmp_path: Path, uninterrupted: Path) -> None:
    assert run(config_file, tmp_path / "run", "--mesh.fsdp", "4", "--mesh.tensor", "2") == 0
    for one, eight in zip(records(uninterrupted), records(tmp_path / "run"), strict=True):
        assert one.keys() == eight.keys()
        for name in one.keys() - {"stage"}:
            assert eight[name] == pytest.approx(one[name], rel=1e-3, abs=1e-4), (one["step"], name)


@pytest.mark.slow
def test_a_run_resumes_on_another_mesh(
    config_file: Path, tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("FAULT", "SIGTERM@4")
        first = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda *_: first)
        assert run(config_file, tmp_path / "run") == 75
    assert run(config_file, tmp_path / "run", "--mesh.fsdp", "2", "--mesh.tensor", "2") == 0
    last, expected = records(tmp_path / "run")[-1], records(uninterrupted)[-1]
    assert last["step"] == expected["step"] == 9
    assert last["eval/test/accuracy"] == pytest.approx(expected["eval/test/accuracy"], abs=0.13)


def test_finished_run_is_left_alone(config_file: Path, tmp_path: Path, one_device: None, capsys) -> None:
    short = ("--stages.0.num-steps", "1", "--stages.1.num-steps", "1")
    assert run(config_file, tmp_path / "run", *short) == 0
    before = (tmp_path / "run/metrics.jsonl").read_text()
    assert run(config_file, tmp_path / "run", *short) == 0
    assert "is finished at step 2" in capsys.readouterr().out
    assert (tmp_path / "run/metrics.jsonl").read_text() == before
    with pytest.raises(UserError, match=r"holds a run with optimizer.learning_rate=0.001, not 0.5; use that value, or another"):
        run(config_file, tmp_path / "run", *short, "--optimizer.learning-rate", "0.5")


@pytest.mark.parametrize("start", ["run", *(pytest.param(start, marks=pytest.mark.slow) for start in ("rl", "stage"))])
def test_the_kl_reference_is_taken_at_the_start_that_is_named(tmp_path: Path, one_device: None, start: str) -> None:
    stage = "GRPOStage(Countdown(), reward, name='{}', num_steps=1, prompts_per_step=16, group_size=2, sampling=small, {})"
    kl = f"loss=LossConfig(kl='k3', reference='{start}')"
    stages = f"config.stages[0], {stage.format('explore', '')}, {stage.format('exploit', kl)}"
    checkpoints = "CheckpointConfig(every_steps=1, keep=9)"
    changed = f"import dataclasses\nconfig = dataclasses.replace(config, stages=({stages}), checkpoint={checkpoints})\n"
    (tmp_path / "three.py").write_text(CONFIG + changed)
    assert run(tmp_path / "three.py", tmp_path / "run") == 0
    kept = {"run": "cold_start", "rl": "explore", "stage": "exploit"}[start]
    assert [folder.name for folder in (tmp_path / "run" / "reference").iterdir()] == [kept]
    model = Transformer(read_model_config(tmp_path / "run"))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    shardings = Layout(make_mesh(MeshConfig())).tree(model.axes(), shapes)
    targets = jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), shapes, shardings)
    reference = load_reference(tmp_path / "run" / "reference" / kept, targets)

    def same(step: int) -> bool:
        params = load_params(tmp_path / "run", model, shardings, step)
        return all(bool((x == y).all()) for x, y in zip(*map(jax.tree.leaves, (params, reference)), strict=True))

    expected = {"run": [False, False], "rl": [True, False], "stage": [False, True]}[start]
    assert [same(4), same(5)] == expected  # the ends of cold start and exploration


def test_rewards_see_the_whole_step_whatever_its_chunks(tmp_path: Path, one_device: None) -> None:
    whole = """
from dataclasses import replace
import jax
mean = jax.jit(lambda correct: correct.mean())
class Whole:  # computed by jax, as a reward model is
    def __call__(self, texts, examples):
        even = jax.jit(lambda lengths: lengths % 2 == 0)(np.array(list(map(len, texts))))
        return type(countdown_reward([], []))(np.zeros(len(texts), np.float32), even)
    def over_step(self, scores):
        return replace(scores, rewards=np.full(len(scores.correct), mean(scores.correct), np.float32))
stage = replace(config.stages[1], reward=Whole(), num_steps=1, sampling=replace(small, prompts_per_chunk={}))
config = replace(config, stages=(stage,), evaluations=())
"""
    for chunk in (0, 4):
        (tmp_path / f"{chunk}.py").write_text(CONFIG + whole.format(chunk))
        assert run(tmp_path / f"{chunk}.py", tmp_path / str(chunk)) == 0
    (first,), (second,) = (records(tmp_path / str(chunk)) for chunk in (0, 4))
    assert first["reward/mean"] == second["reward/mean"]
    assert 0 < first["reward/correct"] == pytest.approx(first["reward/mean"])


def test_a_minibatch_with_nothing_to_learn_from_changes_nothing(tmp_path: Path, one_device: None) -> None:
    changed = """
from dataclasses import replace
def reward(texts, examples):
    correct = np.arange(len(texts)) == 0  # one group is mixed
    return type(countdown_reward([], []))(correct.astype(np.float32), correct)
stage = replace(config.stages[1], reward=reward, num_steps=3, sampling=replace(small, prompts_per_chunk=0),
                loss=LossConfig(filter="drop"), num_minibatches={}, num_epochs=1)
config = replace(config, stages=(stage,), evaluations=(), optimizer=OptimizerConfig(learning_rate=1e-2, weight_decay=0.1))
"""
    for parts in (1, 2):
        (tmp_path / f"{parts}.py").write_text(CONFIG + changed.format(parts))
        assert run(tmp_path / f"{parts}.py", tmp_path / str(parts)) == 0
    whole, split = (records(tmp_path / str(parts)) for parts in (1, 2))
    assert [r["policy/ratio"] for r in split] == pytest.approx([1, 1, 1])
    for name in ("policy/entropy", "policy/grad_norm", "rollout/length_tokens"):
        assert [r[name] for r in split] == pytest.approx([r[name] for r in whole], rel=1e-4), name


def test_nonfinite_rewards_stop_the_run(
    config_file: Path, tmp_path: Path, one_device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", "nan@3")
    with pytest.raises(UserError, match=r"not finite 2 steps in a row \(max_nonfinite_steps=2\)"):
        run(config_file, tmp_path / "run", "--max-nonfinite-steps", "2")
    skipped = [r for r in records(tmp_path / "run") if r.get("reward/nonfinite", 0) > 0]
    assert [r["train/nonfinite_steps"] for r in skipped] == [1, 2]
    assert all("policy/loss" not in r for r in skipped)


def test_usage_errors_are_one_line(config_file: Path, tmp_path: Path) -> None:
    for arguments, expected in (
        ([], "usage: python -m jaxrl_ml.train CONFIG"),
        ([str(tmp_path / "no.py")], "no config file"),
        ([str(config_file), "--run-dir", str(tmp_path / "r"), "--mesh.fsdp", "3"], "does not fit 8 device"),
        (
            [str(config_file), "--run-dir", str(tmp_path / "r"), "--stages.1.prompts-per-step", "6"],
            "prompts_per_chunk=8 must divide prompts_per_step=6",
        ),
        (
            [str(config_file), "--run-dir", str(tmp_path / "r"), "--model.max-positions", "24"],
            "exceeds the model's max_positions=24",
        ),
    ):
        with pytest.raises(UserError, match=expected) as caught:
            main(arguments)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ("task=[]", "a task of 0 examples"),
        ("task=iter([])", "a task of type list_iterator cannot be shuffled: give a list"),
        ("task=[{'prompt': '1'}]", "item 0 of a task is of type dict; give a jaxrl_ml.types.Example"),
        ("reward=0.5", "grpo: reward=0.5 cannot be called"),
        ("sampling=SamplingConfig(max_prompt_tokens=3, max_completion_tokens=8)", "over sampling.max_prompt_tokens=3"),
        ("language=LanguageConfig('forced', ('12',), '={code}' * 4)", "no room after a language tag of 12 tokens"),
    ],
)
def test_what_is_wrong_with_a_later_stage_is_told_before_the_first(
    tmp_path: Path, one_device: None, changes: str, expected: str
) -> None:
    changed = f"import dataclasses\nlater = dataclasses.replace(config.stages[1], {changes})\n"
    changed += "config = dataclasses.replace(config, stages=(config.stages[0], later), evaluations=())\n"
    (tmp_path / "later.py").write_text(CONFIG + changed)
    with pytest.raises(UserError, match=expected):
        run(tmp_path / "later.py", tmp_path / "run")
    assert records(tmp_path / "run") == [] and not list((tmp_path / "run/checkpoints").iterdir())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # coroutines of the failed restore
def test_a_damaged_checkpoint_is_named(
    config_file: Path, tmp_path: Path, one_device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", "SIGINT@6")
    assert run(config_file, tmp_path / "run") == 130
    last = max(int(folder.name) for folder in (tmp_path / "run/checkpoints").iterdir())
    for path in (tmp_path / f"run/checkpoints/{last}/params").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"checkpoints/{last} cannot be restored .* delete that folder to fall back") as caught:
        run(config_file, tmp_path / "run")
    assert "\n" not in str(caught.value)
    del caught
    gc.collect()


DATED = """
import os, signal
from pathlib import Path
import numpy as np
from jaxrl_ml.config import *
from jaxrl_ml.types import Example

calls = 0

def reward(texts, examples):
    global calls
    calls += 1
    if os.environ.get("FAULT") == f"SIGTERM@{calls}":
        os.kill(os.getpid(), signal.SIGTERM)
    return np.array([float(len(text) % 2) for text in texts])

task = [Example(str(i), "words", {"prompt": [{"role": "user", "content": f"word {i}"}]}) for i in range(8)]
small = SamplingConfig(max_prompt_tokens=64, max_completion_tokens=8)
config = Config(
    run_dir="unset",
    tokenizer=TOKENIZER,
    model=ModelConfig(num_layers=1, embed_dim=16, mlp_dim=16, num_heads=1, num_kv_heads=1, head_dim=16),
    stages=(GRPOStage(task, reward, num_steps=2, prompts_per_step=4, group_size=2, sampling=small),),
    optimizer=OptimizerConfig(learning_rate=1e-3),
    evaluations=(Evaluation(task, reward, num_prompts=2, prompts_per_batch=2, sampling=small),),
    logging=LoggingConfig(console=False, tensorboard=False, samples_every_steps=1),
)
"""


@pytest.mark.slow
def test_a_template_that_reads_the_date_has_that_of_the_runs_first_day(
    tmp_path: Path, one_device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_generate import byte_tokenizer

    template = "{{ strftime_now('%d %b %Y') }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    byte_tokenizer(template).save(tmp_path / "tokenizer")
    config = tmp_path / "dated.py"
    config.write_text(DATED.replace("TOKENIZER", repr(str(tmp_path / "tokenizer"))))

    def today(day: str) -> None:
        class Day(datetime.date):
            @classmethod
            def today(cls):
                return datetime.date.fromisoformat(day)

        monkeypatch.setattr(pretrained, "date", Day)
        monkeypatch.setattr(tokenizer, "date", Day)

    today("2026-11-30")
    assert run(config, tmp_path / "uninterrupted") == 0
    monkeypatch.setenv("FAULT", "SIGTERM@2")
    assert run(config, tmp_path / "run") == 75
    monkeypatch.setenv("FAULT", "")
    today("2026-12-01")  # after midnight
    with pytest.raises(UserError, match="holds a run with chat_date='2026-11-30', not '2026-12-01'"):
        run(config, tmp_path / "run", "--chat-date", "2026-12-01")
    assert run(config, tmp_path / "run") == 0
    assert records(tmp_path / "run") == records(tmp_path / "uninterrupted")
    samples = [(tmp_path / name / "samples.jsonl").read_text() for name in ("run", "uninterrupted")]
    assert samples[0] == samples[1]
    prompts = {json.loads(line)["prompt"] for line in samples[0].splitlines()}
    assert len(prompts) > 2 and all(prompt.startswith("30 Nov 2026[user]word ") for prompt in prompts)
    assert json.loads((tmp_path / "run/config.json").read_text())["chat_date"] == "2026-11-30"

    # Later commands on the run have its day, too, unless their config names another.
    evaluate.main([str(tmp_path / "run")])
    (tmp_path / "other.py").write_text(
        config.read_text() + "import dataclasses\nconfig = dataclasses.replace(config, chat_date='2025-05-06', stages=())\n"
    )
    evaluate.main([str(tmp_path / "run"), "--config", str(tmp_path / "other.py"), "--out", str(tmp_path / "other.json")])
    results = [json.loads(path.read_text()) for path in (tmp_path / "run/evaluations/test-2.json", tmp_path / "other.json")]
    assert [result["chat_date"] for result in results] == ["2026-11-30", "2025-05-06"]
    assert [result["records"][0]["prompt"][:11] for result in results] == ["30 Nov 2026", "06 May 2025"]
    assert generate.load_model(tmp_path / "run", None, 1)[2].day == datetime.date(2026, 11, 30)
    convert.main(["to-hf", str(tmp_path / "run"), str(tmp_path / "hf")])
    assert generate.load_model(tmp_path / "hf", None, 1)[2].day == datetime.date(2026, 12, 1)


def test_a_mark_that_decoding_would_lose_is_told_before_anything_is_trained(tmp_path: Path, one_device: None) -> None:
    from test_tokenizer import wrapped

    hf = wrapped("bytes", additional_special_tokens=["</answer>"])
    hf.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    Tokenizer(hf, [1, hf.convert_tokens_to_ids("</answer>")]).save(tmp_path / "tokenizer")
    text = DATED.replace("TOKENIZER", repr(str(tmp_path / "tokenizer")))
    for owner, without in (("grpo", "evaluations"), ("evaluation test", "stages")):
        stages = "stages=(SFTStage(task, num_steps=1),)" if without == "stages" else "evaluations=()"
        config = tmp_path / f"{without}.py"
        config.write_text(f"{text}import dataclasses\nconfig = dataclasses.replace(config, {stages})\n")
        with pytest.raises(UserError, match=f"{owner}: rewards read </answer>, but </answer> is the tokenizer's") as caught:
            run(config, tmp_path / without)
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_rewards_are_given_the_mark_of_thinking_that_the_prompt_opened(tmp_path: Path, one_device: None) -> None:
    """In training and in evaluations; samples and records keep the completion as it was sampled."""
    text = CONFIG.replace('"<answer>", ', '"<answer>", "<think>", "\\n", ').replace(
        "prompt_format=compact", "prompt_format=thinks"
    )
    text = text.replace("from pathlib import Path", "thinks = lambda example: compact(example) + '<think>\\n'")
    text = text.replace("max_prompt_tokens=17", "max_prompt_tokens=19")
    text = text.replace("Countdown(), reward,", "Countdown(), opened,").replace(
        'split="test"), countdown_reward,', 'split="test"), opened,'
    )
    text += "config = dataclasses.replace(config, stages=config.stages[1:])"
    text = text.replace(
        "calls = 0",
        "import dataclasses\nopened = lambda texts, examples: np.array([t.startswith('<think>\\n') for t in texts], float)",
    )
    (tmp_path / "tiny.py").write_text(text.replace("num_steps=5", "num_steps=1").replace('filter="resample", ', ""))
    assert run(tmp_path / "tiny.py", tmp_path / "run") == 0
    steps = records(tmp_path / "run")
    assert [r["reward/mean"] for r in steps if "reward/mean" in r] == [1.0]
    assert [r["eval/test/reward"] for r in steps if "eval/test/reward" in r] == [1.0, 1.0]
    samples = [json.loads(line) for line in (tmp_path / "run/samples.jsonl").read_text().splitlines()]
    assert samples and all(s["prompt"].endswith("<think>\n") and not s["completion"].startswith("<think>\n") for s in samples)


def test_the_readme_example_runs(tmp_path: Path, one_device: None) -> None:
    text = (Path(__file__).parent.parent / "README.md").read_text()
    example = next(block for block in text.split("```python\n")[1:] if "def reward" in block).split("```")[0]
    (tmp_path / "double.py").write_text(example)
    small = ["--model.num-layers", "1", "--model.embed-dim", "16", "--model.mlp-dim", "16", "--model.num-heads", "1"]
    small += ["--model.num-kv-heads", "1", "--stages.0.sampling.max-completion-tokens", "4", "--logging.no-console"]
    assert run(tmp_path / "double.py", tmp_path / "run", *small) == 0
    assert [r["step"] for r in records(tmp_path / "run") if "reward/mean" in r] == [1, 2]


# ------------------------------------------------------------------------------- rewards by name, and runs that do not learn

LITTLE = """
import numpy as np
from dataclasses import replace
from jaxrl_ml.config import *
from jaxrl_ml.types import Example, Scores

task = [Example(str(n), "double", {"prompt": f"{n}*2="}, str(2 * n), completion=str(2 * n)) for n in range(50)]
sampling = SamplingConfig(max_prompt_tokens=8, max_completion_tokens=4)

def lengths(texts):
    return np.array([float(len(text)) for text in texts])

def answer(texts, examples):
    return (lengths(texts) % 2 == 0) * 1.0

def short(texts, examples):
    return 4 - lengths(texts)

def nothing(texts, examples):
    return np.zeros(len(texts))

grpo = GRPOStage(task, answer, num_steps=6, prompts_per_step=8, group_size=4, sampling=sampling)
sft = SFTStage(task, num_steps=6, batch_size=2, sequence_length=32)
config = Config(
    stages=(grpo,), run_dir="unset", tokenizer=tuple("0123456789*="),
    model=ModelConfig(num_layers=1, embed_dim=16, mlp_dim=16, num_heads=1, num_kv_heads=1),
    logging=LoggingConfig(tensorboard=False, samples_every_steps=1), checkpoint=CheckpointConfig(every_steps=2),
)
"""


def little(folder: Path, changes: str = "") -> Path:
    """A config file of a tiny run of six steps."""
    (folder / "little.py").write_text(LITTLE + changes)
    return folder / "little.py"


NAMED = "{'answer': answer, 'short': (short, 0.25)}"


def test_named_rewards_are_weighted_logged_and_overridden(tmp_path: Path, one_device: None) -> None:
    evaluation = f"Evaluation(task, {NAMED}, correct='answer', num_prompts=8, sampling=sampling, samples_per_prompt=4)"
    path = little(tmp_path, f"config = replace(config, stages=(replace(grpo, reward={NAMED}, correct='answer'),), "
                            f"evaluations=({evaluation},))")  # fmt: skip
    assert run(path, tmp_path / "run", "--stages.0.num-steps", "2", "--stages.0.reward.short.1", "-0.5") == 0
    samples = [json.loads(line) for line in (tmp_path / "run/samples.jsonl").read_text().splitlines()]
    for sample in samples:
        length = len(sample["completion"])
        assert sample["parts"] == pytest.approx({"answer": float(length % 2 == 0), "short": -0.5 * (4 - length)})
        assert sample["reward"] == pytest.approx(sum(sample["parts"].values()))
        assert sample["correct"] == (length % 2 == 0)
    steps = [r for r in records(tmp_path / "run") if "reward/mean" in r]
    assert len(steps) == 2
    for r in steps:
        assert r["reward/mean"] == pytest.approx(r["reward/answer"] + r["reward/short"], abs=1e-6)
        assert r["reward/short"] == pytest.approx(-0.5 * r["unweighted/short"])
        assert r["reward/correct"] == r["unweighted/answer"]
    last = records(tmp_path / "run")[-1]
    assert last["eval/test/accuracy"] == pytest.approx(last["eval/test/unweighted/answer"])
    assert last["eval/test/reward"] == pytest.approx(last["eval/test/accuracy"] + 0.25 * last["eval/test/unweighted/short"])
    shown = json.loads((tmp_path / "run/config.json").read_text())["stages"][0]
    assert shown["correct"] == "answer" and shown["reward"]["short"][1] == -0.5
    with pytest.raises(UserError, match=r"holds a run with stages.0.reward.short.1=-0.5, not 0.25"):
        run(path, tmp_path / "run", "--stages.0.num-steps", "2")


@pytest.mark.slow
def test_a_named_reward_of_whole_steps_does_not_depend_on_chunks(tmp_path: Path, one_device: None) -> None:
    whole = """
class Whole:
    def __call__(self, texts, examples):
        return Scores(lengths(texts), lengths(texts) % 2 == 0)
    def over_step(self, scores):
        return replace(scores, rewards=scores.rewards - scores.rewards.mean())
reward = {"answer": answer, "whole": (Whole(), 0.5)}
stage = replace(grpo, reward=reward, correct="answer", num_steps=2, sampling=replace(sampling, prompts_per_chunk=CHUNK))
config = replace(config, stages=(stage,))
"""
    for chunk in (0, 4):
        little(tmp_path, whole.replace("CHUNK", str(chunk)))
        assert run(tmp_path / "little.py", tmp_path / str(chunk)) == 0
    first, second = (records(tmp_path / str(chunk)) for chunk in (0, 4))
    assert all(abs(r["reward/whole"]) < 1e-6 for r in first)
    for one, other in zip(first, second, strict=True):
        for name in ("reward/mean", "reward/answer", "unweighted/whole", "correct/whole", "reward/correct"):
            assert one[name] == pytest.approx(other[name], abs=1e-6), name


def test_steps_without_learning_are_told_and_the_run_still_ends_with_0(tmp_path: Path, one_device: None, capsys) -> None:
    path = little(tmp_path, "config = replace(config, stages=(replace(grpo, reward=nothing),))")
    assert run(path, tmp_path / "run") == 0
    shown = capsys.readouterr().out
    assert "warning: grpo has learnt nothing for 5 steps: no completion is right (mean reward 0" in shown
    assert "warning: grpo learnt nothing in 6 of 6 steps, up to 6 in a row" in shown
    assert [r["train/steps_without_learning"] for r in records(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    assert "grpo learnt nothing in 6 of 6 steps" in (tmp_path / "run/report.html").read_text()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ("reward=lambda t, e: np.ones(len(t))", "all completions are right: give harder problems"),
        (
            "reward=lambda t, e: np.array([float(int(x.id) % 2) for x in e]), loss=LossConfig(kl='k3')",
            "the rewards are equal within each group",
        ),
        (
            "reward=lambda t, e: Scores(lengths(t), np.array([int(x.id) % 2 == 0 for x in e])), loss=LossConfig(filter='drop')",
            "no row is left in the loss: 0.0% of the groups have both",
        ),
        (
            "reward=lambda t, e: Scores(lengths(t), np.zeros(len(t), bool))",
            "no group with both right and wrong completions for 5 steps",
        ),
    ],
)
def test_what_keeps_a_stage_from_learning_is_named(tmp_path: Path, one_device: None, capsys, changes: str, words: str) -> None:
    path = little(tmp_path, f"config = replace(config, stages=(replace(grpo, num_steps=5, {changes}),))")
    assert run(path, tmp_path / "run") == 0
    assert words in capsys.readouterr().out


def test_sft_with_a_zero_gradient_is_told(tmp_path: Path, one_device: None, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    from jaxrl_ml import update

    def no_loss(*arguments: object) -> tuple:
        logprobs, entropy = token_logprobs(*arguments)
        return 0 * logprobs, entropy

    token_logprobs = update.token_logprobs
    monkeypatch.setattr(update, "token_logprobs", no_loss)
    assert run(little(tmp_path, "config = replace(config, stages=(sft,))"), tmp_path / "run") == 0
    assert "warning: sft has learnt nothing for 5 steps: the gradient is exactly zero" in capsys.readouterr().out


@pytest.mark.slow
def test_the_count_of_steps_without_learning_survives_a_resume(
    tmp_path: Path, one_device: None, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    two = """
import os, signal
calls = 0
def stopped(texts, examples):
    global calls
    calls += 1
    if os.environ.get("STOP") == str(calls):
        os.kill(os.getpid(), signal.SIGTERM)
    return nothing(texts, examples)
config = replace(config, stages=(replace(grpo, reward=nothing, name="first", num_steps=3), replace(grpo, reward=stopped)))
"""
    path = little(tmp_path, two)
    assert run(path, tmp_path / "whole") == 0
    monkeypatch.setenv("STOP", "3")
    assert run(path, tmp_path / "stopped") == 75
    monkeypatch.setenv("STOP", "")
    capsys.readouterr()
    assert run(path, tmp_path / "stopped") == 0
    assert records(tmp_path / "stopped") == records(tmp_path / "whole")
    assert "note:" not in capsys.readouterr().out, "the code is the same"
    assert [r["train/steps_without_learning"] for r in records(tmp_path / "whole")] == [1, 2, 3, 1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_plain_rewards_that_do_not_fit_are_told_once(tmp_path: Path, one_device: None, capsys) -> None:
    plain = """
almost = lambda texts, examples: 0.9 * answer(texts, examples)
bonus = lambda texts, examples: 1.0 + 0.9 * answer(texts, examples)
test = Evaluation(task, almost, num_prompts=8, sampling=sampling)
config = replace(config, stages=(replace(grpo, reward=almost), replace(grpo, reward=bonus, name="bonus", num_steps=2)),
                 evaluations=(test, replace(test, reward=answer, name="fine")), eval_every_steps=2)
"""
    assert run(little(tmp_path, plain), tmp_path / "run") == 0
    shown = capsys.readouterr().out
    for owner, counted in (
        ("grpo", "from 0 to 0.9: 1 or more counts as correct, so no completion is correct"),
        ("bonus", "from 1 to 1.9: 1 or more counts as correct, so bonuses can make a wrong answer count as correct"),
        ("evaluation test", "so no completion is correct"),
    ):
        lines = [line for line in shown.splitlines() if line.startswith(f"warning: {owner}: ")]
        assert len(lines) == 1 and counted in lines[0], shown
    assert "warning: evaluation fine" not in shown
    assert [r["reward/correct"] for r in records(tmp_path / "run") if "reward/mean" in r] == [0] * 6 + [1] * 2


# --------------------------------------------------------------------------------------------------------- times of steps


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Leaf:
    """A metric that the device has at `at`; to fetch it waits until then."""

    def __init__(self, clock: Clock, at: float) -> None:
        self.clock, self.at = clock, at

    def is_ready(self) -> bool:
        return self.clock.now >= self.at

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        self.clock.now = max(self.clock.now, self.at)
        return np.float32(1)


def step_times(
    monkeypatch: pytest.MonkeyPatch, host_s: float, device_s: float, boundaries: tuple[int, ...], steps: int, own_end: bool
) -> tuple[list[float], float]:
    """The `time/step_s` of a stage whose steps take so long on the host and on the device, and the time that passed.

    At boundaries there is an evaluation, which takes 100 s. own_end: the stage knows when the device was done, as GRPO does.
    """
    clock, written, left_out, busy_until = Clock(), [], 0.0, 0.0
    monkeypatch.setattr(train_module, "time", clock)
    log = SimpleNamespace(write=lambda step, stage, m: written.append(m), log_samples=lambda *_: None, say=lambda _: None)
    reporter = Reporter(log, 5, 0, LearningWatch())
    reporter.skip_time()
    for step in range(1, steps + 1):
        if own_end:  # it samples, hence waits for the update before
            clock.now = max(clock.now, busy_until)
        clock.now += host_s
        busy_until = max(clock.now, busy_until) + device_s
        end = (lambda at=busy_until: at) if own_end else None
        reporter.push(step, "sft", StepReport({"sft/tokens": 60.0, "sft/loss_tokens": 1.0}, [{"x": Leaf(clock, busy_until)}],
                                              finished_s=end))  # fmt: skip
        if step in boundaries or step == steps:
            reporter.flush()
            clock.now += 100
            left_out += 100
            reporter.skip_time()
    for metrics in written:
        assert metrics["rate/tokens_per_s"] == pytest.approx(60 / metrics["time/step_s"])
    return [metrics["time/step_s"] for metrics in written], clock.now - left_out


@pytest.mark.parametrize("own_end", [False, True])
@pytest.mark.parametrize("boundaries", [(), (1, 2, 7), tuple(range(20))])
@pytest.mark.parametrize(("host_s", "device_s"), [(0.001, 1.0), (1.0, 0.001), (1.0, 0.9), (0.9, 1.0), (1.0, 1.0)])
def test_the_times_of_steps_add_up_to_the_wall_time(
    monkeypatch: pytest.MonkeyPatch, host_s: float, device_s: float, boundaries: tuple[int, ...], own_end: bool
) -> None:
    times, passed = step_times(monkeypatch, host_s, device_s, boundaries, 20, own_end)
    assert sum(times) == pytest.approx(passed, rel=0.03)
    slower = host_s + device_s if own_end or len(boundaries) == 20 else max(host_s, device_s)
    assert np.median(times) == pytest.approx(slower, rel=0.03)
    assert min(times) >= 0.45 * max(host_s, device_s), "no step seems many times faster than the machine"


def test_a_step_of_grpo_ends_when_the_device_is_done_and_not_after_the_next_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    times, _ = step_times(monkeypatch, 3.0, 1.0, (5,), 10, own_end=True)
    assert times == pytest.approx([4.0] * 10)


def test_the_end_of_a_step_is_noted_without_waiting_for_it() -> None:
    done, noted = threading.Event(), []

    class Slow:
        def block_until_ready(self) -> None:
            assert done.wait(30)
            noted.append(time.perf_counter())

    end = StepEnd([{"x": Slow()}])
    assert not noted
    begun = time.perf_counter()
    done.set()
    assert begun <= noted_or(end, noted) <= end.time_s() <= time.perf_counter()

    class Broken:
        def block_until_ready(self) -> None:
            raise RuntimeError("the loop meets this when it fetches")

    assert begun <= StepEnd([Broken()]).time_s() and begun <= StepEnd([]).time_s() <= time.perf_counter()


def noted_or(end: StepEnd, noted: list[float]) -> float:
    end.join()
    return noted[0]


# ------------------------------------------------------------------------------------------- what a run leaves as it was


@pytest.mark.slow
def test_a_run_from_python_leaves_jax_and_the_process_as_they_were(tmp_path: Path) -> None:
    """Finished, failed or interrupted; and a user's reward and task may broadcast while it runs."""
    little(tmp_path)
    program = f"""
import logging, os, signal, sys, warnings
import jax, jax.numpy as jnp, numpy as np
from pathlib import Path
from jaxrl_ml.cli import load
from jaxrl_ml.train import train
from jaxrl_ml.types import UserError
from dataclasses import replace

def broadcast():
    return float((jnp.ones((3, 4)) + jnp.ones(4)).sum())

broadcast()
absl = logging.getLogger("absl")
def settings():
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    state = absl.level, list(absl.filters), logging.root.level, np.geterr(), list(warnings.filters), handlers
    return dict(jax.config.values), dict(os.environ), state

class Task(list):  # read in a background thread
    def __getitem__(self, index):
        assert broadcast() == 24
        return super().__getitem__(index)

fault = None
def reward(texts, examples):
    assert broadcast() == 24
    if fault is not None:
        raise fault
    return np.array([float(len(text) % 2) for text in texts])

config = load({str(tmp_path / "little.py")!r})
stage = replace(config.stages[0], task=Task(config.stages[0].task), reward=reward, num_steps=1)
stages = (replace(stage, sampling=replace(stage.sampling, prompts_per_chunk=4)),)
config = replace(config, stages=stages, logging=replace(config.logging, console=False))
before = settings()
for number, fault in enumerate((None, RuntimeError("broken"), KeyboardInterrupt())):
    try:
        run_dir = {str(tmp_path)!r} + f"/{{number}}"
        assert train(replace(config, run_dir=run_dir), Path({str(tmp_path / "little.py")!r})) == 0
        assert fault is None
    except (UserError, KeyboardInterrupt) as error:
        assert fault in (error, error.__cause__)
    after = settings()
    assert after == before, [(k, v, after[0][k]) for k, v in before[0].items() if after[0][k] != v] or (after[1:], before[1:])
    assert broadcast() == 24
# What is compiled from now on is not written to the runs' cache.
cached = len(list(Path({str(tmp_path)!r}).glob(".compilation_cache/*")))
assert cached > 0
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: x * 3 + 1)(jnp.ones(7))
assert cached == len(list(Path({str(tmp_path)!r}).glob(".compilation_cache/*"))), "still written to"
print("as it was")
"""
    one_device = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ | one_device)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("as it was\n")


def test_a_cache_that_the_user_has_set_up_is_left_alone(tmp_path: Path, one_device: None) -> None:
    before = dict(jax.config.values)
    assert before["jax_compilation_cache_dir"] is not None, "the tests have one"
    assert run(little(tmp_path), tmp_path / "run", "--stages.0.num-steps", "1") == 0
    assert dict(jax.config.values) == before
    assert not (tmp_path / ".compilation_cache").exists()


# --------------------------------------------------------------------------------------------------- code that has changed


@pytest.mark.slow
def test_a_run_that_goes_on_with_other_code_says_so(tmp_path: Path, one_device: None, capsys) -> None:
    stop = """
import os, signal
def reward(texts, examples):
    if (run_dir / "checkpoints").is_dir() and not any((run_dir / "checkpoints").iterdir()):
        os.kill(os.getpid(), signal.SIGTERM)
    return lengths(texts)
from pathlib import Path
run_dir = Path(RUN)
config = replace(config, stages=(replace(grpo, reward=reward),))
""".replace("RUN", repr(str(tmp_path / "run")))
    path = little(tmp_path, stop)
    assert run(path, tmp_path / "run") == 75
    first = path.read_text()
    path.write_text(first.replace("return lengths(texts)\nfrom", "return 9 * lengths(texts)\nfrom"))
    assert run(path, tmp_path / "run", "--max-nonfinite-steps", "6") == 0
    (note,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    (kept,) = (tmp_path / "run").glob("config-*.py")
    assert f"changed since this run was last started: {path} (before: {kept})." in note
    assert "is not compared field by field" in note
    assert kept.read_text() == first and (tmp_path / "run/config.py").read_text() == path.read_text() != first
    assert run(path, tmp_path / "run", "--max-nonfinite-steps", "6") == 0
    assert "note:" not in capsys.readouterr().out
