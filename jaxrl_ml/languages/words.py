"""Decides whether a text has words of a language: the text and the code of a language in, yes or no out.

A language detector names the likeliest language of any letters: also of `enum > enum > enum`, of random letters and of names of
variables. So a text counts for a language only if it has the common words that hardly any text of the language does without.
`common_words.toml` lists them for 47 languages. A text of n words passes if it meets rule 1 and one of the rules 2 to 4. In
Chinese, Japanese, Thai, Khmer and Burmese, which are written without spaces, a word is a number of letters
(`_LETTERS_PER_WORD`).

1. It is no loop over one word: of its n words n/4 are distinct, and at least 2, but no more than 4 are required. The same holds
   for its letters; in languages without spaces, for its letters alone. A loop over a sentence passes: truncated thinking in a
   language is in the language.
2. It has n/24 distinct common words of the language, but no more than 4 are required; and their share of the text is n/500,
   but no more than 12 % is required. In honest text their share is 25 to 60 %.
3. It has no common word, but is short (`Golf balls: 58`, `Иван съел яблоко`) and has the spelling of the language. Short is: at
   most 10 words of which at most 5 differ; in languages without spaces, at most 4 words. `asdf qwer zxcv` fails.
4. It is plainly in a listed language that is not among the detector's candidates: such a text goes to the likeliest candidate,
   as Dutch does to German where Dutch is no candidate.

For a language that is not listed, rule 1 is the only one.

What these rules do not see. They look for words, not for sense: shuffled sentences pass. The cheapest long text that passes
repeats one phrase with four common words (`so we have the`), which costs a policy no less than to think in the language. A
text of which two thirds are gibberish passes if the rest is honest. A few words of the right spelling pass, whatever they are
(`name age price quantity` as English). In scripts of few languages the spelling says little: of random strings of up to 5
words about one in five passes, and of random kana most.
"""

from __future__ import annotations

import functools
import math
import re
import tomllib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

_FILE = Path(__file__).with_name("common_words.toml")
_LETTERS_PER_WORD = {"zh": 1.7, "ja": 2.2, "th": 4.0, "km": 4.0, "my": 5.0}
"""For the languages that are written without spaces: the mean length of a word, vowel signs and tone marks included."""
_MAX_WORDS, _MAX_DISTINCT, _MAX_UNSPACED = 10, 5, 4  # words, of a text that needs no common word
_MIN_SPELLING = {"ar": 6.7, "bn": 8.1, "he": 7.7, "hi": 7.7, "ko": 6.0, "ru": 6.8, "te": 7.7, "th": 8.0, "vi": 4.2}
_MIN_SPELLING |= {"ja": 6.0, "zh": math.inf}  # random characters have the spelling of Chinese: it needs a common word
"""In nats per byte: what honest runs of a few words reach, and random letters of the script mostly do not. 2.5 for all other
languages, which suits those in Latin letters."""
_MARKS = re.compile("[\u0591-\u05bd\u0640\u064b-\u0652\u0670]")  # vowel points of Hebrew and Arabic, which most writers omit
_ASCII = re.compile(r"[!-~]+")
_HIRAGANA = re.compile("[\u3041-\u3096]")
_TO_HIRAGANA = {code: code - 0x60 for code in range(0x30A1, 0x30F7)}


class _CommonWords(NamedTuple):
    """The common words of one language: as whole words and endings, or as a pattern where words have no spaces."""

    whole: frozenset[str]
    endings: tuple[str, ...]
    pattern: re.Pattern[str] | None
    latin: bool


def has_words(text: str, language: str, candidates: Collection[str], spelling: Callable[[str, str], float]) -> bool:
    """Whether a text has words of a language, by the rules above.

    `text` is words with spaces between, as `detect.py` makes them, and `language` the one of `candidates` that was chosen for
    it. `spelling(text, language)` is how much likelier the text is in the language than n-grams that the language does not
    have, in nats per byte; it is called for short texts only.
    """
    text = text.lower()
    if not text.isascii():
        text = _MARKS.sub("", text)
    words = text.split()
    letters_varied = _is_varied(len(text) - text.count(" "), len(set(text)) - (" " in text))
    if not letters_varied or (language not in _LETTERS_PER_WORD and not _is_varied(len(words), len(set(words)))):
        return False
    lists = _common_words()
    if language not in lists:
        return True
    num_words, matches, share = _matches(text, language)
    max_words = _MAX_UNSPACED if language in _LETTERS_PER_WORD else _MAX_WORDS
    if matches == 0 and num_words <= max_words and len(set(words)) <= _MAX_DISTINCT:
        return spelling(text, language) >= _MIN_SPELLING.get(language, 2.5)
    if matches >= min(num_words / 24, 4) and share >= min(num_words / 500, 0.12):
        return True
    return any(_is_plainly(text, other) for other in lists if other not in candidates)


def _matches(text: str, language: str) -> tuple[float, int, float]:
    """The number of words of a text, of distinct common words of a language, and the share of all common words."""
    common = _common_words()[language]
    if not common.latin:
        text = _ASCII.sub("", text)
    if language == "ja" and not _HIRAGANA.search(text):  # Japanese in katakana alone, as half-width text is
        text = text.translate(_TO_HIRAGANA)
    if common.pattern is not None:
        matches = common.pattern.findall(text)
        num_letters = len(text) - text.count(" ")
        num_words, share = num_letters / _LETTERS_PER_WORD[language], sum(map(len, matches)) / max(num_letters, 1)
    else:
        words = text.split()
        matches = [word for word in words if word in common.whole]
        if common.endings:
            matches += [word for word in words if word.endswith(common.endings) and word not in common.whole]
        num_words, share = len(words), len(matches) / max(len(words), 1)
    return num_words, len(set(matches)), share


def _is_plainly(text: str, language: str) -> bool:
    _, matches, share = _matches(text, language)
    return matches >= 4 and share >= 0.2


def _is_varied(count: int, distinct: int) -> bool:
    """Whether `count` words or letters are distinct enough: a quarter of them, at least 2 and at most 4."""
    return distinct >= min(max(count / 4, 2), 4, count)


@functools.cache
def _common_words() -> dict[str, _CommonWords]:
    """The lists of the file, by language."""
    lists = {}
    for language, listed in tomllib.loads(_FILE.read_text(encoding="utf-8")).items():
        words = listed.split()
        whole = [word for word in words if word[0] not in "-~"]
        behind = [word[1:] for word in words if word[0] == "~"]
        pattern = _pattern(whole, behind) if language in _LETTERS_PER_WORD else None
        endings = tuple(word[1:] for word in words if word[0] == "-")
        lists[language] = _CommonWords(frozenset(whole), endings, pattern, latin=any(map(str.isascii, whole)))
    return lists


def _pattern(words: list[str], behind: list[str]) -> re.Pattern[str]:
    """Matches the longest of `words` at a place, else one of the letters `behind` after a letter that is no hiragana.

    The words are grouped by their first letters: a flat list of alternatives is several times slower.
    """
    firsts = dict.fromkeys(word[0] for word in words)
    groups = []
    for first in firsts:
        rests = sorted((word[1:] for word in words if word[0] == first), key=len, reverse=True)
        groups.append(first if rests == [""] else f"{first}(?:{'|'.join(rests)})")
    singles = "".join(group for group in groups if len(group) == 1)
    longer = "|".join(group for group in groups if len(group) > 1)
    alternatives = [f"[{singles}]"] if singles else []
    alternatives += [f"(?=[{''.join(firsts)}])(?:{longer})"] if longer else []
    alternatives += [rf"(?<=[^\W\u3040-\u309f])[{''.join(behind)}]"] if behind else []
    return re.compile("|".join(alternatives))
