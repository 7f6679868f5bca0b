"""An evaluation in different thinking languages: an evaluation and the names of settings in, one evaluation a setting out.

* `self`: as the evaluation has it; the policy chooses among `language.languages` unless its mode says otherwise.
* `multi`: each language of `language.languages` but English is given in turn.
* `unseen`: each of `Evaluation.unseen_languages` is given in turn.
* `en`, or any other code: that language is given.

Where several are given, a problem has `samples_per_prompt` samples in all, an equal number of each, one at least: with
ExpLang's 12 samples and 12 languages one of each (arXiv 2602.21887). All settings have one trie, over all languages of all of
them, and differ in which of these a prompt allows, which is data. So those that draw as many samples of a prompt share a
compiled program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple

from jaxrl_ml.config import Evaluation, LanguageConfig
from jaxrl_ml.languages.detect import LANGUAGES, Detector
from jaxrl_ml.languages.thinking import CLOSE, opened_by, parse
from jaxrl_ml.types import Example, Task, UserError, require

ENGLISH = "en"


class Setting(NamedTuple):
    """An evaluation in one setting. Samples of a problem are adjacent in its records, those of a language among them, too."""

    name: str  # as it was asked for
    evaluation: Evaluation
    num_problems: int
    samples: int  # of a problem, over all languages
    detector: Detector  # the same one in all settings of an evaluation: it chooses among all their languages


@dataclass(frozen=True)
class Asked(Sequence[Example]):
    """A task with each problem once for each of `allowed`, one after the other: the languages it may be thought through in.

    Where `keeps`, a problem that has a field `languages` already keeps it.
    """

    task: Task
    allowed: tuple[tuple[str, ...], ...]
    keeps: bool = False

    def __len__(self) -> int:
        return len(self.task) * len(self.allowed)

    def __getitem__(self, index: int) -> Example:
        problem, place = divmod(index, len(self.allowed))
        example = self.task[problem]
        if self.keeps and "languages" in example.fields:
            return example
        return replace(example, fields={**example.fields, "languages": self.allowed[place]})


def language_settings(evaluation: Evaluation, names: Sequence[str]) -> list[Setting]:
    """The evaluation in each of the named settings (this module's docstring has them), English first, where it is among them.

    Raises UserError for a setting that has no language, and for a language that has no tag or that no detector knows.
    """
    own, known = evaluation.language, _languages(evaluation, names)
    texts = dict(zip(own.languages, own.tags(), strict=True))
    texts |= dict(zip(evaluation.unseen_languages, evaluation.unseen_tags, strict=False))
    outside = [code for code in known if code not in texts]
    require(
        isinstance(own.tag, str) or not outside,
        f"evaluation {evaluation.name}: language.tag has no text for {', '.join(outside)}; give one text with {{code}} in it, "
        "or unseen_tags",
    )
    tags = tuple(texts.get(code) or LanguageConfig("forced", (code,), own.tag).tags()[0] for code in known)
    detector = Detector(known or LANGUAGES)
    detector([])  # loads it, so that an unknown code fails before anything is sampled
    settings = []
    for name in sorted(dict.fromkeys(names), key=lambda name: name != ENGLISH):
        codes = _given(evaluation, name)
        if name == "self" and own.mode == "off":
            told, task = own, evaluation.task
        elif name == "self":
            told, task = replace(own, languages=known, tag=tags), Asked(evaluation.task, (own.languages,), keeps=True)
        else:
            told = LanguageConfig("forced", known, tags)
            task = Asked(evaluation.task, tuple((code,) for code in codes))
        copies = max(1, len(codes))
        each = max(1, evaluation.samples_per_prompt // copies)
        changed = replace(
            evaluation,
            name=f"{evaluation.name}-{name}",
            task=task,
            language=told,
            unseen_languages=(),
            unseen_tags=(),
            num_prompts=evaluation.num_prompts * copies,
            samples_per_prompt=each,
            prompts_per_batch=evaluation.prompts_per_batch * (evaluation.samples_per_prompt // each),
        )
        settings.append(Setting(name, changed, evaluation.num_prompts, each * copies, detector))
    return settings


def _given(evaluation: Evaluation, name: str) -> tuple[str, ...]:
    """The languages that are given in a setting, none in `self`."""
    seen = evaluation.language.languages
    groups = {"self": (), "multi": tuple(code for code in seen if code != ENGLISH), "unseen": evaluation.unseen_languages}
    return groups.get(name, (name,))


def _languages(evaluation: Evaluation, names: Sequence[str]) -> tuple[str, ...]:
    """All languages of all settings, those of the evaluation first."""
    for name, field in (("multi", "language.languages"), ("unseen", "unseen_languages")):
        if name in names and not _given(evaluation, name):
            raise UserError(f"evaluation {evaluation.name}: --languages {name} finds none in {field}; add some, or give codes")
    given = chain.from_iterable(_given(evaluation, name) for name in names)
    return tuple(dict.fromkeys((*evaluation.language.languages, *evaluation.unseen_languages, *given)))


def thinking_ends(
    texts: Sequence[str], rows: Sequence[Sequence[int]], decode: Callable[[list[Sequence[int]]], list[str]]
) -> list[int]:
    """How many tokens of each of B rows it takes until the text has its first `</think>`; all of a row that has none.

    `texts` are the rows decoded, `decode` is the tokenizer's. Told from the tokens by bisection, since a text may have been
    written with other tokens than it would be encoded with, and a small tokenizer may not know how to encode a part of it.
    """
    ends = [len(row) for row in rows]
    starts = {b: 0 for b, text in enumerate(texts) if CLOSE in text}  # the first this many tokens are too few
    while starts := {b: start for b, start in starts.items() if ends[b] - start > 1}:
        middles = {b: (start + ends[b]) // 2 for b, start in starts.items()}
        for (b, middle), text in zip(middles.items(), decode([rows[b][:middle] for b, middle in middles.items()]), strict=True):
            if CLOSE in text:
                ends[b] = middle
            else:
                starts[b] = middle
    return ends


def tell(
    records: Sequence[Mapping[str, Any]], setting: Setting, encode: Callable[[Sequence[str]], list[list[int]]]
) -> list[dict[str, Any]]:
    """The records of a setting with what there is to tell of the languages; `encode` is the tokenizer's.

    Adds `setting`; `language`, that of the tag that the completion starts with, "" for none; `detected`, that of its thinking,
    "" where there is too little to tell; `switched`, the share of the thinking that is in another than the detected one; and
    `thinking_tokens`, from the tag, which is left out, to `</think>`, which is not, or 0 where nothing is thought. `sample`
    counts over all of a problem's.
    """
    language = setting.evaluation.language
    tag_tokens = dict(zip(language.languages, map(len, encode(language.tags())), strict=True)) if language.languages else {}
    read = parse([opened_by(record["prompt"]) + record["completion"] for record in records], language)
    found = setting.detector([completion.thinking for completion in read])
    return [
        {
            **record,
            "sample": i % setting.samples,
            "setting": setting.name,
            "language": completion.code,
            "detected": str(code),
            "switched": float(switched),
            "thinking_tokens": record["thinking_end"] - tag_tokens.get(completion.code, 0) if completion.thinking else 0,
        }
        for i, (record, completion, code, switched) in enumerate(zip(records, read, found.code, found.switched, strict=True))
    ]
