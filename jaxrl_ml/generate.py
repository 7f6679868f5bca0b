"""`python -m jaxrl_ml.generate RUN|HF_DIR "prompt"`: streams what a model writes.

In: a model and one prompt. Out: its completions as text, as they come. The tokens are those that `Programs.sample` draws with
the same seed; control characters are spelled out, for model text may drive a terminal.

A run's system prompt and stop texts are those that it was trained with (`config.json`; its `config.py` is not executed). Its
prompt_format is code and is not applied: the prompt is the user's message. Language tags are not applied either.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

from jaxrl_ml.cli import run_command
from jaxrl_ml.config import ComputeConfig, MeshConfig, SamplingConfig
from jaxrl_ml.metrics import visible
from jaxrl_ml.types import Message, Params, Prompts, UserError

if TYPE_CHECKING:
    from jaxrl_ml.programs import Programs
    from jaxrl_ml.tokenizer import Tokenizer

GENERATION_PURPOSE = 3  # the second word of the sampling seed
TOKENS_PER_PIECE = 8
_REPLACEMENT = "\ufffd"  # what a tokenizer decodes part of a character to


class TextStream:
    """The text of a growing row of tokens, given out in whole characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._context = self._given = 0  # tokens before `_given` are out; those from `_context` on are context for the next

    def push(self, ids: Sequence[int], last: bool = False) -> str:
        """The text that `ids` add; the piece that ends inside a character is held back until it is complete, or `last`.

        Only the last piece is decoded again, so a long text costs linear time. A tokenizer whose decoding of a byte depends on
        later bytes beyond its character (SentencePiece's byte fallback on invalid UTF-8) may differ from decoding all at once.
        """
        self._ids += ids
        if self._given == len(self._ids):
            return ""
        before, text = self._tokenizer.decode([self._ids[self._context : self._given], self._ids[self._context :]])
        if text.endswith(_REPLACEMENT) and not last:
            return ""
        piece = text[len(before) :]
        if piece:  # ids without text are no context: some decoders drop a space before the first token that has text
            self._context = self._given
        self._given = len(self._ids)
        return piece


def prompt_ids(tokenizer: Tokenizer, prompt: str, system: str | None = None, chat: bool = True) -> list[int]:
    """The prompt's tokens: through the chat template where there is one and `chat`, else as plain text.

    Raises UserError for an empty prompt, and a system prompt without chat template.
    """
    if not prompt.strip():
        raise UserError("the prompt is empty; give a text to start from")
    if not (chat and tokenizer.has_chat_template):
        if system is not None:
            why = "with --no-chat" if tokenizer.has_chat_template else "for a tokenizer without chat template"
            raise UserError(f"--system {system!r} has no place {why}; put the text into the prompt")
        return tokenizer.encode_prompts([prompt])[0]
    messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    return tokenizer.encode_prompts([[*messages, {"role": "user", "content": prompt}]])[0]


@dataclass(frozen=True)
class RunSettings:
    """The settings of a run that shape what its model is given and writes. A Hugging Face folder has none."""

    system: str | None = None
    stop: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What of the run's prompts is not applied here."""


def run_settings(source: Path, step: int | None) -> RunSettings:
    """The settings with which a run trained checkpoint `step` (None: the best, or else the latest).

    Raises UserError where the run's config.json is damaged.
    """
    from jaxrl_ml import pretrained

    config = pretrained.read_run_config(source)
    if config is None:
        return RunSettings()
    try:
        system, stages = config["system_prompt"], config["stages"]
        stage = _stage_of(stages, pretrained.best_step(source) if step is None else step)
        stop = tuple(stage.get("sampling", {}).get("stop", ()))
        language = stage.get("language", {"mode": "off"})
        mode, languages = language["mode"], ", ".join(language.get("languages", ()))
        if not all(isinstance(text, str) for text in (*stop, "" if system is None else system)):
            raise TypeError("system_prompt and sampling.stop must be texts")
    except (KeyError, TypeError, AttributeError) as error:
        raise pretrained.damaged(source, f"{type(error).__name__}: {error}") from error
    notes = ()
    if mode in ("constrained", "forced"):
        notes = (f"note: in training, completions start with a language tag ({mode}: {languages}); here they start freely",)
    return RunSettings(system, stop, notes)


def _stage_of(stages: Sequence[Mapping[str, Any]], step: int | None) -> Mapping[str, Any]:
    """The stage that trained checkpoint `step`, of stages as config.json has them; {} where there is none."""
    end = 0
    for stage in stages:
        end += stage["num_steps"]
        if step is not None and step <= end:
            return stage
    return {}


def left_padded(ids: Sequence[int], pad_id: int) -> Prompts:
    """One prompt as numpy arrays [1, P], P a power of two: widths are compiled for, so they are few."""
    width = max(16, 1 << (len(ids) - 1).bit_length())
    tokens = np.full((1, width), pad_id, np.int32)
    tokens[0, width - len(ids) :] = ids
    return Prompts(tokens, np.arange(width)[None] >= width - len(ids), np.zeros(1, np.uint32))


def load_model(source: Path, step: int | None, tensor: int) -> tuple[Programs, Params, Tokenizer]:
    """The model of a folder on the first `tensor` devices: one prompt cannot be split, so more have nothing to do."""
    import jax

    from jaxrl_ml import pretrained
    from jaxrl_ml.programs import Programs
    from jaxrl_ml.sharding import make_mesh

    config = pretrained.read_model_config(source)
    if step is not None and not pretrained.is_run(source):
        raise UserError(f"--step {step}: {source} is a Hugging Face folder, which has no steps; leave it out")
    tokenizer = pretrained.read_tokenizer(source).on_day(pretrained.chat_date(source, None))
    mesh = make_mesh(MeshConfig(data=1, tensor=tensor), jax.devices()[:tensor])
    programs = Programs(config, ComputeConfig(), mesh)
    params = pretrained.load_params(source, programs.model, programs.param_shardings, step)
    return programs, programs.gather(params), tokenizer


def stream(
    programs: Programs,
    weights: Params,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    sampling: SamplingConfig,
    num_samples: int = 1,
    seed: int = 0,
) -> Iterator[list[str]]:
    """The new text of each of `num_samples` completions, every few tokens, until all have stopped.

    Raises UserError where prompt and completion are longer than the model's positions.
    """
    import jax

    from jaxrl_ml.sampler import settings_of

    layout, config, C = programs.layout, programs.model.config, sampling.max_completion_tokens
    if len(ids) + C > config.max_positions:
        raise UserError(
            f"a prompt of {len(ids)} tokens and --max-new-tokens {C} exceed the model's {config.max_positions} positions; "
            "shorten the prompt or lower --max-new-tokens"
        )
    stop_table = layout.put(tokenizer.stop_table(sampling.stop, config.vocab_size))
    settings = layout.put(settings_of(sampling))
    seed_words = layout.put(np.array([seed, GENERATION_PURPOSE, 0, 0], np.uint32))
    prompts = layout.put_rows(left_padded(ids, tokenizer.pad_id))
    state: Any = programs.begin(weights, prompts, seed_words, stop_table, num_samples, C)
    texts = [TextStream(tokenizer) for _ in range(num_samples)]
    position = 0
    while True:
        until = min(position + TOKENS_PER_PIECE, C)
        state = programs.decode(weights, state, stop_table, settings, sampling.truncates, layout.put(np.int32(until)))
        completions, lengths, stops = jax.device_get((state.completions, state.lengths, state.stop_state))
        last = until == C or bool((stops == stop_table.shape[0] - 1).all())
        rows = zip(texts, completions, lengths, strict=True)
        yield [text.push(row[position : max(position, length)].tolist(), last) for text, row, length in rows]
        if last:
            return
        position = until


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; raises UserError where there is no such model or checkpoint, or a setting makes no sense."""
    tyro.cli(_generate, args=argv, prog="python -m jaxrl_ml.generate")


def _generate(
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|HF_DIR")],
    prompt: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT")],
    step: int | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.7,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    stop: tuple[str, ...] | None = None,
    system: str | None = None,
    chat: bool = True,
    seed: int = 0,
    num_samples: int = 1,
    tensor: int = 1,
) -> None:
    """Stream what the model of a run folder or a Hugging Face folder writes after a prompt.

    Args:
        source: Folder of the run, or of the model.
        prompt: The prompt, as the user's message: a run's prompt_format is code and is not applied. - reads it from standard
            input.
        step: Checkpoint of the run; by default the best, or else the latest.
        max_new_tokens: Longest completion.
        temperature: 0 is greedy.
        top_k: Sample from the k likeliest tokens; 0 is off.
        top_p: Sample from the likeliest tokens that make up this probability; 1 is off.
        min_p: Sample from tokens at least this likely relative to the likeliest; 0 is off.
        stop: Texts that end a completion; by default those that the run was trained with. --stop alone is none.
        system: System prompt; by default the run's. "" is none.
        chat: Write the prompt in the chat template, where the tokenizer has one.
        seed: Seed of the sampling.
        num_samples: Completions of the prompt; the first is streamed, the others follow.
        tensor: Devices to split the model over.
    """
    if num_samples < 1 or (num_samples > 1 and temperature == 0):
        raise UserError(f"--num-samples {num_samples} at --temperature {temperature}: use 1, or more with a temperature over 0")
    if max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {max_new_tokens} must be at least 1")
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed {seed} must be in 0..{2**32 - 1}")
    from jaxrl_ml.processes import require_alone

    require_alone("generate")
    settings = run_settings(source, step)
    sampling = SamplingConfig(
        max_completion_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        stop=settings.stop if stop is None else stop,
    )
    text = sys.stdin.read() if prompt == "-" else prompt
    programs, weights, tokenizer = load_model(source, step, tensor)
    notes = list(settings.notes)
    if system is None and settings.system is not None and not (chat and tokenizer.has_chat_template):
        notes.append(f"note: the run's system prompt is left out, since the prompt is plain text: {settings.system!r:.80}")
    elif system is None:
        system = settings.system
    for note in notes:
        print(visible(note), file=sys.stderr)
    ids = prompt_ids(tokenizer, text, system or None, chat)
    others = [""] * (num_samples - 1)
    for first, *rest in stream(programs, weights, tokenizer, ids, sampling, num_samples, seed):
        print(visible(first), end="", flush=True)
        others = [other + piece for other, piece in zip(others, rest, strict=True)]
    print()
    for number, other in enumerate(others, 2):
        print(f"--- {number} of {num_samples} ---\n{visible(other)}")


if __name__ == "__main__":
    run_command(main)
