"""Data pipelines: tasks in, token arrays out; rollouts in, texts and scores out. The only user of grain.

Prompts:        task → shuffle → repeat → blocks → those of this process → tokenise → `(examples, Prompts)`, endless
Demonstrations: the same blocks → tokenise → pack into rows → `Packed`, endless
Experience:     chunk number → sample → judge, the next chunk being sampled while one is judged

Both endless streams are functions of a position, so their iterators' `get_state()` is one small integer in a JSON-able dict,
of what was consumed (never of what was prefetched), and `set_state` gives the rest of the stream exactly. Call `close()` when
done with one. Shuffling takes no memory and differs from epoch to epoch.

Departures from grain's own tools: grain's packers hold half-filled rows, which a state would have to carry, and cost Python
time per example and array; here a batch is packed whole from the examples at a position.
"""

from __future__ import annotations

import itertools
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import grain
import numpy as np

from jaxrl_ml.languages.thinking import with_openings
from jaxrl_ml.rewards.combined import as_scores
from jaxrl_ml.types import Example, Packed, PromptFormat, Prompts, Reward, Rollout, Scores, Task, UserError, one_line, require

if TYPE_CHECKING:
    from jaxrl_ml.tokenizer import Tokenizer

    Array = Any  # numpy or jax

Asked = TypeVar("Asked")  # what a chunk is of: its examples
Judged = TypeVar("Judged")
Allowed = Callable[[Sequence[Example]], np.ndarray]  # examples → bool [Q, languages]

_BLOCK = 256  # demonstrations tokenised in one call
_PROMPT_END = 32  # tokens: enough for `<think>` and the white space after it
_BACKGROUND = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)


@dataclass(frozen=True)
class PromptRenderer:
    """Turns examples into the token ids of their prompts.

    `prompt_format` None reads `example.fields["prompt"]`; `system_prompt` becomes a system message before the format's own.
    Raises UserError where there is no prompt, or where a plain text is to have a system prompt.
    """

    tokenizer: Tokenizer
    prompt_format: PromptFormat | None = None
    system_prompt: str | None = None

    def __call__(self, examples: Sequence[Example]) -> list[list[int]]:
        rows = self.tokenizer.encode_prompts([self._render(example) for example in examples])
        for example, ids in zip(examples, rows, strict=True):
            if not ids:
                raise UserError(f"example {example.id!r}: its prompt has no tokens; give every example a text to start from")
        return rows

    def _render(self, example: Example) -> Any:
        if self.prompt_format is not None:
            prompt = self.prompt_format(example)
        elif "prompt" in example.fields:
            prompt = example.fields["prompt"]
        else:
            raise UserError(f"example {example.id!r} has no field 'prompt'; set prompt_format to write one from its fields")
        if self.system_prompt is None:
            return prompt
        if isinstance(prompt, str):
            raise UserError(
                f"system_prompt={self.system_prompt!r} needs a prompt_format that gives messages; that of example "
                f"{example.id!r} is plain text: set system_prompt to None or choose a chat format"
            )
        return [{"role": "system", "content": self.system_prompt}, *prompt]


def make_prompts(
    examples: Sequence[Example], render: PromptRenderer, *, width: int, first: int = 0, allowed: Allowed | None = None
) -> Prompts:
    """The examples' prompts, left-padded to [Q, width], as numpy arrays; their places in the step count from `first`.

    `allowed` tells which thinking languages each prompt may choose from. Raises UserError for a prompt of more than `width`
    tokens.
    """
    tokens = np.full((len(examples), width), render.tokenizer.pad_id, np.int32)
    mask = np.zeros((len(examples), width), bool)
    for row, (example, ids) in enumerate(zip(examples, render(examples), strict=True)):
        if len(ids) > width:
            raise UserError(
                f"the prompt of example {example.id!r} has {len(ids)} tokens, over sampling.max_prompt_tokens={width}; "
                "raise it or leave the example out"
            )
        tokens[row, width - len(ids) :] = ids
        mask[row, width - len(ids) :] = True
    index = np.arange(first, first + len(examples), dtype=np.uint32)
    return Prompts(tokens, mask, index, None if allowed is None else allowed(examples))


def prompt_batches(
    task: Task,
    render: PromptRenderer,
    *,
    num_prompts: int,
    width: int,
    seed: int,
    block: int = 0,
    blocks: int = 1,
    allowed: Allowed | None = None,
) -> grain.DatasetIterator[tuple[list[Example], Prompts]]:
    """One block of every step's prompts (`Layout.block`), without end, tokenised in a background thread.

    A step has `num_prompts` prompts in all, the same ones in the same places whatever the number of blocks; of each block, of
    `num_prompts / blocks`, `Prompts.index` is the place in the step. An epoch may end within a step.
    """
    local = num_prompts // blocks
    first = block * local
    require(num_prompts % blocks == 0, f"prompts_per_step={num_prompts} must be a multiple of the {blocks} processes")

    def tokenise(examples: list[Example]) -> tuple[list[Example], Prompts]:
        return examples, make_prompts(examples, render, width=width, first=first, allowed=allowed)

    steps = _blocks(task, local, seed, block, blocks).map(tokenise)
    return iter(steps.to_iter_dataset(_BACKGROUND))


def evaluation_batches(
    task: Task, render: PromptRenderer, *, num_prompts: int, batch_size: int, width: int, allowed: Allowed | None = None
) -> Iterator[tuple[list[Example], Prompts]]:
    """The task's first `num_prompts` examples in order, in batches of one shape [batch_size, width].

    The last batch repeats its last example; only the real ones are in the list beside it. Raises UserError for a task with
    fewer examples.
    """
    if num_prompts > _length(task):
        raise UserError(f"evaluation.num_prompts={num_prompts} exceeds the task's {len(task)} examples; lower it")

    def batch(start: int) -> tuple[list[Example], Prompts]:
        examples = [_example(task, i) for i in range(start, min(start + batch_size, num_prompts))]
        padded = examples + examples[-1:] * (batch_size - len(examples))
        return examples, make_prompts(padded, render, width=width, first=start, allowed=allowed)

    return map(batch, range(0, num_prompts, batch_size))


def packed_batches(
    task: Task,
    render: PromptRenderer,
    *,
    batch_size: int,
    sequence_length: int,
    seed: int,
) -> grain.DatasetIterator[Packed]:
    """Every step's packed demonstrations [batch_size, sequence_length], without end; each process packs them all.

    An example is its prompt, its completion and the end-of-sequence token; the loss is on the latter two. Each batch holds as
    many of the next examples as first-fit, longest first, gets into its rows, so few columns are padding (segment 0).

    Raises UserError for an example without completion or of more than `sequence_length` tokens.
    """
    tokenizer = render.tokenizer

    def tokenise(examples: list[Example]) -> list[_Demonstration]:
        for example in examples:
            if example.completion is None:
                raise UserError(f"example {example.id!r} has no completion; SFT needs a task with demonstrations")
        completions = tokenizer.encode([example.completion for example in examples])
        found = []
        for example, prompt, completion in zip(examples, render(examples), completions, strict=True):
            ids = [*prompt, *completion, tokenizer.eos_id]
            if len(ids) > sequence_length:
                raise UserError(
                    f"example {example.id!r} has {len(ids)} tokens with its completion, over "
                    f"sequence_length={sequence_length}; raise it or leave the example out"
                )
            found.append(_Demonstration(np.array(ids, np.int32), len(prompt)))
        return found

    blocks = _blocks(task, _BLOCK, seed).map(tokenise).to_iter_dataset(_BACKGROUND)
    return _PackedIterator(iter(blocks), batch_size, sequence_length, tokenizer.pad_id)


def _blocks(task: Task, size: int, seed: int, first: int = 0, every: int = 1) -> grain.MapDataset[list[Example]]:
    """The shuffled, repeated task in blocks of `size` examples: every so-many-th of them, from the first.

    A task may have `together`: so many examples that follow each other are shuffled as one.
    """
    together = getattr(task, "together", 1)
    length = _length(task) // together
    if not 0 < length < 2**32:
        raise UserError(f"a task of {length} examples cannot be shuffled; give it 1 to {2**32 - 1}")
    first_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])  # so that epoch 1 of a seed is not epoch 0 of the next

    def block(number: int) -> list[Example]:
        # What MapDataset.shuffle().repeat().batch() does, by the same permutation, at a tenth of its cost per example.
        found = []
        for position in range(number * size, (number + 1) * size):
            unit, part = divmod(position, together)
            epoch, place = divmod(unit, length)
            epoch_seed = (first_seed + epoch) % 2**32
            drawn = grain.experimental.index_shuffle(place, max_index=length - 1, seed=epoch_seed, rounds=4)
            found.append(_example(task, drawn * together + part))
        return found

    return grain.MapDataset.range(first, sys.maxsize // size, every).map(block)


def _length(task: Task) -> int:
    kind = type(task).__name__
    sized = hasattr(task, "__len__") and hasattr(task, "__getitem__")
    require(sized, f"a task of type {kind} cannot be shuffled: give a list of Examples, or an object with len() and [i]")
    return len(task)


def _example(task: Task, index: int) -> Example:
    example = task[index]
    kind = type(example).__name__
    require(isinstance(example, Example), f"item {index} of a task is of type {kind}; give a jaxrl_ml.types.Example")
    return example


class _Demonstration(NamedTuple):
    ids: np.ndarray  # int32; prompt, completion, EOS
    prompt_length: int


class _PackedIterator(grain.DatasetIterator):
    """Packs the demonstrations of an endless iterator of blocks of `_BLOCK`."""

    def __init__(self, blocks: grain.DatasetIterator, rows: int, width: int, pad_id: int):
        super().__init__(blocks)
        self._blocks = blocks
        self._rows, self._width, self._pad_id = rows, width, pad_id
        self._position = 0  # demonstrations consumed: the whole state
        self._waiting: list[_Demonstration] = []  # those that follow, up to the end of a block

    def __next__(self) -> Packed:
        while sum(len(d.ids) - 1 for d in self._waiting) < self._rows * self._width:
            self._waiting += next(self._blocks)
        lengths = np.array([len(d.ids) - 1 for d in self._waiting])
        places = _first_fit(lengths, self._rows, self._width)
        taken, self._waiting = self._waiting[: len(places)], self._waiting[len(places) :]
        self._position += len(taken)
        return _pack(taken, places, self._rows, self._width, self._pad_id)

    def get_state(self) -> dict[str, int]:
        return {"position": self._position}

    def set_state(self, state: dict[str, int]) -> None:
        self._position = state["position"]
        block, offset = divmod(self._position, _BLOCK)
        self._blocks.set_state({"next_index": block})
        self._waiting = next(self._blocks)[offset:]


def _first_fit(lengths: np.ndarray, rows: int, width: int) -> np.ndarray:
    """Places (row, column, segment) int [n, 3] for the longest prefix that first-fit, longest first, is found to fit whole.

    Starts from as many examples as could fit if none were split, and gives up one for each that finds no room.
    """
    count = int(np.searchsorted(np.cumsum(lengths), rows * width, side="right"))
    while True:
        room, segments = np.full(rows, width), [0] * rows
        places = np.zeros((count, 3), np.int64)
        missed = 0
        for i in np.argsort(-lengths[:count], kind="stable"):
            length = lengths[i]
            row = int((room >= length).argmax())
            if room[row] < length:
                missed += 1
                continue
            segments[row] += 1
            places[i] = row, width - room[row], segments[row]
            room[row] -= length
        if not missed:
            return places
        count -= missed


def _pack(taken: list[_Demonstration], places: np.ndarray, rows: int, width: int, pad_id: int) -> Packed:
    lengths = np.array([len(d.ids) - 1 for d in taken])
    row, column, segment = (np.repeat(values, lengths) for values in places.T)
    position = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    prompt_length = np.repeat([d.prompt_length for d in taken], lengths)

    def spread(values: np.ndarray, fill: int, dtype: type) -> np.ndarray:
        out = np.full((rows, width), fill, dtype)
        out[row, column + position] = values
        return out

    return Packed(
        tokens=spread(np.concatenate([d.ids[:-1] for d in taken]), pad_id, np.int32),
        targets=spread(np.concatenate([d.ids[1:] for d in taken]), pad_id, np.int32),
        loss_mask=spread(position + 1 >= prompt_length, False, bool),
        segments=spread(segment, 0, np.int32),
        positions=spread(position, 0, np.int32),
    )


def experience(
    sample_chunk: Callable[[int], tuple[Asked, Rollout]],
    num_chunks: int,
    judge: Callable[[Asked, Rollout], Judged],
) -> Iterator[Judged]:
    """What `judge` makes of chunks 0, 1, …, in order; chunk i+1 is being sampled while chunk i is judged.

    `sample_chunk` runs in a background thread, one chunk ahead: it may wait for the device, but must not count on
    thread-local state (`with mesh:`, `with jax.transfer_guard(...)`). `judge` runs in the caller's thread; with several
    processes neither it nor the caller may start a collective before the last chunk. Exceptions of both reach the caller.
    """
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    chunks = grain.MapDataset.range(num_chunks).map(sample_chunk).to_iter_dataset(options)
    judged = iter(chunks.map(lambda chunk: judge(*chunk)))
    try:
        yield from judged
    finally:
        judged.close()


def decode_rows(tokenizer: Tokenizer, completions: np.ndarray, lengths: np.ndarray) -> list[str]:
    """The texts of completions int [B, C], each of its first `lengths[b]` tokens."""
    return tokenizer.decode([row[:length] for row, length in zip(completions, lengths, strict=True)])


def scored_texts(tokenizer: Tokenizer, prompts: Prompts, texts: Sequence[str]) -> list[str]:
    """What a reward is given of B completions: their texts, behind the `<think>` that their prompts may end with.

    `prompts` are on the host; B / Q completions belong to each of them.
    """
    ends = [tokens[mask][-_PROMPT_END:] for tokens, mask in zip(prompts.tokens, prompts.mask, strict=True)]
    return with_openings(tokenizer.decode(ends), texts)


def score_rows(reward: Reward, texts: Sequence[str], examples: Sequence[Example], group_size: int) -> Scores:
    """The reward's scores of B = Q·group_size texts, of which rows b belong to `examples[b // group_size]`.

    Rewards that are not finite are kept for the caller to count. Raises UserError where the reward raises, or does not return
    one value a row.
    """
    repeated = list(itertools.chain.from_iterable(itertools.repeat(example, group_size) for example in examples))
    if len(texts) != len(repeated):
        raise ValueError(f"{len(texts)} texts for {len(examples)} examples of {group_size} samples")
    name = getattr(reward, "__qualname__", type(reward).__qualname__)
    try:
        result = reward(texts, repeated)
    except UserError:
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"reward {name} failed at {place.filename}:{place.lineno} with {told}; mend it and resume") from error
    return as_scores(result, len(texts), f"reward {name}")


def completion_width(lengths: np.ndarray, max_width: int) -> int:
    """The smallest bucket that holds every row: 1/4, 3/8, 1/2, 3/4 or all of `max_width`, in multiples of 8.

    The buckets are few, since each is compiled once. Across processes, give the lengths of all rows.
    """
    longest = int(np.max(lengths))
    if longest > max_width:
        raise ValueError(f"a row of {longest} tokens is over the width {max_width}")
    eighths = (2, 3, 4, 6, 8)
    return next(width for n in eighths if (width := min(-(-max_width * n // 64) * 8, max_width)) >= longest)


def trim(rollout: Rollout, width: int) -> Rollout:
    """The rollout with its [B, C] leaves cut to [B, width]; numpy and jax arrays alike."""

    def cut(x: Array) -> Array:
        if isinstance(x, np.ndarray):
            return x[:, :width]
        import jax

        # Indexing would send the start to the device, which the loop's transfer guard forbids; with strides it is static.
        return jax.lax.slice(x, (0, 0), (x.shape[0], width), (1, 1))

    leaves = {name: getattr(rollout, name) for name in ("completions", "action_mask", "sampler_logprobs")}
    return rollout._replace(**{name: cut(x) for name, x in leaves.items()})
