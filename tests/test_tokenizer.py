"""Round trips, stop automata and folders of tokenizers: the small one of ours, byte-level BPE and sentencepiece-style BPE."""

from __future__ import annotations

import json
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_ml.tokenizer import Tokenizer
from jaxrl_ml.types import UserError

TEXTS = [
    "0",
    "1",
    "2",
    "12",
    "+",
    "-",
    "(",
    ")",
    "[",
    "\\",
    "^",
    "\n",
    " ",
    "<",
    ">",
    "e",
    "o",
    "s",
    "p",
    "<answer>",
    "</answer>",
]
CORPUS = [
    "the cat sat on the mat",
    " leading space",
    "Ein Bär läuft über die Brücke",
    "数学は楽しい 🙂🙃",
    "</answer> <answer> a\n\nb",
] * 3
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@lru_cache
def small() -> Tokenizer:
    return Tokenizer.from_vocabulary(TEXTS)


def train_bpe(kind: str):
    """A BPE backend trained on a few sentences, as GPT-2 spells tokens (bytes) or as sentencepiece does."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    specials = ["<|bos|>", "<|end|>", "<|user|>", "<|assistant|>"]
    if kind == "bytes":
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=specials, initial_alphabet=alphabet, show_progress=False)
    else:
        specials += ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
        backend = Backend(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
        trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=specials, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    if kind != "bytes":  # in a real sentencepiece vocabulary the byte tokens are ordinary ones
        state = json.loads(backend.to_str())
        state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
        backend = Backend.from_str(json.dumps(state))
    return backend


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Hugging Face folders by kind, with BOS, a chat template and a second stop id in generation_config.json."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    made = {}
    for kind in ("bytes", "pieces"):
        backend = train_bpe(kind)
        backend.post_processor = TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 0)])
        hf = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|bos|>", eos_token="<|end|>")
        hf.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
        hf.chat_template = TEMPLATE
        made[kind] = tmp_path_factory.mktemp(kind)
        hf.save_pretrained(made[kind])
        (made[kind] / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    return made


@given(st.lists(st.sampled_from([*TEXTS, "<eos>"]), max_size=40).map("".join))
@settings(deadline=None, derandomize=True, max_examples=60)
def test_small_vocabulary_round_trips_exactly(text):
    ids = small().encode([text])[0]
    assert small().decode([ids]) == [text]
    assert not {small().eos_id, small().pad_id} & set(ids)


def test_small_vocabulary_takes_the_longest_token_and_shards():
    tokenizer = small()
    assert tokenizer.vocab_size == 24
    assert tokenizer.vocab_size % 8 == 0
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.stop_ids) == (0, 1, (1,))
    first = 2
    assert tokenizer.encode(["112<answer>", ""]) == [[first + 1, first + 3, first + 19], []]
    assert tokenizer.encode([]) == tokenizer.encode_prompts([]) == tokenizer.decode([]) == []
    assert tokenizer.encode_prompts(["12"]) == [[first + 3]]
    assert tokenizer.decode([[first + 3, 0, 1, 23, 10_000], []]) == ["12<unused0>", ""]
    assert not tokenizer.has_chat_template


@pytest.mark.parametrize(("text", "named"), [("1+x", "'x' at position 2"), ("7", "'7' at position 0"), ("12\t", "'\\t'")])
def test_a_character_outside_the_vocabulary_is_named(text, named):
    for encode in (small().encode, small().encode_prompts):
        with pytest.raises(UserError) as caught:
            encode(["12", text])
        assert named in str(caught.value)
        assert "\n" not in str(caught.value)


def test_half_of_a_character_is_named():
    for encode in (small().encode, small().encode_prompts):
        with pytest.raises(UserError, match=r"'\\ud83d' at position 1 of '1\\ud83d2' is half of a character"):
            encode(["12", "1\ud83d2"])


@pytest.mark.parametrize("tokens", [["a", ""], ["a", "a"], ["<eos>"], ["<pad>"], ["<unused7>"]])
def test_reserved_and_repeated_tokens_are_refused(tokens):
    with pytest.raises(UserError, match="empty, repeated or reserved"):
        Tokenizer.from_vocabulary(tokens)


def test_messages_need_a_template():
    with pytest.raises(UserError, match="no chat template"):
        small().encode_prompts([[{"role": "user", "content": "1"}]])


def test_saved_small_tokenizer_is_the_same_for_us_and_for_transformers(tmp_path):
    from transformers import AutoTokenizer

    small().save(tmp_path)
    ours, theirs = Tokenizer.from_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    texts = ["12+(1)\n<answer> 1</answer>", "<eos>"]
    assert ours.encode(texts) == theirs(texts)["input_ids"] == small().encode(texts)
    assert ours.decode(ours.encode(texts)) == theirs.batch_decode(theirs(texts)["input_ids"]) == texts
    assert (ours.vocab_size, ours.pad_id, ours.eos_id, ours.stop_ids) == (24, 0, 1, (1,))
    with pytest.raises(UserError, match="'x'"):
        ours.encode(["x"])
    # transformers reads every qwen2 folder with its own pre-tokenizer; we read what the file says
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    assert Tokenizer.from_folder(tmp_path).encode(texts) == small().encode(texts)


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_folder_tokenizer_special_tokens_template_and_stop_ids(folders, kind, tmp_path):
    tokenizer = Tokenizer.from_folder(folders[kind])
    assert (tokenizer.eos_id, tokenizer.stop_ids, tokenizer.pad_id) == (1, (1, 2), 1)
    assert tokenizer.has_chat_template
    plain, chat = tokenizer.encode_prompts(["the cat", [{"role": "user", "content": "the cat"}]])
    bare = tokenizer.encode(["the cat"])[0]
    assert plain == [0, *bare]
    assert (chat[0], chat[-2:]) == (2, [1, 3])
    assert 0 not in chat
    assert tokenizer.decode([plain]) == ["the cat"]
    with pytest.raises(UserError, match="no tools here"):
        tokenizer.encode_prompts([[{"role": "tool", "content": ""}]])
    tokenizer.save(tmp_path / "again")
    again = Tokenizer.from_folder(tmp_path / "again")
    assert again.stop_ids == (1, 2)
    assert again.encode_prompts([[{"role": "user", "content": "the cat"}]]) == [chat]


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_decode_is_safe_on_any_ids(folders, kind):
    tokenizer = Tokenizer.from_folder(folders[kind])
    ids = np.random.default_rng(0).integers(0, tokenizer.vocab_size + 50, (40, 30), dtype=np.int32)
    texts = tokenizer.decode(ids)
    assert len(texts) == 40
    assert any("\ufffd" in text for text in texts)
    assert all(text.encode() for text in texts)


def wrapped(kind: str, post_processor=None, **settings):
    """A transformers tokenizer of a kind, with BOS 0 and EOS 1, <|user|> 2 and <|assistant|> 3 being further special tokens."""
    from transformers import PreTrainedTokenizerFast

    backend = train_bpe(kind)
    backend.post_processor = post_processor
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|bos|>", eos_token="<|end|>", **settings)


def post_processors() -> dict:
    from tokenizers import processors

    def template(single: str):
        tokens = [("<|bos|>", 0), ("<|end|>", 1), ("<|user|>", 2)]
        return processors.TemplateProcessing(single=single, special_tokens=tokens)

    return {  # what it puts before and after a text
        "nothing": (None, [], []),
        "bos": (template("<|bos|> $A"), [0], []),
        "eos": (template("$A <|end|>"), [], [1]),
        "both": (template("<|bos|> <|user|> $A <|end|> <|end|>"), [0, 2], [1, 1]),
        "the same": (template("<|bos|> $A <|bos|>"), [0], [0]),
        "bert": (processors.BertProcessing(("<|end|>", 1), ("<|bos|>", 0)), [0], [1]),
        "roberta": (processors.RobertaProcessing(("<|end|>", 1), ("<|bos|>", 0)), [0], [1]),
        "sequence": (processors.Sequence([processors.ByteLevel(), template("<|bos|> $A <|end|>")]), [0], [1]),
    }


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
@pytest.mark.parametrize("name", post_processors())
def test_a_text_keeps_what_the_tokenizer_puts_first_and_not_what_ends_it(kind, name):
    processor, first, last = post_processors()[name]
    hf = wrapped(kind, processor)
    tokenizer = Tokenizer(hf, [1])
    texts = ["the cat", " x\n", "<|bos|>", "<|bos|> a <|end|>", "", "!", "数🙂"]
    prompts = tokenizer.encode_prompts(texts)
    assert [ids + last for ids in prompts] == hf(texts)["input_ids"]
    assert prompts == [first + ids for ids in tokenizer.encode(texts)]


@pytest.mark.parametrize(("bos", "eos"), [(True, True), (True, False), (False, True)])
def test_settings_that_add_eos_do_not_end_a_prompt(bos, eos):
    hf = wrapped("bytes", add_bos_token=bos, add_eos_token=eos)
    (whole,) = hf(["the cat"])["input_ids"]
    assert (whole[0] == 0, whole[-1] == 1) == (bos, eos)
    assert Tokenizer(hf, [1]).encode_prompts(["the cat"]) == [whole[:-1] if eos else whole]


@pytest.mark.parametrize("single", ["<|bos|>", "$A <|bos|> $A"])
def test_a_post_processor_that_changes_a_text_is_refused(single):
    from tokenizers import processors

    tokenizer = Tokenizer(wrapped("bytes", processors.TemplateProcessing(single=single, special_tokens=[("<|bos|>", 0)])), [1])
    with pytest.raises(UserError, match="post-processor changes the tokens"):
        tokenizer.encode_prompts(["the cat"])


def word_pieces() -> Tokenizer:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "<think>", "the", "cat", "##s", "sat", "."]
    backend = Backend(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    special = {"pad_token": "[PAD]", "bos_token": "[CLS]", "eos_token": "[SEP]", "unk_token": "[UNK]"}
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, **special, additional_special_tokens=["<think>"])
    return Tokenizer(hf, [2])


def metaspace() -> Tokenizer:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<s>", "</s>", "<pad>", "<think>", "<|▁x|>", *"▁abc,", "▁ab", "▁cat", "é"]
    backend = Backend(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<pad>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, **special, additional_special_tokens=["<think>", "<|▁x|>"])
    return Tokenizer(hf, [1])


@pytest.mark.parametrize("kind", ["bytes", "pieces", "words", "metaspace"])
def test_decoding_drops_bos_eos_pad_and_stop_ids_only(folders, kind):
    makers = {"words": word_pieces, "metaspace": metaspace}
    tokenizer = makers[kind]() if kind in makers else Tokenizer.from_folder(folders[kind])
    dropped = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, *tokenizer.stop_ids}
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, tokenizer.vocab_size, n).tolist() for n in rng.integers(0, 12, 200)]
    rows += [[i] for i in range(8)] + [[]]
    kept = [[i for i in row if i not in dropped] for row in rows]
    settings = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    expected = [tokenizer._hf.decode(row, **settings) for row in kept]
    assert tokenizer.decode(rows) == tokenizer.decode([np.array(row, np.int32) for row in rows]) == expected
    special = {i for i, token in tokenizer._hf.added_tokens_decoder.items() if token.special}
    shown = special - dropped
    assert shown
    for i in shown:
        name = tokenizer._hf.convert_ids_to_tokens(i).replace("▁", "")
        assert name in tokenizer.decode([[i]])[0].replace(" ", "")


def test_text_around_special_tokens_is_as_the_decoder_spells_it():
    assert word_pieces().decode([[1, 5, 4, 6, 7, 9, 3, 2, 0]]) == ["the <think> cats. [UNK]"]
    assert metaspace().decode([[0, 3, 11, 4, 11, 1], [11, 3, 6, 2]]) == ["<think> cat<| x|> cat", "cat<think>a"]
    pieces = Tokenizer(wrapped("pieces"), [1])
    assert pieces.decode(pieces.encode(["<|user|>the cat<|assistant|>sat<|end|>"])) == ["<|user|> the cat<|assistant|> sat"]


def test_special_tokens_are_text_for_rewards_tags_and_streams(folders):
    from jaxrl_ml.generate import TextStream
    from jaxrl_ml.languages.settings import thinking_ends
    from jaxrl_ml.rewards.countdown import countdown_reward
    from jaxrl_ml.types import Example

    hf = wrapped("bytes", additional_special_tokens=["<think>", "</think>", "<answer>", "</answer>"])
    tokenizer = Tokenizer(hf, [1])
    ids = tokenizer.encode(["<think>\n3 and 4</think>\n<answer>3+4</answer>"])[0]
    assert len(set(ids) & set(hf.convert_tokens_to_ids(["<think>", "</think>", "<answer>", "</answer>"]))) == 4
    text = tokenizer.decode([[0, *ids, 1, 1]])[0]
    assert text == "<think>\n3 and 4</think>\n<answer>3+4</answer>"
    example = Example("0", "countdown", {"numbers": (3, 4), "target": 7})
    assert countdown_reward([text], [example]).correct.all()
    ends = thinking_ends([text], [ids], tokenizer.decode)
    assert tokenizer.decode([ids[: ends[0]]])[0].endswith("</think>")
    stream = TextStream(tokenizer)
    assert "".join([*(stream.push([i]) for i in [*ids, 1]), stream.push([], last=True)]) == text
    rng = np.random.default_rng(0)
    names = hf.convert_tokens_to_ids(["<think>", "</think>", "<answer>", "</answer>"])
    stops = 0
    for _ in range(60):
        row = [*rng.permutation(ids[:8]).tolist(), *rng.choice(names, 2).tolist(), *ids[:4]]
        stops += assert_stops_exactly(tokenizer, ["</answer>", "think>\n", "3<an"], row) >= 0
    assert stops > 20


def assert_stops_exactly(tokenizer: Tokenizer, stop: list[str], ids: list[int]) -> int:
    """Walks the table along ids and compares with a search in every decoded prefix; returns where it stopped, or -1."""
    table = tokenizer.stop_table(stop)
    expected = -1
    for i, text in enumerate(tokenizer.decode([ids[: i + 1] for i in range(len(ids))])):
        if ids[i] in tokenizer.stop_ids or any(s in text for s in stop):
            expected = i
            break
    state, got = 0, -1
    for i, token in enumerate(ids):
        state = table[state, token]
        if got < 0 and state == len(table) - 1:
            got = i
    assert got == expected, (stop, ids, tokenizer.decode([ids]))
    assert (table[-1] == len(table) - 1).all()
    return got


@pytest.mark.parametrize("kind", ["small", "bytes", "pieces"])
def test_stop_table_stops_at_the_first_token_that_completes_a_stop_string(folders, kind):
    tokenizer = small() if kind == "small" else Tokenizer.from_folder(folders[kind])
    rng = np.random.default_rng(0)
    sources = ["1122</answer>1212", "<<answer>(12)\n\n"] if kind == "small" else [*CORPUS[:5], "läuf", "🙂🙃🙂"]
    stops = 0
    for trial in range(250):
        text = "".join(rng.choice(sources, 3))
        stop = []
        for _ in range(rng.integers(1, 4)):
            start = int(rng.integers(0, len(text) - 1))
            piece = text[start : start + int(rng.integers(1, 6))]
            stop.append(piece.lstrip(" ") or "a" if kind == "pieces" else piece)
        ids = tokenizer.encode([text])[0]
        if trial % 2:  # ids in any order: broken characters, special tokens, byte tokens
            low = 260 if kind == "pieces" else 2  # invalid byte runs of sentencepiece: see stop_table
            ids = rng.permutation([*ids, *rng.integers(low, tokenizer.vocab_size, 6)]).tolist()
        stops += assert_stops_exactly(tokenizer, stop, ids) >= 0
    assert stops > 100


@given(
    st.lists(st.text(alphabet="12<>", min_size=1, max_size=4), min_size=1, max_size=4),
    st.lists(st.integers(0, 23), max_size=25),
)
@settings(deadline=None, derandomize=True, max_examples=150)
def test_overlapping_stop_strings(stop, ids):
    assert_stops_exactly(small(), stop, ids)


def test_stop_ids_special_names_and_wider_models(folders):
    tokenizer = Tokenizer.from_folder(folders["bytes"])
    plain = tokenizer.stop_table()
    assert plain.dtype == np.int16
    assert plain.shape == (2, tokenizer.vocab_size)
    assert np.flatnonzero(plain[0]).tolist() == [1, 2]
    assert tokenizer.stop_table(["bos"])[0, 0] == 0  # decoding leaves <|bos|> out, and keeps <|assistant|>
    assert tokenizer.stop_table(["assist"])[0, 3] == len(tokenizer.stop_table(["assist"])) - 1
    named = tokenizer.stop_table(["<|assistant|>"], vocab_size=512)
    assert named.shape[1] == 512
    assert named[0, 3] == len(named) - 1
    assert (named[:, tokenizer.vocab_size :] == np.arange(len(named))[:, None]).all()


def test_a_stop_string_over_a_token_without_text_is_refused():
    tokenizer = Tokenizer(wrapped("bytes", pad_token="<|user|>"), [1])
    for stop in ("<|bos|>a", "x<|user|>"):
        with pytest.raises(UserError, match="which is no text; choose another"):
            tokenizer.stop_table([stop])
    for stop, token in (("<|bos|>", 0), ("<|user|>", 2), ("<|end|>\n", 1)):  # the first two by name, the last by its stop id
        table = tokenizer.stop_table([stop])
        assert table[0, token] == len(table) - 1


def test_stop_strings_that_cannot_be_found_are_refused(folders):
    pieces = Tokenizer.from_folder(folders["pieces"])
    for stop in ([" the"], ["\ufffd"], [""], ["x" * 300]):
        with pytest.raises(UserError, match="stop string"):
            pieces.stop_table(stop)
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models
    from transformers import PreTrainedTokenizerFast

    backend = Backend(models.WordLevel({"a": 0, "<eos>": 1}, unk_token=""))
    backend.decoder = decoders.WordPiece()
    words = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>"), [1])
    with pytest.raises(UserError, match="allows only stop ids"):
        words.stop_table(["a"])
    assert words.stop_table().tolist() == [[0, 1], [1, 1]]


def test_a_large_stop_table_takes_seconds_at_most():
    import time

    from jaxrl_ml.tokenizer import _automaton, _walk

    rng = np.random.default_rng(0)
    texts = [bytes(rng.integers(32, 127, n, dtype=np.uint8)) for n in rng.integers(1, 14, 151_936)]
    moves = _automaton([b"</answer>", b"\n\nHuman:"])
    table = np.zeros((len(moves) + 1, len(texts)), np.int16)
    start = time.process_time()
    _walk(moves, texts, table)
    assert time.process_time() - start < 5
    hit = [i for i, text in enumerate(texts) if text.startswith(b">")]
    last = len(b"</answer>") - 1
    assert hit
    assert (table[last, hit] == len(moves)).all()


@pytest.mark.parametrize(
    ("generation", "config", "stop_ids"),
    [
        ({"eos_token_id": 3}, {"eos_token_id": 4}, (1, 3)),
        ({"eos_token_id": [3, 5, 1]}, {"eos_token_id": [4, 6]}, (1, 3, 5)),
        ({"eos_token_id": None}, {"eos_token_id": 4}, (1, 4)),
        ({"pad_token_id": 0}, {"eos_token_id": [4, 4]}, (1, 4)),
        (None, {"eos_token_id": [4, 6]}, (1, 4, 6)),
        ({"eos_token_id": 3}, {"eos_token_id": True}, (1, 3)),  # not read
        (None, {}, (1,)),
        (None, {"eos_token_id": 30, "vocab_size": 32}, (1, 30)),  # an id that the model has in reserve
        ({"eos_token_id": 31}, {"vocab_size": 32}, (1, 31)),
    ],
)
def test_the_configs_stop_ids_count_where_generation_has_none(generation, config, stop_ids, tmp_path):
    small().save(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    for name, values in (("generation_config.json", generation), ("config.json", config)):
        if values is not None:
            (tmp_path / name).write_text(json.dumps(values))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.stop_ids == stop_ids
    tokenizer.save(tmp_path / "saved")  # alone, its vocabulary is all that is known, unless the model's is told
    assert Tokenizer.from_folder(tmp_path / "saved", vocab_size=32).stop_ids == stop_ids
    if max(stop_ids) >= 24:
        with pytest.raises(UserError, match="from 0 to 23"):
            Tokenizer.from_folder(tmp_path / "saved")
    if generation is None or generation.get("eos_token_id") is not None:  # transformers has none of a file without
        from transformers import GenerationConfig

        name = "config.json" if generation is None else None
        theirs = GenerationConfig.from_pretrained(tmp_path, config_file_name=name).eos_token_id
        theirs = theirs if isinstance(theirs, list) else [] if theirs is None else [theirs]
        assert set(stop_ids) == {1, *theirs}


@pytest.mark.parametrize("template", [5, {"default": 1}, [{"name": "default", "template": ["x"]}], [{"name": "x"}], [1]])
def test_a_chat_template_that_is_no_text_is_refused(template, tmp_path):
    wrapped("bytes").save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
    with pytest.raises(UserError, match="chat_template=.* must be a text|cannot read the tokenizer") as caught:
        Tokenizer.from_folder(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_a_tokenizer_file_says_of_batches_changes_no_tokens(tmp_path):
    wrapped("bytes").save_pretrained(tmp_path)
    file, text = tmp_path / "tokenizer.json", "the cat sat on the mat"
    expected, state = Tokenizer.from_folder(tmp_path).encode([text, "a"]), json.loads(file.read_text())
    state["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    state["padding"] = {
        "strategy": {"Fixed": 30},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 1,
        "pad_type_id": 0,
        "pad_token": "<|end|>",
    }
    file.write_text(json.dumps(state))
    assert Tokenizer.from_folder(tmp_path).encode([text, "a"]) == expected
    state["model"]["dropout"] = 0.5
    file.write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"tokenizer.json has dropout=0.5, so tokens would be drawn at random"):
        Tokenizer.from_folder(tmp_path)
    state["model"]["dropout"] = 0.0
    file.write_text(json.dumps(state))
    assert Tokenizer.from_folder(tmp_path).encode([text, "a"]) == expected


def test_folders_without_a_usable_tokenizer_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds no tokenizer"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(UserError, match="cannot read the tokenizer") as caught:
        Tokenizer.from_folder(tmp_path)
    assert "\n" not in str(caught.value)
    small().save(tmp_path)
    settings_file = tmp_path / "tokenizer_config.json"
    without = {key: value for key, value in json.loads(settings_file.read_text()).items() if key != "eos_token"}
    settings_file.write_text(json.dumps(without))
    for text, message in (
        ('{"eos_token_id": "</s>"}', "eos_token_id='</s>' must be an id"),
        ('{"eos_token_id": [1, -1]}', "must be an id"),
        ('{"eos_token_id": true}', "eos_token_id=True must be an id"),
        ('{"eos_token_id": [1, false]}', "must be an id or a list of ids, from 0 to 23"),
        ('{"eos_token_id": 24}', "eos_token_id=24 must be an id or a list of ids, from 0 to 23"),
        ('{"eos_token_id": 1.0}', "must be an id"),
        ('{"eos_token_id": {"1": 1}}', "must be an id"),
        ("[" * 200_000, "generation_config.json is not a valid JSON object"),
        ("[1]", "generation_config.json is not a valid JSON object"),
    ):
        (tmp_path / "generation_config.json").write_text(text)
        with pytest.raises(UserError, match=message):
            Tokenizer.from_folder(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    with pytest.raises(UserError, match="no end-of-sequence token"):
        Tokenizer.from_folder(tmp_path)


def test_a_tokenizer_without_its_vocabulary_is_refused(tmp_path):
    """The settings alone, as of an interrupted download, make transformers build a tokenizer that knows no token."""
    Tokenizer.from_vocabulary(["a", "b"]).save(tmp_path)
    path = tmp_path / "tokenizer.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole | {"model": whole["model"] | {"vocab": {}}}))
    with pytest.raises(UserError, match="has an empty vocabulary: fetch tokenizer.json again"):
        Tokenizer.from_folder(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="holds no tokenizer"):
        Tokenizer.from_folder(tmp_path)


def test_an_eos_that_the_model_has_not_is_refused(tmp_path):
    Tokenizer.from_vocabulary(["a", "b"]).save(tmp_path)
    assert Tokenizer.from_folder(tmp_path, vocab_size=2).stop_ids == (1,)
    with pytest.raises(UserError, match="correct eos_token in tokenizer_config.json, '<eos>': its id"):
        Tokenizer.from_folder(tmp_path, vocab_size=1)
