"""What is streamed is what one-shot sampling gives, in whole characters and safe to print."""

from __future__ import annotations

import functools
import io
import json
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tokenizer import metaspace, word_pieces
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jaxrl_ml import generate
from jaxrl_ml.checkpoint import Checkpoints
from jaxrl_ml.config import CheckpointConfig, ComputeConfig, MeshConfig, ModelConfig, SamplingConfig
from jaxrl_ml.generate import GENERATION_PURPOSE, TextStream, left_padded, prompt_ids, stream
from jaxrl_ml.metrics import visible
from jaxrl_ml.models import hf
from jaxrl_ml.pretrained import write_model_config
from jaxrl_ml.programs import Programs
from jaxrl_ml.sampler import settings_of
from jaxrl_ml.sharding import make_mesh
from jaxrl_ml.tokenizer import Tokenizer
from jaxrl_ml.types import UserError

TEMPLATE = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}[assistant]"
MODEL = ModelConfig(
    vocab_size=264,
    num_layers=1,
    embed_dim=16,
    mlp_dim=32,
    num_heads=2,
    num_kv_heads=2,
    head_dim=8,
    max_positions=128,
    tie_embeddings=False,
)


def byte_tokenizer(template: str | None) -> Tokenizer:
    """Token i is byte i, so that a character takes up to four; 256 is the end."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # GPT-2 spells the others from 256 on
    others = [byte for byte in range(256) if byte not in printable]
    spelled = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
    backend = Backend(models.BPE(spelled | {"<eos>": 256}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", clean_up_tokenization_spaces=False)
    fast.chat_template = template
    return Tokenizer(fast, [256])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return shared_byte_tokenizer()


programs_of = functools.cache(Programs)  # compiled once, in the commands too


@pytest.fixture(autouse=True)
def shared_programs(monkeypatch) -> None:
    monkeypatch.setattr("jaxrl_ml.programs.Programs", programs_of)


@pytest.fixture(scope="module")
def programs() -> Programs:
    return programs_of(MODEL, ComputeConfig(), make_mesh(MeshConfig(data=1), jax.devices()[:1]))


@pytest.fixture(scope="module")
def params(programs: Programs) -> dict:
    return programs.init(jax.random.key(0))


@pytest.fixture(scope="module")
def weights(programs: Programs, params: dict) -> dict:
    return programs.gather(params)


@pytest.fixture(scope="module")
def run(tmp_path_factory, params: dict, tokenizer: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_model_config(folder, MODEL)
    tokenizer.save(folder / "tokenizer")
    with Checkpoints(folder, CheckpointConfig()) as checkpoints:
        checkpoints.save_params(4, params)
    return folder


def one_shot(programs, weights, tokenizer, ids, sampling: SamplingConfig, num_samples: int, seed: int) -> list[str]:
    put = programs.layout.put
    rollout = programs.sample(
        weights,
        put(left_padded(ids, tokenizer.pad_id)),
        put(np.array([seed, GENERATION_PURPOSE, 0, 0], np.uint32)),
        put(tokenizer.stop_table(sampling.stop, MODEL.vocab_size)),
        put(settings_of(sampling)),
        truncates=sampling.truncates,
        group_size=num_samples,
        width=sampling.max_completion_tokens,
    )
    rows = zip(np.asarray(rollout.completions), np.asarray(rollout.lengths), strict=True)
    return tokenizer.decode([row[:length] for row, length in rows])


SAMPLINGS = {
    "plain": SamplingConfig(max_completion_tokens=21),
    "truncated": SamplingConfig(max_completion_tokens=21, temperature=1.3, top_k=40, top_p=0.9, min_p=0.01),
    "greedy": SamplingConfig(max_completion_tokens=21, temperature=0.0),
}


@pytest.mark.parametrize("name", SAMPLINGS)
def test_streamed_text_is_the_sampled_text(name: str, programs, weights, tokenizer) -> None:
    ids = prompt_ids(tokenizer, "3 + 4 =")
    pieces = list(stream(programs, weights, tokenizer, ids, SAMPLINGS[name], num_samples=3, seed=11))
    texts = ["".join(column) for column in zip(*pieces, strict=True)]
    assert len(pieces) == 3
    assert texts == one_shot(programs, weights, tokenizer, ids, SAMPLINGS[name], 3, 11)
    assert len(set(texts)) == (1 if name == "greedy" else 3)
    assert all(texts)
    again = list(stream(programs, weights, tokenizer, ids, SAMPLINGS[name], num_samples=3, seed=11))
    assert again == pieces
    if name == "plain":
        other = list(stream(programs, weights, tokenizer, ids, SAMPLINGS[name], num_samples=3, seed=12))
        assert other != pieces


def test_streaming_ends_where_all_rows_have_stopped(programs, weights, tokenizer) -> None:
    for start in string.ascii_letters:  # the weights are random: not every text has an ASCII character early on
        ids = prompt_ids(tokenizer, start)
        free = one_shot(programs, weights, tokenizer, ids, SAMPLINGS["greedy"], 3, 0)[0]
        stop = next((char for char in free[1:7] if char.isascii() and char != free[0]), None)
        if stop is not None:
            break
    expected = free.partition(stop)[0] + stop
    assert 1 < len(expected) < 8 < len(free)
    sampling = SamplingConfig(max_completion_tokens=21, temperature=0.0, stop=(stop,))
    pieces = list(stream(programs, weights, tokenizer, ids, sampling, num_samples=3))
    assert pieces == [[expected] * 3]


def test_the_prompt_width_changes_nothing(programs, weights, tokenizer) -> None:
    ids = prompt_ids(tokenizer, "3 + 4 =")
    assert left_padded(ids, 0).tokens.shape == (1, 16)
    for count, width in ((1, 16), (16, 16), (17, 32), (32, 32), (100, 128)):
        prompts = left_padded(list(range(count)), 9)
        assert prompts.tokens.shape == prompts.mask.shape == (1, width)
        assert prompts.tokens[0][prompts.mask[0]].tolist() == list(range(count))
        assert prompts.mask[0].tolist() == [False] * (width - count) + [True] * count


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.one_of(st.binary(max_size=5), st.text(max_size=4).map(lambda t: t.encode("utf-8", "replace")))))
def test_pieces_add_up_to_the_text_whatever_the_bytes(chunks: list[bytes]) -> None:
    text = TextStream(shared_byte_tokenizer())
    pieces = [text.push(list(chunk)) for chunk in chunks] + [text.push([], last=True)]
    assert "".join(pieces) == b"".join(chunks).decode("utf-8", "replace")
    assert not any(piece.endswith("\ufffd") for piece in pieces[:-1])


@pytest.mark.parametrize("make", [word_pieces, metaspace])
def test_pieces_add_up_where_ids_have_no_text(make) -> None:
    tokenizer, rng = make(), np.random.default_rng(0)
    for _ in range(200):
        ids = rng.integers(0, tokenizer.vocab_size, 12).tolist()
        text = TextStream(tokenizer)
        pieces = [text.push(ids[start:end]) for start, end in ((0, 1), (1, 3), (3, 7), (7, 12))]
        assert "".join([*pieces, text.push([], last=True)]) == tokenizer.decode([ids])[0]


@functools.cache
def shared_byte_tokenizer() -> Tokenizer:
    return byte_tokenizer(None)


def test_a_character_waits_until_it_is_whole(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(["a€😀b"])[0]
    assert ids == list("a€😀b".encode())
    text = TextStream(tokenizer)
    assert [text.push([i]) for i in ids] == ["a", "", "", "€", "", "", "", "😀", "b"]
    assert text.push(ids[1:3]) == "" and text.push([], last=True) == "\ufffd"


def test_prompts_take_the_chat_template_where_there_is_one(tokenizer: Tokenizer) -> None:
    chat = byte_tokenizer(TEMPLATE)

    def shown(*args, **kwargs) -> str:
        return chat.decode([prompt_ids(*args, **kwargs)])[0]

    assert shown(chat, "hi") == "[user]hi\n[assistant]"
    assert shown(chat, "hi", "be brief") == "[system]be brief\n[user]hi\n[assistant]"
    assert shown(chat, "hi", chat=False) == shown(tokenizer, "hi") == "hi"
    with pytest.raises(UserError, match="--system 'x' has no place with --no-chat"):
        prompt_ids(chat, "hi", "x", chat=False)
    with pytest.raises(UserError, match="--system 'x' has no place for a tokenizer without chat template"):
        prompt_ids(tokenizer, "hi", "x")
    for empty in ("", " \n"):
        with pytest.raises(UserError, match="prompt is empty"):
            prompt_ids(tokenizer, empty)


def test_command_streams_a_run(run: Path, programs, weights, tokenizer, capsys, monkeypatch) -> None:
    expected = one_shot(programs, weights, tokenizer, prompt_ids(tokenizer, "3 + 4 ="), SAMPLINGS["plain"], 3, 11)
    arguments = ["--max-new-tokens", "21", "--temperature", "1.0", "--seed", "11", "--num-samples", "3"]
    generate.main([str(run), "3 + 4 =", *arguments, "--step", "4"])
    out = capsys.readouterr().out
    first, second, third = map(visible, expected)
    assert out == f"{first}\n--- 2 of 3 ---\n{second}\n--- 3 of 3 ---\n{third}\n"
    assert "\x1b" not in out
    monkeypatch.setattr(sys, "stdin", io.StringIO("3 + 4 ="))
    generate.main([str(run), "-", *arguments])
    assert capsys.readouterr().out == out


def test_command_streams_a_hugging_face_folder(tmp_path: Path, params, run: Path, tokenizer, capsys) -> None:
    folder = tmp_path / "hf"
    hf.save_params(folder, params, MODEL, "float32", tokenizer)
    arguments = ["3 + 4 =", "--max-new-tokens", "21", "--temperature", "1.0", "--seed", "11", "--num-samples", "3"]
    generate.main([str(folder), *arguments])
    of_folder = capsys.readouterr().out
    generate.main([str(run), *arguments])
    assert capsys.readouterr().out == of_folder
    with pytest.raises(UserError, match="has no steps"):
        generate.main([str(folder), "x", "--step", "4"])


def test_two_devices_write_what_one_does(run: Path, capsys) -> None:
    arguments = [str(run), "3 + 4 =", "--max-new-tokens", "21", "--temperature", "1.0", "--num-samples", "3"]
    generate.main(arguments)
    expected = capsys.readouterr().out
    generate.main([*arguments, "--tensor", "2"])
    assert capsys.readouterr().out == expected


def test_mistakes_are_named(run: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (["--max-new-tokens", "0"], "--max-new-tokens 0"),
        (["--max-new-tokens", "126"], "prompt of 3 tokens and --max-new-tokens 126 exceed the model's 128"),
        (["--temperature", "-1"], "temperature=-1"),
        (["--top-p", "0"], "top_p=0"),
        (["--num-samples", "2", "--temperature", "0"], "--num-samples 2"),
        (["--seed", "-1"], "--seed -1"),
        (["--step", "5"], r"no checkpoint 5; it has \[4\]"),
        (["--stop", ""], "empty text"),
        (["--tensor", "0"], "0"),
        (["--tensor", "99"], "does not fit"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            generate.main([str(run), "1+1", *arguments])
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="neither a Hugging Face model folder"):
        generate.main([str(tmp_path), "1+1"])


def test_help_needs_no_jax_and_an_error_is_one_line(tmp_path: Path) -> None:
    code = "import sys, jaxrl_ml.generate as g\ntry: g.main(['--help'])\nexcept SystemExit: print('jax' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip().endswith("False") and "--no-chat" in found.stdout
    command = [sys.executable, "-m", "jaxrl_ml.generate", str(tmp_path / "none"), "x"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 2
    assert found.stderr.count("\n") == 1 and found.stderr.startswith("error: ")


# ------------------------------------------------------------------------------------------------- the settings of a run

STAGES = [
    {"type": "SFTStage", "name": "sft", "num_steps": 2},
    {
        "type": "GRPOStage",
        "name": "grpo",
        "num_steps": 4,
        "sampling": {"stop": ["</answer>", "\n\n"]},
        "language": {"mode": "off"},
    },
]
SETTINGS = {"system_prompt": "be brief", "stages": STAGES, "checkpoint": {"best_metric": None}}


@pytest.fixture
def settled_run(tmp_path: Path, params: dict) -> Callable[..., Path]:
    """Makes run folders with a chat template and a resolved config; their config.py must not be executed."""

    def make(template: str | None = TEMPLATE, steps: tuple[int, ...] = (4,), **changes: object) -> Path:
        folder = tmp_path / "run"
        folder.mkdir()
        write_model_config(folder, MODEL)
        byte_tokenizer(template).save(folder / "tokenizer")
        (folder / "config.json").write_text(json.dumps(SETTINGS | changes))
        (folder / "config.py").write_text("raise SystemExit('executed')")
        with Checkpoints(folder, CheckpointConfig()) as checkpoints:
            for step in steps:
                checkpoints.save_params(step, params)
        return folder

    return make


@pytest.fixture
def streamed(monkeypatch) -> list[tuple[str, SamplingConfig]]:
    """Takes the prompt and the sampling settings of each call of the command."""
    calls = []

    def record(programs, weights, tokenizer, ids, sampling, num_samples, seed):
        calls.append((tokenizer.decode([ids])[0], sampling))
        yield ["."] * num_samples

    monkeypatch.setattr(generate, "stream", record)
    return calls


def test_a_run_is_given_its_system_prompt_and_ends_at_its_stop_texts(settled_run, streamed, capsys) -> None:
    run = settled_run()
    for arguments, prompt, stop in (
        ([], "[system]be brief\n[user]hi\n[assistant]", ("</answer>", "\n\n")),
        (["--system", "in verse"], "[system]in verse\n[user]hi\n[assistant]", ("</answer>", "\n\n")),
        (["--system", ""], "[user]hi\n[assistant]", ("</answer>", "\n\n")),
        (["--stop", "x", "y"], "[system]be brief\n[user]hi\n[assistant]", ("x", "y")),
        (["--stop"], "[system]be brief\n[user]hi\n[assistant]", ()),
    ):
        generate.main([str(run), "hi", *arguments])
        shown, stop_texts = streamed.pop()
        assert (shown, stop_texts.stop) == (prompt, stop), arguments
        assert capsys.readouterr() == (".\n", "")


def test_the_prompt_of_a_run_reaches_the_model(settled_run, programs, weights, capsys) -> None:
    run, chat = settled_run(), byte_tokenizer(TEMPLATE)
    ids = prompt_ids(chat, "hi", "be brief")
    assert ids != prompt_ids(chat, "hi")
    expected = one_shot(programs, weights, chat, ids, SAMPLINGS["plain"], 1, 11)[0]
    generate.main([str(run), "hi", "--max-new-tokens", "21", "--temperature", "1.0", "--seed", "11"])
    assert capsys.readouterr().out == visible(expected) + "\n"


@pytest.mark.parametrize(("template", "arguments"), [(TEMPLATE, ["--no-chat"]), (None, [])])
def test_plain_text_leaves_the_system_prompt_out_and_says_so(settled_run, streamed, capsys, template, arguments) -> None:
    run = settled_run(template, system_prompt="be\x1b[2J brief")
    generate.main([str(run), "hi", *arguments])
    assert streamed.pop()[0] == "hi"
    out, error = capsys.readouterr()
    assert error == "note: the run's system prompt is left out, since the prompt is plain text: 'be\\x1b[2J brief'\n"
    generate.main([str(run), "hi", "--system", "", *arguments])
    assert streamed.pop()[0] == "hi" and capsys.readouterr().err == ""
    with pytest.raises(UserError, match="--system 'mine' has no place"):
        generate.main([str(run), "hi", "--system", "mine", *arguments])


@pytest.mark.parametrize("mode", ["free", "constrained", "forced"])
def test_language_tags_that_are_not_applied_are_told(settled_run, streamed, capsys, mode) -> None:
    language = {"mode": mode, "languages": ["en", "de"]}
    run = settled_run(stages=[STAGES[0], {**STAGES[1], "language": language}])
    generate.main([str(run), "hi"])
    expected = f"note: in training, completions start with a language tag ({mode}: en, de); here they start freely\n"
    assert capsys.readouterr().err == ("" if mode == "free" else expected)


@pytest.mark.parametrize(
    ("step", "stop"), [(1, ()), (2, ()), (3, ("</answer>", "\n\n")), (6, ("</answer>", "\n\n")), (8, ("later",))]
)
def test_the_stop_texts_are_those_of_the_checkpoints_stage(settled_run, streamed, step, stop) -> None:
    later = {**STAGES[1], "name": "later", "sampling": {"stop": ["later"]}}
    left_out = {**STAGES[1], "name": "none", "num_steps": 0, "sampling": {"stop": ["none"]}}
    run = settled_run(steps=(step, 9) if step < 8 else (3, step), stages=[*STAGES, left_out, later])
    generate.main([str(run), "hi", "--step", str(step)])
    assert streamed.pop()[1].stop == stop
    if step == 8:  # the latest
        generate.main([str(run), "hi"])
        assert streamed.pop()[1].stop == stop


def test_a_run_without_settings_has_none(settled_run, streamed, run: Path, capsys) -> None:
    made = settled_run(system_prompt=None, stages=[])
    generate.main([str(made), "hi"])
    assert streamed.pop() == ("[user]hi\n[assistant]", SamplingConfig(max_completion_tokens=256, temperature=0.7))
    (made / "config.json").unlink()  # imported weights
    generate.main([str(made), "hi"])
    assert streamed.pop()[0] == "[user]hi\n[assistant]" and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        "null",
        "\x00",
        "[" * 100_000,
        json.dumps(SETTINGS | {"system_prompt": 5}),
        json.dumps(SETTINGS | {"system_prompt": ["x"]}),
        json.dumps(SETTINGS | {"stages": 5}),
        json.dumps(SETTINGS | {"stages": [5]}),
        json.dumps(SETTINGS | {"stages": [{"type": "GRPOStage"}]}),
        json.dumps(SETTINGS | {"stages": [{**STAGES[1], "num_steps": "9"}]}),
        json.dumps(SETTINGS | {"stages": [{**STAGES[1], "sampling": {"stop": [5]}}]}),
        json.dumps(SETTINGS | {"stages": [{**STAGES[1], "sampling": []}]}),
        json.dumps(SETTINGS | {"stages": [{**STAGES[1], "language": {}}]}),
    ],
)
def test_a_damaged_config_is_one_line(settled_run, streamed, text) -> None:
    run = settled_run()
    (run / "config.json").write_text(text)
    with pytest.raises(UserError, match="config.json cannot be read .* restore it, or delete it") as caught:
        generate.main([str(run), "hi"])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
