"""Tokens added to a tokenizer and a model: what there was stays as it is; they go through training, folders and export."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import assert_trees_close
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from test_tokenizer import CORPUS, assert_stops_exactly, small, train_bpe

from jaxrl_ml import convert, pretrained
from jaxrl_ml.checkpoint import Checkpoints
from jaxrl_ml.config import (
    CheckpointConfig,
    ComputeConfig,
    Config,
    LanguageConfig,
    LoRAConfig,
    MeshConfig,
    ModelConfig,
    SFTStage,
)
from jaxrl_ml.languages.tags import language_action
from jaxrl_ml.models import hf
from jaxrl_ml.models.transformer import Transformer, extend_vocabulary
from jaxrl_ml.programs import Programs
from jaxrl_ml.sharding import make_mesh
from jaxrl_ml.tokenizer import Tokenizer
from jaxrl_ml.train import build, main
from jaxrl_ml.types import UserError

ADDED = ("<de>", "<zh>", "<语 x>")
OLD = 330  # tokens of the byte-level tokenizer
# Of the three tokens, the model has rows in reserve for two.
MODEL = ModelConfig(
    family="qwen3",
    vocab_size=OLD + 2,
    embed_dim=16,
    mlp_dim=24,
    num_heads=2,
    num_kv_heads=2,
    head_dim=8,
    tie_embeddings=False,
)


@lru_cache
def plain(kind: str = "bytes") -> Tokenizer:
    from transformers import PreTrainedTokenizerFast

    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=train_bpe(kind), eos_token="<|end|>"), [1])


@lru_cache
def extended(kind: str = "bytes") -> Tokenizer:
    return plain(kind).with_tokens(ADDED)


# The tokenizer.


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_each_added_text_is_one_new_token_that_decoding_keeps(kind):
    before = plain(kind).vocab_size
    assert extended(kind).encode(ADDED) == [[before], [before + 1], [before + 2]]
    assert extended(kind).decode([[before], [before + 1], [before + 2]]) == list(ADDED)
    assert extended(kind).vocab_size == before + 3
    assert extended(kind).stop_ids == plain(kind).stop_ids
    assert plain(kind).vocab_size == before
    assert len(plain(kind).encode(["<de>"])[0]) > 1


@given(st.text(max_size=30) | st.lists(st.sampled_from([*CORPUS, "<", "de", ">"])).map("".join))
@settings(deadline=None, derandomize=True, max_examples=100)
def test_texts_without_them_keep_their_ids(text):
    if not any(added in text for added in ADDED):
        for kind in ("bytes", "pieces"):
            assert extended(kind).encode([text]) == plain(kind).encode([text])


@given(st.lists(st.sampled_from([*ADDED, *CORPUS[:5], "<", " ", "\n", "<<de", ">>"]), max_size=12))
@settings(deadline=None, derandomize=True, max_examples=100)
def test_texts_with_them_round_trip(parts):
    text = "".join(parts)
    ids = extended().encode([text])[0]
    assert extended().decode([ids]) == [text]
    assert [i - OLD for i in ids if i >= OLD] == sorted_by_place(text)


def sorted_by_place(text: str) -> list[int]:
    """Which added texts stand in `text`, in order; none of them overlaps another."""
    found = [(i, n) for n, added in enumerate(ADDED) for i in range(len(text)) if text.startswith(added, i)]
    return [n for _, n in sorted(found)]


def test_the_longest_of_them_is_taken():
    tokenizer = plain().with_tokens(["<x", "<x>", "x>"])
    assert tokenizer.encode(["<x>", "<xx>"]) == [[OLD + 1], [OLD, OLD + 2]]


def test_stop_strings_are_found_in_them():
    rng = np.random.default_rng(0)
    ids = np.array([OLD, OLD + 1, OLD + 2, *extended().encode(["<de cat >"])[0]])
    stops = sum(assert_stops_exactly(extended(), ["de>", "><", "语 x>t"], rng.choice(ids, 8).tolist()) >= 0 for _ in range(60))
    assert 20 < stops <= 60


def test_a_tag_of_one_token_is_a_single_choice():
    language = LanguageConfig("constrained", ("de", "zh"), tag="<{code}>")
    action = language_action(language, extended().encode, max_completion_tokens=2)
    assert action.width == 1
    assert action.trie.tokens.max() == OLD + 1
    assert language_action(language, plain().encode, max_completion_tokens=20).width > 1


@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "Qwen2Tokenizer"])
def test_a_saved_one_is_the_same_for_us_and_for_transformers(tmp_path, name):
    from transformers import AutoTokenizer

    extended().save(tmp_path)
    stored = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(stored | {"tokenizer_class": name}))
    texts = ["<de>the cat<zh> sat\n", "<语 x><de><d e>"]
    ours, theirs = Tokenizer.from_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert ours.encode(texts) == theirs(texts)["input_ids"] == extended().encode(texts)
    assert ours.decode(ours.encode(texts)) == theirs.batch_decode(theirs(texts)["input_ids"], skip_special_tokens=True) == texts


@pytest.mark.parametrize(
    ("kind", "texts", "named"),
    [
        ("bytes", ["<a>", ""], "'' is empty or repeated"),
        ("bytes", ["<a>", "<b>", "<a>"], "'<a>' is empty or repeated"),
        ("bytes", ["<|end|>"], "'<|end|>' is a token of the tokenizer already"),
        ("bytes", [" cat"], "' cat' is a token of the tokenizer already"),  # spelled Ġcat
        ("bytes", ["Ġcat"], "'Ġcat' is a token of the tokenizer already"),  # a text that spells a token
        ("bytes", ["<é>"], "'<é>' does not come back"),  # é alone spells a byte
        ("pieces", [" <a>"], "' <a>' does not come back"),
    ],
)
def test_texts_that_cannot_be_added_are_refused(kind, texts, named):
    with pytest.raises(UserError) as caught:
        plain(kind).with_tokens(texts)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_is_added_twice_nor_to_a_small_vocabulary(tmp_path):
    with pytest.raises(UserError, match="'<de>' is a token of the tokenizer already; remove it"):
        extended().with_tokens(["<fr>", "<de>"])
    assert extended().with_tokens(["<fr>"]).encode(["<fr><de>"]) == [[OLD + 3, OLD]]
    small().save(tmp_path)
    for tokenizer in (small(), Tokenizer.from_folder(tmp_path)):
        with pytest.raises(UserError, match="small vocabulary takes none; name them among its texts"):
            tokenizer.with_tokens(["<de>"])


# The model.


@pytest.mark.parametrize(("count", "size"), [(2, 12), (4, 16), (1, 12)], ids=["reserve", "grown", "one"])
def test_old_logits_stay_and_new_ones_are_their_mean(count, size):
    rng = np.random.default_rng(0)
    first, V, D = 9, 12, 6
    tables = {"embed": rng.normal(size=(V, D)).astype(np.float32), "lm_head": rng.normal(size=(V, D)).astype(np.float32)}
    rows = {name: np.asarray(table) for name, table in extend_vocabulary(tables, first, count, size).items()}
    assert rows["embed"].shape == rows["lm_head"].shape == (size, D)
    new = [i for i in range(size) if first <= i < first + count or i >= V]
    kept = [i for i in range(size) if i not in new]
    np.testing.assert_array_equal(rows["embed"][kept], tables["embed"][kept])
    np.testing.assert_array_equal(rows["lm_head"][kept], tables["lm_head"][kept])
    for table in rows.values():
        np.testing.assert_allclose(table[new], table[:first].mean(0, keepdims=True).repeat(len(new), 0), atol=1e-6)
    hidden = 5 * rng.normal(size=(200, D))
    logits = hidden @ rows["lm_head"].T
    np.testing.assert_allclose(logits[:, new], logits[:, :first].mean(1, keepdims=True).repeat(len(new), 1), atol=1e-5)
    odds = np.exp(logits[:, new]).sum(1) / np.exp(logits[:, :first]).sum(1)
    assert (odds <= len(new) / first).all()
    assert set(extend_vocabulary({"embed": tables["embed"]}, first, count, size)) == {"embed"}


def make_params(config: ModelConfig):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(Transformer(config).init, jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


def test_a_sharded_model_grows_as_one_device_would_grow_it():
    grown = replace(MODEL, vocab_size=336)
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    old, programs = (Programs(config, ComputeConfig(), mesh) for config in (MODEL, grown))
    params = make_params(MODEL)
    got = programs.extend(jax.device_put(params, old.param_shardings), OLD, 3)
    assert jax.tree.map(lambda leaf: leaf.sharding, got) == programs.param_shardings
    tables = {name: params[name] for name in ("embed", "lm_head")}
    assert_trees_close(got, {**params, **extend_vocabulary(tables, OLD, 3, 336)}, rtol=0, atol=1e-6)
    assert_trees_close(got["layers"], params["layers"], rtol=0, atol=0)


# A whole run.

CONFIG = """
import numpy as np
from jaxrl_ml.config import *
from jaxrl_ml.types import Example

task = [
    Example(id=str(n), task="cats", fields={"prompt": f"the cat {n % 10}"}, answer="", completion="<de>sat on the mat")
    for n in range(40)
]

def reward(texts, examples):
    return np.array([float(text.startswith("<de>")) + len(text) % 3 for text in texts], np.float32)

config = Config(
    run_dir="unset",
    init_from="BASE",
    add_tokens=("<de>", "<zh>", "<语 x>"),
    stages=(
        SFTStage(task, name="cold_start", num_steps=1, batch_size=4, sequence_length=32),
        GRPOStage(
            task, reward, name="explore", num_steps=2, prompts_per_step=4, group_size=4,
            sampling=SamplingConfig(max_prompt_tokens=12, max_completion_tokens=6),
            language=LanguageConfig("constrained", ("de", "zh"), tag="<{code}>"),
        ),
    ),
    optimizer=OptimizerConfig(learning_rate=1e-2),
    checkpoint=CheckpointConfig(every_steps=1, keep=10),
    logging=LoggingConfig(console=False, tensorboard=False, samples_every_steps=1),
)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that adds three tokens to a Hugging Face folder, never stopped; and its one device."""
    folder = tmp_path_factory.mktemp("added")
    hf.save_params(folder / "base", make_params(MODEL), MODEL, "float32", plain())
    (folder / "tiny.py").write_text(CONFIG.replace("BASE", str(folder / "base")))
    with pytest.MonkeyPatch.context() as patch:
        first = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda *_: first)
        assert main([str(folder / "tiny.py"), "--run-dir", str(folder / "run")]) == 0
        yield folder / "run"


def params_of(run: Path, step: int):
    programs = Programs(pretrained.read_model_config(run), ComputeConfig(), make_mesh(MeshConfig()))
    return pretrained.load_params(run, programs.model, programs.param_shardings, step)


def test_a_run_trains_the_new_rows_and_rewards_see_the_texts(run):
    assert pretrained.read_model_config(run) == replace(MODEL, vocab_size=336)
    assert pretrained.read_tokenizer(run).encode(ADDED) == [[OLD], [OLD + 1], [OLD + 2]]
    mean = make_params(MODEL)["embed"][:OLD].mean(0)
    embed = np.asarray(params_of(run, 1)["embed"])
    np.testing.assert_allclose(embed[OLD + 1 :], mean[None].repeat(5, 0), atol=1e-6)  # not seen in the cold start
    assert np.abs(embed[OLD] - mean).max() > 1e-3
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    tags = [sample["completion"][:4] for sample in samples]
    assert set(tags) == {"<de>", "<zh>"}


def test_a_resumed_run_is_the_straight_one(run):
    resumed = run.parent / "resumed"
    shutil.copytree(run, resumed)
    shutil.rmtree(resumed / "checkpoints/3")
    assert main([str(run.parent / "tiny.py"), "--run-dir", str(resumed)]) == 0
    assert_trees_close(params_of(resumed, 3), params_of(run, 3), rtol=0, atol=0)


def test_a_run_that_starts_from_it_has_the_tokens_and_names_only_further_ones(run):
    config = Config(stages=(SFTStage(None),), run_dir="unset", init_from=str(run))
    programs, tokenizer = build(config)
    assert (programs.model.config.vocab_size, tokenizer.vocab_size) == (336, OLD + 3)
    assert tokenizer.encode(["<de> cat"]) == pretrained.read_tokenizer(run).encode(["<de> cat"])
    programs, tokenizer = build(replace(config, add_tokens=("<fr>",)))
    assert (programs.model.config.vocab_size, tokenizer.encode(["<fr>"])) == (336, [[OLD + 3]])
    with pytest.raises(UserError, match="'<de>' is a token of the tokenizer already"):
        build(replace(config, add_tokens=("<de>",)))


def test_an_export_has_the_tokens_and_their_rows(run, tmp_path):
    convert.main(["to-hf", str(run), str(tmp_path / "hf")])
    assert json.loads((tmp_path / "hf/config.json").read_text())["vocab_size"] == 336
    assert load_file(tmp_path / "hf/model.safetensors")["lm_head.weight"].shape == (336, 16)
    convert.main(["from-hf", str(tmp_path / "hf"), str(tmp_path / "again")])
    with Checkpoints(tmp_path / "again", CheckpointConfig()) as checkpoints:
        assert checkpoints.steps() == [0]
    assert_trees_close(params_of(tmp_path / "again", 0), params_of(run, 3), rtol=0, atol=0)
    assert pretrained.read_tokenizer(tmp_path / "again").encode(["<de>the"]) == extended().encode(["<de>the"])


def test_transformers_computes_the_same_logits(run, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch, and parity with it is tested")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    convert.main(["to-hf", str(run), str(tmp_path / "hf")])
    ids = AutoTokenizer.from_pretrained(tmp_path / "hf")(["<zh>the cat<de> sat <语 x>"])["input_ids"]
    tokens = np.array(ids)
    assert {OLD, OLD + 1, OLD + 2} < set(tokens[0].tolist())
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    model, params = Transformer(pretrained.read_model_config(run)), params_of(run, 3)
    hidden, _ = model.prefill(params, tokens, np.arange(tokens.size)[None], np.ones_like(tokens))
    np.testing.assert_allclose(model.logits(params, hidden), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_configs_that_would_not_train_the_rows_are_refused():
    stages = (SFTStage(None, name="none", num_steps=0), SFTStage(None, name="low", lora=LoRAConfig()), SFTStage(None))
    with pytest.raises(UserError, match=r"add_tokens=\('<de>',\) need a first stage with lora=None"):
        Config(stages=stages, run_dir="r", init_from="f", add_tokens=("<de>",))
    assert Config(stages=stages[::-1], run_dir="r", init_from="f", add_tokens=("<de>",)).num_steps == 200


def test_a_model_of_random_weights_has_rows_for_them(tmp_path):
    plain().save(tmp_path)
    config = Config(
        stages=(SFTStage(None),), run_dir="r", tokenizer=str(tmp_path), model=replace(MODEL, vocab_size=0), add_tokens=ADDED
    )
    programs, tokenizer = build(config)
    assert (programs.model.config.vocab_size, tokenizer.vocab_size) == (336, OLD + 3)
    with pytest.raises(UserError, match="smaller than the tokenizer's 330"):
        build(replace(config, model=replace(MODEL, vocab_size=OLD - 1)))
