"""Import and export by the command: the folder that comes back is the one that went in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import bytes_alive
from safetensors.numpy import load_file, save_file

from jaxrl_ml import checkpoint, convert, pretrained
from jaxrl_ml.checkpoint import Checkpoints
from jaxrl_ml.cli import resolved
from jaxrl_ml.config import CheckpointConfig, ModelConfig, RopeScaling
from jaxrl_ml.models import hf
from jaxrl_ml.models.transformer import Transformer
from jaxrl_ml.tokenizer import Tokenizer
from jaxrl_ml.types import UserError

SCALING = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
CONFIG = ModelConfig(
    family="qwen3", vocab_size=16, embed_dim=16, mlp_dim=24, num_heads=2, num_kv_heads=1, head_dim=6, rope_scaling=SCALING
)


def make_params(seed: int):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(Transformer(CONFIG).init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes)


@pytest.fixture
def folder(tmp_path):
    tokenizer = Tokenizer.from_vocabulary(list("0123456789+-"))
    hf.save_params(tmp_path / "hf", make_params(0), CONFIG, "float32", tokenizer)
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    (tmp_path / "hf/chat_template.jinja").write_text(template)
    return tmp_path / "hf"


def test_there_and_back_again(folder, tmp_path, capsys):
    run, back = tmp_path / "run", tmp_path / "back"
    convert.main(["from-hf", str(folder), str(run)])
    assert "from-hf" not in capsys.readouterr().out
    assert pretrained.read_model_config(run) == CONFIG
    convert.main(["to-hf", str(run), str(back)])
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert str(back) in line
    assert (back / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert (back / "config.json").read_text() == (folder / "config.json").read_text()
    tokenizer = Tokenizer.from_folder(back)
    assert tokenizer.encode_prompts([[{"role": "user", "content": "1+2"}]]) == tokenizer.encode(["1+2"])
    assert tokenizer.stop_ids == Tokenizer.from_folder(folder).stop_ids


def test_the_command_leaves_accelerators_to_others(folder, tmp_path):
    command = [sys.executable, "-m", "jaxrl_ml.convert", "from-hf", str(folder), str(tmp_path / "run")]
    environment = {**os.environ, "JAX_PLATFORMS": "tpu"}  # which is not there: jax would fail
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_any_step_in_either_precision(folder, tmp_path):
    run = tmp_path / "run"
    convert.main(["from-hf", str(folder), str(run)])
    with Checkpoints(run, CheckpointConfig()) as checkpoints:
        checkpoints.save_params(7, make_params(7))
    convert.main(["to-hf", str(run), str(tmp_path / "first"), "--step", "0"])
    convert.main(["to-hf", str(run), str(tmp_path / "latest"), "--dtype", "bfloat16"])
    name = "model.layers.1.mlp.down_proj.weight"
    first, latest = (load_file(tmp_path / which / "model.safetensors")[name] for which in ("first", "latest"))
    for got, seed in ((first, 0), (latest, 7)):
        expected = np.asarray(make_params(seed)["layers"]["mlp"]["down"][1].T)
        np.testing.assert_array_equal(got, expected.astype(got.dtype))
    assert str(latest.dtype) == "bfloat16"
    with pytest.raises(UserError, match="no checkpoint 3"):
        convert.main(["to-hf", str(run), str(tmp_path / "none"), "--step", "3"])
    assert not (tmp_path / "none").exists()


def test_a_run_gives_its_best_checkpoint_where_its_config_cannot_be_executed(folder, tmp_path):
    run = tmp_path / "run"
    convert.main(["from-hf", str(folder), str(run)])
    (run / "config.py").write_text("import a_package_of_another_machine\n")
    (run / "config.json").write_text(json.dumps({"checkpoint": resolved(CheckpointConfig(best_metric="score"))}))
    with pretrained.open_checkpoints(run) as checkpoints:
        assert checkpoints._best_metric == "score" and checkpoints.best() == 0
    convert.main(["to-hf", str(run), str(tmp_path / "back")])
    assert (tmp_path / "back/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    for text in ("{", "[]", "{}"):
        (run / "config.json").write_text(text)
        with pytest.raises(UserError, match="config.json cannot be read .*delete it"):
            pretrained.open_checkpoints(run)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_files_are_those_that_the_library_writes(folder, tmp_path, dtype):
    run = tmp_path / "run"
    convert.main(["from-hf", str(folder), str(run)])
    convert.main(["to-hf", str(run), str(tmp_path / "out"), "--dtype", dtype])
    tensors = load_file(tmp_path / "out/model.safetensors")
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_an_export_holds_one_parameter_at_a_time_and_reads_each_file_once_for_its_digest(folder, tmp_path, monkeypatch):
    convert.main(["from-hf", str(folder), str(tmp_path / "run")])
    digested, digest = [], checkpoint._digest
    monkeypatch.setattr(checkpoint, "_digest", lambda path, kind: digested.append(path) or digest(path, kind))
    alive = bytes_alive(monkeypatch)
    convert.main(["to-hf", str(tmp_path / "run"), str(tmp_path / "out")])
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(make_params(0))]
    assert len(alive) == len(load_file(tmp_path / "out/model.safetensors")) + len(sizes)
    assert max(sizes) <= max(alive) < max(sizes) + 1000 < sum(sizes) / 3
    assert len(digested) == len(set(digested)) > 10


def test_a_damaged_checkpoint_is_not_exported(folder, tmp_path):
    convert.main(["from-hf", str(folder), str(tmp_path / "run")])
    largest = max((tmp_path / "run/checkpoints/0/params").rglob("*"), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    with pytest.raises(UserError, match=f"{largest.name} is not as it was saved") as caught:
        convert.main(["to-hf", str(tmp_path / "run"), str(tmp_path / "out")])
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out*"))


def test_mistakes_are_one_line(folder, tmp_path):
    convert.main(["from-hf", str(folder), str(tmp_path / "run")])
    for arguments, text in (
        (["from-hf", str(folder), str(tmp_path / "run")], "not empty"),
        (["from-hf", str(tmp_path / "run"), str(tmp_path / "other")], "run folder already"),
        (["from-hf", str(tmp_path / "nothing"), str(tmp_path / "other")], "nothing"),
        (["to-hf", str(folder), str(tmp_path / "other")], "no model.json"),
        (["to-hf", str(tmp_path / "run"), str(folder)], "not empty"),
    ):
        with pytest.raises(UserError, match=text) as caught:
            convert.main(arguments)
        assert "\n" not in str(caught.value)
    shutil.rmtree(tmp_path / "run/checkpoints/0")
    with pytest.raises(UserError, match="has no checkpoint yet"):
        convert.main(["to-hf", str(tmp_path / "run"), str(tmp_path / "other")])
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"hidden_act": "gelu"}))
    with pytest.raises(UserError, match="hidden_act='gelu'"):
        convert.main(["from-hf", str(folder), str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()


def test_help_loads_neither_jax_nor_transformers():
    code = (
        "import sys\nfrom jaxrl_ml import convert\n"
        "try: convert.main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'jax', 'transformers', 'orbax'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
    assert "from-hf" in done.stdout
