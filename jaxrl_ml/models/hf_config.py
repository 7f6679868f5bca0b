"""Reads the config.json of a Hugging Face folder into a ModelConfig, as transformers 5 reads it.

An option that this decoder does not compute is refused by name and value. Where a file spells one setting in two ways and the
values differ, the value is the one that transformers takes, or both names are refused.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from jaxrl_ml.config import ModelConfig, RopeScaling
from jaxrl_ml.types import UserError, require

ARCHITECTURES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}
_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_OPTIONAL = (
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "sliding_window",
    "max_window_layers",
)
_SWITCHES = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")
# The defaults of transformers' classes. An absent sliding_window is not the same as null.
_MAX_POSITIONS = {"llama": 2048, "qwen2": 32768, "qwen3": 32768}
_SLIDING_WINDOW, _FIRST_WINDOWED_LAYER = 4096, 28


def read_config(folder: str | Path) -> ModelConfig:
    """The shape of the model in a Hugging Face folder.

    Raises UserError, naming key and value, for an architecture or option that this decoder does not compute, and for two
    spellings of a setting that contradict each other.
    """
    path = Path(folder) / "config.json"
    try:
        written = dict(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"cannot read {path}: give a Hugging Face folder with config.json and safetensors") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not a valid JSON object: {error}") from error
    raw = {key: value for key, value in written.items() if value is not None}
    family = _read_family(path, raw)
    for key in (*_REQUIRED, *_OPTIONAL):
        kinds, value = (int if key in _REQUIRED else int | float), raw.get(key)
        good = isinstance(value, kinds) and not isinstance(value, bool)
        require(good or (value is None and key in _OPTIONAL), f"{path}: {key}={value!r} must be a number")
    for key in _SWITCHES:
        require(isinstance(raw.get(key, False), bool), f"{path}: {key}={raw.get(key)!r} must be true or false")
    _refuse_options(path, raw, written, family)
    heads = raw["num_attention_heads"]
    head_dim = raw.get("head_dim", 128 if family == "qwen3" else raw["hidden_size"] // max(1, heads))
    max_positions = raw.get("max_position_embeddings", _MAX_POSITIONS[family])
    theta, scaling = _read_rope(path, raw, max_positions)
    return ModelConfig(
        family=family,
        vocab_size=raw["vocab_size"],
        num_layers=raw["num_hidden_layers"],
        embed_dim=raw["hidden_size"],
        mlp_dim=raw["intermediate_size"],
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads", heads),
        head_dim=head_dim,
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=raw.get("rms_norm_eps", 1e-6),
        tie_embeddings=raw.get("tie_word_embeddings", False),
        max_positions=max_positions,
    )


def _read_family(path: Path, raw: dict[str, Any]) -> str:
    """The family of `architectures`, or of `model_type`, by which transformers goes, where there are none."""
    names, model_type = raw.get("architectures") or [], raw.get("model_type")
    supported = ", ".join(ARCHITECTURES)
    if not names:
        require(
            model_type in ARCHITECTURES.values(),
            f"{path}: model_type={model_type!r} without architectures is not supported; supported architectures: {supported}",
        )
        return model_type
    family = ARCHITECTURES.get(str(names[0])) if isinstance(names, list) and len(names) == 1 else None
    require(family is not None, f"{path}: architectures={names} is not supported; supported architectures: {supported}")
    require(
        model_type in (None, family),
        f"{path}: architectures={names} and model_type={model_type!r} name two architectures, and transformers goes by "
        "model_type; correct one of them",
    )
    return family


def _refuse_options(path: Path, raw: dict[str, Any], written: dict[str, Any], family: str) -> None:
    """Raises UserError for the first option that would change what the model computes.

    raw: the keys that are not null; written: all of them.
    """
    layers, types = raw["num_hidden_layers"], raw.get("layer_types")
    full = types is None or (isinstance(types, list) and len(types) == layers and all(t == "full_attention" for t in types))
    if family == "llama":  # its attention has no window, but the cache that transformers generates with has one
        windowed = raw.get("sliding_window", math.inf) < raw.get("max_position_embeddings", _MAX_POSITIONS[family])
    else:
        windowed = raw.get("use_sliding_window", False) and written.get("sliding_window", _SLIDING_WINDOW) is not None
        windowed = windowed and types is None and raw.get("max_window_layers", _FIRST_WINDOWED_LAYER) < layers
    refused = {
        "attention_bias": raw.get("attention_bias") and family != "qwen2",  # qwen2 has no such option
        "mlp_bias": raw.get("mlp_bias"),
        "hidden_act": raw.get("hidden_act", "silu") not in ("silu", "swish"),
        "sliding_window": windowed,
        "layer_types": not full,
        "quantization_config": "quantization_config" in raw,
        "partial_rotary_factor": raw.get("partial_rotary_factor", 1) != 1,
        "pretraining_tp": (raw.get("pretraining_tp") or 1) != 1,
        **{key: raw.get(key) for key in ("per_layer_config", "text_config", "configuration_files", "transformers_weights")},
    }
    for key, refuse in refused.items():
        if refuse:
            value = written.get(key, f"{_SLIDING_WINDOW} (the default)" if key == "sliding_window" else None)
            raise UserError(f"{path}: {key}={value!r:.200} is not supported; use a checkpoint without it")


def _read_rope(path: Path, raw: dict[str, Any], max_positions: int) -> tuple[float, RopeScaling | None]:
    """Theta and scaling, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (4).

    A `rope_scaling` that is not empty takes the place of `rope_parameters`. Within either, null is an absent key.
    """
    tables = {key: raw.get(key) or {} for key in ("rope_scaling", "rope_parameters")}
    for key, table in tables.items():
        flat = isinstance(table, dict) and not any(isinstance(value, dict) for value in table.values())
        require(flat, f"{path}: {key}={table!r:.200} is not supported; give an object of numbers, with a rope_type")
        tables[key] = {name: value for name, value in table.items() if value is not None}
    name = "rope_scaling" if tables["rope_scaling"] else "rope_parameters"
    rope = tables[name]
    outer = {key: raw.get(key) for key in ("rope_theta", "original_max_position_embeddings")}
    kind = rope.get("rope_type", rope.get("type", "default"))
    _refuse_contradiction(path, f"{name}.rope_type", kind, f"{name}.type", rope.get("type"))
    if kind not in ("default", "llama3"):
        raise UserError(f"{path}: rope_type={kind!r} in {rope} is not supported; supported types: default, llama3")
    if rope.get("partial_rotary_factor", 1) != 1:
        raise UserError(f"{path}: partial_rotary_factor={rope['partial_rotary_factor']} is not supported; it must be 1")
    _refuse_contradiction(path, f"{name}.rope_theta", rope.get("rope_theta"), "rope_theta", outer["rope_theta"])
    theta = rope.get("rope_theta", 10_000.0 if outer["rope_theta"] is None else outer["rope_theta"])
    other = tables["rope_parameters"].get("rope_theta")
    _refuse_contradiction(path, "rope_parameters.rope_theta", other, f"rope_theta beside {name}", theta)
    require(_is_positive(theta), f"{path}: rope_theta={theta!r} must be a positive number")
    if kind == "default":
        return float(theta), None
    key = "original_max_position_embeddings"
    _refuse_contradiction(path, f"{name}.{key}", rope.get(key), key, outer[key])
    rope = {key: max_positions if outer[key] is None else outer[key], **rope}
    for key in RopeScaling.__dataclass_fields__:
        require(_is_positive(rope.get(key)), f"{path}: rope_type=llama3 needs {key}, a positive number, not {rope.get(key)!r}")
    require(
        rope["low_freq_factor"] < rope["high_freq_factor"],
        f"{path}: low_freq_factor={rope['low_freq_factor']} must be less than high_freq_factor={rope['high_freq_factor']}",
    )
    return float(theta), RopeScaling(**{key: rope[key] for key in RopeScaling.__dataclass_fields__})


def _refuse_contradiction(path: Path, name: str, value: Any, other_name: str, other: Any) -> None:
    """Raises UserError where two spellings of a setting are both there and differ."""
    if value is not None and other is not None and value != other:
        raise UserError(f"{path}: {name}={value!r} and {other_name}={other!r} contradict each other; remove one of them")


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e38  # of float32
