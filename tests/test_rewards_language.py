"""ExpLang's reward against batches worked by hand, an oracle of its statistics, and hostile text."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_ml import cli
from jaxrl_ml.config import LanguageConfig
from jaxrl_ml.grpo import Experience, merge
from jaxrl_ml.languages.detect import Detector
from jaxrl_ml.rewards.countdown import countdown_reward
from jaxrl_ml.rewards.language import (
    EXPLOITATION,
    EXPLOITATION_RELEASED,
    EXPLORATION,
    ExpLangReward,
    Weights,
    batch_terms,
    language_counts,
)
from jaxrl_ml.rewards.maths import MathsReward
from jaxrl_ml.types import Example, Rollout, Scores, StepReward, UserError

ROOT = Path(__file__).resolve().parent.parent
LANGUAGE = LanguageConfig("free", ("en", "zh", "de"))
P, Q = Example("p", "t"), Example("q", "t")

EN = "First we add the two numbers together, and then we subtract the smallest one from the result."
ZH = "首先我们把这两个数字加起来，然后从结果中减去最小的那个数字。"
DE = "Zuerst addieren wir die beiden Zahlen, und danach ziehen wir die kleinste vom Ergebnis ab."
HE = "תחילה נחבר את שני המספרים יחד ואחר כך נחסר מהתוצאה את המספר הקטן ביותר."


def is_five(texts, examples):
    return np.array([text.strip() == "5" for text in texts], np.float32)


def tag(code: str) -> str:
    return f"<lang_select>\n{code}\n</lang_select>\n<think>\n"


def completion(code: str, thinking: str, answer: str = "5") -> str:
    return f"{tag(code)}{thinking}\n</think>\n{answer}"


def explang(weights: Weights = EXPLORATION, answer=is_five, **settings) -> ExpLangReward:
    return ExpLangReward(**{"language": LANGUAGE, "answer": answer, "weights": weights} | settings)


def detail(scores: Scores, name: str) -> list[float]:
    return scores.details[f"language/{name}"].tolist()


# Two problems of four completions, worked by hand.
BATCH = [
    (P, completion("en", EN)),
    (P, completion("en", EN, "6")),
    (P, completion("en", DE)),  # not compliant, but correct
    (P, completion("zh", ZH, "6")),
    (Q, completion("zh", "")),  # abstains
    (Q, completion("de", EN, "6")),  # the only one in de, not compliant
    (Q, completion("sw", EN)),  # an unknown language
    (Q, "5"),
]
EXAMPLES, TEXTS = map(list, zip(*BATCH, strict=True))
TAGGED = [1, 1, 1, 1, 1, 1, 0, 0]
COMPLIANT = [1, 1, 0, 1, 0, 0, 0, 0]
CORRECT = [1, 0, 1, 0, 1, 0, 1, 1]
# The step has 3 × en, 2 × zh, 1 × de. Problem p has 3 × en, 1 × zh; problem q 1 × zh, 1 × de.
DIVERSITY = {"step": [1 / 3, 1 / 3, 0, 1 / 2, 0, 0, 0, 0], "prompt": [1 / 3, 1 / 3, 0, 1, 0, 0, 0, 0]}
PASSED = {"step": [1, 1, 1, 1, 1, 0, 0, 0], "prompt": [1, 1, 1, 0, 1, 0, 0, 0]}
REWARDS = [
    (EXPLORATION, "step", [1.4 + 0.2 / 3, 0.4 + 0.2 / 3, 1.2, 0.5, 1.2, 0.2, 1, 1]),
    (EXPLORATION, "prompt", [1.4 + 0.2 / 3, 0.4 + 0.2 / 3, 1.2, 0.6, 1.2, 0.2, 1, 1]),
    (EXPLOITATION, "step", [1.9, 0.9, 1.7, 0.9, 1.7, 0.2, 1, 1]),
    (EXPLOITATION, "prompt", [1.9, 0.9, 1.7, 0.4, 1.7, 0.2, 1, 1]),
    (EXPLOITATION_RELEASED, "step", [1.4, 0.9, 1.2, 0.9, 1.2, 0.2, 0.5, 0.5]),
    (EXPLOITATION_RELEASED, "prompt", [1.4, 0.9, 1.2, 0.4, 1.2, 0.2, 0.5, 0.5]),
]


@pytest.mark.parametrize("backend", ["py3langid", "lingua"])
@pytest.mark.parametrize(("weights", "scope", "rewards"), REWARDS)
def test_batch_worked_by_hand(weights, scope, rewards, backend):
    pytest.importorskip(backend)
    scores = explang(weights, scope=scope, backend=backend)(TEXTS, EXAMPLES)
    np.testing.assert_allclose(scores.rewards, rewards, rtol=1e-6)
    assert scores.correct.tolist() == [bool(value) for value in CORRECT]
    terms = {"format": TAGGED, "compliance": COMPLIANT, "answer": CORRECT}
    terms |= {"diversity": DIVERSITY[scope], "group_pass": PASSED[scope]}
    assert scores.parts.keys() == terms.keys()
    for name, term in terms.items():
        np.testing.assert_allclose(scores.parts[name], getattr(weights, name) * np.array(term), rtol=1e-6, err_msg=name)
    choice = scores.parts["compliance"] + scores.parts["diversity"] + scores.parts["group_pass"]
    np.testing.assert_array_equal(scores.language_rewards, choice)
    np.testing.assert_allclose(sum(scores.parts.values()), scores.rewards, rtol=1e-6)


def test_details_of_the_batch():
    scores = explang()(TEXTS, EXAMPLES)
    assert detail(scores, "tagged") == TAGGED
    assert detail(scores, "compliant") == COMPLIANT
    assert detail(scores, "abstain") == [0, 0, 0, 0, 1, 0, 0, 0]
    assert detail(scores, "switched") == [0] * 8
    assert detail(scores, "thinking_chars") == [len(EN) + 1] * 2 + [len(DE) + 1, len(ZH) + 1, 1, len(EN) + 1, len(EN) + 2, 0]
    letters = {text: float(Detector(LANGUAGE.languages)([text]).letters[0]) for text in (EN, ZH, DE)}
    assert detail(scores, "letters") == [letters[EN]] * 2 + [letters[DE], letters[ZH], 0, letters[EN], 0, 0]
    assert scores.timeout is None


def test_the_presets_are_the_table():
    rows = [dataclasses.astuple(weights) for weights in (EXPLORATION, EXPLOITATION, EXPLOITATION_RELEASED)]
    assert rows == [(0.2, 0.2, 1.0, 0.2, 0.0), (0.2, 0.2, 1.0, 0.0, 0.5), (0.2, 0.2, 0.5, 0.0, 0.5)]


# The statistics


def test_what_carries_no_tag_of_the_prompt_counts_for_nothing():
    """A single completion in an unknown or disallowed language would otherwise make k_min 1, and pass for its language."""
    english = Example("r", "t", {"languages": ("en", "zh")})
    texts = [completion("en", EN, "6")] * 2 + [completion("zh", ZH, "6")] * 2
    texts += [completion("sw", HE), " " + completion("en", EN), completion("de", DE), EN]
    scores = explang(Weights(diversity=1, group_pass=1))(texts, [english] * 8)
    assert scores.parts["diversity"].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert not scores.parts["group_pass"].any()
    assert detail(scores, "tagged") == [1, 1, 1, 1, 0, 0, 0, 0]
    assert scores.correct.tolist() == [False] * 4 + [True] * 3 + [False]
    np.testing.assert_allclose(scores.rewards[4:], [1, 1, 1, 0])


@pytest.mark.parametrize(("mode", "tagged"), [("free", [1, 1]), ("constrained", [1, 1]), ("forced", [0, 1])])
def test_a_forced_language_is_the_one_allowed(mode, tagged):
    language = dataclasses.replace(LANGUAGE, mode=mode)
    german = Example("p", "t", language="de")
    scores = explang(language=language)([completion("en", EN), completion("de", DE)], [german, german])
    assert detail(scores, "tagged") == tagged == detail(scores, "compliant")


BOTH = Weights(format=1, compliance=0, answer=0, diversity=1, group_pass=1)


def test_the_rarest_language_need_have_no_compliant_completion():
    """Three times English and once German that is not compliant: theirs would take k_min = 3 from English alone."""
    scores = explang(BOTH)([completion("en", EN)] * 3 + [completion("de", EN)], [P] * 4)
    np.testing.assert_allclose(scores.parts["diversity"], [1 / 3, 1 / 3, 1 / 3, 0], rtol=1e-6)


def test_a_step_without_a_compliant_completion_has_no_diversity_and_is_finite():
    """Theirs is NaN."""
    texts = [completion("en", DE), completion("de", EN), completion("zh", ""), "5"]
    scores = explang(BOTH)(texts, [P] * 4)
    assert scores.parts["diversity"].tolist() == [0] * 4 and np.isfinite(scores.rewards).all()
    again = explang(BOTH).over_step(scores)
    assert again.parts["diversity"].tolist() == [0] * 4 and np.isfinite(again.rewards).all()
    assert explang(BOTH)([], []).rewards.shape == (0,)


def test_completions_without_a_tag_are_no_group():
    """In theirs the right one would pass for all of them."""
    scores = explang(BOTH)(["5", "6", f"<think>{EN}</think>6", completion("en", EN, "6")], [P] * 4)
    assert scores.correct.tolist() == [True, False, False, False]
    assert scores.parts["group_pass"].tolist() == [0] * 4 and scores.parts["diversity"].tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("code", ["xx", "sw", "", "English", "EN", "en de", "🙂"])
def test_only_the_tag_of_an_allowed_language_earns_the_format_term(code):
    """In theirs any text between the marks does."""
    scores = explang(BOTH)([completion(code, EN), completion("en", EN)], [P] * 2)
    assert scores.parts["format"].tolist() == [0, 1] and detail(scores, "tagged") == [0, 1]


@pytest.mark.parametrize("before", [" ", "\n", "Okay. ", "5 ", f"<think>{EN}</think>5\n", "\ufeff", "\u200f"])
def test_a_tag_counts_at_the_start_only(before):
    """In theirs it counts anywhere."""
    scores = explang(BOTH)([before + completion("en", EN), completion("en", EN)], [P] * 2)
    assert detail(scores, "tagged") == [0, 1] and scores.rewards.tolist() == [0, 3]


def test_one_language_has_the_whole_bonus_and_all_wrong_passes_nothing():
    scores = explang(Weights(diversity=1, group_pass=1))([completion("zh", ZH, "6")] * 5, [P] * 5)
    assert scores.parts["diversity"].tolist() == [1] * 5 and scores.parts["group_pass"].tolist() == [0] * 5


ROWS = st.lists(st.tuples(*[st.integers(0, 3)] * 2, *[st.booleans()] * 3), min_size=0, max_size=24)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(ROWS)
def test_statistics_agree_with_the_oracle(rows):
    chosen, group, tagged, compliant, correct = np.array(rows, np.int64).reshape(-1, 5).T
    tagged, correct = tagged.astype(bool), correct.astype(bool)
    compliant = compliant.astype(bool) & tagged
    chosen = np.where(tagged, chosen, -1)  # as for a text without a tag
    diversity, passed = batch_terms(chosen, group, compliant, *language_counts(chosen, group, correct, 4))
    for b in range(len(rows)):
        mates = [i for i in range(len(rows)) if group[i] == group[b] and tagged[i]]
        counts = Counter(chosen[i] for i in mates)
        wanted = min(counts.values()) / counts[chosen[b]] if compliant[b] else 0
        assert diversity[b] == np.float32(wanted)
        assert passed[b] == (tagged[b] and any(correct[i] for i in mates if chosen[i] == chosen[b]))
    everyone, _ = batch_terms(chosen, group, tagged, *language_counts(chosen, group, correct, 4))
    for g in set(group[tagged]):  # where all are compliant, each language of a group gets the same: k · k_min / k
        shares = [everyone[(group == g) & (chosen == code)].sum() for code in set(chosen[(group == g) & tagged])]
        np.testing.assert_allclose(shares, shares[0], rtol=1e-5)


# Laws of the batch

POOL = [
    *(completion(code, thinking, answer) for code in ("en", "zh", "de", "sw") for thinking in (EN, ZH, DE) for answer in "56"),
    *(completion(code, thinking) for code in ("en", "de") for thinking in ("", "1 + 2", EN + DE, f"{ZH}{EN} {EN}")),
    "5", "", tag("en"), tag("zh") + ZH, f"{EN}</think>5",
]  # fmt: skip


def rollout_of(rows: int) -> Rollout:
    return Rollout(*(np.zeros(rows, bool) for _ in Rollout._fields[:-1]))


def columns(scores: Scores) -> dict[str, np.ndarray]:
    own = {"rewards": scores.rewards, "correct": scores.correct, "language_rewards": scores.language_rewards}
    return own | dict(scores.parts) | dict(scores.details)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.sampled_from(POOL), min_size=1, max_size=16), st.integers(0, 16))
def test_the_statistics_of_a_step_do_not_depend_on_its_chunks(texts, cut):
    reward = explang(Weights(diversity=0.3, group_pass=0.7))
    whole = reward(texts, [P] * len(texts))
    parts = [reward(some, [P] * len(some)) for some in (texts[:cut], texts[cut:])]
    merged = merge([Experience([""], rollout_of(len(s.rewards)), [""] * len(s.rewards), s) for s in parts]).scores
    found = columns(reward.over_step(merged))
    for name, values in columns(whole).items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_the_loop_knows_rewards_with_statistics_from_others():
    assert isinstance(explang(), StepReward) and not isinstance(is_five, StepReward)
    assert not isinstance(MathsReward(), StepReward)


def test_statistics_of_a_problem_are_left_as_they_are():
    reward = explang(Weights(diversity=0.3, group_pass=0.7), scope="prompt")
    scores = reward(POOL, [P] * len(POOL))
    assert reward.over_step(scores) is scores


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from(POOL), st.sampled_from([P, Q])), max_size=16),
    st.randoms(use_true_random=False),
    st.sampled_from(["step", "prompt"]),
)
def test_the_order_of_rows_does_not_matter(rows, rng, scope):
    reward = explang(Weights(diversity=0.3, group_pass=0.7), scope=scope)
    order = list(range(len(rows)))
    rng.shuffle(order)
    scores, shuffled = (
        reward([text for text, _ in some], [example for _, example in some]) for some in (rows, [rows[i] for i in order])
    )
    for name, values in columns(scores).items():
        np.testing.assert_array_equal(columns(shuffled)[name], values[order], err_msg=name)
    for name, part in scores.parts.items():
        assert ((part >= 0) & (part <= np.float32(getattr(reward.weights, name)))).all()
    np.testing.assert_allclose(sum(scores.parts.values()), scores.rewards, rtol=1e-6)
    assert ((scores.parts["diversity"] > 0) == (scores.parts["compliance"] > 0)).all()
    assert (scores.parts["group_pass"][scores.correct & (scores.parts["format"] > 0)] > 0).all()


def test_only_the_statistics_depend_on_neighbours():
    together = columns(explang(EXPLORATION)(POOL, [P] * len(POOL)))
    for name in together.keys() - {"rewards", "language_rewards", "diversity", "group_pass"}:
        alone = [columns(explang(EXPLORATION)([text], [P]))[name][0] for text in POOL]
        np.testing.assert_array_equal(together[name], alone, err_msg=name)


def test_scopes_differ_across_problems_only():
    one = [Example("p", "t", {"of": i}) for i in range(len(TEXTS))]  # equal ids, whatever the objects
    step, prompt, apart = (
        columns(explang(Weights(diversity=1, group_pass=1), scope=scope)(TEXTS, examples))
        for scope, examples in (("step", one), ("prompt", one), ("prompt", [Example(str(i), "t") for i in range(len(TEXTS))]))
    )
    for name in step:
        np.testing.assert_array_equal(step[name], prompt[name])
    assert apart["diversity"].tolist() == COMPLIANT and apart["group_pass"].tolist() == [1, 0, 1, 0, 1, 0, 0, 0]
    same_id = [Example("p", "t"), Example("p", "other task")]
    scores = explang(EXPLOITATION, scope="prompt")([completion("en", EN), completion("en", EN, "6")], same_id)
    assert scores.parts["group_pass"].tolist() == [0.5, 0]


# Compliance


@pytest.mark.parametrize("thinking", ["", " \n", "5", "1 + 2 = 3", "$x$", "ab", f"${DE}$", f"```\n{DE}\n```", "\u202e", "😀"])
def test_thinking_that_tells_no_language_abstains_and_is_not_compliant(thinking):
    scores = explang()([completion("de", thinking)], [P])
    assert (detail(scores, "abstain"), detail(scores, "compliant"), detail(scores, "letters")) == ([1], [0], [0])
    assert scores.parts["compliance"] == scores.parts["diversity"] == 0
    np.testing.assert_allclose(scores.rewards, [1.2])


GIBBERISH = {
    "enum > " * 200: "en", "asdf qwer zxcv hjkl uiop ": "en", "return self value index config data batch": "en",
    "的" * 80: "zh", "鑫龘靐齉爩麤灪厵纞虋鱻驫羴猋蟲淼焱垚" * 3: "zh", "Wert > " * 200: "de",
    "lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod": "de",
}  # fmt: skip


@pytest.mark.parametrize("backend", ["py3langid", "lingua"])
def test_gibberish_abstains_and_earns_nothing_for_its_language(backend):
    pytest.importorskip(backend)
    texts = [completion(code, text) for text, code in GIBBERISH.items()] + [
        completion("en", EN),
        completion("en", "Wait. " + EN),
    ]
    scores = explang(Weights(compliance=0.5, diversity=0.5), backend=backend)(texts, [P] * len(texts))
    assert detail(scores, "abstain") == [1] * len(GIBBERISH) + [0, 0]
    assert detail(scores, "compliant") == detail(scores, "letters")[:-2] + [1, 1] == [0] * len(GIBBERISH) + [1, 1]
    assert (scores.parts["diversity"][:-2] == 0).all() and (scores.parts["diversity"][-2:] > 0).all()


def test_full_width_thinking_is_in_its_language():
    wide = "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in EN)
    scores = explang()([completion("en", wide), completion("zh", wide)], [P] * 2)
    assert detail(scores, "compliant") == [1, 0] and detail(scores, "abstain") == [0, 0]


def test_only_the_thinking_is_judged():
    texts = [completion("zh", ZH, EN * 3), completion("zh", EN, ZH * 3), completion("zh", "", ZH)]
    scores = explang()(texts, [P] * 3)
    assert detail(scores, "compliant") == [1, 0, 0] and detail(scores, "switched") == [0, 0, 0]


def test_switching_is_the_share_that_is_not_in_the_main_language():
    thinking = f"{ZH}\n{ZH}\n{ZH}\n{EN[:47]}"
    scores = explang()([completion("zh", thinking), completion("en", thinking), thinking], [P] * 3)
    english, chinese = (sum(map(str.isalpha, text)) for text in (EN[:47], ZH * 3))
    expected = np.float32(english / (english + chinese))
    assert 0.2 < expected < 0.5
    np.testing.assert_allclose(scores.details["language/switched"], [expected, expected, 0], rtol=1e-6)
    assert detail(scores, "compliant") == [1, 0, 0]


# The answer's reward


def test_the_answer_reward_is_given_what_follows_the_thinking():
    given = []

    def recorder(texts, examples):
        given.extend(zip(texts, examples, strict=True))
        return np.zeros(len(texts))

    texts = [completion("en", "<answer>5</answer>", "6"), tag("en") + "5", "<think>5", "<think>4</think>5", "5"]
    examples = [P, Q, P, Q, P]
    explang(answer=recorder)(texts, examples)
    assert given == list(zip(["\n6", "", "", "5", "5"], examples, strict=True))


def test_verdict_time_outs_and_details_are_the_answers():
    timeout = np.array([True, False, False])

    def partial(texts, examples):
        return Scores(np.array([0.1, 5, -1]), np.array([False, True, True]), {"format": np.ones(3)}, timeout, {"n": np.ones(3)})

    scores = explang(Weights(answer=2), partial)(["5"] * 3, [P] * 3)
    assert scores.rewards.tolist() == [0, 2, 2] and scores.correct.tolist() == [False, True, True]
    assert scores.timeout is timeout and scores.details["n"].tolist() == [1, 1, 1]
    assert scores.parts["format"].tolist() == [0, 0, 0]


def test_with_the_rewards_of_countdown_and_maths():
    countdown = Example("c", "countdown", {"numbers": (1, 2), "target": 3})
    texts = [completion("de", DE, f"<answer>{answer}</answer>") for answer in ("1 + 2", "1 - 2")]
    scores = explang(answer=countdown_reward)(texts, [countdown] * 2)
    np.testing.assert_allclose(scores.rewards, [1.6, 0.6], rtol=1e-6)  # the tenth for a wrong answer is left out
    maths = Example("m", "maths", answer="3")
    texts = [completion("de", DE, "\\boxed{3}"), completion("de", DE + "\\boxed{3}", "\\boxed{4}")]
    scores = explang(answer=MathsReward())(texts, [maths] * 2)
    assert scores.correct.tolist() == [True, False] and scores.details["answered"].tolist() == [1, 1]


def test_the_loop_takes_it():
    from jaxrl_ml.data import score_rows

    scores = score_rows(explang(), TEXTS, [P, Q], 4)
    for name, values in columns(scores).items():
        assert values.shape == (8,) and values.dtype == (bool if name == "correct" else np.float32), name
    np.testing.assert_allclose(scores.rewards, REWARDS[0][2], rtol=1e-6)
    empty = columns(explang()([], []))
    assert {values.shape for values in empty.values()} == {(0,)}


# Hostile text: text → tagged, compliant, abstain, correct. `tests/test_thinking.py` has how each is read.

HOSTILE = {
    "a tag inside the thinking": (f"{tag('en')}{EN}{tag('zh')}{EN}</think>5", 1, 1, 0, 1),
    "a tag alone in the thinking": (f"{tag('en')}{tag('zh')}</think>5", 1, 0, 1, 1),
    "nested tags": (f"<lang_select>\n{tag('en')}\nen\n</lang_select>\n<think>\n{EN}</think>5", 0, 0, 0, 1),
    "two tags, thinking in the first": (f"{tag('en')}{tag('zh')}{EN}</think>5", 1, 1, 0, 1),
    "two tags, thinking in the second": (f"{tag('en')}{tag('zh')}{ZH}</think>5", 1, 0, 0, 1),
    "two completions": (f"{completion('en', EN)}{completion('zh', ZH)}", 1, 1, 0, 0),
    "nested thinking": (f"{tag('en')}{EN}<think>{ZH}</think>5", 1, 1, 0, 1),
    "unclosed, in its language": (f"{tag('en')}{EN} 5", 1, 1, 0, 0),
    "unclosed, the answer alone": (f"{tag('en')}5", 1, 0, 1, 0),
    "only a tag": (tag("en"), 1, 0, 1, 0),
    "empty thinking": (f"{tag('en')}</think>5", 1, 0, 1, 1),
    "an unknown language": (completion("xx", EN), 0, 0, 0, 1),
    "right to left, in another language": (f"{tag('en')}\u202e{HE}\u202c</think>\u200f5", 1, 0, 0, 0),
    "directions around English": (f"{tag('en')}\u202e{EN}\u202c</think>5", 1, 1, 0, 1),
    "directions before the tag": (f"\u200f{completion('en', EN)}", 0, 0, 0, 1),
    "only directions": (f"{tag('en')}" + "\u202e\u200f" * 500 + "</think>5", 1, 0, 1, 1),
    "combining characters only": (f"{tag('en')}" + "\u0301\u0316" * 500 + "</think>5", 1, 0, 1, 1),
    "a mark on every space": (f"{tag('de')}{DE.replace(' ', chr(0x200B) + ' ')}</think>5", 1, 1, 0, 1),
    "100 kB of digits": (f"{tag('en')}{'7' * 100_000}", 1, 0, 1, 0),
    "100 kB of digits as answer": (completion("en", EN, "7" * 100_000), 1, 1, 0, 0),
    "100 kB of digits after words": (f"{tag('en')}{EN}{'7' * 100_000}</think>5", 1, 1, 0, 1),
    "many opening marks": (f"{tag('en')}{'<think>' * 2_000}</think>5", 1, 0, 1, 1),
    "100 kB of closing marks": (f"{tag('en')}{'</think>' * 12_500}", 1, 0, 1, 0),
    "lone surrogates": (f"{tag('en')}{chr(0xD800) * 50}</think>5", 1, 0, 1, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_has_a_defined_result(name):
    text, *expected = HOSTILE[name]
    scores = explang()([text], [P])
    found = [*(detail(scores, name)[0] for name in ("tagged", "compliant", "abstain")), scores.correct[0]]
    assert found == expected
    tagged, compliant, _, correct = expected
    np.testing.assert_allclose(scores.rewards, [0.2 * tagged + 0.4 * compliant + correct], rtol=1e-6)


def test_100_kb_of_digits_are_no_answer_either():
    digits = "7" * 100_000
    countdown = Example("c", "countdown", {"numbers": (1, 2), "target": 3})
    text = completion("en", EN, f"<answer>{digits}</answer>\\boxed{{{digits}}}")
    for answer, example in ((countdown_reward, countdown), (MathsReward(), Example("m", "maths", answer="3"))):
        assert explang(answer=answer)([text], [example]).correct.tolist() == [False]


PIECES = st.sampled_from(
    [tag("en"), tag("zh"), tag("xx"), "<think>", "</think>", "<lang_select>\n", EN, ZH, HE, "\u202e", "\u0301", "$", "`", "5"]
)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(st.lists(st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=8).map("".join)), max_size=6))
def test_never_raises(texts):
    scores = explang(Weights(diversity=1, group_pass=1), scope="prompt")(texts, [P, Q, P, Q, P, Q][: len(texts)])
    assert np.isfinite(scores.rewards).all() and scores.rewards.dtype == np.float32
    tagged, compliant, abstain = (np.array(detail(scores, name)) for name in ("tagged", "compliant", "abstain"))
    assert (compliant + abstain <= tagged).all()
    assert tagged.tolist() == [float(text.startswith((tag("en"), tag("zh"), tag("de")))) for text in texts]


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"language": LanguageConfig()}, "language.mode=off has no tags"),
        ({"scope": "batch"}, "scope='batch' must be 'step' or 'prompt'"),
        ({"backend": "cld3"}, "backend='cld3'"),
        ({"backend": "lingua", "language": LanguageConfig("forced", ("de",))}, "only language 'de'"),
    ],
)
def test_settings_without_sense_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        explang(**settings)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Weights)])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_weights_must_be_numbers(name, value):
    with pytest.raises(UserError, match=f"{name}={value}"):
        Weights(**{name: value})


def test_broken_calls_raise_rather_than_score_zero():
    with pytest.raises(ValueError, match="2 texts for 1 examples"):
        explang()(["", ""], [P])
    with pytest.raises(UserError, match=r"verdicts of shape \(1,\) for 2 texts"):
        explang(answer=lambda texts, examples: np.ones(1))(["", ""], [P, P])
    with pytest.raises(UserError, match="example 'r' is to think in fr"):
        explang()([""], [Example("r", "t", {"languages": ("fr",)})])
    with pytest.raises(UserError, match="does not know the language 'tlh'"):
        explang(language=LanguageConfig("free", ("en", "tlh")))([""], [P])


def test_a_config_shows_it_and_loads_nothing():
    shown = json.loads(json.dumps(cli.resolved(explang(EXPLOITATION, countdown_reward))))
    assert shown["type"] == "ExpLangReward" and shown["weights"]["group_pass"] == 0.5
    assert shown["language"]["languages"] == ["en", "zh", "de"] and shown["scope"] == "step"
    assert shown["answer"] == "jaxrl_ml.rewards.countdown.countdown_reward"
    program = (
        "import sys\n"
        "from jaxrl_ml.config import LanguageConfig\n"
        "from jaxrl_ml.rewards.language import EXPLORATION, ExpLangReward\n"
        "ExpLangReward(LanguageConfig('free', ('en', 'zh')), len, EXPLORATION, backend='lingua')\n"
        "assert not {'jax', 'grain', 'py3langid', 'lingua', 'transformers', 'sympy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
