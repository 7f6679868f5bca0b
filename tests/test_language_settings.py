"""Settings of an evaluation differ only in what is asked of each prompt, and cost the same number of samples."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_ml.config import Evaluation, LanguageConfig
from jaxrl_ml.languages.settings import Asked, Setting, language_settings, tell, thinking_ends
from jaxrl_ml.languages.tags import allowed_languages, make_trie
from jaxrl_ml.types import Example, UserError

SEEN = ("en", "zh", "es", "fr", "de", "ja", "ru", "it", "pt", "ko", "ar", "th", "vi")  # ExpLang's
UNSEEN = ("id", "he", "ro", "sw")
TASK = [Example(str(i), "t", {"x": i} | ({"languages": ("de", "fr")} if i == 3 else {})) for i in range(10)]
EVALUATION = Evaluation(
    TASK, None, num_prompts=6, samples_per_prompt=12, prompts_per_batch=4, language=LanguageConfig("constrained", SEEN),
    sampling=dataclasses.replace(Evaluation(TASK, None).sampling, temperature=1.0), unseen_languages=UNSEEN,
)  # fmt: skip


def encode(texts: list[str]) -> list[list[int]]:
    return [list(text.encode()) for text in texts]


def decode(rows: list[list[int]]) -> list[str]:
    return [bytes(row).decode(errors="replace") for row in rows]


def by_name(*names: str, evaluation: Evaluation = EVALUATION) -> dict[str, Setting]:
    return {setting.name: setting for setting in language_settings(evaluation, names)}


def asked(setting: Setting) -> list[set[str]]:
    """The languages that each prompt allows."""
    evaluation = setting.evaluation
    examples = [evaluation.task[i] for i in range(evaluation.num_prompts)]
    codes = np.array(evaluation.language.languages)
    return [set(codes[row]) for row in allowed_languages(evaluation.language, examples)]


def test_what_each_setting_asks_for() -> None:
    found = by_name("self", "multi", "unseen", "en", "hi", "en")
    assert list(found) == ["en", "self", "multi", "unseen", "hi"], "English first, for the others to be held against"
    assert asked(found["self"]) == [set(SEEN)] * 3 + [{"de", "fr"}] + [set(SEEN)] * 2, "a prompt's own choice is kept"
    assert asked(found["en"]) == [{"en"}] * 6 and asked(found["hi"]) == [{"hi"}] * 6
    assert asked(found["multi"]) == [{code} for code in SEEN[1:]] * 6
    assert asked(found["unseen"]) == [{code} for code in UNSEEN] * 6
    assert [s.evaluation.name for s in found.values()] == [f"test-{name}" for name in found]
    modes = {name: setting.evaluation.language.mode for name, setting in found.items()}
    assert modes == {"self": "constrained"} | dict.fromkeys(("en", "multi", "unseen", "hi"), "forced")
    for setting in found.values():
        evaluation = setting.evaluation
        assert setting.samples == 12 == evaluation.num_prompts // 6 * evaluation.samples_per_prompt, "the paper's 12, in all"
        assert evaluation.prompts_per_batch * evaluation.samples_per_prompt == 4 * 12, "as many rows at a time"
        assert evaluation.sampling == EVALUATION.sampling and setting.num_problems == 6


def test_settings_share_one_trie() -> None:
    tries = [make_trie(setting.evaluation.language, encode) for setting in by_name("self", "multi", "sw", "hi").values()]
    for trie in tries[1:]:
        for name in ("tokens", "target", "language", "reach"):
            np.testing.assert_array_equal(getattr(trie, name), getattr(tries[0], name))


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 12))
def test_samples_are_spread_evenly(samples: int, count: int) -> None:
    language = LanguageConfig("free", SEEN[: count + 1])
    evaluation = dataclasses.replace(EVALUATION, samples_per_prompt=samples, language=language)
    multi = by_name("multi", evaluation=evaluation)["multi"]
    assert multi.samples % count == 0 and samples - count < multi.samples <= max(samples, count)
    assert multi.evaluation.prompts_per_batch * multi.evaluation.samples_per_prompt <= 4 * samples


def test_a_model_without_tags_is_left_alone_where_it_chooses() -> None:
    plain = dataclasses.replace(EVALUATION, language=LanguageConfig(), unseen_languages=())
    found = by_name("self", "de", evaluation=plain)
    assert found["self"].evaluation.language.mode == "off" and found["self"].evaluation.task is TASK
    assert asked(found["de"]) == [{"de"}] * 6
    assert by_name("self", evaluation=plain)["self"].samples == 12


def test_an_unseen_language_may_be_opened_with_a_text_of_its_own() -> None:
    openings = tuple(f"<think>{code}: " for code in UNSEEN)
    evaluation = dataclasses.replace(EVALUATION, unseen_tags=openings)
    found = by_name("self", "unseen", "hi", evaluation=evaluation)
    for setting in found.values():
        language = setting.evaluation.language
        texts = dict(zip(language.languages, language.tags(), strict=True))
        assert [texts[code] for code in UNSEEN] == list(openings)
        assert texts["de"] == EVALUATION.language.tags()[SEEN.index("de")] and "\nhi\n" in texts["hi"]
    own = dataclasses.replace(evaluation, language=LanguageConfig("free", SEEN, tuple(f"<think>{code} " for code in SEEN)))
    assert by_name("unseen", evaluation=own)["unseen"].evaluation.language.tags()[-1] == openings[-1]
    with pytest.raises(UserError, match="unseen_tags has 1 texts, or an empty one, for 4 unseen_languages"):
        dataclasses.replace(EVALUATION, unseen_tags=("x",))


def test_forced_by_prompt_stays_so() -> None:
    own = [Example(str(i), "t", language=code) for i, code in enumerate(("de", "en", "th", "de", "fr", "it"))]
    evaluation = dataclasses.replace(EVALUATION, task=own, language=LanguageConfig("forced", SEEN))
    assert asked(by_name("self", evaluation=evaluation)["self"]) == [{e.language} for e in own]


def test_mistakes_are_named() -> None:
    english = dataclasses.replace(EVALUATION, language=LanguageConfig("free", ("en",)), unseen_languages=())
    tuple_tags = dataclasses.replace(english, language=LanguageConfig("free", ("en",), ("<en>",)))
    for evaluation, name, words in (
        (english, "multi", "--languages multi finds none in language.languages"),
        (english, "unseen", "--languages unseen finds none in unseen_languages"),
        (english, "selff", "does not know the language 'selff'"),
        (tuple_tags, "de", "language.tag has no text for de"),
    ):
        with pytest.raises(UserError, match=words):
            language_settings(evaluation, [name])
    assert language_settings(tuple_tags, ["en"])[0].evaluation.language.tags() == ("<en>",)
    with pytest.raises(UserError, match="de in unseen_languages and"):
        dataclasses.replace(EVALUATION, unseen_languages=("de",))


def test_asked_is_a_task() -> None:
    task = Asked(TASK, (("en",), ("de", "fr")))
    assert len(task) == 20 and [e.id for e in task] == [str(i // 2) for i in range(20)]
    assert [e.fields["languages"] for e in task][:2] == [("en",), ("de", "fr")]
    assert task[6].fields["languages"] == ("en",) and Asked(TASK, (("en",),), keeps=True)[3].fields["languages"] == ("de", "fr")
    assert TASK[0].fields == {"x": 0}


TAG = "<lang_select>\n{}\n</lang_select>\n<think>\n"
GERMAN = "Wir addieren zuerst die beiden Zahlen."


@pytest.mark.parametrize(
    ("completion", "language", "detected", "tokens"),
    [
        (TAG.format("de") + GERMAN + "</think>We are done here.", "de", "de", len(GERMAN) + 8),
        (TAG.format("fr") + GERMAN, "fr", "de", len(GERMAN)),
        (TAG.format("de") + "</think>", "de", "", 0),
        (TAG.format("de") + "1" * 20_000, "de", "", 20_000),
        (" " + TAG.format("de") + GERMAN + "</think>", "", "de", len(" " + TAG.format("de") + GERMAN) + 8),
        (TAG.format("xx") + GERMAN + "</think>", "", "de", len(TAG.format("xx") + GERMAN) + 8),
        (GERMAN, "", "", 0),
        ("", "", "", 0),
        (TAG.format("de") + TAG.format("en") + GERMAN + "</think></think>", "de", "de", len(TAG.format("en") + GERMAN) + 8),
    ],
)
def test_what_is_told_of_a_completion(completion: str, language: str, detected: str, tokens: int) -> None:
    setting = by_name("multi")["multi"]
    [end] = thinking_ends([completion], encode([completion]), decode)
    record = {"id": "0", "sample": 0, "prompt": "", "completion": completion, "correct": True, "thinking_end": end}
    told = tell([record] * 24, setting, encode)
    assert [r["sample"] for r in told] == [*range(12)] * 2
    for r in told:
        assert (r["setting"], r["language"], r["detected"], r["thinking_tokens"]) == ("multi", language, detected, tokens)
        assert r["completion"] == completion and r["switched"] == 0


def test_thinking_that_the_prompt_opened_is_told_though_it_never_ends() -> None:
    setting = by_name("multi")["multi"]
    record = {
        "id": "0",
        "sample": 0,
        "prompt": "<think>\n",
        "completion": GERMAN,
        "correct": False,
        "thinking_end": len(GERMAN),
    }
    [told] = tell([record], setting, encode)
    assert (told["detected"], told["thinking_tokens"], told["completion"]) == ("de", len(GERMAN), GERMAN)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.lists(st.lists(st.sampled_from(["</th", "ink>", "</think>", "x</think>y", "a", "<", "é"]), max_size=12), max_size=6))
def test_thinking_ends_at_the_token_that_closes_it(rows: list[list[str]]) -> None:
    """Against taking one token after the other; the "tokens" are texts."""

    def join(rows: list[list[str]]) -> list[str]:
        return ["".join(row) for row in rows]

    expected = [next((n for n in range(1, len(row) + 1) if "</think>" in "".join(row[:n])), len(row)) for row in rows]
    assert thinking_ends(join(rows), rows, join) == expected
