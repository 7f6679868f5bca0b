"""Reading completions: texts in; of each the language it chose, its thinking and its answer part, out. Pure text, no tokens.

A completion has the form `{tag}{thinking}</think>{answer part}`, where the tag is one of a `LanguageConfig`'s, by default
`<lang_select>\\n{code}\\n</lang_select>\\n<think>\\n`. Any text has a reading, by these rules:

1. The tag is what the text starts with, to the letter. A tag of a language that is not the config's, one that is misspelt, and
   one that anything precedes, be it a space, are none. Of two tags that both fit, the longer counts.
2. Thinking ends at the first `</think>`; the answer part is all that follows, further marks included.
3. Thinking that is never closed takes all the rest, and the answer part is empty: what was only thought is no answer.
4. Whatever else stands in the thinking is its text: tags, `<think>`, `<answer>`.
5. A text without a tag thinks from its first `<think>`, or from its start where only `</think>` is there (some chat templates
   end with `<think>`). Without either mark it does not think: all of it is the answer part.

The text is hostile: the work is a few substring searches, linear in its length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxrl_ml.config import LanguageConfig

OPEN, CLOSE = "<think>", "</think>"


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
    code = max((code for code, tag in tags.items() if text.startswith(tag)), key=lambda code: len(tags[code]), default="")
    if code:
        thinking, _, answer = text[len(tags[code]) :].partition(CLOSE)
    elif OPEN in text or CLOSE in text:
        thinking, _, answer = text.partition(CLOSE)
        thinking = thinking.split(OPEN, 1)[-1]
    else:
        thinking, answer = "", text
    return Completion(code, thinking, answer)
