"""Completions taken apart: texts in; of each the language it chose, its thinking and its answer part out. No tokens.

A completion has the form `{tag}{thinking}</think>{answer part}`, where the tag is one of a `LanguageConfig`'s, by default
`<lang_select>\\n{code}\\n</lang_select>\\n<think>\\n`. Every text has a reading, by these rules:

1. The text starts with the tag, to the letter. A tag of a language that the config does not have, a misspelt tag, and a tag
   after anything else (a space, say) count as none. If two tags fit, the longer one counts. A tag without a `<think>` of its
   own may also follow a `<think>` that starts the text.
2. Thinking ends at the first `</think>`. The answer part is all that follows, further marks included.
3. Thinking that is never closed takes the rest of the text, and the answer part is empty: a text that only thinks gives no
   answer.
4. Everything else within the thinking is its text: tags, `<think>`, `<answer>`.
5. A text without a tag thinks from its first `<think>`, or from its start if it has only `</think>`. A text without either mark
   does not think: all of it is the answer part.

Some chat templates end in `<think>`, so that a completion starts within its thinking. `opened_by` gives these characters of a
prompt. Whoever has a completion scored puts them in front (`with_openings`): else a completion that is cut off in its thinking
would pass for an answer.

The text is hostile: the work is a few substring searches, linear in its length.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxrl_ml.config import LanguageConfig

OPEN, CLOSE = "<think>", "</think>"
_OPENED = re.compile(rf"{OPEN}\s*")
_THOUGHT_ANEW = re.compile(rf"{OPEN}.*?(?:{CLOSE}|\Z)", re.DOTALL)


class Completion(NamedTuple):
    """A completion in its parts."""

    code: str  # of the language whose tag the text starts with; "" for none
    thinking: str  # without the marks around it
    answer: str  # what follows the thinking


def parse(texts: Sequence[str], config: LanguageConfig) -> list[Completion]:
    """The parts of B completions, by the tags of the config; with mode off none has a tag. Never raises on any text."""
    tags = dict(zip(config.languages, config.tags(), strict=True)) if config.languages else {}
    return [_parse(text, tags) for text in texts]


def _parse(text: str, tags: Mapping[str, str]) -> Completion:
    code, end = _tag(text, tags) if tags else ("", 0)
    if code:
        thinking, _, answer = text[end:].partition(CLOSE)
    elif OPEN in text or CLOSE in text:
        thinking, _, answer = text.partition(CLOSE)
        thinking = thinking.split(OPEN, 1)[-1]
    else:
        thinking, answer = "", text
    return Completion(code, thinking, answer)


def _tag(text: str, tags: Mapping[str, str]) -> tuple[str, int]:
    """The code of the tag that a text starts with, and where it ends; "" and 0 for none."""
    opened = _OPENED.match(text)
    starts = (0, opened.end()) if opened else (0,)
    ends = [
        (start + len(tag), code)
        for start in starts
        for code, tag in tags.items()
        if text.startswith(tag, start) and (not start or OPEN not in tag)
    ]
    end, code = max(ends, default=(0, ""))
    return code, end


def answer_parts(texts: Sequence[str]) -> list[str]:
    """What a reward of answers reads of B texts without tags: their answer parts, without further thinking.

    A `<think>` in an answer part takes everything up to the next `</think>`, or to the end. Any other `</think>` there takes
    everything before it, as of `<think>a <think>b</think> c</think> answer`.
    """
    parts = []
    for text in texts:
        start = text.find(CLOSE)
        if start < 0:
            parts.append("" if OPEN in text else text)
            continue
        answer = text[start + len(CLOSE) :]
        parts.append(_THOUGHT_ANEW.sub(" ", answer).rpartition(CLOSE)[2] if OPEN in answer or CLOSE in answer else answer)
    return parts


def is_answer(text: str, place: int) -> bool:
    """Whether `answer_parts` keeps what starts at a place of a text."""
    if OPEN not in text and CLOSE not in text:
        return True
    return text.rfind(CLOSE, 0, place) > text.rfind(OPEN, 0, place) and CLOSE not in _THOUGHT_ANEW.sub("", text[place:])


def from_answer(answer: str) -> str:
    """A text whose answer part is `answer`. It is `answer` itself, unless a mark in that would be read as thinking."""
    return CLOSE + answer if OPEN in answer or CLOSE in answer else answer


def opened_by(prompt: str) -> str:
    """The end of a prompt from its last `<think>` on, where nothing but white space follows; "" for any other prompt."""
    start = prompt.rfind(OPEN)
    return prompt[start:] if start >= 0 and not prompt[start + len(OPEN) :].strip() else ""


def with_openings(prompts: Sequence[str], completions: Sequence[str]) -> list[str]:
    """B completions, each behind the `<think>` that its prompt may end with. B / Q of them belong to each of Q prompts."""
    size = len(completions) // max(len(prompts), 1)
    openings = [opened_by(prompt) for prompt in prompts]
    if not any(openings):
        return list(completions)
    return [openings[b // size] + completion for b, completion in enumerate(completions)]
