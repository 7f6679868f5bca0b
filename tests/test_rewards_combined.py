"""Named rewards as one: the weighted sum, what is correct, what is logged, and rewards that depend on the whole step."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_ml.config import Evaluation, GRPOStage, LanguageConfig
from jaxrl_ml.data import score_rows
from jaxrl_ml.grpo import Experience, describe, merge, select
from jaxrl_ml.rewards.combined import CombinedReward, as_scores, reward_of
from jaxrl_ml.rewards.countdown import countdown_reward
from jaxrl_ml.rewards.language import ExpLangReward, Weights, answer_verdict
from jaxrl_ml.types import Example, Prompts, Rollout, Scores, StepReward, UserError

TEXTS = ["a5", "55", "", "b", "5 5 5", "c"]
EXAMPLES = [Example(str(i), "t") for i in range(len(TEXTS))]
EN = "The answer to this question follows from adding both of the numbers together and then halving what comes out."
DE = "Die Antwort auf diese Frage ergibt sich, wenn man beide Zahlen zusammenzählt und danach das Ergebnis halbiert."
LANGUAGE = LanguageConfig("free", ("en", "de"))


def binary(value: float = 1.0):
    """A plain reward in {0, value}: whether the text has a 5."""

    def has_five(texts, examples):
        return np.array([value * ("5" in text) for text in texts])

    return has_five


def length(texts, examples):
    return np.array([float(len(text)) for text in texts])


def scored(texts, examples):
    """A reward that returns Scores with all there is: right with two fives, timed out where the text is empty."""
    fives = np.array([text.count("5") for text in texts], np.float32)
    return Scores(
        rewards=fives,
        correct=fives == 2,
        parts={"low": fives / 4, "rest": 3 * fives / 4},
        timeout=np.array([not text for text in texts]),
        details={"chars": length(texts, examples), "answered": fives > 0},
    )


def other(texts, examples):
    """Another reward with Scores, whose parts and details have the same names."""
    scores = scored(texts, examples)
    return dataclasses.replace(scores, rewards=-scores.rewards, correct=~scores.correct, details={"chars": scores.rewards * 0})


def combined(reward, correct=None):
    return reward_of("grpo", GRPOStage([], reward, correct=correct))


def run(reward, correct=None, texts=TEXTS) -> Scores:
    return score_rows(combined(reward, correct), texts, EXAMPLES[: len(texts)], 1)


def experience(scores: Scores) -> Experience:
    B = len(scores.rewards)
    fields = (np.zeros((B, 1)), np.ones(B), np.ones((B, 1), bool), np.zeros((B, 1)), np.zeros(B, bool))
    return Experience([str(b) for b in range(B)], Rollout(Prompts(*[np.zeros((B, 1))] * 3), *fields), [""] * B, scores)


# ------------------------------------------------------------------------------------------------ what a plain array means


@pytest.mark.parametrize("value", [0.5, 0.9, 0.99, 1.0, 1.9, 2.0])
def test_a_plain_array_is_correct_from_one_on_wherever_it_is_read(value):
    expected = [value >= 1 and "5" in text for text in TEXTS]
    reward = binary(value)
    owner = ExpLangReward(LANGUAGE, reward, Weights())
    for scores in (
        as_scores(reward(TEXTS, EXAMPLES), len(TEXTS), "reward"),
        score_rows(reward, TEXTS, EXAMPLES, 1),
        answer_verdict(owner, TEXTS, EXAMPLES),
        run({"answer": (reward, 0.1), "length": length}, "answer"),
    ):
        assert scores.correct.tolist() == expected
        np.testing.assert_allclose(scores.plain_rewards, value * np.array(["5" in text for text in TEXTS]), rtol=1e-6)
    assert owner(TEXTS, EXAMPLES).plain_rewards.max() in (0, np.float32(value)), "the answer's values, not the sum"


def test_scores_say_themselves_what_is_correct():
    assert score_rows(scored, TEXTS, EXAMPLES, 1).plain_rewards is None
    assert run({"answer": scored, "length": length}, "answer").plain_rewards is None
    assert countdown_reward(["<answer>1</answer>"], [Example("c", "t", {"numbers": (1,), "target": 1})]).plain_rewards is None


def test_the_rule_stands_in_one_place():
    package = Path(__file__).parent.parent / "jaxrl_ml"
    files = [path for path in package.rglob("*.py") if "correct=rewards >= 1" in path.read_text()]
    assert [path.name for path in files] == ["combined.py"]
    assert not [path for path in package.rglob("*.py") if "verdict) >= 1" in path.read_text()]


# -------------------------------------------------------------------------------------------------------- the weighted sum


def test_a_bonus_does_not_make_an_answer_correct():
    """A format bonus of 1.0 that nearly all earn, an answer that few have right: as one plain reward 5 of 6 are 'correct'."""
    bonus = lambda texts, examples: np.array([float(bool(text)) for text in texts])  # noqa: E731
    one = lambda texts, examples: bonus(texts, examples) + np.array([float(text == "55") for text in texts])  # noqa: E731
    assert score_rows(one, TEXTS, EXAMPLES, 1).correct.sum() == 5
    answer = lambda texts, examples: np.array([float(text == "55") for text in texts])  # noqa: E731
    scores = run({"answer": answer, "format": (bonus, 1.0)}, "answer")
    assert scores.correct.tolist() == [text == "55" for text in TEXTS]
    np.testing.assert_allclose(scores.rewards, one(TEXTS, EXAMPLES))


def test_parts_add_up_and_values_before_weighting_are_details():
    scores = run({"answer": (scored, 2.0), "length": (length, -0.25), "bare": binary()}, "answer")
    assert scores.parts.keys() == {"answer", "length", "bare"}
    np.testing.assert_allclose(sum(scores.parts.values()), scores.rewards)
    fives = np.array([text.count("5") for text in TEXTS])
    lengths = np.array([len(text) for text in TEXTS])
    np.testing.assert_allclose(scores.rewards, 2 * fives - lengths / 4 + (fives > 0), rtol=1e-6)
    np.testing.assert_allclose(scores.parts["length"], -lengths / 4)
    np.testing.assert_array_equal(scores.details["unweighted/length"], lengths)
    np.testing.assert_array_equal(scores.details["unweighted/answer"], fives)
    np.testing.assert_allclose(scores.details["unweighted/answer/rest"], 0.75 * fives)
    np.testing.assert_array_equal(scores.details["chars"], lengths)
    assert scores.correct.tolist() == (fives == 2).tolist() and scores.timeout.tolist() == [not text for text in TEXTS]
    assert {values.dtype for values in (*scores.parts.values(), *scores.details.values(), scores.rewards)} == {np.dtype("f4")}
    logged = describe(experience(scores), 2)
    assert logged["reward/length"] == pytest.approx(-lengths.mean() / 4)
    assert logged["unweighted/length"] == pytest.approx(lengths.mean())


@settings(deadline=None, derandomize=True, max_examples=50)
@given(
    st.lists(st.floats(-3, 3, width=16), min_size=1, max_size=4),
    st.integers(0, 3),
    st.lists(st.text("5ab ", max_size=6), min_size=1, max_size=6),
)
def test_any_weights_give_the_weighted_sum(weights, deciding, texts):
    functions = [scored, length, binary(0.9), other]
    reward = {f"r{i}": (functions[i], weight) for i, weight in enumerate(weights)}
    correct = f"r{deciding % len(weights)}"
    scores = run(reward, correct, texts)
    members = {name: as_scores(f(texts, EXAMPLES), len(texts), name) for name, (f, _) in reward.items()}
    expected = sum(np.float32(weight) * members[name].rewards for name, (_, weight) in reward.items())
    np.testing.assert_allclose(scores.rewards, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(scores.correct, members[correct].correct)
    np.testing.assert_allclose(sum(scores.parts.values()), scores.rewards, rtol=1e-5, atol=1e-6)


def test_one_named_reward_needs_no_choice_and_is_the_function_itself():
    alone, plain = run({"answer": scored}), score_rows(scored, TEXTS, EXAMPLES, 1)
    for name in ("rewards", "correct", "timeout"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(plain, name))
    for detail in plain.details:
        np.testing.assert_array_equal(alone.details[detail], plain.details[detail])


def test_details_of_the_same_name_are_kept_apart():
    scores = run({"first": scored, "second": other}, "first")
    np.testing.assert_array_equal(scores.details["chars"], length(TEXTS, EXAMPLES))
    np.testing.assert_array_equal(scores.details["second/chars"], np.zeros(len(TEXTS)))
    np.testing.assert_array_equal(scores.details["correct/second"], ~scores.correct)
    np.testing.assert_array_equal(scores.details["timeout/second"], scores.timeout)
    assert "correct/first" not in scores.details


def test_a_weight_of_zero_only_logs():
    nan = lambda texts, examples: np.full(len(texts), np.nan)  # noqa: E731
    scores = run({"answer": binary(), "broken": (nan, 0.0)}, "answer")
    np.testing.assert_array_equal(scores.rewards, binary()(TEXTS, EXAMPLES))
    assert np.isnan(scores.details["unweighted/broken"]).all()
    assert np.isnan(run({"answer": binary(), "broken": (nan, 0.1)}, "answer").rewards).all(), "the run skips such a step"


def test_chunks_and_rounds_are_merged_and_selected_with_their_plain_values():
    whole = run({"answer": binary(0.9), "length": length}, "answer")
    parts = [run({"answer": binary(0.9), "length": length}, "answer", some) for some in (TEXTS[:2], TEXTS[2:])]
    merged = merge([experience(part) for part in parts])
    np.testing.assert_array_equal(merged.scores.plain_rewards, whole.plain_rewards)
    np.testing.assert_array_equal(merged.scores.details["unweighted/length"], whole.details["unweighted/length"])
    np.testing.assert_array_equal(select(merged, np.array([1, 2]), 1).scores.plain_rewards, whole.plain_rewards[1:3])
    logged = describe(merged, 2)
    assert (logged["reward/plain_min"], logged["reward/plain_max"]) == (0, np.float32(0.9))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.zeros(1), r"reward 'format' \(.*my_format\) returned rewards of shape \(1,\) and type float64 for 6 texts"),
        (np.zeros((6, 1)), r"reward 'format' .* shape \(6, 1\)"),
        (["1"] * 6, "one number per text"),
        (Scores(np.zeros(6), np.zeros(6)), "reward 'format' .* one bool per text"),
        (Scores(np.zeros(6), np.zeros(6, bool), {"p": np.zeros(1)}), "part 'p'"),
    ],
)
def test_a_reward_of_another_shape_is_named_rather_than_broadcast(bad, words):
    def my_format(texts, examples):
        return bad

    with pytest.raises(UserError, match=words) as caught:
        run({"answer": binary(), "format": my_format}, "answer")
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------- settings

STAGES = {
    "stage": lambda **changes: GRPOStage([], **changes),
    "evaluation": lambda **changes: Evaluation([], **changes),
}
MISTAKES = {
    "empty": ({"reward": {}}, "names no reward"),
    "no choice": ({"reward": {"a": len, "b": len}}, "correct=None: name the reward that decides what is correct, one of a, b"),
    "other choice": ({"reward": {"a": len, "b": len}, "correct": "c"}, "correct='c' is none of its rewards, which are a, b"),
    "choice without names": ({"reward": len, "correct": "a"}, "correct='a' names one of several rewards"),
    "choice without reward": ({"reward": None, "correct": "a"}, "correct='a' names one of several"),
    "name of a metric": ({"reward": {"correct": len}}, "reward/correct is a metric of every stage; rename 'correct'"),
    "mean": ({"reward": {"mean": len, "a": len}, "correct": "a"}, "rename 'mean'"),
    "path": ({"reward": {"a/b": len}}, "the name 'a/b' must be a word"),
    "dot": ({"reward": {"a.b": len}}, "the name 'a.b' must be a word"),
    "no name": ({"reward": {"": len}}, "the name '' must be a word"),
    "number for a name": ({"reward": {3: len}}, "the name 3 must be a word"),
    "no function": ({"reward": {"a": 0.5}}, "'a' is 0.5; give a function"),
    "function in second place": ({"reward": {"a": (0.5, len)}}, "give a function of texts and examples, or (function, weight)"),
    "three things": ({"reward": {"a": (len, 1.0, 2.0)}}, "or (function, weight)"),
    "weight as text": ({"reward": {"a": (len, "1")}}, "or (function, weight)"),
    "weight as truth": ({"reward": {"a": (len, True)}}, "or (function, weight)"),
    "nan": ({"reward": {"a": (len, float("nan"))}}, "the weight nan of 'a' must be finite"),
    "huge": ({"reward": {"a": (len, 10**400)}}, "must be finite, and below 1e38"),
    "inf": ({"reward": {"a": (len, float("-inf"))}}, "the weight -inf of 'a' must be finite"),
    "kind of choice": ({"reward": {"a": len}, "correct": 1}, "correct=1 must be a text or None"),
}


@pytest.mark.parametrize("owner", STAGES)
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_names_its_value_and_the_remedy(name, owner):
    changes, words = MISTAKES[name]
    with pytest.raises(UserError) as caught:
        STAGES[owner](**changes)
    text = str(caught.value)
    assert words in text and "\n" not in text and len(text) < 250
    assert text.startswith("grpo" if owner == "stage" else "evaluation test")


def test_every_metric_of_a_stage_is_a_reserved_name():
    from jaxrl_ml.config.stages import RESERVED_REWARD_NAMES

    logged = describe(experience(score_rows(binary(), TEXTS, EXAMPLES, 1)), 2)
    assert {f"reward/{name}" for name in RESERVED_REWARD_NAMES} == {name for name in logged if name.startswith("reward/")}


def test_penalties_other_scripts_and_objects_are_allowed():
    reward = {"answer": ExpLangReward(LANGUAGE, binary(), Weights()), "länge": (length, -1), "short-form": (len, 0)}
    assert GRPOStage([], reward, correct="answer").reward is reward


def test_positions_of_the_fields_before_are_unchanged():
    assert GRPOStage([], None, "name", 7).num_steps == 7 and Evaluation([], None, "name", 7).num_prompts == 7


# ------------------------------------------------------------------------------------------------------------ whole steps


class Rank:
    """A reward that depends on the whole step: its value over the largest of all rows."""

    def __init__(self, sign: float = 1.0):
        self.sign = sign

    def __call__(self, texts, examples):
        return self.over_step(scored(texts, examples))

    def over_step(self, scores):
        fives = 4 * scores.parts["low"]
        value = (self.sign * fives / max(fives.max(), 1)).astype(np.float32)
        return dataclasses.replace(
            scores, rewards=value, correct=fives == fives.max(), details={**scores.details, "rank": value}
        )


def test_a_combination_is_a_step_reward_where_a_member_is():
    assert isinstance(combined({"a": Rank(), "b": length}, "b"), StepReward)
    plain = combined({"a": scored, "b": length}, "b")
    assert isinstance(plain, CombinedReward) and not isinstance(plain, StepReward)


def columns(scores: Scores) -> dict[str, np.ndarray]:
    fields = {name: getattr(scores, name) for name in ("rewards", "correct", "timeout", "language_rewards", "plain_rewards")}
    return {
        **fields,
        **{f"part {k}": v for k, v in scores.parts.items()},
        **{f"detail {k}": v for k, v in scores.details.items()},
    }


@settings(deadline=None, derandomize=True, max_examples=50)
@given(
    st.lists(st.text("5ab ", max_size=6), min_size=2, max_size=6),
    st.integers(1, 5),
    st.sampled_from(["first", "rank", "second"]),
)
def test_a_step_does_not_depend_on_its_chunks(texts, cut, correct):
    """Two members with step-wide terms, and one whose details are named as theirs."""
    reward = combined({"first": (other, 0.5), "rank": (Rank(), 2.0), "second": (Rank(-1), 3.0), "length": length}, correct)
    whole = reward.over_step(score_rows(reward, texts, EXAMPLES[: len(texts)], 1))
    chunks = [texts[:cut], texts[cut:]] if 0 < cut < len(texts) else [texts]
    parts = [score_rows(reward, some, EXAMPLES[: len(some)], 1) for some in chunks]
    found = reward.over_step(merge([experience(part) for part in parts]).scores)
    assert columns(found).keys() == columns(whole).keys()
    for name, values in columns(whole).items():
        np.testing.assert_array_equal(columns(found)[name], values, err_msg=name)
    again = reward.over_step(whole)
    for name, values in columns(whole).items():
        np.testing.assert_array_equal(columns(again)[name], values, err_msg=name)


def completion(code: str, thinking: str, answer: str = "5") -> str:
    return f"<lang_select>\n{code}\n</lang_select>\n<think>\n{thinking}</think>\n{answer}"


POOL = [completion(code, thinking, answer) for code in ("en", "de") for thinking in (EN, DE, "") for answer in ("5", "6")]


@pytest.mark.parametrize("correct", ["explang", "answer"])
@pytest.mark.parametrize("cut", [1, 5, 9])
def test_explang_in_a_combination_keeps_its_terms(correct, cut):
    """Its language rewards, languages and step-wide terms are those it has alone; the sum has the other rewards besides."""
    alone = ExpLangReward(LANGUAGE, binary(), Weights(diversity=0.3, group_pass=0.7))
    examples = [Example(str(i), "t") for i in range(len(POOL))]
    reward = combined({"answer": (binary(), 0.5), "explang": (alone, 2.0)}, correct)
    expected = alone.over_step(alone(POOL, examples))
    parts = [score_rows(reward, POOL[part], examples[part], 1) for part in (slice(cut), slice(cut, None))]
    merged = merge([experience(part) for part in parts]).scores
    found = reward.over_step(merged)
    np.testing.assert_allclose(found.parts["explang"], 2 * expected.rewards, rtol=1e-6)
    np.testing.assert_allclose(found.rewards, 2 * expected.rewards + 0.5 * binary()(POOL, examples), rtol=1e-6)
    np.testing.assert_allclose(found.language_rewards, 2 * expected.language_rewards, rtol=1e-6)
    np.testing.assert_array_equal(found.languages, expected.languages)
    np.testing.assert_array_equal(found.details["language/compliant"], expected.details["language/compliant"])
    np.testing.assert_allclose(found.details["unweighted/explang/group_pass"], expected.parts["group_pass"], rtol=1e-6)
    assert not np.array_equal(merged.parts["explang"], found.parts["explang"]), "the chunks alone have other statistics"


def test_two_rewards_that_count_languages_are_refused():
    alone = ExpLangReward(LANGUAGE, binary(), Weights())
    with pytest.raises(UserError, match="the rewards a, b all count rows by thinking language"):
        run({"a": alone, "b": alone}, "a")


def test_configs_with_named_rewards_import_nothing_heavy():
    program = (
        "import sys\nfrom jaxrl_ml.rewards.combined import reward_of\n"
        "assert not {'jax', 'grain', 'transformers', 'sympy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_reward_that_raises_is_one_line_with_its_place() -> None:
    def reward(texts, examples):
        raise KeyError("some\nkey")

    with pytest.raises(
        UserError, match=r"failed at .*test_rewards_combined\.py:\d+ with KeyError: .*; mend it and resume"
    ) as caught:
        score_rows(reward, ["a"], [Example("0", "t")], 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("result", [[[1, 2], 1.0], Scores(np.zeros(2), np.zeros(2, bool), parts=None)])
def test_results_that_are_no_columns_are_one_line(result) -> None:
    with pytest.raises(UserError, match="reward f returned") as caught:
        as_scores(result, 2, "reward f")
    assert "\n" not in str(caught.value)
