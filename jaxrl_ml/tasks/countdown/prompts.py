"""Prompt formats of Countdown: example in, plain text or chat messages out.

The question's wording is TinyZero's (github.com/Jiayi-Pan/TinyZero, examples/data_preprocess/countdown.py), without its
conversation frame: a frame is the chat template's business, or the system prompt's.
"""

from __future__ import annotations

from jaxrl_ml.types import Example, Message

_QUESTION = (
    "Using the numbers {numbers}, create an equation that equals {target}. You can use basic arithmetic operations "
    "(+, -, *, /) and each number can only be used once. Show your work in <think> </think> tags. And return the final "
    "answer in <answer> </answer> tags, for example <answer> (1 + 2) / 3 </answer>."
)


def tinyzero(example: Example) -> str:
    """The question as plain text, to be answered with `<think>` and `<answer>` tags."""
    *first, last = map(str, example.fields["numbers"])
    numbers = f"{', '.join(first)} and {last}" if first else last
    return _QUESTION.format(numbers=numbers, target=example.fields["target"])


def chat(example: Example) -> list[Message]:
    """The same question as one user message, for the tokenizer's chat template."""
    return [{"role": "user", "content": tinyzero(example)}]


def compact(example: Example) -> str:
    """`3 4 5 = 12:`, for models too small to read English."""
    return f"{' '.join(map(str, example.fields['numbers']))} = {example.fields['target']}:"
