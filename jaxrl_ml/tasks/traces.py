"""Demonstrations that think in a given language: Countdown problems, or a file of traces, in; examples with completions out.

`Traces` writes them from templates, `python -m jaxrl_ml.coldstart` has a teacher write them to a file, and `from_jsonl` reads
that file. Either is a task for SFT. A completion is `{tag}{thinking}</think>` and the answer; the field `languages` of an
example names the one language that it thinks in, while `Example.language` stays that of its prompt.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from jaxrl_ml.config import LanguageConfig
from jaxrl_ml.languages.phrases import LANGUAGES, Step, countdown_thinking, solution_steps
from jaxrl_ml.languages.thinking import CLOSE, OPEN
from jaxrl_ml.tasks.deferred import Deferred
from jaxrl_ml.tasks.files import Row, collect, read, short
from jaxrl_ml.types import Example, Task, require

UNTAGGED = f"{OPEN}\n"
"""The tag of traces that are to teach a language, but not the choice of it."""
_MAX_TRIES = 100  # numbers such as 0 and 0 have no wrong expression
_STREAM = 1 << 128  # keeps the draws apart from those that made the problems, whatever the seeds


@dataclass(frozen=True)
class Traces(Sequence[Example]):
    """Templated traces of a Countdown task, one a problem: problem i is thought through in language i modulo their number.

    The examples must have the fields `numbers`, `target` and `solution`. Every trace is correct and each line of it true. For
    the same problems in every language, mix one `Traces(task, (code,))` a language (`tasks.mixture.Mixture`). Raises UserError
    for a setting that makes no sense and for an example without solution, and IndexError outside 0 ≤ index < len(task).
    """

    task: Task
    languages: tuple[str, ...]
    tag: str | tuple[str, ...] = LanguageConfig.tag
    """What a completion starts with, as `LanguageConfig.tag`; but a text need not have {code} in it, as UNTAGGED has not."""
    failed: int = 0
    """Most attempts that fail before the one that does not: their number is drawn from 0..failed."""
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [code for code in self.languages if code not in LANGUAGES]
        require(
            bool(self.languages) and not unknown,
            f"Traces: languages={self.languages!r} must be one or more of {', '.join(LANGUAGES)}",
        )
        require(
            isinstance(self.tag, str) or len(self.tag) == len(self.languages),
            f"Traces: tag has {len(self.tag)} texts for {len(self.languages)} languages; give one each",
        )
        require(self.failed >= 0, f"Traces: failed={self.failed} must not be negative")
        require(self.seed >= 0, f"Traces: seed={self.seed} must not be negative")

    def __len__(self) -> int:
        return len(self.task)

    def __getitem__(self, index: int) -> Example:
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside 0..{len(self) - 1}")
        place = index % len(self.languages)
        code = self.languages[place]
        tag = self.tag.replace("{code}", code) if isinstance(self.tag, str) else self.tag[place]
        example = self.task[index]
        numbers, target, solution = (example.fields.get(name) for name in ("numbers", "target", "solution"))
        require(
            bool(numbers) and target is not None and isinstance(solution, str),
            f"Traces: example {example.id!r} has not the fields numbers, target and solution; give a solved Countdown task",
        )
        rng = random.Random(_STREAM | self.seed << 64 | index)
        failed = [_failure(numbers, target, rng) for _ in range(int(rng.random() * (self.failed + 1)))]
        thinking = countdown_thinking(code, solution_steps(solution), target, [steps for steps in failed if steps])
        return replace(
            example,
            id=f"{code}/{example.id}",
            fields={**example.fields, "languages": (code,)},
            completion=f"{tag}{thinking}{CLOSE}\n<answer> {solution} </answer>",
        )


def _failure(numbers: Sequence[int], target: int, rng: random.Random) -> list[Step]:
    """The steps of a random expression over all the numbers that misses the target; none where no such was found."""
    for _ in range(_MAX_TRIES):
        values, steps = [Fraction(number) for number in numbers], []
        while len(values) > 1:
            left, right = (values.pop(int(rng.random() * len(values))) for _ in range(2))
            symbol = "+-*/"[int(rng.random() * (4 if right else 3))]
            steps.append(Step(left, symbol, right))
            values.append(steps[-1].result)
        if values[0] != target:
            return steps
    return []


def from_jsonl(*paths: str | Path) -> Deferred:
    """The traces of files that `python -m jaxrl_ml.coldstart` wrote, in order, in memory, provenance left out.

    Nothing is read before an example or the length is asked for, so that a config may name the file that is yet to be made
    with it. Lists among an example's fields become tuples. Then it raises UserError, naming file and line, for a missing or
    malformed file, a value that is missing or of the wrong kind, an id that is used twice, and files without a trace.
    """
    return Deferred(_read_traces, tuple(map(str, paths)))


def _read_traces(*paths: str) -> Task:
    return collect(read(paths), _example)


def _example(row: Row) -> Example:
    fields, completion = row.value("fields"), row.value("completion")
    if not isinstance(fields, dict):
        raise row.wrong(f"fields={short(fields)} must be an object")
    if not isinstance(completion, str) or not completion.strip():
        raise row.wrong(f"completion={short(completion)} must be text, and not empty")
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    return Example(
        id=row.text("id"),
        task=row.text("task"),
        fields={**fields, "languages": (row.text("language"),)},
        answer=row.value("answer"),
        language=row.text("prompt_language"),
        completion=completion,
    )
