"""tools/smollm2.py on a small GGUF file of the same kind: weights, config and tokenizer, without torch, all or nothing."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxrl_ml.models.hf import read_config
from jaxrl_ml.tokenizer import Tokenizer

gguf = pytest.importorskip("gguf")

ROOT = Path(__file__).resolve().parent.parent
TOOL = ROOT / "tools" / "smollm2.py"
LAYERS, WIDTH, MLP, HEADS, KV_HEADS = 2, 16, 24, 4, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTES = {byte: chr(byte) for byte in PRINTABLE}  # GPT-2's spelling of bytes
BYTES |= {byte: chr(256 + i) for i, byte in enumerate(byte for byte in range(256) if byte not in BYTES)}
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "Ġ 1", "1 2"]
TOKENS = [*SPECIAL, *BYTES.values(), *(merge.replace(" ", "") for merge in MERGES), "<think>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
TEXTS = [
    "hello world",
    "hello  world 12 + 112\n",
    "<|im_start|>user",
    "a<think>b",
    "é 中文 😀 \t",
    " hello",
    "",
    "<|im_end|><|im_end|>",
]
# A finder that hides torch, as in an environment without it.
WITHOUT_TORCH = """
import importlib.util, runpy, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.split(".")[0] == "torch" else find(name, *rest)

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Hidden())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
assert "torch" not in sys.modules
"""


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("smollm2_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def weights(tie: bool = True) -> dict[str, np.ndarray]:
    """Every tensor by its name on the Hugging Face side."""
    rng = np.random.default_rng(0)
    head = WIDTH // HEADS
    shapes = {"model.embed_tokens.weight": (len(TOKENS), WIDTH), "model.norm.weight": (WIDTH,)}
    shapes |= {} if tie else {"lm_head.weight": (len(TOKENS), WIDTH)}
    for layer in range(LAYERS):
        of_layer = {
            "input_layernorm": (WIDTH,), "post_attention_layernorm": (WIDTH,),
            "self_attn.q_proj": (HEADS * head, WIDTH), "self_attn.k_proj": (KV_HEADS * head, WIDTH),
            "self_attn.v_proj": (KV_HEADS * head, WIDTH), "self_attn.o_proj": (WIDTH, HEADS * head),
            "mlp.gate_proj": (MLP, WIDTH), "mlp.up_proj": (MLP, WIDTH), "mlp.down_proj": (WIDTH, MLP),
        }  # fmt: skip
        shapes |= {f"model.layers.{layer}.{part}.weight": shape for part, shape in of_layer.items()}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write_gguf(path: Path, tool, tie: bool = True, **changes) -> Path:
    """A GGUF file of the weights above. `changes` replace a key's value; None leaves it out."""
    values = {
        "llama.block_count": LAYERS, "llama.context_length": 64, "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": MLP, "llama.attention.head_count": HEADS, "llama.attention.head_count_kv": KV_HEADS,
        "llama.rope.freq_base": 5e4, "llama.attention.layer_norm_rms_epsilon": 1e-5, "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL) - 1) + [4],
        "tokenizer.ggml.merges": MERGES, "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0, "tokenizer.ggml.padding_token_id": 2, "tokenizer.chat_template": TEMPLATE,
    }  # fmt: skip
    values |= changes
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, values.pop("general.architecture", "llama"))
    add = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    for key, value in values.items():
        if value is not None:
            add[type(value)](key, value)
    parts = {theirs: ours for ours, theirs in tool.LAYER.items()}
    whole = {theirs: ours for ours, theirs in tool.WHOLE.items()}
    for name, weight in weights(tie).items():
        if name not in whole:
            _, _, layer, part = name.removesuffix(".weight").split(".", 3)
            if part in ("self_attn.q_proj", "self_attn.k_proj"):  # the halves of a head beside each other
                heads = HEADS if part == "self_attn.q_proj" else KV_HEADS
                weight = weight.reshape(heads, 2, -1, WIDTH).swapaxes(1, 2).reshape(weight.shape)
        writer.add_tensor(whole[name] if name in whole else f"blk.{layer}.{parts[part]}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def run(*arguments: str | Path, without_torch: bool = True) -> subprocess.CompletedProcess:
    hidden = ["-c", WITHOUT_TORCH] if without_torch else []
    return subprocess.run(
        [sys.executable, *hidden, str(TOOL), *map(str, arguments)], cwd=ROOT, capture_output=True, text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tool) -> Path:
    """What the command wrote without torch."""
    place = tmp_path_factory.mktemp("smollm2")
    write_gguf(place / "package" / "model.gguf", tool)
    done = run(place / "made" / "out", "--package", place / "package")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[-2000:]
    assert done.stdout == f"wrote {place / 'made' / 'out'}\n"
    assert [path.name for path in (place / "made").iterdir()] == ["out"]
    return place / "made" / "out"


def test_weights_and_config_come_back(folder):
    from safetensors.numpy import load_file

    found, expected = load_file(folder / "model.safetensors"), weights()
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    config = read_config(folder)
    assert (config.num_layers, config.embed_dim, config.mlp_dim) == (LAYERS, WIDTH, MLP)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (HEADS, KV_HEADS, WIDTH // HEADS)
    assert (config.rope_theta, config.tie_embeddings, config.max_positions) == (5e4, True, 64)
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == 2


def test_the_library_reads_the_tokenizer(folder):
    tokenizer = Tokenizer.from_folder(folder)
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.bos_id, tokenizer.stop_ids) == (2, 2, 1, (2,))
    place = {token: i for i, token in enumerate(TOKENS)}
    assert tokenizer.encode(["hello world", "<think>"]) == [
        [place[token] for token in ("hello", "Ġwor", "l", "d")], [place["<think>"]]
    ]  # fmt: skip
    plain = [text for text in TEXTS if "<|" not in text]
    assert tokenizer.decode(tokenizer.encode(plain)) == plain
    assert tokenizer.encode_prompts(["hello"]) == [[place["hello"]]]  # no BOS
    (chat,) = tokenizer.encode_prompts([[{"role": "user", "content": "hello"}]])
    assert chat[0] == 1 and (chat.count(1), chat.count(2)) == (2, 1)  # <|im_start|> twice, <|im_end|> once


def test_the_tokenizer_is_the_one_that_transformers_makes_with_torch(folder):
    pytest.importorskip("torch")
    from transformers import AutoTokenizer

    package = folder.parent.parent / "package"
    theirs = AutoTokenizer.from_pretrained(package, gguf_file="model.gguf", local_files_only=True)
    ours = AutoTokenizer.from_pretrained(folder)
    assert json.loads(ours.backend_tokenizer.to_str()) == json.loads(theirs.backend_tokenizer.to_str())
    assert ours(TEXTS)["input_ids"] == theirs(TEXTS)["input_ids"]
    assert ours.special_tokens_map == theirs.special_tokens_map and ours.chat_template == theirs.chat_template
    ids = ours(TEXTS)["input_ids"]
    assert ours.batch_decode(ids) == theirs.batch_decode(ids) == TEXTS


def test_a_folder_that_is_there_is_left_alone(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = run(folder, "--package", folder.parent.parent / "package")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {folder} exists and is not empty: give another folder, or remove it\n"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": "qwen2"}, "general.architecture='qwen2' is not supported; it must be 'llama'"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.model='llama' is not supported; it must be 'gpt2'"),
        ({"tokenizer.ggml.pre": "qwen2"}, "tokenizer.ggml.pre='qwen2' is not supported; it must be 'smollm'"),
        ({"tokenizer.ggml.add_bos_token": True}, "tokenizer.ggml.add_bos_token=True is not supported"),
        ({"llama.rope.scaling.type": "linear"}, "llama.rope.scaling.type='linear' is not supported"),
        ({"llama.feed_forward_length": None}, "the file has no key llama.feed_forward_length; "),
        ({"tokenizer.ggml.merges": None}, "the file has no key tokenizer.ggml.merges; "),
    ],
)
def test_another_model_is_refused_and_nothing_is_left(tmp_path, tool, monkeypatch, capsys, changes, message):
    write_gguf(tmp_path / "package" / "model.gguf", tool, **changes)
    monkeypatch.setattr(sys, "argv", ["smollm2.py", str(tmp_path / "out"), "--package", str(tmp_path / "package")])
    with pytest.raises(SystemExit) as stopped:
        tool.main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith(f"error: {message}") and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["package"]


def test_damaged_and_missing_files_are_one_line(tmp_path, tool, monkeypatch, capsys):
    package = tmp_path / "package"
    whole = write_gguf(package / "model.gguf", tool).read_bytes()
    damaged = {"no GGUF": b"PAR1" * 100, "empty": b"", "cut in the header": whole[:1000], "cut in the weights": whole[:-1000]}
    for content in damaged.values():
        (package / "model.gguf").write_bytes(content)
        monkeypatch.setattr(sys, "argv", ["smollm2.py", str(tmp_path / "out"), "--package", str(package)])
        with pytest.raises(SystemExit) as stopped:
            tool.main()
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and error.startswith(f"error: {package / 'model.gguf'} cannot be read as GGUF; ")
        assert error.count("\n") == 1
    (package / "second.gguf").write_bytes(b"")
    for expected in ("has 2 .gguf files", "has 0 .gguf files"):
        with pytest.raises(SystemExit):
            tool.main()
        assert expected in capsys.readouterr().err
        for path in package.iterdir():
            path.unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["package"]


def test_a_tensor_that_llama_has_not_is_named(tool):
    assert tool.hf_name("blk.11.ffn_up.weight") == "model.layers.11.mlp.up_proj.weight"
    for name in ("rope_freqs.weight", "blk.0.attn_q.bias", "blk.0.ffn_gate_exps.weight", "x"):
        with pytest.raises(tool.UserError, match=f"tensor '{name}' is not a tensor of a Llama model"):
            tool.hf_name(name)


def test_an_untied_head_is_kept(tmp_path, tool):
    from safetensors.numpy import load_file

    tool.write(write_gguf(tmp_path / "a.gguf", tool, tie=False), tmp_path / "out")
    np.testing.assert_array_equal(
        load_file(tmp_path / "out" / "model.safetensors")["lm_head.weight"], weights(False)["lm_head.weight"]
    )
    assert not read_config(tmp_path / "out").tie_embeddings
