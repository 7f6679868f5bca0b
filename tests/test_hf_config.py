"""config.json as transformers reads it: on any mixture of spellings the same model, or a refusal that names them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_ml.config import ModelConfig, RopeScaling
from jaxrl_ml.models.hf_config import ARCHITECTURES, read_config
from jaxrl_ml.models.layers import rope_frequencies
from jaxrl_ml.types import UserError

BASE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 48,
}
QWEN2 = BASE | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALING = RopeScaling(8.0, 1.0, 4.0, 16)
SCALED = LLAMA3 | {"original_max_position_embeddings": 16}


def write(folder: Path, config: dict) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def as_transformers_reads(folder: Path) -> tuple[ModelConfig, object]:
    """The same ModelConfig made from transformers' own config object, and that object."""
    from transformers import AutoConfig

    theirs = AutoConfig.from_pretrained(folder)
    assert "sliding_attention" not in (getattr(theirs, "layer_types", None) or [])
    rope = theirs.rope_parameters
    scaling = None
    if rope["rope_type"] == "llama3":
        outer = getattr(theirs, "original_max_position_embeddings", rope["original_max_position_embeddings"])
        fields = {name: rope[name] for name in RopeScaling.__dataclass_fields__}
        scaling = RopeScaling(**fields | {"original_max_position_embeddings": outer})
    else:
        assert rope["rope_type"] == "default"
    config = ModelConfig(
        family=theirs.model_type,
        vocab_size=theirs.vocab_size,
        num_layers=theirs.num_hidden_layers,
        embed_dim=theirs.hidden_size,
        mlp_dim=theirs.intermediate_size,
        num_heads=theirs.num_attention_heads,
        num_kv_heads=theirs.num_key_value_heads,
        head_dim=getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads,
        rope_theta=float(rope["rope_theta"]),
        rope_scaling=scaling,
        norm_eps=theirs.rms_norm_eps,
        tie_embeddings=theirs.tie_word_embeddings,
        max_positions=theirs.max_position_embeddings,
    )
    return config, theirs


def some(*values):
    return st.sampled_from(values)


NUMBERS = {name: value for name, value in LLAMA3.items() if name != "rope_type"}
ROPE = st.fixed_dictionaries(
    {},
    optional={
        "rope_type": some("default", "llama3"),
        "type": some("llama3", "llama3", "yarn"),
        "rope_theta": some(5e5, 5e5, 10_000.0),
        "original_max_position_embeddings": some(16, 64),
    },
).map(lambda rope: rope | NUMBERS)
CHANGES = st.fixed_dictionaries(
    {"num_key_value_heads": some(None, 2, 4), "rope_scaling": st.none() | ROPE},
    optional={
        "rope_parameters": ROPE,
        "rope_theta": some(5e5, 5e5, 10_000.0),
        "original_max_position_embeddings": some(16),
        "max_position_embeddings": some(128, 256),
        "head_dim": some(8, 12),
        "tie_word_embeddings": some(True, False),
        "use_sliding_window": some(True, False),
        "sliding_window": some(None, 4096, 1 << 16),
        "max_window_layers": some(2, 28),
        "layer_types": some(None, ["full_attention"] * 2),
        "torch_dtype": some("float32"),
        "dtype": some("bfloat16"),
        "architectures": some(None, []),
    },
)


@given(family=some(*ARCHITECTURES.values()), changes=CHANGES)
@settings(deadline=None, derandomize=True, max_examples=80)
def test_any_mixture_of_spellings_is_read_as_transformers_does_or_refused(tmp_path_factory, family, changes):
    names = {value: name for name, value in ARCHITECTURES.items()}
    folder = tmp_path_factory.getbasetemp()
    write(folder, BASE | {"architectures": [names[family]], "model_type": family} | changes)
    try:
        ours = read_config(folder)
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert ours == as_transformers_reads(folder)[0]


READ = [
    {},
    {"rope_scaling": SCALED, "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}},
    {"rope_scaling": SCALED, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "rope_theta": 5e5},
    {"rope_scaling": {}, "rope_parameters": SCALED | {"rope_theta": 5e5}},
    {"rope_scaling": {"rope_theta": 5e5}, "rope_parameters": SCALED | {"rope_theta": 5e5}},
    {"rope_scaling": SCALED | {"type": "llama3"}},
    {"rope_scaling": LLAMA3, "max_position_embeddings": 16},
    {"rope_scaling": LLAMA3, "original_max_position_embeddings": 16},
    {"rope_parameters": {"rope_theta": 5e5}, "rope_theta": 5e5},
]


@pytest.mark.parametrize("change", READ)
def test_the_frequencies_are_those_of_transformers(change, tmp_path):
    pytest.importorskip("torch", reason="torch is not installed: pip install torch, and parity with it is tested")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    ours = read_config(write(tmp_path, BASE | change))
    expected, theirs = as_transformers_reads(tmp_path)
    assert ours == expected
    inverse = LlamaRotaryEmbedding(theirs).inv_freq.numpy()
    np.testing.assert_allclose(rope_frequencies(ours.head_dim, ours.rope_theta, ours.rope_scaling), inverse, rtol=1e-6)
    scaled = any("llama3" in table.values() for table in change.values() if isinstance(table, dict))
    assert (ours.rope_scaling == SCALING) == (scaled and change.get("rope_scaling") != {"rope_theta": 5e5})


@pytest.mark.parametrize(
    ("base", "change", "named"),
    [
        # transformers would take 10,000
        (
            BASE,
            {"rope_scaling": SCALED, "rope_parameters": {"rope_theta": 5e5}},
            ("rope_parameters.rope_theta=500000.0", "10000"),
        ),
        (BASE, {"rope_parameters": {"rope_theta": 5e5}, "rope_theta": 7e5}, ("=500000.0 and rope_theta=700000.0",)),
        (BASE, {"rope_scaling": {"rope_theta": 5e5}, "rope_theta": 7e5}, ("rope_scaling.rope_theta", "rope_theta=700000.0")),
        (
            BASE,
            {"rope_scaling": SCALED | {"type": "default"}},
            ("rope_scaling.rope_type='llama3'", "rope_scaling.type='default'"),
        ),
        (BASE, {"rope_scaling": {"rope_type": "default", "type": "yarn"}}, ("'yarn'",)),
        (BASE, {"rope_scaling": {"type": "yarn"}, "rope_parameters": {"rope_type": "default"}}, ("'yarn'",)),
        (BASE, {"rope_scaling": SCALED, "original_max_position_embeddings": 64}, ("=16", "=64")),
        (BASE, {"rope_scaling": SCALED | {"high_freq_factor": 1.0}}, ("low_freq_factor=1.0", "high_freq_factor=1.0")),
        (BASE, {"rope_scaling": SCALED | {"factor": True}}, ("factor", "True")),
        (BASE, {"rope_scaling": SCALED | {"factor": float("nan")}}, ("factor", "nan")),
        (BASE, {"rope_parameters": {"full_attention": SCALED}}, ("rope_parameters", "full_attention")),
        (BASE, {"rope_theta": True}, ("rope_theta=True",)),
        (BASE, {"architectures": ["LlamaForCausalLM"], "model_type": "mistral"}, ("'LlamaForCausalLM'", "'mistral'")),
        (BASE, {"architectures": ["Qwen2ForCausalLM"]}, ("'Qwen2ForCausalLM'", "'llama'")),
        (BASE, {"architectures": ["LlamaForCausalLM", "Qwen2ForCausalLM"]}, ("'LlamaForCausalLM', 'Qwen2ForCausalLM'",)),
        (BASE, {"architectures": "LlamaForCausalLM"}, ("architectures=LlamaForCausalLM",)),
        (BASE, {"architectures": None, "model_type": "gemma"}, ("model_type='gemma'",)),
        (BASE, {"architectures": None, "model_type": None}, ("model_type=None",)),
        (BASE, {"architectures": [], "model_type": "qwen3_moe"}, ("model_type='qwen3_moe'",)),
        # transformers' own default of sliding_window is 4096
        (QWEN2, {"use_sliding_window": True, "max_window_layers": 1}, ("sliding_window", "4096")),
        (QWEN2, {"layer_types": ["full_attention"]}, ("layer_types",)),
        (QWEN2, {"use_sliding_window": "false"}, ("use_sliding_window='false'",)),
        (QWEN2, {"max_window_layers": "28"}, ("max_window_layers='28'",)),
        (BASE, {"sliding_window": 16}, ("sliding_window=16",)),
        (BASE, {"layer_types": ["sliding_attention"] * 2}, ("layer_types",)),
        (BASE, {"tie_word_embeddings": "false"}, ("tie_word_embeddings='false'",)),
        (BASE, {"vocab_size": True}, ("vocab_size=True",)),
        (BASE, {"num_key_value_heads": 0}, ("num_kv_heads=0",)),
        (BASE, {"text_config": {"tie_word_embeddings": True}}, ("text_config",)),
        (BASE, {"per_layer_config": {"1": {"head_dim": 4}}}, ("per_layer_config",)),
        (BASE, {"configuration_files": ["config.4.0.0.json"]}, ("configuration_files",)),
        (BASE, {"transformers_weights": "other.safetensors"}, ("transformers_weights='other.safetensors'",)),
    ],
)
def test_what_contradicts_itself_is_refused_by_name(base, change, named, tmp_path):
    folder = tmp_path
    config = base | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as caught:
        read_config(folder)
    assert "\n" not in str(caught.value)
    for text in named:
        assert text in str(caught.value)


@pytest.mark.parametrize("family", ARCHITECTURES.values())
@pytest.mark.parametrize("architectures", [None, []])
def test_a_file_without_architectures_goes_by_its_model_type(family, architectures, tmp_path):
    names = {value: name for name, value in ARCHITECTURES.items()}
    named = read_config(write(tmp_path, BASE | {"model_type": family, "architectures": [names[family]]}))
    unnamed = read_config(write(tmp_path, BASE | {"model_type": family, "architectures": architectures}))
    assert unnamed == named == as_transformers_reads(tmp_path)[0]
    assert named.family == family


def test_deep_nesting_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text("[" * 200_000)
    with pytest.raises(UserError, match="not a valid JSON object"):
        read_config(tmp_path)


@pytest.mark.parametrize("value", [10**400, float("inf"), 0, True, "10000"])
def test_a_rope_theta_that_is_no_number_of_float32_is_one_line(value, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(BASE | {"rope_theta": value}))
    with pytest.raises(UserError, match="rope_theta") as caught:
        read_config(tmp_path)
    assert "\n" not in str(caught.value)
