"""Text to token ids and back: a Hugging Face tokenizer, or a small one of our own, behind one narrow interface.

In: texts, chat messages. Out: lists of ids, texts, and the automaton by which the sampler stops. `transformers` is imported
when a tokenizer is made, never with this module.
"""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Sequence
from datetime import date
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl_ml.models import chat_template
from jaxrl_ml.types import HALF_CHARACTER, Message, UserError, one_line, require

PAD, EOS = "<pad>", "<eos>"
_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_BACKEND_NAMES = ("TokenizersBackend", "PreTrainedTokenizerFast")  # transformers 5's and 4's name of "just tokenizer.json"
_MAX_STOP_BYTES = 256  # bounds the stop table: one row of V entries a byte

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would tell every user that torch is missing


class Tokenizer:
    """What the library asks of a tokenizer.

    vocab_size is the largest id + 1 (a model's may be larger); eos_id is what demonstrations end with; stop_ids are the ids
    that end a completion, eos_id among them; pad_id may equal eos_id: masks never come from ids. dropped_texts are those of the
    special tokens that decoding leaves out. day is what chat templates that ask for the date are given.
    """

    def __init__(self, hf: Any, stop_ids: Sequence[int], day: date | None = None):
        """Wraps a fast `transformers` tokenizer; the first stop id stands in for a missing EOS or pad token; day: today."""
        self._hf = hf
        self._backend = hf.backend_tokenizer
        self.vocab_size: int = max(hf.get_vocab().values()) + 1
        self.eos_id: int = stop_ids[0] if hf.eos_token_id is None else hf.eos_token_id
        self.pad_id: int = self.eos_id if hf.pad_token_id is None else hf.pad_token_id
        self.bos_id: int | None = hf.bos_token_id
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys((self.eos_id, *stop_ids)))
        self.has_chat_template: bool = hf.chat_template is not None
        self.day = date.today() if day is None else day
        self._special: dict[int, str] = {i: token.content for i, token in hf.added_tokens_decoder.items() if token.special}
        self._dropped = sorted({self.eos_id, self.pad_id, self.bos_id, *self.stop_ids} & self._special.keys())
        self.dropped_texts: tuple[str, ...] = tuple(self._special[i] for i in self._dropped)

    @classmethod
    def from_folder(cls, path: str | Path, vocab_size: int | None = None) -> Tokenizer:
        """Reads the tokenizer of a Hugging Face folder; no network, no code from the folder.

        Stop ids are the tokenizer's EOS and those of generation_config.json, or where it has none those of config.json.
        vocab_size: the model's, which the ids must be below; None: that of config.json, or else the tokenizer's.
        Raises UserError where the folder has no tokenizer, an unreadable one, one without an end-of-sequence token, or stop
        ids that are none.
        """
        path = Path(path)
        if not any((path / name).is_file() for name in _FILES):
            raise UserError(f"{path} holds no tokenizer: give a folder with tokenizer.json and tokenizer_config.json")
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        settings = _read_json(path / "tokenizer_config.json")
        # transformers reads every folder of some model types (qwen2) with that family's own pre-tokenizer, whatever
        # tokenizer.json says; where the folder declares that the file is all there is, the file is what is read.
        whole = settings.get("tokenizer_class") in _BACKEND_NAMES and (path / "tokenizer.json").is_file()
        loader = PreTrainedTokenizerFast if whole else AutoTokenizer
        try:
            hf = loader.from_pretrained(str(path), local_files_only=True)
        except Exception as error:  # the Rust side raises plain Exception for a malformed file
            raise UserError(f"cannot read the tokenizer in {path}: {one_line(error)}") from error
        require(hf.is_fast, f"{path}: {type(hf).__name__} is a slow tokenizer; convert it to a folder with tokenizer.json")
        size = hf.backend_tokenizer.get_vocab_size(with_added_tokens=False)
        require(size > 0, f"the tokenizer in {path} has an empty vocabulary: fetch tokenizer.json again")
        if dropout := getattr(hf.backend_tokenizer.model, "dropout", None):
            raise UserError(f"{path}: tokenizer.json has dropout={dropout}, so tokens would be drawn at random; set it to null")
        templates = hf.chat_template.values() if isinstance(hf.chat_template, dict) else [hf.chat_template or ""]
        are_texts = all(isinstance(template, str) for template in templates)
        require(are_texts, f"{path}: chat_template={hf.chat_template!r:.60} must be a text, or named texts; correct the file")
        stop_ids = [] if hf.eos_token_id is None else [hf.eos_token_id]
        sizes = (vocab_size, _read_json(path / "config.json").get("vocab_size"), max(hf.get_vocab().values()) + 1)
        size = next(size for size in sizes if type(size) is int)  # True is none
        remedy = f"{path}: correct eos_token in tokenizer_config.json, {hf.eos_token!r:.40}"
        require(max(stop_ids, default=0) < size, f"{remedy}: its id {stop_ids} is none of the model's, 0 to {size - 1}")
        stop_ids += _read_stop_ids(path, size)
        require(bool(stop_ids), f"{path}: the tokenizer has no end-of-sequence token: set eos_token in tokenizer_config.json")
        return cls(hf, stop_ids)

    @classmethod
    def from_vocabulary(cls, tokens: Sequence[str]) -> Tokenizer:
        """A tokenizer whose tokens are exactly these texts: at each place of a text the longest that fits.

        `<pad>` and `<eos>` are added, and `<unusedN>` up to a multiple of 8, so that the vocabulary can be sharded.
        Raises UserError for an empty, repeated or reserved token.
        """
        tokens = list(tokens)
        for i, token in enumerate(tokens):
            if not token or token in tokens[:i] or token in (PAD, EOS) or re.fullmatch(r"<unused\d+>", token):
                raise UserError(f"vocabulary token {token!r} is empty, repeated or reserved; remove it")
        from tokenizers import Regex, decoders, models, pre_tokenizers
        from tokenizers import Tokenizer as Backend
        from transformers import PreTrainedTokenizerFast

        texts = [PAD, EOS, *tokens]
        texts += [f"<unused{i}>" for i in range(-len(texts) % 8)]
        # unk_token is a text that no vocabulary holds: an unknown piece is an error, never a silent <unk>.
        backend = Backend(models.WordLevel({text: i for i, text in enumerate(texts)}, unk_token=""))
        pattern = "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
        backend.decoder = decoders.Fuse()
        hf = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            pad_token=PAD,
            eos_token=EOS,
            split_special_tokens=True,  # "<eos>" in a text is its characters, so that every text round-trips
            clean_up_tokenization_spaces=False,
        )
        return cls(hf, [hf.eos_token_id])

    def with_tokens(self, texts: Sequence[str]) -> Tokenizer:
        """This tokenizer with each of `texts` as one more token: ids vocab_size, vocab_size + 1, … in their order.

        They are ordinary tokens, which decoding keeps. A text without any of them is encoded as before; the first added text
        that begins at a place of a text, the longest where there are several, is taken there before anything else is split.
        A tokenizer that puts a space before every text (old sentencepiece) puts it after such a token too, as after its own.
        Raises UserError for an empty or repeated text, one that is a token already, one that this tokenizer cannot give back,
        and for a small vocabulary, in which every token is one of its texts anyway.
        """
        from tokenizers import AddedToken, models

        texts, model = list(texts), self._backend.model
        if isinstance(model, models.WordLevel) and model.unk_token == "":
            raise UserError(f"add_tokens={texts}: a small vocabulary takes none; name them among its texts, in `tokenizer`")
        vocabulary = self._hf.get_vocab()
        for i, text in enumerate(texts):
            if not text or text in texts[:i]:
                raise UserError(f"add_tokens: {text!r} is empty or repeated; remove it")
            ids = self.encode([text])
            if text in vocabulary or (len(ids[0]) == 1 and self.decode(ids) == [text]):
                raise UserError(f"add_tokens: {text!r} is a token of the tokenizer already; remove it")
        hf = copy.deepcopy(self._hf)
        hf.add_tokens([AddedToken(text, normalized=False, special=False) for text in texts])
        extended = Tokenizer(hf, self.stop_ids, self.day)
        for i, text in enumerate(texts, start=self.vocab_size):
            # Decoders of bytes read é as a byte, those of sentencepiece drop a first space; ids may have gaps.
            if extended.encode([text]) != [[i]] or extended.decode([[i]]) != [text]:
                raise UserError(f"add_tokens: {text!r} does not come back from this tokenizer as one new token; choose another")
        return extended

    def on_day(self, day: str | None) -> Tokenizer:
        """This tokenizer with another day for chat templates, such as 2026-11-30; None: with the same."""
        other = copy.copy(self)
        try:
            other.day = self.day if day is None else date.fromisoformat(day)
        except (ValueError, TypeError) as error:
            raise UserError(f"chat_date={day!r} is not a day; write it as 2026-11-30") from error
        return other

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts without special tokens: completions and demonstrations. Raises UserError as `encode_prompts`."""
        return self._encode(list(texts))

    def encode_prompts(self, prompts: Sequence[str | list[Message]]) -> list[list[int]]:
        """Ids of prompts: texts after the special tokens that the tokenizer puts first (BOS), messages by its chat template.

        Special tokens that the tokenizer puts after a text (EOS) are left out: the completion follows.
        Raises UserError for messages without a template, messages the template fails on, and, with a small vocabulary, a
        character outside it.
        """
        texts = [prompt if isinstance(prompt, str) else self._render(prompt) for prompt in prompts]
        rows = self._encode(texts)
        return [
            [*self._prompt_start, *ids] if isinstance(prompt, str) else ids for prompt, ids in zip(prompts, rows, strict=True)
        ]

    @cached_property
    def _prompt_start(self) -> list[int]:
        """The special tokens that the tokenizer puts before every text, seen on the text of a token.

        Raises UserError where the text's own tokens do not come back between those that are put around it.
        """
        if self._backend.post_processor is None:
            return []
        ordinary = (i for i in range(self.vocab_size) if i not in self._special)
        for text in (self.decode([[i]])[0] for i in ordinary):
            bare, whole = self._encode([text])[0], self._encode([text], special=True)[0]
            starts = [n for n in range(len(whole) - len(bare) + 1) if whole[n : n + len(bare)] == bare]
            if len(starts) == 1:
                return whole[: starts[0]]
            if bare and not starts:
                break
        raise UserError("the tokenizer's post-processor changes the tokens of a text; use one that only adds some around them")

    def _encode(self, texts: list[str], special: bool = False) -> list[list[int]]:
        if not texts:
            return []
        try:
            return self._hf(texts, add_special_tokens=special, return_attention_mask=False)["input_ids"]
        except Exception as error:  # the Rust side raises plain Exception
            if half := next(filter(None, map(HALF_CHARACTER.search, texts)), None):
                place = f"at position {half.start()} of {half.string[:60]!r}"
                raise UserError(
                    f"{half[0]!r} {place} is half of a character, which no tokenizer can encode; mend it"
                ) from error
            if "[UNK]" not in str(error):
                raise
            raise UserError(self._unknown(texts)) from error

    def _unknown(self, texts: Sequence[str]) -> str:
        """Names the first character that no token of a small vocabulary covers."""
        state = json.loads(self._backend.pre_tokenizer.__getstate__())
        pattern = re.compile(state["pattern"]["Regex"])
        for text in texts:
            end = 0
            for match in pattern.finditer(text):
                if match.start() > end:
                    break
                end = match.end()
            if end < len(text):
                return (
                    f"character {text[end]!r} at position {end} of {text[:60]!r} is not in the vocabulary; add a token for it"
                )
        raise ValueError("every character is in the vocabulary")

    def _render(self, messages: list[Message]) -> str:
        if not self.has_chat_template:
            raise UserError(
                "the prompt is a list of messages but the tokenizer has no chat template: "
                "use a prompt format that returns text, or the tokenizer of an instruct model"
            )
        return chat_template.render(self._template, messages, self._hf.special_tokens_map, self.day)

    @cached_property
    def _template(self) -> Any:
        # transformers has no public way to render with variables that are functions.
        from transformers.utils.chat_template_utils import _compile_jinja_template

        return chat_template.compiled(self._hf.chat_template, _compile_jinja_template)

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Texts of rows of ids, nothing cleaned up; ids that no token has give no text.

        BOS, EOS, pad and stop ids are left out where they are special tokens. All other special tokens are text.
        """
        if not len(ids):
            return []
        rows = [np.asarray(row, np.int64) for row in ids]  # in numpy, as dropping ids in Python takes half as long as decoding
        flat = np.concatenate(rows)
        keep = ~np.isin(flat, self._dropped)
        ends = np.append(0, np.cumsum(keep))[list(accumulate(map(len, rows), initial=0))]
        kept = flat[keep].tolist()
        return self._backend.decode_batch(
            [kept[start:end] for start, end in pairwise(ends.tolist())], skip_special_tokens=False
        )

    def stop_table(self, stop: Sequence[str] = (), vocab_size: int | None = None) -> np.ndarray:
        """One automaton for all stop ids and stop strings: int16 [states, V], entry [state, token] is the next state.

        State 0 is the start; the last state means stopped, and is kept. A stop string is found at the first token after which
        the decoded text contains it (Aho and Corasick 1975, over the bytes of the tokens); a special token's name stops at
        that token. V is vocab_size, the model's where it is larger than the tokenizer's; ids without text change nothing.
        Raises UserError for a stop string that this tokenizer's decoding does not allow to be found token by token.
        """
        V = self.vocab_size if vocab_size is None else vocab_size
        moves = _automaton([text.encode() for text in stop])
        stopped = len(moves)
        table = np.repeat(np.arange(stopped + 1, dtype=np.int16)[:, None], V, axis=1)
        if stop:
            texts = self._token_bytes(stop)
            for i in self._dropped:
                texts[i] = b""
            _walk(moves, texts[:V], table)
        stop_ids = [*self.stop_ids, *(i for i, content in self._special.items() if content in stop)]
        table[:, [i for i in stop_ids if i < V]] = stopped
        return table

    def _token_bytes(self, stop: Sequence[str]) -> list[bytes]:
        """The bytes that each id adds to the decoded text; special tokens' names included."""
        total = sum(len(text.encode()) for text in stop)
        if total > _MAX_STOP_BYTES or not all(stop):
            raise UserError(f"stop strings take {total} bytes, or one is empty: give 1 to {_MAX_STOP_BYTES} bytes in all")
        tokens = self._hf.convert_ids_to_tokens(list(range(self.vocab_size)))
        tokens = ["" if token is None else token for token in tokens]
        decoder = json.loads(self._backend.decoder.__getstate__()) if self._backend.decoder is not None else {"type": None}
        steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
        kinds = {step["type"] for step in steps}
        first_space_lost = "Strip" in kinds or any(step.get("prepend_scheme", "never") != "never" for step in steps)
        for text in stop:
            if "\ufffd" in text or (first_space_lost and text.startswith(" ")):
                raise UserError(f"stop string {text!r} cannot be found token by token with this tokenizer; choose another")
            for i in set(self._dropped) - set(self.stop_ids):
                if self._special[i] in text and self._special[i] != text:
                    raise UserError(
                        f"stop string {text!r} holds the token {self._special[i]}, which is no text; choose another"
                    )
        if kinds == {"ByteLevel"}:
            return _byte_level(tokens)
        spaces = {"Replace", "ByteFallback", "Fuse", "Strip"}
        replaced = [(step["pattern"].get("String"), step["content"]) for step in steps if step["type"] == "Replace"]
        if kinds == {"Fuse"}:
            return [token.encode() for token in tokens]
        if kinds == {"Metaspace"} or ("Replace" in kinds and kinds <= spaces and replaced == [("▁", " ")]):
            fallback = re.compile(r"<0x([0-9A-F]{2})>") if "ByteFallback" in kinds else re.compile(r"(?!)")
            matches = [fallback.fullmatch(token) for token in tokens]
            return [
                bytes([int(match[1], 16)]) if match else token.replace("▁", " ").encode()
                for token, match in zip(tokens, matches, strict=True)
            ]
        raise UserError(f"stop string {stop[0]!r}: a tokenizer with decoder {sorted(map(str, kinds))} allows only stop ids")

    def save(self, folder: str | Path) -> None:
        """Writes the tokenizer's files, chat template included, and its stop ids as generation_config.json."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._hf.save_pretrained(str(folder))
        settings = _read_json(folder / "tokenizer_config.json")
        if settings.get("tokenizer_class") in _BACKEND_NAMES:
            settings["tokenizer_class"] = _BACKEND_NAMES[1]  # the name that both transformers 4 and 5 know
        _write_json(folder / "tokenizer_config.json", settings)
        stop_ids = list(self.stop_ids)
        generation = {"eos_token_id": stop_ids if len(stop_ids) > 1 else stop_ids[0], "pad_token_id": self.pad_id}
        if self.bos_id is not None:
            generation["bos_token_id"] = self.bos_id
        _write_json(folder / "generation_config.json", generation)


def _read_stop_ids(path: Path, vocab_size: int) -> list[int]:
    """The stop ids of generation_config.json or, as transformers has it, where that names none those of config.json."""
    for name in ("generation_config.json", "config.json"):
        ids = _read_json(path / name).get("eos_token_id")
        if ids in (None, []):
            continue
        listed = ids if isinstance(ids, list) else [ids]
        if not all(type(i) is int and 0 <= i < vocab_size for i in listed):
            raise UserError(f"{path / name}: eos_token_id={ids!r} must be an id or a list of ids, from 0 to {vocab_size - 1}")
        return listed
    return []


def _automaton(stop: list[bytes]) -> np.ndarray:
    """Transitions int16 [nodes, 256] of the Aho-Corasick automaton; the value `nodes` means that a text was found."""
    children: list[dict[int, int]] = [{}]
    found = [False]
    for text in stop:
        node = 0
        for byte in text:
            if byte not in children[node]:
                children[node][byte] = len(children)
                children.append({})
                found.append(False)
            node = children[node][byte]
        found[node] = True
    goto = np.zeros((len(children), 256), np.int16)
    queue = [(child, 0) for child in children[0].values()]
    for byte, child in children[0].items():
        goto[0, byte] = child
    for node, fail in queue:  # breadth first: the list grows while it is read
        found[node] = found[node] or found[fail]
        goto[node] = goto[fail]
        for byte, child in children[node].items():
            queue.append((child, int(goto[fail, byte])))
            goto[node, byte] = child
    return np.where(np.array(found)[goto], len(children), goto).astype(np.int16)


def _walk(moves: np.ndarray, texts: list[bytes], table: np.ndarray) -> None:
    """Fills table [nodes + 1, V] with the state after each token's bytes, for all tokens at a time."""
    lengths = np.array([len(text) for text in texts], np.int64)
    order = np.argsort(-lengths, kind="stable")
    data = np.frombuffer(b"".join(texts), np.uint8)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])[order]
    active = [int(np.sum(lengths > i)) for i in range(int(lengths.max(initial=0)))]
    columns = [data[starts[:n] + i] for i, n in enumerate(active)]
    moves = np.concatenate([moves, np.full((1, 256), len(moves), np.int16)])
    for state in range(len(moves)):
        reached = np.full(len(texts), state, np.int16)
        for column in columns:
            reached[: len(column)] = moves[reached[: len(column)], column]
        table[state, order] = reached


def _byte_level(tokens: list[str]) -> list[bytes]:
    """Inverts GPT-2's printable spelling of bytes; a token with another character is literal text, as in `tokenizers`."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    to_byte = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
    return [
        bytes(map(to_byte.__getitem__, token)) if all(char in to_byte for char in token) else token.encode() for token in tokens
    ]


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty where there is no file. Raises UserError for a malformed one."""
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not a valid JSON object: {one_line(error)}") from error


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
