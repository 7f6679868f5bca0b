"""Many models on many evaluations: every cell once, whatever stops the study, and a table that the analysis reads."""

from __future__ import annotations

import csv
import datetime
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from test_processes import launch, statuses

from jaxrl_ml import analyze, convert, evaluate, observe
from jaxrl_ml.checkpoint import Checkpoints
from jaxrl_ml.cli import resolved
from jaxrl_ml.config import CheckpointConfig, ComputeConfig, MeshConfig, ModelConfig
from jaxrl_ml.models import hf
from jaxrl_ml.models.transformer import Transformer
from jaxrl_ml.programs import Programs
from jaxrl_ml.sharding import make_mesh
from jaxrl_ml.tokenizer import Tokenizer
from jaxrl_ml.types import TrainState, UserError

MODEL = ModelConfig(
    vocab_size=24, num_layers=1, embed_dim=16, mlp_dim=32, num_heads=2, num_kv_heads=2, head_dim=8, tie_embeddings=False
)
CONFIG = """
import numpy as np
from jaxrl_ml.config import Config, Evaluation, SamplingConfig
from jaxrl_ml.types import Example

def reward(texts, examples):
    return np.array([float("a" in text) for text in texts])

def cell(benchmark, code):
    task = [Example(f"{code}-{i}", f"{benchmark}/{code}", {"prompt": str(i)}, language=code) for i in range(6)]
    return Evaluation(task, reward, name=f"{benchmark}-{code}", num_prompts=6, samples_per_prompt=4, prompts_per_batch=8,
                      sampling=SamplingConfig(8, 6, temperature=TEMPERATURE))

config = Config(run_dir="unused", seed=7, evaluations=tuple(cell(b, code) for b in ("sums", "words") for code in CODES))
"""


@pytest.fixture
def study(tmp_path: Path) -> list[str]:
    """A config and two models, as arguments."""
    write_config(tmp_path, ("en", "de"))
    tokenizer = Tokenizer.from_vocabulary(tuple("0123456789abcdefghijkl"))
    programs = Programs(MODEL, ComputeConfig(), make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    for seed, name in enumerate(("before", "after")):
        hf.save_params(tmp_path / name, programs.init(jax.random.key(seed)), MODEL, "float32", tokenizer)
    return [str(tmp_path / "config.py"), str(tmp_path / "before"), str(tmp_path / "after"), "--out", str(tmp_path / "out")]


def write_config(folder: Path, codes: tuple[str, ...], temperature: float = 1.0) -> None:
    text = CONFIG.replace("TEMPERATURE", str(temperature)).replace("CODES", repr(codes))
    (folder / "config.py").write_text(text)


def test_a_study_keeps_the_day_on_which_it_began(study: list[str], tmp_path: Path, monkeypatch) -> None:
    class Day(datetime.date):
        @classmethod
        def today(cls):
            return datetime.date(2026, 11, 30)

    monkeypatch.setattr(observe, "date", Day)
    observe.main([*study[:2], *study[3:]])  # the first model alone
    monkeypatch.setattr(observe, "date", datetime.date)
    observe.main(study)
    cells = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("*/evaluations/*.json")]
    assert [cell["chat_date"] for cell in cells] == ["2026-11-30"] * 8
    config = Path(study[0])
    config.write_text(config.read_text().replace("seed=7", "seed=7, chat_date='2026-12-01'"))
    with pytest.raises(UserError, match="has chat_date='2026-11-30', which is now '2026-12-01'"):
        observe.main(study)
    config.write_text(config.read_text().replace("2026-12-01", "2026-11-30"))
    observe.main(study)
    for text in ("{", "[]", "{}"):
        (tmp_path / "out/study.json").write_text(text)
        with pytest.raises(UserError, match="study.json cannot be read"):
            observe.main(study)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "out" / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_stopped_study_goes_on_and_does_no_cell_twice(study: list[str], tmp_path: Path, monkeypatch) -> None:
    made: list[str] = []
    write = observe.write_result

    def stop_at_sixth(path: Path, *arguments) -> None:
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append(str(path))
        write(path, *arguments)

    monkeypatch.setattr(observe, "write_result", stop_at_sixth)
    with pytest.raises(KeyboardInterrupt):
        observe.main(study)
    monkeypatch.setattr(observe, "write_result", lambda path, *arguments: (made.append(str(path)), write(path, *arguments)))
    observe.main(study)
    assert len(made) == len(set(made)) == 8
    write_config(tmp_path, ("en", "de", "fr"))
    observe.main(study)
    assert len(made) == len(set(made)) == 12
    found = {(row["model"], row["evaluation"]): float(row["accuracy"]) for row in rows(tmp_path)}
    assert len(found) == 12
    # The same as by the command for one model, from which nothing is left over.
    evaluate.main([study[2], "--config", study[0], "--name", "sums-de"])
    alone = json.loads((tmp_path / "after" / "evaluations" / "sums-de.json").read_text())
    cell = json.loads((tmp_path / "out" / "after" / "evaluations" / "sums-de.json").read_text())
    assert cell["records"] == alone["records"] and found["after", "sums-de"] == alone["metrics"]["accuracy"]


@pytest.mark.slow
def test_processes_observe_as_one_and_the_main_one_tells_what_is_missing(study: list[str], tmp_path: Path) -> None:
    observe.main(study)
    alone, out = (tmp_path / "out" / "results.csv").read_text(), tmp_path / "both"
    command = ("-m", "jaxrl_ml.observe", *study[:3], "--out", str(out))
    assert statuses(launch(tmp_path, 2, *command, slurm=True)) == [0, 0]
    assert (out / "results.csv").read_text() == alone
    cell = out / "after" / "evaluations" / "sums-de.json"
    found = cell.read_text()
    cell.unlink()
    (out / "results.csv").unlink()
    assert statuses(launch(tmp_path, 2, *command, slurm=True)) == [0, 0]
    assert cell.read_text() == found and (out / "results.csv").read_text() == alone


def test_the_analysis_reads_all_cells_of_a_model(study: list[str], tmp_path: Path, capsys) -> None:
    observe.main(study)
    before, after = (str(tmp_path / "out" / name) for name in ("before", "after"))
    with pytest.raises(UserError, match="has 4 results"):
        analyze.main(["transfer", after, "--base", before, "--train", "en"])
    out = tmp_path / "analysis"
    analyze.main(["transfer", after, "--base", before, "--train", "en", "--name", "*", "--out", str(out)])
    found = json.loads((out / "transfer.json").read_text())["models"][0]
    told = {(cell["benchmark"], cell["language"]): cell["model"]["value"] for cell in found["cells"]}
    assert told.keys() == {(benchmark, code) for benchmark in ("sums", "words") for code in ("en", "de")}
    for row in rows(tmp_path):
        if row["model"] == "after":
            assert told[tuple(row["evaluation"].split("-"))] == pytest.approx(float(row["accuracy"]))


def test_the_best_checkpoint_of_a_run_is_taken_and_a_cell_of_another_refused(study: list[str], tmp_path: Path) -> None:
    config, *_, out = study
    run = tmp_path / "run"
    convert.main(["from-hf", study[1], str(run)])
    params = Transformer(MODEL).init(jax.random.key(5))
    by_score = CheckpointConfig(keep=9, best_metric="score")
    (run / "config.json").write_text(json.dumps({"checkpoint": resolved(by_score)}))
    for step, score in ((1, 0.9), (2, 0.1), (3, 1.0)):
        with Checkpoints(run, by_score) as checkpoints:
            checkpoints.save(step, TrainState(jnp.int32(step), params, {"m": jnp.zeros(1)}), {}, {"score": score})
        if step == 2:
            observe.main([config, str(run), "--out", out])
            evaluate.main([str(run), "--config", config, "--name", "sums-de"])
    cell = json.loads((tmp_path / "out" / "run" / "evaluations" / "sums-de.json").read_text())
    alone = json.loads((run / "evaluations" / "sums-de-1.json").read_text())
    assert cell["step"] == alone["step"] == 1 and cell["records"] == alone["records"]
    with pytest.raises(UserError, match="has step=1, which is now 3"):
        observe.main([config, str(run), "--out", out])


def test_mistakes_are_named(study: list[str], tmp_path: Path) -> None:
    config, before, after, *out = study
    (tmp_path / "other" / "before").mkdir(parents=True)
    for arguments, message in (
        ([config, before, str(tmp_path / "no")], "no folder .*no: give"),
        ([config, before, before], "two models are called before"),
        ([config, before, str(tmp_path / "other" / "before")], "two models are called before"),
        ([config], "0 models"),
        ([config, before, "--out", config], "--out .* is a file"),
    ):
        with pytest.raises(UserError, match=message):
            observe.main([*arguments, *(() if "--out" in arguments else out)])
    observe.main([config, before, *out])
    write_config(tmp_path, ("en", "de"), temperature=0.5)
    with pytest.raises(UserError, match=r"sums-en.json has evaluation.sampling.temperature=1.0, which is now 0.5"):
        observe.main([config, before, *out])
    write_config(tmp_path, ("en", "de"))
    cell = tmp_path / "out" / "before" / "evaluations" / "sums-en.json"
    cell.write_text(cell.read_text()[:-40])
    with pytest.raises(UserError, match="sums-en.json cannot be read"):
        observe.main([config, before, *out])
