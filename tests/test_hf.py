"""Hugging Face folders both ways, and a ladder of parity with transformers on torch: norm, attention, layer, model, files."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxrl_ml.config import MeshConfig, ModelConfig, RopeScaling
from jaxrl_ml.models import hf
from jaxrl_ml.models.attention import attention
from jaxrl_ml.models.layers import RMSNorm, rope_frequencies
from jaxrl_ml.models.transformer import Transformer
from jaxrl_ml.sharding import SAMPLING, TRAINING, Layout, make_mesh
from jaxrl_ml.tokenizer import Tokenizer
from jaxrl_ml.types import UserError

BASE = ModelConfig(vocab_size=48, num_layers=2, embed_dim=32, mlp_dim=48, num_heads=4, num_kv_heads=2, head_dim=8)
SCALING = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
CONFIGS = {
    "llama-tied": BASE,
    "llama-scaled": replace(BASE, tie_embeddings=False, rope_scaling=SCALING, rope_theta=500.0, norm_eps=1e-5),
    "qwen2-tied": replace(BASE, family="qwen2", rope_theta=1e6),
    "qwen2-untied": replace(BASE, family="qwen2", tie_embeddings=False, num_kv_heads=4),
    "qwen3": replace(BASE, family="qwen3", head_dim=12, tie_embeddings=False),
}
SMOLLM2 = os.environ.get("JAXRL_ML_SMOLLM2")


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="torch is not installed: pip install torch, and parity with it is tested")


@lru_cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_vocabulary([chr(ord("a") + i) for i in range(26)])


def make_params(config: ModelConfig, seed: int = 0):
    """Random parameters in which norms and biases are not at their neutral values."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        return jnp.asarray((path[-1].key == "scale") + 0.2 * rng.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(Transformer(config).init, jax.random.key(0)))


def alone(model: Transformer):
    """Shardings of a single device."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), shapes)


def load(folder, config: ModelConfig | None = None):
    model = Transformer(config or hf.read_config(folder))
    return hf.load_params(folder, model, alone(model))


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


@pytest.fixture
def folder(config, tmp_path):
    hf.save_params(tmp_path / "model", make_params(config), config, "float32", tokenizer())
    return tmp_path / "model"


def logits_of(config: ModelConfig, params, tokens, positions):
    model = Transformer(config)

    @jax.jit
    def run(params, tokens, positions):
        hidden, _ = model.prefill(params, tokens, positions, jnp.ones_like(tokens))
        return model.logits(params, hidden)

    return np.asarray(run(params, jnp.asarray(tokens), jnp.asarray(positions)))


def assert_close(got, expected, tolerance=1e-5):
    """Within `tolerance` of the expected values' largest magnitude."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def load_torch(torch, folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def test_parity_ladder(torch, config, folder):
    theirs, params, rng = load_torch(torch, folder), load(folder, config), np.random.default_rng(1)
    T = 40  # beyond the original length of llama3 scaling
    x = rng.normal(size=(2, T, config.embed_dim)).astype(np.float32)
    tokens = rng.integers(0, config.vocab_size, (2, T))
    positions = np.arange(T)[None].repeat(2, 0)
    first = jax.tree.map(lambda leaf: leaf[0], params["layers"])
    layer = theirs.model.layers[0]
    with torch.no_grad():
        assert_close(
            RMSNorm(config.norm_eps).apply({"params": first["attention_norm"]}, x), layer.input_layernorm(torch.tensor(x))
        )
        cos, sin = theirs.model.rotary_emb(torch.tensor(x), torch.tensor(positions))
        angles = positions[..., None] * np.asarray(rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling))
        assert_close(np.cos(angles), cos[..., : config.head_dim // 2])
        causal = torch.full((1, 1, T, T), -torch.inf).triu(1)
        expected = layer(torch.tensor(x), attention_mask=causal, position_embeddings=(cos, sin))
        expected = expected[0] if isinstance(expected, tuple) else expected
        mask = jnp.tril(jnp.ones((1, T, T), bool))
        attend = lambda q, k, v: (attention(q, k, v, mask), None)  # noqa: E731
        block = jax.jit(lambda *arrays: Transformer(config).block.apply({"params": first}, *arrays, attend)[0])
        assert_close(block(x, jnp.cos(angles), jnp.sin(angles)), expected)
        expected = theirs(torch.tensor(tokens)).logits
    assert_close(logits_of(config, params, tokens, positions), expected)


def test_export_in_several_bfloat16_files_loads_in_transformers(torch, tmp_path):
    config = CONFIGS["qwen3"]
    hf.save_params(tmp_path / "model", make_params(config), config, "bfloat16", tokenizer(), max_shard_bytes=10_000)
    files = sorted(tmp_path.glob("model/*.safetensors"))
    assert len(files) >= 4
    assert all(file.stat().st_size < 20_000 for file in files)
    index = json.loads((tmp_path / "model/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for file in files for x in load_file(file).values())
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").dtype == torch.bfloat16
    tokens = np.random.default_rng(0).integers(0, 48, (2, 9))
    with torch.no_grad():
        expected = load_torch(torch, tmp_path / "model")(torch.tensor(tokens)).logits
    assert_close(logits_of(config, load(tmp_path / "model"), tokens, np.arange(9)[None].repeat(2, 0)), expected)
    read = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert read("hello")["input_ids"] == tokenizer().encode(["hello"])[0]


def test_a_checkpoint_written_by_transformers_is_read(torch, config, tmp_path):
    """The other direction: their files and their config.json (rope_parameters), not ours."""
    hf.save_params(tmp_path / "ours", make_params(config), config, "float32", tokenizer())
    model = load_torch(torch, tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs")
    assert "rope_parameters" in json.loads((tmp_path / "theirs/config.json").read_text())
    assert hf.read_config(tmp_path / "theirs") == config
    for a, b in zip(jax.tree.leaves(load(tmp_path / "theirs")), jax.tree.leaves(make_params(config)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_export_of_import_is_equal_tensor_for_tensor(config, folder, tmp_path):
    assert hf.read_config(folder) == config
    hf.save_params(tmp_path / "again", load(folder), hf.read_config(folder), "float32", Tokenizer.from_folder(folder))
    first, again = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "again"))
    assert first.keys() == again.keys()
    assert all(np.array_equal(first[name], again[name]) for name in first)
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (folder / name).read_text() == (tmp_path / "again" / name).read_text()


@pytest.mark.parametrize("rules", [TRAINING, SAMPLING], ids=["training", "sampling"])
def test_import_onto_a_mesh_equals_import_onto_one_device(config, folder, rules, tmp_path):
    layout = Layout(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)), rules)
    model = Transformer(config)
    shardings = layout.tree(model.axes(), jax.eval_shape(model.init, jax.random.key(0)))
    spread = hf.load_params(folder, model, shardings)
    for got, want, sharding in zip(*map(jax.tree.leaves, (spread, load(folder), shardings)), strict=True):
        np.testing.assert_array_equal(got, want)
        assert got.sharding == sharding
        assert got.dtype == jnp.float32
    assert spread["layers"]["mlp"]["gate"].addressable_shards[0].data.shape[-1] == config.mlp_dim // 2
    hf.save_params(tmp_path / "again", spread, config, "float32", tokenizer())
    assert (tmp_path / "again/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_files_are_read_as_float32(dtype, tmp_path):
    config = CONFIGS["qwen2-tied"]
    hf.save_params(tmp_path / "m", make_params(config), config, "float32", tokenizer())
    half = {name: x.astype(dtype) for name, x in load_file(tmp_path / "m/model.safetensors").items()}
    save_file(half, tmp_path / "m/model.safetensors")
    for got, want in zip(jax.tree.leaves(load(tmp_path / "m")), jax.tree.leaves(make_params(config)), strict=True):
        np.testing.assert_array_equal(got, want.astype(dtype).astype(jnp.float32))


def saved(tmp_path, name="llama-tied") -> tuple[Path, dict]:
    hf.save_params(tmp_path / "m", make_params(CONFIGS[name]), CONFIGS[name], "float32", tokenizer())
    return tmp_path / "m", load_file(tmp_path / "m/model.safetensors")


def assert_refused(call, *texts):
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for text in texts:
        assert text in str(caught.value)


def test_missing_extra_and_misshapen_tensors_are_named(tmp_path):
    folder, tensors = saved(tmp_path)
    name = "model.layers.1.mlp.up_proj.weight"
    file = folder / "model.safetensors"
    save_file({key: x for key, x in tensors.items() if key != name}, file)
    assert_refused(lambda: load(folder), name, "missing", str(folder))
    save_file(tensors | {"model.layers.2.mlp.up_proj.weight": tensors[name]}, file)
    assert_refused(lambda: load(folder), "model.layers.2.mlp.up_proj.weight", str(file))
    save_file(tensors | {name: tensors[name].T.copy()}, file)
    assert_refused(lambda: load(folder), name, str(file), "[32, 48]", "[48, 32]")
    save_file(tensors | {name: tensors[name].astype(np.int8)}, file)
    assert_refused(lambda: load(folder), name, "I8")
    save_file(tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}, file)
    load(folder)


def test_a_tied_checkpoint_may_repeat_its_embedding_but_not_change_it(tmp_path):
    folder, tensors = saved(tmp_path)
    embedding = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": embedding.copy()}, folder / "model.safetensors")
    assert "lm_head" not in load(folder)
    changed = embedding.copy()
    changed[-1, -1] += 1
    save_file(tensors | {"lm_head.weight": changed}, folder / "model.safetensors")
    assert_refused(lambda: load(folder), "lm_head.weight", "tie_word_embeddings")


def test_damaged_files_are_refused(tmp_path):
    folder, tensors = saved(tmp_path)
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for damaged in (whole[:-5], whole[:40], b"", b"\xff" * 64):
        file.write_bytes(damaged)
        assert_refused(lambda: load(folder), str(file))
    file.unlink()
    assert_refused(lambda: load(folder), "lacks model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert_refused(lambda: load(folder), "pickles", "save_pretrained")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "../model.safetensors"}}))
    (folder.parent / "model.safetensors").write_bytes(whole)
    assert_refused(lambda: load(folder), "../model.safetensors")
    index.write_text("{")
    assert_refused(lambda: load(folder), "index")
    index.write_text(json.dumps({"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}))
    for name in "ab":
        save_file(tensors, folder / f"{name}.safetensors")
    assert_refused(lambda: load(folder), "a.safetensors", "b.safetensors")


def split(folder: Path, tensors: dict) -> Path:
    """Writes the tensors once more, as two shards and their index; returns the first shard."""
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    weight_map = {name: file for file, held in shards.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder / next(iter(shards))


def test_the_one_set_of_weights_that_is_complete_is_read(tmp_path):
    folder, tensors = saved(tmp_path)
    single, index, params = folder / "model.safetensors", folder / "model.safetensors.index.json", load(folder)
    whole = single.read_bytes()
    doubled = {name: 2 * x for name, x in tensors.items()}
    first = split(folder, doubled)
    shard = first.read_bytes()

    def assert_reads(factor: int) -> None:
        for got, want in zip(jax.tree.leaves(load(folder)), jax.tree.leaves(params), strict=True):
            np.testing.assert_array_equal(got, factor * want)

    assert_refused(lambda: load(folder), "in model.safetensors and in the shards of model.safetensors.index.json", str(folder))
    for damage in ("gone", shard[:-5], b""):  # only the single file is complete
        first.unlink() if damage == "gone" else first.write_bytes(damage)
        assert_reads(1)
    for text in ("{", "[]", '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../m/model.safetensors"}}', "[" * 200_000):
        index.write_text(text)
        assert_reads(1)
    save_file({"other": np.ones(1, np.float32)}, folder / "consolidated.safetensors")  # of another format: no part of either
    assert_reads(1)
    first = split(folder, doubled)
    for damage in (whole[:-5], whole[:40]):  # only the shards are
        single.write_bytes(damage)
        assert_reads(2)
    save_file({name: x for name, x in tensors.items() if name != "model.norm.weight"}, single)
    assert_reads(2)
    first.unlink()
    refused = "lacks model-00001-of-00002.safetensors", "tensor model.norm.weight is missing from model.safetensors"
    assert_refused(lambda: load(folder), "neither", *refused)
    index.unlink()
    assert_refused(lambda: load(folder), "tensor model.norm.weight is missing")


def test_an_index_of_one_file_is_that_file(tmp_path):
    folder, tensors = saved(tmp_path)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "model.safetensors")}))
    assert jax.tree.structure(load(folder)) == jax.tree.structure(make_params(CONFIGS["llama-tied"]))
    held = {name: x for name, x in tensors.items() if "layers.1" in name}  # a shard may have that name too
    save_file(held, folder / "other.safetensors")
    save_file({name: x for name, x in tensors.items() if name not in held}, folder / "model.safetensors")
    files = {name: "other.safetensors" if name in held else "model.safetensors" for name in tensors}
    index.write_text(json.dumps({"weight_map": files}))
    for got, want in zip(jax.tree.leaves(load(folder)), jax.tree.leaves(make_params(CONFIGS["llama-tied"])), strict=True):
        np.testing.assert_array_equal(got, want)


def test_transformers_reads_the_same_one_of_two_sets(torch, tmp_path):
    folder, tensors = saved(tmp_path)
    split(folder, {name: 2 * x for name, x in tensors.items()}).unlink()
    theirs = load_torch(torch, folder).model.norm.weight.detach().numpy()
    np.testing.assert_array_equal(theirs, load(folder)["final_norm"]["scale"])
    np.testing.assert_array_equal(theirs, tensors["model.norm.weight"])


def test_an_adapter_beside_the_weights_is_refused(tmp_path):
    folder, _ = saved(tmp_path)
    (folder / "adapter_config.json").write_text("{}")
    assert_refused(lambda: load(folder), "adapter_config.json", "merge")


LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 48,
}
QWEN = LLAMA | {"architectures": ["Qwen2ForCausalLM"]}


@pytest.mark.parametrize(
    ("base", "change", "named"),
    [
        (LLAMA, {"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM"),
        (LLAMA, {"architectures": ["Qwen3MoeForCausalLM"]}, "Qwen3MoeForCausalLM"),
        (LLAMA, {"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        (LLAMA, {"architectures": None, "model_type": "gpt2"}, "gpt2"),
        (LLAMA, {"attention_bias": True}, "attention_bias=True"),
        (LLAMA, {"mlp_bias": True}, "mlp_bias=True"),
        (LLAMA, {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        (LLAMA, {"quantization_config": {"bits": 4}}, "quantization_config"),
        (LLAMA, {"pretraining_tp": 2}, "pretraining_tp=2"),
        (LLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        (LLAMA, {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        (LLAMA, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        (LLAMA, {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        (QWEN, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        (QWEN, {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e6}}, "longrope"),
        (LLAMA, {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        (QWEN, {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}, "sliding_window=16"),
        (QWEN, {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        (LLAMA, {"hidden_size": None}, "hidden_size=None"),
        (LLAMA, {"head_dim": "8"}, "head_dim='8'"),
        (LLAMA, {"rms_norm_eps": "1e-6"}, "rms_norm_eps='1e-6'"),
        (LLAMA, {"max_position_embeddings": "2k"}, "max_position_embeddings='2k'"),
        (LLAMA, {"rope_theta": "1e6"}, "rope_theta='1e6'"),
        (LLAMA, {"rope_theta": 0}, "rope_theta=0"),
        (LLAMA, {"rope_scaling": "yarn"}, "yarn"),
        (LLAMA, {"rope_scaling": {"rope_type": "llama3", **vars(SCALING), "factor": "8"}}, "factor"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(base, change, named, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(base | change))
    assert_refused(lambda: hf.read_config(tmp_path), named, "config.json")


def test_defaults_and_both_spellings_of_rope(tmp_path):
    def read(**change):
        (tmp_path / "config.json").write_text(json.dumps(LLAMA | change))
        return hf.read_config(tmp_path)

    plain = read()
    assert (plain.head_dim, plain.num_kv_heads, plain.rope_theta, plain.tie_embeddings) == (8, 4, 10_000.0, False)
    nothing = dict.fromkeys(("head_dim", "num_key_value_heads", "rope_theta", "rms_norm_eps", "max_position_embeddings"))
    assert read(**nothing) == plain
    old = read(rope_theta=5e5, rope_scaling={"rope_type": "llama3", **vars(SCALING)})
    assert read(tie_word_embeddings=None).tie_embeddings is False
    new = read(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **vars(SCALING)})
    assert old == new == replace(plain, rope_theta=5e5, rope_scaling=SCALING)
    window = {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 16}
    assert read(**window, use_sliding_window=False).family == "qwen2"
    assert read(**window, use_sliding_window=True, max_window_layers=2).family == "qwen2"  # beyond the last layer
    for text in ("{", "null", "[1]"):
        (tmp_path / "config.json").write_text(text)
        assert_refused(lambda: hf.read_config(tmp_path), "not a valid JSON object")
    assert_refused(lambda: hf.read_config(tmp_path / "none"), "cannot read")


def test_an_export_is_whole_or_absent(tmp_path, monkeypatch):
    config = CONFIGS["llama-tied"]
    (tmp_path / "m").mkdir()
    (tmp_path / "m/keep").write_text("mine")
    assert_refused(lambda: hf.save_params(tmp_path / "m", make_params(config), config, "float32", tokenizer()), "not empty")
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["keep"]
    with monkeypatch.context() as patch:
        patch.setattr(hf, "_write_tensors", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            hf.save_params(tmp_path / "n", make_params(config), config, "float32", tokenizer())
    assert not (tmp_path / "n").exists()
    hf.save_params(tmp_path / "n", make_params(config), config, "float32", tokenizer())
    assert {path.name for path in tmp_path.iterdir()} == {"m", "n"}
    odd = replace(config, num_heads=3, num_kv_heads=3)
    assert_refused(lambda: hf.save_params(tmp_path / "o", make_params(odd), odd, "float32", tokenizer()), "embed_dim=32")


@pytest.mark.slow
@pytest.mark.skipif(SMOLLM2 is None, reason="make a folder with `python tools/smollm2.py OUT`, and set JAXRL_ML_SMOLLM2=OUT")
def test_parity_on_smollm2_135m(torch):
    config, text = hf.read_config(SMOLLM2), Tokenizer.from_folder(SMOLLM2)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = text.encode_prompts([question])[0] + text.encode(["The capital of France is Paris. " * 8])[0]
    with torch.no_grad():
        expected = load_torch(torch, SMOLLM2)(torch.tensor([ids])).logits.numpy()
    got = logits_of(config, load(SMOLLM2), np.array([ids]), np.arange(len(ids))[None])
    assert_close(got, expected)
    assert (got.argmax(-1) == expected.argmax(-1)).all()
