"""What a folder says besides its weights: the vocabulary that stop ids lie in, and the day that chat templates are given."""

from __future__ import annotations

import datetime
import json

import pytest

from jaxrl_ml import convert, pretrained
from jaxrl_ml.cli import resolved, write_resolved
from jaxrl_ml.config import Config, Evaluation, ModelConfig
from jaxrl_ml.pretrained import chat_date, read_tokenizer, write_model_config
from jaxrl_ml.tokenizer import Tokenizer
from jaxrl_ml.types import UserError

MODEL = ModelConfig(vocab_size=32)
CONFIG = Config(evaluations=(Evaluation(None, None),))


@pytest.fixture
def run(tmp_path):
    write_model_config(tmp_path, MODEL)
    Tokenizer.from_vocabulary("0123456789").save(tmp_path / "tokenizer")
    return tmp_path


@pytest.fixture
def clock(monkeypatch):
    def set_to(day: str) -> None:
        class Day(datetime.date):
            @classmethod
            def today(cls):
                return datetime.date.fromisoformat(day)

        monkeypatch.setattr(pretrained, "date", Day)

    set_to("2026-11-30")
    return set_to


def test_the_day_is_the_chosen_one_or_the_runs_or_today(run, clock):
    assert chat_date(run, None) == "2026-11-30"  # weights that were imported: nothing is recorded
    assert chat_date(run, "2024-01-02") == "2024-01-02"
    write_resolved(Config(evaluations=CONFIG.evaluations, chat_date="2025-05-06"), run)
    clock("2026-12-01")
    assert chat_date(run, None) == "2025-05-06"
    assert chat_date(run, "2024-01-02") == "2024-01-02"
    recorded = json.loads((run / "config.json").read_text())
    del recorded["chat_date"]  # a run of an earlier version
    (run / "config.json").write_text(json.dumps(recorded))
    assert chat_date(run, None) == "2026-12-01"
    for text in ("{", "[]"):
        (run / "config.json").write_text(text)
        with pytest.raises(UserError, match="config.json cannot be read"):
            chat_date(run, None)


def test_a_hugging_face_folder_has_no_day(tmp_path, clock):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "chat_date": "2001-01-01"}))
    assert chat_date(tmp_path, None) == "2026-11-30"
    assert chat_date(tmp_path / "nothing", None) == "2026-11-30"


def test_a_recorded_day_that_is_none_is_one_line(run):
    (run / "config.json").write_text(json.dumps(resolved(CONFIG) | {"chat_date": "2026-13-01"}))
    with pytest.raises(UserError, match="chat_date='2026-13-01' is not a day"):
        read_tokenizer(run).on_day(chat_date(run, None))


def test_a_stop_id_that_the_model_has_in_reserve_outlives_an_import(run, tmp_path):
    (run / "tokenizer/generation_config.json").write_text('{"eos_token_id": [1, 31]}')
    assert read_tokenizer(run).stop_ids == (1, 31)
    (run / "tokenizer/generation_config.json").write_text('{"eos_token_id": [1, 32]}')
    with pytest.raises(UserError, match="from 0 to 31"):
        read_tokenizer(run)


@pytest.mark.slow
def test_a_reserved_stop_id_goes_through_a_run_and_back(tmp_path):
    import jax

    from jaxrl_ml.models import hf
    from jaxrl_ml.models.transformer import Transformer

    tiny = ModelConfig(vocab_size=32, num_layers=1, embed_dim=8, mlp_dim=8, num_heads=1, num_kv_heads=1, head_dim=8)
    tokenizer = Tokenizer.from_vocabulary("0123456789")
    hf.save_params(tmp_path / "hf", Transformer(tiny).init(jax.random.key(0)), tiny, "float32", tokenizer)
    (tmp_path / "hf/generation_config.json").write_text('{"eos_token_id": [1, 31]}')
    convert.main(["from-hf", str(tmp_path / "hf"), str(tmp_path / "run")])
    convert.main(["to-hf", str(tmp_path / "run"), str(tmp_path / "back")])
    for folder in ("hf", "run", "back"):
        assert read_tokenizer(tmp_path / folder).stop_ids == (1, 31)
