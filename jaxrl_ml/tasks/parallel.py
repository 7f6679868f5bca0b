"""The same problems in several languages: a task for each language in, one task of all versions of the problems out.

A version has the id `{language}-{problem}` and belongs to the task `{benchmark}/{language}`, which is how
`analysis/transfer.py` pairs them. A group of samples has one example for a prompt, so it never mixes languages.

Where only the statement differs, which the prompt format writes from `Example.language`, `stated_in` makes the versions of a
task; `WordProblems` are templated problems with a question in each language; translations that were read from files
(`tasks/maths.py`, `parallel`) come apart by `by_language`.
"""

from __future__ import annotations

import hashlib
import operator
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from jaxrl_ml.languages.phrases import WORD_PROBLEMS, draw, word_problem
from jaxrl_ml.types import Example, Task, UserError, require

_HELD_OUT = 1 / 16  # of the word problems


class Parallel(Sequence[Example]):
    """The first `num_languages` versions of problems, all versions of a problem one after the other.

    `versions` maps codes to tasks that have the same problems in the same order, the first being the one that is there at
    num_languages=1 (English, in the Parallel Scaling Law). `budget` says what is equal at every num_languages: `growing`, the
    number of problems, so that there are num_languages times as many examples (arXiv 2510.02272); `fixed`, the number of
    examples, so that there are num_languages times fewer problems, the first ones. Where `together`, a step draws all versions
    of a problem; otherwise they are shuffled apart.

    Raises UserError for settings that make no sense, at once, and for versions of different problems, when they are read;
    IndexError outside 0 ≤ index < len.
    """

    def __init__(
        self,
        versions: Mapping[str, Task],
        num_languages: int,
        budget: Literal["growing", "fixed"] = "growing",
        together: bool = False,
    ) -> None:
        require(
            1 <= num_languages <= len(versions),
            f"Parallel: num_languages={num_languages} must be in 1..{len(versions)}, the number of versions",
        )
        require(budget in ("growing", "fixed"), f"Parallel: budget={budget!r} must be 'growing' or 'fixed'")
        sizes = {code: len(task) for code, task in versions.items()}
        if len(set(sizes.values())) > 1:
            raise UserError(f"Parallel: versions differ in size ({sizes}); give the same problems in every language")
        self.versions = dict(list(versions.items())[:num_languages])
        self.num_problems = next(iter(sizes.values())) // (num_languages if budget == "fixed" else 1)
        require(
            self.num_problems > 0,
            f"Parallel: {sum(sizes.values()) // len(sizes)} problems are too few for num_languages={num_languages} and "
            f"budget={budget!r}; give more",
        )
        self.together = num_languages if together else 1
        """Examples that follow each other and stay together when a task is shuffled (`data.prompt_batches`)."""

    def __len__(self) -> int:
        return self.num_problems * len(self.versions)

    def __getitem__(self, index: int) -> Example:
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside 0..{len(self) - 1}")
        number, place = divmod(index, len(self.versions))
        (first, first_task), *_ = self.versions.items()
        code, task = list(self.versions.items())[place]
        example, problem = _named(task[number], code), _named(first_task[number], first).id.removeprefix(f"{first}-")
        require(
            example.id == f"{code}-{problem}",
            f"Parallel: problem {number} is {problem!r} in {first} and {example.id.removeprefix(f'{code}-')!r} in {code}; "
            "give the same problems in the same order",
        )
        return example


def _named(example: Example, code: str) -> Example:
    """The example as a version in a language."""
    if example.id.startswith(f"{code}-") and example.task.endswith(f"/{code}"):
        return example
    return replace(example, id=f"{code}-{example.id}", task=f"{example.task.replace('/', '-')}/{code}", language=code)


@dataclass(frozen=True)
class InLanguage(Sequence[Example]):
    """A task whose prompts are in one language, as far as the prompt format reads `Example.language`."""

    task: Task
    code: str

    def __len__(self) -> int:
        return len(self.task)

    def __getitem__(self, index: int) -> Example:
        return _named(self.task[index], self.code)


def stated_in(task: Task, codes: Sequence[str]) -> dict[str, Task]:
    """The versions of a task whose prompt format states a problem in `Example.language`."""
    return {code: InLanguage(task, code) for code in codes}


def by_language(task: Task) -> dict[str, Task]:
    """The versions that a task in memory has of its problems, by `Example.language`, in its order."""
    found: dict[str, list[Example]] = {}
    for index in range(len(task)):
        found.setdefault(task[index].language, []).append(task[index])
    return found


@dataclass(frozen=True)
class WordProblems(Sequence[Example]):
    """Templated arithmetic word problems in one language, equal in all languages but for the words.

    `Example.fields` holds `question`; `answer` is a whole number and `completion` the solution's sentences between thinking
    marks, then the boxed answer. Problem i is drawn from (seed, i); which problems are held out for split="test" is told by a
    hash of the story and its values, whatever the seed. Raises UserError for settings that make no sense, IndexError outside
    0 ≤ index < size.
    """

    code: str
    size: int = 1000
    split: Literal["train", "test"] = "train"
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.size >= 1, f"WordProblems: size={self.size} must be at least 1")
        require(self.split in ("train", "test"), f"WordProblems: split={self.split!r} must be 'train' or 'test'")
        require(self.seed >= 0, f"WordProblems: seed={self.seed} must not be negative")
        self[0]  # refuses an unknown language

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Example:
        index = operator.index(index)
        if not 0 <= index < self.size:
            raise IndexError(f"index {index} is outside 0..{self.size - 1}")
        rng = random.Random(self.seed << 64 | index)
        while True:
            story = WORD_PROBLEMS[int(rng.random() * len(WORD_PROBLEMS))]
            values = draw(story, rng)
            if _is_held_out(story, values) == (self.split == "test"):
                break
        found = word_problem(story, self.code, values)
        return Example(
            id=f"{self.code}-{self.split}-{self.seed}-{index}",
            task=f"words/{self.code}",
            fields={"question": found.question},
            answer=found.answer,
            language=self.code,
            completion=f"<think>\n{found.thinking}\n</think>\n\\boxed{{{found.answer}}}",
        )


def _is_held_out(story: str, values: Mapping[str, int]) -> bool:
    digest = hashlib.blake2b(f"{story} {sorted(values.items())}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < _HELD_OUT * 2**64
