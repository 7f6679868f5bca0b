"""Published shapes of models, so that a plan needs none of their files.

In: a name such as `Qwen2.5-7B-Instruct` (variants share a shape), or a folder. Out: its `ModelConfig`. Source: the
`config.json` of each model's repository on the hub.
"""

from __future__ import annotations

import re
from pathlib import Path

from jaxrl_ml.config import ModelConfig
from jaxrl_ml.types import UserError


def _qwen2(layers: int, width: int, mlp: int, heads: int, kv_heads: int, vocabulary: int, tied: bool, size: int) -> ModelConfig:
    return ModelConfig(
        "qwen2", vocabulary, layers, width, mlp, heads, kv_heads, 128, 1e6, tie_embeddings=tied, max_positions=size
    )


SHAPES = {
    "Qwen2.5-1.5B": _qwen2(28, 1536, 8960, 12, 2, 151_936, True, 32_768),
    "Qwen2.5-3B": _qwen2(36, 2048, 11_008, 16, 2, 151_936, True, 32_768),
    "Qwen2.5-7B": _qwen2(28, 3584, 18_944, 28, 4, 152_064, False, 32_768),
    "Qwen2.5-32B": _qwen2(64, 5120, 27_648, 40, 8, 152_064, False, 32_768),
    "Qwen3-4B": ModelConfig(
        family="qwen3",
        vocab_size=151_936,
        num_layers=36,
        embed_dim=2560,
        mlp_dim=9728,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        rope_theta=1e6,
        tie_embeddings=True,
        max_positions=40_960,
    ),
}


def shape_of(source: str) -> ModelConfig:
    """The shape of a model folder, or of a published model by name. Raises UserError where it is neither."""
    if Path(source).is_dir():
        from jaxrl_ml.pretrained import read_model_config

        return read_model_config(source)
    name = re.sub(r"-(Instruct|Base)$", "", Path(source).name)
    if name not in SHAPES:
        raise UserError(
            f"no folder {source}, and no published shape of that name ({', '.join(SHAPES)}): give --model FOLDER, one that has "
            "the model's config.json; nothing else in it is read"
        )
    return SHAPES[name]
