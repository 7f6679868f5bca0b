"""An adapter as a folder that PEFT reads: adapter_config.json and adapter_model.safetensors.

Names and axes come from `hf.WEIGHTS`, those of the matrix that the adapter lies on.
Source: PEFT's documentation, "PEFT checkpoint format".
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from jaxrl_ml.config import LoRAConfig
from jaxrl_ml.models import hf
from jaxrl_ml.types import Params


def save_adapter(folder: str | Path, adapter: Params, lora: LoRAConfig, base: str) -> None:
    """Writes an adapter, in float32; `base` names the Hugging Face model that it lies on.

    A is stored as lora_A [rank, inputs], B as lora_B [outputs, rank]. The folder appears under its name when it is complete.
    Raises UserError where it exists and is not empty.
    """
    tensors, targets = {}, []
    for module, pairs in adapter.items():
        for name, pair in pairs.items():
            stored, (outputs, inputs) = hf.WEIGHTS[f"layers/{module}/{name}"]
            path = stored.removesuffix(".weight")
            targets.append(path.rsplit(".", 1)[-1])
            to_theirs = {
                "a": ((len(inputs),), tuple(range(len(inputs)))),
                "b": (tuple(range(1, 1 + len(outputs))), (0,)),
            }
            for letter, axes in to_theirs.items():
                for layer in range(len(pair[letter])):
                    key = f"base_model.model.{path.format(layer)}.lora_{letter.upper()}.weight"
                    tensors[key] = hf.fetch(pair[letter], axes, layer, np.dtype(np.float32))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
    }
    with hf.new_folder(Path(folder)) as temporary:
        save_file(tensors, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
        (temporary / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
