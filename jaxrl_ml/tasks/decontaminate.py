"""Decontamination: training and test tasks in, the training examples that share no text with the test out, and a report.

Texts are compared after normalisation: NFKC, case folded, digits of any script as 0–9, thousands commas dropped, punctuation
and white space collapsed. Mathematical operators stay, as words of their own: `x + 1` is not `x - 1`. A training example goes
if its whole text is that of a test example, or if it shares a run of 13 words (the length that the GPT-3 paper, appendix C,
uses at most) with one. In text written without spaces, such as Chinese, Japanese and Thai, each character counts as a word,
and the run is 30 long. A test text shorter than a run is found only whole, a translated one not at all.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from jaxrl_ml.tasks.mixture import Subset
from jaxrl_ml.types import Example, Task, UserError

_MAX_SHOWN = 20

# Thai, Lao, Tibetan, Myanmar, Khmer, Kana, Han
_UNSPACED = "\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_UNSPACED_CHARACTER = re.compile(f"[{_UNSPACED}]")
_WORD = re.compile(rf"[{_UNSPACED}]|-|[^\s,{_UNSPACED}-]+")
_THOUSANDS_COMMA = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_HYPHEN = re.compile(r"(?<=[^\W\d_])-(?=[^\W\d_])")


class Overlap(NamedTuple):
    """Why one training example was removed: `kind` is `exact` or `ngram`, `text` what is shared, as compared."""

    train_id: str
    test_id: str
    kind: str
    text: str


@dataclass(frozen=True)
class Decontamination:
    """What `decontaminate` removed: how many for each reason, of how many, and the first few cases."""

    num_train: int
    removed: Mapping[str, int]  # exact, ngram
    examples: tuple[Overlap, ...]

    def __str__(self) -> str:
        exact, ngram = self.removed["exact"], self.removed["ngram"]
        return f"removed {exact + ngram} of {self.num_train} training examples: {exact} exact, {ngram} by n-gram"


def question(example: Example) -> str:
    """The text that examples are compared by, where no other is given."""
    if not isinstance(example.fields.get("question"), str):
        raise UserError(f"decontaminate: example {example.id!r} has no text in fields['question']; pass text=")
    return example.fields["question"]


def decontaminate(
    train: Task, test: Task, *, ngram: int = 13, ngram_chars: int = 30, text: Callable[[Example], str] = question
) -> tuple[Subset, Decontamination]:
    """The examples of `train` that share no text with `test`, in order, and the report.

    `ngram` is in words, `ngram_chars` in characters of text written without spaces. Reads each task once, one example at a
    time; memory is bounded by the test's words. Raises UserError where a length is below 1.
    """
    if ngram < 1 or ngram_chars < 1:
        raise UserError(f"decontaminate: ngram={ngram} and ngram_chars={ngram_chars} must be at least 1")
    whole: dict[str, str] = {}  # normalised text: id of the test example
    runs: dict[int, str] = {}  # hash of a run: the same. 64 bits: a false match needs some 10^19 pairs of runs
    for index in range(len(test)):
        example = test[index]
        words = normalise(text(example))
        whole.setdefault(" ".join(words), example.id)
        for run in _runs(words, ngram, ngram_chars):
            runs.setdefault(hash(run), example.id)
    whole.pop("", None)

    def overlap(example: Example) -> Overlap | None:
        words = normalise(text(example))
        joined = " ".join(words)
        if joined in whole:
            return Overlap(example.id, whole[joined], "exact", joined)
        for run in _runs(words, ngram, ngram_chars):
            if hash(run) in runs:
                return Overlap(example.id, runs[hash(run)], "ngram", run)
        return None

    kept, removed, shown = [], {"exact": 0, "ngram": 0}, []
    for index in range(len(train)):
        found = overlap(train[index])
        if found is None:
            kept.append(index)
            continue
        removed[found.kind] += 1
        if len(shown) < _MAX_SHOWN:
            shown.append(found)
    return Subset(train, kept), Decontamination(len(train), removed, tuple(shown))


def normalise(text: str) -> list[str]:
    """The words that texts are compared by; operators, and characters of scripts written without spaces, are words."""
    text = unicodedata.normalize("NFKC", text).casefold().translate(_CHARACTERS)
    return _WORD.findall(_HYPHEN.sub(" ", _THOUSANDS_COMMA.sub("", text)))


def _runs(words: list[str], ngram: int, ngram_chars: int) -> Iterator[str]:
    """Every run of words of the length that suits the text."""
    num_characters = len(_UNSPACED_CHARACTER.findall("".join(words)))
    length = ngram_chars if num_characters and 2 * num_characters >= len(words) else ngram
    return (" ".join(words[start : start + length]) for start in range(len(words) - length + 1))


class _Characters(dict[int, str]):
    """What each character becomes, for str.translate; filled as characters are met."""

    def __missing__(self, code: int) -> str:
        char, category = chr(code), unicodedata.category(chr(code))
        if category == "Nd":
            new = str(unicodedata.decimal(char))
        elif category[0] in "LMN" or char in ",-":
            new = char
        elif char in "*/^" or category == "Sm":
            new = {"\u2212": "-", "\u2044": " / "}.get(char, f" {char} ")  # minus sign, and the slash that NFKC makes of ½
        else:
            new = " "
        self[code] = new
        return new


_CHARACTERS = _Characters()
