"""The builder keeps what is right, finished and in its language, one a problem up to the quota, and tells where it is from."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from test_processes import launch, statuses

from jaxrl_ml import coldstart
from jaxrl_ml.checkpoint import Checkpoints
from jaxrl_ml.coldstart import Draft, Tally, sift
from jaxrl_ml.config import CheckpointConfig, ComputeConfig, GRPOStage, LanguageConfig, MeshConfig, ModelConfig
from jaxrl_ml.languages.detect import Detector
from jaxrl_ml.languages.phrases import LANGUAGES, OPENINGS
from jaxrl_ml.languages.thinking import parse
from jaxrl_ml.pretrained import write_model_config
from jaxrl_ml.programs import Programs
from jaxrl_ml.rewards.countdown import countdown_reward
from jaxrl_ml.sharding import make_mesh
from jaxrl_ml.tasks.countdown import Countdown
from jaxrl_ml.tasks.traces import from_jsonl
from jaxrl_ml.tokenizer import Tokenizer
from jaxrl_ml.types import Example, UserError

CONFIG = """
from jaxrl_ml.config import Config, GRPOStage, LanguageConfig, MeshConfig, ModelConfig, SamplingConfig, SFTStage
from jaxrl_ml.rewards.countdown import countdown_reward
from jaxrl_ml.tasks.countdown import Countdown, compact
from jaxrl_ml.tasks.traces import from_jsonl
from jaxrl_ml.types import Example, Scores

task = Countdown(num_numbers=(3,), max_number=20)
config = Config(
    model=ModelConfig(), tokenizer=("a",), prompt_format=compact, run_dir="unused",
    stages=(
        SFTStage(from_jsonl("yet/to/be/written.jsonl"), name="cold_start"),
        GRPOStage(task, countdown_reward, name="plain"),
        GRPOStage(task, countdown_reward, name="thinking", language=LanguageConfig("constrained", {languages})),
    ),
)
"""


def write_config(folder: Path, languages: tuple[str, ...] = ("en", "zh", "th")) -> Path:
    path = folder / "config.py"
    path.write_text(CONFIG.format(languages=languages))
    return path


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_templates_become_verified_balanced_traces(tmp_path: Path, capsys) -> None:
    out = tmp_path / "new" / "traces.jsonl"
    coldstart.main([str(write_config(tmp_path)), str(out), "--per-language", "20"])
    rows = rows_of(out)
    assert [row["language"] for row in rows] == ["en"] * 20 + ["zh"] * 20 + ["th"] * 20
    assert [path.name for path in out.parent.iterdir()] == ["traces.jsonl"]
    task = from_jsonl(out)
    assert countdown_reward([e.completion for e in task], list(task)).correct.all()
    read = parse([e.completion for e in task], LanguageConfig("free", LANGUAGES))
    codes = [e.fields["languages"][0] for e in task]
    assert [c.code for c in read] == codes
    assert Detector(("en", "zh", "th"))([c.thinking for c in read]).code.tolist() == codes
    problems = Countdown(num_numbers=(3,), max_number=20)
    for row, example in zip(rows, task, strict=True):
        of_task = problems[int(example.id.rsplit("-", 1)[1])]
        assert example.id == f"{row['language']}/countdown/3/{of_task.id}"
        assert example == dataclasses.replace(
            of_task,
            id=example.id,
            fields={**of_task.fields, "languages": (row["language"],)},
            completion=example.completion,
        )
        assert row["provenance"]["teacher"] == "templates"
        assert row["provenance"]["verdicts"]["correct"] and row["provenance"]["verdicts"]["detected"] == row["language"]
    printed = capsys.readouterr()
    assert "compliant" in printed.out and "zh: 20 of 20 from" in printed.out and not printed.err


def test_unmet_quotas_are_told(tmp_path: Path, capsys) -> None:
    out = tmp_path / "traces.jsonl"
    arguments = ["--languages", "th", "--per-language", "9", "--problems", "6"]
    coldstart.main([str(write_config(tmp_path)), str(out), *arguments])
    assert len(rows_of(out)) == 6
    assert "after 6 problems: th lacks 3" in capsys.readouterr().err


def stage(reward=countdown_reward) -> GRPOStage:
    numbers = {"numbers": (1, 2), "target": 3}
    task = [Example(str(i), "countdown/2", {**numbers, "languages": ("xx",)}) for i in range(4)]
    return GRPOStage(task, reward, language=LanguageConfig("constrained", ("en", "de")))


ENGLISH, GERMAN = "We can just add the two numbers.", "Wir addieren einfach die beiden Zahlen."


def draft(problem: int, thinking: str = ENGLISH, answer: str = "1 + 2", ended: bool = True) -> Draft:
    return Draft(problem, f"TAG{thinking}</think><answer>{answer}</answer>", thinking, ended, {"teacher": "t"})


def test_only_good_drafts_are_kept() -> None:
    tally = Tally(quota=2)
    drafts = [
        draft(0, GERMAN), draft(0, "3"), draft(0, answer="1 - 2"),
        draft(0, ENGLISH * 2, ended=False), draft(0), draft(0, ENGLISH * 3),
        draft(1, ""), draft(2, ENGLISH + " \ud800"), draft(3),
    ]  # fmt: skip
    sift(stage(), Detector(("en", "de")), "en", drafts, tally)
    assert list(tally.rows) == ["en/countdown/2/0", "en/countdown/2/2"], "one a problem, up to the quota"
    first = tally.rows["en/countdown/2/0"]
    assert first["completion"] == drafts[4].completion and tally.missing == 0
    assert (tally.sampled, tally.correct, tally.compliant) == (9, 8, 6)
    assert first["fields"] == {"numbers": (1, 2), "target": 3}
    assert first["provenance"] == {
        "teacher": "t",
        "verdicts": {
            "correct": True,
            "reward": 1.0,
            "detected": "en",
            "switched": 0.0,
            "letters": len("Wecanjustaddthetwonumbers"),
        },
    }


def test_named_rewards_keep_what_the_deciding_one_calls_right() -> None:
    tally, bonus = Tally(quota=9), lambda texts, examples: np.ones(len(texts))
    named = dataclasses.replace(stage(), reward={"bonus": (bonus, 5.0), "answer": (countdown_reward, 2.0)}, correct="answer")
    sift(named, Detector(("en", "de")), "en", [draft(0, answer="1 - 2"), draft(1)], tally)
    assert list(tally.rows) == ["en/countdown/2/1"] and tally.correct == 1
    assert tally.rows["en/countdown/2/1"]["provenance"]["verdicts"]["reward"] == 7.0


def test_hostile_text_survives_the_file(tmp_path: Path) -> None:
    text = 'TAG\ud800 \u2028 \x85 \r\n \x00 \x1b[2J \U0001f600 "</think>'
    tally = Tally(quota=1)
    drafts = [draft(0)._replace(completion=text + "<answer>1+2</answer>")]
    sift(stage(), Detector(("en", "de")), "en", drafts, tally)
    coldstart.write_jsonl(tally.rows.values(), tmp_path / "x.jsonl")
    assert from_jsonl(tmp_path / "x.jsonl")[0].completion == drafts[0].completion


MODEL = ModelConfig(
    vocab_size=24, num_layers=1, embed_dim=16, mlp_dim=32, num_heads=2, num_kv_heads=2, head_dim=8, tie_embeddings=False
)
# The openings are tokens of their own. What a random model writes after one ends with a 7, and is right where it was closed.
STARTS = tuple(f"<think>\n{OPENINGS[code]}" for code in ("en", "de"))
VOCABULARY = (*"0123456789", *STARTS, "</think>", " We add numbers.", " Wir addieren Zahlen.", *"+-*/()=")
TEACHER_CONFIG = """
import numpy as np
from jaxrl_ml.config import Config, GRPOStage, LanguageConfig, MeshConfig, ModelConfig, SamplingConfig
from jaxrl_ml.types import Example

def reward(texts, examples):
    assert all(text.startswith("<" + example.fields["languages"][0] + ">") for text, example in zip(texts, examples))
    return np.array([float("7" in text.partition("</think>")[2]) for text in texts])

task = [Example(id=str(i), task="t", fields={"prompt": str(i)}) for i in range(20)]
sampling = SamplingConfig(4, 40, temperature=1.0, stop=("7",))
config = Config(
    model=ModelConfig(), tokenizer=("a",), seed=3, mesh=MeshConfig(data=2, fsdp=2, tensor=2), run_dir="unused",
    stages=(GRPOStage(task, reward, prompts_per_step=8, group_size=8, sampling=sampling,
                      language=LanguageConfig("constrained", ("de", "en", "nl"), "<{code}>")),),
)
"""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    write_model_config(folder, MODEL)
    Tokenizer.from_vocabulary(VOCABULARY).save(folder / "tokenizer")
    programs = Programs(MODEL, ComputeConfig(), make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    with Checkpoints(folder, CheckpointConfig()) as checkpoints:
        checkpoints.save_params(9, programs.init(jax.random.key(1)))
    return folder


def test_a_teacher_thinks_in_every_language(teacher: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    made: list[Programs] = []

    def keep(*args):
        made.append(Programs(*args))
        return made[-1]

    monkeypatch.setattr("jaxrl_ml.programs.Programs", keep)
    (tmp_path / "config.py").write_text(TEACHER_CONFIG)
    out = tmp_path / "traces.jsonl"
    arguments = ["--teacher", str(teacher), "--languages", "en", "de", "--per-language", "3", "--problems", "16"]
    coldstart.main([str(tmp_path / "config.py"), str(out), *arguments])
    rows = rows_of(out)
    assert made[0]._sample_tagged._cache_size() == 1
    assert {row["language"] for row in rows} == {"en", "de"}
    assert len({row["id"] for row in rows}) == len(rows) <= 6
    for row in rows:
        start = f"<{row['language']}>{OPENINGS[row['language']]}"
        assert row["completion"].startswith(start) and row["completion"].endswith("7")
        thinking, closed, answer = row["completion"].removeprefix(start).partition("</think>")
        assert closed and "7" in answer
        assert Detector(("en", "de"))([thinking]).code.tolist() == [row["language"]], "the opening is not what is judged"
        origin = row["provenance"]
        assert (origin["teacher"], origin["step"], origin["seed"]) == (str(teacher), 9, 3)
        assert origin["settings"]["prefix"] == f"<think>\n{OPENINGS[row['language']]}"
        assert origin["settings"]["temperature"] == 1.0 and origin["settings"]["group_size"] == 8 > origin["sample"]
    assert "sampled" in capsys.readouterr().out
    again = tmp_path / "again.jsonl"
    coldstart.main([str(tmp_path / "config.py"), str(again), *arguments])
    assert again.read_bytes() == out.read_bytes()


@pytest.mark.slow
def test_processes_think_as_one(teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "config.py").write_text(TEACHER_CONFIG)
    arguments = ["--teacher", str(teacher), "--languages", "en", "de", "--per-language", "3", "--problems", "16"]
    coldstart.main([str(tmp_path / "config.py"), str(tmp_path / "alone.jsonl"), *arguments])
    (tmp_path / "both.py").write_text(TEACHER_CONFIG.replace("data=2, fsdp=2", "data=1, fsdp=2"))  # of two devices each
    command = ("-m", "jaxrl_ml.coldstart", str(tmp_path / "both.py"), str(tmp_path / "both.jsonl"), *arguments)
    assert statuses(launch(tmp_path, 2, *command, slurm=True)) == [0, 0]
    assert (tmp_path / "both.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes()


def test_mistakes_are_named(tmp_path: Path) -> None:
    config, out = write_config(tmp_path), tmp_path / "x.jsonl"
    other = tmp_path / "other.py"
    other.write_text(TEACHER_CONFIG)
    for arguments, words in (
        ([str(config), "--languages", "de"], "--languages de: the stage thinking has no such language, only en, zh, th"),
        ([str(config), "--per-language", "0"], "--per-language 0"),
        ([str(config), "--problems", "0"], "--problems 0"),
        ([str(config), "--step", "3"], "--step 3 is a teacher's"),
        ([str(config), "--teacher", str(tmp_path / "none")], "no folder"),
        ([str(other), "--teacher", str(tmp_path)], "nothing to think with in nl"),
        ([str(other), "--languages", "en"], "templates for Countdown alone, .*--teacher"),
        (["configs/countdown_cpu.py"], "no GRPO stage with a language action"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            coldstart.main([arguments[0], str(out), *arguments[1:]])
        assert "\n" not in str(caught.value) and not out.exists()


def test_a_place_that_cannot_be_written_is_told_before_anything_is_sampled(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(coldstart, "sift", None)
    config = write_config(tmp_path)
    for out, words in (
        (tmp_path, "is a folder; give the path of a file"),
        (config / "x.jsonl", "cannot be written"),
        ("s3://bucket/x.jsonl", "s3://bucket/x.jsonl"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            coldstart.main([str(config), str(out)])
        assert "\n" not in str(caught.value)


def test_what_was_kept_before_an_interruption_is_written(tmp_path: Path, monkeypatch, capsys) -> None:
    kept = coldstart.sift

    def interrupted(stage, detector, code, drafts, tally) -> None:
        if code == "zh":
            raise KeyboardInterrupt
        kept(stage, detector, code, drafts, tally)

    monkeypatch.setattr(coldstart, "sift", interrupted)
    out = tmp_path / "x.jsonl"
    with pytest.raises(KeyboardInterrupt):
        coldstart.main([str(write_config(tmp_path)), str(out), "--per-language", "4"])
    assert [row["language"] for row in rows_of(out)] == ["en"] * 4
    assert "when it was stopped: zh lacks 4, th lacks 4" in capsys.readouterr().err


def test_nothing_good_writes_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("jaxrl_ml.rewards.countdown.countdown_reward", lambda texts, examples: np.zeros(len(texts)))
    out = tmp_path / "x.jsonl"
    with pytest.raises(UserError, match="no draft of 15 was good"):
        coldstart.main([str(write_config(tmp_path)), str(out), "--problems", "5"])
    assert not out.exists()


def test_help_is_light_and_an_error_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jaxrl_ml.coldstart", str(tmp_path / "none.py"), "x.jsonl"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 2 and found.stderr.count("\n") == 1 and found.stderr.startswith("error: ")
    code = "import sys, jaxrl_ml.coldstart as c\ntry: c.main(['--help'])\nexcept SystemExit: "
    code += "print({'jax', 'grain'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip().endswith("set()") and "--per-language" in found.stdout
