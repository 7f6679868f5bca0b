"""An evaluation counts what the reward says, whatever the batches and the mesh; the command writes it down."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxrl_ml import evaluate
from jaxrl_ml.analysis import passk
from jaxrl_ml.checkpoint import Checkpoints
from jaxrl_ml.cli import load_run
from jaxrl_ml.config import CheckpointConfig, ComputeConfig, Evaluation, MeshConfig, ModelConfig, SamplingConfig
from jaxrl_ml.data import PromptRenderer
from jaxrl_ml.evaluate import EvaluationResult, Evaluator, result_table, summarise
from jaxrl_ml.pretrained import write_model_config
from jaxrl_ml.programs import Programs
from jaxrl_ml.sharding import make_mesh
from jaxrl_ml.tokenizer import Tokenizer
from jaxrl_ml.types import Example, Scores, UserError

LETTERS = "0123456789abcdefghijkl"
MODEL = ModelConfig(
    vocab_size=24, num_layers=1, embed_dim=16, mlp_dim=32, num_heads=2, num_kv_heads=2, head_dim=8, tie_embeddings=False
)
TASK = [Example(id=str(i), task="even" if i % 2 == 0 else "odd", fields={"prompt": f"{i}abc"[: 2 + i % 3]}) for i in range(20)]


def parity(texts: Sequence[str], examples: Sequence[Example]) -> Scores:
    """Something that depends on every character of a text."""
    assert [e.id for e in examples[:: len(texts) // len(examples)]] == [e.id for e in examples]
    value = np.array([sum(map(ord, text)) for text in texts])
    reward = (value % 7).astype(np.float32)
    return Scores(reward, value % 2 == 0, {"seven": reward}, timeout=value % 5 == 0, details={"value": value})


GREEDY = Evaluation(
    task=TASK, reward=parity, num_prompts=13, prompts_per_batch=8, sampling=SamplingConfig(8, 6, temperature=0.0)
)
SAMPLED = dataclasses.replace(GREEDY, samples_per_prompt=4, sampling=SamplingConfig(8, 6, temperature=1.0))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_vocabulary(tuple(LETTERS))


programs_of = functools.cache(Programs)  # compiled once a mesh, in the commands too


@pytest.fixture(autouse=True)
def shared_programs(monkeypatch) -> None:
    monkeypatch.setattr("jaxrl_ml.programs.Programs", programs_of)


@pytest.fixture(scope="module")
def single() -> Programs:
    return programs_of(MODEL, ComputeConfig(), make_mesh(MeshConfig(data=1), jax.devices()[:1]))


@pytest.fixture(scope="module")
def weights(single: Programs) -> dict:
    return single.gather(single.init(jax.random.key(0)))


@pytest.fixture(scope="module")
def evaluator_of(single: Programs, tokenizer: Tokenizer):
    def make(evaluation: Evaluation, programs: Programs = single, seed: int = 5) -> Evaluator:
        return Evaluator(evaluation, programs, tokenizer, PromptRenderer(tokenizer), seed)

    return make


@pytest.fixture(scope="module")
def sampled(evaluator_of, weights) -> EvaluationResult:
    return evaluator_of(SAMPLED).run(weights, 3)


def test_metrics_are_those_of_the_records(sampled: EvaluationResult) -> None:
    assert [(r["id"], r["sample"]) for r in sampled.records] == [(str(i), g) for i in range(13) for g in range(4)]
    correct = np.array([sum(map(ord, r["completion"])) % 2 == 0 for r in sampled.records])
    assert [r["correct"] for r in sampled.records] == correct.tolist()
    assert 0 < correct.mean() < 1
    metrics = sampled.metrics
    assert metrics["accuracy"] == pytest.approx(correct.mean())
    counts = correct.reshape(13, 4).sum(1)
    for k in (2, 4):
        assert metrics[f"pass@{k}"] == pytest.approx(passk.pass_at_k(counts, 4, k).mean())
    by_task = correct.reshape(13, 4)
    assert metrics["accuracy/even"] == pytest.approx(by_task[::2].mean())
    assert metrics["accuracy/odd"] == pytest.approx(by_task[1::2].mean())
    assert metrics["reward"] == pytest.approx(np.mean([r["reward"] for r in sampled.records]))
    assert metrics["length_tokens"] == pytest.approx(np.mean([r["length"] for r in sampled.records]))
    for r in sampled.records:
        assert r["parts"] == {"seven": r["reward"]}
        assert r["prompt"] == TASK[int(r["id"])].fields["prompt"]
        # A stop token is counted and has no text; nor has a pad token, which a random model samples too.
        assert len(r["completion"]) + (not r["truncated"]) <= r["length"] <= 6
    assert metrics["truncated"] == pytest.approx(np.mean([r["truncated"] for r in sampled.records]))
    assert metrics["timeout"] == pytest.approx(np.mean([r["timeout"] for r in sampled.records]))
    assert metrics["value"] == pytest.approx(np.mean([sum(map(ord, r["completion"])) for r in sampled.records]))


def test_names_and_order_of_intervals(sampled: EvaluationResult, evaluator_of, weights) -> None:
    names = ("accuracy", "pass@2", "pass@4", "accuracy/even", "accuracy/odd")
    means = ("reward", "length_tokens", "truncated", "timeout", "value")
    assert sampled.metrics.keys() == {f"{n}{end}" for n in names for end in ("", "_low", "_high")} | set(means)
    for name in names:
        assert sampled.metrics[f"{name}_low"] <= sampled.metrics[name] <= sampled.metrics[f"{name}_high"]
    one_task = dataclasses.replace(GREEDY, task=TASK[::2], num_prompts=5)
    assert evaluator_of(one_task).run(weights, 0).metrics.keys() == {"accuracy", "accuracy_low", "accuracy_high", *means}


def test_planted_verdicts_are_counted_right(evaluator_of, weights) -> None:
    texts = [r["completion"] for r in evaluator_of(GREEDY).run(weights, 0).records]
    golds = [text if i in (1, 4, 12) else text + "x" for i, text in enumerate(texts)]
    task = [dataclasses.replace(e, answer=gold) for e, gold in zip(TASK, golds, strict=False)]

    def exact(texts: Sequence[str], examples: Sequence[Example]) -> np.ndarray:
        return np.array([float(text == e.answer) for text, e in zip(texts, examples, strict=True)])

    result = evaluator_of(dataclasses.replace(GREEDY, task=task, reward=exact)).run(weights, 0)
    assert [r["id"] for r in result.records if r["correct"]] == ["1", "4", "12"]
    assert result.metrics["accuracy"] == pytest.approx(3 / 13)
    low, high = passk.wilson_interval(3, 13)
    assert (result.metrics["accuracy_low"], result.metrics["accuracy_high"]) == (low, high)
    assert result.metrics["timeout"] == 0


def test_result_depends_on_seed_and_step_alone(sampled: EvaluationResult, evaluator_of, weights) -> None:
    evaluator = evaluator_of(SAMPLED)
    assert evaluator.run(weights, 3) == sampled
    assert evaluator.run(weights, 4).records != sampled.records
    assert evaluator_of(SAMPLED, seed=6).run(weights, 3).records != sampled.records
    greedy = evaluator_of(GREEDY)
    assert greedy.run(weights, 3).records == greedy.run(weights, 4).records


@pytest.mark.parametrize("prompts_per_batch", [5, 64])
def test_batches_change_nothing(prompts_per_batch: int, sampled: EvaluationResult, evaluator_of, weights) -> None:
    assert evaluator_of(dataclasses.replace(SAMPLED, prompts_per_batch=prompts_per_batch)).run(weights, 3) == sampled


def test_the_mesh_changes_nothing(sampled: EvaluationResult, single: Programs, evaluator_of) -> None:
    programs = programs_of(MODEL, ComputeConfig(), make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    weights = programs.gather(programs.init(jax.random.key(0)))
    evaluator = evaluator_of(SAMPLED, programs)
    with jax.transfer_guard("disallow"):
        assert evaluator.run(weights, 3) == sampled


def test_the_next_batch_is_sampled_while_one_is_scored(evaluator_of, weights, monkeypatch) -> None:
    begun = [threading.Event() for _ in range(3)]
    sampled, scored = itertools.count(), itertools.count()

    def reward(texts: Sequence[str], examples: Sequence[Example]) -> np.ndarray:
        following = next(scored) + 1
        assert following == len(begun) or begun[following].wait(60), f"batch {following} waits until the one before is scored"
        return np.zeros(len(texts))

    evaluator = evaluator_of(dataclasses.replace(SAMPLED, reward=reward, prompts_per_batch=5))
    sample = evaluator._sample
    monkeypatch.setattr(evaluator, "_sample", lambda *args: begun[next(sampled)].set() or sample(*args))
    evaluator.run(weights, 0)
    assert next(sampled) == next(scored) == len(begun)


def test_stop_and_top_k_reach_the_sampler(evaluator_of, weights) -> None:
    greedy = evaluator_of(GREEDY).run(weights, 3).records
    letter = greedy[0]["completion"][1]
    sampling = dataclasses.replace(GREEDY.sampling, temperature=1.0, top_k=1, stop=(letter,))
    likeliest = evaluator_of(dataclasses.replace(GREEDY, sampling=sampling)).run(weights, 3).records
    for free, stopped in zip(greedy, likeliest, strict=True):
        before, found, _ = free["completion"].partition(letter)
        assert stopped["completion"] == before + found
        assert stopped["truncated"] == (not found and free["truncated"])


def test_batches_must_split_over_the_mesh(evaluator_of) -> None:
    programs = Programs(MODEL, ComputeConfig(), make_mesh(MeshConfig(data=4, tensor=2)))
    with pytest.raises(UserError, match="evaluation test: prompts_per_batch=6 .*multiple of 4"):
        evaluator_of(dataclasses.replace(GREEDY, prompts_per_batch=6), programs)
    for field in ("prompts_per_batch", "samples_per_prompt", "num_prompts"):
        with pytest.raises(UserError, match=f"{field}=0 must be at least 1"):
            dataclasses.replace(GREEDY, **{field: 0})
    with pytest.raises(UserError, match="evaluation test: reward=None cannot be called"):
        evaluator_of(dataclasses.replace(GREEDY, reward=None))
    with pytest.raises(UserError, match="num_prompts=21 exceeds the task's 20"):
        evaluator_of(dataclasses.replace(GREEDY, num_prompts=21))


@pytest.mark.parametrize("num_prompts", range(1, 40, 3))
@pytest.mark.parametrize("shards", [1, 4])
def test_batch_size_fits_and_wastes_little(num_prompts: int, shards: int) -> None:
    evaluation = dataclasses.replace(GREEDY, num_prompts=num_prompts, prompts_per_batch=16)
    size = evaluate._batch_size(evaluation, shards)
    batches = math.ceil(num_prompts / size)
    assert size % shards == 0 and 0 < size <= 16
    assert batches == math.ceil(num_prompts / 16)
    assert batches * size - num_prompts < batches * shards


def test_a_reward_that_is_not_finite_is_shown_as_it_is() -> None:
    record = {"task": "t", "correct": False, "reward": math.inf, "length": 1, "truncated": False, "timeout": False}
    record["details"] = {}
    assert summarise([record], 1)["reward"] == math.inf
    assert math.isnan(summarise([record, {**record, "reward": -math.inf}], 1)["reward"])
    assert summarise([{**record, "correct": False, "details": {"accuracy": 1.0}}], 1)["accuracy"] == 0, "told by a detail"


def test_named_rewards_are_counted_by_the_one_that_decides(evaluator_of, weights) -> None:
    reward = {"parity": (parity, 0.5), "length": (lambda texts, _: np.array([float(len(text)) for text in texts]), -1.0)}
    plain = evaluator_of(GREEDY).run(weights, 0)
    result = evaluator_of(dataclasses.replace(GREEDY, reward=reward, correct="parity")).run(weights, 0)
    assert [r["correct"] for r in result.records] == [r["correct"] for r in plain.records]
    for record, other in zip(result.records, plain.records, strict=True):
        assert record["reward"] == pytest.approx(0.5 * other["reward"] - len(record["completion"]))
        assert record["parts"] == pytest.approx({"parity": 0.5 * other["reward"], "length": -len(record["completion"])})
        assert record["timeout"] == other["timeout"] and record["details"]["value"] == other["details"]["value"]
    assert result.metrics["unweighted/parity"] == pytest.approx(plain.metrics["reward"])
    assert result.metrics["reward"] == pytest.approx(
        0.5 * result.metrics["unweighted/parity"] - result.metrics["unweighted/length"]
    )
    assert result.warning is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((0.0, 0.9), "from 0 to 0.9: 1 or more counts as correct, so no completion is correct"),
        ((0.9, 0.9), "from 0.9 to 0.9"),
        ((1.0, 1.9), "from 1 to 1.9: 1 or more counts as correct, so bonuses can make a wrong answer count as correct"),
        ((0.0, 1.0), None),
        ((0.0, 0.0), None),
    ],
)
def test_plain_rewards_that_do_not_fit_are_told(evaluator_of, weights, values, words) -> None:
    """Over all batches: the first of two has the one value, the second the other."""
    calls = itertools.count()

    def reward(texts: Sequence[str], examples: Sequence[Example]) -> np.ndarray:
        return np.full(len(texts), values[next(calls)])

    result = evaluator_of(dataclasses.replace(GREEDY, reward=reward)).run(weights, 0)
    assert next(calls) == 2 and "plain_reward" not in result.records[0]
    assert (result.warning is None) == (words is None)
    assert words is None or (words in result.warning and result.warning.startswith("warning: evaluation test: "))


CONFIG = """
import numpy as np
from jaxrl_ml.config import CheckpointConfig, Config, Evaluation, MeshConfig, ModelConfig, SamplingConfig, SFTStage
from jaxrl_ml.types import Example

def reward(texts, examples):
    return np.array([float("a" in text) for text in texts])

task = [Example(id=str(i), task="t", fields={"prompt": str(i)}, completion="a") for i in range(8)]
sampling = SamplingConfig(8, 6, temperature=1.0)
config = Config(
    stages=(SFTStage(task=task),), run_dir="unused", model=ModelConfig(), tokenizer=("a",), seed=7,
    checkpoint=CheckpointConfig(best_metric="eval/test/accuracy"),
    mesh=MeshConfig(data=2, fsdp=2, tensor=2),
    evaluations=(
        Evaluation(task=task, reward=reward, num_prompts=8, prompts_per_batch=8, sampling=sampling),
        Evaluation(task=task, reward=reward, name="greedy", num_prompts=8, prompts_per_batch=8,
                   sampling=SamplingConfig(8, 6, temperature=0.0)),
    ),
)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory, single: Programs, tokenizer: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.py").write_text(CONFIG)
    (folder / "overrides.json").write_text("[]")
    write_model_config(folder, MODEL)
    tokenizer.save(folder / "tokenizer")
    with Checkpoints(folder, CheckpointConfig()) as checkpoints:
        for step in (3, 9):
            checkpoints.save_params(step, single.init(jax.random.key(step)))
    return folder


def test_command_evaluates_a_run(run: Path, single: Programs, tokenizer: Tokenizer, capsys) -> None:
    evaluate.main([str(run), "--name", "test"])
    out = capsys.readouterr().out
    written = json.loads((run / "evaluations" / "test-9.json").read_text())
    assert written["step"] == 9 and written["seed"] == 7
    assert written["evaluation"]["sampling"]["temperature"] == 1.0
    accuracy = np.mean([r["correct"] for r in written["records"]])
    assert written["metrics"]["accuracy"] == accuracy and len(written["records"]) == 8
    assert f"{accuracy:.1%}" in out and f"{written['metrics']['accuracy_low']:.1%} to" in out
    # The same as in the training loop, on another mesh.
    config = load_run(run)
    evaluator = Evaluator(config.evaluations[0], single, tokenizer, PromptRenderer(tokenizer), config.seed)
    result = evaluator.run(single.gather(single.init(jax.random.key(9))), 9)
    assert [dict(r) for r in result.records] == written["records"]


def test_command_takes_named_rewards_and_tells_of_plain_ones(run: Path, tmp_path: Path, capsys) -> None:
    config = tmp_path / "named.py"
    config.write_text(
        CONFIG
        + """
from dataclasses import replace
almost = lambda texts, examples: 0.9 * reward(texts, examples) + 0.05
named = {"a": (reward, 2.0), "length": (lambda texts, examples: np.array([float(len(t)) for t in texts]), -0.5)}
config = replace(config, checkpoint=CheckpointConfig(), evaluations=(
    replace(config.evaluations[0], reward=named, correct="a", name="named"),
    replace(config.evaluations[1], reward=almost, name="almost"),
))
"""
    )
    evaluate.main([str(run), "--config", str(config)])
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 1 and "evaluation almost: what is correct is read from plain rewards" in warnings[0]
    written = json.loads((run / "evaluations" / "named-9.json").read_text())
    assert written["evaluation"]["correct"] == "a" and written["evaluation"]["reward"]["length"][1] == -0.5
    assert all(r["correct"] == ("a" in r["completion"]) for r in written["records"])
    assert written["metrics"]["accuracy"] == pytest.approx(written["metrics"]["unweighted/a"])


def test_command_overrides(run: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "new" / "x.json"
    arguments = [str(run), "--name", "greedy", "--step", "3", "--samples-per-prompt", "4", "--num-prompts", "5"]
    evaluate.main([*arguments, "--temperature", "0.9", "--out", str(out)])
    written = json.loads(out.read_text())
    assert written["step"] == 3 and len(written["records"]) == 20 and "pass@4" in written["metrics"]
    assert written["evaluation"]["sampling"]["temperature"] == 0.9
    assert [p.name for p in out.parent.iterdir()] == ["x.json"]
    assert str(out) in capsys.readouterr().out.replace("\n", "")


def test_a_place_that_cannot_be_written_is_told_before_anything_is_sampled(run: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(evaluate, "StoredModel", None)
    for out, words in (
        (tmp_path, "is a folder; give the path of a file"),
        (run / "config.py" / "x.json", "cannot be written"),
        ("gs://bucket/x.json", "gs://bucket/x.json"),
    ):
        with pytest.raises(UserError, match=words):
            evaluate.main([str(run), "--name", "greedy", "--out", str(out)])


def test_command_evaluates_a_hugging_face_folder(run: Path, tmp_path: Path, single: Programs, tokenizer: Tokenizer) -> None:
    from jaxrl_ml.models import hf

    folder = tmp_path / "hf"
    hf.save_params(folder, single.init(jax.random.key(9)), MODEL, "float32", tokenizer)
    with pytest.raises(UserError, match="--config"):
        evaluate.main([str(folder)])
    with pytest.raises(UserError, match="has no steps"):
        evaluate.main([str(folder), "--config", str(run / "config.py"), "--step", "9"])
    evaluate.main([str(folder), "--config", str(run / "config.py")])
    written = {path.name: json.loads(path.read_text()) for path in (folder / "evaluations").iterdir()}
    assert written.keys() == {"test.json", "greedy.json"}
    evaluate.main([str(run), "--name", "greedy"])
    same = json.loads((run / "evaluations" / "greedy-9.json").read_text())
    assert written["greedy.json"]["records"] == same["records"]


WORDS = (" we are thinking about numbers.", " wir denken über Zahlen nach.", " kami sedang memikirkan angka.")
SPOKEN = (*"0123456789abc", "[en]", "[de]", "[fr]", "[id]", "</think>", *WORDS, "=")  # of these, "a" is right, wherever it is
LANGUAGES_CONFIG = (
    CONFIG.replace("import CheckpointConfig", "import LanguageConfig, CheckpointConfig").split("    evaluations=")[0]
    + """
    evaluations=(
        Evaluation(task=task, reward=reward, num_prompts=6, samples_per_prompt=4, prompts_per_batch=8, sampling=sampling,
                   language=LanguageConfig("constrained", ("en", "de", "fr"), "[{code}]"), unseen_languages=("id",)),
        Evaluation(task=task, reward=reward, name="plain", num_prompts=6, samples_per_prompt=4, prompts_per_batch=8,
                   sampling=sampling),
    ),
)
"""
)


@pytest.fixture(scope="module")
def spoken_run(tmp_path_factory, single: Programs) -> Path:
    folder = tmp_path_factory.mktemp("spoken")
    (folder / "config.py").write_text(LANGUAGES_CONFIG)
    (folder / "overrides.json").write_text("[]")
    write_model_config(folder, MODEL)
    Tokenizer.from_vocabulary(SPOKEN).save(folder / "tokenizer")
    with Checkpoints(folder, CheckpointConfig()) as checkpoints:
        checkpoints.save_params(9, single.init(jax.random.key(9)))
    return folder


def test_command_compares_thinking_languages(spoken_run: Path, capsys) -> None:
    programs = programs_of(MODEL, ComputeConfig(), make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    compiled = programs._sample_tagged._cache_size()
    evaluate.main([str(spoken_run), "--name", "test", "--languages", "self", "multi", "unseen", "de", "en"])
    assert programs._sample_tagged._cache_size() - compiled == 2, "one for 4 samples a prompt, one for multi's 2"
    out = capsys.readouterr().out
    written = {path.name: json.loads(path.read_text()) for path in (spoken_run / "evaluations").iterdir()}
    assert written.keys() == {f"test-{name}-9.json" for name in ("self", "multi", "unseen", "de", "en")}
    by_setting = {found["setting"]: found for found in written.values()}

    languages = {name: [r["language"] for r in found["records"]] for name, found in by_setting.items()}
    assert set(languages["self"]) == {"en", "de", "fr"} and len(languages["self"]) == 24
    assert languages["multi"] == ["de", "de", "fr", "fr"] * 6
    assert [languages[name] for name in ("en", "de", "unseen")] == [["en"] * 24, ["de"] * 24, ["id"] * 24]
    for found in by_setting.values():
        records, metrics = found["records"], found["metrics"]
        assert [(r["id"], r["sample"]) for r in records] == [(str(i), g) for i in range(6) for g in range(4)]
        for r in records:
            assert r["completion"].startswith(f"[{r['language']}]")
            thinking = r["completion"].removeprefix(f"[{r['language']}]").split("</think>")[0]
            spoken = [code for code, words in zip(("en", "de", "id"), WORDS, strict=True) if words in thinking]
            if len(spoken) == 1 and not re.search("[a-z]", thinking.replace(WORDS[("en", "de", "id").index(spoken[0])], "")):
                assert r["detected"] == spoken[0]
            if not re.search("[a-z]", thinking):
                assert r["detected"] == ""
            closed = r["completion"].find("</think>") >= 0
            # Every text here is one token, but stop and padding tokens have none.
            least = len(re.findall("|".join(map(re.escape, SPOKEN)), thinking)) + closed if thinking else 0
            assert least <= r["thinking_tokens"] <= r["length"] - 1
            assert thinking or r["thinking_tokens"] == 0
        compliant = np.array([r["language"] == r["detected"] for r in records])
        correct = np.array([r["correct"] for r in records])
        assert metrics["compliance"] == compliant.mean()
        assert metrics["accuracy_strict"] == pytest.approx((compliant & correct).mean())
        assert metrics["thinking_tokens"] == np.mean([r["thinking_tokens"] for r in records])
        assert metrics["pass@4"] == pytest.approx(correct.reshape(6, 4).any(1).mean())
        if found["setting"] != "en":
            assert metrics["win"] + metrics["tie"] + metrics["lose"] == pytest.approx(1)
        assert f"{metrics['accuracy']:.1%}" in out
    assert "win" not in by_setting["en"]["metrics"]
    assert by_setting["multi"]["by_language"].keys() == {"de", "fr"}
    assert 0 < by_setting["en"]["metrics"]["compliance"] < 1


def test_a_model_without_tags_is_compared_too(spoken_run: Path, capsys) -> None:
    evaluate.main([str(spoken_run), "--name", "plain", "--languages", "self"])
    written = json.loads((spoken_run / "evaluations" / "plain-self-9.json").read_text())
    assert {r["language"] for r in written["records"]} == {""}
    assert float(written["metrics"]["compliance"]) != float(written["metrics"]["compliance"]), "not a number"
    assert "–" in capsys.readouterr().out


def test_mistakes_in_languages_are_named_before_anything_is_sampled(spoken_run: Path, monkeypatch) -> None:
    monkeypatch.setattr(Evaluator, "run", lambda *_: pytest.fail("sampled"))
    for arguments, words in (
        (["--name", "plain", "--languages", "multi"], "plain: --languages multi finds none in language.languages"),
        (["--name", "plain", "--languages", "unseen"], "finds none in unseen_languages"),
        (["--name", "test", "--languages", "selff"], "does not know the language 'selff'"),
        (["--name", "test", "--languages", "en", "--out", "x.json"], "--languages writes one a setting"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            evaluate.main([str(spoken_run), *arguments])
        assert "\n" not in str(caught.value)


def test_mistakes_are_named(run: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (["--name", "tset"], "--name tset: .*test, greedy"),
        (["--out", "x.json"], "one file for 2 evaluations"),
        (["--step", "4"], r"no checkpoint 4; it has \[3, 9\]"),
        (["--samples-per-prompt", "4"], "temperature 0"),
        (["--num-prompts", "9"], "exceeds the task's 8"),
        (["--config", "nowhere.py"], "no config file nowhere.py"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            evaluate.main([str(run), *arguments])
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no folder"):
        evaluate.main([str(tmp_path / "none")])


def test_help_needs_no_jax_and_an_error_is_one_line(tmp_path: Path) -> None:
    code = "import sys, jaxrl_ml.evaluate as e\ntry: e.main(['--help'])\nexcept SystemExit: print('jax' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip().endswith("False") and "--samples-per-prompt" in found.stdout
    command = [sys.executable, "-m", "jaxrl_ml.evaluate", str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 2
    assert found.stderr.count("\n") == 1 and found.stderr.startswith("error: ")


def test_table_and_file_survive_hostile_names_and_numbers(tmp_path: Path) -> None:
    result = EvaluationResult(
        {"accuracy/\x1b[2J": 0.5, "reward": math.nan}, [{"completion": "\ud800\x1b[0m", "reward": math.inf}]
    )
    evaluate.write_result(tmp_path / "x.json", result, {"source": "s"})
    written = json.loads((tmp_path / "x.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    assert written["records"][0]["completion"] == "\ud800\x1b[0m"
    assert float(written["records"][0]["reward"]) == math.inf
    cells = [str(cell) for column in result_table("t", result.metrics).columns for cell in column.cells]
    assert not any("\x1b" in cell for cell in cells)
